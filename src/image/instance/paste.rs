//! Masks of boxes: what a two-stage detector says of the pixels of each box, pasted at its place in the
//! photo.
//!
//! As upstream (mmdet's `FCNMaskHead.get_seg_masks` and `_do_paste_mask`): a pixel's centre is sought in the
//! mask that the box stretches, bilinearly between its cells (zero outside of it), and the pixel belongs to
//! the mask from 0.5 on. Only pixels up to one beyond the box are looked at.

use super::super::bitmask::BitMask;
use super::super::preprocess::Geometry;
use super::super::worker_pool::WorkerPool;
use super::InstanceResult;
use crate::error::{Error, Result};

/// A blended row whose values are all below this has no pixel of the mask, however it is rounded.
const SURELY_OUTSIDE: f32 = 0.49;

/// Detections of one photo, best first.
#[derive(Clone, Copy, Debug)]
pub struct Detections<'a> {
    /// Left, top, right and bottom in pixels of the photo, `[N, 4]`.
    pub boxes: &'a [f32],
    /// Scores, `[N]`.
    pub scores: &'a [f32],
    /// Classes, `[N]`.
    pub labels: &'a [i32],
    /// Height and width of the masks' probabilities.
    pub mask_size: (usize, usize),
    /// Probabilities `[N, height, width]` of the cells of each box.
    pub probabilities: &'a [f32],
}

impl Detections<'_> {
    fn check(&self) -> Result<()> {
        let (count, cells) = (self.scores.len(), self.mask_size.0 * self.mask_size.1);
        let sizes = [self.boxes.len(), self.labels.len(), self.probabilities.len()];
        if sizes == [4 * count, count, cells * count] {
            return Ok(());
        }
        Err(Error::Shape {
            op: "postprocess",
            value: "detections".into(),
            reason: format!("boxes, labels and probabilities of {sizes:?} values are not {count} detections"),
        })
    }
}

/// Pastes masks. Keeps its memory, so that a call for photos of the size of the previous one allocates
/// nothing.
#[derive(Debug, Default)]
pub struct Paster {
    workers: WorkerPool<Worker>,
    width: usize,
}

/// Memory of one thread.
#[derive(Debug)]
struct Worker {
    /// Where each column of the photo lies in a row.
    columns: Vec<Tap>,
    /// A blended row of the mask, a zero before it and two after.
    row: Vec<f32>,
}

/// The cells around a position along an axis of so many: the first, and the share of the one after it.
#[derive(Clone, Copy, Debug)]
struct Tap {
    /// Counted from the one before the mask; one beyond its end for positions far away.
    first: u32,
    share: f32,
}

/// The pixels and positions of one axis of a box.
#[derive(Clone, Copy)]
struct Axis {
    low: f32,
    extent: f32,
    cells: usize,
    from: usize,
    to: usize,
}

impl Axis {
    fn new(low: f32, high: f32, cells: usize, pixels: usize) -> Axis {
        // As integers, NaN and what is out of range stay within the photo.
        let from = ((low.floor() - 1.0).max(0.0) as usize).min(pixels);
        let to = (high.ceil() + 1.0).clamp(0.0, pixels as f32) as usize;
        Axis { low, extent: high - low, cells, from, to: to.max(from) }
    }

    fn tap(&self, pixel: usize) -> Tap {
        let mut at = (pixel as f32 + 0.5 - self.low) / self.extent * 2.0 - 1.0;
        if at.is_infinite() {
            at = 0.0;
        }
        let at = (at + 1.0) * (self.cells as f32 / 2.0) - 0.5;
        let first = at.floor();
        if first >= -1.0 && first < self.cells as f32 {
            Tap { first: (first + 1.0) as u32, share: at - first }
        } else {
            Tap { first: self.cells as u32 + 1, share: 0.0 }
        }
    }
}

impl Paster {
    /// Replaces what `result` held by those detections that score at least `min_score`, reusing its memory.
    ///
    /// # Errors
    /// [`Error::Shape`] if the detections do not fit each other; [`Error::Memory`] if there is too little for
    /// the masks.
    pub fn run(
        &mut self,
        found: &Detections<'_>,
        geometry: &Geometry,
        min_score: f32,
        result: &mut InstanceResult,
    ) -> Result<()> {
        found.check()?;
        let size = geometry.original;
        result.take_detections((found.scores, found.labels, found.boxes), min_score, size)?;
        if self.width != size.1 {
            self.workers.clear();
            self.width = size.1;
        }
        let (mask_height, mask_width) = found.mask_size;
        let (cells, width) = (mask_height * mask_width, self.width);
        let worker = || Worker { columns: Vec::with_capacity(width), row: vec![0.0; mask_width + 3] };
        self.workers.fill(worker);
        let (workers, enlargement) = (&self.workers, geometry.enlargement());
        result.draw(size, |index, mask| {
            let at = &found.boxes[4 * index..];
            // To the network's input and back, as upstream.
            let side = |side: usize| {
                let factor = enlargement[1 - side % 2];
                at[side] * factor / factor
            };
            let down = Axis::new(side(1), side(3), mask_height, size.0);
            let across = Axis::new(side(0), side(2), mask_width, size.1);
            let probabilities = &found.probabilities[index * cells..][..cells];
            workers.lend(|worker| paste(probabilities, down, across, mask, worker));
        });
        Ok(())
    }
}

