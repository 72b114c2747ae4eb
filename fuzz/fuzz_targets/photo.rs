//! Decodes arbitrary bytes as a photo and makes the network's input of it.
#![no_main]

use knet::image::decode::{Limits, decode_bytes};
use knet::image::preprocess::{PreprocessConfig, Preprocessor};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    // Smaller than the defaults, so that an input costs milliseconds; the checks are the same.
    let limits = Limits { max_side: 1024, max_pixels: 1 << 18, max_file_bytes: 1 << 20, max_alloc: 1 << 26 };
    let Ok(photo) = decode_bytes("fuzz", input, &limits) else { return };
    assert!(photo.width().max(photo.height()) <= limits.max_side);
    for size in [Some((64, 96)), None] {
        let config = PreprocessConfig { size, ..PreprocessConfig::default() };
        let mut preprocessor = Preprocessor::new(config).expect("a sound configuration");
        let geometry = preprocessor.geometry(photo.height() as usize, photo.width() as usize);
        let mut out = vec![f32::NAN; geometry.input_len()];
        assert_eq!(preprocessor.run(&photo, &mut out).ok(), Some(geometry));
        assert!(out.iter().all(|v| v.is_finite()));
    }
});
