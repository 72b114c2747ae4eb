//! Semantic data sets: photos, and PNG files whose pixels are class indices (grey or palette).

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use image::GrayImage;
use serde_json::value::RawValue;

use super::dataset::{Dataset, Entry, IGNORE, Label};
use super::json::{self, Record};
use super::warning::Warnings;
use super::{labels, panoptic, text};
use crate::error::{Error, Result};
use crate::fsio::read_text;
use crate::image::classes::Class;
use crate::image::listing::Listing;
use crate::image::palette;

/// Largest value of a mask.
const MAX_INDEX: u64 = u16::MAX as u64;

/// What the values of masks mean: `{"ignore_index": 255, "classes": [{"index": 0, "name": "sky"}, ...]}`.
/// Without `ignore_index`, 255 is ignored; `null` ignores nothing.
#[derive(Clone, Debug)]
pub(in crate::train) struct ClassList {
    /// The file it was read from.
    pub path: PathBuf,
    /// Value and name of each class, in the order of the list, which is the order of the classes.
    pub classes: Vec<(u32, String)>,
    /// Value of pixels that are not compared and not learnt. It wins over a class of the same value.
    pub ignore: Option<u32>,
}

/// What a value of a mask means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::train) enum Meaning {
    /// No class of the list.
    Unknown,
    /// Not labelled.
    Ignored,
    /// Position in [`ClassList::classes`].
    Class(usize),
}

impl ClassList {
    /// Reads the list `field` of the JSON file at `path`.
    pub fn read(path: &Path, field: &str) -> Result<ClassList> {
        let text = text::read(path)?;
        let what = "a class list (an object with a list of classes, each with `index` and `name`)";
        let root: BTreeMap<String, &RawValue> = json::parse(path, &text, what)?;
        let refuse = |reason: String| Error::data(path, format!("not {what}: {reason}"));
        let ignore = match root.get("ignore_index").map(|raw| raw.get()) {
            None => Some(u32::from(IGNORE)),
            Some("null") => None,
            Some(text) => {
                let value = text.parse().ok().filter(|v| u64::from(*v) <= MAX_INDEX);
                let reason =
                    format!("`ignore_index` is {text}: a number from 0 to 65535, or null, is expected");
                Some(value.ok_or_else(|| Error::data(path, reason))?)
            }
        };
        let list = root.get(field).ok_or_else(|| refuse(format!("there is no list `{field}`")))?;
        let list: Vec<&RawValue> = serde_json::from_str(list.get()).map_err(|_| {
            refuse(format!("`{field}` is no list: --classes-field or `field` names the list"))
        })?;
        if list.is_empty() {
            return Err(Error::data(path, format!("the list `{field}` is empty")));
        }
        let mut classes: Vec<(u32, String)> = Vec::with_capacity(list.len());
        let (mut indices, mut names) = (HashSet::new(), HashSet::new());
        for (i, raw) in list.into_iter().enumerate() {
            let mut record = Record::new(path, field, i, raw)?;
            let (index, name) = (record.whole("index")?, record.text("name")?);
            if index > MAX_INDEX {
                return Err(record.refuse("index", "a number from 0 to 65535"));
            }
            record.name = format!("{field}[{i}] (`{name}`)");
            if !indices.insert(index) || !names.insert(name.clone()) {
                return Err(record.refuse_for(format!("the index {index} or the name occurs twice")));
            }
            classes.push((index as u32, name));
        }
        Ok(ClassList { path: path.to_path_buf(), classes, ignore })
    }

    /// The meaning of every value.
    pub fn meaning(&self) -> Vec<Meaning> {
        let mut meaning = vec![Meaning::Unknown; MAX_INDEX as usize + 1];
        for (position, &(index, _)) in self.classes.iter().enumerate() {
            meaning[index as usize] = Meaning::Class(position);
        }
        if let Some(index) = self.ignore {
            meaning[index as usize] = Meaning::Ignored;
        }
        meaning
    }

    /// Reads a mask of `size` (height, width): the meaning of each pixel, none of them unknown.
    ///
    /// # Errors
    /// As [`labels::indices`]; [`Error::Data`] naming the pixel of a value that the list does not have, or
    /// both sizes.
    pub fn load(&self, mask: &Path, meaning: &[Meaning], size: (usize, usize)) -> Result<Vec<Meaning>> {
        let map = labels::indices(mask)?;
        panoptic::check_size(mask, (map.height, map.width), size)?;
        let mean = |(at, &value): (usize, &u32)| match meaning[value as usize] {
            Meaning::Unknown => {
                let place = format!("pixel ({}, {})", at % map.width, at / map.width);
                let indices: Vec<String> = self.classes.iter().map(|(index, _)| index.to_string()).collect();
                let (list, known) = (self.path.display(), super::warning::list(&indices));
                let ignored = self.ignore.map_or("nothing".into(), |index| index.to_string());
                let reason = format!("index {value}, but {list} lists {known} and ignores {ignored}");
                Err(Error::record(mask, place, reason))
            }
            known => Ok(known),
        };
        map.values.iter().enumerate().map(mean).collect()
    }
}

