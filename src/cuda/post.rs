//! Post-processing on a GPU, as plain launch data: what all tasks share. Mask logits are sampled at the size
//! of the photo by `kernels/common/mask_sampler.cuh`; what becomes of the samples, and of class logits, is in
//! the task's own file (`src/task`).

use super::Plan;
use crate::cuda::launch::Program;
use crate::error::{Error, Result};
use crate::image::preprocess::Geometry;
use crate::tensor::DType;

/// Threads of a block: `THREADS` of `kernels/common/mask_sampler.cuh`.
pub(crate) const THREADS: usize = 256;
/// Output columns of a tile: `TILE_W` of `kernels/common/mask_sampler.cuh`.
pub(crate) const TILE_W: usize = 64;
/// Most probabilities that a block holds at a time, if a row of them is not longer.
const PROBABILITIES: usize = 4096;

/// What follows the network on a GPU.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PostProcess {
    /// Launches over the results of the network that the task reads, in its order, into `buffers`.
    pub program: Program,
    /// Results, in the order of the task's buffers.
    pub buffers: Vec<Buffer>,
}

/// A result of post-processing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Buffer {
    /// Length.
    pub bytes: usize,
    /// Where it lies.
    pub residence: Residence,
}

/// Where a result of post-processing lies after a run whose results go to the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Residence {
    /// On the device, and copied to the host.
    #[default]
    Copied,
    /// On the device alone.
    Device,
    /// On the host alone: its kernel writes there.
    Host,
}

/// Mask logits in device memory, and the sizes between them and the photo; pairs are (height, width).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MaskLogits {
    /// Number of masks N.
    pub objects: usize,
    /// Size of a mask: the padded size over 8 or over 4. Masks are planar, `[N, height, width]`.
    pub size: (usize, usize),
    /// Element type.
    pub dtype: DType,
    /// The network input.
    pub padded: (usize, usize),
    /// The part of the network input that the photo fills.
    pub resized: (usize, usize),
    /// The photo.
    pub original: (usize, usize),
}

/// Two taps of one output position, as the kernels compute them.
fn blend(position: usize, input: usize, output: usize) -> [usize; 2] {
    if input == output {
        return [position; 2];
    }
    let source = (input as f32 / output as f32 * (position as f32 + 0.5) - 0.5).max(0.0);
    let low = (source as usize).min(input - 1);
    [low, (low + 1).min(input - 1)]
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
pub(crate) struct Direction {
    logits: i32,
    stride4: i32,
    padded: i32,
    resized: i32,
    original: i32,
    upsample_scale: f32,
    pad_scale: f32,
    photo_scale: f32,
}

impl Direction {
    fn new(logits: usize, padded: usize, resized: usize, original: usize) -> Self {
        let stride4 = padded / 4;
        let scale = |input: usize, output: usize| input as f32 / output as f32;
        Direction {
            logits: logits as i32,
            stride4: stride4 as i32,
            padded: padded as i32,
            resized: resized as i32,
            original: original as i32,
            upsample_scale: scale(logits, stride4),
            pad_scale: scale(stride4, padded),
            photo_scale: scale(resized, original),
        }
    }

    /// Most stride-4 positions that `tile` neighbouring output positions draw on.
    fn widest(&self, tile: usize) -> usize {
        let [stride4, padded, resized, original] =
            [self.stride4, self.padded, self.resized, self.original].map(|n| n as usize);
        let end = |position: usize, which: usize| {
            let in_resized = blend(position, resized, original)[which];
            blend(in_resized, stride4, padded)[which]
        };
        let tiles = (0..original).step_by(tile);
        let widths = tiles.map(|from| end((from + tile).min(original) - 1, 1) + 1 - end(from, 0));
        widths.max().unwrap_or(0)
    }
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
pub(crate) struct Sampler {
    vertical: Direction,
    horizontal: Direction,
    wide_rows: i32,
    wide_columns: i32,
    batch_rows: i32,
}

impl Sampler {
    /// Bytes of shared memory: taps, probabilities and rows of a tile.
    pub(crate) fn shared(&self) -> usize {
        let [rows, columns, batch] = [self.wide_rows, self.wide_columns, self.batch_rows].map(|n| n as usize);
        16 * (rows + columns) + 4 * (batch * columns + rows * TILE_W)
    }
}

impl MaskLogits {
    /// Those that a network gives as its result `name`, `[1, N, height, width]`, for photos of one size.
    ///
    /// # Errors
    /// [`Error::Graph`] if there is no such result.
    pub fn of(plan: &Plan, name: &str, geometry: &Geometry) -> Result<MaskLogits> {
        let missing = || Error::Graph(format!("the plan has no output `{name}`"));
        let ty = plan.output(name).ok_or_else(missing)?.ty;
        let Geometry { original, resized, padded } = *geometry;
        let size = (ty.shape[2], ty.shape[3]);
        Ok(MaskLogits { objects: ty.shape[1], size, dtype: ty.dtype, padded, resized, original })
    }

    /// The numbers of the kernels for tiles of `tile_rows` rows.
    pub(crate) fn sampler(&self, tile_rows: usize) -> Result<Sampler, String> {
        let MaskLogits { size, padded, resized, original, .. } = *self;
        let at_stride = |s: usize| padded == (size.0 * s, size.1 * s);
        let sound = resized.0 * resized.1 > 0 && resized.0 <= padded.0 && resized.1 <= padded.1;
        if !sound || !(at_stride(8) || at_stride(4)) {
            return Err(format!(
                "{size:?} maps are neither at stride 8 nor at stride 4 of the padded size in {self:?}"
            ));
        }
        if original.0 * original.1 == 0 || original.0 * original.1 > i32::MAX as usize {
            return Err(format!("photos have 1 to 2147483647 pixels, this one is {original:?}"));
        }
        let vertical = Direction::new(size.0, padded.0, resized.0, original.0);
        let horizontal = Direction::new(size.1, padded.1, resized.1, original.1);
        let (rows, columns) = (vertical.widest(tile_rows), horizontal.widest(TILE_W));
        let batch_rows = (PROBABILITIES / columns).clamp(1, rows);
        let [wide_rows, wide_columns, batch_rows] = [rows, columns, batch_rows].map(|n| n as i32);
        Ok(Sampler { vertical, horizontal, wide_rows, wide_columns, batch_rows })
    }
}
