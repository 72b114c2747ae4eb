//! Results drawn over the photo: translucent fills, contours and labels, sized with the image so that a
//! phone-sized view of it is legible.

use std::borrow::Cow;

use image::RgbImage;

use super::bitmask::BitMask;
use super::classes::Class;
use super::instance::InstanceResult;
use super::label;
use super::palette::distinct;
use super::panoptic::PanopticResult;
use super::semantic::SemanticResult;
use crate::error::{Error, Result};

/// Opacity of fills.
const FILL: f32 = 0.38;

/// One coloured region with its label.
#[derive(Clone, Debug)]
pub struct Layer<'a> {
    /// The pixels.
    pub mask: Cow<'a, BitMask>,
    /// Colour of fill, contour and label.
    pub colour: [u8; 3],
    /// Text of the label; none if empty.
    pub label: String,
}

/// The instances of at least `min_score` as layers, best first.
pub fn instance_layers<'a>(result: &'a InstanceResult, classes: &[Class], min_score: f32) -> Vec<Layer<'a>> {
    let shown = result.instances().iter().filter(|i| i.score >= min_score && i.area > 0);
    shown
        .enumerate()
        .map(|(n, i)| Layer {
            mask: Cow::Borrowed(result.mask(i)),
            colour: distinct(n),
            label: format!("{} {:.2}", name(classes, i.label), i.score),
        })
        .collect()
}

/// The segments as layers: things in distinct colours and with their score, stuff in the colour of its class.
pub fn panoptic_layers(result: &PanopticResult, classes: &[Class]) -> Vec<Layer<'static>> {
    let mut masks = vec![BitMask::new(result.height, result.width); result.segments.len()];
    let counter_of = |query: u32| result.segments.iter().position(|s| s.query == query as usize);
    let layer_of: Vec<Option<usize>> = (0..result.trace.mask_area.len() as u32).map(counter_of).collect();
    for (at, &query) in result.trace.argmax_ids.iter().enumerate() {
        if let Some(layer) = layer_of[query as usize] {
            masks[layer].set(at / result.width, at % result.width);
        }
    }
    let segments = result.segments.iter().zip(masks).enumerate();
    segments
        .map(|(n, (segment, mask))| {
            let name = name(classes, segment.category);
            let (colour, label) = match (segment.is_thing, classes.get(segment.category)) {
                (false, Some(class)) => (class.colour, name.to_string()),
                _ => (distinct(n), format!("{name} {:.2}", segment.score)),
            };
            Layer { mask: Cow::Owned(mask), colour, label }
        })
        .collect()
}

/// The classes of a semantic map as layers, largest first, each with its share of the photo.
pub fn semantic_layers(result: &SemanticResult, classes: &[Class]) -> Vec<Layer<'static>> {
    let present = result.present();
    let mut layer_of = vec![usize::MAX; result.areas.len()];
    present.iter().enumerate().for_each(|(layer, &(class, _))| layer_of[class] = layer);
    let mut masks = vec![BitMask::new(result.height, result.width); present.len()];
    for (at, &class) in result.map.iter().enumerate() {
        masks[layer_of[class as usize]].set(at / result.width, at % result.width);
    }
    let layer = |(&(class, area), mask): (&(usize, usize), BitMask)| Layer {
        mask: Cow::Owned(mask),
        colour: classes.get(class).map_or_else(|| distinct(class), |class| class.colour),
        label: format!("{} {}", name(classes, class), share(area, result.pixels())),
    };
    present.iter().zip(masks).map(layer).collect()
}

/// A share in percent, as a legend has it.
fn share(area: usize, pixels: usize) -> String {
    let percent = area as f64 * 100.0 / pixels.max(1) as f64;
    if percent < 1.0 { "<1%".to_string() } else { format!("{percent:.0}%") }
}

/// Class name as people say it: COCO's stuff names carry notes on how they were merged (`wall-other-merged`).
pub(crate) fn name(classes: &[Class], index: usize) -> Cow<'_, str> {
    match classes.get(index) {
        Some(class) => {
            let name = class.name.trim_end_matches("-merged").trim_end_matches("-other");
            Cow::Borrowed(name)
        }
        None => format!("class {index}").into(),
    }
}

