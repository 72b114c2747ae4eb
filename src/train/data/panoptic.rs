//! COCO panoptic annotations: a JSON list of segments, and a PNG whose pixels hold their ids (R + 256 G + 65536 B, 0 = void).

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use image::GrayImage;
use serde::Deserialize;

use super::dataset::{Dataset, Entry, IGNORE, Label, Object, Warnings};
use super::json::{self, Lists};
use super::mask::Mask;
use crate::error::{Error, Result};
use crate::image::classes::Class;
use crate::image::decode::{Limits, decode};
use crate::image::palette;

#[derive(Deserialize)]
struct Annotation {
    image_id: u64,
    file_name: String,
    segments_info: Vec<SegmentRecord>,
}

#[derive(Deserialize)]
struct SegmentRecord {
    id: u32,
    category_id: u32,
    #[serde(default)]
    iscrowd: u8,
}

/// A segment of one image.
#[derive(Clone, Copy, Debug)]
pub(super) struct Segment {
    /// Its pixel value.
    pub id: u32,
    /// Its class index.
    pub class: usize,
    pub crowd: bool,
}

/// Opens an annotation file.
pub(super) fn open(annotations: &Path, images: &Path, masks: &Path) -> Result<Dataset> {
    let path = annotations;
    let text = json::read(path)?;
    let lists: Lists = json::parse(path, &text)?;
    let (classes, things) = classes(path, json::categories(path, &lists.categories)?)?;
    let class_of: HashMap<u32, usize> = classes.iter().enumerate().map(|(i, c)| (c.id, i)).collect();
    let (listed, places) = json::images(path, &lists.images, images)?;

    let mut labels: Vec<Option<(PathBuf, Vec<Segment>)>> = listed.iter().map(|_| None).collect();
    for (i, raw) in lists.annotations.iter().enumerate() {
        let annotation: Annotation = json::record(path, "annotations", i, raw)?;
        let refuse = |reason: String| {
            Err(Error::record(path, format!("annotation of image {}", annotation.image_id), reason))
        };
        let Some(&place) = places.get(&annotation.image_id) else {
            return refuse("names an image that is not in the list `images`".into());
        };
        if labels[place].is_some() {
            return refuse("the image has two annotations".into());
        }
        let png = masks.join(&annotation.file_name);
        if !png.is_file() {
            return refuse(format!("the mask file {} does not exist", png.display()));
        }
        let mut segments = Vec::with_capacity(annotation.segments_info.len());
        let mut ids = HashSet::new();
        for segment in &annotation.segments_info {
            let Some(&class) = class_of.get(&segment.category_id) else {
                return refuse(format!(
                    "segment {}: category id {} is not in the list `categories`",
                    segment.id, segment.category_id
                ));
            };
            if segment.id == 0 || segment.id >= 1 << 24 {
                return refuse(format!("segment {}: ids lie between 1 and 16777215", segment.id));
            }
            if !ids.insert(segment.id) {
                return refuse(format!("segment {}: this id occurs twice", segment.id));
            }
            segments.push(Segment { id: segment.id, class, crowd: segment.iscrowd != 0 });
        }
        segments.sort_by_key(|s| s.id);
        labels[place] = Some((png, segments));
    }
    let mut warnings = Warnings::default();
    let mut entries = Vec::with_capacity(listed.len());
    for (image, label) in listed.into_iter().zip(labels) {
        let Some((png, segments)) = label else {
            warnings.add("images without an annotation were left out", &format!("image {}", image.id));
            continue;
        };
        let label = Label::Panoptic { png, segments };
        entries.push(Entry { id: image.id, image: image.file, size: Some(image.size), label });
    }
    if entries.is_empty() {
        return Err(Error::data(path, "no image has an annotation"));
    }
    Ok(Dataset { source: path.to_path_buf(), classes, things, entries, warnings })
}

/// Things by ascending id, then stuff by ascending id, and the number of things.
fn classes(path: &Path, categories: Vec<json::Category>) -> Result<(Vec<Class>, usize)> {
    let mut classes = Vec::with_capacity(categories.len());
    for c in categories {
        let Some(thing) = c.isthing else {
            let name = format!("category {} `{}`", c.id, c.name);
            return Err(Error::record(path, name, "missing field `isthing`"));
        };
        classes.push(Class { id: c.id, name: c.name.into(), is_thing: thing != 0, colour: [0; 3] });
    }
    classes.sort_by_key(|c| !c.is_thing);
    for (i, class) in classes.iter_mut().enumerate() {
        class.colour = palette::distinct(i);
    }
    let things = classes.iter().filter(|c| c.is_thing).count();
    Ok((classes, things))
}

/// The labels of one image.
pub(super) struct Labels {
    pub objects: Vec<Object>,
    pub semantic: GrayImage,
    /// Ids of segments that have no pixel.
    pub empty: Vec<u32>,
}

/// Reads the PNG of an image of `size` (height, width). `segments` ascend by id.
pub(super) fn load(png: &Path, segments: &[Segment], size: (usize, usize), things: usize) -> Result<Labels> {
    let ids = decode(png, &Limits::default())?;
    let (height, width) = (ids.height() as usize, ids.width() as usize);
    if (height, width) != size {
        let reason = format!("is {width} x {height} pixels, but its photo is {} x {}", size.1, size.0);
        return Err(Error::data(png, reason));
    }
    // One box a segment: left, top, right, bottom.
    let mut boxes = vec![[usize::MAX, usize::MAX, 0, 0]; segments.len()];
    let mut semantic = vec![IGNORE; height * width];
    let mut owner: Vec<Option<u32>> = vec![None; height * width];
    let (mut last_id, mut last) = (0, None);
    for (at, pixel) in ids.pixels().enumerate() {
        let id = u32::from_le_bytes([pixel[0], pixel[1], pixel[2], 0]);
        if id != last_id {
            last = match segments.binary_search_by_key(&id, |s| s.id) {
                Ok(found) => Some(found),
                Err(_) if id == 0 => None,
                Err(_) => {
                    let place = format!("pixel ({}, {})", at % width, at / width);
                    return Err(Error::record(
                        png,
                        place,
                        format!("segment id {id} is not in the annotation"),
                    ));
                }
            };
            last_id = id;
        }
        let Some(segment) = last else { continue };
        let (x, y) = (at % width, at / width);
        let [left, top, right, bottom] = boxes[segment];
        boxes[segment] = [left.min(x), top.min(y), right.max(x + 1), bottom.max(y + 1)];
        owner[at] = Some(segment as u32);
        if !segments[segment].crowd {
            semantic[at] = segments[segment].class as u8;
        }
    }
    let mut objects = Vec::new();
    let mut empty = Vec::new();
    for (i, (segment, [left, top, right, bottom])) in segments.iter().zip(boxes).enumerate() {
        if right == 0 {
            empty.push(segment.id);
        } else if segment.class < things && !segment.crowd {
            let mut mask = Mask::zeros(left..right, top..bottom);
            for (row, out) in mask.data.chunks_exact_mut(right - left).enumerate() {
                let owners = &owner[(top + row) * width + left..];
                for (out, &owner) in out.iter_mut().zip(owners) {
                    *out = u8::from(owner == Some(i as u32));
                }
            }
            objects.push(Object { class: segment.class, mask });
        }
    }
    let semantic = GrayImage::from_raw(width as u32, height as u32, semantic).expect("one byte a pixel");
    Ok(Labels { objects, semantic, empty })
}
