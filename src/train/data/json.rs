//! Annotation files as lists of records that are read one by one and field by field, so that an error names
//! file, record, field and value.
//!
//! What other tools write and read without harm is read here too: a byte order mark, `NaN` in fields that
//! nothing needs (both in [`super::text`]), whole numbers with a decimal point, and truth values as
//! words or numbers.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::value::RawValue;

use super::text;
use crate::error::{Error, Result};
use crate::image::rle::MAX_PIXELS;

/// Reads a whole file, which has to be an object; `what` names what it should hold.
pub(super) fn parse<'a, T: Deserialize<'a>>(path: &Path, text: &'a str, what: &str) -> Result<T> {
    let refuse = |reason: String| Error::data(path, format!("not {what}: {reason}"));
    if text.trim_start().starts_with('[') {
        return Err(refuse("it is a list, an object is expected at the top".into()));
    }
    serde_json::from_str(text).map_err(|e| refuse(e.to_string()))
}

/// The lists of a COCO file, each record still text.
#[derive(Deserialize)]
struct Lists<'a> {
    #[serde(borrow)]
    images: Option<Vec<&'a RawValue>>,
    #[serde(borrow)]
    annotations: Option<Vec<&'a RawValue>>,
    #[serde(borrow)]
    categories: Option<Vec<&'a RawValue>>,
}

/// A COCO file whose images and categories are known to be sound.
pub(super) struct CocoFile<'a> {
    pub path: &'a Path,
    pub images: Vec<ImageRecord>,
    places: HashMap<ImageKey, usize>,
    /// Ascending by id.
    pub categories: Vec<Category>,
    annotations: Option<Vec<&'a RawValue>>,
}

/// One entry of `images`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageRecord {
    /// Number of the image; its place in the list if the file has texts for ids.
    pub id: u64,
    /// The id as text, if the file (Cityscapes') has such.
    pub text_id: Option<String>,
    /// File name of the photo, relative to the folder of images.
    pub file_name: String,
    /// Rows of the photo and of every mask.
    pub height: usize,
    /// Columns of the photo and of every mask.
    pub width: usize,
}

/// A category of an annotation file.
#[derive(Clone, Debug)]
pub(super) struct Category {
    pub id: u32,
    pub name: String,
    pub is_thing: Option<bool>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum ImageKey {
    Number(u64),
    Text(String),
}

impl ImageRecord {
    /// The id as the file has it.
    pub fn json_id(&self) -> serde_json::Value {
        self.text_id.as_ref().map_or_else(|| self.id.into(), |text| text.as_str().into())
    }
}

impl<'a> CocoFile<'a> {
    /// Reads the lists of the file at `path`, whose text is `text`.
    pub fn new(path: &'a Path, text: &'a str) -> Result<Self> {
        let what = "a COCO annotation file (an object with the lists `images`, `annotations`, `categories`)";
        let lists: Lists = parse(path, text, what)?;
        let need = |name: &str, list: Option<Vec<&'a RawValue>>| match list {
            Some(list) if list.is_empty() => Err(Error::data(path, format!("the list `{name}` is empty"))),
            Some(list) => Ok(list),
            None => Err(Error::data(path, format!("not {what}: there is no list `{name}`"))),
        };
        let categories = categories(path, &need("categories", lists.categories)?)?;
        let (images, places) = images(path, &need("images", lists.images)?)?;
        let annotations = lists.annotations;
        Ok(CocoFile { path, images, places, categories, annotations })
    }

    /// The annotations. An empty list is sound: photos to learn from that nothing is on.
    pub fn annotations(&self) -> Result<&[&'a RawValue]> {
        let missing = || Error::data(self.path, "there is no list `annotations`");
        self.annotations.as_deref().ok_or_else(missing)
    }

    /// The place in `images` of annotation `index`, and its fields.
    pub fn annotation(&self, index: usize, raw: &'a RawValue) -> Result<(usize, Record<'a>)> {
        let mut record = Record::new(self.path, "annotations", index, raw)?;
        let key = record.image_key("image_id")?;
        let image = match &key {
            ImageKey::Number(id) => id.to_string(),
            ImageKey::Text(id) => id.clone(),
        };
        record.name = match record.optional("id").and_then(whole) {
            Some(id) => format!("annotation {id} (image {image})"),
            None => format!("annotations[{index}] (image {image})"),
        };
        let place = self.places.get(&key).copied();
        let place = place.ok_or_else(|| {
            record.refuse("image_id", "an image that is in the list `images` (it is not there)")
        })?;
        Ok((place, record))
    }

    /// Position of the category that a field of `record` names.
    pub fn category(&self, record: &Record, field: &str) -> Result<usize> {
        let id = record.whole(field)?;
        self.categories.binary_search_by_key(&id, |c| u64::from(c.id)).map_err(|_| {
            record.refuse(field, "a category that is in the list `categories` (it is not there)")
        })
    }
}

