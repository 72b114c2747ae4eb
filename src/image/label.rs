//! Where labels of an overlay go, and how they are drawn.
//!
//! A label may hide a part of its own region, or of another, but never most of it: what labels cover of each
//! region is counted as they are placed. A region too small for its label has it beside itself, with a line;
//! smaller letters are tried before either, and a label that would hide too much everywhere is left out.

use image::RgbImage;

use super::bitmask::{BitMask, PixelBox};
use super::overlay::{Layer, blend};
use super::palette::ink_on;
use super::text;

/// Most of a region that labels may hide, all together.
const MOST_HIDDEN: f32 = 0.3;
/// Smallest letters, in pixels an em: below them text is not read.
const LEAST_EM: f32 = 9.0;

/// A label beside a region keeps clear of as much of it as lies within so many ems of its thickest place.
const NEAR: f32 = 3.0;

/// A label with its place.
pub(super) struct Label<'a> {
    text: &'a str,
    colour: [u8; 3],
    spot: Spot,
}

/// From a label to its region: columns and rows.
type Line = [(f32, f32); 2];

/// A place for a label.
#[derive(Clone, Copy)]
struct Spot {
    /// Size of the letters.
    em: f32,
    rect: Rect,
    /// If it lies beside its region.
    line: Option<Line>,
}

impl Spot {
    /// Whether box or line of one meets the box of the other.
    fn meets(&self, other: &Spot) -> bool {
        let crossed = |line: &Option<Line>, rect| line.is_some_and(|[from, to]| crosses(from, to, rect));
        self.rect.overlaps(&other.rect)
            || crossed(&self.line, &other.rect)
            || crossed(&other.line, &self.rect)
    }
}

/// A rectangle of the canvas: left, top, width, height.
#[derive(Clone, Copy, Debug)]
struct Rect(f32, f32, f32, f32);

impl Rect {
    fn overlaps(&self, other: &Rect) -> bool {
        self.0 < other.0 + other.2
            && other.0 < self.0 + self.2
            && self.1 < other.1 + other.3
            && other.1 < self.1 + self.3
    }

    /// The pixels that it touches, within a mask.
    fn pixels(&self, mask: &BitMask) -> PixelBox {
        let end = |v: f32, limit: usize| (v.ceil() as usize).min(limit);
        let (x, y) = (self.0 as usize, self.1 as usize);
        PixelBox {
            x,
            y,
            width: end(self.0 + self.2, mask.width()).saturating_sub(x),
            height: end(self.1 + self.3, mask.height()).saturating_sub(y),
        }
    }

    /// The point of it that is nearest to another.
    fn nearest(&self, (x, y): (f32, f32)) -> (f32, f32) {
        (x.clamp(self.0, self.0 + self.2), y.clamp(self.1, self.1 + self.3))
    }
}

/// A region as far as labels are concerned.
struct Region<'a> {
    mask: &'a BitMask,
    area: usize,
    bbox: PixelBox,
    /// Pixels under labels.
    hidden: usize,
}

impl Region<'_> {
    /// How many of its pixels lie in `spot`.
    fn under(&self, spot: &Rect) -> usize {
        let (PixelBox { x, y, width, height }, own) = (spot.pixels(self.mask), self.bbox);
        let columns = x.max(own.x)..(x + width).min(own.x + own.width);
        (y.max(own.y)..(y + height).min(own.y + own.height))
            .map(|y| columns.clone().filter(|&x| self.mask.get(y, x)).count())
            .sum()
    }
}

