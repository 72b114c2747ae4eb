//! COCO panoptic annotations: a JSON list of segments, and a PNG whose pixels hold their ids (0 = void; see
//! [`labels::ids`]).

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use image::GrayImage;
use rayon::prelude::*;
use serde_json::value::RawValue;

use super::dataset::{Dataset, Entry, IGNORE, Label, Object};
use super::json::{CocoFile, Record};
use super::labels;
use super::mask::Mask;
use super::text;
use super::warning::Warnings;
use crate::error::{Error, Result};
use crate::image::classes::Class;
use crate::image::palette;

/// Largest id that a PNG can hold.
const MAX_ID: u64 = (1 << 24) - 1;
/// Annotations that are parsed before they are judged.
const AT_A_TIME: usize = 1 << 12;

/// A segment of one image.
#[derive(Clone, Copy, Debug)]
pub(in crate::train) struct Segment {
    /// Its pixel value.
    pub id: u32,
    /// Its class index.
    pub class: usize,
    pub crowd: bool,
}

/// Reads an annotation file whose PNGs lie in `masks`.
pub(in crate::train) fn read(path: &Path, masks: &Path) -> Result<Dataset> {
    let text = text::read(path)?;
    let file = CocoFile::new(path, &text)?;
    let (classes, things, class_of) = classes(&file)?;
    let mut warnings = Warnings::default();
    let mut labels: Vec<Option<(PathBuf, Vec<Segment>)>> = file.images.iter().map(|_| None).collect();
    // Parsed in parallel, judged in order: the first bad record is the one reported.
    for (part, records) in file.annotations()?.chunks(AT_A_TIME).enumerate() {
        let parse = |(i, raw)| parse(&file, part * AT_A_TIME + i, raw, masks, &class_of);
        let parsed: Vec<_> = records.par_iter().copied().enumerate().map(parse).collect();
        for outcome in parsed {
            let Parsed { image, name, png, segments, crowds } = outcome?;
            if labels[image].is_some() {
                return Err(Error::record(path, name, "the image has two annotations"));
            }
            for crowd in crowds {
                warnings.add("crowds are not learnt, and neither hit nor missed", &crowd);
            }
            labels[image] = Some((png, segments));
        }
    }
    let mut entries = Vec::with_capacity(file.images.len());
    for (image, label) in file.images.into_iter().zip(labels) {
        let Some((png, segments)) = label else {
            warnings.add("images without an annotation were left out", &format!("image {}", image.id));
            continue;
        };
        entries.push(Entry::listed(image, Label::Panoptic { png, segments }));
    }
    if entries.is_empty() {
        return Err(Error::data(path, "no image has an annotation"));
    }
    Ok(Dataset { source: path.to_path_buf(), classes, things, entries, labels: None, warnings })
}

/// One annotation.
struct Parsed {
    image: usize,
    name: String,
    png: PathBuf,
    /// Ascending by id.
    segments: Vec<Segment>,
    /// Names of those that are crowds.
    crowds: Vec<String>,
}

fn parse(file: &CocoFile, index: usize, raw: &RawValue, masks: &Path, class_of: &[usize]) -> Result<Parsed> {
    let (image, record) = file.annotation(index, raw)?;
    if record.optional("segments_info").is_none() {
        return Err(record.refuse_for("missing field `segments_info`: this is no panoptic file"));
    }
    let png = masks.join(record.text("file_name")?);
    let list: Vec<&RawValue> = serde_json::from_str(record.need("segments_info")?)
        .map_err(|_| record.refuse("segments_info", "a list of segments"))?;
    let (mut segments, mut ids) = (Vec::with_capacity(list.len()), HashSet::new());
    let mut crowds = Vec::new();
    for (i, raw) in list.into_iter().enumerate() {
        let mut segment = Record::new(file.path, "segments_info", i, raw)?;
        segment.name = format!("{}: segments_info[{i}]", record.name);
        let id = segment.whole("id")?;
        if id == 0 || id > MAX_ID {
            return Err(segment.refuse("id", "a number from 1 to 16777215 (0 is void)"));
        }
        segment.name = format!("{}: segment {id}", record.name);
        if !ids.insert(id) {
            return Err(segment.refuse_for("this id occurs twice"));
        }
        let class = class_of[file.category(&segment, "category_id")?];
        let crowd = segment.flag("iscrowd")?.unwrap_or(false);
        segments.push(Segment { id: id as u32, class, crowd });
        if crowd {
            crowds.push(segment.name);
        }
    }
    segments.sort_by_key(|s| s.id);
    Ok(Parsed { image, name: record.name, png, segments, crowds })
}

