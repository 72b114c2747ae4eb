//! Every kind of unusable image file gets a typed error that names the file and the reason; unusual ones are
//! read.

use std::fs;
use std::io::Cursor;
use std::path::PathBuf;

use image::codecs::jpeg::JpegEncoder;
use image::{DynamicImage, ImageFormat, Rgb, RgbImage};
use knet::error::ErrorKind;
use knet::image::decode::{Limits, decode, decode_bytes, decode_bytes_checked};

fn photo(width: u32, height: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| Rgb([(x * 5) as u8, (y * 3) as u8, (x * y) as u8]))
}

fn encoded(picture: impl Into<DynamicImage>, format: ImageFormat) -> Vec<u8> {
    let mut out = Cursor::new(Vec::new());
    picture.into().write_to(&mut out, format).unwrap();
    out.into_inner()
}

fn jpeg(picture: &RgbImage) -> Vec<u8> {
    let mut out = Vec::new();
    JpegEncoder::new_with_quality(&mut out, 95).encode_image(picture).unwrap();
    out
}

/// A sound PNG header of any size, followed by an empty image data chunk.
fn png_header(width: u32, height: u32) -> Vec<u8> {
    let mut out = b"\x89PNG\r\n\x1a\n".to_vec();
    let mut header = width.to_be_bytes().to_vec();
    header.extend(height.to_be_bytes());
    header.extend([8, 2, 0, 0, 0]);
    for (kind, data) in [(b"IHDR", header.as_slice()), (b"IDAT", &[]), (b"IEND", &[])] {
        out.extend((data.len() as u32).to_be_bytes());
        let body = [kind.as_slice(), data].concat();
        out.extend(&body);
        out.extend(crc32(&body).to_be_bytes());
    }
    out
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, &b| {
        (0..8).fold(crc ^ u32::from(b), |c, _| if c & 1 == 1 { (c >> 1) ^ 0xedb8_8320 } else { c >> 1 })
    })
}

#[test]
fn bad_files_are_named_with_their_reason() {
    let folder = tempfile::tempdir().unwrap();
    let sound = jpeg(&photo(200, 150));
    let png = encoded(photo(64, 48), ImageFormat::Png);
    let mut flipped = png.clone();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 0xff;
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("empty.jpg", vec![], "the file is empty"),
        ("text.jpg", b"Dear reader, this is not an image.\n".to_vec(), "not a PNG, JPEG"),
        ("two_bytes.png", vec![0x89, b'P'], "not a PNG, JPEG"),
        ("half.jpg", sound[..sound.len() / 2].to_vec(), "truncated JPEG"),
        ("no_end.jpg", sound[..sound.len() - 2].to_vec(), "truncated JPEG"),
        ("only_start.jpg", sound[..3].to_vec(), "truncated JPEG"),
        ("half.png", png[..png.len() / 2].to_vec(), "damaged"),
        ("flipped.png", flipped, "damaged"),
        ("signature.png", png[..8].to_vec(), "damaged"),
        ("huge.png", png_header(40_000, 40_000), "40000 x 40000"),
        ("wide.png", png_header(20_000, 2), "at most 16384"),
        ("many.png", png_header(16_000, 16_000), "at most 100000000"),
        ("no_rows.png", png_header(10, 0), ""),
        ("no_data.png", png_header(10, 10), "damaged"),
        ("half.bmp", encoded(photo(64, 48), ImageFormat::Bmp)[..2000].to_vec(), "damaged"),
        ("half.tiff", encoded(photo(64, 48), ImageFormat::Tiff)[..2000].to_vec(), "damaged"),
        ("half.webp", encoded(photo(64, 48), ImageFormat::WebP)[..300].to_vec(), "damaged"),
        (
            "float.tiff",
            encoded(DynamicImage::ImageRgb8(photo(8, 8)).into_rgb32f(), ImageFormat::Tiff),
            "Rgb32F samples are not supported",
        ),
    ];
    for (name, bytes, says) in cases {
        let path = folder.path().join(name);
        fs::write(&path, bytes).unwrap();
        let error = decode(&path, &Limits::default()).expect_err(name);
        let text = error.to_string();
        assert_eq!(error.kind(), ErrorKind::Image, "{name}: {text}");
        assert!(text.contains(name) && text.contains(says), "{name}: {text}");
    }
    let missing = decode(folder.path().join("missing.png"), &Limits::default()).unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::Io);
    let not_a_file = decode(folder.path(), &Limits::default()).unwrap_err();
    assert!(not_a_file.to_string().contains("not a regular file"), "{not_a_file}");
}