/// Places the labels of layers on a canvas of `(height, width)` pixels, in their order; `extent` is the side
/// of a square of its area.
pub(super) fn place<'a>(layers: &'a [Layer], (height, width): (usize, usize), extent: f32) -> Vec<Label<'a>> {
    let canvas = (width as f32, height as f32);
    let mut regions: Vec<Region> = layers
        .iter()
        .map(|layer| {
            let mask = layer.mask.as_ref();
            Region { mask, area: mask.area(), bbox: mask.bbox(), hidden: 0 }
        })
        .collect();
    let mut placed: Vec<Label> = Vec::new();
    for layer in layers {
        let Some(anchor) = thickest(&layer.mask).filter(|_| !layer.label.is_empty()) else { continue };
        let spots = spots(layer, anchor, canvas, extent);
        let found = spots.into_iter().filter(|spot| !placed.iter().any(|other| spot.meets(&other.spot)));
        // What it would hide of each region that it touches.
        let mut found = found.map(|spot| {
            let hides = regions.iter().map(|region| region.under(&spot.rect)).enumerate();
            (spot, hides.filter(|(_, pixels)| *pixels > 0).collect::<Vec<(usize, usize)>>())
        });
        let bearable = |&(region, pixels): &(usize, usize)| {
            let region: &Region = &regions[region];
            (region.hidden + pixels) as f32 <= MOST_HIDDEN * region.area as f32
        };
        let found = found.find(|(_, hides)| hides.iter().all(bearable));
        let Some((spot, hides)) = found else { continue };
        hides.into_iter().for_each(|(region, pixels)| regions[region].hidden += pixels);
        placed.push(Label { text: &layer.label, colour: layer.colour, spot });
    }
    placed
}

/// Places for a label, best first.
fn spots(layer: &Layer, (y, x): (usize, usize), (width, height): (f32, f32), extent: f32) -> Vec<Spot> {
    // Small regions get somewhat smaller labels, so that a crowd stays readable.
    let share = (layer.mask.area() as f32).sqrt() / extent;
    let largest = (extent * 0.028 * (share / 0.2).clamp(0.75, 1.0)).max(11.0);
    let anchor = (x as f32 + 0.5, y as f32 + 0.5);
    // The region's sides, where they are near: a region of scattered parts would have its label far from all
    // of them.
    let bbox = layer.mask.bbox();
    let near =
        |side: usize, anchor: f32| (side as f32).clamp(anchor - NEAR * largest, anchor + NEAR * largest);
    let (left, top) = (near(bbox.x, anchor.0), near(bbox.y, anchor.1));
    let (right, bottom) = (near(bbox.x + bbox.width, anchor.0), near(bbox.y + bbox.height, anchor.1));
    let mut spots = Vec::new();
    for em in [largest, 0.8 * largest] {
        // The box adds half an em of padding on either side; a label wider than the image is set smaller.
        let lines = |em: f32| text::width(&layer.label, em) + em;
        let em = em * (width / lines(em)).min(height / (1.5 * em)).min(1.0);
        if em < LEAST_EM.min(largest) {
            continue;
        }
        let (box_width, box_height) = (lines(em), 1.5 * em);
        let at = |left: f32, top: f32| {
            Rect(
                left.clamp(0.0, width - box_width).round().max(0.0),
                top.clamp(0.0, height - box_height).round().max(0.0),
                box_width,
                box_height,
            )
        };
        // On the region: its thickest place, then up and down, then to the sides.
        let steps = [0.0, -1.1, 1.1, -2.2, 2.2, -3.3, 3.3];
        let centred = (anchor.0 - box_width / 2.0, anchor.1 - box_height / 2.0);
        for dx in [0.0, -0.6, 0.6] {
            for dy in steps {
                let spot = at(centred.0 + dx * box_width, centred.1 + dy * box_height);
                // Off the region it could be taken for another's.
                let (cx, cy) = (spot.0 + spot.2 / 2.0, spot.1 + spot.3 / 2.0);
                let inside = |v: f32, limit: usize| (v as usize).min(limit - 1);
                if layer.mask.get(inside(cy, layer.mask.height()), inside(cx, layer.mask.width())) {
                    spots.push(Spot { em, rect: spot, line: None });
                }
            }
        }
    }
    for distance in [0.5, 1.5, 3.0, 5.0] {
        for em in [0.8 * largest, 0.65 * largest] {
            let em = em.max(LEAST_EM);
            let (box_width, box_height) = (text::width(&layer.label, em) + em, 1.5 * em);
            if box_width > width || box_height > height {
                continue;
            }
            let gap = distance * em;
            let (centre_x, centre_y) = (anchor.0 - box_width / 2.0, anchor.1 - box_height / 2.0);
            let (over, under) = (top - gap - box_height, bottom + gap);
            let (before, behind) = (left - gap - box_width, right + gap);
            for (x, y) in [
                (centre_x, over),
                (centre_x, under),
                (behind, centre_y),
                (before, centre_y),
                (behind, over),
                (before, over),
                (behind, under),
                (before, under),
            ] {
                if x >= 0.0 && y >= 0.0 && x + box_width <= width && y + box_height <= height {
                    let spot = Rect(x.round(), y.round(), box_width, box_height);
                    let line = Some([spot.nearest(anchor), anchor]);
                    spots.push(Spot { em, rect: spot, line });
                }
            }
        }
    }
    spots
}