/// The stems that a list names, one a line.
fn read_stems(list: &Path) -> Result<Vec<String>> {
    let text = read_text(list)?;
    Ok(text.lines().map(str::trim).filter(|l| !l.is_empty()).map(String::from).collect())
}

/// Where semantic ground truth lies.
#[derive(Clone, Copy, Debug)]
pub(super) struct Source<'a> {
    /// Folder of photos.
    pub images: &'a Path,
    /// Folder of masks.
    pub masks: &'a Path,
    /// The class list.
    pub classes: &'a Path,
    /// Its field that holds the list.
    pub field: &'a str,
    /// Stems to use.
    pub list: Option<&'a Path>,
}

/// Reads which photo has which mask. Every class counts as a region.
pub(super) fn read(source: &Source) -> Result<Dataset> {
    let labels = ClassList::read(source.classes, source.field)?;
    let mut warnings = Warnings::default();
    let masks: BTreeMap<String, PathBuf> = Listing::of(source.masks)?
        .pictures
        .into_iter()
        .filter(|p| is_png(p))
        .map(|p| (stem(&p), p))
        .collect();
    let stems = match source.list {
        Some(list) => read_stems(list)?,
        None => masks.keys().cloned().collect(),
    };
    let origin = source.list.unwrap_or(source.masks);
    if stems.is_empty() {
        return Err(Error::data(origin, "names no mask: there are no files NAME.png"));
    }
    let (photos, passed_over) = photos(source)?;
    if let Some(passed_over) = passed_over {
        warnings.say(format!("{}: passed over {passed_over}", source.images.display()));
    }
    let mut seen = HashSet::new();
    let mut entries = Vec::with_capacity(stems.len());
    for (i, stem) in stems.into_iter().enumerate() {
        let refuse = |reason: String| Err(Error::record(origin, format!("image `{stem}`"), reason));
        if !seen.insert(stem.clone()) {
            return refuse("is named twice".into());
        }
        let Some(png) = masks.get(&stem).cloned() else {
            return refuse(format!("the mask file {}/{stem}.png does not exist", source.masks.display()));
        };
        let photo = match photos.get(&stem).map(Vec::as_slice) {
            Some([photo]) => photo.clone(),
            Some([one, two, ..]) => {
                return refuse(format!("has two photos, {} and {}", one.display(), two.display()));
            }
            _ => return refuse(format!("{} has no photo of this stem", source.images.display())),
        };
        entries.push(Entry {
            id: i as u64,
            text_id: None,
            file_name: photo.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            image: photo,
            size: None,
            label: Label::Semantic { png },
        });
    }
    if let Some((index, name)) = labels.classes.iter().find(|(index, _)| Some(*index) == labels.ignore) {
        warnings.say(format!("class `{name}` is ignored: its index {index} is the `ignore_index`"));
    }
    let class = |(i, (index, name)): (usize, &(u32, String))| {
        let (id, name) = (*index, name.clone().into());
        Class { id, name, is_thing: false, colour: palette::distinct(i) }
    };
    let classes = labels.classes.iter().enumerate().map(class).collect();
    let source = origin.to_path_buf();
    Ok(Dataset { source, classes, things: 0, entries, labels: Some(Arc::new(labels)), warnings })
}

fn is_png(path: &Path) -> bool {
    path.extension().is_some_and(|e| e.eq_ignore_ascii_case("png"))
}

fn stem(path: &Path) -> String {
    path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

/// Photos by stem.
type Photos = HashMap<String, Vec<PathBuf>>;

/// The pictures of the folder of photos, and what was passed over. Masks that lie among them are no photos.
fn photos(source: &Source) -> Result<(Photos, Option<String>)> {
    let same =
        |a: &Path, b: &Path| a.canonicalize().ok().is_some_and(|a| b.canonicalize().is_ok_and(|b| a == b));
    let with_masks = same(source.images, source.masks);
    let listing = Listing::of(source.images)?;
    let passed_over = listing.passed_over();
    let mut photos = Photos::new();
    for path in listing.pictures {
        if !(with_masks && is_png(&path)) {
            photos.entry(stem(&path)).or_default().push(path);
        }
    }
    Ok((photos, passed_over))
}

/// The class of each pixel of a mask of `size` (height, width), [`IGNORE`] where there is none.
pub(super) fn load(labels: &ClassList, mask: &Path, size: (usize, usize)) -> Result<GrayImage> {
    let meanings = labels.load(mask, &labels.meaning(), size)?;
    let class = |meaning: Meaning| match meaning {
        Meaning::Class(class) => class as u8,
        Meaning::Ignored | Meaning::Unknown => IGNORE,
    };
    let map = meanings.into_iter().map(class).collect();
    Ok(GrayImage::from_raw(size.1 as u32, size.0 as u32, map).expect("one byte a pixel"))
}
