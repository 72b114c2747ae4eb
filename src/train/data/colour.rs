//! Colour changes. Brightness, contrast, saturation and hue are all linear in R, G, B: they make one 3 x 3
//! matrix and an offset.

use image::RgbImage;
use serde::{Deserialize, Serialize};

use super::frame::Frame;
use super::random::Draw;
use crate::error::{Error, Result};

/// Share of each channel in the luminance (ITU-R BT.601).
const LUMA: [f32; 3] = [0.299, 0.587, 0.114];
/// Bounds of a random blur's standard deviation, pixels.
const BLUR: [f64; 2] = [0.4, 1.2];

/// How colours are varied. A strength s is a factor drawn from `1 - s` to `1 + s`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Colour {
    /// Probability that brightness, contrast, saturation and hue change.
    pub probability: f64,
    /// Strength of the brightness change.
    pub brightness: f64,
    /// Strength of the contrast change, around the mean luminance of the image.
    pub contrast: f64,
    /// Strength of the saturation change.
    pub saturation: f64,
    /// Largest turn of the hue, as a share of the full circle.
    pub hue: f64,
    /// Probability of a grey image.
    pub grey: f64,
    /// Probability of a slight Gaussian blur.
    pub blur: f64,
}

impl Default for Colour {
    fn default() -> Self {
        Colour {
            probability: 0.8,
            brightness: 0.3,
            contrast: 0.3,
            saturation: 0.3,
            hue: 0.03,
            grey: 0.03,
            blur: 0.05,
        }
    }
}

impl Colour {
    pub(super) fn validate(&self) -> Result<()> {
        let bounded = [
            ("probability", self.probability, 1.0),
            ("brightness", self.brightness, 1.0),
            ("contrast", self.contrast, 1.0),
            ("saturation", self.saturation, 1.0),
            ("hue", self.hue, 0.5),
            ("grey", self.grey, 1.0),
            ("blur", self.blur, 1.0),
        ];
        for (name, value, most) in bounded {
            if !(0.0..=most).contains(&value) {
                return Err(Error::usage(format!("colour: {name} = {value} must lie between 0 and {most}")));
            }
        }
        Ok(())
    }

    /// Changes the visible part of `frame`.
    pub(super) fn apply(&self, draw: &mut Draw, frame: &mut Frame) {
        let (mut gain, mut contrast, mut saturation, mut turn) = (1.0, 1.0, 1.0, 0.0);
        if draw.chance(self.probability) {
            gain = draw.uniform(1.0 - self.brightness, 1.0 + self.brightness);
            contrast = draw.uniform(1.0 - self.contrast, 1.0 + self.contrast);
            saturation = draw.uniform(1.0 - self.saturation, 1.0 + self.saturation);
            turn = draw.uniform(-self.hue, self.hue);
        }
        if draw.chance(self.grey) {
            saturation = 0.0;
        }
        if (gain, contrast, saturation, turn) != (1.0, 1.0, 1.0, 0.0) {
            let colours = product(&hue(turn as f32), &saturate(saturation as f32));
            let factor = (gain * contrast) as f32;
            // Grey stays grey under saturation and hue, so that the offset of the contrast passes through
            // both.
            let offset = ((1.0 - contrast) * gain) as f32 * mean_luminance(frame);
            transform(frame, &colours.map(|row| row.map(|v| v * factor)), offset);
        }
        if draw.chance(self.blur) {
            blur(frame, draw.uniform(BLUR[0], BLUR[1]) as f32);
        }
    }
}

type Matrix = [[f32; 3]; 3];

fn saturate(s: f32) -> Matrix {
    std::array::from_fn(|r| std::array::from_fn(|c| (1.0 - s) * LUMA[c] + if r == c { s } else { 0.0 }))
}

/// Rotation of the chroma plane of YIQ by a share `turn` of the circle.
fn hue(turn: f32) -> Matrix {
    const TO_YIQ: Matrix = [LUMA, [0.595_716, -0.274_453, -0.321_263], [0.211_456, -0.522_591, 0.311_135]];
    const FROM_YIQ: Matrix =
        [[1.0, 0.956_296, 0.621_024], [1.0, -0.272_122, -0.647_381], [1.0, -1.106_989, 1.704_615]];
    let (sin, cos) = (turn * std::f32::consts::TAU).sin_cos();
    product(&FROM_YIQ, &product(&[[1.0, 0.0, 0.0], [0.0, cos, -sin], [0.0, sin, cos]], &TO_YIQ))
}

fn product(a: &Matrix, b: &Matrix) -> Matrix {
    std::array::from_fn(|r| std::array::from_fn(|c| (0..3).map(|k| a[r][k] * b[k][c]).sum()))
}

fn rows(frame: &mut Frame) -> impl Iterator<Item = &mut [[u8; 3]]> {
    let (x, width) = (frame.visible.x.clone(), frame.width);
    let rows = frame.rgb.as_chunks_mut::<3>().0.chunks_exact_mut(width.max(1));
    rows.skip(frame.visible.y.start).take(frame.visible.y.len()).map(move |row| &mut row[x.clone()])
}

fn mean_luminance(frame: &mut Frame) -> f32 {
    let mut sums = [0u64; 3];
    let mut count = 0u64;
    for row in rows(frame) {
        count += row.len() as u64;
        for pixel in row {
            for c in 0..3 {
                sums[c] += u64::from(pixel[c]);
            }
        }
    }
    (0..3).map(|c| LUMA[c] * sums[c] as f32).sum::<f32>() / count.max(1) as f32
}

fn transform(frame: &mut Frame, matrix: &Matrix, offset: f32) {
    for row in rows(frame) {
        for pixel in row {
            let from = pixel.map(f32::from);
            for c in 0..3 {
                let m = &matrix[c];
                // The conversion saturates; the half rounds.
                pixel[c] = (m[0] * from[0] + m[1] * from[1] + m[2] * from[2] + offset + 0.5) as u8;
            }
        }
    }
}

fn blur(frame: &mut Frame, sigma: f32) {
    let (width, height) = (frame.visible.x.len() as u32, frame.visible.y.len() as u32);
    let pixels: Vec<u8> = rows(frame).flat_map(|row| row.as_flattened().to_vec()).collect();
    let Some(image) = RgbImage::from_raw(width, height, pixels).filter(|i| !i.is_empty()) else { return };
    let blurred = image::imageops::blur(&image, sigma);
    let from = blurred.as_raw().as_chunks::<3>().0.chunks_exact(width as usize);
    for (to, from) in rows(frame).zip(from) {
        to.copy_from_slice(from);
    }
}