/// Whether a line from one point to another passes through a rectangle.
fn crosses(from: (f32, f32), to: (f32, f32), rect: &Rect) -> bool {
    let steps = (to.0 - from.0).abs().max((to.1 - from.1).abs()).ceil().max(1.0);
    (0..=steps as usize).any(|i| {
        let t = i as f32 / steps;
        let (x, y) = (from.0 + (to.0 - from.0) * t, from.1 + (to.1 - from.1) * t);
        x > rect.0 && x < rect.0 + rect.2 && y > rect.1 && y < rect.1 + rect.3
    })
}

/// Draws the box and the text.
pub(super) fn draw(canvas: &mut RgbImage, label: &Label) {
    let Label { text, colour, spot: Spot { em, rect, .. } } = *label;
    draw_box(canvas, rect, em * 0.35, colour);
    let baseline = rect.1 + rect.3 / 2.0 + em * text::CAP_HEIGHT / 2.0;
    text::draw(canvas, text, rect.0 + em / 2.0, baseline, em, ink_on(colour));
}

/// Draws the line to the region, if the label lies beside it, with a dot at its end.
pub(super) fn draw_line(canvas: &mut RgbImage, label: &Label) {
    let Spot { em, line, .. } = label.spot;
    let Some([from, to]) = line else { return };
    let (thickness, dot) = (em * 0.06, em * 0.16);
    let (dx, dy) = (to.0 - from.0, to.1 - from.1);
    let length = dx.hypot(dy).max(1e-3);
    let reach = dot.max(thickness) + 1.0;
    let range = |a: f32, b: f32, limit: u32| {
        let first = (a.min(b) - reach).max(0.0) as u32;
        first..((a.max(b) + reach).ceil().max(0.0) as u32).min(limit)
    };
    for y in range(from.1, to.1, canvas.height()) {
        for x in range(from.0, to.0, canvas.width()) {
            let (px, py) = (x as f32 + 0.5 - from.0, y as f32 + 0.5 - from.1);
            let along = ((px * dx + py * dy) / (length * length)).clamp(0.0, 1.0);
            let from_line = (px - along * dx).hypot(py - along * dy);
            let from_dot = (px - dx).hypot(py - dy);
            let alpha = (thickness - from_line).max(dot - from_dot) + 0.5;
            if alpha > 0.0 {
                blend(canvas, x, y, label.colour, alpha.min(1.0));
            }
        }
    }
}

/// A rectangle with rounded corners.
fn draw_box(canvas: &mut RgbImage, Rect(left, top, width, height): Rect, radius: f32, colour: [u8; 3]) {
    let end = |v: f32, limit: u32| (v.ceil() as u32).min(limit);
    for y in top as u32..end(top + height, canvas.height()) {
        for x in left as u32..end(left + width, canvas.width()) {
            // Distance beyond the rectangle shrunk by the radius.
            let beyond =
                |v: f32, from: f32, size: f32| (from + radius - v).max(v - (from + size - radius)).max(0.0);
            let (dx, dy) = (beyond(x as f32 + 0.5, left, width), beyond(y as f32 + 0.5, top, height));
            let alpha = (radius - dx.hypot(dy) + 0.5).clamp(0.0, 1.0);
            blend(canvas, x, y, colour, alpha * 0.92);
        }
    }
}

