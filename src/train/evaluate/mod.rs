//! How good a model is: COCO mask AP, panoptic quality, mean IoU.
//!
//! | module | holds |
//! |---|---|
//! | [`coco_ap`] | average precision of masks or boxes against a COCO instance file |
//! | [`panoptic_quality`] | PQ, SQ, RQ against a COCO panoptic file |
//! | [`semantic_iou`] | IoU of classes against PNGs of class indices |
//! | [`class_match`] | which class of a model is which category: the one of the same name |
//! | [`coco_json`], [`index_png`] | reading and checking of ground truth |
//! | [`report`] | results, as JSON and as a table |
//!
//! Each metric is an `Evaluator` that is built once from the ground truth and fed image by image, so that training can
//! use it in between. [`Evaluation`] runs an [`Engine`] over all images of a data set.
//!
//! # What is hotcoco's and what is ours
//!
//! Matching and averaging are those of the crate hotcoco 1.3, which gives the numbers of pycocotools, of panopticapi and of
//! a confusion matrix in NumPy to the last digits (`tests/metrics`: within 1e-12 on all reference data). Not used are
//! its readers and its evaluators of files. Predictions come from memory here; and unsound ground truth would become
//! numbers without a word (`tests/metrics/hotcoco_limits.rs` shows which), or an error that names no record. So
//! ground truth is read and checked here.

pub mod class_match;
pub mod coco_ap;
pub mod coco_json;
pub mod index_png;
pub mod panoptic_quality;
pub mod report;
pub mod semantic_iou;

pub use report::Report;

use crate::engine::{Engine, Segmentation};
use crate::error::{Error, Result};
use crate::image::decode::{Limits, decode};
use crate::image::instance::Instance;
use crate::image::panoptic::INSTANCE_OFFSET;
use crate::model::Task;
use crate::train::data::read_stems;
use class_match::{ClassMatch, ClassPolicy};
use coco_ap::{Detection, Overlap, Region};
use coco_json::ImageRecord;
use panoptic_quality::PanopticMap;
use semantic_iou::ClassMap;
use std::collections::HashMap;
use std::io::ErrorKind::NotFound;
use std::path::{Path, PathBuf};

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
}

/// Semantic ground truth.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SemanticSpec {
    /// Folder of PNGs of class indices, named like the photos.
    pub masks: PathBuf,
    /// The class list, see [`semantic_iou::Evaluator::open`].
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
}

/// A data set, read and checked, that models can be run on again and again.
pub struct Evaluation {
    photos: Vec<Photo>,
    instances: Option<coco_ap::Evaluator>,
    panoptic: Option<panoptic_quality::Evaluator>,
    semantic: Option<semantic_iou::Evaluator>,
    task: Task,
}

struct Photo {
    path: PathBuf,
    /// Its entry in the annotation file, if there is one.
    record: Option<ImageRecord>,
    /// Its PNG of class indices, if those are compared.
    mask: Option<PathBuf>,
}

/// Runs an engine over a data set: [`Evaluation::open`] and [`Evaluation::run`] in one.
///
/// # Errors
/// As those two.
pub fn evaluate(engine: &mut Engine, spec: &EvalSpec, progress: impl FnMut(usize, usize)) -> Result<Report> {
    Evaluation::open(spec, engine)?.run(engine, progress)
}

impl Evaluation {
    /// Reads a data set for models with the classes of this engine.
    ///
    /// # Errors
    /// As [`EvalSpec::task`] and the metrics' `Evaluator::open`; [`Error::Usage`] if the engine gives another kind of
    /// result; [`Error::Io`] if a photo or mask is missing; [`Error::Data`] for a folder without masks and a mask
    /// without a photo.
    pub fn open(spec: &EvalSpec, engine: &Engine) -> Result<Self> {
        let task = spec.task()?;
        check_task(engine, task)?;
        let mut names: Vec<String> = engine.classes().into_iter().map(|c| c.name.into_owned()).collect();
        if task == Task::Instance {
            names.truncate(engine.config().thing_classes);
        }
        let (mut instances, mut panoptic) = (None, None);
        let mut records = Vec::new();
        match (&spec.annotations, &spec.panoptic_dir) {
            (Some(file), Some(folder)) => {
                let evaluator = panoptic_quality::Evaluator::open(file, folder, &names, spec.classes)?;
                records.extend(evaluator.images().cloned());
                panoptic = Some(evaluator);
            }
            (Some(file), None) => {
                let evaluator = coco_ap::Evaluator::open(file, &names, spec.classes, Overlap::Masks)?;
                records.extend(evaluator.images().cloned());
                instances = Some(evaluator);
            }
            (None, _) => {}
        }
        let semantic = spec.semantic.as_ref();
        let photos = match semantic {
            Some(semantic) if records.is_empty() => photos_of_masks(&spec.images, semantic)?,
            _ => {
                let photo = |record: ImageRecord| Photo {
                    path: spec.images.join(&record.file_name),
                    mask: semantic.map(|s| s.masks.join(Path::new(&record.file_name).with_extension("png"))),
                    record: Some(record),
                };
                records.into_iter().map(photo).collect()
            }
        };
        all_there("photos", photos.iter().map(|photo| photo.path.as_path()))?;
        all_there("masks", photos.iter().filter_map(|photo| photo.mask.as_deref()))?;
        let open =
            |s: &SemanticSpec| semantic_iou::Evaluator::open(&s.classes, &s.field, &names, spec.classes);
        let semantic = semantic.map(open).transpose()?;
        Ok(Evaluation { photos, instances, panoptic, semantic, task })
    }

