//! The size of an image file from its first bytes, and whether its end is there: what can be known of a
//! hundred thousand photos without decoding them.

use std::fs::File;
use std::io::{Cursor, Read, Seek, SeekFrom};
use std::path::Path;

use image::metadata::Orientation;
use image::{ImageDecoder, ImageFormat, ImageReader};

use super::decode::{Limits, check_size};
use crate::fsio::open_file;

/// Bytes of the beginning that are read: what most headers take, and then what one with an embedded thumbnail
/// or a colour profile takes.
const HEADS: [u64; 2] = [8 << 10, 160 << 10];
/// Bytes of the end in which its marker is looked for.
const TAIL: u64 = 4 << 10;

/// Height and width, upright, and format of a JPEG, PNG or WebP file whose header is sound and which is not
/// cut short. `None` if its first and last bytes do not tell: decoding it will.
pub(crate) fn glance(path: &Path, limits: &Limits) -> Option<((usize, usize), ImageFormat)> {
    let mut file = open_file(path).ok()?;
    let length = file.metadata().ok()?.len();
    if length > limits.max_file_bytes {
        return None;
    }
    for head in HEADS {
        let bytes = part(&mut file, 0, head.min(length)).ok()?;
        let format = image::guess_format(&bytes).ok()?;
        if let Some(size) = size(&bytes, format, limits) {
            let start = length.saturating_sub(TAIL);
            let whole = match format {
                ImageFormat::Jpeg => holds(&part(&mut file, start, TAIL).ok()?, &[0xff, 0xd9]),
                ImageFormat::Png => holds(&part(&mut file, start, TAIL).ok()?, b"IEND"),
                // The file says how long it is.
                ImageFormat::WebP => {
                    let said = bytes.get(4..8).and_then(|said| said.try_into().ok());
                    said.is_some_and(|said| u64::from(u32::from_le_bytes(said)) + 8 <= length)
                }
                _ => false,
            };
            return whole.then_some((size, format));
        }
        if head >= length {
            break;
        }
    }
    None
}

fn part(file: &mut File, start: u64, length: u64) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(length as usize);
    file.seek(SeekFrom::Start(start))?;
    file.take(length).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn holds(bytes: &[u8], marker: &[u8]) -> bool {
    bytes.windows(marker.len()).any(|window| window == marker)
}

/// Height and width, upright, if the first bytes of a file say them.
fn size(bytes: &[u8], format: ImageFormat, limits: &Limits) -> Option<(usize, usize)> {
    let (width, height, orientation) = match format {
        ImageFormat::Jpeg => jpeg(bytes)?,
        _ => other(bytes, format, limits)?,
    };
    check_size(width, height, limits).ok()?;
    let turned = match orientation {
        Orientation::NoTransforms
        | Orientation::Rotate180
        | Orientation::FlipHorizontal
        | Orientation::FlipVertical => false,
        Orientation::Rotate90
        | Orientation::Rotate270
        | Orientation::Rotate90FlipH
        | Orientation::Rotate270FlipH => true,
    };
    let (height, width) = (height as usize, width as usize);
    Some(if turned { (width, height) } else { (height, width) })
}

/// Width, height and orientation of a JPEG, by its marker segments. A decoder takes the whole file and
/// builds tables first.
fn jpeg(bytes: &[u8]) -> Option<(u32, u32, Orientation)> {
    const EXIF: &[u8] = b"Exif\0\0";
    let (mut at, mut orientation) = (2, None);
    loop {
        let &[0xff, marker, high, low] = bytes.get(at..at + 4)? else { return None };
        let length = usize::from(u16::from_be_bytes([high, low]));
        let body = bytes.get(at + 4..at + 2 + length)?;
        match marker {
            // Baseline, extended and progressive, of eight bits.
            0xc0..=0xc2 => {
                let [8, h1, h0, w1, w0, 1 | 3 | 4] = *body.first_chunk()? else { return None };
                let [height, width] = [[h1, h0], [w1, w0]].map(|side| u32::from(u16::from_be_bytes(side)));
                return Some((width, height, orientation.unwrap_or(Orientation::NoTransforms)));
            }
            // Two orientations: which one holds is the decoder's affair.
            0xe1 if body.starts_with(EXIF) && orientation.is_some() => return None,
            0xe1 if body.starts_with(EXIF) => {
                let found = Orientation::from_exif_chunk(&body[EXIF.len()..]);
                orientation = Some(found.unwrap_or(Orientation::NoTransforms));
            }
            // Application data, comments, tables, restart intervals.
            0xe0..=0xef | 0xfe | 0xdb | 0xc4 | 0xdd => {}
            _ => return None,
        }
        at += 2 + length;
    }
}

