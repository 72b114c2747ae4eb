//! Connected parts of a mask.

use std::ops::Range;

use super::bitmask::{BitMask, PixelBox};

/// The connected parts of one mask: pixels that touch by a side or a corner are of one part. Keeps its
/// memory, which grows with the runs of the masks it has seen.
#[derive(Clone, Debug, Default)]
pub(super) struct Parts {
    /// Row by row, each row from the left.
    runs: Vec<Run>,
}

/// Neighbouring pixels of a row.
#[derive(Clone, Copy, Debug)]
struct Run {
    y: usize,
    start: usize,
    end: usize,
    /// An earlier run of the same part, or itself: the part's first.
    parent: usize,
    /// Of the part, at its first run.
    pixels: usize,
}

impl Parts {
    /// Finds the parts of a mask that has no pixel outside of `rows`.
    pub(super) fn find(&mut self, mask: &BitMask, rows: Range<usize>) {
        self.runs.clear();
        let mut above = 0..0;
        for y in rows {
            let first = self.runs.len();
            for_each_run(mask, y, |start, end| {
                let parent = self.runs.len();
                self.runs.push(Run { y, start, end, parent, pixels: 0 });
            });
            let here = first..self.runs.len();
            self.join(above, here.clone());
            above = here;
        }
        // Parents come first, so one pass leads every run to the first of its part.
        for i in 0..self.runs.len() {
            let Run { start, end, parent, .. } = self.runs[i];
            let root = self.runs[parent].parent;
            self.runs[i].parent = root;
            self.runs[root].pixels += end - start;
        }
    }

    /// Joins runs that touch, of a row and the next.
    fn join(&mut self, above: Range<usize>, here: Range<usize>) {
        let mut upper = above.start;
        for lower in here {
            let Run { start, end, .. } = self.runs[lower];
            while upper < above.end && self.runs[upper].end < start {
                upper += 1;
            }
            let mut touching = upper;
            while touching < above.end && self.runs[touching].start <= end {
                let (a, b) = (self.root(touching), self.root(lower));
                self.runs[a.max(b)].parent = a.min(b);
                touching += 1;
            }
        }
    }

    fn root(&mut self, mut run: usize) -> usize {
        while self.runs[run].parent != run {
            let parent = self.runs[run].parent;
            self.runs[run].parent = self.runs[parent].parent;
            run = parent;
        }
        run
    }

    /// First run of the largest part, of equals that which begins highest; `None` if the mask is empty.
    fn largest(&self) -> Option<usize> {
        (0..self.runs.len()).rev().max_by_key(|&i| self.runs[i].pixels)
    }

    /// Takes all parts but the largest out of the mask in which they were found, and gives its area and box.
    pub(super) fn keep_largest(&self, mask: &mut BitMask) -> (usize, PixelBox) {
        let Some(largest) = self.largest() else { return (0, PixelBox::default()) };
        for run in self.runs.iter().filter(|run| run.parent != largest) {
            mask.clear(run.y, run.start..run.end);
        }
        (self.runs[largest].pixels, self.bbox(|part| part == largest))
    }

    /// The smallest box that holds the parts with at least this share of the largest part's pixels.
    pub(super) fn bbox_of(&self, share: f32) -> PixelBox {
        let largest = self.largest().map_or(0, |i| self.runs[i].pixels);
        self.bbox(|part| self.runs[part].pixels as f64 >= f64::from(share) * largest as f64)
    }

    /// The smallest box that holds the parts that are asked for, by their first runs.
    fn bbox(&self, wanted: impl Fn(usize) -> bool) -> PixelBox {
        let runs = self.runs.iter().filter(|run| wanted(run.parent));
        let all = runs.fold(None, |all: Option<[usize; 4]>, run| {
            let [left, top, right, _] = all.unwrap_or([run.start, run.y, run.end, run.y + 1]);
            Some([left.min(run.start), top, right.max(run.end), run.y + 1])
        });
        all.map_or(PixelBox::default(), |[x, y, right, bottom]| PixelBox {
            x,
            y,
            width: right - x,
            height: bottom - y,
        })
    }
}