    /// Number of images.
    pub fn images(&self) -> usize {
        self.photos.len()
    }

    /// Runs the engine over all images and compares. `progress` is told the number of images done, and of all, after
    /// each.
    ///
    /// # Errors
    /// [`Error::Usage`] if the engine gives another kind of result; as [`decode`] for the photos; [`Error::Data`] for a
    /// photo of another size than the annotations say; as the engine and the metrics' `Evaluator::add`.
    pub fn run(&mut self, engine: &mut Engine, mut progress: impl FnMut(usize, usize)) -> Result<Report> {
        check_task(engine, self.task)?;
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
        for at in 0..self.photos.len() {
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
            engine.segment_into(&picture, &mut found)?;
            self.compare(at, engine.config().classes(), &found)?;
            progress(at + 1, self.photos.len());
        }
        self.report(engine)
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

    fn report(&self, engine: &Engine) -> Result<Report> {
        let semantic = match (&self.semantic, &self.panoptic) {
            (Some(semantic), _) => Some(semantic.summarize()),
            (None, panoptic) => panoptic.as_ref().map(|panoptic| panoptic.semantic()),
        };
        let classes = self.classes();
        Ok(Report {
            model: engine.config().name.clone(),
            images: self.photos.len(),
            instances: self.instances.as_ref().map(|instances| instances.summarize()).transpose()?,
            panoptic: self.panoptic.as_ref().map(|panoptic| panoptic.summarize()),
            semantic,
            only_in_model: classes.map(|c| c.only_in_model.clone()).unwrap_or_default(),
            only_in_data: classes.map(|c| c.only_in_data.clone()).unwrap_or_default(),
        })
    }

    /// The evaluated classes, of the annotation file if there is one.
    fn classes(&self) -> Option<&ClassMatch> {
        let instances = self.instances.as_ref().map(coco_ap::Evaluator::classes);
        let panoptic = self.panoptic.as_ref().map(panoptic_quality::Evaluator::classes);
        let semantic = self.semantic.as_ref().map(semantic_iou::Evaluator::classes);
        instances.or(panoptic).or(semantic)
    }
}

fn check_task(engine: &Engine, task: Task) -> Result<()> {
    if engine.task() == task {
        return Ok(());
    }
    let (found, wanted) = (engine.task().name(), task.name());
    Err(Error::usage(format!("the engine gives {found} results, this data set compares {wanted} ones")))
}

/// The photos of the masks, in the order of the masks' names or of the list.
fn photos_of_masks(images: &Path, semantic: &SemanticSpec) -> Result<Vec<Photo>> {
    let mut photos: HashMap<_, PathBuf> = HashMap::new();
    for path in files(images)? {
        if let Some(stem) = path.file_stem() {
            photos.insert(stem.to_os_string(), path.clone());
        }
    }
    let masks: Vec<PathBuf> = match &semantic.list {
        Some(list) => {
            // Not `with_extension`: a stem may hold dots.
            let mask = |stem: &String| semantic.masks.join(format!("{stem}.png"));
            let masks: Vec<PathBuf> = read_stems(list)?.iter().map(mask).collect();
            if masks.is_empty() {
                return Err(Error::data(list, "names no mask"));
            }
            masks
        }
        None => {
            let is_png = |path: &PathBuf| path.extension().is_some_and(|e| e.eq_ignore_ascii_case("png"));
            files(&semantic.masks)?.into_iter().filter(is_png).collect()
        }
    };
    let photo = |mask: PathBuf| {
        let found = mask.file_stem().and_then(|stem| photos.get(stem)).cloned();
        let missing = || format!("there is no photo of this name in {}", images.display());
        Ok(Photo {
            path: found.ok_or_else(|| Error::data(&mask, missing()))?,
            record: None,
            mask: Some(mask),
        })
    };
    masks.into_iter().map(photo).collect()
}

/// The files of a folder, sorted; an error if there is none.
fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(|e| Error::io(folder, e))? {
        let path = entry.map_err(|e| Error::io(folder, e))?.path();
        if path.is_file() {
            found.push(path);
        }
    }
    if found.is_empty() {
        return Err(Error::data(folder, "there are no files in this folder"));
    }
    found.sort();
    Ok(found)
}

/// Finds missing files before hours are spent on the others.
fn all_there<'a>(what: &str, paths: impl Iterator<Item = &'a Path>) -> Result<()> {
    let (mut all, mut missing) = (0, Vec::new());
    for path in paths {
        all += 1;
        if !path.is_file() {
            missing.push(path);
        }
    }
    match missing.first() {
        None => Ok(()),
        Some(first) => {
            let reason = format!("No such file ({} of {all} {what} are missing)", missing.len());
            Err(Error::io(first, std::io::Error::new(NotFound, reason)))
        }
    }
}
