//! COCO instance annotations: polygons and run lengths, compressed or not.
//!
//! Every record is checked here, and its geometry kept as a [`Shape`]: pixels are made when an image is
//! loaded.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use rayon::prelude::*;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::dataset::{Dataset, Entry, Label, ListedObject};
use super::json::{CocoFile, Record};
use super::mask;
use super::shape::{Shape, has_pixel};
use super::text;
use super::warning::{Warnings, list};
use crate::error::{Error, Result};
use crate::image::classes::Class;
use crate::image::{palette, rle};

/// Coordinates beyond this are a damaged file, not an object at the border.
const MAX_COORDINATE: f64 = 1e6;
/// Polygons may leave the image by this much without a warning: annotators click on the border.
const BORDER: f64 = 1.0;
/// Longest outline of an object, in pixels: what is drawn takes memory by its length, and a real outline is
/// far shorter than its image has pixels.
const MAX_OUTLINE: f64 = (1 << 22) as f64;
/// Annotations that are parsed before they are judged: what is held of them meanwhile does not grow with the
/// file.
const AT_A_TIME: usize = 1 << 14;

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

/// One annotation.
struct Parsed {
    image: usize,
    name: String,
    id: Option<u64>,
    /// `None` if it is of no wanted class or has no pixel.
    object: Option<ListedObject>,
    oddities: Vec<&'static str>,
}

/// Reads an annotation file. `wanted` names the categories that become classes, in this order; all by
/// ascending id if `None`. With `strict` a polygon without an area is an error.
pub(in crate::train) fn read(path: &Path, wanted: Option<&[String]>, strict: bool) -> Result<Dataset> {
    let text = text::read(path)?;
    let file = CocoFile::new(path, &text)?;
    let chosen = chosen(&file, wanted)?;
    let class_of: HashMap<usize, usize> = chosen.iter().enumerate().map(|(i, &c)| (c, i)).collect();
    if class_of.len() < chosen.len() {
        return Err(Error::data(path, "the list of wanted classes names a class twice"));
    }
    let reader = Reader { file: &file, class_of: &class_of, strict };

    let mut warnings = Warnings::default();
    let mut objects: Vec<Vec<ListedObject>> = file.images.iter().map(|_| Vec::new()).collect();
    let mut ids = HashSet::new();
    // Parsed in parallel, judged in order: the first bad record is the one reported.
    for (part, records) in file.annotations()?.chunks(AT_A_TIME).enumerate() {
        let numbered = records.par_iter().enumerate();
        let parsed: Vec<_> = numbered.map(|(i, raw)| reader.parse(part * AT_A_TIME + i, raw)).collect();
        for outcome in parsed {
            let parsed = outcome?;
            if parsed.id.is_some_and(|id| !ids.insert(id)) {
                warnings.add("ids of annotations occur twice, and are not used", &parsed.name);
            }
            for what in parsed.oddities {
                warnings.add(what, &parsed.name);
            }
            objects[parsed.image].extend(parsed.object);
        }
    }
    let classes: Vec<Class> = chosen
        .iter()
        .enumerate()
        .map(|(i, &c)| Class {
            id: file.categories[c].id,
            name: file.categories[c].name.clone().into(),
            is_thing: true,
            colour: palette::distinct(i),
        })
        .collect();
    let mut present = vec![false; classes.len()];
    objects.iter().flatten().filter(|o| !o.crowd).for_each(|o| present[o.class] = true);
    let absent = classes.iter().zip(&present).filter(|(_, present)| !**present);
    warnings.classes("classes without an object", absent.map(|(class, _)| &*class.name));
    let entries = file.images.into_iter().zip(objects);
    let entries =
        entries.map(|(image, objects)| Entry::listed(image, Label::Objects(objects.into()))).collect();
    let things = classes.len();
    Ok(Dataset { source: path.to_path_buf(), things, classes, entries, labels: None, warnings })
}

/// Positions of the categories that become classes.
fn chosen(file: &CocoFile, wanted: Option<&[String]>) -> Result<Vec<usize>> {
    let Some(names) = wanted else { return Ok((0..file.categories.len()).collect()) };
    if names.is_empty() {
        return Err(Error::data(file.path, "the list of wanted classes is empty"));
    }
    let position = |name: &String| {
        file.categories.iter().position(|c| c.name == *name).ok_or_else(|| {
            let known: Vec<&str> = file.categories.iter().map(|c| c.name.as_str()).collect();
            Error::data(file.path, format!("no category `{name}` (there are: {})", list(&known)))
        })
    };
    names.iter().map(position).collect()
}

struct Reader<'a> {
    file: &'a CocoFile<'a>,
    class_of: &'a HashMap<usize, usize>,
    strict: bool,
}

