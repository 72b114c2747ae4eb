//! Panoptic quality (Kirillov et al., CVPR 2019) as panopticapi computes it.
//!
//! A true and a predicted segment of one class match if their IoU, less the prediction's void pixels, exceeds
//! one half; there is at most one such partner. With TP matches, FP predictions and FN true segments left
//! over,
//!
//! ```text
//! PQ = sum of IoU / (TP + FP / 2 + FN / 2) = SQ RQ,  SQ = sum of IoU / TP,  RQ = TP / (TP + FP / 2 + FN / 2)
//! ```
//!
//! of each class over all images, then the mean over the classes that occur. Predictions that lie for more
//! than half on void or on a crowd of their class are not counted. Overlaps, matching and means are the crate
//! hotcoco's (its functions, not its evaluator, which reads predictions from files); ground truth is read as
//! training reads it.
//!
//! The same pixels give the mean IoU of the panoptic map read as a semantic one, crowds included.

use super::class_match::{ClassMatch, ClassPolicy};
use super::semantic_iou::{Confusion, IouReport};
use crate::error::{Error, Result};
use crate::train::data::ImageRecord;
use crate::train::data::dataset::{Dataset, Label};
use crate::train::data::panoptic::{self, Segment as TrueSegment};
use hotcoco::metrics::panoptic::{PqCounts, pq_average};
use hotcoco::primitives::panoptic::{Overlaps, Segment, VOID, match_segments};
use serde::Serialize;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// A predicted panoptic map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PanopticMap<'a> {
    /// Number of rows.
    pub height: usize,
    /// Number of columns.
    pub width: usize,
    /// One value a pixel, row by row.
    pub values: &'a [u32],
    /// Value of pixels without a segment.
    pub void: u32,
    /// Value and class index of each segment.
    pub segments: &'a [(u32, usize)],
}

/// Panoptic quality of all classes, things and stuff.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PqReport {
    /// Mean over all classes that occur.
    pub all: PqMean,
    /// Mean over things; `None` if none occurs.
    pub things: Option<PqMean>,
    /// Mean over stuff; `None` if none occurs.
    pub stuff: Option<PqMean>,
    /// Number of images.
    pub images: usize,
    /// The evaluated classes in the order of the data set.
    pub per_class: Vec<ClassPq>,
}

/// Means over classes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct PqMean {
    /// Panoptic quality.
    pub pq: f64,
    /// Segmentation quality.
    pub sq: f64,
    /// Recognition quality.
    pub rq: f64,
    /// Number of classes that occur in the ground truth or in a prediction.
    pub classes: usize,
}

/// Panoptic quality of one class.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ClassPq {
    /// Name of the class.
    pub name: String,
    /// True for things.
    pub is_thing: bool,
    /// Panoptic quality; `None`, as the next two, if the class occurs nowhere.
    pub pq: Option<f64>,
    /// Segmentation quality.
    pub sq: Option<f64>,
    /// Recognition quality.
    pub rq: Option<f64>,
    /// Matched segments.
    pub true_positives: u64,
    /// Predicted segments without a partner.
    pub false_positives: u64,
    /// True segments without a partner.
    pub false_negatives: u64,
}

/// Compares panoptic maps with a COCO panoptic file and its folder of PNGs (`id = R + 256 G + 65536 B`, 0 is
/// void). PNGs are read when their image is compared.
#[derive(Debug)]
pub struct PanopticEvaluator {
    path: PathBuf,
    classes: ClassMatch,
    is_thing: Vec<bool>,
    images: Vec<ImageTruth>,
    index: HashMap<u64, usize>,
    counts: Vec<PqCounts>,
    confusion: Confusion,
    done: usize,
}

#[derive(Debug)]
struct ImageTruth {
    record: ImageRecord,
    png: PathBuf,
    /// Ascending by id.
    segments: Vec<TrueSegment>,
}

impl PanopticEvaluator {
    /// Reads a COCO panoptic file for a model whose classes have these names. Images without an annotation
    /// are left out, as in panopticapi.
    ///
    /// # Errors
    /// As [`Dataset::open`] for the records; as [`PanopticEvaluator::of`].
    pub fn open(path: &Path, folder: &Path, classes: &[String], policy: ClassPolicy) -> Result<Self> {
        PanopticEvaluator::of(&panoptic::read(path, folder)?, classes, policy)
    }

