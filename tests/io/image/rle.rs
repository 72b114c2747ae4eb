//! Bit masks and run lengths; vectors by pycocotools 2.0 (`mask.encode` of the stated masks).

use knet::image::bitmask::{BitMask, PixelBox};
use knet::image::rle;
use proptest::prelude::*;

type Inside = fn(usize, usize) -> bool;

const VECTORS: [(&str, usize, usize, Inside, &str); 9] = [
    ("empty", 7, 5, |_, _| false, "S1"),
    ("full", 7, 5, |_, _| true, "0S1"),
    ("one", 1, 1, |_, _| true, "01"),
    ("checker", 6, 9, |y, x| (y + x) % 2 == 0, "01100010O0010O0010O0010O0010O0010O0010O0010O000"),
    (
        "disc",
        200,
        300,
        |y, x| y.abs_diff(90).pow(2) + x.abs_diff(140).pow(2) < 4900,
        "Wn=g0\\5:G8I6K4K6K4L4L4L4M2M4M2N2M4M2N2N2N2N2N2N2N2N2N2N2N2O0O2N2N2O0O2N2O0O2O0O2O0O2O0O2O000O2O0O2O000O2O00000O2O0000000O2O00000000000000000000000000000000000000000001N100000001N1000001N10001N101N10001N101N101N101N101N2N101N2N2N101N2N2N2N2N2N2N2N2N2N2N2N3L3N2N3L3N3L4L4L4L5J5L5J7H9FV`a0",
    ),
    ("corner", 64, 64, |y, x| (y, x) == (0, 0), "01oo3"),
    ("ends", 64, 63, |y, x| matches!((y, x), (0, 0) | (63, 62)), "01nm30"),
    ("wide", 1, 5000, |_, x| x % 700 < 350, "0n:n:000000000000VH"),
    ("tall", 5000, 1, |y, _| y % 1300 < 9, "09[X100000hI"),
];

#[test]
fn run_lengths_are_pycocotools() {
    for (name, height, width, inside, want) in VECTORS {
        let mask = BitMask::from_fn(height, width, inside);
        assert_eq!(mask.to_rle(), want, "{name}");
        assert_eq!(BitMask::from_rle(want, height, width).unwrap(), mask, "{name}");
    }
}

#[test]
fn hostile_run_lengths_are_errors() {
    let long = "o".repeat(20);
    for (counts, height, width, says) in [
        ("\u{7f}", 1, 1, "not a run-length character"),
        ("0 1", 1, 1, "not a run-length character"),
        ("é", 1, 1, "not a run-length character"),
        ("o", 4, 4, "cut short"),
        (long.as_str(), 4, 4, "too many digits"),
        ("O", 4, 4, "run 0 is -1"),
        ("S1", 7, 6, "add up to 35, not to 7 x 6 = 42"),
        ("", 1, 1, "add up to 0"),
        ("01", usize::MAX, 2, "more than"),
        ("01", 1 << 20, 1 << 20, "more than"),
    ] {
        let error = BitMask::from_rle(counts, height, width).unwrap_err();
        assert!(error.to_string().contains(says), "{counts:?}: {error}");
    }
    assert_eq!(BitMask::from_rle("", 0, 7).unwrap().area(), 0);
}

#[test]
fn bit_masks_know_their_pixels() {
    let inside: Inside = |y, x| (y == 3 && x > 60) || (x == 66 && (2..9).contains(&y));
    let mask = BitMask::from_fn(11, 131, inside);
    let pixels: Vec<_> = (0..11 * 131).map(|i| (i / 131, i % 131)).filter(|&(y, x)| inside(y, x)).collect();
    assert_eq!(mask.pixels().collect::<Vec<_>>(), pixels);
    assert_eq!(mask.area(), pixels.len());
    assert_eq!(mask.bbox(), PixelBox { x: 61, y: 2, width: 70, height: 7 });
    assert_eq!(BitMask::new(5, 5).bbox(), PixelBox::default());
    // NumPy packbits of the flattened mask: no row alignment, first pixel in the top bit.
    assert_eq!(BitMask::from_fn(2, 5, |y, x| y == x).bytes(), [0b1000_0010, 0]);
}

proptest! {
    #[test]
    fn run_lengths_round_trip(height in 1usize..40, width in 1usize..150, seed in any::<u64>(), density in 1u64..63) {
        let mut state = seed | 1;
        let mask = BitMask::from_fn(height, width, |_, _| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            state >> 58 < density
        });
        let mut naive = Vec::new();
        let mut inside = false;
        let mut run = 0u32;
        for at in 0..height * width {
            if mask.get(at % height, at / height) != inside {
                naive.push(std::mem::take(&mut run));
                inside = !inside;
            }
            run += 1;
        }
        naive.push(run);
        prop_assert_eq!(&rle::run_lengths(&mask), &naive);
        prop_assert_eq!(rle::decompress(&rle::compress(&naive)).unwrap(), naive);
        prop_assert_eq!(BitMask::from_rle(&mask.to_rle(), height, width).unwrap(), mask);
    }

    #[test]
    fn any_string_decodes_or_is_refused(counts in "[0-o]{0,40}", height in 0usize..50, width in 0usize..50) {
        if let Ok(mask) = BitMask::from_rle(&counts, height, width) {
            prop_assert_eq!(rle::run_lengths(&mask).iter().map(|&r| r as usize).sum::<usize>(), height * width);
        }
    }
}
