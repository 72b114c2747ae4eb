//! Intersection over union of classes, pixel by pixel (mIoU), over all images together.
//!
//! One confusion matrix counts the pixels of each pair of true and predicted class; its sums and means are
//! the crate hotcoco's. An extra row takes pixels of true classes that are not evaluated, an extra column
//! those that were predicted as no evaluated class: the former are wrong for the predicted class, the latter
//! missed for the true one.

use super::class_match::{ClassMatch, ClassPolicy};
use crate::error::{Error, Result};
use crate::train::data::semantic::{ClassList, Meaning};
use hotcoco::metrics::semantic::{PixelConfusion, semantic_scores};
use serde::Serialize;
use std::path::Path;
use std::sync::Arc;

/// A predicted class for each pixel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClassMap<'a> {
    /// Number of rows.
    pub height: usize,
    /// Number of columns.
    pub width: usize,
    /// Class indices of the model, row by row; the number of classes, or any larger one, means no class.
    pub classes: &'a [u32],
}

/// Agreement of pixels; `None` where there is nothing to compare.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct IouReport {
    /// Mean IoU over the classes that occur in the ground truth or in a prediction (as mmseg).
    pub miou: f64,
    /// Mean IoU over the classes that occur in the ground truth.
    pub miou_in_truth: f64,
    /// Mean over the classes of the ground truth of the share of their pixels that was found.
    pub mean_accuracy: f64,
    /// Share of all pixels that is right.
    pub pixel_accuracy: f64,
    /// Number of pixels that were compared.
    pub pixels: u64,
    /// Number of images.
    pub images: usize,
    /// The evaluated classes in the order of the data set.
    pub per_class: Vec<ClassIou>,
}

/// Agreement of one class.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ClassIou {
    /// Name of the class.
    pub name: String,
    /// IoU; `None` if it occurs nowhere.
    pub iou: Option<f64>,
    /// Share of its pixels that was found; `None` if it does not occur in the ground truth.
    pub accuracy: Option<f64>,
    /// Its pixels in the ground truth.
    pub pixels: u64,
}

/// Pixel counts of true and predicted classes.
#[derive(Clone, Debug)]
pub(super) struct Confusion {
    names: Vec<String>,
    matrix: PixelConfusion,
    images: usize,
}

impl Confusion {
    /// A pixel that is not compared.
    const IGNORED: u32 = u32::MAX;

    /// Counts of these classes.
    pub fn new(classes: &ClassMatch) -> Self {
        let names: Vec<String> = classes.matched.iter().map(|c| c.name.clone()).collect();
        Confusion { matrix: PixelConfusion::new(names.len() + 1), names, images: 0 }
    }

    /// Row or column of a class that is not evaluated.
    fn other(&self) -> usize {
        self.names.len()
    }

    /// Adds pixels of one pair of classes, by their positions among the evaluated ones.
    pub fn add_pixels(&mut self, truth: Option<usize>, predicted: Option<usize>, pixels: u64) {
        let other = self.other();
        self.matrix.add_count(truth.unwrap_or(other), predicted.unwrap_or(other), pixels);
    }

    /// Counts an image whose pixels were added.
    pub fn add_image(&mut self) {
        self.images += 1;
    }

    /// Shares and means.
    pub fn report(&self) -> IouReport {
        let counts = self.matrix.all_class_counts();
        let counts = &counts[..self.names.len()];
        let scores = semantic_scores(counts);
        let defined = |value: f64| Some(value).filter(|&v| v >= 0.0);
        let class = |((name, score), count): ((&String, &hotcoco::metrics::semantic::ClassScores), _)| {
            let count: &hotcoco::metrics::semantic::ClassCounts = count;
            let (iou, accuracy) = (defined(score.iou), defined(score.acc));
            ClassIou { name: name.clone(), iou, accuracy, pixels: count.gt_area }
        };
        let per_class: Vec<ClassIou> =
            self.names.iter().zip(&scores.per_class).zip(counts).map(class).collect();
        let in_truth: Vec<f64> = per_class.iter().filter(|c| c.pixels > 0).filter_map(|c| c.iou).collect();
        IouReport {
            miou: scores.miou.max(0.0),
            miou_in_truth: in_truth.iter().sum::<f64>() / in_truth.len().max(1) as f64,
            mean_accuracy: scores.macc.max(0.0),
            pixel_accuracy: scores.aacc.max(0.0),
            pixels: counts.iter().map(|c| c.gt_area).sum(),
            images: self.images,
            per_class,
        }
    }
}

