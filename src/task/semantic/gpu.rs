//! Semantic maps on a GPU: class logits become a class for each pixel of the photo
//! (`kernels/postprocess_semantic.cu`), with the bits that the CPU gives from the same logits.

use super::Semantic;
use crate::cuda;
use crate::cuda::gpu::Target;
use crate::cuda::launch::{Arg, Launch, Program};
use crate::cuda::on_device::DeviceSlice;
use crate::cuda::ops::launches::storage;
use crate::cuda::pipeline::Pipeline;
use crate::cuda::post::{Buffer, MaskLogits, PostProcess, Residence};
use crate::error::{Error, Result};
use crate::image::preprocess::Geometry;
use crate::image::semantic::{AssignedClasses, MAX_CLASSES, SemanticResult};
use crate::model::SEG_LOGITS;
use crate::task::PostprocessOnGpu;

/// Columns and rows of a block's pixels: `TILE_W` and `TILE_H` of `kernels/postprocess_semantic.cu`.
const TILE: (usize, usize) = (32, 8);

/// What the launch reads, by the order of [`Postprocess::reads`](crate::task::Postprocess::reads).
const LOGITS: Arg = Arg::Input(0);

/// Buffers of the results on a GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SemanticBuffer {
    /// `u16 [height, width]`, the class of each pixel.
    Classes,
    /// `f32 [height, width]`, the probability of that class, if it was asked for.
    Confidence,
}

impl SemanticBuffer {
    fn arg(self) -> Arg {
        Arg::Output(self as usize)
    }
}

/// Where a class for each pixel lies in device memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceClasses {
    /// u16 class of each pixel, row by row.
    pub classes: DeviceSlice,
    /// f32 probability of that class, row by row, if it was asked for.
    pub confidence: Option<DeviceSlice>,
}

impl PostprocessOnGpu for Semantic {
    type OnDevice = DeviceClasses;

    fn launches(&self, plan: &cuda::Plan, geometry: &Geometry, _target: &Target) -> Result<PostProcess> {
        let logits = MaskLogits::of(plan, SEG_LOGITS, geometry)?;
        launches(&logits, self.host.has_confidence()).map_err(Error::Cuda)
    }

    fn collect(&mut self, run: &Pipeline, geometry: &Geometry, found: &mut SemanticResult) -> Result<()> {
        let confidence: &[f32] = match self.host.has_confidence() {
            true => run.host(SemanticBuffer::Confidence as usize),
            false => &[],
        };
        let map = run.host(SemanticBuffer::Classes as usize);
        let assigned = AssignedClasses { classes: self.classes, map, confidence };
        self.host.run_assigned(&assigned, geometry, found)
    }

    fn on_device(&self, run: &Pipeline, _geometry: &Geometry) -> DeviceClasses {
        let slice = |buffer: SemanticBuffer| run.device(buffer as usize);
        let confidence = self.host.has_confidence().then(|| slice(SemanticBuffer::Confidence));
        DeviceClasses { classes: slice(SemanticBuffer::Classes), confidence }
    }
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Axis {
    logits: i32,
    padded: i32,
    resized: i32,
    original: i32,
    pad_scale: f32,
    photo_scale: f32,
}

impl Axis {
    fn new(logits: usize, padded: usize, resized: usize, original: usize) -> Self {
        let scale = |input: usize, output: usize| input as f32 / output as f32;
        Axis {
            logits: logits as i32,
            padded: padded as i32,
            resized: resized as i32,
            original: original as i32,
            pad_scale: scale(logits, padded),
            photo_scale: scale(resized, original),
        }
    }
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct SemanticParams {
    vertical: Axis,
    horizontal: Axis,
    classes: u32,
}

/// What gives every pixel of a photo to a class: [`SemanticBuffer`] says what comes out. Here the maps are
/// class logits, one an "object", of any size.
///
/// # Errors
/// A sentence, if sizes or numbers do not fit each other.
pub fn launches(logits: &MaskLogits, confidence: bool) -> Result<PostProcess, String> {
    let MaskLogits { objects: classes, size, dtype, padded, resized, original } = *logits;
    let pixels = original.0 * original.1;
    let sound = size.0 * size.1 * resized.0 * resized.1 > 0 && resized.0 <= padded.0 && resized.1 <= padded.1;
    if !sound || !(1..=MAX_CLASSES).contains(&classes) {
        return Err(format!("1 to {MAX_CLASSES} classes over maps with pixels, these are {logits:?}"));
    }
    if pixels == 0 || pixels > i32::MAX as usize {
        return Err(format!("photos have 1 to 2147483647 pixels, this one is {original:?}"));
    }
    let params = SemanticParams {
        vertical: Axis::new(size.0, padded.0, resized.0, original.0),
        horizontal: Axis::new(size.1, padded.1, resized.1, original.1),
        classes: classes as u32,
    };
    let buffer = |bytes: usize| Buffer { bytes, residence: Residence::Copied };
    let mut args = vec![LOGITS, SemanticBuffer::Classes.arg()];
    args.extend(confidence.then(|| SemanticBuffer::Confidence.arg()));
    args.push(Arg::of(&params));
    let assign = Launch {
        source: "postprocess_semantic.cu",
        entry: if confidence { "semantic_assign_confident" } else { "semantic_assign" },
        defines: vec![storage(dtype)],
        grid: [original.1.div_ceil(TILE.0) as u32, original.0.div_ceil(TILE.1) as u32, 1],
        block: [(TILE.0 * TILE.1) as u32, 1, 1],
        shared: 0,
        args,
    };
    let classes = buffer(2 * pixels);
    let buffers = std::iter::once(classes).chain(confidence.then(|| buffer(4 * pixels)));
    Ok(PostProcess {
        program: Program { kernel: "pixels".into(), launches: vec![assign], ..Program::default() },
        buffers: buffers.collect(),
    })
}
