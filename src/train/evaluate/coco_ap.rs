//! COCO average precision of instance masks (or boxes), as pycocotools computes it: IoU 0.50:0.05:0.95, 101
//! recall points, at most 1 / 10 / 100 detections an image, areas below 32^2, up to 96^2, above, crowds
//! neither hit nor missed. Matching and averaging are the crate hotcoco's; annotations are read as training
//! reads them.

use super::class_match::{ClassMatch, ClassPolicy};
use crate::error::{Error, Result};
use crate::image::bitmask::BitMask;
use crate::image::rle;
use crate::train::data::ImageRecord;
use crate::train::data::coco;
use crate::train::data::dataset::{Dataset, Label, ListedObject};
use hotcoco::params::IouType;
use hotcoco::{Annotation, Category, EvalMode, Image, Params, Segmentation, StreamingEval};
use serde::Serialize;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// What is compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Overlap {
    /// Pixels of masks.
    #[default]
    Masks,
    /// Areas of boxes.
    Boxes,
}

/// Where a detected object is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Region<'a> {
    /// A mask at the size of the image.
    Mask(&'a BitMask),
    /// Compressed COCO run lengths and their (height, width).
    Rle {
        /// Height and width.
        size: [usize; 2],
        /// Run lengths.
        counts: &'a str,
    },
    /// Left, top, width, height in pixels; for [`Overlap::Boxes`] alone.
    Box([f64; 4]),
}

/// One detected object.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Detection<'a> {
    /// Class index of the model.
    pub class: usize,
    /// Confidence: of two detections the one with more is matched first.
    pub score: f64,
    /// Where it is.
    pub region: Region<'a>,
}

/// Average precision and recall; `None` where there is no object to find.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ApReport {
    /// Mean over classes and IoU thresholds 0.50:0.05:0.95.
    pub ap: f64,
    /// At IoU 0.50.
    pub ap50: f64,
    /// At IoU 0.75.
    pub ap75: f64,
    /// Of objects below 32^2 pixels.
    pub ap_small: Option<f64>,
    /// Of objects of 32^2 to 96^2 pixels.
    pub ap_medium: Option<f64>,
    /// Of objects above 96^2 pixels.
    pub ap_large: Option<f64>,
    /// Largest recall with one detection an image, mean over IoU thresholds.
    pub ar1: f64,
    /// With ten.
    pub ar10: f64,
    /// With a hundred.
    pub ar100: f64,
    /// With a hundred, of objects below 32^2 pixels.
    pub ar_small: Option<f64>,
    /// With a hundred, of objects of 32^2 to 96^2 pixels.
    pub ar_medium: Option<f64>,
    /// With a hundred, of objects above 96^2 pixels.
    pub ar_large: Option<f64>,
    /// Number of images.
    pub images: usize,
    /// Number of objects to find; crowds are not counted.
    pub objects: usize,
    /// The evaluated classes in the order of the data set.
    pub per_class: Vec<ClassAp>,
}

/// Average precision of one class.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ClassAp {
    /// Name of the class.
    pub name: String,
    /// Mean over IoU thresholds; `None` without objects.
    pub ap: Option<f64>,
    /// At IoU 0.50.
    pub ap50: Option<f64>,
    /// Number of objects to find.
    pub objects: usize,
}

/// Compares detections with the annotations of a COCO instance file. Build it once; [`ApEvaluator::clear`]
/// starts over without reading the file again.
pub struct ApEvaluator {
    path: PathBuf,
    overlap: Overlap,
    classes: ClassMatch,
    images: Vec<ImageTruth>,
    index: HashMap<u64, usize>,
    stream: StreamingEval,
}

struct ImageTruth {
    record: ImageRecord,
    objects: Vec<Truth>,
    done: bool,
}

/// An object of an evaluated class. Its pixels are made when its image is compared.
struct Truth {
    /// The class' position in [`ClassMatch::matched`].
    slot: usize,
    listed: ListedObject,
}

