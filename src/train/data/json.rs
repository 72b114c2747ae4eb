//! Annotation files as lists of records that are parsed one by one, so that an error names its record.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::error::{Error, Result};
use crate::image::rle::MAX_PIXELS;

/// The three lists of a COCO annotation file.
#[derive(Deserialize)]
pub(super) struct Lists<'a> {
    #[serde(borrow)]
    pub images: Vec<&'a RawValue>,
    #[serde(borrow)]
    pub annotations: Vec<&'a RawValue>,
    #[serde(borrow)]
    pub categories: Vec<&'a RawValue>,
}

/// An image of an annotation file.
#[derive(Deserialize)]
pub(super) struct ImageRecord {
    pub id: u64,
    pub file_name: String,
    pub height: usize,
    pub width: usize,
}

/// A category of an annotation file.
#[derive(Clone, Deserialize)]
pub(super) struct Category {
    pub id: u32,
    pub name: String,
    pub isthing: Option<u8>,
}

/// The text of an annotation file.
pub(super) fn read(path: &Path) -> Result<String> {
    let bytes = std::fs::read(path).map_err(|e| Error::io(path, e))?;
    String::from_utf8(bytes).map_err(|_| Error::data(path, "not a JSON file: the bytes are not UTF-8"))
}

/// Parses a whole file.
pub(super) fn parse<'a, T: Deserialize<'a>>(path: &Path, text: &'a str) -> Result<T> {
    serde_json::from_str(text).map_err(|e| Error::data(path, format!("not the JSON expected: {e}")))
}

/// Parses entry `index` of the list `list`.
pub(super) fn record<'a, T: Deserialize<'a>>(
    path: &Path,
    list: &str,
    index: usize,
    raw: &'a RawValue,
) -> Result<T> {
    serde_json::from_str(raw.get()).map_err(|e| {
        // The position within the record says little; the reason comes first in serde's message.
        let reason = e.to_string();
        let reason = reason.split(" at line ").next().unwrap_or_default();
        Error::record(path, format!("{list}[{index}]"), reason)
    })
}

/// The categories, ascending by id, ids and names checked to be unique.
pub(super) fn categories(path: &Path, list: &[&RawValue]) -> Result<Vec<Category>> {
    let mut categories: Vec<Category> = Vec::with_capacity(list.len());
    for (i, raw) in list.iter().enumerate() {
        let category: Category = record(path, "categories", i, raw)?;
        if let Some(twin) = categories.iter().find(|c| c.id == category.id || c.name == category.name) {
            return Err(Error::record(
                path,
                format!("category {} `{}`", category.id, category.name),
                format!("id or name occurs twice (also category {} `{}`)", twin.id, twin.name),
            ));
        }
        categories.push(category);
    }
    if categories.is_empty() {
        return Err(Error::data(path, "the list `categories` is empty"));
    }
    categories.sort_by_key(|c| c.id);
    Ok(categories)
}

/// An image that exists on disk.
pub(super) struct ListedImage {
    pub id: u64,
    pub file: PathBuf,
    pub size: (usize, usize),
}

/// The images in file order, with their places by id; ids unique, sizes sensible, files present in `folder`.
pub(super) fn images(
    path: &Path,
    list: &[&RawValue],
    folder: &Path,
) -> Result<(Vec<ListedImage>, HashMap<u64, usize>)> {
    if !folder.is_dir() {
        return Err(Error::data(folder, "the folder of images does not exist"));
    }
    let mut images = Vec::with_capacity(list.len());
    let mut places = HashMap::with_capacity(list.len());
    for (i, raw) in list.iter().enumerate() {
        let image: ImageRecord = record(path, "images", i, raw)?;
        let refuse = |reason: String| Err(Error::record(path, format!("image {}", image.id), reason));
        if places.insert(image.id, i).is_some() {
            return refuse("this id occurs twice in `images`".into());
        }
        let pixels = image.height.checked_mul(image.width).filter(|p| (1..=MAX_PIXELS).contains(p));
        if pixels.is_none() {
            return refuse(format!(
                "a size of {} x {} pixels (width x height) is not accepted",
                image.width, image.height
            ));
        }
        let file = folder.join(&image.file_name);
        if !file.is_file() {
            return refuse(format!("the image file {} does not exist", file.display()));
        }
        images.push(ListedImage { id: image.id, file, size: (image.height, image.width) });
    }
    if images.is_empty() {
        return Err(Error::data(path, "the list `images` is empty"));
    }
    Ok((images, places))
}

/// Refuses an id that occurs twice.
pub(super) fn unique(seen: &mut HashSet<u64>, path: &Path, what: &str, id: u64) -> Result<()> {
    if seen.insert(id) {
        return Ok(());
    }
    Err(Error::record(path, format!("{what} {id}"), "this id occurs twice"))
}
