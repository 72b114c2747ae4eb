//! Bilinear resampling of photos with two taps an axis whatever the scale.
//!
//! Each value is that of `image::imageops::interpolate_bilinear`, to the last bit: what does not change from
//! pixel to pixel is computed once a column and once a row here, which makes it several times faster.

use image::RgbImage;

/// Which two of a row or column a position lies between.
#[derive(Clone, Copy, Debug)]
struct Tap {
    near: usize,
    far: usize,
    /// Weight of `near`.
    one: f32,
    /// Weight of `far`.
    other: f32,
}

impl Tap {
    /// Of output pixel `i`: `start` and `step` are in source pixels, of which there are `side`.
    fn of(i: usize, start: f64, step: f64, side: u32) -> Tap {
        let last = side - 1;
        // The centres of source pixels are whole numbers.
        let at = ((start + (i as f64 + 0.5) * step - 0.5) as f32).clamp(0.0, last as f32);
        let near = at.floor() as u32;
        let far = (near + 1).min(last) as usize;
        Tap { near: near as usize, far, one: (near + 1) as f32 - at, other: at - near as f32 }
    }
}

/// Resamples boxes of photos; its buffer is reused.
#[derive(Default)]
pub(super) struct Bilinear {
    columns: Vec<Tap>,
}

impl Bilinear {
    /// Resamples the box `crop` = left, top, width, height of `image`, which has pixels, into `out`: RGB rows
    /// of a picture of `size` (height, width).
    pub(super) fn resample(
        &mut self,
        image: &RgbImage,
        crop: [f64; 4],
        size: (usize, usize),
        out: &mut [u8],
    ) {
        let (width, height) = image.dimensions();
        let steps = [crop[2] / size.1 as f64, crop[3] / size.0 as f64];
        self.columns.clear();
        self.columns.extend((0..size.1).map(|x| Tap::of(x, crop[0], steps[0], width)));
        let pixels = image.as_raw().as_chunks::<3>().0;
        let rows: Vec<&[[u8; 3]]> = pixels.chunks_exact(width as usize).collect();
        for (y, out) in out.chunks_exact_mut(size.1 * 3).enumerate() {
            let v = Tap::of(y, crop[1], steps[1], height);
            let (upper, lower) = (rows[v.near], rows[v.far]);
            for (out, u) in out.as_chunks_mut::<3>().0.iter_mut().zip(&self.columns) {
                let weights = [u.one * v.one, u.one * v.other, u.other * v.one, u.other * v.other];
                let taps = [upper[u.near], lower[u.near], upper[u.far], lower[u.far]];
                for c in 0..3 {
                    let value = |i: usize| weights[i] * f32::from(taps[i][c]);
                    out[c] = rounded(value(0) + value(1) + value(2) + value(3));
                }
            }
        }
    }
}

/// As `f32::round`, which is a call on processors of 2003, of what is not negative.
fn rounded(value: f32) -> u8 {
    let whole = value as i32;
    (whole + i32::from(value - whole as f32 >= 0.5)).min(255) as u8
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::data::random::{Draw, Purpose};
    use image::imageops::interpolate_bilinear;

    #[test]
    fn every_value_is_that_of_the_image_crate() {
        let mut draw = Draw::new(Purpose::Sample, 3, 0, 0);
        let mut bilinear = Bilinear::default();
        for (width, height) in [(1, 1), (2, 7), (31, 17), (64, 48)] {
            let image = RgbImage::from_fn(width, height, |_, _| {
                image::Rgb([draw.below(256) as u8, draw.below(2) as u8 * 255, draw.below(256) as u8])
            });
            for _ in 0..40 {
                let size = (1 + draw.below(50), 1 + draw.below(50));
                let (left, top) = (draw.unit() * f64::from(width), draw.unit() * f64::from(height));
                let crop = [left, top, f64::from(width) - left, f64::from(height) - top];
                let mut found = vec![0; size.0 * size.1 * 3];
                bilinear.resample(&image, crop, size, &mut found);
                let centre = |i: usize, start: f64, length: f64, n: usize, side: u32| {
                    let at = start + (i as f64 + 0.5) * (length / n as f64) - 0.5;
                    (at as f32).clamp(0.0, (side - 1) as f32)
                };
                for (i, found) in found.as_chunks::<3>().0.iter().enumerate() {
                    let x = centre(i % size.1, left, crop[2], size.1, width);
                    let y = centre(i / size.1, top, crop[3], size.0, height);
                    assert_eq!(
                        *found,
                        interpolate_bilinear(&image, x, y).unwrap().0,
                        "{x}, {y} of {image:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn halves_are_rounded_up() {
        for value in [0.0, 0.49999997, 0.5, 1.5, 2.4999998, 127.5, 254.49998, 254.5, 255.0] {
            assert_eq!(rounded(value), value.round() as u8, "{value}");
        }
    }
}
