//! The geometry of an object in few bytes. An index of a million objects holds outlines and run lengths,
//! never pixels: those are made when an image is loaded, by COCO's own rule (`rleFrPoly`, by the crate
//! hotcoco), so that training and evaluation speak of the same ones.
//!
//! | what | is kept as | bytes |
//! |---|---|---|
//! | polygons in hundredths of a pixel, as COCO writes them | differences from point to point | about 2 a coordinate |
//! | other polygons | f64 | 8 a coordinate |
//! | run lengths | themselves | 1 or 2 a run |
//!
//! Every coordinate comes back with all its bits, so that not one pixel depends on how it was kept. Whole
//! numbers are written seven bits a byte, the lowest first, the top bit of a byte saying that more follow.

use super::mask;

const HUNDREDTHS: u8 = 0;
const FLOATS: u8 = 1;
const RUNS: u8 = 2;

/// The geometry of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::train) struct Shape(Box<[u8]>);

impl Shape {
    /// The union of polygons x, y, x, y, ...
    pub fn of_polygons(polygons: &[Vec<f64>]) -> Shape {
        let whole: Option<Vec<i64>> = polygons.iter().flatten().map(|&v| hundredths(v)).collect();
        let count: usize = polygons.iter().map(Vec::len).sum();
        let mut bytes = Vec::with_capacity(count * if whole.is_some() { 2 } else { size_of::<f64>() } + 8);
        bytes.push(if whole.is_some() { HUNDREDTHS } else { FLOATS });
        put(&mut bytes, polygons.len() as u64);
        polygons.iter().for_each(|polygon| put(&mut bytes, polygon.len() as u64));
        match whole {
            Some(whole) => {
                let mut last = [0; 2];
                for point in whole.as_chunks::<2>().0 {
                    for axis in 0..2 {
                        put_signed(&mut bytes, point[axis] - last[axis]);
                    }
                    last = *point;
                }
            }
            None => bytes.extend(polygons.iter().flatten().flat_map(|v| v.to_le_bytes())),
        }
        Shape(bytes.into_boxed_slice())
    }

    /// Column-major run lengths.
    pub fn of_runs(runs: &[u32]) -> Shape {
        let mut bytes = Vec::with_capacity(2 * runs.len() + 1);
        bytes.push(RUNS);
        runs.iter().for_each(|&run| put(&mut bytes, u64::from(run)));
        Shape(bytes.into_boxed_slice())
    }

    /// Column-major run lengths of the mask in an image of this size.
    ///
    /// # Errors
    /// A sentence, for an image of more than 2^32 pixels.
    pub fn runs(&self, height: usize, width: usize) -> Result<Vec<u32>, String> {
        let (kind, mut bytes) = self.0.split_first().expect("a shape has a kind");
        if *kind == RUNS {
            let mut runs = Vec::with_capacity(bytes.len());
            while !bytes.is_empty() {
                runs.push(take(&mut bytes) as u32);
            }
            return Ok(runs);
        }
        rasterise(&polygons(*kind == HUNDREDTHS, bytes), height, width)
    }
}

/// Column-major run lengths of the union of polygons.
///
/// # Errors
/// As [`Shape::runs`].
pub(super) fn rasterise(polygons: &[Vec<f64>], height: usize, width: usize) -> Result<Vec<u32>, String> {
    let rle = hotcoco::mask::fr_polys(polygons, height as u32, width as u32);
    rle.map(|rle| rle.counts).map_err(|e| e.to_string())
}

/// Whether the union of polygons has a pixel in an image of this size. Mostly one column of it tells, which
/// is a small part of the work of [`rasterise`].
///
/// # Errors
/// As [`Shape::runs`].
pub(super) fn has_pixel(polygons: &[Vec<f64>], height: usize, width: usize) -> Result<bool, String> {
    let mut rows = Vec::new();
    if polygons.iter().any(|polygon| has_pixel_in_its_middle(polygon, height, width, &mut rows)) {
        return Ok(true);
    }
    Ok(mask::area(&rasterise(polygons, height, width)?) > 0)
}

