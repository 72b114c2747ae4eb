//! Looks at every file of a data set before anything is made of it.

use rayon::prelude::*;

use super::dataset::{Dataset, Entry, Label};
use super::panoptic;
use super::semantic::Meaning;
use crate::error::{Error, ErrorKind, Result};
use crate::image::decode::{Decoded, Limits, decode_checked};

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

/// Decodes every photo and reads every label image (in parallel), and says what they hold. Photos that cannot
/// be decoded are an error, or left out with `skip_damaged`.
pub(super) fn files(dataset: &mut Dataset, skip_damaged: bool) -> Result<()> {
    let looked: Vec<_> = dataset.entries.par_iter().map(|entry| look(dataset, entry, skip_damaged)).collect();
    let mut sum = Seen { pixels: vec![0; dataset.classes.len()], ..Seen::default() };
    let mut keep = Vec::with_capacity(looked.len());
    for (entry, outcome) in dataset.entries.iter().zip(looked) {
        let Some(seen) = outcome? else {
            let what = "photos that cannot be decoded were left out";
            dataset.warnings.add(what, &entry.image.display().to_string());
            keep.push(false);
            continue;
        };
        keep.push(true);
        sum.pixels.iter_mut().zip(&seen.pixels).for_each(|(sum, pixels)| *sum += pixels);
        sum.ignored += seen.ignored;
        if let Some(fault) = seen.fault {
            dataset.warnings.add(fault, &entry.image.display().to_string());
        }
        for record in &seen.empty {
            dataset.warnings.add("segments without a pixel in their PNG were dropped", record);
        }
    }
    let mut keep = keep.into_iter();
    dataset.entries.retain(|_| keep.next().unwrap_or(true));
    if dataset.entries.is_empty() {
        return Err(Error::data(&dataset.source, "no photo can be decoded"));
    }
    if dataset.entries.iter().any(|entry| !matches!(entry.label, Label::Objects(_))) {
        say(dataset, &sum)?;
    }
    Ok(())
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
