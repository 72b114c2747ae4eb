//! Top-k by a heap of the k best so far, kept in the result itself: one pass over the row, in which nearly
//! all elements lose against the worst of the heap at once.

use super::super::kernel::{Args, Context, CpuOp, Kernel};
use crate::ops::TopK;
use rayon::prelude::*;

struct Heap {
    k: usize,
    n: usize,
}

impl CpuOp for TopK {
    fn kernel(&self, context: &Context<'_>) -> Box<dyn Kernel> {
        Box::new(Heap { k: self.k, n: context.inputs[0].shape[1] })
    }
}

impl Kernel for Heap {
    fn name(&self) -> String {
        "heap".to_string()
    }

    fn run(&self, args: &mut Args<'_>) {
        if self.k == 0 {
            return;
        }
        let [values, indices, ..] = &mut args.outputs;
        let indices: &mut [i32] = bytemuck::cast_slice_mut(indices);
        let rows = values.par_chunks_mut(self.k).zip(indices.par_chunks_mut(self.k));
        rows.zip(args.inputs[0].par_chunks(self.n))
            .for_each(|((values, indices), row)| top(row, &mut Best { values, indices }));
    }
}

/// Fills `best` with the best elements of `row`, best first.
fn top(row: &[f32], best: &mut Best<'_>) {
    let k = best.values.len();
    best.values.copy_from_slice(&row[..k]);
    best.indices.iter_mut().enumerate().for_each(|(i, index)| *index = i as i32);
    for root in (0..k / 2).rev() {
        best.sink(root, k);
    }
    for (i, &v) in row.iter().enumerate().skip(k) {
        // A later element has the higher index, so it must be strictly better than the worst.
        if v > best.values[0] || (best.values[0].is_nan() && !v.is_nan()) {
            (best.values[0], best.indices[0]) = (v, i as i32);
            best.sink(0, k);
        }
    }
    // The worst goes behind the shrinking heap, again and again.
    for end in (1..k).rev() {
        best.values.swap(0, end);
        best.indices.swap(0, end);
        best.sink(0, end);
    }
}

/// A binary heap with the worst element on top.
struct Best<'a> {
    values: &'a mut [f32],
    indices: &'a mut [i32],
}

impl Best<'_> {
    /// Whether element `i` comes after element `j` in the result.
    fn worse(&self, i: usize, j: usize) -> bool {
        let (a, b) = (self.values[i], self.values[j]);
        if a == b || (a.is_nan() && b.is_nan()) {
            self.indices[i] > self.indices[j]
        } else {
            a < b || a.is_nan()
        }
    }

    /// Lets the element at `root` sink to its place in a heap of `len` elements.
    fn sink(&mut self, mut root: usize, len: usize) {
        loop {
            let (left, right) = (2 * root + 1, 2 * root + 2);
            if left >= len {
                return;
            }
            let child = if right < len && self.worse(right, left) { right } else { left };
            if !self.worse(child, root) {
                return;
            }
            self.values.swap(root, child);
            self.indices.swap(root, child);
            root = child;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(row: &[f32], k: usize) -> (Vec<f32>, Vec<i32>) {
        let (mut values, mut indices) = (vec![0.0; k], vec![0; k]);
        top(row, &mut Best { values: &mut values, indices: &mut indices });
        (values, indices)
    }

    #[test]
    fn equal_elements_come_in_the_order_of_their_indices_and_nan_last() {
        let nan = f32::NAN;
        let row = [1.0, nan, 3.0, 1.0, f32::INFINITY, nan, 3.0, f32::NEG_INFINITY, -0.0, 0.0];
        for k in 1..=row.len() {
            let (values, indices) = run(&row, k);
            assert_eq!(indices, [4, 2, 6, 0, 3, 8, 9, 7, 1, 5][..k]);
            let at_indices = indices.iter().map(|&i| row[i as usize].to_bits());
            assert!(values.iter().map(|v| v.to_bits()).eq(at_indices));
        }
    }
}
