//! Looks at every file of a data set before anything is made of it.

use image::ImageFormat;
use rayon::prelude::*;

use super::dataset::{Dataset, Entry, Label, Reading};
use super::panoptic;
use super::semantic::Meaning;
use crate::error::{Error, ErrorKind, Result};
use crate::image::decode::{Decoded, Limits, decode_checked};
use crate::image::glance::glance;

/// What the label image of one photo holds.
#[derive(Default)]
struct Seen {
    /// Pixels of each class.
    pixels: Vec<u64>,
    ignored: u64,
    /// Segments that have no pixel.
    empty: Vec<String>,
    /// What is wrong with a photo that could be decoded all the same.
    fault: Option<&'static str>,
}

/// Images that are looked at before what was found is judged: what is held of them meanwhile does not grow
/// with the set.
const AT_A_TIME: usize = 1 << 12;

/// Looks at every photo and every label image (in parallel), and says what they hold. Of a set of at most
/// `reading.verify_whole` images all are decoded; of a larger one, where that takes minutes, sizes and ends
/// are read, and only files of which these do not tell, or tell of a fault, are decoded. Photos that cannot
/// be decoded are an error, or left out with `reading.skip_damaged`, which needs all to be decoded.
pub(super) fn files(dataset: &mut Dataset, reading: &Reading) -> Result<()> {
    let images = dataset.len();
    let whole = images <= reading.verify_whole || reading.skip_damaged;
    let mut sum = Seen { pixels: vec![0; dataset.classes.len()], ..Seen::default() };
    let mut keep = Vec::with_capacity(images);
    let mut warnings = std::mem::take(&mut dataset.warnings);
    for entries in dataset.entries.chunks(AT_A_TIME) {
        let look = |entry| match whole {
            false if glances(entry) => Ok(Some(Seen::default())),
            _ => look(dataset, entry, reading.skip_damaged),
        };
        let looked: Vec<_> = entries.par_iter().map(look).collect();
        for (entry, outcome) in entries.iter().zip(looked) {
            let name = || entry.image.display().to_string();
            let seen = outcome?;
            keep.push(seen.is_some());
            let Some(seen) = seen else {
                warnings.add("photos that cannot be decoded were left out", &name());
                continue;
            };
            sum.pixels.iter_mut().zip(&seen.pixels).for_each(|(sum, pixels)| *sum += pixels);
            sum.ignored += seen.ignored;
            if let Some(fault) = seen.fault {
                warnings.add(fault, &name());
            }
            for record in &seen.empty {
                warnings.add("segments without a pixel in their PNG were dropped", record);
            }
        }
    }
    dataset.warnings = warnings;
    let mut keep = keep.into_iter();
    dataset.entries.retain(|_| keep.next().unwrap_or(true));
    if dataset.entries.is_empty() {
        return Err(Error::data(&dataset.source, "no photo can be decoded"));
    }
    if !whole {
        let most = reading.verify_whole;
        dataset.warnings.say(format!(
            "sizes and ends of the files of {images} images were looked at: sets of more than {most} (verify_whole) are not \
             decoded when they are opened"
        ));
    } else if dataset.entries.iter().any(|entry| !matches!(entry.label, Label::Objects(_))) {
        say(dataset, &sum)?;
    }
    Ok(())
}

/// Whether the files of an image are whole, and as large as they should be, by their first and last bytes.
fn glances(entry: &Entry) -> bool {
    let Some((size, _)) = glance(&entry.image, &Limits::default()) else { return false };
    entry.size.is_none_or(|said| said == size)
        && match &entry.label {
            Label::Objects(_) => true,
            Label::Panoptic { png, .. } | Label::Semantic { png } => {
                glance(png, &Limits::default()) == Some((size, ImageFormat::Png))
            }
        }
}

/// What the pixels of all label images come to.
fn say(dataset: &mut Dataset, sum: &Seen) -> Result<()> {
    let labelled: u64 = sum.pixels.iter().sum();
    if labelled == 0 {
        let reason = "no pixel of any label image belongs to a class: all are void, ignored or crowds";
        return Err(Error::data(&dataset.source, reason));
    }
    let absent = dataset.classes.iter().zip(&sum.pixels).filter(|(_, pixels)| **pixels == 0);
    dataset.warnings.classes("classes without a pixel", absent.map(|(class, _)| &*class.name));
    if sum.ignored > 0 {
        let share = 100.0 * sum.ignored as f64 / (sum.ignored + labelled) as f64;
        let value = dataset.labels.as_ref().and_then(|labels| labels.ignore);
        let which = value.map_or("void or of crowds".into(), |value| format!("ignored (value {value})"));
        dataset.warnings.say(format!("{share:.1} % of the pixels are {which}"));
    }
    Ok(())
}

/// Looks at the files of one image; `None` if the photo cannot be decoded and may be left out.
fn look(dataset: &Dataset, entry: &Entry, skip_damaged: bool) -> Result<Option<Seen>> {
    let Decoded { picture: photo, fault } = match decode_checked(&entry.image, &Limits::default()) {
        Err(error) if skip_damaged && matches!(error.kind(), ErrorKind::Image | ErrorKind::Io) => {
            return Ok(None);
        }
        photo => photo?,
    };
    let size = (photo.height() as usize, photo.width() as usize);
    drop(photo);
    dataset.check_size(entry, size)?;
    let mut seen = Seen { pixels: vec![0; dataset.classes.len()], fault, ..Seen::default() };
    match &entry.label {
        Label::Objects(_) => {}
        Label::Panoptic { png, segments } => {
            let mut counts = vec![0u64; segments.len()];
            // Neighbours are mostly of one segment.
            for run in panoptic::ids(png, segments, size)?.chunk_by(|a, b| a == b) {
                match segments.binary_search_by_key(&run[0], |s| s.id) {
                    Ok(segment) => counts[segment] += run.len() as u64,
                    Err(_) => seen.ignored += run.len() as u64,
                }
            }
            for (segment, count) in segments.iter().zip(counts) {
                if count == 0 {
                    seen.empty.push(format!("{}: segment {}", png.display(), segment.id));
                } else if segment.crowd {
                    seen.ignored += count;
                } else {
                    seen.pixels[segment.class] += count;
                }
            }
        }
        Label::Semantic { png } => {
            let labels = dataset.class_list()?;
            for meaning in labels.load(png, &labels.meaning(), size)? {
                match meaning {
                    Meaning::Class(class) => seen.pixels[class] += 1,
                    Meaning::Ignored | Meaning::Unknown => seen.ignored += 1,
                }
            }
        }
    }
    Ok(Some(seen))
}
