//! Text on images, from a signed-distance atlas of printable ASCII (DejaVu Sans Bold, see assets/font).
//!
//! An atlas pixel holds the distance to the glyph's outline, so that one small atlas is sharp at any size:
//! coverage is the distance in output pixels plus one half, clamped to 0..1.

use std::sync::OnceLock;

use image::{GrayImage, RgbImage};

use super::overlay::blend;

/// Geometry of the atlas, as made by assets/font/make.py.
const EM: f32 = 32.0;
const CELL: u32 = 42;
const COLUMNS: u32 = 16;
const PAD: f32 = 4.0;
const BASELINE: f32 = 31.0;
const SPREAD: f32 = 4.0;
/// Height of capitals over the em.
pub const CAP_HEIGHT: f32 = 0.73;

/// Distance from one glyph to the next at [`EM`], from the space on.
#[rustfmt::skip]
const ADVANCE: [f32; 95] = [
    11.14, 14.59, 16.67, 26.81, 22.27, 32.06, 27.91, 9.80, 14.62, 14.62, 16.73, 26.81,
    12.16, 13.28, 12.16, 11.69, 22.27, 22.27, 22.27, 22.27, 22.27, 22.27, 22.27, 22.27,
    22.27, 22.27, 12.80, 12.80, 26.81, 26.81, 26.81, 18.56, 32.00, 24.77, 24.39, 23.48,
    26.56, 21.86, 21.86, 26.27, 26.78, 11.91, 11.91, 24.80, 20.39, 31.84, 26.78, 27.20,
    23.45, 27.20, 24.64, 23.05, 21.83, 25.98, 24.77, 35.30, 24.67, 23.17, 23.20, 14.62,
    11.69, 14.62, 26.81, 16.00, 16.00, 21.59, 22.91, 18.97, 22.91, 21.70, 13.92, 22.91,
    22.78, 10.97, 10.97, 21.28, 10.97, 33.34, 22.78, 21.98, 22.91, 22.91, 15.78, 19.05,
    15.30, 22.78, 20.86, 29.56, 20.64, 20.86, 18.62, 22.78, 11.69, 22.78, 26.81,
];

fn atlas() -> &'static GrayImage {
    static ATLAS: OnceLock<GrayImage> = OnceLock::new();
    ATLAS.get_or_init(|| {
        let png = include_bytes!("../../assets/font/glyphs.png");
        image::load_from_memory(png).expect("the embedded atlas is a PNG").into_luma8()
    })
}

/// Position of a character in the atlas; a question mark for what is not there.
fn glyph(character: char) -> usize {
    match character {
        ' '..='~' => character as usize - 32,
        _ => '?' as usize - 32,
    }
}

/// Width of a line of text of `em` pixels.
pub fn width(text: &str, em: f32) -> f32 {
    text.chars().map(|c| ADVANCE[glyph(c)]).sum::<f32>() * em / EM
}

/// Draws a line of text that starts at `x` on the line `baseline`.
pub fn draw(canvas: &mut RgbImage, text: &str, x: f32, baseline: f32, em: f32, colour: [u8; 3]) {
    let scale = em / EM;
    let mut pen = x;
    for character in text.chars() {
        let glyph = glyph(character);
        draw_glyph(canvas, glyph as u32, pen - PAD * scale, baseline - BASELINE * scale, scale, colour);
        pen += ADVANCE[glyph] * scale;
    }
}

fn draw_glyph(canvas: &mut RgbImage, glyph: u32, left: f32, top: f32, scale: f32, colour: [u8; 3]) {
    let (width, height) = canvas.dimensions();
    let size = CELL as f32 * scale;
    let range = |from: f32, limit: u32| {
        (from.max(0.0) as u32)..((from + size).ceil().clamp(0.0, limit as f32) as u32)
    };
    for y in range(top, height) {
        for x in range(left, width) {
            let distance = sample(glyph, (x as f32 + 0.5 - left) / scale, (y as f32 + 0.5 - top) / scale);
            let coverage = (distance * scale + 0.5).clamp(0.0, 1.0);
            if coverage > 0.0 {
                blend(canvas, x, y, colour, coverage);
            }
        }
    }
}

/// Distance to the outline in atlas pixels, positive inside, at a point of a glyph's cell.
fn sample(glyph: u32, x: f32, y: f32) -> f32 {
    let (column, row) = (glyph % COLUMNS * CELL, glyph / COLUMNS * CELL);
    let at = |x: f32, y: f32| {
        let inside = |v: f32| v.clamp(0.0, CELL as f32 - 1.0) as u32;
        f32::from(atlas().get_pixel(column + inside(x), row + inside(y))[0])
    };
    let (x, y) = (x - 0.5, y - 0.5);
    let (left, top) = (x.floor(), y.floor());
    let (fx, fy) = (x - left, y - top);
    let upper = at(left, top) * (1.0 - fx) + at(left + 1.0, top) * fx;
    let lower = at(left, top + 1.0) * (1.0 - fx) + at(left + 1.0, top + 1.0) * fx;
    (upper * (1.0 - fy) + lower * fy - 128.0) / 127.0 * SPREAD
}
