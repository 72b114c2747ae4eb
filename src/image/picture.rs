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
    let (size, data) = (picture.dimensions(), picture.as_raw());
    write(path, &Picture { size, color: ColorType::Rgb, depth: BitDepth::Eight, data }, None)
}

/// Writes numbers as a grey PNG of 16 bits, all or nothing. `values` are `height` rows of `width`.
///
/// # Errors
/// As [`write_rgb`].
pub fn write_numbers(path: &Path, size: (u32, u32), values: &[u16]) -> Result<()> {
    let data: Vec<u8> = values.iter().flat_map(|value| value.to_be_bytes()).collect();
    let (color, depth) = (ColorType::Grayscale, BitDepth::Sixteen);
    write(path, &Picture { size, color, depth, data: &data }, None)
}

/// Writes indices of colours as a PNG with this palette, of 256 colours at most; with more, as a grey PNG of
/// 16 bits. `values` are `height` rows of `width`, each below `palette.len()`.
///
/// # Errors
/// As [`write_rgb`].
pub fn write_indexed(path: &Path, size: (u32, u32), values: &[u16], palette: &[[u8; 3]]) -> Result<()> {
    if palette.len() > 256 {
        return write_numbers(path, size, values);
    }
    let bytes: Vec<u8> = values.iter().map(|&value| value as u8).collect();
    let picture = Picture { size, color: ColorType::Indexed, depth: BitDepth::Eight, data: &bytes };
    write(path, &picture, Some(palette.as_flattened()))
}

/// What a PNG is made of.
struct Picture<'a> {
    size: (u32, u32),
    color: ColorType,
    depth: BitDepth,
    data: &'a [u8],
}

fn write(path: &Path, picture: &Picture<'_>, palette: Option<&[u8]>) -> Result<()> {
    let &Picture { size: (width, height), color, depth, data } = picture;
    let mut bytes = Vec::new();
    let mut encode = || -> Result<(), png::EncodingError> {
        let mut encoder = Encoder::new(&mut bytes, width, height);
        encoder.set_color(color);
        encoder.set_depth(depth);
        if let Some(palette) = palette {
            encoder.set_palette(palette);
        }
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
        let palette = [[1, 2, 3], [4, 5, 6]];
        write_indexed(&path, (2, 2), &[0, 1, 1, 0], &palette).unwrap();
        assert!(is_own(&path));
        let colours: Vec<[u8; 3]> =
            image::open(&path).unwrap().to_rgb8().pixels().map(|pixel| pixel.0).collect();
        assert_eq!(colours, [palette[0], palette[1], palette[1], palette[0]]);
        let reader = png::Decoder::new(std::io::BufReader::new(std::fs::File::open(&path).unwrap()));
        let reader = reader.read_info().unwrap();
        assert_eq!(reader.info().color_type, ColorType::Indexed);
        write_indexed(&path, (1, 1), &[300], &[[0; 3]; 301]).unwrap();
        assert_eq!(image::open(&path).unwrap().to_luma16().into_raw(), [300]);
    }
}