impl ApEvaluator {
    /// Reads a COCO instance file for a model whose classes have these names.
    ///
    /// # Errors
    /// As [`Dataset::open`] for the records; as [`ApEvaluator::of`].
    pub fn open(path: &Path, classes: &[String], policy: ClassPolicy, overlap: Overlap) -> Result<Self> {
        ApEvaluator::of(&coco::read(path, None, false)?, classes, policy, overlap)
    }

    /// Takes the objects of a COCO instance set for a model whose classes have these names.
    ///
    /// # Errors
    /// [`Error::Data`] if no object is of an evaluated class, or one has no box where boxes are compared; as
    /// [`ClassMatch::new`].
    pub fn of(data: &Dataset, classes: &[String], policy: ClassPolicy, overlap: Overlap) -> Result<Self> {
        let path = data.source.clone();
        let names: Vec<String> = data.classes.iter().map(|c| c.name.to_string()).collect();
        let classes = ClassMatch::new(&path, classes, &names, policy)?;
        let mut images: Vec<ImageTruth> = Vec::with_capacity(data.entries.len());
        for entry in &data.entries {
            let (Some(record), Label::Objects(listed)) = (entry.record(), &entry.label) else {
                return Err(Error::data(&path, "is no COCO instance set"));
            };
            let mut objects = Vec::with_capacity(listed.len());
            for (i, listed) in listed.iter().enumerate() {
                let Some(slot) = classes.slot_of_category[listed.class] else { continue };
                if overlap == Overlap::Boxes && listed.bbox.is_none() {
                    let name = format!("image {}, object {i}", record.id);
                    return Err(Error::record(&path, name, "has no `bbox` of four numbers"));
                }
                objects.push(Truth { slot, listed: listed.clone() });
            }
            images.push(ImageTruth { record, objects, done: false });
        }
        let index = images.iter().enumerate().map(|(i, image)| (image.record.id, i)).collect();
        let stream = stream(overlap, &classes)?;
        let evaluator = ApEvaluator { path, overlap, classes, images, index, stream };
        if evaluator.objects().next().is_none() {
            let reason = "no annotation (other than crowds) of an evaluated class";
            return Err(Error::data(&evaluator.path, reason));
        }
        Ok(evaluator)
    }

    /// The images, in the order of the file.
    pub fn images(&self) -> impl ExactSizeIterator<Item = &ImageRecord> {
        self.images.iter().map(|image| &image.record)
    }

    /// Leaves out the images for which `keep` is false, and starts over.
    ///
    /// # Errors
    /// [`Error::Data`] if no object is left.
    pub fn retain_images(&mut self, mut keep: impl FnMut(&ImageRecord) -> bool) -> Result<()> {
        self.images.retain(|image| keep(&image.record));
        self.index = self.images.iter().enumerate().map(|(i, image)| (image.record.id, i)).collect();
        self.clear()?;
        match self.objects().next() {
            Some(_) => Ok(()),
            None => Err(Error::data(&self.path, "no annotation is left in the chosen images")),
        }
    }

    /// The evaluated classes.
    pub fn classes(&self) -> &ClassMatch {
        &self.classes
    }

    /// Forgets all detections.
    ///
    /// # Errors
    /// None that these settings can give.
    pub fn clear(&mut self) -> Result<()> {
        self.stream = stream(self.overlap, &self.classes)?;
        self.images.iter_mut().for_each(|image| image.done = false);
        Ok(())
    }

