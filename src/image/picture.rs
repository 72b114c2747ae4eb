//! Pictures that the program writes, and how it knows them again.

use std::io::Write;
use std::path::Path;

use image::RgbImage;
use png::{BitDepth, ColorType, Encoder};

use crate::error::{Error, Result};
use crate::fsio::atomic_write;

/// Keyword and text of the PNG chunk that every picture of this program has.
const MADE_BY: (&str, &str) = ("Software", "knet");

/// Writes an RGB picture as PNG, all or nothing.
///
/// # Errors
/// [`Error::Image`] if it cannot be encoded; [`Error::Io`].
pub fn write_rgb(path: &Path, picture: &RgbImage) -> Result<()> {
    let (width, height) = picture.dimensions();
    write(path, (width, height), ColorType::Rgb, BitDepth::Eight, picture.as_raw())
}

/// Writes numbers as a grey PNG of 16 bits, all or nothing. `values` are `height` rows of `width`.
///
/// # Errors
/// As [`write_rgb`].
pub fn write_numbers(path: &Path, (width, height): (u32, u32), values: &[u16]) -> Result<()> {
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_be_bytes()).collect();
    write(path, (width, height), ColorType::Grayscale, BitDepth::Sixteen, &bytes)
}

fn write(
    path: &Path,
    (width, height): (u32, u32),
    color: ColorType,
    depth: BitDepth,
    data: &[u8],
) -> Result<()> {
    let mut bytes = Vec::new();
    let mut encode = || -> Result<(), png::EncodingError> {
        let mut encoder = Encoder::new(&mut bytes, width, height);
        encoder.set_color(color);
        encoder.set_depth(depth);
        encoder.add_text_chunk(MADE_BY.0.into(), MADE_BY.1.into())?;
        let mut writer = encoder.write_header()?;
        writer.write_image_data(data)?;
        writer.finish()
    };
    encode().map_err(|e| Error::image(path, format!("cannot be encoded: {e}")))?;
    atomic_write(path, |out| out.write_all(&bytes))
}

/// Whether the file is a PNG that this program wrote.
pub fn is_own(path: &Path) -> bool {
    let Ok(file) = std::fs::File::open(path) else { return false };
    let reader = png::Decoder::new(std::io::BufReader::new(file)).read_info();
    reader.is_ok_and(|reader| {
        let texts = &reader.info().uncompressed_latin1_text;
        texts.iter().any(|text| (text.keyword.as_str(), text.text.as_str()) == MADE_BY)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_pictures_are_known_again_and_foreign_ones_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.png");
        let picture = RgbImage::from_fn(5, 3, |x, y| image::Rgb([x as u8, y as u8, 200]));
        write_rgb(&path, &picture).unwrap();
        assert!(is_own(&path));
        assert_eq!(image::open(&path).unwrap().to_rgb8(), picture);
        picture.save(&path).unwrap();
        assert!(!is_own(&path) && !is_own(folder.path()) && !is_own(&folder.path().join("none.png")));
        write_numbers(&path, (3, 1), &[0, 258, 65_535]).unwrap();
        assert!(is_own(&path));
        assert_eq!(image::open(&path).unwrap().to_luma16().into_raw(), [0, 258, 65_535]);
    }
}