/// Adds the pixels of a box that belong to its mask.
fn paste(probabilities: &[f32], down: Axis, across: Axis, mask: &mut BitMask, worker: &mut Worker) {
    let Worker { columns, row } = worker;
    columns.clear();
    columns.extend((across.from..across.to).map(|x| across.tap(x)));
    row.resize(across.cells + 3, 0.0);
    let width = mask.width();
    for y in down.from..down.to {
        let Tap { first, share } = down.tap(y);
        let line = |index: usize| {
            let cell = index.checked_sub(1).filter(|&cell| cell < down.cells);
            cell.map(|cell| &probabilities[cell * across.cells..][..across.cells])
        };
        let inside = &mut row[1..=across.cells];
        inside.fill(0.0);
        for (line, share) in [(line(first as usize), 1.0 - share), (line(first as usize + 1), share)] {
            let blend = |(sum, p): (&mut f32, &f32)| *sum += share * p;
            inside.iter_mut().zip(line.unwrap_or_default()).for_each(blend);
        }
        if inside.iter().all(|&p| p < SURELY_OUTSIDE) {
            continue;
        }
        let (start, bytes) = (y * width + across.from, mask.bytes_mut());
        for (at, tap) in (start..).zip(columns.iter()) {
            let first = tap.first as usize;
            let p = row[first] * (1.0 - tap.share) + row[first + 1] * tap.share;
            bytes[at / 8] |= u8::from(p >= 0.5) << (7 - at % 8);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pasted(boxes: &[f32], probabilities: &[f32], size: (usize, usize)) -> InstanceResult {
        let geometry = Geometry { original: size, resized: size, padded: size };
        let count = boxes.len() / 4;
        let found = Detections {
            boxes,
            scores: &vec![0.5; count],
            labels: &vec![0; count],
            mask_size: (2, 2),
            probabilities,
        };
        let mut result = InstanceResult::default();
        Paster::default().run(&found, &geometry, 0.0, &mut result).unwrap();
        result
    }

    #[test]
    fn a_full_mask_fills_its_box() {
        let result = pasted(&[2.0, 1.0, 6.0, 4.0], &[1.0; 4], (8, 9));
        let mask = result.masks().next().unwrap();
        // A pixel's share of the outermost cell falls to a half on the edge of the box.
        let inside = BitMask::from_fn(8, 9, |y, x| (1..4).contains(&y) && (2..6).contains(&x));
        assert_eq!(mask, &inside);
        assert_eq!(result.detector_box(&result.instances()[0]), Some([2.0, 1.0, 6.0, 4.0]));
    }

    #[test]
    fn strange_boxes_are_no_panic() {
        let (nan, inf) = (f32::NAN, f32::INFINITY);
        let boxes = [
            [-50.0, -50.0, -20.0, -20.0],
            [100.0, 100.0, 120.0, 130.0],
            [3.0, 3.0, 3.0, 3.0],
            [6.0, 6.0, 2.0, 2.0],
            [nan, nan, nan, nan],
            [-inf, 0.0, inf, 5.0],
            [0.0, nan, 5.0, 5.0],
            [-1e30, -1e30, 1e30, 1e30],
        ];
        let result = pasted(boxes.as_flattened(), &[1.0; 32], (8, 9));
        assert_eq!(result.instances().len(), boxes.len());
        let areas: Vec<usize> = result.instances().iter().map(|instance| instance.area).collect();
        assert_eq!((areas[0], areas[1], areas[4]), (0, 0, 0), "{areas:?}");
        assert_eq!(areas[7], 72);
    }

    #[test]
    fn parts_that_do_not_fit_are_refused() {
        let geometry = Geometry { original: (4, 4), resized: (4, 4), padded: (4, 4) };
        let found = Detections {
            boxes: &[0.0; 4],
            scores: &[0.5; 2],
            labels: &[0; 2],
            mask_size: (2, 2),
            probabilities: &[0.0; 8],
        };
        let error =
            Paster::default().run(&found, &geometry, 0.0, &mut InstanceResult::default()).unwrap_err();
        assert!(matches!(error, Error::Shape { .. }), "{error}");
    }
}
