//! The two products between objects and pixels, in bf16: mask convolution and hard-mask pooling.

use super::pack::{panel_len, place};
use super::{
    COLS, DotConv, Engine, Factor, Finish, Job, Layout, PerThread, ROWS, Read, Residual, Store, Sums, Tile,
};
use crate::cpu::conv::ConvShape;
use crate::cpu::element::Element;
use crate::cpu::gemm::{SharedMut, add_up, for_each_task};
use crate::isa::{Dot, Isa, simd};
use half::bf16;
use std::ops::Range;

/// `logits[n, p] = kernels[n, :] . x[p, :] + bias[n]`, planar: a pointwise convolution whose filters, the
/// objects' kernels, are rounded to bf16.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DotMaskConv {
    /// N: kernels.
    pub objects: usize,
    /// Pixels of the map.
    pub pixels: usize,
    /// C: channels of the features.
    pub channels: usize,
    /// The instructions of products.
    pub dot: Dot,
    /// The instruction set for the rest.
    pub isa: Isa,
}

impl DotMaskConv {
    fn conv(&self) -> DotConv<bf16> {
        let shape = ConvShape::pointwise(self.pixels, self.channels, self.objects);
        DotConv { shape, dot: self.dot, rule: () }
    }

    /// Floats of the packed kernels.
    pub fn packed_len(&self) -> usize {
        self.conv().packed_len()
    }

    /// Packs `kernels` `[objects, channels]`.
    pub fn pack(&self, kernels: &[f32], packed: &mut [f32]) {
        self.conv().pack(kernels, packed);
    }

    /// Floats of workspace that [`DotMaskConv::run`] needs in a pool of so many threads.
    pub fn workspace_len(&self, threads: usize) -> usize {
        self.conv().workspace_len(threads)
    }

    /// `x` `[pixels, channels]`, `bias` `[objects]`, `logits` `[objects, pixels]`.
    ///
    /// # Panics
    /// As [`DotConv::run`].
    pub fn run<X: Read<bf16>, Y: Store>(
        &self,
        packed: &[f32],
        x: &[X],
        bias: Option<&[f32]>,
        logits: &mut [Y],
        workspace: &mut [f32],
    ) {
        let (layout, isa) = (Layout::Planes(self.pixels), self.isa);
        let finish = Finish {
            sums: Sums::F32,
            bias,
            residual: Residual::None,
            activation: None,
            output: None,
            layout,
            isa,
        };
        self.conv().run(x, packed, &finish, logits, workspace);
    }
}

/// `out[n, c] = sum over pixels p with mask[n, p] > 0 of x[p, c]`, as [`gemm::MaskPool`] with features of
/// bf16: a product with ones and zeros, so that nothing but the sums is rounded.
///
/// [`gemm::MaskPool`]: crate::cpu::gemm::MaskPool
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DotMaskPool {
    /// N: masks.
    pub objects: usize,
    /// Pixels of each mask.
    pub pixels: usize,
    /// C: channels of the features.
    pub channels: usize,
    /// The instructions of products.
    pub dot: Dot,
    /// The instruction set for the rest.
    pub isa: Isa,
}

/// Pixels that are packed at a time.
const BLOCK: usize = 512;
/// Pixels of a step.
const PIXELS: usize = 32;
/// Values from a mask to the next in a block: no power of two, so that rows do not share their cache lines.
const MASK_STRIDE: usize = BLOCK + PIXELS;

impl DotMaskPool {
    /// Pixels of a task, whose sums are added up on their own: a function of the shape alone.
    fn chunk(&self) -> usize {
        const MOST_TASKS: usize = 16;
        let tasks = (self.pixels / BLOCK).clamp(1, MOST_TASKS);
        self.pixels.div_ceil(tasks).next_multiple_of(PIXELS)
    }

    fn tasks(&self) -> usize {
        self.pixels.div_ceil(self.chunk().max(1))
    }

    /// Rows and columns of tiles.
    fn tiles(&self) -> [usize; 2] {
        [self.objects.div_ceil(ROWS), self.channels.div_ceil(COLS)]
    }

    fn masks_len(&self) -> usize {
        self.tiles()[0] * ROWS * MASK_STRIDE
    }

    fn panels_len(&self) -> usize {
        self.tiles()[1] * panel_len::<bf16>(BLOCK / PIXELS)
    }

    /// Floats of workspace of each thread: a block's masks and features, and the sums of all tiles.
    fn thread_len(&self) -> usize {
        let [down, across] = self.tiles();
        (self.masks_len() + self.panels_len()) / 2 + down * across * ROWS * COLS
    }

    /// Floats of workspace that [`DotMaskPool::run`] needs in a pool of so many threads.
    pub fn workspace_len(&self, threads: usize) -> usize {
        threads * self.thread_len() + self.tasks() * self.objects * self.channels
    }

    /// Pools `x` `[pixels, channels]` under `masks` `[objects, pixels]` into `out` `[objects, channels]`.
    ///
    /// # Panics
    /// When a slice is shorter than its shape, or the workspace has no room for a thread of this pool.
    pub fn run<M: Element>(&self, masks: &[M], x: &[bf16], out: &mut [f32], workspace: &mut [f32]) {
        let size = self.objects * self.channels;
        if size == 0 || self.pixels == 0 {
            return out.fill(0.0);
        }
        let (sums, threads) = workspace.split_at_mut(self.tasks() * size);
        let (shared, parts) = (SharedMut::new(sums), PerThread::new(threads, self.thread_len()));
        for_each_task(self.tasks(), |task| {
            // SAFETY: each task has sums of its own, and one task runs on a thread at a time.
            let (sums, workspace) =
                unsafe { (std::slice::from_raw_parts_mut(shared.get().add(task * size), size), parts.own()) };
            let pixels = task * self.chunk()..((task + 1) * self.chunk()).min(self.pixels);
            bf16::on(self.dot, Part { pool: self, masks, x, pixels, sums, workspace });
        });
        add_up(sums, &mut out[..size]);
    }
}

