//! Data sets: what is annotated where, checked when opened; one image with its masks, when asked for.

use std::fmt;
use std::path::{Path, PathBuf};

use image::{GrayImage, RgbImage};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::mask::Mask;
use super::panoptic::{self, Segment};
use super::{coco, semantic};
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
        /// Names of the categories that become classes, in this order; objects of others are left out. All categories by
        /// ascending id if absent.
        #[serde(default)]
        classes: Option<Vec<String>>,
        /// How often each image is seen in an epoch; see [`DataConfig::repeat`].
        #[serde(default = "one")]
        repeat: f64,
    },
    /// COCO panoptic JSON with PNG files of segment ids. Things come first, then stuff, each by ascending category id.
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
    /// How often each image of this set is seen in an epoch. A fraction is a probability: 1.5 is once or twice.
    pub fn repeat(&self) -> f64 {
        match self {
            DataConfig::CocoInstance { repeat, .. }
            | DataConfig::CocoPanoptic { repeat, .. }
            | DataConfig::Semantic { repeat, .. } => *repeat,
        }
    }
}

/// One kind of harmless oddity, counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    /// What was found and what was done about it.
    pub what: String,
    /// How often.
    pub count: usize,
    /// The first record it was found in.
    pub first: String,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({} times; first: {})", self.what, self.count, self.first)
    }
}

/// The oddities of a data set.
#[derive(Clone, Debug, Default)]
pub(super) struct Warnings(Vec<Warning>);

impl Warnings {
    pub(super) fn add(&mut self, what: &str, record: &str) {
        match self.0.iter_mut().find(|w| w.what == what) {
            Some(warning) => warning.count += 1,
            None => self.0.push(Warning { what: what.into(), count: 1, first: record.into() }),
        }
    }
}

/// One object of an index: column-major run lengths, which are far smaller than pixels.
#[derive(Clone, Debug)]
pub(super) struct ObjectRuns {
    pub class: usize,
    pub runs: Box<[u32]>,
}

/// What is known of the labels of an image before it is loaded.
#[derive(Clone, Debug)]
pub(super) enum Label {
    Objects(Vec<ObjectRuns>),
    Panoptic { png: PathBuf, segments: Vec<Segment> },
    Semantic { png: PathBuf, ignore: u8 },
}

/// One image of a data set. `size` is what the annotations say, (height, width).
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub id: u64,
    pub image: PathBuf,
    pub size: Option<(usize, usize)>,
    pub label: Label,
}

/// An opened data set: an index whose records have been checked.
#[derive(Clone, Debug)]
pub struct Dataset {
    /// The annotation file, or the folder of masks.
    pub(super) source: PathBuf,
    pub(super) classes: Vec<Class>,
    /// Number of thing classes, which come first.
    pub(super) things: usize,
    pub(super) entries: Vec<Entry>,
    pub(super) warnings: Warnings,
}

impl Dataset {
    /// Opens a data set and checks its records. With `verify` every image header and every mask PNG is read as
    /// well (in parallel), so that nothing is left to be found hours later.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::Data`] naming the file and the record.
    pub fn open(config: &DataConfig, verify: bool) -> Result<Dataset> {
        let mut dataset = match config {
            DataConfig::CocoInstance { annotations, images, classes, .. } => {
                coco::open(annotations, images, classes.as_deref())?
            }
            DataConfig::CocoPanoptic { annotations, images, masks, .. } => {
                panoptic::open(annotations, images, masks)?
            }
            DataConfig::Semantic { images, masks, classes, field, list, .. } => {
                semantic::open(images, masks, classes, field, list.as_deref())?
            }
        };
        if dataset.classes.len() > usize::from(IGNORE) {
            let count = dataset.classes.len();
            return Err(Error::data(&dataset.source, format!("{count} classes: at most 255 are accepted")));
        }
        if verify {
            let outcomes: Vec<_> = dataset.entries.par_iter().map(|entry| dataset.verify(entry)).collect();
            for outcome in outcomes {
                for (what, record) in outcome? {
                    dataset.warnings.add(what, &record);
                }
            }
        }
        Ok(dataset)
    }

    /// The classes, things first.
    pub fn classes(&self) -> &[Class] {
        &self.classes
    }

    /// Number of thing classes, which come first.
    pub fn things(&self) -> usize {
        self.things
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// True if there are no images, which [`Dataset::open`] refuses.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Harmless oddities found when it was opened.
    pub fn warnings(&self) -> &[Warning] {
        &self.warnings.0
    }

    /// Number of labelled objects of an image, crowds left out; a semantic mask counts as one.
    pub fn objects(&self, index: usize) -> usize {
        match &self.entries[index].label {
            Label::Objects(objects) => objects.len(),
            Label::Panoptic { segments, .. } => segments.iter().filter(|s| !s.crowd).count(),
            Label::Semantic { .. } => 1,
        }
    }

    /// Number of countable objects of an image, crowds left out.
    pub fn countable(&self, index: usize) -> usize {
        match &self.entries[index].label {
            Label::Objects(objects) => objects.len(),
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
                let mask = |o: &ObjectRuns| Object { class: o.class, mask: Mask::from_runs(&o.runs, size.0) };
                (objects.iter().map(mask).collect(), None)
            }
            Label::Panoptic { png, segments } => {
                let labels = panoptic::load(png, segments, size, self.things)?;
                (labels.objects, Some(labels.semantic))
            }
            Label::Semantic { png, ignore } => {
                (Vec::new(), Some(semantic::load(png, size, self.classes.len(), *ignore)?))
            }
        };
        Ok(Sample { id: entry.id, file: entry.image.clone(), image, objects, semantic })
    }