/// Calls `run` with first column and end of each run of pixels of row `y`.
fn for_each_run(mask: &BitMask, y: usize, mut run: impl FnMut(usize, usize)) {
    let mut begun = None;
    for from in (0..mask.width()).step_by(BitMask::WORD) {
        let word = mask.word(y, from);
        let count = (mask.width() - from).min(BitMask::WORD);
        let mut x = 0;
        while x < count {
            let rest = word << x;
            match begun {
                None => {
                    x += rest.leading_zeros() as usize;
                    begun = (x < count).then_some(from + x);
                }
                Some(start) => {
                    x += rest.leading_ones() as usize;
                    // One that reaches the end of the word may go on in the next.
                    if x < count {
                        run(start, from + x);
                        begun = None;
                    }
                }
            }
        }
    }
    if let Some(start) = begun {
        run(start, mask.width());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Parts by flood filling: first pixel, pixels, box of each.
    fn flooded(mask: &BitMask) -> Vec<(usize, PixelBox)> {
        let (height, width) = (mask.height(), mask.width());
        let mut left = mask.clone();
        let mut found = Vec::new();
        for (y, x) in mask.pixels() {
            if !left.get(y, x) {
                continue;
            }
            let mut part = BitMask::new(height, width);
            let mut open = vec![(y, x)];
            left.clear(y, x..x + 1);
            while let Some((y, x)) = open.pop() {
                part.set(y, x);
                for y in y.saturating_sub(1)..(y + 2).min(height) {
                    for x in x.saturating_sub(1)..(x + 2).min(width) {
                        if left.get(y, x) {
                            left.clear(y, x..x + 1);
                            open.push((y, x));
                        }
                    }
                }
            }
            found.push((part.area(), part.bbox()));
        }
        found
    }

    #[test]
    fn parts_are_those_of_a_flood() {
        let mut random = 1u32;
        let mut parts = Parts::default();
        for (height, width, quarters) in
            [(1, 1, 4), (7, 5, 2), (20, 56, 3), (33, 130, 2), (40, 57, 1), (9, 200, 1), (3, 4, 0)]
        {
            let mut mask = BitMask::from_fn(height, width, |_, _| {
                random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                random >> 30 < quarters
            });
            let expected = flooded(&mask);
            parts.find(&mask, 0..height);
            let roots = parts.runs.iter().enumerate().filter(|(i, run)| run.parent == *i);
            let found: Vec<usize> = roots.map(|(_, run)| run.pixels).collect();
            assert_eq!(found, expected.iter().map(|(area, _)| *area).collect::<Vec<_>>());
            assert_eq!(parts.bbox_of(0.0), mask.bbox());
            let most = expected.iter().map(|(area, _)| *area).max().unwrap_or(0);
            // Of equals the first.
            let largest = expected.iter().find(|(area, _)| *area == most).copied().unwrap_or_default();
            assert_eq!(parts.keep_largest(&mut mask), largest);
            assert_eq!((mask.area(), mask.bbox()), largest);
        }
    }

    #[test]
    fn a_box_leaves_small_parts_out() {
        // A block of 200 pixels, one of 3 to its right, one pixel below.
        let inside = |y, x| (y < 10 && x < 20) || (y == 4 && (50..53).contains(&x)) || (y, x) == (29, 7);
        let mask = BitMask::from_fn(30, 60, inside);
        let mut parts = Parts::default();
        parts.find(&mask, 0..30);
        let boxes = [0.0, 0.01, 0.02].map(|share| parts.bbox_of(share));
        let expected =
            [(53, 30), (53, 10), (20, 10)].map(|(width, height)| PixelBox { x: 0, y: 0, width, height });
        assert_eq!(boxes, expected);
    }
}
