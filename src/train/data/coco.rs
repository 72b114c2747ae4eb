//! COCO instance annotations: polygons and run lengths, compressed or not.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use rayon::prelude::*;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::dataset::{Dataset, Entry, Label, ObjectRuns, Warnings};
use super::json::{self, ListedImage, Lists};
use super::{mask, polygon};
use crate::error::{Error, Result};
use crate::image::classes::Class;
use crate::image::{palette, rle};

/// Coordinates beyond this are a damaged file, not an object at the border.
const MAX_COORDINATE: f64 = 1e6;
/// Polygons may leave the image by this much without a warning: annotators click on the border.
const BORDER: f64 = 1.0;

#[derive(Deserialize)]
struct Annotation<'a> {
    id: Option<u64>,
    image_id: u64,
    category_id: u32,
    #[serde(default)]
    iscrowd: u8,
    #[serde(borrow)]
    segmentation: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Rle {
    size: [usize; 2],
    counts: Counts,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Counts {
    Compressed(String),
    Runs(Vec<u32>),
}

/// One annotation after rasterisation.
struct Parsed {
    image: usize,
    object: Option<ObjectRuns>,
    outside: bool,
}

/// Opens an annotation file. `wanted` names the categories that become classes, in this order; all by ascending id if
/// `None`.
pub(super) fn open(annotations: &Path, images: &Path, wanted: Option<&[String]>) -> Result<Dataset> {
    let path = annotations;
    let text = json::read(path)?;
    let lists: Lists = json::parse(path, &text)?;
    let categories = json::categories(path, &lists.categories)?;
    let (listed, places) = json::images(path, &lists.images, images)?;
    let chosen: Vec<&json::Category> = match wanted {
        None => categories.iter().collect(),
        Some(names) => names
            .iter()
            .map(|name| {
                categories.iter().find(|c| c.name == *name).ok_or_else(|| {
                    let known: Vec<&str> = categories.iter().map(|c| c.name.as_str()).collect();
                    Error::data(path, format!("no category `{name}` (there are: {})", known.join(", ")))
                })
            })
            .collect::<Result<_>>()?,
    };
    if chosen.is_empty() {
        return Err(Error::data(path, "the list of wanted classes is empty"));
    }
    let known: HashSet<u32> = categories.iter().map(|c| c.id).collect();
    let class_of: HashMap<u32, usize> = chosen.iter().enumerate().map(|(i, c)| (c.id, i)).collect();
    if class_of.len() < chosen.len() {
        return Err(Error::data(path, "the list of wanted classes names a class twice"));
    }
    let reader = Reader { path, listed: &listed, places: &places, known: &known, class_of: &class_of };

    let mut warnings = Warnings::default();
    let mut objects: Vec<Vec<ObjectRuns>> = listed.iter().map(|_| Vec::new()).collect();
    let mut ids = HashSet::new();
    // Parsed in parallel, judged in order: the first bad record is the one reported.
    let parsed: Vec<_> =
        lists.annotations.par_iter().enumerate().map(|(i, raw)| reader.parse(i, raw)).collect();
    for outcome in parsed {
        let (name, id, parsed) = outcome?;
        if let Some(id) = id {
            json::unique(&mut ids, path, "annotation", id)?;
        }
        let Some(parsed) = parsed else { continue };
        if parsed.outside {
            warnings.add("masks partly outside their image were clipped", &name);
        }
        match parsed.object {
            Some(object) => objects[parsed.image].push(object),
            None => warnings.add("annotations that cover no pixel were dropped", &name),
        }
    }
    if objects.iter().all(Vec::is_empty) {
        warnings.add("no object of the wanted classes in the whole file", &path.display().to_string());
    }
    let entries = listed
        .into_iter()
        .zip(objects)
        .map(|(image, objects)| Entry {
            id: image.id,
            image: image.file,
            size: Some(image.size),
            label: Label::Objects(objects),
        })
        .collect();
    let classes: Vec<Class> = chosen
        .iter()
        .enumerate()
        .map(|(i, c)| Class {
            id: c.id,
            name: c.name.clone().into(),
            is_thing: true,
            colour: palette::distinct(i),
        })
        .collect();
    Ok(Dataset { source: path.to_path_buf(), things: classes.len(), classes, entries, warnings })
}

struct Reader<'a> {
    path: &'a Path,
    listed: &'a [ListedImage],
    places: &'a HashMap<u64, usize>,
    known: &'a HashSet<u32>,
    class_of: &'a HashMap<u32, usize>,
}