/// True only if the column of the image in the middle of a polygon has a pixel of it.
///
/// `rleFrPoly` rounds vertices to fifths of a pixel and walks the outline on that grid. Column c is crossed
/// where the walk goes between fifths 5c + 2 and 5c + 3, which whole numbers tell for every edge. The row of
/// a crossing is within a pixel of where the edge itself passes, and the rows of a column, sorted, bound its
/// pixels in pairs: two that are three pixels apart have pixels between them, whichever way they are rounded.
fn has_pixel_in_its_middle(polygon: &[f64], height: usize, width: usize, rows: &mut Vec<f64>) -> bool {
    const SURE: f64 = 3.0;
    let points = polygon.as_chunks::<2>().0;
    let (mut left, mut right) = (f64::INFINITY, f64::NEG_INFINITY);
    for [x, _] in points {
        (left, right) = (left.min(*x), right.max(*x));
    }
    let (left, right) = (left.max(0.0), right.min(width as f64));
    if points.len() < 3 || left >= right {
        return false;
    }
    let column = (((left + right) / 2.0) as i32).min(width as i32 - 1);
    let before = 5 * column + 2;
    let fifths = |&[x, y]: &[f64; 2]| [(5.0 * x + 0.5) as i32, (5.0 * y + 0.5) as i32];
    rows.clear();
    let mut last = fifths(&points[points.len() - 1]);
    for point in points {
        let next = fifths(point);
        if (last[0] <= before) != (next[0] <= before) {
            let share = (f64::from(before) + 0.5 - f64::from(last[0])) / f64::from(next[0] - last[0]);
            let row = f64::from(last[1]) + share * f64::from(next[1] - last[1]);
            rows.push((row / 5.0).clamp(0.0, height as f64));
        }
        last = next;
    }
    rows.sort_unstable_by(f64::total_cmp);
    rows.as_chunks::<2>().0.iter().any(|[from, to]| to - from >= SURE)
}

/// What [`Shape::of_polygons`] wrote behind the kind.
fn polygons(are_hundredths: bool, mut bytes: &[u8]) -> Vec<Vec<f64>> {
    let count = take(&mut bytes);
    let lengths: Vec<u64> = (0..count).map(|_| take(&mut bytes)).collect();
    let mut last = [0; 2];
    let mut coordinate = |i: u64| {
        if are_hundredths {
            let axis = &mut last[(i % 2) as usize];
            *axis += take_signed(&mut bytes);
            return *axis as f64 / 100.0;
        }
        let (value, rest) = bytes.split_first_chunk().expect("as many coordinates as were written");
        bytes = rest;
        f64::from_le_bytes(*value)
    };
    lengths.into_iter().map(|length| (0..length).map(&mut coordinate).collect()).collect()
}

/// A coordinate in hundredths, if dividing them by 100 gives it back with all its bits.
fn hundredths(v: f64) -> Option<i64> {
    let whole = (v * 100.0).round() as i64;
    // By bits: -0 is not 0.
    let exact = whole.unsigned_abs() < 1 << 40 && (whole as f64 / 100.0).to_bits() == v.to_bits();
    exact.then_some(whole)
}

