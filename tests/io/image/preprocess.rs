//! The network input against mmdet's, bit for bit.

use image::RgbImage;
use knet::error::ErrorKind;
use knet::image::decode::{Limits, decode};
use knet::image::preprocess::{Geometry, PreprocessConfig, Preprocessor};

use super::goldens::Goldens;
use testkit::shared::reference;

#[test]
fn network_inputs_are_mmdets_bit_for_bit() {
    let Some(path) = reference("preprocess", "inputs/normalized.safetensors") else { return };
    let goldens = Goldens::open(path.clone());
    for name in ["a", "b", "t2"] {
        let photo = decode(path.with_file_name(format!("{name}.png")), &Limits::default()).unwrap();
        let config = PreprocessConfig { size: None, ..PreprocessConfig::default() };
        let mut preprocessor = Preprocessor::new(config).unwrap();
        let (shape, want) = goldens.f32(name);
        let (h, w) = (shape[2], shape[3]);
        let mut got = vec![f32::NAN; h * w * 3];
        let geometry = preprocessor.run(&photo, &mut got).unwrap();
        assert_eq!(geometry.padded, (h, w));
        for c in 0..3 {
            for at in 0..h * w {
                let (g, w) = (got[at * 3 + c], want[c * h * w + at]);
                assert_eq!(g.to_bits(), w.to_bits(), "{name}: channel {c}, pixel {at}: {g} is not {w}");
            }
        }
    }
}

#[test]
fn geometry_follows_the_sizes() {
    let preprocessor = Preprocessor::new(PreprocessConfig::default()).unwrap();
    let want = Geometry { original: (427, 640), resized: (800, 1199), padded: (800, 1216) };
    assert_eq!(preprocessor.geometry(427, 640), want);
    assert_eq!(want.input_len(), 800 * 1216 * 3);
}

#[test]
fn resized_and_padded_input_equals_the_steps_taken_apart() {
    let photo = RgbImage::from_fn(61, 47, |x, y| image::Rgb([(x * 4) as u8, (y * 5) as u8, (x * y) as u8]));
    let config = PreprocessConfig { size: Some((40, 90)), ..PreprocessConfig::default() };
    let mut preprocessor = Preprocessor::new(config).unwrap();
    let geometry = preprocessor.geometry(47, 61);
    let mut got = vec![f32::NAN; geometry.input_len()];
    preprocessor.run(&photo, &mut got).unwrap();
    let resized = knet::image::resize::resize(&photo, geometry.resized);
    for y in 0..geometry.padded.0 {
        for x in 0..geometry.padded.1 {
            for c in 0..3 {
                let inside = y < geometry.resized.0 && x < geometry.resized.1;
                let want = if inside {
                    let v = f64::from(resized.get_pixel(x as u32, y as u32)[c]);
                    let centred = (v - f64::from(config.mean[c])) as f32;
                    (f64::from(centred) * (1.0 / f64::from(config.std[c]))) as f32
                } else {
                    0.0
                };
                assert_eq!(got[(y * geometry.padded.1 + x) * 3 + c], want, "row {y} column {x} channel {c}");
            }
        }
    }
}

#[test]
fn one_pixel_and_one_line_make_inputs() {
    let mut preprocessor = Preprocessor::new(PreprocessConfig::default()).unwrap();
    for (width, height) in [(1, 1), (5000, 1), (1, 5000)] {
        let photo = RgbImage::from_pixel(width, height, image::Rgb([10, 20, 30]));
        let geometry = preprocessor.geometry(height as usize, width as usize);
        let mut input = vec![f32::NAN; geometry.input_len()];
        preprocessor.run(&photo, &mut input).unwrap();
        assert!(input.iter().all(|v| v.is_finite()), "{width} x {height}");
        assert_eq!(input[0], ((10.0f64 - f64::from(123.675f32)) as f32 as f64 / f64::from(58.395f32)) as f32);
    }
}

#[test]
fn unusable_buffers_and_configurations_are_refused() {
    let mut preprocessor = Preprocessor::new(PreprocessConfig::default()).unwrap();
    let photo = RgbImage::new(64, 64);
    let error = preprocessor.run(&photo, &mut [0.0; 10]).unwrap_err();
    assert!(error.to_string().contains("[1, 800, 800, 3]"), "{error}");
    assert!(preprocessor.run(&RgbImage::new(0, 0), &mut []).is_err());
    let bad = PreprocessConfig { divisor: 0, ..PreprocessConfig::default() };
    assert_eq!(Preprocessor::new(bad).unwrap_err().kind(), ErrorKind::Usage);
}