/// The pixel of a mask that is farthest from its outside (city-block distance, which two passes find
/// exactly); of equals the one nearest to the middle of the box. `None` if the mask is empty.
fn thickest(mask: &BitMask) -> Option<(usize, usize)> {
    let area = mask.bbox();
    let stride = area.width + 2;
    let mut depth = vec![0u32; stride * (area.height + 2)];
    for y in 0..area.height {
        for x in 0..area.width {
            if mask.get(area.y + y, area.x + x) {
                let at = (y + 1) * stride + x + 1;
                depth[at] = depth[at - 1].min(depth[at - stride]) + 1;
            }
        }
    }
    let mut best: Option<(u32, std::cmp::Reverse<usize>, (usize, usize))> = None;
    for y in (0..area.height).rev() {
        for x in (0..area.width).rev() {
            let at = (y + 1) * stride + x + 1;
            if depth[at] > 0 {
                depth[at] = depth[at].min(depth[at + 1].min(depth[at + stride]) + 1);
                let from_middle = (2 * x).abs_diff(area.width) + (2 * y).abs_diff(area.height);
                let candidate = (depth[at], std::cmp::Reverse(from_middle), (area.y + y, area.x + x));
                best = best.max(Some(candidate));
            }
        }
    }
    best.map(|(_, _, at)| at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::borrow::Cow;

    /// Discs of `radius` pixels at some places of a canvas of 400 x 600.
    fn discs(places: &[(usize, usize, f32)]) -> Vec<Layer<'static>> {
        let disc = |&(y, x, radius): &(usize, usize, f32)| {
            BitMask::from_fn(400, 600, |py, px| (py as f32 - y as f32).hypot(px as f32 - x as f32) <= radius)
        };
        let layer = |place| Layer {
            mask: Cow::Owned(disc(place)),
            colour: [200, 30, 30],
            label: "person 0.87".into(),
        };
        places.iter().map(layer).collect()
    }

    fn placed<'a>(layers: &'a [Layer<'a>]) -> Vec<Label<'a>> {
        place(layers, (400, 600), 490.0)
    }

    #[test]
    fn a_large_region_has_its_label_on_itself() {
        let layers = discs(&[(200, 300, 120.0)]);
        let labels = placed(&layers);
        assert_eq!(labels.len(), 1);
        assert!(labels[0].spot.line.is_none());
        let Rect(left, top, width, height) = labels[0].spot.rect;
        assert!((left + width / 2.0 - 300.0).abs() <= 1.0 && (top + height / 2.0 - 200.0).abs() <= 1.0);
    }

    #[test]
    fn a_small_region_has_its_label_beside_itself() {
        for place in [(200, 300, 8.0), (3, 3, 8.0), (396, 596, 8.0), (200, 2, 5.0)] {
            let layers = discs(&[place]);
            let labels = placed(&layers);
            let [label] = &labels[..] else { panic!("{} labels", labels.len()) };
            assert!(label.spot.line.is_some(), "{place:?}");
            let hidden = layers[0].mask.pixels().filter(|&(y, x)| {
                let Rect(left, top, width, height) = label.spot.rect;
                x as f32 >= left && (x as f32) < left + width && y as f32 >= top && (y as f32) < top + height
            });
            assert_eq!(hidden.count(), 0, "{place:?}");
        }
    }

    #[test]
    fn thirty_regions_stay_visible_and_labels_do_not_meet() {
        let places: Vec<_> =
            (0..30).map(|i| (40 + i / 6 * 75, 50 + i % 6 * 95, [9.0, 20.0, 45.0][i % 3])).collect();
        let layers = discs(&places);
        let labels = placed(&layers);
        assert!(labels.len() >= 20, "{} labels", labels.len());
        for (i, label) in labels.iter().enumerate() {
            assert!(labels[..i].iter().all(|other| !other.spot.rect.overlaps(&label.spot.rect)));
        }
        for layer in &layers {
            let region =
                Region { mask: &layer.mask, area: layer.mask.area(), bbox: layer.mask.bbox(), hidden: 0 };
            let hidden: usize = labels.iter().map(|label| region.under(&label.spot.rect)).sum();
            assert!(hidden as f32 <= MOST_HIDDEN * region.area as f32, "{hidden} of {}", region.area);
        }
    }

    #[test]
    fn an_empty_label_and_an_empty_mask_have_none() {
        let mut layers = discs(&[(200, 300, 50.0), (100, 100, -1.0)]);
        layers[0].label.clear();
        assert!(placed(&layers).is_empty());
    }
}
