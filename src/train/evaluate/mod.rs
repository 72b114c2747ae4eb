//! How good a model is: COCO mask AP, panoptic quality, mean IoU.
//!
//! | module | holds |
//! |---|---|
//! | [`coco_ap`] | average precision of masks or boxes against a COCO instance file |
//! | [`panoptic_quality`] | PQ, SQ, RQ against a COCO panoptic file |
//! | [`semantic_iou`] | IoU of classes against PNGs of class indices |
//! | [`class_match`] | which class of a model is which category: the one of the same name |
//! | [`report`] | results, as JSON and as a table |
//!
//! Each metric is an `Evaluator` that is built once from the ground truth and fed image by image, so that
//! training can use it in between. [`Evaluation`] runs an [`Engine`] over all images of a data set.
//!
//! # What is hotcoco's and what is ours
//!
//! Matching and averaging are those of the crate hotcoco 1.3, which gives the numbers of pycocotools, of
//! panopticapi and of a confusion matrix in NumPy to the last digits (`tests/train/metrics`: within 1e-12 on
//! all reference data). Not used are its readers and its evaluators of files. Predictions come from memory
//! here; and unsound ground truth would become numbers without a word
//! (`tests/train/metrics/hotcoco_limits.rs` shows which), or an error that names no record. So ground truth
//! is a [`Dataset`], read and checked as training reads it.

pub mod class_match;
pub mod coco_ap;
pub mod panoptic_quality;
pub mod report;
pub mod semantic_iou;

pub use report::Report;

use crate::engine::{Engine, Segmentation, class_list};
use crate::error::{Error, Result};
use crate::image::decode::{Limits, decode};
use crate::image::instance::Instance;
use crate::image::panoptic::INSTANCE_OFFSET;
use crate::model::{Config, Task};
use crate::train::data::dataset::Label;
use crate::train::data::semantic::ClassList;
use crate::train::data::{DataConfig, Dataset, ImageRecord, Reading, Warning};
use class_match::{ClassMatch, ClassPolicy};
use coco_ap::{Detection, Overlap, Region};
use panoptic_quality::PanopticMap;
use rayon::prelude::*;
use report::Partial;
use semantic_iou::ClassMap;
use std::io::ErrorKind::NotFound;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Where a data set lies and what of it is evaluated.
///
/// | given | metrics | images |
/// |---|---|---|
/// | `annotations` | AP of masks | all of the file |
/// | `annotations`, `panoptic_dir` | PQ; mIoU of the panoptic map | those with a panoptic annotation |
/// | the same with `semantic` | PQ; mIoU against the index PNGs | the same |
/// | `semantic` | mIoU of the panoptic map | those with a mask |
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EvalSpec {
    /// Folder of the photos.
    pub images: PathBuf,
    /// COCO instance file, or COCO panoptic file with `panoptic_dir`.
    pub annotations: Option<PathBuf>,
    /// Folder of the panoptic PNGs.
    pub panoptic_dir: Option<PathBuf>,
    /// Semantic ground truth.
    pub semantic: Option<SemanticSpec>,
    /// Which classes are evaluated.
    pub classes: ClassPolicy,
    /// How strictly ground truth is read.
    pub reading: Reading,
}

/// Semantic ground truth.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SemanticSpec {
    /// Folder of PNGs of class indices, named like the photos.
    pub masks: PathBuf,
    /// The class list; see [`semantic_iou::IouEvaluator::open`].
    pub classes: PathBuf,
    /// Field of the class list that holds the classes.
    pub field: String,
    /// Text file with the stems of the masks to use, one a line; all of the folder if absent.
    pub list: Option<PathBuf>,
}

impl EvalSpec {
    /// The kind of result that an engine has to give for this data set.
    ///
    /// # Errors
    /// [`Error::Usage`] for a combination that is not in the table.
    pub fn task(&self) -> Result<Task> {
        match (&self.annotations, &self.panoptic_dir, &self.semantic) {
            (Some(_), None, None) => Ok(Task::Instance),
            (Some(_), Some(_), _) | (None, None, Some(_)) => Ok(Task::Panoptic),
            (Some(_), None, Some(_)) => Err(Error::usage(
                "instance annotations and semantic masks need different results of the model: evaluate one of them, or \
                 give a panoptic file with its folder of PNGs",
            )),
            (None, Some(_), _) => Err(Error::usage("a folder of panoptic PNGs needs their annotation file")),
            (None, None, None) => {
                Err(Error::usage("there is nothing to compare with: no annotations, no masks"))
            }
        }
    }