/// Compares class maps with PNGs of class indices.
#[derive(Debug)]
pub struct IouEvaluator {
    labels: Arc<ClassList>,
    classes: ClassMatch,
    /// Of each value of the PNGs.
    meaning: Vec<Meaning>,
    confusion: Confusion,
}

impl IouEvaluator {
    /// Reads the class list `{"ignore_index": 255, "classes": [{"index": 0, "name": "sky"}, ...]}` (`field`
    /// names the list, here `classes`) for a model whose classes have these names. Without `ignore_index`,
    /// 255 is ignored; `null` ignores nothing.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be read; [`Error::Data`] if it is no such list or an index or name occurs
    /// twice; as [`ClassMatch::new`].
    pub fn open(path: &Path, field: &str, classes: &[String], policy: ClassPolicy) -> Result<Self> {
        IouEvaluator::of(Arc::new(ClassList::read(path, field)?), classes, policy)
    }

    /// Compares by this class list.
    pub(super) fn of(labels: Arc<ClassList>, classes: &[String], policy: ClassPolicy) -> Result<Self> {
        let names: Vec<String> = labels.classes.iter().map(|(_, name)| name.clone()).collect();
        let classes = ClassMatch::new(&labels.path, classes, &names, policy)?;
        let (meaning, confusion) = (labels.meaning(), Confusion::new(&classes));
        Ok(IouEvaluator { labels, classes, meaning, confusion })
    }

    /// The evaluated classes.
    pub fn classes(&self) -> &ClassMatch {
        &self.classes
    }

    /// Forgets all predictions.
    pub fn clear(&mut self) {
        self.confusion = Confusion::new(&self.classes);
    }

    /// Compares a prediction with the PNG at `mask`.
    ///
    /// # Errors
    /// As [`labels::indices`](crate::train::data::labels::indices); [`Error::Data`] naming the PNG if it
    /// holds an index that is not in the class list or the sizes differ; [`Error::Usage`] if the prediction
    /// contradicts itself.
    pub fn add(&mut self, mask: &Path, prediction: &ClassMap) -> Result<()> {
        let ClassMap { height, width, classes } = *prediction;
        if classes.len() != height * width {
            let reason = format!("a prediction of {} pixels is not {height} x {width}", classes.len());
            return Err(Error::usage(reason));
        }
        let other = self.confusion.other() as u32;
        let row = |meaning: Meaning| match meaning {
            Meaning::Class(at) => self.classes.slot_of_category[at].map_or(other, |slot| slot as u32),
            Meaning::Ignored | Meaning::Unknown => Confusion::IGNORED,
        };
        let truth = self.labels.load(mask, &self.meaning, (height, width))?;
        let rows: Vec<u32> = truth.into_iter().map(row).collect();
        let slots = &self.classes.slot_of_class;
        let column =
            |&class: &u32| slots.get(class as usize).copied().flatten().map_or(other, |slot| slot as u32);
        let columns: Vec<u32> = classes.iter().map(column).collect();
        self.confusion
            .matrix
            .update(&rows, &columns, Some(u64::from(Confusion::IGNORED)))
            .map_err(|e| Error::data(mask, e.to_string()))?;
        self.confusion.add_image();
        Ok(())
    }

    /// Shares and means over the images so far.
    pub fn summarize(&self) -> IouReport {
        self.confusion.report()
    }
}
