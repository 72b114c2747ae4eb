//! Detections of a two-stage detector on a GPU: their masks are pasted at the size of the photo
//! (`kernels/boxes/paste.cu`), with the bits that `src/image/instance/paste.rs` gives on the CPU from the
//! same boxes and probabilities. Buffers are those of all instances ([`InstanceBuffer`]); the object of a
//! pair is the detection's own place.

use crate::cuda;
use crate::cuda::launch::{Arg, Launch, Program};
use crate::cuda::ops::launches::storage;
use crate::cuda::post::PostProcess;
use crate::error::{Error, Result};
use crate::image::preprocess::Geometry;
use crate::model::rcnn::{DET_BOXES, DET_SCORES, MASK_PROBS};
use crate::task::instance::gpu::{BAND, InstanceBuffer, bands, mask_bytes};
use crate::tensor::DType;

/// Threads of a block: `THREADS` of `kernels/boxes/paste.cu`.
const THREADS: u32 = 256;

/// Detections in device memory, by the order of [`Postprocess::reads`](crate::task::Postprocess::reads).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Detected {
    /// Places of detections.
    pub places: usize,
    /// Number of classes C.
    pub classes: usize,
    /// Height and width of the masks' probabilities.
    pub mask_size: (usize, usize),
    /// Element type of the probabilities; boxes and scores are f32.
    pub dtype: DType,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct PasteParams {
    classes: u32,
    cells_down: u32,
    cells_across: u32,
    photo_height: u32,
    photo_width: u32,
    mask_words: u32,
    enlarged_down: f32,
    enlarged_across: f32,
    min_score: f32,
}

impl Detected {
    /// Those that a network gives.
    ///
    /// # Errors
    /// [`Error::Graph`] if it gives none, or stores boxes or scores shorter than in f32.
    pub fn of(plan: &cuda::Plan, classes: usize) -> Result<Detected> {
        let of = |name: &str| {
            let missing = || Error::Graph(format!("the plan has no output `{name}`"));
            Ok(plan.output(name).ok_or_else(missing)?.ty)
        };
        let (boxes, scores, masks) = (of(DET_BOXES)?, of(DET_SCORES)?, of(MASK_PROBS)?);
        if let Some(short) = [boxes, scores].iter().find(|ty| ty.dtype != DType::F32) {
            return Err(Error::Graph(format!("boxes or scores are stored as {short}")));
        }
        let mask_size = (masks.shape[1], masks.shape[2]);
        Ok(Detected { places: masks.shape[0], classes, mask_size, dtype: masks.dtype })
    }
}

/// What pastes the masks of detections that score at least `min_score`.
///
/// # Errors
/// A sentence, for a photo without pixels or with too many.
pub fn launches(found: &Detected, geometry: &Geometry, min_score: f32) -> Result<PostProcess, String> {
    let size @ (height, width) = geometry.original;
    if height * width == 0 || height * width > i32::MAX as usize {
        return Err(format!("photos have 1 to 2147483647 pixels, this one is {size:?}"));
    }
    let places = found.places;
    let buffers = InstanceBuffer::all(places, size, InstanceBuffer::Objects);
    let (cells_down, cells_across) = found.mask_size;
    let [enlarged_down, enlarged_across] = geometry.enlargement();
    let params = PasteParams {
        classes: found.classes as u32,
        cells_down: cells_down as u32,
        cells_across: cells_across as u32,
        photo_height: height as u32,
        photo_width: width as u32,
        mask_words: (mask_bytes(size) / 4) as u32,
        enlarged_down,
        enlarged_across,
        min_score,
    };
    let results = [
        InstanceBuffer::Masks,
        InstanceBuffer::Extents,
        InstanceBuffer::Scores,
        InstanceBuffer::Pairs,
        InstanceBuffer::Places,
        InstanceBuffer::Boxes,
        InstanceBuffer::HostMasks,
    ];
    let paste = Launch {
        source: "boxes/paste.cu",
        entry: "paste",
        defines: vec![storage(found.dtype)],
        grid: [bands(size) as u32, places as u32, 1],
        block: [THREADS, 1, 1],
        shared: 4 * (BAND * (cells_across + 3) + width) as u32,
        args: (0..5)
            .map(Arg::Input)
            .chain(results.map(InstanceBuffer::arg))
            .chain([Arg::of(&params)])
            .collect(),
    };
    let launches = if places == 0 { Vec::new() } else { vec![paste] };
    Ok(PostProcess { program: Program { kernel: "pasted".into(), launches, ..Program::default() }, buffers })
}
