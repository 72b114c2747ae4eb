//! Data sets: what is annotated where, checked when opened; one image with its masks, when asked for.

use std::path::PathBuf;
use std::sync::Arc;

use image::{GrayImage, RgbImage};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::json::ImageRecord;
use super::mask::Mask;
use super::panoptic::{self, Segment};
use super::semantic::{self, ClassList};
use super::shape::Shape;
use super::warning::{Warning, Warnings};
use super::{coco, verify};
use crate::error::{Error, Result};
use crate::image::classes::Class;
use crate::image::decode::{Limits, decode};

/// Pixels of a semantic map that carry no label.
pub const IGNORE: u8 = 255;

/// One annotated image at its stored size.
#[derive(Clone, Debug)]
pub struct Sample {
    /// Image id: of the annotation file, or the place in the list for a semantic data set.
    pub id: u64,
    /// The image file.
    pub file: PathBuf,
    /// The image, 8-bit RGB, upright.
    pub image: RgbImage,
    /// Its countable objects, crowds left out.
    pub objects: Vec<Object>,
    /// Class index of each pixel, [`IGNORE`] where there is none; `None` for instance data.
    pub semantic: Option<GrayImage>,
}

impl Sample {
    /// Memory it takes, about.
    pub(super) fn bytes(&self) -> usize {
        let masks = self.objects.iter().map(|o| o.mask.data.len() + size_of::<Object>()).sum::<usize>();
        self.image.as_raw().len() + self.semantic.as_ref().map_or(0, |map| map.as_raw().len()) + masks
    }
}

/// One countable object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    /// Class index, below the number of thing classes.
    pub class: usize,
    /// Its pixels.
    pub mask: Mask,
}

/// Where a data set lies and in which format.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "format", rename_all = "snake_case", deny_unknown_fields)]
pub enum DataConfig {
    /// COCO instance JSON.
    CocoInstance {
        /// The annotation file.
        annotations: PathBuf,
        /// The folder its `file_name`s are relative to.
        images: PathBuf,
        /// Names of the categories that become classes, in this order; objects of others are left out. All
        /// categories by ascending id if absent.
        #[serde(default)]
        classes: Option<Vec<String>>,
        /// How often each image is seen in an epoch; see [`DataConfig::repeat`].
        #[serde(default = "one")]
        repeat: f64,
    },
    /// COCO panoptic JSON with PNG files of segment ids. Things come first, then stuff, each by ascending
    /// category id.
    CocoPanoptic {
        /// The annotation file.
        annotations: PathBuf,
        /// The folder of photos.
        images: PathBuf,
        /// The folder of PNG files.
        masks: PathBuf,
        /// How often each image is seen in an epoch; see [`DataConfig::repeat`].
        #[serde(default = "one")]
        repeat: f64,
    },
    /// Photos with index PNG files of the same stem. Every class counts as a region (stuff).
    Semantic {
        /// The folder of photos.
        images: PathBuf,
        /// The folder of PNG files: one class index a pixel.
        masks: PathBuf,
        /// JSON with the list of classes (`index`, `name`) and, if not 255, the `ignore_index`.
        classes: PathBuf,
        /// The field of `classes` that holds the list.
        #[serde(default = "classes_field")]
        field: String,
        /// Text file with the stems to use, one a line; all masks of the folder if absent.
        #[serde(default)]
        list: Option<PathBuf>,
        /// How often each image is seen in an epoch; see [`DataConfig::repeat`].
        #[serde(default = "one")]
        repeat: f64,
    },
}

fn one() -> f64 {
    1.0
}

fn classes_field() -> String {
    "classes".into()
}

impl DataConfig {
    /// How often each image of this set is seen in an epoch. A fraction is a probability: 1.5 is once or
    /// twice.
    pub fn repeat(&self) -> f64 {
        match self {
            DataConfig::CocoInstance { repeat, .. }
            | DataConfig::CocoPanoptic { repeat, .. }
            | DataConfig::Semantic { repeat, .. } => *repeat,
        }
    }
}

/// How strictly a data set is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
    /// All files are looked at when the set is opened, so that nothing is left to be found hours later.
    pub verify: bool,
    /// The most images of a set whose files are decoded for that: every photo, every label image. Of a larger
    /// set, sizes are read and whether the end of each file is there, which finds what was cut short or does
    /// not belong, and no damage in between. What a file's first and last bytes do not tell is decoded.
    pub verify_whole: usize,
    /// Photos that cannot be decoded are left out and counted, instead of being an error. Needs `verify`;
    /// all are decoded then, however many.
    pub skip_damaged: bool,
    /// Polygons of fewer than three points are an error, instead of being dropped and counted.
    pub strict: bool,
}