fn put(bytes: &mut Vec<u8>, mut value: u64) {
    while value > 0x7f {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}

/// Small numbers of either sign become small ones: 0, -1, 1, -2, ...
fn put_signed(bytes: &mut Vec<u8>, value: i64) {
    put(bytes, ((value << 1) ^ (value >> 63)) as u64);
}

fn take(bytes: &mut &[u8]) -> u64 {
    let (mut value, mut shift) = (0, 0);
    while let Some((&byte, rest)) = bytes.split_first() {
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        shift += 7;
        if byte <= 0x7f {
            break;
        }
    }
    value
}

fn take_signed(bytes: &mut &[u8]) -> i64 {
    let value = take(bytes);
    (value >> 1) as i64 ^ -((value & 1) as i64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::data::random::{Draw, Purpose};

    /// What is read back of polygons, and whether they were kept as hundredths.
    fn back(given: &[Vec<f64>]) -> (Vec<Vec<f64>>, bool) {
        let Shape(bytes) = Shape::of_polygons(given);
        let small = bytes[0] == HUNDREDTHS;
        (polygons(small, &bytes[1..]), small)
    }

    #[test]
    fn every_bit_of_a_coordinate_comes_back() {
        let bits = |polygons: &[Vec<f64>]| -> Vec<Vec<u64>> {
            polygons.iter().map(|p| p.iter().map(|v| v.to_bits()).collect()).collect()
        };
        // All hundredths there are in an image, as a reader of JSON makes them.
        let all: Vec<f64> = (-2000..70_000).map(|i| format!("{}e-2", i).parse().unwrap()).collect();
        let cases = [
            (vec![all], true),
            (vec![vec![5.25, 3.1, 40.7, 8.99, -20.3, 28.4], vec![1e6, -1e6, 0.0, 0.0, 0.01, 7.0]], true),
            (vec![vec![1.0 / 3.0, 2.0, 3.0, 4.0, 5.0, 6.0]], false),
            (vec![vec![0.125, 2.0, 3.0, 4.0, 5.0, 6.0], vec![]], false),
            (vec![vec![-0.0, 2.0, 3.0, 4.0, 5.0, 6.0]], false),
            (vec![vec![f64::from_bits(123.45f64.to_bits() + 1), 1.0]], false),
            (vec![], true),
        ];
        for (given, small) in cases {
            let (found, kept_small) = back(&given);
            assert_eq!((bits(&found), kept_small), (bits(&given), small));
        }
    }

    #[test]
    fn one_column_tells_the_truth() {
        let mut draw = Draw::new(Purpose::Sample, 5, 0, 0);
        let (mut sure, mut with_pixels) = (0, 0);
        for round in 0..20_000 {
            let (height, width) = (1 + draw.below(60), 1 + draw.below(60));
            // Small and large, thin and wide, crossing themselves and the border.
            let [x, y] = [width, height].map(|side| draw.uniform(-20.0, side as f64 + 20.0));
            let [a, b] = [0, 1].map(|_| draw.log_uniform(0.2, 200.0));
            let polygon: Vec<f64> = (0..3 + draw.below(8))
                .flat_map(|_| [x + a * draw.uniform(-1.0, 1.0), y + b * draw.uniform(-1.0, 1.0)])
                .collect();
            let pixels = mask::area(&rasterise(std::slice::from_ref(&polygon), height, width).unwrap());
            let told = has_pixel_in_its_middle(&polygon, height, width, &mut Vec::new());
            assert!(!told || pixels > 0, "round {round}: {polygon:?} in {width} x {height}");
            assert_eq!(has_pixel(&[polygon], height, width).unwrap(), pixels > 0);
            sure += usize::from(told);
            with_pixels += usize::from(pixels > 0);
        }
        // Of shapes as crooked as these, two in five.
        assert!(5 * sure > 2 * with_pixels && with_pixels > 5000, "{sure} of {with_pixels}");
    }

    #[test]
    fn runs_come_back() {
        let runs = [0, 1, 127, 128, 16_383, 16_384, u32::MAX];
        assert_eq!(Shape::of_runs(&runs).runs(1, 1).unwrap(), runs);
        assert!(Shape::of_runs(&[]).runs(0, 0).unwrap().is_empty());
    }

    #[test]
    fn coordinates_as_coco_writes_them_take_two_bytes() {
        let wave = |i: usize| {
            let angle = i as f64 * std::f64::consts::TAU / 80.0;
            let point = [320.0 + 110.0 * angle.cos(), 240.0 + 90.0 * angle.sin()];
            point.map(|v| format!("{v:.2}").parse::<f64>().unwrap())
        };
        let polygon: Vec<f64> = (0..40).flat_map(wave).collect();
        let Shape(bytes) = Shape::of_polygons(std::slice::from_ref(&polygon));
        assert!(bytes.len() <= 2 * polygon.len() + 8, "{} bytes", bytes.len());
    }
}