/// Draws layers over a photo: larger regions first, so that small ones stay visible on them.
///
/// Labels sit at the thickest place of their region if they hide little of it and of others, else beside it
/// with a line to it; one that finds no such place is left out, and its region keeps its contour
/// (`label.rs`).
///
/// # Errors
/// [`Error::Shape`] if a mask is not of the photo's size.
pub fn draw(photo: &RgbImage, layers: &[Layer]) -> Result<RgbImage> {
    let size = (photo.height() as usize, photo.width() as usize);
    for layer in layers {
        if (layer.mask.height(), layer.mask.width()) != size {
            return Err(Error::Shape {
                op: "overlay",
                value: layer.label.clone(),
                reason: format!(
                    "a {} x {} mask over a {} x {} photo",
                    layer.mask.height(),
                    layer.mask.width(),
                    size.0,
                    size.1
                ),
            });
        }
    }
    let mut canvas = photo.clone();
    let mut order: Vec<(usize, &Layer)> = layers.iter().map(|l| (l.mask.area(), l)).collect();
    order.sort_by_key(|(area, _)| std::cmp::Reverse(*area));
    let extent = ((size.0 * size.1) as f32).sqrt();
    for (_, layer) in &order {
        for (y, x) in layer.mask.pixels() {
            blend(&mut canvas, x as u32, y as u32, layer.colour, FILL);
        }
    }
    for (_, layer) in &order {
        draw_contour(&mut canvas, layer, (extent * 0.0032).max(0.8));
    }
    let labels = label::place(layers, size, extent);
    // Lines first: none crosses a label.
    for label in &labels {
        label::draw_line(&mut canvas, label);
    }
    for label in &labels {
        label::draw(&mut canvas, label);
    }
    Ok(canvas)
}

/// The regions in their colours on black, without the photo, at the size of `(height, width)`; where they
/// overlap, the first is on top.
pub fn flat(layers: &[Layer], (height, width): (usize, usize)) -> RgbImage {
    let mut canvas = RgbImage::new(width as u32, height as u32);
    for layer in layers.iter().rev() {
        for (y, x) in layer.mask.pixels().filter(|&(y, x)| y < height && x < width) {
            canvas.put_pixel(x as u32, y as u32, image::Rgb(layer.colour));
        }
    }
    canvas
}

/// Mixes `colour` into a pixel.
#[inline]
pub(super) fn blend(canvas: &mut RgbImage, x: u32, y: u32, colour: [u8; 3], alpha: f32) {
    let pixel = canvas.get_pixel_mut(x, y);
    for c in 0..3 {
        let below = f32::from(pixel[c]);
        pixel[c] = (below + (f32::from(colour[c]) - below) * alpha + 0.5) as u8;
    }
}

/// A line of `thickness` pixels along the inside of a region's edge, fading over one pixel. The image border
/// is no edge.
fn draw_contour(canvas: &mut RgbImage, layer: &Layer, thickness: f32) {
    let mask = &layer.mask;
    let (height, width) = (mask.height() as i64, mask.width() as i64);
    let area = mask.bbox();
    let mut coverage = vec![0f32; area.width * area.height];
    let reach = thickness.ceil() as i64;
    for (y, x) in mask.pixels() {
        let (y, x) = (y as i64, x as i64);
        let outside = |dy: i64, dx: i64| {
            let (y, x) = (y + dy, x + dx);
            y >= 0 && x >= 0 && y < height && x < width && !mask.get(y as usize, x as usize)
        };
        if !(outside(-1, 0) || outside(1, 0) || outside(0, -1) || outside(0, 1)) {
            continue;
        }
        for dy in -reach..=reach {
            for dx in -reach..=reach {
                let (by, bx) = (y + dy - area.y as i64, x + dx - area.x as i64);
                if by >= 0 && bx >= 0 && by < area.height as i64 && bx < area.width as i64 {
                    let fade = (thickness - ((dy * dy + dx * dx) as f32).sqrt()).clamp(0.0, 1.0);
                    let cell = &mut coverage[by as usize * area.width + bx as usize];
                    *cell = cell.max(fade);
                }
            }
        }
    }
    for (i, &alpha) in coverage.iter().enumerate() {
        let (y, x) = (area.y + i / area.width, area.x + i % area.width);
        if alpha > 0.0 && mask.get(y, x) {
            blend(canvas, x as u32, y as u32, layer.colour, alpha);
        }
    }
}