/// The images and categories of an annotation file, to give results their ids; it may have no annotations.
#[derive(Clone, Debug)]
pub struct Catalogue {
    path: PathBuf,
    images: Vec<ImageRecord>,
    /// Things first, each by ascending id.
    categories: Vec<(u32, String)>,
}

impl Catalogue {
    /// Reads a COCO annotation file of any kind.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::Data`] naming the file, the record, the field and its value.
    pub fn read(path: &Path) -> Result<Catalogue> {
        let text = text::read(path)?;
        let file = CocoFile::new(path, &text)?;
        // Things first, as models have them; a file of instances has nothing else.
        let mut categories = file.categories;
        categories.sort_by_key(|c| c.is_thing == Some(false));
        let categories = categories.into_iter().map(|c| (c.id, c.name)).collect();
        Ok(Catalogue { path: path.to_path_buf(), images: file.images, categories })
    }

    /// The image whose file name is the end of `photo`'s path.
    ///
    /// # Errors
    /// [`Error::Data`] if there is none, or more than one.
    pub fn image(&self, photo: &Path) -> Result<&ImageRecord> {
        let full = photo.canonicalize();
        let full = full.as_deref().unwrap_or(photo);
        let refuse = |what: &str| {
            Error::data(
                &self.path,
                format!("{what} of `images` has a file name that {} ends with", photo.display()),
            )
        };
        let mut found = self.images.iter().filter(|image| full.ends_with(&image.file_name));
        let image = found.next().ok_or_else(|| refuse("no entry"))?;
        if found.next().is_some() { Err(refuse("more than one entry")) } else { Ok(image) }
    }

    /// Id and name of the categories: things first, each by ascending id.
    pub fn classes(&self) -> impl Iterator<Item = (u32, &str)> {
        self.categories.iter().map(|(id, name)| (*id, name.as_str()))
    }

    /// For each name the id of the category that has it.
    ///
    /// # Errors
    /// [`Error::Data`] if no category has any of the names.
    pub fn categories<'a>(&self, names: impl Iterator<Item = &'a str>) -> Result<Vec<Option<u32>>> {
        let id = |name: &str| self.categories.iter().find(|(_, other)| other == name).map(|(id, _)| *id);
        let ids: Vec<Option<u32>> = names.map(id).collect();
        if ids.iter().all(Option::is_none) {
            return Err(Error::data(&self.path, "no category has the name of a class of the model"));
        }
        Ok(ids)
    }
}

/// The fields of one record, each still text.
pub(super) struct Record<'a> {
    path: &'a Path,
    /// What messages call it.
    pub name: String,
    fields: BTreeMap<String, &'a RawValue>,
}

impl<'a> Record<'a> {
    /// Entry `index` of the list `list`.
    pub fn new(path: &'a Path, list: &str, index: usize, raw: &'a RawValue) -> Result<Self> {
        let name = format!("{list}[{index}]");
        let fields = serde_json::from_str(raw.get());
        let fields = fields.map_err(|_| {
            Error::record(path, &name, format!("is {}: an object is expected", shown(raw.get())))
        })?;
        Ok(Record { path, name, fields })
    }

    /// The text of a field; `None` if it is absent or null.
    pub fn optional(&self, field: &str) -> Option<&'a str> {
        self.fields.get(field).map(|raw| raw.get()).filter(|text| *text != "null")
    }

    /// The text of a field that has to be there.
    pub fn need(&self, field: &str) -> Result<&'a str> {
        let missing = || Error::record(self.path, &self.name, format!("missing field `{field}`"));
        self.optional(field).ok_or_else(missing)
    }

    /// A whole number that is not negative.
    pub fn whole(&self, field: &str) -> Result<u64> {
        whole(self.need(field)?).ok_or_else(|| self.refuse(field, "a whole number"))
    }

    /// A text that is not empty.
    pub fn text(&self, field: &str) -> Result<String> {
        let text = serde_json::from_str::<String>(self.need(field)?).ok().filter(|text| !text.is_empty());
        text.ok_or_else(|| self.refuse(field, "a text that is not empty"))
    }

    /// A truth value; `None` if it is absent.
    pub fn flag(&self, field: &str) -> Result<Option<bool>> {
        let Some(text) = self.optional(field) else { return Ok(None) };
        let value = match text {
            "true" => Some(true),
            "false" => Some(false),
            text => whole(text).map(|number| number != 0),
        };
        value.map(Some).ok_or_else(|| self.refuse(field, "0, 1, false or true"))
    }

    /// The error of a field whose value is not `accepted`.
    pub fn refuse(&self, field: &str, accepted: &str) -> Error {
        let value = self.fields.get(field).map_or("absent".into(), |raw| shown(raw.get()));
        self.refuse_for(format!("`{field}` is {value}: {accepted} is expected"))
    }

    /// An error about the record.
    pub fn refuse_for(&self, reason: impl Into<String>) -> Error {
        Error::record(self.path, &self.name, reason)
    }

    fn image_key(&self, field: &str) -> Result<ImageKey> {
        let text = self.need(field)?;
        let key = match whole(text) {
            Some(number) => Some(ImageKey::Number(number)),
            None => serde_json::from_str(text).ok().map(ImageKey::Text),
        };
        key.ok_or_else(|| self.refuse(field, "a whole number or a text"))
    }
}