    /// As [`EvalSpec::task`], of a model whose own task is `model`: masks alone are compared with semantic
    /// maps if it gives those.
    ///
    /// # Errors
    /// As there.
    pub fn task_of(&self, model: Task) -> Result<Task> {
        let masks_alone = self.annotations.is_none() && self.semantic.is_some();
        let task = self.task()?;
        Ok(if masks_alone && model == Task::Semantic { Task::Semantic } else { task })
    }

    /// The set that training would read, and the class list and folder of masks to compare a panoptic set
    /// with, besides.
    fn data(&self) -> Result<(DataConfig, Option<&SemanticSpec>)> {
        self.task()?;
        let (images, repeat) = (self.images.clone(), 1.0);
        Ok(match (&self.annotations, &self.panoptic_dir, &self.semantic) {
            (Some(file), Some(masks), semantic) => {
                let (annotations, masks) = (file.clone(), masks.clone());
                (DataConfig::CocoPanoptic { annotations, images, masks, repeat }, semantic.as_ref())
            }
            (_, _, Some(SemanticSpec { masks, classes, field, list })) => {
                let (masks, classes, field, list) =
                    (masks.clone(), classes.clone(), field.clone(), list.clone());
                (DataConfig::Semantic { images, masks, classes, field, list, repeat }, None)
            }
            (annotations, ..) => {
                let annotations = annotations.clone().unwrap_or_default();
                (DataConfig::CocoInstance { annotations, images, classes: None, repeat }, None)
            }
        })
    }
}

/// A data set, read and checked, that models can be run on again and again.
pub struct Evaluation {
    photos: Vec<Photo>,
    warnings: Vec<Warning>,
    instances: Option<coco_ap::ApEvaluator>,
    panoptic: Option<panoptic_quality::PanopticEvaluator>,
    semantic: Option<semantic_iou::IouEvaluator>,
    task: Task,
}

struct Photo {
    path: PathBuf,
    /// Its entry in the annotation file, if there is one.
    record: Option<ImageRecord>,
    /// Its PNG of class indices, if those are compared.
    mask: Option<PathBuf>,
}

/// What was found in one image of an evaluation.
#[derive(Clone, Copy, Debug)]
pub struct Found<'a> {
    /// Images done, this one included.
    pub done: usize,
    /// Images of the set.
    pub all: usize,
    /// The image, if it has an entry in an annotation file.
    pub image: Option<&'a ImageRecord>,
    /// What the model gives.
    pub found: &'a Segmentation,
}

/// Masks of class indices that a panoptic set is compared with, besides.
struct Extra {
    masks: PathBuf,
    labels: Arc<ClassList>,
}

impl Evaluation {
    /// Reads a data set for models with the classes of this engine. All its files are looked at.
    ///
    /// # Errors
    /// As [`EvalSpec::task`] and [`Dataset::open`]; as [`Evaluation::of`].
    pub fn open(spec: &EvalSpec, engine: &Engine) -> Result<Self> {
        let (config, extra) = spec.data()?;
        check_task(engine.task(), spec.task_of(engine.task())?)?;
        let data = Dataset::open(&config, &spec.reading)?;
        let extra = extra.map(|extra| -> Result<Extra> {
            let labels = Arc::new(ClassList::read(&extra.classes, &extra.field)?);
            Ok(Extra { masks: extra.masks.clone(), labels })
        });
        Evaluation::with(&data, extra.transpose()?, engine.config(), spec.classes)
    }

    /// Evaluates models of this configuration on an opened set.
    ///
    /// # Errors
    /// [`Error::Usage`] if the model gives no results of this kind; [`Error::Data`] if the classes do not
    /// match or no object is of an evaluated class.
    pub fn of(data: &Dataset, model: &Config, policy: ClassPolicy) -> Result<Self> {
        Evaluation::with(data, None, model, policy)
    }