impl Reader<'_> {
    /// The record's name for messages, its id, and what it holds unless it is a crowd or of no wanted class.
    fn parse(&self, index: usize, raw: &RawValue) -> Result<(String, Option<u64>, Option<Parsed>)> {
        let annotation: Annotation = json::record(self.path, "annotations", index, raw)?;
        let name = match annotation.id {
            Some(id) => format!("annotation {id} (image {})", annotation.image_id),
            None => format!("annotations[{index}] (image {})", annotation.image_id),
        };
        let refuse = |reason: String| Error::record(self.path, name.clone(), reason);
        let Some(&image) = self.places.get(&annotation.image_id) else {
            return Err(refuse("names an image that is not in the list `images`".into()));
        };
        if !self.known.contains(&annotation.category_id) {
            return Err(refuse(format!(
                "category id {} is not in the list `categories`",
                annotation.category_id
            )));
        }
        let (height, width) = self.listed[image].size;
        let segmentation = annotation.segmentation.map_or("null", RawValue::get);
        let (runs, outside) = if segmentation.starts_with('[') {
            let polygons: Vec<Vec<f64>> = serde_json::from_str(segmentation)
                .map_err(|_| refuse("the polygons are not lists of numbers".into()))?;
            polygon_runs(&polygons, height, width).map_err(refuse)?
        } else if segmentation.starts_with('{') {
            let rle: Rle = serde_json::from_str(segmentation)
                .map_err(|_| refuse("the run lengths need `size` [height, width] and `counts`".into()))?;
            (rle_runs(rle, height, width).map_err(refuse)?, false)
        } else {
            return Err(refuse("has no segmentation: masks are needed, boxes alone do not do".into()));
        };
        // Crowds are checked like everything else, but the losses of K-Net have no use for them.
        let Some(&class) = self.class_of.get(&annotation.category_id).filter(|_| annotation.iscrowd == 0)
        else {
            return Ok((name, annotation.id, None));
        };
        let object = (mask::area(&runs) > 0).then(|| ObjectRuns { class, runs: runs.into_boxed_slice() });
        Ok((name, annotation.id, Some(Parsed { image, object, outside })))
    }
}

/// The union of the polygons of one object, and whether one leaves the image.
fn polygon_runs(polygons: &[Vec<f64>], height: usize, width: usize) -> Result<(Vec<u32>, bool), String> {
    if polygons.is_empty() {
        return Err("the segmentation is empty: masks are needed, boxes alone do not do".into());
    }
    let mut outside = false;
    let mut parts = Vec::with_capacity(polygons.len());
    for (i, xy) in polygons.iter().enumerate() {
        if xy.len() < 6 || xy.len() % 2 != 0 {
            return Err(format!(
                "polygon {i} has {} coordinates: at least three points (x, y) are needed",
                xy.len()
            ));
        }
        if let Some(v) = xy.iter().find(|v| v.abs() > MAX_COORDINATE) {
            return Err(format!("polygon {i} has the coordinate {v}, far outside any image"));
        }
        let beyond = |v: f64, side: usize| v < -BORDER || v > side as f64 + BORDER;
        outside |= xy.as_chunks::<2>().0.iter().any(|&[x, y]| beyond(x, width) || beyond(y, height));
        parts.push(polygon::run_lengths(xy, height, width));
    }
    let runs = if parts.len() == 1 { parts.remove(0) } else { mask::union(&parts, height * width) };
    Ok((runs, outside))
}

fn rle_runs(rle: Rle, height: usize, width: usize) -> Result<Vec<u32>, String> {
    if rle.size != [height, width] {
        return Err(format!("the run lengths are of size {:?}, the image is [{height}, {width}]", rle.size));
    }
    let runs = match rle.counts {
        Counts::Compressed(text) => match rle::decompress(&text) {
            Ok(runs) => runs,
            Err(Error::Image { reason, .. }) => return Err(format!("malformed run lengths: {reason}")),
            Err(e) => return Err(e.to_string()),
        },
        Counts::Runs(runs) => runs,
    };
    let total: u64 = runs.iter().map(|&r| u64::from(r)).sum();
    if total != (height * width) as u64 {
        return Err(format!("the runs add up to {total}, not to {height} x {width} = {}", height * width));
    }
    Ok(runs)
}
