//! COCO annotation files, record by record, so that an error can name the record.
//!
//! The lists `images`, `annotations` and `categories` are first cut into records without looking inside, then each
//! record is read by itself. Keys that are not needed are skipped.

use crate::error::{Error, Result};
use crate::image::rle::MAX_PIXELS;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

/// One entry of `images`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct ImageRecord {
    /// Number of the image.
    pub id: u64,
    /// File name of the photo, relative to the folder of images.
    pub file_name: String,
    /// Rows of the photo and of every mask.
    pub height: usize,
    /// Columns of the photo and of every mask.
    pub width: usize,
}

/// One entry of `categories`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct CategoryRecord {
    /// Number of the category; COCO's have gaps.
    pub id: u64,
    /// Name, by which classes of models are found.
    pub name: String,
    /// True for countable things; panoptic files say so.
    #[serde(default)]
    pub isthing: Option<Flag>,
}

/// A truth value that files spell `0`, `1`, `false` or `true`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(from = "Spelling")]
pub struct Flag(pub bool);

#[derive(Deserialize)]
#[serde(untagged, expecting = "expected 0, 1, false or true")]
enum Spelling {
    Word(bool),
    Number(u64),
}

impl From<Spelling> for Flag {
    fn from(spelling: Spelling) -> Self {
        Flag(match spelling {
            Spelling::Word(word) => word,
            Spelling::Number(number) => number != 0,
        })
    }
}

/// The lists of a file, each record still text.
#[derive(Deserialize)]
struct Lists<'a> {
    #[serde(borrow)]
    images: Option<Vec<&'a RawValue>>,
    #[serde(borrow)]
    annotations: Option<Vec<&'a RawValue>>,
    #[serde(borrow)]
    categories: Option<Vec<&'a RawValue>>,
}

/// A file whose images and categories are known to be sound; annotations are of type `A`.
#[derive(Debug)]
pub(super) struct CocoFile<A> {
    pub path: PathBuf,
    pub images: Vec<ImageRecord>,
    /// Position in `images` by id.
    pub image_index: HashMap<u64, usize>,
    pub categories: Vec<CategoryRecord>,
    pub annotations: Vec<A>,
}

impl<A: DeserializeOwned> CocoFile<A> {
    /// Reads a file.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read(path).map_err(|e| Error::io(path, e))?;
        let text = str::from_utf8(&text).map_err(|e| Error::data(path, format!("not JSON text: {e}")))?;
        let lists: Lists = serde_json::from_str(text)
            .map_err(|e| Error::data(path, format!("not a COCO annotation file: {e}")))?;
        let images: Vec<ImageRecord> = records(path, "images", lists.images)?;
        let categories: Vec<CategoryRecord> = records(path, "categories", lists.categories)?;
        let annotations = records(path, "annotations", lists.annotations)?;
        let mut image_index = HashMap::with_capacity(images.len());
        for (i, image) in images.iter().enumerate() {
            let refuse = |reason: String| Err(Error::record(path, format!("image {}", image.id), reason));
            let (height, width) = (image.height, image.width);
            if height.checked_mul(width).is_none_or(|pixels| pixels == 0 || pixels > MAX_PIXELS) {
                return refuse(format!("a size of {height} x {width} pixels is not possible"));
            }
            if image_index.insert(image.id, i).is_some() {
                return refuse("this id occurs twice".into());
            }
        }
        let (mut ids, mut names) = (HashSet::new(), HashSet::new());
        for category in &categories {
            if !ids.insert(category.id) || !names.insert(category.name.as_str()) {
                let record = format!("category {} (`{}`)", category.id, category.name);
                return Err(Error::record(path, record, "this id or name occurs twice"));
            }
        }
        Ok(CocoFile { path: path.to_path_buf(), images, image_index, categories, annotations })
    }

    /// Position of an image that `record` names.
    pub fn image(&self, id: u64, record: impl FnOnce() -> String) -> Result<usize> {
        let unknown = || Error::record(&self.path, record(), format!("there is no image {id}"));
        self.image_index.get(&id).copied().ok_or_else(unknown)
    }
}

fn records<T: DeserializeOwned>(path: &Path, list: &str, texts: Option<Vec<&RawValue>>) -> Result<Vec<T>> {
    let Some(texts) = texts else {
        return Err(Error::data(path, format!("not a COCO annotation file: there is no list `{list}`")));
    };
    if texts.is_empty() {
        return Err(Error::data(path, format!("the list `{list}` is empty")));
    }
    let read = |(i, text): (usize, &&RawValue)| {
        // The position inside of the record is of no use to a person who has the whole file.
        let describe = |e: serde_json::Error| {
            let text = e.to_string();
            text.split(" at line ").next().unwrap_or_default().to_string()
        };
        serde_json::from_str(text.get()).map_err(|e| Error::record(path, format!("{list}[{i}]"), describe(e)))
    };
    texts.iter().enumerate().map(read).collect()
}