    /// Compares the detections in one image, in any order; equal scores rank as given. A second call for an
    /// image replaces the first. Classes that are not evaluated are skipped.
    ///
    /// # Errors
    /// [`Error::Data`] for an image that is not in the file; [`Error::Usage`] for a class the model does not
    /// have, a score that is no number, or a region of another kind or size.
    pub fn add(&mut self, image_id: u64, detections: &[Detection]) -> Result<()> {
        let unknown = || Error::data(&self.path, format!("there is no image {image_id}"));
        let at = *self.index.get(&image_id).ok_or_else(unknown)?;
        let record = &self.images[at].record;
        let mut found = Vec::with_capacity(detections.len());
        for (i, detection) in detections.iter().enumerate() {
            let refuse = |reason: String| Error::usage(format!("image {image_id}, detection {i}: {reason}"));
            let Some(slot) = self.classes.slot_of_class.get(detection.class) else {
                return Err(refuse(format!("the model has no class {}", detection.class)));
            };
            if detection.score.is_nan() {
                return Err(refuse("the score is not a number".into()));
            }
            let (segmentation, bbox) = self.region(&detection.region, record).map_err(refuse)?;
            let Some(slot) = *slot else { continue };
            found.push(Annotation {
                image_id,
                category_id: slot as u64,
                score: Some(detection.score),
                segmentation,
                bbox,
                ..Annotation::default()
            });
        }
        let image = Image {
            id: image_id,
            height: record.height as u32,
            width: record.width as u32,
            ..Image::default()
        };
        let objects = self.truth(&self.images[at])?;
        self.stream
            .update(vec![image], objects, found)
            .map_err(|e| Error::record(&self.path, format!("image {image_id}"), e.to_string()))?;
        self.images[at].done = true;
        Ok(())
    }

    /// Precision and recall over all images; those without a call of [`ApEvaluator::add`] count as if nothing
    /// had been found in them.
    ///
    /// # Errors
    /// None that sound settings can give.
    pub fn summarize(&self) -> Result<ApReport> {
        self.report(true)
    }

    /// As [`ApEvaluator::summarize`], over `all` images or over those that [`ApEvaluator::add`] was called
    /// for.
    pub(super) fn report(&self, all: bool) -> Result<ApReport> {
        let fault = |e: hotcoco::Error| Error::data(&self.path, e.to_string());
        let mut stream = self.stream.clone();
        for image in self.images.iter().filter(|image| all && !image.done) {
            let record = &image.record;
            let (height, width) = (record.height as u32, record.width as u32);
            let record = Image { id: record.id, height, width, ..Image::default() };
            stream.update(vec![record], self.truth(image)?, Vec::new()).map_err(fault)?;
        }
        let mut evaluation = stream.finalize();
        evaluation.accumulate();
        let _lines = evaluation.summarize_lines();
        let stats = evaluation.stats().unwrap_or_default().to_vec();
        let counted = |image: &ImageTruth| all || image.done;
        let stat = |i: usize| stats.get(i).copied().filter(|&v| v >= 0.0);
        let mean = |i: usize| stat(i).unwrap_or(0.0);
        Ok(ApReport {
            ap: mean(0),
            ap50: mean(1),
            ap75: mean(2),
            ap_small: stat(3),
            ap_medium: stat(4),
            ap_large: stat(5),
            ar1: mean(6),
            ar10: mean(7),
            ar100: mean(8),
            ar_small: stat(9),
            ar_medium: stat(10),
            ar_large: stat(11),
            images: self.images.iter().filter(|image| counted(image)).count(),
            objects: self.objects().filter(|(image, _)| counted(image)).count(),
            per_class: self.per_class(&evaluation, counted),
        })
    }

    /// The objects to find, each with its image.
    fn objects(&self) -> impl Iterator<Item = (&ImageTruth, &Truth)> {
        let all =
            self.images.iter().flat_map(|image| image.objects.iter().map(move |object| (image, object)));
        all.filter(|(_, object)| !object.listed.crowd)
    }

    /// The objects of an image in hotcoco's terms.
    fn truth(&self, image: &ImageTruth) -> Result<Vec<Annotation>> {
        let annotation = |object: &Truth| annotation(object, &image.record, self.overlap);
        let all: Result<_, String> = image.objects.iter().map(annotation).collect();
        all.map_err(|reason| Error::record(&self.path, format!("image {}", image.record.id), reason))
    }