/// A whole number that is not negative, perhaps written with a decimal point.
fn whole(text: &str) -> Option<u64> {
    // Beyond 2^53 a float no longer says which whole number is meant.
    let float = || text.parse::<f64>().ok().filter(|v| v.fract() == 0.0 && (0.0..9.1e15).contains(v));
    text.parse().ok().or_else(|| float().map(|v| v as u64))
}

/// The beginning of a value, for messages.
fn shown(value: &str) -> String {
    const LENGTH: usize = 60;
    let start: String = value.chars().take(LENGTH).flat_map(char::escape_debug).collect();
    let start = start.replace("\\\"", "\"");
    if value.chars().nth(LENGTH).is_some() { format!("{start}...") } else { start }
}

/// The categories, ascending by id, ids and names checked to be unique.
fn categories(path: &Path, list: &[&RawValue]) -> Result<Vec<Category>> {
    let mut categories: Vec<Category> = Vec::with_capacity(list.len());
    let mut names = HashMap::new();
    let mut ids = HashMap::new();
    for (i, raw) in list.iter().enumerate() {
        let mut record = Record::new(path, "categories", i, raw)?;
        let (id, name) = (record.whole("id")?, record.text("name")?);
        let id = u32::try_from(id).map_err(|_| record.refuse("id", "a number below 4294967296"))?;
        record.name = format!("category {id} `{name}`");
        let twin = ids.insert(id, i).or(names.insert(name.clone(), i));
        if let Some(twin) = twin.map(|twin| &categories[twin]) {
            let reason = format!("id or name occurs twice (also category {} `{}`)", twin.id, twin.name);
            return Err(record.refuse_for(reason));
        }
        categories.push(Category { id, name, is_thing: record.flag("isthing")? });
    }
    categories.sort_by_key(|c| c.id);
    Ok(categories)
}

/// The images in file order, with their places by id; ids unique and of one kind, sizes sensible.
fn images(path: &Path, list: &[&RawValue]) -> Result<(Vec<ImageRecord>, HashMap<ImageKey, usize>)> {
    let mut images = Vec::with_capacity(list.len());
    let mut places = HashMap::with_capacity(list.len());
    for (i, raw) in list.iter().enumerate() {
        let mut record = Record::new(path, "images", i, raw)?;
        let (id, text_id) = match record.image_key("id")? {
            ImageKey::Number(id) => (id, None),
            ImageKey::Text(text) => (i as u64, Some(text)),
        };
        record.name = text_id.as_ref().map_or_else(|| format!("image {id}"), |text| format!("image {text}"));
        let file_name = record.text("file_name")?;
        let side = |field: &str| record.whole(field).map(|v| usize::try_from(v).unwrap_or(usize::MAX));
        let (height, width) = (side("height")?, side("width")?);
        if height.checked_mul(width).is_none_or(|pixels| !(1..=MAX_PIXELS).contains(&pixels)) {
            let reason = format!("a size of {width} x {height} pixels (width x height) is not accepted");
            return Err(record.refuse_for(reason));
        }
        let image = ImageRecord { id, text_id, file_name, height, width };
        if images.last().is_some_and(|last: &ImageRecord| last.text_id.is_some() != image.text_id.is_some()) {
            return Err(record.refuse("id", "one kind of id, all numbers or all texts,"));
        }
        let key = image.text_id.clone().map_or(ImageKey::Number(id), ImageKey::Text);
        if places.insert(key, i).is_some() {
            return Err(record.refuse_for("this id occurs twice in `images`"));
        }
        images.push(image);
    }
    Ok((images, places))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_numbers_in_all_spellings() {
        for (text, wanted) in [
            ("7", Some(7)),
            ("7.0", Some(7)),
            ("7e2", Some(700)),
            ("18446744073709551615", Some(u64::MAX)),
            ("7.5", None),
            ("-1", None),
            ("1e300", None),
            ("\"7\"", None),
            ("true", None),
        ] {
            assert_eq!(whole(text), wanted, "{text}");
        }
    }
}
