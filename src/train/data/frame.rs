//! A training image under construction: pixels, masks and semantic map moved by the same scale, shift and
//! mirror.

use image::{GrayImage, RgbImage};

use super::bilinear::Bilinear;
use super::dataset::{IGNORE, Object, Sample};
use super::mask::Mask;

/// Columns `x` and rows `y` of a frame or image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Rect {
    pub x: std::ops::Range<usize>,
    pub y: std::ops::Range<usize>,
}

/// Where an image lies in a frame: scaled to `size` (height, width), mirrored or not, its top left corner at
/// `y`, `x`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Placement {
    pub size: (usize, usize),
    pub y: i64,
    pub x: i64,
    pub flip: bool,
}

impl Placement {
    /// The part of a `frame` (height, width) that the image covers.
    pub(super) fn visible(&self, frame: (usize, usize)) -> Rect {
        let axis = |at: i64, side: usize, frame: usize| {
            let clamp = |v: i64| v.clamp(0, frame as i64) as usize;
            clamp(at)..clamp(at + side as i64)
        };
        Rect { x: axis(self.x, self.size.1, frame.1), y: axis(self.y, self.size.0, frame.0) }
    }

    /// Source column of each visible frame column and source row of each visible row: nearest by pixel
    /// centres.
    fn sources(&self, visible: &Rect, source: (usize, usize)) -> (Vec<usize>, Vec<usize>) {
        // Pixel d of n covers position (d + 0.5) / n of the image, in whole numbers (2d + 1) / 2n.
        let nearest = |d: usize, n: usize, source: usize| (2 * d + 1) * source / (2 * n);
        let columns = visible.x.clone().map(|x| {
            let d = (x as i64 - self.x) as usize;
            nearest(if self.flip { self.size.1 - 1 - d } else { d }, self.size.1, source.1)
        });
        let rows = visible.y.clone().map(|y| nearest((y as i64 - self.y) as usize, self.size.0, source.0));
        (columns.collect(), rows.collect())
    }

    /// Pixels of each class of `map` that a frame (height, width) shows.
    pub(super) fn classes(&self, map: &GrayImage, [height, width]: [usize; 2]) -> [usize; 256] {
        let source = (map.height() as usize, map.width() as usize);
        let (columns, rows) = self.sources(&self.visible((height, width)), source);
        let mut pixels = [0; 256];
        for row in rows {
            let labels = &map.as_raw()[row * source.1..][..source.1];
            columns.iter().for_each(|&column| pixels[usize::from(labels[column])] += 1);
        }
        pixels
    }
}

/// Pixels and labels of one training image; buffers are reused.
#[derive(Debug, Default)]
pub(super) struct Frame {
    pub height: usize,
    pub width: usize,
    /// RGB, `[height, width, 3]`; only `visible` is meaningful.
    pub rgb: Vec<u8>,
    /// The part that shows the image; the rest is padding.
    pub visible: Rect,
    pub objects: Vec<Object>,
    /// Class of each pixel `[height, width]`, [`IGNORE`] outside; empty for instance data.
    pub semantic: Vec<u8>,
}

/// The tools that fill a frame.
#[derive(Default)]
pub(super) struct Painter {
    bilinear: Bilinear,
    scaled: Vec<u8>,
    /// Pixels of an object on its way into a frame.
    patch: Vec<u8>,
}

impl Painter {
    /// Fills `frame` (of its `height` and `width`) with `sample` at `placement`.
    pub(super) fn place(&mut self, sample: &Sample, placement: Placement, frame: &mut Frame) {
        let size = (frame.height, frame.width);
        let source = (sample.image.height() as usize, sample.image.width() as usize);
        let visible = placement.visible(size);
        frame.rgb.resize(size.0 * size.1 * 3, 0);
        frame.objects.clear();
        frame.semantic.clear();
        self.pixels(&sample.image, placement, &visible, frame);
        let (columns, rows) = placement.sources(&visible, source);
        let corner = (visible.y.start, visible.x.start);
        let moved = sample
            .objects
            .iter()
            .filter_map(|o| Some(Object { class: o.class, mask: warp(&o.mask, &columns, &rows, corner)? }));
        frame.objects.extend(moved);
        if let Some(map) = &sample.semantic {
            frame.semantic.resize(size.0 * size.1, IGNORE);
            for (y, &row) in visible.y.clone().zip(&rows) {
                let from = &map.as_raw()[row * source.1..][..source.1];
                let to = &mut frame.semantic[y * size.1..][visible.x.clone()];
                for (to, &column) in to.iter_mut().zip(&columns) {
                    *to = from[column];
                }
            }
        }
        frame.visible = visible;
    }

