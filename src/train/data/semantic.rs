//! Semantic data sets: photos, and PNG files whose pixels are class indices (grey or palette, up to 8 bits).

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use image::GrayImage;
use serde::Deserialize;

use super::dataset::{Dataset, Entry, IGNORE, Label, Warnings};
use super::json;
use crate::error::{Error, Result};
use crate::image::classes::Class;
use crate::image::palette;

#[derive(Deserialize)]
struct ClassRecord {
    index: usize,
    name: String,
}

/// The stems that a list names, one a line; validation keeps to the same list.
///
/// # Errors
/// [`Error::Io`] if it cannot be read.
pub(in super::super) fn read_stems(list: &Path) -> Result<Vec<String>> {
    let text = std::fs::read_to_string(list).map_err(|e| Error::io(list, e))?;
    Ok(text.lines().map(str::trim).filter(|l| !l.is_empty()).map(String::from).collect())
}

/// Opens photos of `images` with masks of `masks`. The classes are the list `field` of the JSON file `classes`; `list`
/// names the stems to use.
pub(super) fn open(
    images: &Path,
    masks: &Path,
    classes: &Path,
    field: &str,
    list: Option<&Path>,
) -> Result<Dataset> {
    let (classes, ignore) = read_classes(classes, field)?;
    let stems = match list {
        Some(list) => read_stems(list)?,
        None => files(masks)?.into_iter().filter(|(_, f)| is_png(f)).map(|(stem, _)| stem).collect(),
    };
    let origin = list.unwrap_or(masks);
    if stems.is_empty() {
        return Err(Error::data(origin, "names no image"));
    }
    let photos: std::collections::HashMap<String, PathBuf> = files(images)?.into_iter().collect();
    let mut seen = std::collections::HashSet::new();
    let mut entries = Vec::with_capacity(stems.len());
    for (i, stem) in stems.iter().enumerate() {
        let refuse = |reason: String| Err(Error::record(origin, format!("image `{stem}`"), reason));
        if !seen.insert(stem) {
            return refuse("is named twice".into());
        }
        let Some(photo) = photos.get(stem) else {
            return refuse(format!("{} has no file of this stem", images.display()));
        };
        let png = masks.join(format!("{stem}.png"));
        if !png.is_file() {
            return refuse(format!("the mask file {} does not exist", png.display()));
        }
        let label = Label::Semantic { png, ignore };
        entries.push(Entry { id: i as u64, image: photo.clone(), size: None, label });
    }
    let warnings = Warnings::default();
    Ok(Dataset { source: origin.to_path_buf(), classes, things: 0, entries, warnings })
}

/// The classes and the value of unlabelled pixels.
fn read_classes(path: &Path, field: &str) -> Result<(Vec<Class>, u8)> {
    let text = json::read(path)?;
    let root: serde_json::Value = json::parse(path, &text)?;
    let ignore = match root.get("ignore_index") {
        None => IGNORE,
        Some(value) => value
            .as_u64()
            .and_then(|v| u8::try_from(v).ok())
            .ok_or_else(|| Error::data(path, format!("ignore_index {value} is not between 0 and 255")))?,
    };
    let list = root.get(field).and_then(|v| v.as_array()).filter(|l| !l.is_empty());
    let Some(list) = list else {
        return Err(Error::data(path, format!("has no list `{field}` of classes")));
    };
    let mut classes: Vec<Class> = Vec::with_capacity(list.len());
    for (i, value) in list.iter().enumerate() {
        let refuse = |reason: String| Error::record(path, format!("{field}[{i}]"), reason);
        let class = ClassRecord::deserialize(value).map_err(|e| refuse(e.to_string()))?;
        if class.index != i {
            return Err(refuse(format!(
                "index {} where {i} is expected: indices count up from 0",
                class.index
            )));
        }
        if classes.iter().any(|c| c.name == class.name) {
            return Err(refuse(format!("the name `{}` occurs twice", class.name)));
        }
        let colour = palette::distinct(i);
        classes.push(Class { id: i as u32, name: class.name.into(), is_thing: false, colour });
    }
    Ok((classes, ignore))
}

fn is_png(path: &Path) -> bool {
    path.extension().is_some_and(|e| e.eq_ignore_ascii_case("png"))
}

/// Stem and path of every file of a folder, by ascending stem.
fn files(folder: &Path) -> Result<Vec<(String, PathBuf)>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(|e| Error::io(folder, e))? {
        let path = entry.map_err(|e| Error::io(folder, e))?.path();
        if let Some(stem) = path.file_stem().and_then(|s| s.to_str()).filter(|_| path.is_file()) {
            files.push((stem.to_string(), path));
        }
    }
    files.sort();
    Ok(files)
}

/// Reads an index PNG of `size` (height, width): class indices below `classes`, [`IGNORE`] where the file says `ignore`.
pub(super) fn load(path: &Path, size: (usize, usize), classes: usize, ignore: u8) -> Result<GrayImage> {
    let damaged = |e: png::DecodingError| Error::data(path, format!("not a readable PNG: {e}"));
    let file = File::open(path).map_err(|e| Error::io(path, e))?;
    // No transformation: a palette's entries are indices here, not colours.
    let mut decoder = png::Decoder::new(BufReader::new(file));
    decoder.set_transformations(png::Transformations::IDENTITY);
    let mut reader = decoder.read_info().map_err(damaged)?;
    let info = reader.info();
    let (height, width) = (info.height as usize, info.width as usize);
    if (height, width) != size {
        let reason = format!("is {width} x {height} pixels, but its photo is {} x {}", size.1, size.0);
        return Err(Error::data(path, reason));
    }
    let bits = info.bit_depth as usize;
    if !matches!(info.color_type, png::ColorType::Grayscale | png::ColorType::Indexed) || bits > 8 {
        return Err(Error::data(
            path,
            format!(
                "{:?} samples of {bits} bits: an index PNG has one grey or palette byte a pixel",
                info.color_type
            ),
        ));
    }
    let row_bytes = reader.output_line_size(width as u32).unwrap_or(0);
    let mut packed = vec![0; row_bytes * height];
    reader.next_frame(&mut packed).map_err(damaged)?;
    let mut map = Vec::with_capacity(height * width);
    for (y, row) in packed.chunks_exact(row_bytes.max(1)).enumerate() {
        for x in 0..width {
            let shift = 8 - bits - x * bits % 8;
            let value = (row[x * bits / 8] >> shift) & (u16::MAX >> (16 - bits)) as u8;
            let index = if value == ignore { IGNORE } else { value };
            if index != IGNORE && usize::from(index) >= classes {
                let reason = format!("index {value}, but there are {classes} classes (0 to {})", classes - 1);
                return Err(Error::record(path, format!("pixel ({x}, {y})"), reason));
            }
            map.push(index);
        }
    }
    Ok(GrayImage::from_raw(width as u32, height as u32, map).expect("one byte a pixel"))
}