    fn with(data: &Dataset, extra: Option<Extra>, model: &Config, policy: ClassPolicy) -> Result<Self> {
        let task = match data.entries.first().map(|entry| &entry.label) {
            Some(Label::Objects(_)) => Task::Instance,
            _ if model.task == Task::Semantic && data.labels.is_some() => Task::Semantic,
            _ => Task::Panoptic,
        };
        if task != Task::Instance {
            check_task(model.task, task)?;
        }
        let mut names: Vec<String> = class_list(model).into_iter().map(|c| c.name.into_owned()).collect();
        if task == Task::Instance {
            names.truncate(model.classes.things);
        }
        let (mut instances, mut panoptic) = (None, None);
        let mut labels = data.labels.clone();
        if task == Task::Instance {
            instances = Some(coco_ap::ApEvaluator::of(data, &names, policy, Overlap::Masks)?);
        } else if labels.is_none() {
            panoptic = Some(panoptic_quality::PanopticEvaluator::of(data, &names, policy)?);
        }
        if let Some(extra) = &extra {
            labels = Some(Arc::clone(&extra.labels));
        }
        let semantic = labels.map(|labels| semantic_iou::IouEvaluator::of(labels, &names, policy));
        let mask = |path: &Path, label: &Label| match (&extra, label) {
            (None, Label::Semantic { png }) => Some(png.clone()),
            // Not `with_extension`: a stem may hold dots.
            (Some(extra), _) => {
                let stem = path.file_stem().unwrap_or_default().to_string_lossy();
                Some(extra.masks.join(format!("{stem}.png")))
            }
            _ => None,
        };
        let photo = |entry: &crate::train::data::dataset::Entry| Photo {
            path: entry.image.clone(),
            mask: mask(&entry.image, &entry.label),
            record: entry.record(),
        };
        let photos: Vec<Photo> = data.entries.iter().map(photo).collect();
        if let Some(extra) = &extra {
            check_masks(&photos, &extra.labels)?;
        }
        let warnings = data.warnings().to_vec();
        Ok(Evaluation { photos, warnings, instances, panoptic, semantic: semantic.transpose()?, task })
    }

    /// Number of images.
    pub fn images(&self) -> usize {
        self.photos.len()
    }

    /// What is odd about the data set, and what was left out of it.
    pub fn warnings(&self) -> &[Warning] {
        &self.warnings
    }

