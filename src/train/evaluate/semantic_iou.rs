//! Intersection over union of classes, pixel by pixel (mIoU), over all images together.
//!
//! One confusion matrix counts the pixels of each pair of true and predicted class; its sums and means are the crate
//! hotcoco's. An extra row takes pixels of true classes that are not evaluated, an extra column those that were
//! predicted as no evaluated class: the former are wrong for the predicted class, the latter missed for the true one.

use super::class_match::{ClassMatch, ClassPolicy};
use super::index_png;
use crate::error::{Error, Result};
use hotcoco::metrics::semantic::{PixelConfusion, semantic_scores};
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::path::{Path, PathBuf};

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
pub struct Evaluator {
    classes_file: PathBuf,
    classes: ClassMatch,
    /// For each index of the PNGs: evaluated class, other class, to be ignored, or unknown.
    meaning: Vec<Meaning>,
    confusion: Confusion,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Meaning {
    Unknown,
    Ignored,
    Class(Option<usize>),
}

#[derive(Deserialize)]
struct ClassFile {
    #[serde(default = "ignore_255")]
    ignore_index: Option<u16>,
    #[serde(flatten)]
    lists: serde_json::Map<String, serde_json::Value>,
}

#[derive(Deserialize)]
struct ClassRecord {
    index: u16,
    name: String,
}

fn ignore_255() -> Option<u16> {
    Some(255)
}

impl Evaluator {
    /// Reads the class list `{"ignore_index": 255, "classes": [{"index": 0, "name": "sky"}, ...]}` (`field` names the list, here
    /// `classes`) for a model whose classes have these names. Without `ignore_index`, 255 is ignored; `null` ignores nothing.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be read; [`Error::Data`] if it is no such list or an index or name occurs twice; as
    /// [`ClassMatch::new`].
    pub fn open(path: &Path, field: &str, classes: &[String], policy: ClassPolicy) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(|e| Error::io(path, e))?;
        let refuse = |reason: String| Error::data(path, format!("not a class list: {reason}"));
        let mut file: ClassFile = serde_json::from_slice(&bytes).map_err(|e| refuse(e.to_string()))?;
        let list = file.lists.remove(field).ok_or_else(|| refuse(format!("missing field `{field}`")))?;
        let list: Vec<ClassRecord> = serde_json::from_value(list).map_err(|e| refuse(e.to_string()))?;
        if list.is_empty() {
            return Err(Error::data(path, format!("the list `{field}` is empty")));
        }
        let (mut indices, mut known) = (HashSet::new(), HashSet::new());
        for class in &list {
            let twice = !indices.insert(class.index) || !known.insert(class.name.as_str());
            if twice || file.ignore_index == Some(class.index) {
                let reason =
                    if twice { "this index or name occurs twice" } else { "this index is `ignore_index`" };
                return Err(Error::record(path, format!("class {} (`{}`)", class.index, class.name), reason));
            }
        }
        let names: Vec<String> = list.iter().map(|c| c.name.clone()).collect();
        let classes = ClassMatch::new(path, classes, &names, policy)?;
        let mut meaning = vec![Meaning::Unknown; usize::from(u16::MAX) + 1];
        for (class, slot) in list.iter().zip(&classes.slot_of_category) {
            meaning[usize::from(class.index)] = Meaning::Class(*slot);
        }
        if let Some(index) = file.ignore_index {
            meaning[usize::from(index)] = Meaning::Ignored;
        }
        let confusion = Confusion::new(&classes);
        Ok(Evaluator { classes_file: path.to_path_buf(), classes, meaning, confusion })
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
    /// As [`index_png::read`]; [`Error::Data`] naming the PNG if it holds an index that is not in the class list;
    /// [`Error::Usage`] if the sizes differ.
    pub fn add(&mut self, mask: &Path, prediction: &ClassMap) -> Result<()> {
        let truth = index_png::read(mask)?;
        let ClassMap { height, width, classes } = *prediction;
        if (truth.height, truth.width) != (height, width) || classes.len() != height * width {
            let reason = format!(
                "the mask is {} x {}, the prediction {height} x {width} ({} pixels)",
                truth.height,
                truth.width,
                classes.len()
            );
            return Err(Error::data(mask, reason));
        }
        let other = self.confusion.other() as u32;
        let mut rows = Vec::with_capacity(truth.values.len());
        for (at, &index) in truth.values.iter().enumerate() {
            rows.push(match self.meaning[usize::from(index)] {
                Meaning::Class(slot) => slot.map_or(other, |slot| slot as u32),
                Meaning::Ignored => Confusion::IGNORED,
                Meaning::Unknown => {
                    let (y, x) = (at / width, at % width);
                    let list = self.classes_file.display();
                    let reason =
                        format!("pixel ({y}, {x}) has the class index {index}, which {list} does not list");
                    return Err(Error::data(mask, reason));
                }
            });
        }
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
