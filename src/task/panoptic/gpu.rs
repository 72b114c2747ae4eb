//! Panoptic maps on a GPU: mask logits become an object for each pixel of the photo
//! (`kernels/postprocess_panoptic.cu`), with the numbers that the merge of `src/image/panoptic.rs` needs;
//! both give the bits that it gives on the CPU from the same logits.

use super::Panoptic;
use crate::cuda;
use crate::cuda::gpu::Target;
use crate::cuda::launch::{Arg, Launch, Program};
use crate::cuda::on_device::DeviceSlice;
use crate::cuda::ops::launches::storage;
use crate::cuda::pipeline::Pipeline;
use crate::cuda::post::{Buffer, MaskLogits, PostProcess, Residence, Sampler, THREADS, TILE_W};
use crate::error::{Error, Result};
use crate::image::panoptic::{Assigned, PanopticConfig, PanopticResult};
use crate::image::preprocess::Geometry;
use crate::model::MASK_PREDS;
use crate::task::PostprocessOnGpu;

/// Output rows of a block: `TILE_H` of `kernels/postprocess_panoptic.cu`.
const TILE_H: usize = 16;
/// Most objects, whose indices take 16 bits.
const MAX_OBJECTS: usize = 1 << 16;

/// What the launches read, by the order of [`Postprocess::reads`](crate::task::Postprocess::reads).
const MASK_LOGITS: Arg = Arg::Input(0);
const CLASS_LOGITS: Arg = Arg::Input(1);

/// Buffers of the results on a GPU, for N objects, the things first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PanopticBuffer {
    /// `u16 [height, width]`, the object of each pixel.
    Objects,
    /// `u32 [2, N]`, the pixels that each object wins and those of its own mask.
    Areas,
    /// `f32 [N]`, scores.
    Scores,
    /// `u32 [N]`, classes.
    Classes,
}

impl PanopticBuffer {
    /// All of them; each stands where its number says.
    const ALL: [PanopticBuffer; 4] =
        [PanopticBuffer::Objects, PanopticBuffer::Areas, PanopticBuffer::Scores, PanopticBuffer::Classes];

    fn arg(self) -> Arg {
        Arg::Output(self as usize)
    }
}

/// Where an object for each pixel lies in device memory; N objects, the things first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceAssignment {
    /// u16 object of each pixel, row by row.
    pub objects: DeviceSlice,
    /// u32 pixels that each object wins `[N]`, then those of its own mask `[N]`.
    pub areas: DeviceSlice,
    /// f32 score of each object.
    pub scores: DeviceSlice,
    /// u32 class of each object.
    pub classes: DeviceSlice,
}

impl PostprocessOnGpu for Panoptic {
    type OnDevice = DeviceAssignment;

    fn launches(&self, plan: &cuda::Plan, geometry: &Geometry, _target: &Target) -> Result<PostProcess> {
        let logits = MaskLogits::of(plan, MASK_PREDS, geometry)?;
        launches(&logits, self.host.config()).map_err(Error::Cuda)
    }

    fn collect(&mut self, run: &Pipeline, geometry: &Geometry, found: &mut PanopticResult) -> Result<()> {
        let areas: &[u32] = run.host(PanopticBuffer::Areas as usize);
        let (won, own) = areas.split_at(areas.len() / 2);
        let assigned = Assigned {
            ids: run.host(PanopticBuffer::Objects as usize),
            won,
            own,
            scores: run.host(PanopticBuffer::Scores as usize),
            labels: run.host(PanopticBuffer::Classes as usize),
        };
        self.host.run_assigned(&assigned, geometry, found)
    }

    fn on_device(&self, run: &Pipeline, _geometry: &Geometry) -> DeviceAssignment {
        let slice = |buffer: PanopticBuffer| run.device(buffer as usize);
        DeviceAssignment {
            objects: slice(PanopticBuffer::Objects),
            areas: slice(PanopticBuffer::Areas),
            scores: slice(PanopticBuffer::Scores),
            classes: slice(PanopticBuffer::Classes),
        }
    }
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct ClassParams {
    objects: u32,
    classes: u32,
    proposals: u32,
    things: u32,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct PanopticParams {
    sampler: Sampler,
    objects: u32,
}

/// What gives every pixel of a photo to an object, with what the merge of `src/image/panoptic.rs` needs:
/// [`PanopticBuffer`] says what comes out. The objects are the proposals of `config`, then one for each of
/// its stuff classes; the classes are its things, then those. The class logits are `f32 [N, classes]`.
///
/// # Errors
/// A sentence, if sizes or numbers do not fit each other.
pub fn launches(logits: &MaskLogits, config: &PanopticConfig) -> Result<PostProcess, String> {
    let sampler = logits.sampler(TILE_H)?;
    let PanopticConfig { proposals, things, stuff, .. } = *config;
    let (objects, classes) = (logits.objects, things + stuff);
    if objects != proposals + stuff || classes == 0 || objects == 0 || objects > MAX_OBJECTS {
        return Err(format!(
            "{objects} objects are not {proposals} proposals and {stuff} stuff kernels ({things} thing classes; up to \
             {MAX_OBJECTS} objects)"
        ));
    }
    let (height, width) = logits.original;
    let buffers = PanopticBuffer::ALL.map(|buffer| {
        let bytes = match buffer {
            PanopticBuffer::Objects => 2 * height * width,
            PanopticBuffer::Areas => 8 * objects,
            PanopticBuffer::Scores | PanopticBuffer::Classes => 4 * objects,
        };
        Buffer { bytes, residence: Residence::Copied }
    });
    let [objects, classes, proposals, things] = [objects, classes, proposals, things].map(|n| n as u32);
    let classify = Launch {
        source: "postprocess_panoptic.cu",
        entry: "panoptic_classify",
        defines: vec![storage(logits.dtype)],
        grid: [objects.div_ceil(THREADS as u32 / 32), 1, 1],
        block: [THREADS as u32, 1, 1],
        shared: 0,
        args: vec![
            CLASS_LOGITS,
            PanopticBuffer::Scores.arg(),
            PanopticBuffer::Classes.arg(),
            PanopticBuffer::Areas.arg(),
            Arg::of(&ClassParams { objects, classes, proposals, things }),
        ],
    };
    let shared = sampler.shared() + 16 * objects as usize;
    let assign = Launch {
        source: "postprocess_panoptic.cu",
        entry: "panoptic_assign",
        defines: vec![storage(logits.dtype)],
        grid: [width.div_ceil(TILE_W) as u32, height.div_ceil(TILE_H) as u32, 1],
        block: [THREADS as u32, 1, 1],
        shared: shared as u32,
        args: vec![
            MASK_LOGITS,
            PanopticBuffer::Scores.arg(),
            PanopticBuffer::Objects.arg(),
            PanopticBuffer::Areas.arg(),
            Arg::of(&PanopticParams { sampler, objects }),
        ],
    };
    let program =
        Program { kernel: "tiles of pixels".into(), launches: vec![classify, assign], ..Program::default() };
    Ok(PostProcess { program, buffers: buffers.to_vec() })
}
