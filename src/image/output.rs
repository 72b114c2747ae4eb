//! Results in COCO's formats: instances as JSON with run lengths, panoptic maps as PNG with JSON.

use image::RgbImage;
use serde::{Deserialize, Serialize};

use super::bitmask::PixelBox;
use super::classes::Class;
use super::instance::{Instance, InstanceResult};
use super::panoptic::PanopticResult;
use super::semantic::SemanticResult;
use crate::error::{Error, Result};

/// The image that a result belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageRef<'a> {
    /// Number of the image in its data set.
    pub id: u64,
    /// File name of the photo.
    pub file_name: &'a str,
}

/// Run lengths of a mask.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rle {
    /// Height and width.
    pub size: [usize; 2],
    /// Compressed run lengths.
    pub counts: String,
}

/// One entry of a COCO result file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CocoInstance {
    /// Number of the image.
    pub image_id: u64,
    /// File name of the photo.
    pub file_name: String,
    /// Category id (not the class index).
    pub category_id: u32,
    /// Class name.
    pub category_name: String,
    /// Left, top, width, height in pixels, of [`Instance::bbox`].
    pub bbox: [usize; 4],
    /// Class score.
    pub score: f32,
    /// The mask.
    pub segmentation: Rle,
    /// Pixels of the mask.
    pub area: usize,
}

/// One entry of the list that COCO's tools take (`loadRes` of pycocotools). There is no box: with one, those
/// tools sort objects into small, medium and large by its area instead of the mask's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CocoResult {
    /// The image's id in the annotation file: a number, or a text where that has texts.
    pub image_id: serde_json::Value,
    /// The category's id in the annotation file.
    pub category_id: u32,
    /// The mask.
    pub segmentation: Rle,
    /// Class score.
    pub score: f32,
}

/// The instances as entries of one image in a list of results, best first. `category_of` gives for each class
/// of the model the category of the data set; instances of other classes are left out.
pub fn coco_results(
    result: &InstanceResult,
    image_id: &serde_json::Value,
    category_of: &[Option<u32>],
) -> Vec<CocoResult> {
    let entry = |instance: &Instance| {
        let category_id = category_of.get(instance.label).copied().flatten()?;
        let mask = result.mask(instance);
        let segmentation = Rle { size: [mask.height(), mask.width()], counts: mask.to_rle() };
        Some(CocoResult { image_id: image_id.clone(), category_id, segmentation, score: instance.score })
    };
    result.instances().iter().filter_map(entry).collect()
}

/// The instances as numbers of pixels, row by row: 1 for the best, 2 for the next (their order in
/// [`coco_instances`]), 0 for none. Where instances overlap, the better one is on top.
pub fn instance_numbers(result: &InstanceResult, (height, width): (usize, usize)) -> Vec<u16> {
    let mut numbers = vec![0; height * width];
    for (index, instance) in result.instances().iter().enumerate().rev() {
        let (mask, number) = (result.mask(instance), u16::try_from(index + 1).unwrap_or(u16::MAX));
        for (y, x) in mask.pixels() {
            numbers[y * width + x] = number;
        }
    }
    numbers
}

/// The instances of at least `min_score` as COCO results, best first.
///
/// # Errors
/// [`Error::Usage`] if `classes` lacks a class of the result.
pub fn coco_instances(
    result: &InstanceResult,
    image: ImageRef,
    classes: &[Class],
    min_score: f32,
) -> Result<Vec<CocoInstance>> {
    let kept = result.instances().iter().filter(|i| i.score >= min_score);
    kept.map(|instance| {
        let class = class(classes, instance.label)?;
        let mask = result.mask(instance);
        Ok(CocoInstance {
            image_id: image.id,
            file_name: image.file_name.into(),
            category_id: class.id,
            category_name: class.name.to_string(),
            bbox: edges(instance.bbox),
            score: instance.score,
            segmentation: Rle { size: [mask.height(), mask.width()], counts: mask.to_rle() },
            area: instance.area,
        })
    })
    .collect()
}