impl<'a> Reader<'a> {
    fn parse(&self, index: usize, raw: &'a RawValue) -> Result<Parsed> {
        let (image, record) = self.file.annotation(index, raw)?;
        if record.optional("segments_info").is_some() {
            return Err(record.refuse_for(
                "has `segments_info`: this is a panoptic file, which needs its folder of PNGs (--panoptic-dir, or format \
                 coco_panoptic)",
            ));
        }
        let category = self.file.category(&record, "category_id")?;
        let crowd = record.flag("iscrowd")?.unwrap_or(false);
        let id = record.optional("id").map(|_| record.whole("id")).transpose()?;
        let (height, width) = (self.file.images[image].height, self.file.images[image].width);
        let mut oddities = Vec::new();
        let (shape, has_pixel) = self.shape(&record, height, width, &mut oddities)?;
        let mut parsed = Parsed { image, id, object: None, oddities, name: record.name.clone() };
        // Crowds and what is of no wanted class are checked like everything else.
        let Some(&class) = self.class_of.get(&category) else { return Ok(parsed) };
        if crowd {
            parsed.oddities.push("crowds are not learnt, and neither hit nor missed");
        } else if !has_pixel {
            parsed.oddities.push("annotations that cover no pixel were dropped");
            return Ok(parsed);
        }
        // Area and box decide nothing about the mask: what is odd about them costs no annotation.
        let number = |text: &str| text.parse::<f64>().ok().filter(|v| v.is_finite());
        let area = record.optional("area").and_then(number);
        let bbox = record.optional("bbox").and_then(|text| serde_json::from_str(text).ok());
        let area = match area {
            Some(area) => area,
            None => {
                let runs = shape.runs(height, width).map_err(|reason| record.refuse_for(reason))?;
                mask::area(&runs) as f64
            }
        };
        parsed.object = Some(ListedObject { class, crowd, area, bbox, shape });
        Ok(parsed)
    }

    /// The geometry of a record, and whether it has a pixel.
    fn shape(
        &self,
        record: &Record,
        height: usize,
        width: usize,
        oddities: &mut Vec<&'static str>,
    ) -> Result<(Shape, bool)> {
        const NEEDED: &str = "masks are needed, boxes alone do not do";
        let Some(text) = record.optional("segmentation") else {
            return Err(record.refuse_for(format!("has no `segmentation`: {NEEDED}")));
        };
        let shape = if text.starts_with('[') {
            let shape = "a list of polygons, each a list x, y, x, y, ... of numbers,";
            let polygons: Vec<Vec<f64>> = serde_json::from_str(text).map_err(|_| {
                let flat = serde_json::from_str::<Vec<f64>>(text).is_ok();
                let hint = " (this is one polygon without the list around it)";
                record.refuse("segmentation", &format!("{shape}{}", if flat { hint } else { "" }))
            })?;
            if polygons.is_empty() {
                return Err(record.refuse_for(format!("`segmentation` is an empty list: {NEEDED}")));
            }
            self.polygons(polygons, height, width, oddities).and_then(|polygons| {
                Ok((Shape::of_polygons(&polygons), has_pixel(&polygons, height, width)?))
            })
        } else if text.starts_with('{') {
            let rle: Rle = serde_json::from_str(text).map_err(|_| {
                record.refuse("segmentation", "run lengths with `size` [height, width] and `counts`")
            })?;
            rle_runs(rle, height, width).map(|runs| (Shape::of_runs(&runs), mask::area(&runs) > 0))
        } else {
            return Err(record.refuse("segmentation", "a list of polygons, or run lengths,"));
        };
        shape.map_err(|reason| record.refuse_for(format!("`segmentation`: {reason}")))
    }

    /// The polygons of one object that have an area.
    fn polygons(
        &self,
        mut polygons: Vec<Vec<f64>>,
        height: usize,
        width: usize,
        oddities: &mut Vec<&'static str>,
    ) -> Result<Vec<Vec<f64>>, String> {
        for (i, xy) in polygons.iter().enumerate() {
            let few = xy.len() < 6;
            if xy.len() % 2 != 0 || (few && self.strict) {
                let needed = "an even number, and at least three points, are needed";
                return Err(format!("polygon {i} has {} coordinates: {needed}", xy.len()));
            }
            if let Some(v) = xy.iter().find(|v| v.abs() > MAX_COORDINATE) {
                return Err(format!("polygon {i} has the coordinate {v}, far outside any image"));
            }
        }
        let length: f64 = polygons.iter().map(|xy| outline(xy, (height + width) as f64)).sum();
        if length > MAX_OUTLINE {
            return Err(format!(
                "outlines of {length:.0} pixels in all, of an image of {width} x {height}: at most {MAX_OUTLINE} are accepted"
            ));
        }
        let all = polygons.len();
        polygons.retain(|xy| xy.len() >= 6);
        if polygons.len() < all {
            oddities.push("polygons of one or two points were dropped (strict refuses them)");
        }
        let beyond = |v: f64, side: usize| v < -BORDER || v > side as f64 + BORDER;
        let outside = |&[x, y]: &[f64; 2]| beyond(x, width) || beyond(y, height);
        if polygons.iter().any(|xy| xy.as_chunks::<2>().0.iter().any(outside)) {
            oddities.push("masks partly outside their image were clipped");
        }
        Ok(polygons)
    }
}

/// Length of a closed polygon, by the longer of both directions. Of an edge no more than `most` counts: what
/// lies outside of the image is not drawn.
fn outline(xy: &[f64], most: f64) -> f64 {
    let points = xy.as_chunks::<2>().0;
    let next = points.iter().cycle().skip(1);
    points.iter().zip(next).map(|([x, y], [u, v])| (x - u).abs().max((y - v).abs()).min(most)).sum()
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