    /// Takes the segments of a COCO panoptic set for a model whose classes have these names.
    ///
    /// # Errors
    /// [`Error::Data`] if it is another kind of set; as [`ClassMatch::new`].
    pub fn of(data: &Dataset, classes: &[String], policy: ClassPolicy) -> Result<Self> {
        let path = data.source.clone();
        let names: Vec<String> = data.classes.iter().map(|c| c.name.to_string()).collect();
        let classes = ClassMatch::new(&path, classes, &names, policy)?;
        let is_thing: Vec<bool> = data.classes.iter().map(|c| c.is_thing).collect();
        let mut images: Vec<ImageTruth> = Vec::with_capacity(data.entries.len());
        for entry in &data.entries {
            let (Some(record), Label::Panoptic { png, segments }) = (entry.record(), &entry.label) else {
                return Err(Error::data(&path, "is no COCO panoptic set"));
            };
            images.push(ImageTruth { record, png: png.clone(), segments: segments.clone() });
        }
        let index = images.iter().enumerate().map(|(i, image)| (image.record.id, i)).collect();
        let counts = vec![PqCounts::default(); names.len()];
        let confusion = Confusion::new(&classes);
        Ok(PanopticEvaluator { path, classes, is_thing, images, index, counts, confusion, done: 0 })
    }

    /// The images that have an annotation, in the order of the file's images.
    pub fn images(&self) -> impl ExactSizeIterator<Item = &ImageRecord> {
        self.images.iter().map(|image| &image.record)
    }

    /// The evaluated classes.
    pub fn classes(&self) -> &ClassMatch {
        &self.classes
    }

    /// Forgets all predictions.
    pub fn clear(&mut self) {
        self.counts.fill(PqCounts::default());
        self.confusion = Confusion::new(&self.classes);
        self.done = 0;
    }

    /// Compares the map of one image. Segments of classes that are not evaluated count as void.
    ///
    /// # Errors
    /// [`Error::Data`] for an image that is not in the file, and naming the PNG if its size differs from the
    /// file's or it has an id that is no segment's; [`Error::Image`] for a damaged PNG; [`Error::Usage`] for
    /// a map that does not fit the image or its own list of segments.
    pub fn add(&mut self, image_id: u64, prediction: &PanopticMap) -> Result<()> {
        let unknown =
            || Error::data(&self.path, format!("there is no panoptic annotation of image {image_id}"));
        let image = &self.images[*self.index.get(&image_id).ok_or_else(unknown)?];
        let refuse = |reason: String| Error::usage(format!("image {image_id}: {reason}"));
        let (height, width) = (image.record.height, image.record.width);
        if (prediction.height, prediction.width, prediction.values.len()) != (height, width, height * width) {
            let (h, w) = (prediction.height, prediction.width);
            return Err(refuse(format!("the prediction is {h} x {w}, the image {height} x {width}")));
        }
        let truth = panoptic::ids(&image.png, &image.segments, (height, width))?;
        let (predicted, classes) = labels(prediction, &self.classes).map_err(refuse)?;
        let overlaps = Overlaps::compute(&truth, &predicted);
        let true_segments = true_segments(image, &overlaps);
        let areas: HashMap<u32, u64> = overlaps.pred_areas().into_iter().collect();
        let mut predicted_segments = Vec::with_capacity(classes.len());
        for (label, slot) in (1..).zip(&classes) {
            let Some(slot) = *slot else { continue };
            let category_id = self.classes.matched[slot].category as u64;
            let area = areas.get(&label).copied().unwrap_or(0);
            predicted_segments.push(Segment { label, category_id, area, iscrowd: false });
        }

        let matches = match_segments(&true_segments, &predicted_segments, &overlaps);
        for (truth, _, iou) in matches.matched {
            let count = &mut self.counts[true_segments[truth].category_id as usize];
            count.tp += 1;
            count.iou += iou;
        }
        for truth in matches.missed {
            self.counts[true_segments[truth].category_id as usize].fn_ += 1;
        }
        for prediction in matches.false_positives {
            self.counts[predicted_segments[prediction].category_id as usize].fp += 1;
        }
        let category: HashMap<u32, usize> =
            image.segments.iter().map(|segment| (segment.id, segment.class)).collect();
        for (truth, prediction, pixels) in overlaps.iter().filter(|&(truth, ..)| truth != VOID) {
            let truth = self.classes.slot_of_category[category[&truth]];
            let prediction = (prediction as usize).checked_sub(1).and_then(|i| classes[i]);
            self.confusion.add_pixels(truth, prediction, pixels);
        }
        self.confusion.add_image();
        self.done += 1;
        Ok(())
    }

