//! Decodes arbitrary COCO run lengths and checks that what is accepted survives a round trip.
//!
//! An input is the height and the width (16 bits each, little-endian), then the text.
#![no_main]

use knet::image::rle;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Some((&[h0, h1, w0, w1], text)) = input.split_first_chunk::<4>() else { return };
    let Ok(counts) = std::str::from_utf8(text) else { return };
    let Ok(runs) = rle::decompress(counts) else { return };
    assert_eq!(rle::decompress(&rle::compress(&runs)).ok().as_ref(), Some(&runs));

    let (height, width) =
        (usize::from(u16::from_le_bytes([h0, h1])), usize::from(u16::from_le_bytes([w0, w1])));
    let Ok(mask) = rle::decode(counts, height, width) else { return };
    let inside: u64 = runs.iter().skip(1).step_by(2).map(|&run| u64::from(run)).sum();
    assert_eq!(mask.area() as u64, inside);
    assert_eq!(rle::decode(&mask.to_rle(), height, width).ok().as_ref(), Some(&mask));
});