/// Things by ascending id, then stuff by ascending id; the number of things; and the class of each category
/// of the file.
fn classes(file: &CocoFile) -> Result<(Vec<Class>, usize, Vec<usize>)> {
    let mut order: Vec<(usize, bool)> = Vec::with_capacity(file.categories.len());
    for (i, c) in file.categories.iter().enumerate() {
        let Some(thing) = c.is_thing else {
            let name = format!("category {} `{}`", c.id, c.name);
            return Err(Error::record(file.path, name, "missing field `isthing`"));
        };
        order.push((i, thing));
    }
    order.sort_by_key(|&(_, thing)| !thing);
    let mut class_of = vec![0; order.len()];
    let class = |(index, &(category, is_thing)): (usize, &(usize, bool))| {
        class_of[category] = index;
        let category = &file.categories[category];
        let (id, name) = (category.id, category.name.clone().into());
        Class { id, name, is_thing, colour: palette::distinct(index) }
    };
    let classes: Vec<Class> = order.iter().enumerate().map(class).collect();
    let things = classes.iter().filter(|c| c.is_thing).count();
    Ok((classes, things, class_of))
}

/// The segment ids of the PNG of an image of `size` (height, width), row by row.
///
/// # Errors
/// As [`labels::ids`]; [`Error::Data`] if it has another size, or holds an id that is no segment's.
/// `segments` ascend by id.
pub(in crate::train) fn ids(png: &Path, segments: &[Segment], size: (usize, usize)) -> Result<Vec<u32>> {
    let map = labels::ids(png)?;
    check_size(png, (map.height, map.width), size)?;
    let mut last = 0;
    for (at, &id) in map.values.iter().enumerate() {
        if id != last && id != 0 && segments.binary_search_by_key(&id, |s| s.id).is_err() {
            let count = map.values.iter().filter(|&&other| other == id).count();
            let place = format!("pixel ({}, {})", at % map.width, at / map.width);
            let reason = format!("segment id {id} ({count} pixels) is not in the annotation");
            return Err(Error::record(png, place, reason));
        }
        last = id;
    }
    Ok(map.values)
}

/// Refuses a label image that is not as large as its photo; sizes are (height, width).
pub(in crate::train) fn check_size(png: &Path, found: (usize, usize), size: (usize, usize)) -> Result<()> {
    if found == size {
        return Ok(());
    }
    let reason = format!("is {} x {} pixels, but its photo is {} x {}", found.1, found.0, size.1, size.0);
    Err(Error::data(png, reason))
}

/// The labels of one image.
pub(super) struct Labels {
    pub objects: Vec<Object>,
    pub semantic: GrayImage,
}

/// Reads the PNG of an image of `size` (height, width). `segments` ascend by id.
pub(super) fn load(png: &Path, segments: &[Segment], size: (usize, usize), things: usize) -> Result<Labels> {
    let (height, width) = size;
    let ids = ids(png, segments, size)?;
    // One box a segment: left, top, right, bottom.
    let mut boxes = vec![[usize::MAX, usize::MAX, 0, 0]; segments.len()];
    let mut semantic = vec![IGNORE; height * width];
    let mut owner: Vec<Option<u32>> = vec![None; height * width];
    let (mut last_id, mut last) = (0, None);
    for (at, &id) in ids.iter().enumerate() {
        if id != last_id {
            last = segments.binary_search_by_key(&id, |s| s.id).ok();
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
    for (i, (segment, [left, top, right, bottom])) in segments.iter().zip(boxes).enumerate() {
        if right > 0 && segment.class < things && !segment.crowd {
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
    Ok(Labels { objects, semantic })
}