    /// Quality over the images so far.
    pub fn summarize(&self) -> PqReport {
        let counts = |class: &super::class_match::MatchedClass| &self.counts[class.category];
        let mean = |wanted: Option<bool>| {
            let chosen = self.classes.matched.iter();
            let chosen =
                chosen.filter(|class| wanted.is_none_or(|thing| self.is_thing[class.category] == thing));
            let (scores, classes) = pq_average(chosen.map(counts));
            (classes > 0).then_some(PqMean { pq: scores.pq, sq: scores.sq, rq: scores.rq, classes })
        };
        let class = |class: &super::class_match::MatchedClass| {
            let count = counts(class);
            let scores = count.scores();
            ClassPq {
                name: class.name.clone(),
                is_thing: self.is_thing[class.category],
                pq: scores.map(|s| s.pq),
                sq: scores.map(|s| s.sq),
                rq: scores.map(|s| s.rq),
                true_positives: count.tp,
                false_positives: count.fp,
                false_negatives: count.fn_,
            }
        };
        PqReport {
            all: mean(None).unwrap_or_default(),
            things: mean(Some(true)),
            stuff: mean(Some(false)),
            images: self.done,
            per_class: self.classes.matched.iter().map(class).collect(),
        }
    }

    /// The mean IoU of the same pixels.
    pub fn semantic(&self) -> IouReport {
        self.confusion.report()
    }
}

/// The true segments that have pixels, with the areas that their PNG gives them; the category is the class of
/// the set.
fn true_segments(image: &ImageTruth, overlaps: &Overlaps) -> Vec<Segment> {
    let areas: HashMap<u32, u64> = overlaps.gt_areas().into_iter().collect();
    let with_area = |segment: &TrueSegment| {
        let area = *areas.get(&segment.id)?;
        let (label, category_id) = (segment.id, segment.class as u64);
        Some(Segment { label, category_id, area, iscrowd: segment.crowd })
    };
    image.segments.iter().filter_map(with_area).collect()
}

/// The map with labels: 0 for void, `i + 1` for the `i`-th segment; and the evaluated class of each segment.
fn labels(map: &PanopticMap, classes: &ClassMatch) -> Result<(Vec<u32>, Vec<Option<usize>>), String> {
    let mut label_of = HashMap::from([(map.void, VOID)]);
    let mut slots = Vec::with_capacity(map.segments.len());
    for (i, &(value, class)) in map.segments.iter().enumerate() {
        let Some(&slot) = classes.slot_of_class.get(class) else {
            return Err(format!("the model has no class {class} (segment {value})"));
        };
        // What is not evaluated is void.
        let label = slot.map_or(VOID, |_| i as u32 + 1);
        if label_of.insert(value, label).is_some() {
            return Err(format!("the value {value} belongs to two segments, or to one and to void"));
        }
        slots.push(slot);
    }
    let mut used = vec![false; slots.len() + 1];
    let mut last = (map.void, VOID);
    let mut labels = Vec::with_capacity(map.values.len());
    for &value in map.values {
        if value != last.0 {
            let label = label_of.get(&value).ok_or_else(|| format!("the value {value} is no segment's"))?;
            last = (value, *label);
        }
        used[last.1 as usize] = true;
        labels.push(last.1);
    }
    let unused = slots.iter().zip(&used[1..]).position(|(slot, &used)| slot.is_some() && !used);
    match unused {
        Some(i) => Err(format!("segment {} has no pixel", map.segments[i].0)),
        None => Ok((labels, slots)),
    }
}