    /// Resamples the visible part of `image` into the frame.
    fn pixels(&mut self, image: &RgbImage, placement: Placement, visible: &Rect, frame: &mut Frame) {
        let source = (f64::from(image.height()), f64::from(image.width()));
        let (height, width) = (visible.y.len(), visible.x.len());
        if height * width == 0 {
            return;
        }
        let per_row = source.0 / placement.size.0 as f64;
        let per_column = source.1 / placement.size.1 as f64;
        let top = (visible.y.start as i64 - placement.y) as f64 * per_row;
        let before = if placement.flip {
            placement.x + placement.size.1 as i64 - visible.x.end as i64
        } else {
            visible.x.start as i64 - placement.x
        };
        let left = before as f64 * per_column;
        let crop_width = (width as f64 * per_column).min(source.1 - left);
        let crop_height = (height as f64 * per_row).min(source.0 - top);
        // Two taps an axis whatever the scale, as at inference (`image::resize`): the network is to see the
        // same aliasing.
        self.scaled.resize(height * width * 3, 0);
        let crop = [left, top, crop_width, crop_height];
        self.bilinear.resample(image, crop, (height, width), &mut self.scaled);
        for (row, y) in self.scaled.chunks_exact(width * 3).zip(visible.y.clone()) {
            let out = &mut frame.rgb[(y * frame.width + visible.x.start) * 3..][..width * 3];
            if placement.flip {
                let pixels = out.as_chunks_mut::<3>().0;
                for (out, pixel) in pixels.iter_mut().zip(row.as_chunks::<3>().0.iter().rev()) {
                    *out = *pixel;
                }
            } else {
                out.copy_from_slice(row);
            }
        }
    }

    /// Copies one object of `sample`, scaled and mirrored by `placement` (of the whole sample), over `frame`:
    /// earlier objects lose the pixels it covers. Does nothing if fewer than `min_area` pixels would show.
    pub(super) fn paste(
        &mut self,
        sample: &Sample,
        object: &Object,
        placement: Placement,
        min_area: usize,
        frame: &mut Frame,
    ) {
        let source = (sample.image.height() as usize, sample.image.width() as usize);
        let visible = placement.visible((frame.height, frame.width));
        let shown =
            Rect { x: intersect(&visible.x, &frame.visible.x), y: intersect(&visible.y, &frame.visible.y) };
        if shown.x.is_empty() || shown.y.is_empty() {
            return;
        }
        let (columns, rows) = placement.sources(&shown, source);
        let Some(mask) = warp(&object.mask, &columns, &rows, (shown.y.start, shown.x.start)) else { return };
        if mask.area() < min_area {
            return;
        }
        // Only the pixels of the mask's box are resampled.
        let area = Rect { x: mask.x..mask.x + mask.width, y: mask.y..mask.y + mask.height };
        let mut patch = Frame {
            height: frame.height,
            width: frame.width,
            rgb: std::mem::take(&mut self.patch),
            ..Frame::default()
        };
        patch.rgb.resize(frame.rgb.len(), 0);
        self.pixels(&sample.image, placement, &area, &mut patch);
        for y in area.y.clone() {
            let inside = mask.row(y - mask.y);
            let at = y * frame.width + mask.x;
            let to = frame.rgb[at * 3..].as_chunks_mut::<3>().0;
            let from = patch.rgb[at * 3..].as_chunks::<3>().0;
            for ((to, from), &inside) in to.iter_mut().zip(from).zip(inside) {
                if inside != 0 {
                    *to = *from;
                }
            }
            if let Some(classes) = frame.semantic.get_mut(at..at + mask.width) {
                for (class, &inside) in classes.iter_mut().zip(inside) {
                    if inside != 0 {
                        *class = object.class as u8;
                    }
                }
            }
        }
        self.patch = patch.rgb;
        for earlier in &mut frame.objects {
            earlier.mask.subtract(&mask);
        }
        frame.objects.push(Object { class: object.class, mask });
    }
}

fn intersect(a: &std::ops::Range<usize>, b: &std::ops::Range<usize>) -> std::ops::Range<usize> {
    a.start.max(b.start)..a.end.min(b.end)
}

/// The mask seen through `columns` and `rows`: the source column and row of each position of a window whose
/// top left corner is `corner` (y, x). `None` if nothing of its box is in the window.
fn warp(mask: &Mask, columns: &[usize], rows: &[usize], corner: (usize, usize)) -> Option<Mask> {
    let span = |sources: &[usize], from: usize, length: usize| {
        let inside = |&s: &usize| (from..from + length).contains(&s);
        let first = sources.iter().position(inside)?;
        let last = sources.iter().rposition(inside)?;
        Some(first..last + 1)
    };
    let x = span(columns, mask.x, mask.width)?;
    let y = span(rows, mask.y, mask.height)?;
    let mut out = Mask::zeros(x.start + corner.1..x.end + corner.1, y.start + corner.0..y.end + corner.0);
    for (to, &row) in out.data.chunks_exact_mut(x.len()).zip(&rows[y]) {
        let from = mask.row(row - mask.y);
        for (to, &column) in to.iter_mut().zip(&columns[x.clone()]) {
            *to = from[column - mask.x];
        }
    }
    Some(out)
}