impl Reading {
    /// Photos of 640 pixels that two cores decode in a minute: 10 ms each.
    pub const VERIFY_WHOLE: usize = 10_000;
}

impl Default for Reading {
    /// All files are looked at; a damaged photo is an error, a polygon without an area is not.
    fn default() -> Self {
        Reading { verify: true, verify_whole: Reading::VERIFY_WHOLE, skip_damaged: false, strict: false }
    }
}

/// One object of an index.
#[derive(Clone, Debug)]
pub(in crate::train) struct ListedObject {
    pub class: usize,
    /// Not learnt, and neither hit nor missed.
    pub crowd: bool,
    /// What the file says, else the number of pixels.
    pub area: f64,
    /// Left, top, width, height, if the file says.
    pub bbox: Option<[f64; 4]>,
    /// What its pixels are made from.
    pub shape: Shape,
}

/// What is known of the labels of an image before it is loaded.
#[derive(Clone, Debug)]
pub(in crate::train) enum Label {
    Objects(Box<[ListedObject]>),
    Panoptic { png: PathBuf, segments: Vec<Segment> },
    Semantic { png: PathBuf },
}

/// One image of a data set.
#[derive(Clone, Debug)]
pub(in crate::train) struct Entry {
    pub id: u64,
    /// The id, if the file has texts for ids.
    pub text_id: Option<String>,
    /// What the annotations call the photo.
    pub file_name: String,
    /// The photo.
    pub image: PathBuf,
    /// What the annotations say, (height, width).
    pub size: Option<(usize, usize)>,
    pub label: Label,
}

impl Entry {
    /// An image of an annotation file.
    pub(super) fn listed(image: ImageRecord, label: Label) -> Entry {
        let ImageRecord { id, text_id, file_name, height, width } = image;
        let image = PathBuf::from(&file_name);
        Entry { id, text_id, file_name, image, size: Some((height, width)), label }
    }

    /// What messages call it.
    fn name(&self) -> String {
        format!("image {}", self.id)
    }

    /// The image, if its annotations say how large it is.
    pub(in crate::train) fn record(&self) -> Option<ImageRecord> {
        let (height, width) = self.size?;
        let (id, text_id, file_name) = (self.id, self.text_id.clone(), self.file_name.clone());
        Some(ImageRecord { id, text_id, file_name, height, width })
    }
}

/// An opened data set: an index whose records have been checked. Training, validation and evaluation all read
/// it.
#[derive(Clone, Debug)]
pub struct Dataset {
    /// The annotation file, or the folder of masks.
    pub(in crate::train) source: PathBuf,
    pub(in crate::train) classes: Vec<Class>,
    /// Number of thing classes, which come first.
    pub(in crate::train) things: usize,
    pub(in crate::train) entries: Vec<Entry>,
    /// What the values of semantic masks mean.
    pub(in crate::train) labels: Option<Arc<ClassList>>,
    pub(super) warnings: Warnings,
}

impl Dataset {
    /// Opens a data set and checks its records and, as `reading` says, its files.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Image`] or [`Error::Data`] naming the file, the record, the field and its
    /// value.
    pub fn open(config: &DataConfig, reading: &Reading) -> Result<Dataset> {
        let mut dataset = match config {
            DataConfig::CocoInstance { annotations, images, classes, .. } => {
                let dataset = coco::read(annotations, classes.as_deref(), reading.strict)?;
                dataset.located(images)?
            }
            DataConfig::CocoPanoptic { annotations, images, masks, .. } => {
                panoptic::read(annotations, masks)?.located(images)?
            }
            DataConfig::Semantic { images, masks, classes, field, list, .. } => {
                semantic::read(&semantic::Source { images, masks, classes, field, list: list.as_deref() })?
            }
        };
        if dataset.classes.len() > usize::from(IGNORE) {
            let count = dataset.classes.len();
            return Err(Error::data(&dataset.source, format!("{count} classes: at most 255 are accepted")));
        }
        if reading.verify {
            verify::files(&mut dataset, reading)?;
        }
        Ok(dataset)
    }