/// One task: the sums over a range of pixels.
struct Part<'a, M> {
    pool: &'a DotMaskPool,
    masks: &'a [M],
    x: &'a [bf16],
    pixels: Range<usize>,
    sums: &'a mut [f32],
    workspace: &'a mut [f32],
}

impl<M: Element> Job<bf16> for Part<'_, M> {
    fn run<E: Engine<bf16>>(self) {
        let Part { pool, masks, x, pixels, sums, workspace } = self;
        let [down, across] = pool.tiles();
        let (masks_block, rest) = workspace.split_at_mut(pool.masks_len() / 2);
        let (panels, tiles) = rest.split_at_mut(pool.panels_len() / 2);
        let masks_block: &mut [bf16] = bytemuck::cast_slice_mut(masks_block);
        let panels: &mut [bf16] = bytemuck::cast_slice_mut(panels);
        let offsets: [u32; BLOCK / PIXELS] = std::array::from_fn(|step| (2 * step * PIXELS) as u32);
        for first in pixels.clone().step_by(BLOCK) {
            let block = first..(first + BLOCK).min(pixels.end);
            let steps = block.len().div_ceil(PIXELS);
            for (object, hard) in masks_block.chunks_exact_mut(MASK_STRIDE).take(pool.objects).enumerate() {
                let logits = &masks[object * pool.pixels..][block.clone()];
                harden(pool.isa, logits, &mut hard[..steps * PIXELS]);
            }
            for step in 0..steps {
                let pixels = first + step * PIXELS..(first + (step + 1) * PIXELS).min(block.end);
                let x = &x[pixels.start * pool.channels..pixels.end * pool.channels];
                interleave(pool.isa, x, pool.channels, step, panels);
            }
            for panel in 0..across {
                let b = panels[panel * panel_len::<bf16>(BLOCK / PIXELS)..].as_ptr().cast();
                for tile in 0..down {
                    let sums = tiles[(panel * down + tile) * ROWS * COLS..].as_mut_ptr();
                    // SAFETY: masks, panel and sums have room for a tile and the block's steps. What the
                    // masks beyond the last hold reaches rows that are not read.
                    unsafe {
                        E::tile(&Tile {
                            a: masks_block[tile * ROWS * MASK_STRIDE..].as_ptr().cast(),
                            stride: 2 * MASK_STRIDE,
                            offsets: &offsets[..steps],
                            rows: ROWS.min(pool.objects - tile * ROWS),
                            b,
                            sums,
                            accumulate: first > pixels.start,
                        });
                    }
                }
            }
        }
        for (object, sums) in sums.chunks_exact_mut(pool.channels).enumerate() {
            for (panel, sums) in sums.chunks_mut(COLS).enumerate() {
                let row = ((panel * down + object / ROWS) * ROWS + object % ROWS) * COLS;
                sums.copy_from_slice(&tiles[row..][..sums.len()]);
            }
        }
    }
}

simd! {
    /// One where a logit is above 0 (not for NaN), else 0; and 0 behind them.
    fn harden<M: Element>(isa, logits: &[M], hard: &mut [bf16]) {
        let (hard, rest) = hard.split_at_mut(logits.len());
        for (hard, logit) in hard.iter_mut().zip(logits) {
            *hard = if logit.widen() > 0.0 { bf16::ONE } else { bf16::ZERO };
        }
        rest.fill(bf16::ZERO);
    }
}

simd! {
    /// Writes at most [`PIXELS`] pixels as step `step` of every panel: pairs of pixels, channel by channel.
    fn interleave(isa, x: &[bf16], channels: usize, step: usize, panels: &mut [bf16]) {
        let zeros = [bf16::ZERO; COLS];
        for (panel, first) in (0..channels).step_by(COLS).enumerate() {
            let cols = COLS.min(channels - first);
            let panel = &mut panels[panel * panel_len::<bf16>(BLOCK / PIXELS) + step * panel_len::<bf16>(1)..][..panel_len::<bf16>(1)];
            for pair in 0..PIXELS / 2 {
                let pixel = |index: usize| match x.get(index * channels + first..) {
                    Some(x) if x.len() >= cols && cols == COLS => &x[..COLS],
                    _ => &zeros,
                };
                let [a, b] = [pixel(2 * pair), pixel(2 * pair + 1)];
                for half in 0..2 {
                    let to = &mut panel[place::<bf16>(2 * pair, 16 * half)..][..32];
                    let (a, b) = (&a[16 * half..][..16], &b[16 * half..][..16]);
                    for col in 0..16 {
                        to[2 * col] = a[col];
                        to[2 * col + 1] = b[col];
                    }
                }
                if cols < COLS {
                    for (col, factor) in (0..cols).flat_map(|col| [(col, 0), (col, 1)]) {
                        if let Some(&value) = x.get((2 * pair + factor) * channels + first + col) {
                            panel[place::<bf16>(2 * pair + factor, col)] = value;
                        }
                    }
                }
            }
        }
    }
}
