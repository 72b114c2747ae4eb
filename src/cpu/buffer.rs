//! Memory on cache-line boundaries.

use crate::plan::arena::ALIGNMENT;

/// Floats on a cache-line boundary, zero at first.
pub struct AlignedBuffer {
    lines: Vec<Line>,
    len: usize,
}

#[repr(C, align(64))]
#[derive(Clone, Copy, bytemuck::Zeroable, bytemuck::Pod)]
struct Line([f32; ALIGNMENT / 4]);

impl AlignedBuffer {
    /// `len` zeros. Memory comes zeroed from the system, so that pages never written are never resident.
    pub fn new(len: usize) -> Self {
        let lines = bytemuck::allocation::zeroed_vec(len.div_ceil(ALIGNMENT / 4));
        AlignedBuffer { lines, len }
    }

    /// The floats.
    pub fn as_slice(&self) -> &[f32] {
        &bytemuck::cast_slice(&self.lines)[..self.len]
    }

    /// The floats, for writing.
    pub fn as_mut_slice(&mut self) -> &mut [f32] {
        &mut bytemuck::cast_slice_mut(&mut self.lines)[..self.len]
    }
}