    /// Looks for the photos in the folder `images`, and for the label images.
    fn located(mut self, images: &std::path::Path) -> Result<Dataset> {
        if !images.is_dir() {
            return Err(Error::data(images, "the folder of images does not exist"));
        }
        for entry in &mut self.entries {
            entry.image = images.join(&entry.file_name);
        }
        let files = self.entries.par_iter().flat_map_iter(|entry| {
            let png = match &entry.label {
                Label::Panoptic { png, .. } => Some((entry.id, "mask file", png)),
                _ => None,
            };
            std::iter::once((entry.id, "image file", &entry.image)).chain(png)
        });
        let missing: Vec<_> = files.filter(|(_, _, file)| !file.is_file()).collect();
        let Some((id, what, file)) = missing.first() else { return Ok(self) };
        let (file, count, all) = (file.display(), missing.len(), self.entries.len());
        let reason = format!("the {what} {file} does not exist ({count} files of {all} images are missing)");
        Err(Error::record(&self.source, format!("image {id}"), reason))
    }

    /// The classes, things first.
    pub fn classes(&self) -> &[Class] {
        &self.classes
    }

    /// Number of thing classes, which come first.
    pub fn things(&self) -> usize {
        self.things
    }

    /// The annotation file, or the folder of masks.
    pub fn source(&self) -> &std::path::Path {
        &self.source
    }

    /// Whether every image says the class of each of its pixels, as far as it is labelled.
    pub fn labels_pixels(&self) -> bool {
        self.entries.iter().all(|entry| !matches!(entry.label, Label::Objects(_)))
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// True if there are no images, which [`Dataset::open`] refuses.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Harmless oddities found when it was opened, and what was left out.
    pub fn warnings(&self) -> &[Warning] {
        &self.warnings.0
    }

    /// Number of labelled objects of an image, crowds left out; a semantic mask counts as one.
    pub fn objects(&self, index: usize) -> usize {
        match &self.entries[index].label {
            Label::Objects(objects) => objects.iter().filter(|o| !o.crowd).count(),
            Label::Panoptic { segments, .. } => segments.iter().filter(|s| !s.crowd).count(),
            Label::Semantic { .. } => 1,
        }
    }

    /// Number of countable objects of an image, crowds left out.
    pub fn countable(&self, index: usize) -> usize {
        match &self.entries[index].label {
            Label::Objects(objects) => objects.iter().filter(|o| !o.crowd).count(),
            Label::Panoptic { segments, .. } => {
                segments.iter().filter(|s| !s.crowd && s.class < self.things).count()
            }
            Label::Semantic { .. } => 0,
        }
    }

    /// Reads one image with its masks.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Image`] or [`Error::Data`] naming the file and the record.
    ///
    /// # Panics
    /// If `index` is not below [`Dataset::len`].
    pub fn load(&self, index: usize) -> Result<Sample> {
        let entry = &self.entries[index];
        let image = decode(&entry.image, &Limits::default())?;
        let size = (image.height() as usize, image.width() as usize);
        self.check_size(entry, size)?;
        let (objects, semantic) = match &entry.label {
            Label::Objects(objects) => {
                let object = |listed: &ListedObject| {
                    let runs = listed.shape.runs(size.0, size.1);
                    let runs = runs.map_err(|reason| Error::record(&self.source, entry.name(), reason))?;
                    Ok(Object { class: listed.class, mask: Mask::from_runs(&runs, size.0) })
                };
                (objects.iter().filter(|o| !o.crowd).map(object).collect::<Result<_>>()?, None)
            }
            Label::Panoptic { png, segments } => {
                let labels = panoptic::load(png, segments, size, self.things)?;
                (labels.objects, Some(labels.semantic))
            }
            Label::Semantic { png } => (Vec::new(), Some(semantic::load(self.class_list()?, png, size)?)),
        };
        Ok(Sample { id: entry.id, file: entry.image.clone(), image, objects, semantic })
    }

    /// What the values of semantic masks mean.
    pub(super) fn class_list(&self) -> Result<&ClassList> {
        self.labels.as_deref().ok_or_else(|| Error::data(&self.source, "has masks but no class list"))
    }

    /// Refuses a photo of another size (height, width) than the annotations say.
    pub(in crate::train) fn check_size(&self, entry: &Entry, (height, width): (usize, usize)) -> Result<()> {
        let Some((h, w)) = entry.size.filter(|&size| size != (height, width)) else { return Ok(()) };
        let turned = if (w, h) == (height, width) {
            ": was it annotated as stored, and its EXIF orientation turns it? Store the photo upright, without that entry"
        } else {
            ""
        };
        Err(Error::record(
            &self.source,
            entry.name(),
            format!(
                "is said to be {w} x {h} pixels, but {} is {width} x {height}{turned}",
                entry.image.display()
            ),
        ))
    }
}
