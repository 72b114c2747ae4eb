//! Bit-exactness of the resize, and the keep-ratio rule.

use knet::image::resize::{Resizer, keep_ratio_size};
use serde_json::Value;

use super::goldens::{Goldens, own};
use testkit::shared::reference;

fn cases() -> Value {
    let text = std::fs::read_to_string(own("resize/resize.json")).expect("resize.json");
    serde_json::from_str(&text).expect("resize.json is JSON")
}

fn pair(value: &Value) -> (usize, usize) {
    let side = |i: usize| value[i].as_u64().expect("a side") as usize;
    (side(0), side(1))
}

fn check(goldens: &Goldens, skip: &[&str]) -> usize {
    let mut checked = 0;
    for case in cases()["cases"].as_array().expect("cases") {
        let (source, key) = (case["source"].as_str().unwrap(), case["key"].as_str().unwrap());
        if skip.contains(&key) {
            continue;
        }
        let (shape, pixels) = goldens.u8(&format!("{source}.src"));
        let (_, want) = goldens.u8(key);
        let size = pair(&case["out"]);
        let mut resizer = Resizer::new((shape[0], shape[1]), size);
        let mut got = vec![0; size.0 * size.1 * 3];
        for _ in 0..2 {
            resizer.run(&pixels, &mut got);
            let wrong = got.iter().zip(&want).filter(|(g, w)| g != w).count();
            assert_eq!(wrong, 0, "{key}: {wrong} of {} bytes differ from OpenCV", want.len());
        }
        checked += 1;
    }
    checked
}

#[test]
fn resize_is_opencvs_bit_for_bit() {
    // The largest case stays outside the repository to keep it small.
    assert_eq!(check(&Goldens::open(own("resize/resize.safetensors")), &["photo.254x342"]), 14);
}

#[test]
fn resize_is_opencvs_bit_for_bit_in_all_shared_cases() {
    if let Some(path) = reference("resize, all cases", "resize/resize.safetensors") {
        assert_eq!(check(&Goldens::open(path), &[]), 15);
    }
}

/// OpenCV 4.8.1, `cv2.resize` of `(7 y y + 31 x + 101 c + x y) mod 256` at 6 x 8 to 3 x 4: exact halving
/// averages.
#[test]
fn exact_halving_averages_as_opencv_does() {
    let pixels: Vec<u8> = (0..6 * 8 * 3)
        .map(|i| {
            let (y, x, c) = (i / 24, i / 3 % 8, i % 3);
            ((7 * y * y + 31 * x + 101 * c + x * y) % 256) as u8
        })
        .collect();
    let mut got = vec![0; 36];
    Resizer::new((6, 8), (3, 4)).run(&pixels, &mut got);
    let want: [u8; 36] = [
        19, 120, 221, 82, 183, 28, 145, 118, 91, 208, 53, 154, 62, 163, 72, 129, 166, 75, 196, 41, 142, 71,
        108, 209, 161, 134, 107, 168, 77, 178, 111, 148, 121, 118, 155, 64,
    ];
    assert_eq!(got, want);
}

#[test]
fn keep_ratio_sizes_are_mmdets() {
    for case in cases()["keep_ratio_1333x800"].as_array().expect("cases") {
        let (height, width) = pair(&case["in"]);
        assert_eq!(keep_ratio_size(height, width, 800, 1333), pair(&case["out"]), "{height} x {width}");
    }
    // A line keeps at least one pixel in its short side.
    assert_eq!(keep_ratio_size(1, 5000, 800, 1333), (1, 1333));
}