    /// Runs the engine over all images and compares. `each` hears what was found in each, and may break off:
    /// what was measured until then, or until an image that cannot be done, comes back as a [`Partial`]
    /// report.
    ///
    /// # Errors
    /// [`Error::Usage`] if the engine gives another kind of result; what is wrong with the first image: as
    /// [`decode`] for the photo; [`Error::Data`] for a photo of another size than the annotations say; as the
    /// engine and the metrics' `Evaluator::add`.
    pub fn run(
        &mut self,
        engine: &mut Engine,
        mut each: impl FnMut(&Found<'_>) -> ControlFlow<()>,
    ) -> Result<Report> {
        check_task(engine.task(), self.task)?;
        if let Some(instances) = &mut self.instances {
            instances.clear()?;
        }
        if let Some(panoptic) = &mut self.panoptic {
            panoptic.clear();
        }
        if let Some(semantic) = &mut self.semantic {
            semantic.clear();
        }
        let mut found = Segmentation::default();
        let all = self.photos.len();
        let mut end = None;
        for at in 0..all {
            match self.image(at, engine, &mut found) {
                Ok(()) => {}
                Err(error) if at == 0 => return Err(error),
                Err(error) => {
                    let (kind, reason) = (Some(error.kind()), error.to_string());
                    end = Some(Partial { images: at, of: all, reason, kind });
                    break;
                }
            }
            let image = self.photos[at].record.as_ref();
            let goes_on = each(&Found { done: at + 1, all, image, found: &found }).is_continue();
            if !goes_on && at + 1 < all {
                end = Some(Partial { images: at + 1, of: all, reason: "stopped".into(), kind: None });
                break;
            }
        }
        self.report(engine, end)
    }

    /// Segments one photo and feeds the result to all metrics.
    fn image(&mut self, at: usize, engine: &mut Engine, found: &mut Segmentation) -> Result<()> {
        let photo = &self.photos[at];
        let picture = decode(&photo.path, &Limits::default())?;
        if let Some(record) = &photo.record {
            let (height, width) = (picture.height() as usize, picture.width() as usize);
            if (height, width) != (record.height, record.width) {
                let listed = format!("{} x {}", record.height, record.width);
                let reason = format!("the photo is {height} x {width}, the annotations say {listed}");
                return Err(Error::record(&photo.path, format!("image {}", record.id), reason));
            }
        }
        engine.segment_into(&picture, found)?;
        self.compare(at, engine.config().classes.count(), found)
    }

    /// Feeds the result of one photo to all metrics.
    fn compare(&mut self, at: usize, classes: usize, found: &Segmentation) -> Result<()> {
        let photo = &self.photos[at];
        if let (Some(instances), Some(record)) = (&mut self.instances, &photo.record) {
            let detection = |instance: &Instance| Detection {
                class: instance.label,
                score: f64::from(instance.score),
                region: Region::Mask(found.mask(instance)),
            };
            let detections: Vec<Detection> = found.instances().iter().map(detection).collect();
            instances.add(record.id, &detections)?;
        }
        if let (Some(semantic), Some(mask), Some(map)) = (&mut self.semantic, &photo.mask, found.semantic()) {
            let (height, width) = (map.height, map.width);
            let classes: Vec<u32> = map.map.iter().map(|&class| u32::from(class)).collect();
            semantic.add(mask, &ClassMap { height, width, classes: &classes })?;
        }
        let Some(map) = found.panoptic() else { return Ok(()) };
        let (height, width) = (map.height, map.width);
        if let (Some(panoptic), Some(record)) = (&mut self.panoptic, &photo.record) {
            let segments: Vec<(u32, usize)> = map.segments.iter().map(|s| (s.id, s.category)).collect();
            let (values, void) = (map.map.as_slice(), classes as u32);
            panoptic.add(record.id, &PanopticMap { height, width, values, void, segments: &segments })?;
        }
        if let (Some(semantic), Some(mask)) = (&mut self.semantic, &photo.mask) {
            // The value of void is the number of classes, which no class has.
            let classes: Vec<u32> = map.map.iter().map(|value| value % INSTANCE_OFFSET).collect();
            semantic.add(mask, &ClassMap { height, width, classes: &classes })?;
        }
        Ok(())
    }

    fn report(&self, engine: &Engine, partial: Option<Partial>) -> Result<Report> {
        let semantic = match (&self.semantic, &self.panoptic) {
            (Some(semantic), _) => Some(semantic.summarize()),
            (None, panoptic) => panoptic.as_ref().map(|panoptic| panoptic.semantic()),
        };
        let classes = self.classes();
        Ok(Report {
            model: engine.config().name.clone(),
            images: partial.as_ref().map_or(self.photos.len(), |partial| partial.images),
            instances: self.instances.as_ref().map(|i| i.report(partial.is_none())).transpose()?,
            panoptic: self.panoptic.as_ref().map(|panoptic| panoptic.summarize()),
            semantic,
            only_in_model: classes.map(|c| c.only_in_model.clone()).unwrap_or_default(),
            only_in_data: classes.map(|c| c.only_in_data.clone()).unwrap_or_default(),
            partial,
        })
    }

    /// The evaluated classes, of the annotation file if there is one.
    fn classes(&self) -> Option<&ClassMatch> {
        let instances = self.instances.as_ref().map(coco_ap::ApEvaluator::classes);
        let panoptic = self.panoptic.as_ref().map(panoptic_quality::PanopticEvaluator::classes);
        let semantic = self.semantic.as_ref().map(semantic_iou::IouEvaluator::classes);
        instances.or(panoptic).or(semantic)
    }
}

fn check_task(found: Task, task: Task) -> Result<()> {
    if found == task {
        return Ok(());
    }
    let (found, wanted) = (found.name(), task.name());
    Err(Error::usage(format!("the model gives {found} results, this data set compares {wanted} ones")))
}

/// Looks at masks that no data set has looked at.
fn check_masks(photos: &[Photo], labels: &ClassList) -> Result<()> {
    let masks = photos.iter().filter_map(|photo| photo.mask.as_deref());
    let missing: Vec<&Path> = masks.filter(|mask| !mask.is_file()).collect();
    if let Some(first) = missing.first() {
        let reason = format!("No such file ({} of {} masks are missing)", missing.len(), photos.len());
        return Err(Error::io(first, std::io::Error::new(NotFound, reason)));
    }
    let meaning = labels.meaning();
    photos.par_iter().try_for_each(|photo| match (&photo.mask, &photo.record) {
        (Some(mask), Some(record)) => labels.load(mask, &meaning, (record.height, record.width)).map(|_| ()),
        _ => Ok(()),
    })
}
