//! PNGs whose samples are indices: grey of 1 to 16 bits, or a palette of which the positions count, not the colours.

use crate::error::{Error, Result};
use crate::image::rle::MAX_PIXELS;
use png::{BitDepth, ColorType, Decoder, Transformations};
use std::fs::File;
use std::io::BufReader;
use std::path::Path;

/// Indices of the pixels, row by row.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IndexMap {
    /// Number of rows.
    pub height: usize,
    /// Number of columns.
    pub width: usize,
    /// One index a pixel.
    pub values: Vec<u16>,
}

/// Reads a PNG of indices.
///
/// # Errors
/// [`Error::Io`] if the file cannot be read; [`Error::Image`] if it is no PNG, damaged, too large or in colour.
pub fn read(path: &Path) -> Result<IndexMap> {
    let file = File::open(path).map_err(|e| Error::io(path, e))?;
    let damaged = |e: png::DecodingError| Error::image(path, format!("not a sound PNG: {e}"));
    let mut decoder = Decoder::new(BufReader::new(file));
    decoder.set_transformations(Transformations::IDENTITY);
    let mut reader = decoder.read_info().map_err(damaged)?;
    let (color, depth) = reader.output_color_type();
    if !matches!(color, ColorType::Grayscale | ColorType::Indexed) {
        return Err(Error::image(
            path,
            format!("{color:?} samples where class indices belong: grey or a palette"),
        ));
    }
    let (width, height) = (reader.info().width as usize, reader.info().height as usize);
    if width.saturating_mul(height) > MAX_PIXELS {
        return Err(Error::image(
            path,
            format!("{width} x {height} pixels: at most {MAX_PIXELS} are accepted"),
        ));
    }
    let bytes = reader.output_buffer_size().ok_or_else(|| Error::image(path, "the image is too large"))?;
    let mut data = vec![0; bytes];
    let frame = reader.next_frame(&mut data).map_err(damaged)?;
    let mut values = Vec::with_capacity(width * height);
    for row in data.chunks_exact(frame.line_size).take(height) {
        match depth {
            BitDepth::Sixteen => {
                values.extend(row.as_chunks::<2>().0[..width].iter().map(|&two| u16::from_be_bytes(two)));
            }
            BitDepth::Eight => values.extend(row[..width].iter().map(|&byte| u16::from(byte))),
            BitDepth::One | BitDepth::Two | BitDepth::Four => {
                let bits = depth as usize;
                let sample = |x: usize| row[x * bits / 8] >> (8 - bits - x * bits % 8) & ((1 << bits) - 1);
                values.extend((0..width).map(|x| u16::from(sample(x))));
            }
        }
    }
    Ok(IndexMap { height, width, values })
}