    fn per_class(
        &self,
        evaluation: &hotcoco::COCOeval,
        counted: impl Fn(&ImageTruth) -> bool,
    ) -> Vec<ClassAp> {
        let mut objects = vec![0; self.classes.len()];
        for (_, object) in self.objects().filter(|(image, _)| counted(image)) {
            objects[object.slot] += 1;
        }
        let params = &evaluation.params;
        let (area, dets) = (params.all_area_idx(), params.max_det_idx());
        let precision = |slot: usize, thresholds: &[usize]| {
            let table = evaluation.accumulated()?;
            let k = table.cat_ids.iter().position(|&id| id == slot as u64)?;
            let points = thresholds.iter().flat_map(|&t| (0..table.shape.r).map(move |r| (t, r)));
            let values = points.map(|(t, r)| table.precision[table.precision_idx(t, r, k, area, dets)]);
            let (sum, n) = values.filter(|&v| v >= 0.0).fold((0.0, 0), |(sum, n), v| (sum + v, n + 1));
            (n > 0).then(|| sum / f64::from(n))
        };
        let all: Vec<usize> = (0..params.iou_thrs.len()).collect();
        let class = |(slot, class): (usize, &super::class_match::MatchedClass)| ClassAp {
            name: class.name.clone(),
            ap: precision(slot, &all),
            ap50: precision(slot, &all[..1]),
            objects: objects[slot],
        };
        self.classes.matched.iter().enumerate().map(class).collect()
    }

    /// Mask or box of a detection in hotcoco's terms.
    fn region(&self, region: &Region, image: &ImageRecord) -> Result<Geometry, String> {
        let size = [image.height, image.width];
        let runs = match (region, self.overlap) {
            (Region::Box(bbox), Overlap::Boxes) => return Ok((None, Some(*bbox))),
            (Region::Mask(mask), Overlap::Masks) => {
                check_size([mask.height(), mask.width()], size)?;
                rle::run_lengths(mask)
            }
            (Region::Rle { size: found, counts }, Overlap::Masks) => {
                check_size(*found, size)?;
                checked_runs(rle::decompress(counts).map_err(|e| e.to_string())?, size)?
            }
            (Region::Box(_), Overlap::Masks) => return Err("a box where masks are compared".into()),
            (_, Overlap::Boxes) => return Err("a mask where boxes are compared".into()),
        };
        Ok((Some(uncompressed(runs, size)), None))
    }
}

/// Mask and box of an object; the one that is compared is there.
type Geometry = (Option<Segmentation>, Option<[f64; 4]>);

fn stream(overlap: Overlap, classes: &ClassMatch) -> Result<StreamingEval> {
    let kind = match overlap {
        Overlap::Masks => IouType::Segm,
        Overlap::Boxes => IouType::Bbox,
    };
    let category = |(slot, name): (usize, String)| Category { id: slot as u64, name, ..Category::default() };
    let categories = classes.matched.iter().map(|c| c.name.clone()).enumerate().map(category).collect();
    StreamingEval::new(Params::new(kind), EvalMode::Coco, categories).map_err(|e| Error::usage(e.to_string()))
}

/// An object in hotcoco's terms, with its box or its pixels: what is compared.
fn annotation(object: &Truth, image: &ImageRecord, overlap: Overlap) -> Result<Annotation, String> {
    let listed = &object.listed;
    let (segmentation, bbox) = match overlap {
        Overlap::Boxes => (None, listed.bbox),
        Overlap::Masks => {
            let runs = listed.shape.runs(image.height, image.width)?;
            (Some(uncompressed(runs, [image.height, image.width])), None)
        }
    };
    Ok(Annotation {
        image_id: image.id,
        category_id: object.slot as u64,
        segmentation,
        bbox,
        area: Some(listed.area),
        iscrowd: listed.crowd,
        ..Annotation::default()
    })
}

fn check_size(found: [usize; 2], image: [usize; 2]) -> Result<(), String> {
    if found == image {
        return Ok(());
    }
    Err(format!("the mask is {} x {}, the image {} x {}", found[0], found[1], image[0], image[1]))
}

/// The runs, if they cover the image.
fn checked_runs(runs: Vec<u32>, [height, width]: [usize; 2]) -> Result<Vec<u32>, String> {
    let total: u64 = runs.iter().map(|&run| u64::from(run)).sum();
    match total == (height * width) as u64 {
        true => Ok(runs),
        false => {
            Err(format!("the run lengths add up to {total}, not to {height} x {width} = {}", height * width))
        }
    }
}

fn uncompressed(counts: Vec<u32>, size: [usize; 2]) -> Segmentation {
    Segmentation::UncompressedRle { size: size.map(|side| side as u32), counts }
}
