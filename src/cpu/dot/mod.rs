//! Products of short numbers by the instructions that processors have for them: bf16 with f32 sums, and codes
//! of 8-bit levels with i32 sums.
//!
//! All of them multiply *steps* of 64 bytes of K (32 factors of bf16, or 64 codes). An [`Engine`] computes a
//! tile of [`ROWS`] x [`COLS`] sums; its left side is read where it lies, in rows any distance apart, since a
//! pixel's channels are such a row: an NHWC map is multiplied without being gathered. Its right side is
//! packed into [panels](pack::panel_len). What is done to a sum before it is stored ([`finish`]) happens tile
//! by tile.
//!
//! The order in which a sum's terms are added depends on shapes and the instruction set alone, never on the
//! number of threads; sums of integers are the same in any order.

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod avx_vnni;
#[cfg(target_arch = "x86_64")]
mod code_lines;
mod conv;
mod factor;
mod finish;
mod layout;
mod mask;
mod pack;
mod points;
mod portable;
#[cfg(test)]
mod tests;

pub(crate) use conv::DotConv;
pub(crate) use factor::{Factor, Read, Store};
pub(crate) use finish::{Finish, Layout, Residual, Sums};
pub(crate) use mask::{DotMaskConv, DotMaskPool};

/// Rows of a tile.
pub(crate) const ROWS: usize = 32;
/// Columns of a tile, and of a panel.
pub(crate) const COLS: usize = 32;
/// Bytes of one step of K.
pub(crate) const STEP: usize = 64;
/// Bytes of a panel that one step takes: [`COLS`] columns of [`STEP`] bytes.
pub(crate) const PANEL_STEP: usize = COLS * STEP;
/// Most steps between two stores of a tile's sums.
pub(crate) const BLOCK_STEPS: usize = 72;

/// One tile's share of a product.
pub(crate) struct Tile<'a> {
    /// The first step's bytes of row 0.
    pub a: *const u8,
    /// Bytes from a row to the next.
    pub stride: usize,
    /// Where each step lies, in bytes from `a`.
    pub offsets: &'a [u32],
    /// Rows that count. All [`ROWS`] can be read at every offset; what the others hold is of no matter.
    pub rows: usize,
    /// `[steps][2][16][16][4 bytes]`: a step's columns in two halves, its factors in pairs or fours.
    pub b: *const u8,
    /// `[ROWS][COLS]` sums of bf16, or in their place those of integers, i32.
    pub sums: *mut f32,
    /// Whether the sums go on from what is there.
    pub accumulate: bool,
}

/// What the processor of an engine has besides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Vectors {
    /// AVX-512 F, BW and VL.
    pub avx512: bool,
    /// AVX-512 BF16 too.
    pub avx512_bf16: bool,
}

impl Vectors {
    /// Nothing of that.
    const NONE: Vectors = Vectors { avx512: false, avx512_bf16: false };
}

/// Instructions that compute a tile of products of `F`.
pub(crate) trait Engine<F: Factor> {
    /// What the processor has besides.
    const VECTORS: Vectors = Vectors::NONE;

    /// Prepares the thread for tiles.
    ///
    /// # Safety
    /// The processor has the instructions.
    unsafe fn begin() {}

    /// After the last tile of a task.
    ///
    /// # Safety
    /// As [`Engine::begin`], which was called.
    unsafe fn end() {}

    /// `sums (+)= A B` for the rows that count at least.
    ///
    /// # Safety
    /// As [`Engine::begin`], which was called; the pointers are valid for what [`Tile`] says.
    unsafe fn tile(tile: &Tile<'_>);
}

/// Work that is compiled for each engine.
pub(crate) trait Job<F: Factor> {
    /// Does it with `E`.
    fn run<E: Engine<F>>(self);
}

/// Runs a job between the engine's begin and end.
fn with<F: Factor, E: Engine<F>>(job: impl Job<F>) {
    // SAFETY: `Factor::on` is called with instructions that the processor has.
    unsafe {
        E::begin();
        job.run::<E>();
        E::end();
    }
}

/// A workspace with a part for each thread of the pool.
pub(crate) struct PerThread {
    start: *mut f32,
    len: usize,
    threads: usize,
}

// SAFETY: each thread asks for its own part.
unsafe impl Sync for PerThread {}

impl PerThread {
    /// Parts of `len` floats, as many as there are.
    pub fn new(workspace: &mut [f32], len: usize) -> PerThread {
        PerThread { start: workspace.as_mut_ptr(), len, threads: workspace.len() / len.max(1) }
    }

    /// The part of the thread that asks.
    ///
    /// # Panics
    /// If there is none, in a larger pool.
    ///
    /// # Safety
    /// The part that this thread asked for before is no longer in use, and the workspace outlives this one.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn own(&self) -> &mut [f32] {
        let thread = rayon::current_thread_index().unwrap_or(0);
        assert!(thread < self.threads, "workspace of {} threads in a larger pool", self.threads);
        // SAFETY: parts do not overlap; the rest is the caller's contract.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(thread * self.len), self.len) }
    }
}