#[test]
fn every_cut_of_a_file_is_refused_or_read_but_never_panics() {
    let whole = photo(24, 18);
    let formats =
        [ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::Bmp, ImageFormat::WebP, ImageFormat::Tiff];
    for format in formats {
        let bytes = encoded(whole.clone(), format);
        for length in 0..bytes.len() {
            let outcome = decode_bytes("cut", &bytes[..length], &Limits::default());
            // PNG may lose its checksums, TIFF and BMP their padding, without losing a pixel.
            if let Ok(picture) = outcome {
                let full = decode_bytes("whole", &bytes, &Limits::default()).unwrap();
                assert!(
                    picture == full,
                    "{format:?} cut to {length} of {} lost pixels silently",
                    bytes.len()
                );
            }
        }
    }
}

#[test]
fn a_jpeg_whose_data_end_early_is_read_and_said() {
    let limits = Limits::default();
    let fault = |bytes: &[u8]| decode_bytes_checked("a.jpg", bytes, &limits).unwrap().fault;
    // Noise, and pictures whose blocks take a few bits each.
    let pictures = [photo(61, 83), RgbImage::new(64, 64), RgbImage::from_pixel(200, 90, Rgb([255; 3]))];
    for picture in &pictures {
        let whole = jpeg(picture);
        assert_eq!(fault(&whole), None);
        assert_eq!(
            decode_bytes_checked("a.jpg", &whole, &limits).unwrap().picture,
            decode_bytes("a.jpg", &whole, &limits).unwrap()
        );
        // What follows the picture is none of its business.
        assert_eq!(fault(&[&whole[..], &whole[..100]].concat()), None);
        let scan = whole.windows(2).position(|marker| marker == [0xff, 0xda]).unwrap() + 14;
        let end = whole.len() - 2;
        for part in 0..20 {
            let cut = scan + (end - scan) * part / 20;
            // A byte of ones asks for the one behind it.
            let cut = if whole[cut - 1] == 0xff { cut - 1 } else { cut };
            let bytes = [&whole[..cut], &[0xff, 0xd9]].concat();
            assert!(fault(&bytes).is_some_and(|fault| fault.contains("grey")), "{cut} of {end} bytes");
        }
    }
    for format in [ImageFormat::Png, ImageFormat::Bmp] {
        assert_eq!(fault(&encoded(photo(9, 7), format)), None);
    }
}

#[test]
fn limits_are_the_callers() {
    let png = encoded(photo(64, 48), ImageFormat::Png);
    let refuse = |limits: Limits| decode_bytes("a.png", &png, &limits).unwrap_err().to_string();
    assert!(refuse(Limits { max_side: 63, ..Limits::default() }).contains("at most 63"));
    assert!(refuse(Limits { max_pixels: 1000, ..Limits::default() }).contains("3072 pixels"));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.png");
    fs::write(&path, &png).unwrap();
    let error = decode(&path, &Limits { max_file_bytes: 10, ..Limits::default() }).unwrap_err();
    assert!(error.to_string().contains("limit of 10"), "{error}");
}

#[test]
fn unusual_images_are_read_as_opencv_reads_them() {
    let rgb = photo(20, 10);
    let read = |picture: DynamicImage, format| {
        decode_bytes("x", &encoded(picture, format), &Limits::default()).unwrap()
    };
    let dynamic = DynamicImage::ImageRgb8(rgb.clone());
    for format in [ImageFormat::Png, ImageFormat::Bmp, ImageFormat::WebP, ImageFormat::Tiff] {
        assert_eq!(read(dynamic.clone(), format), rgb, "{format:?}");
    }
    // Alpha is dropped, not blended.
    let mut rgba = dynamic.to_rgba8();
    rgba.pixels_mut().for_each(|p| p[3] = p[0]);
    assert_eq!(read(rgba.into(), ImageFormat::Png), rgb);
    // 16-bit samples keep their upper 8 bits.
    let mut deep = dynamic.to_rgb16();
    deep.pixels_mut().for_each(|p| p.0 = p.0.map(|v| (v & 0xff00) | 0x00ff));
    assert_eq!(read(deep.clone().into(), ImageFormat::Png), rgb);
    let deep_alpha = DynamicImage::ImageRgb16(deep).to_rgba16();
    assert_eq!(read(deep_alpha.into(), ImageFormat::Png), rgb);
    // Grey of any depth becomes three equal channels.
    let grey = dynamic.to_luma8();
    let tripled = RgbImage::from_fn(20, 10, |x, y| Rgb([grey.get_pixel(x, y)[0]; 3]));
    assert_eq!(read(grey.clone().into(), ImageFormat::Png), tripled);
    assert_eq!(
        read(DynamicImage::ImageLuma8(grey.clone()).to_luma_alpha8().into(), ImageFormat::Png),
        tripled
    );
    assert_eq!(read(DynamicImage::ImageLuma8(grey.clone()).to_luma16().into(), ImageFormat::Png), tripled);
    assert_eq!(read(DynamicImage::ImageLuma8(grey).to_luma_alpha16().into(), ImageFormat::Png), tripled);
    for (width, height) in [(1, 1), (1, 5000), (5000, 1)] {
        let line = photo(width, height);
        assert_eq!(read(line.clone().into(), ImageFormat::Png), line);
        let lossy = decode_bytes("x.jpg", &jpeg(&line), &Limits::default()).unwrap();
        assert_eq!(lossy.dimensions(), (width, height));
    }
}

