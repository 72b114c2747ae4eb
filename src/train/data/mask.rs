//! Masks of objects: the pixels of a bounding box. A photo of 300 cells holds 300 small boxes, not 300
//! photos.

/// A binary mask, stored as the pixels of a box of the image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mask {
    /// Left column of the box in the image.
    pub x: usize,
    /// Top row of the box in the image.
    pub y: usize,
    /// Columns of the box.
    pub width: usize,
    /// Rows of the box.
    pub height: usize,
    /// 0 or 1 for each pixel of the box, row-major `[height, width]`.
    pub data: Vec<u8>,
}

impl Mask {
    /// An empty mask (all 0) of the box that spans the columns `x` and the rows `y`.
    pub(super) fn zeros(x: std::ops::Range<usize>, y: std::ops::Range<usize>) -> Self {
        Mask { x: x.start, y: y.start, width: x.len(), height: y.len(), data: vec![0; x.len() * y.len()] }
    }

    /// The mask of column-major run lengths (first run outside) of an image with `height` rows.
    pub(super) fn from_runs(runs: &[u32], height: usize) -> Self {
        let [mut left, mut top, mut right, mut bottom] = [usize::MAX, usize::MAX, 0, 0];
        each_inside(runs, |from, to| {
            let (first, last) = (from / height, (to - 1) / height);
            (left, right) = (left.min(first), right.max(last + 1));
            // A run over several columns passes the bottom of one and the top of the next.
            let rows = if first == last { from % height..(to - 1) % height + 1 } else { 0..height };
            (top, bottom) = (top.min(rows.start), bottom.max(rows.end));
        });
        if right == 0 {
            return Mask::default();
        }
        let mut mask = Mask::zeros(left..right, top..bottom);
        each_inside(runs, |mut from, to| {
            while from < to {
                let (column, row) = (from / height, from % height);
                let end = to.min((column + 1) * height);
                for y in row..row + end - from {
                    mask.data[(y - mask.y) * mask.width + column - mask.x] = 1;
                }
                from = end;
            }
        });
        mask
    }

    /// Number of pixels inside.
    pub fn area(&self) -> usize {
        self.data.iter().map(|&v| usize::from(v)).sum()
    }

    /// True if the pixel of the image is inside.
    pub fn contains(&self, x: usize, y: usize) -> bool {
        let (column, row) = (x.wrapping_sub(self.x), y.wrapping_sub(self.y));
        column < self.width && row < self.height && self.data[row * self.width + column] != 0
    }

    /// Row `row` of the box.
    pub(super) fn row(&self, row: usize) -> &[u8] {
        &self.data[row * self.width..][..self.width]
    }

    /// Takes the pixels of `other` away.
    pub(super) fn subtract(&mut self, other: &Mask) {
        let left = self.x.max(other.x);
        let right = (self.x + self.width).min(other.x + other.width);
        let rows = self.y.max(other.y)..(self.y + self.height).min(other.y + other.height);
        if left >= right {
            return;
        }
        for y in rows {
            let mine = &mut self.data[(y - self.y) * self.width..][left - self.x..right - self.x];
            let theirs = &other.row(y - other.y)[left - other.x..right - other.x];
            for (m, &o) in mine.iter_mut().zip(theirs) {
                *m &= 1 - o;
            }
        }
    }
}

/// Calls `inside(from, to)` for each run of inside pixels, as column-major positions.
fn each_inside(runs: &[u32], mut inside: impl FnMut(usize, usize)) {
    let mut at = 0;
    for (i, &run) in runs.iter().enumerate() {
        if i % 2 == 1 && run > 0 {
            inside(at, at + run as usize);
        }
        at += run as usize;
    }
}

/// Number of pixels inside.
pub(super) fn area(runs: &[u32]) -> usize {
    runs.iter().skip(1).step_by(2).map(|&run| run as usize).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_become_boxes() {
        // 3 rows, 4 columns; inside are positions 4, 5, 6 (column 1 rows 1-2, column 2 row 0) and 11.
        let mask = Mask::from_runs(&[4, 3, 4, 1], 3);
        assert_eq!((mask.x, mask.y, mask.width, mask.height), (1, 0, 3, 3));
        assert_eq!(mask.data, [0, 1, 0, 1, 0, 0, 1, 0, 1]);
        assert_eq!(mask.area(), area(&[4, 3, 4, 1]));
        assert!(mask.contains(2, 0) && !mask.contains(0, 0) && !mask.contains(9, 9));
        assert_eq!(Mask::from_runs(&[12], 3), Mask::default());
    }

    #[test]
    fn subtraction_takes_the_overlap() {
        let mut mask = Mask { x: 1, y: 1, width: 2, height: 2, data: vec![1; 4] };
        mask.subtract(&Mask { x: 2, y: 0, width: 3, height: 2, data: vec![1; 6] });
        assert_eq!(mask.data, [1, 0, 1, 1]);
        mask.subtract(&Mask { x: 8, y: 8, width: 1, height: 1, data: vec![1] });
        assert_eq!(mask.area(), 3);
    }
}