/// Width, height and orientation as the decoder of another format says.
fn other(bytes: &[u8], format: ImageFormat, limits: &Limits) -> Option<(u32, u32, Orientation)> {
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    let mut alloc = image::Limits::no_limits();
    alloc.max_alloc = Some(limits.max_alloc);
    reader.limits(alloc);
    let mut decoder = reader.into_decoder().ok()?;
    let (width, height) = decoder.dimensions();
    Some((width, height, decoder.orientation().unwrap_or(Orientation::NoTransforms)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::decode::decode;
    use image::RgbImage;

    /// A picture that takes some thousand bytes in every format.
    fn noise(width: u32, height: u32) -> RgbImage {
        RgbImage::from_fn(width, height, |x, y| {
            let mixed = x.wrapping_mul(2_654_435_761) ^ y.wrapping_mul(40_503);
            let v = mixed.wrapping_mul(2_246_822_519);
            image::Rgb([(v >> 8) as u8, (v >> 16) as u8, (v >> 24) as u8])
        })
    }

    #[test]
    fn sizes_are_those_of_decoding() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["a.png", "a.jpg", "a.webp"] {
            let path = folder.path().join(name);
            noise(121, 83).save(&path).unwrap();
            let decoded = decode(&path, &Limits::default()).unwrap();
            let wanted = (decoded.height() as usize, decoded.width() as usize);
            let found = glance(&path, &Limits::default());
            assert_eq!(found, Some((wanted, ImageFormat::from_path(&path).unwrap())), "{name}");
            // Cut short anywhere, it is left to decoding.
            let bytes = std::fs::read(&path).unwrap();
            for cut in [0, 1, 20, bytes.len() / 2, bytes.len() - 6] {
                std::fs::write(&path, &bytes[..cut]).unwrap();
                assert_eq!(glance(&path, &Limits::default()), None, "{name}, {cut} bytes");
            }
        }
        assert_eq!(glance(folder.path(), &Limits::default()), None);
        assert_eq!(glance(&folder.path().join("none.png"), &Limits::default()), None);
    }

    #[test]
    fn turned_photos_and_long_headers() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.jpg");
        noise(40, 24).save(&path).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        // An EXIF block with the orientation alone, and 60,000 bytes of something else before it.
        let segment = |marker: u8, body: &[u8]| {
            [&[0xff, marker][..], &(body.len() as u16 + 2).to_be_bytes(), body].concat()
        };
        let exif = |turn: u8| {
            let entry = [1, 0x12, 0, 3, 0, 0, 0, 1, 0, turn, 0, 0];
            let tiff = [&b"MM\0*\0\0\0\x08\0\x01"[..], &entry, &[0; 4]].concat();
            segment(0xe1, &[&b"Exif\0\0"[..], &tiff].concat())
        };
        for (turn, wanted) in [(1, (24, 40)), (3, (24, 40)), (6, (40, 24)), (8, (40, 24))] {
            let head = [segment(0xe5, &[7; 60_000]), exif(turn)].concat();
            std::fs::write(&path, [&bytes[..2], &head, &bytes[2..]].concat()).unwrap();
            let decoded = decode(&path, &Limits::default()).unwrap();
            assert_eq!((decoded.height() as usize, decoded.width() as usize), wanted, "orientation {turn}");
            let found = glance(&path, &Limits::default());
            assert_eq!(found, Some((wanted, ImageFormat::Jpeg)), "orientation {turn}");
        }
    }
}