/// Two colours by a palette of two entries and one bit a pixel; the writer in `image` makes no palettes.
#[test]
fn palette_images_become_rgb() {
    let header = [0, 0, 0, 4, 0, 0, 0, 1, 1, 3, 0, 0, 0];
    let palette = [10, 20, 30, 200, 100, 50];
    // zlib, one stored block: filter byte 0, then the pixels 0 1 1 0.
    let data = [0x78, 0x01, 1, 2, 0, 0xfd, 0xff, 0, 0b0110_0000, 0, 0x62, 0, 0x61];
    let mut png = b"\x89PNG\r\n\x1a\n".to_vec();
    for (kind, data) in [(b"IHDR", header.as_slice()), (b"PLTE", &palette), (b"IDAT", &data), (b"IEND", &[])]
    {
        png.extend((data.len() as u32).to_be_bytes());
        let body = [kind.as_slice(), data].concat();
        png.extend(&body);
        png.extend(crc32(&body).to_be_bytes());
    }
    let got = decode_bytes("palette.png", &png, &Limits::default()).unwrap();
    assert_eq!(got.into_raw(), [10, 20, 30, 200, 100, 50, 200, 100, 50, 10, 20, 30]);
}

/// tests/io/image/cmyk.jpg: 24 x 16, four flat quarters, written by Pillow as Adobe (inverted) CMYK.
#[test]
fn cmyk_jpegs_become_rgb() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/io/image/cmyk.jpg");
    let got = decode(path, &Limits::default()).unwrap();
    for (x, y, want) in
        [(6, 4, [201, 41, 31]), (18, 4, [31, 161, 61]), (6, 12, [41, 61, 191]), (18, 12, [231, 221, 211])]
    {
        let pixel = got.get_pixel(x, y);
        // OpenCV's values; decoders may round colours differently by a few steps.
        assert!((0..3).all(|c| pixel[c].abs_diff(want[c]) <= 3), "({x}, {y}): {pixel:?}, not {want:?}");
    }
}

#[test]
fn exif_orientation_is_applied() {
    // 16 x 8, left half dark, right half bright.
    let picture = RgbImage::from_fn(16, 8, |x, _| Rgb([if x < 8 { 20 } else { 220 }; 3]));
    let plain = jpeg(&picture);
    for (orientation, size, bright) in [
        (1u8, (16, 8), (12, 4)),
        (2, (16, 8), (3, 4)),
        (3, (16, 8), (3, 4)),
        (6, (8, 16), (4, 12)),
        (8, (8, 16), (4, 3)),
    ] {
        // APP1 with a big-endian TIFF of one entry: orientation, short, one value.
        let mut exif = b"Exif\0\0MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0".to_vec();
        exif.extend([orientation, 0, 0, 0, 0, 0, 0]);
        let mut bytes = plain[..2].to_vec();
        bytes.extend([0xff, 0xe1]);
        bytes.extend((exif.len() as u16 + 2).to_be_bytes());
        bytes.extend(exif);
        bytes.extend(&plain[2..]);
        let got = decode_bytes("turned.jpg", &bytes, &Limits::default()).unwrap();
        assert_eq!(got.dimensions(), size, "orientation {orientation}");
        let dark = (size.0 - 1 - bright.0, size.1 - 1 - bright.1);
        assert!(got.get_pixel(bright.0, bright.1)[0] > 180, "orientation {orientation}");
        assert!(got.get_pixel(dark.0, dark.1)[0] < 60, "orientation {orientation}");
    }
}