/// One segment of a COCO panoptic annotation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CocoSegment {
    /// Value of its pixels in the PNG; 0 is void.
    pub id: u32,
    /// Category id (not the class index).
    pub category_id: u32,
    /// Class name.
    pub category_name: String,
    /// True for things.
    pub isthing: bool,
    /// Class score.
    pub score: f32,
    /// Pixels of the segment.
    pub area: usize,
    /// Left, top, width, height in pixels.
    pub bbox: [usize; 4],
    /// Always 0: a prediction is never a crowd.
    pub iscrowd: u8,
}

/// The COCO panoptic annotation of one image.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CocoPanoptic {
    /// Number of the image.
    pub image_id: u64,
    /// File name of the panoptic PNG, as COCO has it.
    pub file_name: String,
    /// File name of the photo.
    pub image_file_name: String,
    /// The segments, in the order of their ids.
    pub segments_info: Vec<CocoSegment>,
}

/// A panoptic result as COCO's pair of an annotation and a PNG whose pixels are `id = R + 256 G + 65536 B`.
/// Segments are numbered from 1 (their values in the map may be 0, which COCO reserves for void). `png_name`
/// is the file the picture will be stored under.
///
/// # Errors
/// [`Error::Usage`] if `classes` lacks a class of the result.
pub fn coco_panoptic(
    result: &PanopticResult,
    image: ImageRef,
    png_name: &str,
    classes: &[Class],
) -> Result<(CocoPanoptic, RgbImage)> {
    let mut id_of = vec![0u32; result.trace.mask_area.len()];
    for (i, segment) in result.segments.iter().enumerate() {
        id_of[segment.query] = i as u32 + 1;
    }
    // Left, top, right, bottom of each segment.
    let mut bounds = vec![[usize::MAX, usize::MAX, 0, 0]; result.segments.len() + 1];
    let mut picture = RgbImage::new(result.width as u32, result.height as u32);
    for (at, (pixel, &query)) in picture.pixels_mut().zip(&result.trace.argmax_ids).enumerate() {
        let id = id_of[query as usize];
        let (y, x) = (at / result.width, at % result.width);
        let [left, top, right, bottom] = bounds[id as usize];
        bounds[id as usize] = [left.min(x), top.min(y), right.max(x), bottom.max(y)];
        let [r, g, b, _] = id.to_le_bytes();
        pixel.0 = [r, g, b];
    }
    let segments = result.segments.iter().zip(&bounds[1..]).enumerate();
    let segments_info = segments
        .map(|(i, (segment, &[left, top, right, bottom]))| {
            let class = class(classes, segment.category)?;
            Ok(CocoSegment {
                id: i as u32 + 1,
                category_id: class.id,
                category_name: class.name.to_string(),
                isthing: segment.is_thing,
                score: segment.score,
                area: segment.area,
                bbox: [left, top, right + 1 - left, bottom + 1 - top],
                iscrowd: 0,
            })
        })
        .collect::<Result<_>>()?;
    let annotation = CocoPanoptic {
        image_id: image.id,
        file_name: png_name.into(),
        image_file_name: image.file_name.into(),
        segments_info,
    };
    Ok((annotation, picture))
}

/// One class of a semantic map.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClassArea {
    /// Value of its pixels in the PNG.
    pub index: usize,
    /// Category id.
    pub category_id: u32,
    /// Class name.
    pub category_name: String,
    /// Pixels of the class.
    pub area: usize,
    /// Their share of the photo.
    pub share: f64,
}

/// The classes that have a pixel, the largest first.
///
/// # Errors
/// [`Error::Usage`] if `classes` lacks a class of the result.
pub fn class_areas(result: &SemanticResult, classes: &[Class]) -> Result<Vec<ClassArea>> {
    let entry = |(index, area): (usize, usize)| {
        let class = class(classes, index)?;
        let (category_id, category_name) = (class.id, class.name.to_string());
        let share = area as f64 / result.pixels().max(1) as f64;
        Ok(ClassArea { index, category_id, category_name, area, share })
    };
    result.present().into_iter().map(entry).collect()
}

fn class(classes: &[Class], index: usize) -> Result<&Class> {
    let missing = || Error::usage(format!("class {index} is not among the {} class names", classes.len()));
    classes.get(index).ok_or_else(missing)
}

fn edges(b: PixelBox) -> [usize; 4] {
    [b.x, b.y, b.width, b.height]
}