    fn check_size(&self, entry: &Entry, (height, width): (usize, usize)) -> Result<()> {
        match entry.size.filter(|&size| size != (height, width)) {
            None => Ok(()),
            Some((h, w)) => Err(Error::record(
                &self.source,
                format!("image {}", entry.id),
                format!(
                    "is said to be {w} x {h} pixels, but {} is {width} x {height}",
                    entry.image.display()
                ),
            )),
        }
    }

    /// Checks the files of one image and returns warnings: what, and in which record.
    fn verify(&self, entry: &Entry) -> Result<Vec<(&'static str, String)>> {
        let size = header_size(&entry.image)?;
        self.check_size(entry, size)?;
        match &entry.label {
            Label::Objects(_) => Ok(Vec::new()),
            Label::Panoptic { png, segments } => {
                let labels = panoptic::load(png, segments, size, self.things)?;
                let record = |id: u32| format!("{}: segment {id}", png.display());
                let what = "segments without a pixel in their PNG were dropped";
                Ok(labels.empty.into_iter().map(|id| (what, record(id))).collect())
            }
            Label::Semantic { png, ignore } => {
                semantic::load(png, size, self.classes.len(), *ignore)?;
                Ok(Vec::new())
            }
        }
    }
}

/// Height and width of an image once upright, from its header.
fn header_size(path: &Path) -> Result<(usize, usize)> {
    use image::ImageDecoder;
    let damaged = |e: image::ImageError| Error::image(path, format!("damaged: {e}"));
    let reader = image::ImageReader::open(path).and_then(|r| r.with_guessed_format());
    let mut decoder = reader.map_err(|e| Error::io(path, e))?.into_decoder().map_err(damaged)?;
    let (width, height) = decoder.dimensions();
    let (width, height) = (width as usize, height as usize);
    // The EXIF values from 5 on turn the image by a quarter.
    let turned = decoder.orientation().is_ok_and(|o| o.to_exif() >= 5);
    Ok(if turned { (width, height) } else { (height, width) })
}

/// Several data sets seen as one.
#[derive(Clone, Debug)]
pub struct Mix {
    sets: Vec<Dataset>,
    /// Set and place in it of each image.
    places: Vec<(usize, usize)>,
    /// `repeat` of each set.
    repeats: Vec<f64>,
}

impl Mix {
    /// Opens all sets; see [`Dataset::open`].
    ///
    /// # Errors
    /// As [`Dataset::open`]; [`Error::Usage`] if there is no set, a `repeat` is not positive and finite, or the classes of
    /// two sets disagree; [`Error::Data`] if no image of any set has an object.
    pub fn open(configs: &[DataConfig], verify: bool) -> Result<Mix> {
        let sets = configs.iter().map(|config| Dataset::open(config, verify)).collect::<Result<Vec<_>>>()?;
        Mix::of(sets, configs.iter().map(DataConfig::repeat).collect())
    }

    fn of(sets: Vec<Dataset>, repeats: Vec<f64>) -> Result<Mix> {
        let Some(first) = sets.first() else {
            return Err(Error::usage("no data set is given"));
        };
        if let Some(repeat) = repeats.iter().find(|r| !(r.is_finite() && **r > 0.0 && **r <= 1000.0)) {
            return Err(Error::usage(format!("repeat = {repeat} must be above 0 and at most 1000")));
        }
        let names = |set: &Dataset| set.classes.iter().map(|c| c.name.to_string()).collect::<Vec<_>>();
        for set in &sets[1..] {
            if set.things != first.things || names(set) != names(first) {
                return Err(Error::usage(format!(
                    "the classes of {} ({}) are not those of {} ({})",
                    set.source.display(),
                    names(set).join(", "),
                    first.source.display(),
                    names(first).join(", ")
                )));
            }
        }
        if sets.iter().all(|set| (0..set.len()).all(|i| set.objects(i) == 0)) {
            return Err(Error::data(&first.source, "no image has an object of the wanted classes"));
        }
        let places =
            sets.iter().enumerate().flat_map(|(s, set)| (0..set.len()).map(move |i| (s, i))).collect();
        Ok(Mix { sets, places, repeats })
    }

    /// The data sets.
    pub fn sets(&self) -> &[Dataset] {
        &self.sets
    }

    /// The classes, things first.
    pub fn classes(&self) -> &[Class] {
        self.sets[0].classes()
    }

    /// Number of thing classes, which come first.
    pub fn things(&self) -> usize {
        self.sets[0].things()
    }

    /// Number of different images.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// True if there are no images, which [`Mix::open`] refuses.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// [`Dataset::objects`] of an image.
    pub fn objects(&self, index: usize) -> usize {
        let (set, image) = self.places[index];
        self.sets[set].objects(image)
    }

    /// [`Dataset::countable`] of an image.
    pub fn countable(&self, index: usize) -> usize {
        let (set, image) = self.places[index];
        self.sets[set].countable(image)
    }

    /// The file of an image, for messages.
    pub(super) fn name(&self, index: usize) -> String {
        let (set, image) = self.places[index];
        self.sets[set].entries[image].image.display().to_string()
    }

    /// [`DataConfig::repeat`] of the set an image belongs to.
    pub fn repeat(&self, index: usize) -> f64 {
        self.repeats[self.places[index].0]
    }

    /// Reads one image with its masks.
    ///
    /// # Errors
    /// As [`Dataset::load`].
    ///
    /// # Panics
    /// If `index` is not below [`Mix::len`].
    pub fn load(&self, index: usize) -> Result<Sample> {
        let (set, image) = self.places[index];
        self.sets[set].load(image)
    }
}
