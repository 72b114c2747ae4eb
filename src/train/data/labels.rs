//! Label images: PNGs whose samples are numbers, not colours. They are read at full depth, never as photos.

use std::io::Cursor;
use std::path::Path;

use png::{BitDepth, ColorType, Decoder, Transformations};

use crate::error::{Error, Result};
use crate::image::decode::{Limits, read_file};
use crate::image::rle::MAX_PIXELS;

/// Numbers of the pixels of a label image, row by row.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelMap {
    /// Number of rows.
    pub height: usize,
    /// Number of columns.
    pub width: usize,
    /// One number a pixel.
    pub values: Vec<u32>,
}

/// Reads class indices: grey of 1 to 16 bits, or a palette of which the positions count, not the colours.
///
/// # Errors
/// [`Error::Io`] if the file cannot be read; [`Error::Image`] if it is damaged, too large, a JPEG, or in
/// colour.
pub fn indices(path: &Path) -> Result<LabelMap> {
    let (map, colour) = read(path)?;
    match colour {
        None => Ok(map),
        Some(colour) => Err(Error::image(
            path,
            format!("{colour} samples where class indices belong: one grey or palette sample a pixel"),
        )),
    }
}

/// Reads segment ids: R + 256 G + 65536 B as COCO has it, or the sample itself in grey (up to 16 bits, as
/// Cityscapes and labelme have it) and palette images. Alpha is dropped.
///
/// # Errors
/// As [`indices`], but that colour of 8 bits is what is expected.
pub fn ids(path: &Path) -> Result<LabelMap> {
    read(path).map(|(map, _)| map)
}

/// The numbers, and the kind of samples if they are colours.
fn read(path: &Path) -> Result<(LabelMap, Option<String>)> {
    let bytes = read_file(path, &Limits::default())?;
    if bytes.starts_with(&[0xff, 0xd8]) {
        let reason = "is a JPEG, which changes numbers: label images are stored as PNG";
        return Err(Error::image(path, reason));
    }
    let damaged = |e: png::DecodingError| Error::image(path, format!("not a readable PNG: {e}"));
    // No transformation: a palette's entries are numbers here, not colours.
    let mut decoder = Decoder::new(Cursor::new(bytes.as_slice()));
    decoder.set_transformations(Transformations::IDENTITY);
    let mut reader = decoder.read_info().map_err(damaged)?;
    let (color, depth) = reader.output_color_type();
    let (width, height) = (reader.info().width as usize, reader.info().height as usize);
    if width.saturating_mul(height) > MAX_PIXELS {
        let reason = format!("{width} x {height} pixels: at most {MAX_PIXELS} are accepted");
        return Err(Error::image(path, reason));
    }
    if depth == BitDepth::Sixteen && matches!(color, ColorType::Rgb | ColorType::Rgba) {
        let reason = "colours of 16 bits are no segment ids: R + 256 G + 65536 B of 8 bits each are, or grey";
        return Err(Error::image(path, reason));
    }
    let bytes = reader.output_buffer_size().ok_or_else(|| Error::image(path, "the image is too large"))?;
    let mut data = vec![0; bytes];
    let frame = reader.next_frame(&mut data).map_err(damaged)?;
    let mut values = Vec::with_capacity(width * height);
    for row in data.chunks_exact(frame.line_size.max(1)).take(height) {
        let samples = color.samples();
        match (color, depth) {
            (ColorType::Rgb | ColorType::Rgba, _) => {
                values.extend(row.chunks_exact(samples).take(width).map(|p| id([p[0], p[1], p[2]])));
            }
            (_, BitDepth::Sixteen) => {
                let sample = |p: &[u8]| u32::from(u16::from_be_bytes([p[0], p[1]]));
                values.extend(row.chunks_exact(2 * samples).take(width).map(sample));
            }
            (_, BitDepth::Eight) => {
                values.extend(row.chunks_exact(samples).take(width).map(|p| u32::from(p[0])));
            }
            (_, BitDepth::One | BitDepth::Two | BitDepth::Four) => {
                let bits = depth as usize;
                let sample = |x: usize| row[x * bits / 8] >> (8 - bits - x * bits % 8) & ((1 << bits) - 1);
                values.extend((0..width).map(|x| u32::from(sample(x))));
            }
        }
    }
    let grey = matches!(color, ColorType::Grayscale | ColorType::Indexed);
    Ok((LabelMap { height, width, values }, (!grey).then(|| format!("{color:?}"))))
}

fn id([r, g, b]: [u8; 3]) -> u32 {
    u32::from_le_bytes([r, g, b, 0])
}
