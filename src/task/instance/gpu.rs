//! Instances on a GPU: class logits are ranked (`kernels/instance_rank.cu`) and mask logits become bit
//! masks at the size of the photo (`kernels/postprocess_instance.cu`), with the bits that
//! `src/image/instance.rs` gives on the CPU from the same logits. What a two-stage detector found takes
//! the same buffers (`src/task/boxes/gpu.rs`).

use super::{Instances, OnHost};
use crate::cuda;
use crate::cuda::gpu::Target;
use crate::cuda::launch::{Arg, Launch, Program};
use crate::cuda::on_device::DeviceSlice;
use crate::cuda::ops::{self, launches::storage};
use crate::cuda::pipeline::Pipeline;
use crate::cuda::post::{Buffer, MaskLogits, PostProcess, Residence, Sampler, THREADS, TILE_W};
use crate::error::{Error, Result};
use crate::image::bitmask::PixelBox;
use crate::image::instance::{InstanceConfig, InstanceResult, Ranked};
use crate::image::preprocess::Geometry;
use crate::model::MASK_PREDS;
use crate::ops::{TopK, ValueType};
use crate::plan::Site;
use crate::task::PostprocessOnGpu;
use crate::task::boxes::{self, gpu::Detected};
use std::ops::Range;

/// Output rows of a block: `BAND` of `kernels/common/mask_band.cuh`.
pub(in crate::task) const BAND: usize = 32;
/// Threads of a block: `THREADS` of `kernels/instance_rank.cu`.
const RANK_THREADS: u32 = 128;
/// Logits of a block: `RUN` of `kernels/instance_rank.cu`.
const QUALITY_RUN: usize = 4096;
/// Sums of a run: `LANES` of `kernels/instance_rank.cu`.
const QUALITY_LANES: usize = 16;

/// What the launches read, by the order of [`Postprocess::reads`](crate::task::Postprocess::reads).
const MASK_LOGITS: Arg = Arg::Input(0);
const CLASS_LOGITS: Arg = Arg::Input(1);

/// Buffers of the results on a GPU. For k instances by descending score, and as many places for masks:
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InstanceBuffer {
    /// The masks by place, each [`mask_bytes`] long, in the layout of `BitMask` (`src/image/bitmask.rs`).
    Masks,
    /// `[k, bands]` of [`Extent`].
    Extents,
    /// `f32 [k]`, scores.
    Scores,
    /// `i32 [k]`, `object * C + class`.
    Pairs,
    /// `u32 [k]`, the place of its mask ([`u32::MAX`]: it is dropped, as are all after it).
    Places,
    /// `u32 [k]`, the object of each place ([`u32::MAX`]: none; then its mask is not written, and its
    /// extents are [`Extent::NOTHING`]). The launch of the masks reads it.
    Objects,
    /// As [`InstanceBuffer::Masks`], for the host: bands without a pixel are not written.
    HostMasks,
    /// `f32 [k, 4]`, of a two-stage detector alone: the boxes that it found, as left, top, right and
    /// bottom in pixels of the photo.
    Boxes,
}

impl InstanceBuffer {
    /// All of them; each stands where its number says.
    const ALL: [InstanceBuffer; 8] = {
        use InstanceBuffer::*;
        [Masks, Extents, Scores, Pairs, Places, Objects, HostMasks, Boxes]
    };

    /// All for `k` instances of a photo of `size` (height, width), without `lacking`, which is empty.
    pub(in crate::task) fn all(k: usize, size: (usize, usize), lacking: InstanceBuffer) -> Vec<Buffer> {
        let of = |buffer: InstanceBuffer| {
            if buffer == lacking { Buffer::default() } else { buffer.shape(k, size) }
        };
        InstanceBuffer::ALL.map(of).to_vec()
    }

    pub(in crate::task) fn arg(self) -> Arg {
        Arg::Output(self as usize)
    }

    /// Length and place, for `k` instances of a photo of `size` (height, width).
    fn shape(self, k: usize, size: (usize, usize)) -> Buffer {
        let (masks, extents) = (k * mask_bytes(size), k * bands(size) * size_of::<Extent>());
        let (bytes, residence) = match self {
            InstanceBuffer::Masks => (masks, Residence::Device),
            InstanceBuffer::HostMasks => (masks, Residence::Host),
            InstanceBuffer::Extents => (extents, Residence::Copied),
            InstanceBuffer::Objects => (4 * k, Residence::Device),
            InstanceBuffer::Boxes => (size_of::<[f32; 4]>() * k, Residence::Copied),
            InstanceBuffer::Scores | InstanceBuffer::Pairs | InstanceBuffer::Places => {
                (4 * k, Residence::Copied)
            }
        };
        Buffer { bytes, residence }
    }
}

/// Where the instances of a run lie in device memory, by descending score; all arrays but the masks have
/// one entry an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceInstances {
    /// Bit masks by place, each so many bytes after the one before; pixel `i` of the image, row by row, is
    /// bit `7 - i % 8` of byte `i / 8` of a mask.
    pub masks: DeviceSlice,
    /// Bytes from one mask to the next.
    pub mask_bytes: usize,
    /// f32 scores.
    pub scores: DeviceSlice,
    /// i32 `object * classes + class`.
    pub pairs: DeviceSlice,
    /// u32 places of the masks; `u32::MAX`: dropped, as are all after it.
    pub places: DeviceSlice,
    /// f32 left, top, right and bottom of the boxes in pixels of the photo, if a two-stage detector found
    /// them.
    pub boxes: Option<DeviceSlice>,
}

impl PostprocessOnGpu for Instances {
    type OnDevice = DeviceInstances;

    fn launches(&self, plan: &cuda::Plan, geometry: &Geometry, target: &Target) -> Result<PostProcess> {
        match &self.host {
            OnHost::Kernels(host) => {
                let logits = MaskLogits::of(plan, MASK_PREDS, geometry)?;
                launches(&logits, self.classes, host.config(), target).map_err(Error::Cuda)
            }
            OnHost::Boxes(boxes) => {
                let found = Detected::of(plan, self.classes)?;
                boxes::gpu::launches(&found, geometry, boxes.min_score()).map_err(Error::Cuda)
            }
            OnHost::Masks(_) => Err(Error::usage("masks that were found are resized by the CPU alone")),
        }
    }

    fn collect(&mut self, run: &Pipeline, geometry: &Geometry, found: &mut InstanceResult) -> Result<()> {
        let masks = Masks::new(
            run.host(InstanceBuffer::HostMasks as usize),
            run.host(InstanceBuffer::Extents as usize),
            geometry.original,
        );
        let extent = |place: usize| {
            let all = masks.extent(place);
            let [x, y, width, height] = all.rectangle();
            (all.area as usize, PixelBox { x, y, width, height })
        };
        let copy_mask = |place: usize, stale: Range<usize>, mask: &mut [u8]| masks.copy(place, stale, mask);
        let ranked = Ranked {
            classes: self.classes,
            scores: run.host(InstanceBuffer::Scores as usize),
            pairs: run.host(InstanceBuffer::Pairs as usize),
            places: run.host(InstanceBuffer::Places as usize),
            boxes: run.host(InstanceBuffer::Boxes as usize),
            copy_mask: &copy_mask,
            extent: &extent,
        };
        found.assemble(&ranked, geometry.original)?;
        found.filter(&self.filter, &mut self.filter_memory);
        Ok(())
    }

    fn on_device(&self, run: &Pipeline, geometry: &Geometry) -> DeviceInstances {
        let slice = |buffer: InstanceBuffer| run.device(buffer as usize);
        DeviceInstances {
            masks: slice(InstanceBuffer::Masks),
            mask_bytes: mask_bytes(geometry.original),
            scores: slice(InstanceBuffer::Scores),
            pairs: slice(InstanceBuffer::Pairs),
            places: slice(InstanceBuffer::Places),
            boxes: Some(slice(InstanceBuffer::Boxes)).filter(|boxes| boxes.bytes > 0),
        }
    }
}

/// Bytes from one bit mask to the next: the pixels of a photo of (height, width), in words of 32.
pub fn mask_bytes((height, width): (usize, usize)) -> usize {
    (height * width).div_ceil(32) * 4
}

/// Number of [`Extent`]s of a mask of a photo of (height, width).
pub fn bands((height, _): (usize, usize)) -> usize {
    height.div_ceil(BAND)
}

/// What [`Extent::ROWS`] rows of a mask hold; the parts of a mask are put together by [`Extent::join`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Extent {
    /// Pixels.
    pub area: u32,
    /// First column with a pixel; beyond `right` if there is none.
    pub left: u32,
    /// Last column with a pixel.
    pub right: u32,
    /// First row with a pixel.
    pub top: u32,
    /// Last row with a pixel.
    pub bottom: u32,
}

impl Extent {
    /// Rows of a band, a whole number of words of a mask.
    pub const ROWS: usize = BAND;

    /// No pixel.
    pub const NOTHING: Extent = Extent { area: 0, left: u32::MAX, right: 0, top: u32::MAX, bottom: 0 };

    /// The smallest rectangle around the pixels: left, top, width, height; all zero if there are none.
    pub fn rectangle(self) -> [usize; 4] {
        if self.area == 0 {
            return [0; 4];
        }
        let side = |first: u32, last: u32| (last + 1).saturating_sub(first) as usize;
        let [width, height] = [side(self.left, self.right), side(self.top, self.bottom)];
        [self.left as usize, self.top as usize, width, height]
    }

    /// Both together.
    pub fn join(self, other: Extent) -> Extent {
        Extent {
            area: self.area + other.area,
            left: self.left.min(other.left),
            right: self.right.max(other.right),
            top: self.top.min(other.top),
            bottom: self.bottom.max(other.bottom),
        }
    }
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct InstanceParams {
    sampler: Sampler,
    objects: u32,
    mask_words: u32,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct ScoreParams {
    classes: u32,
    proposals: u32,
    things: u32,
    pixels: u32,
    runs: u32,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct SlotParams {
    instances: u32,
    classes: u32,
    min_score: f32,
}

/// What makes the instances of a photo and their bit masks: [`InstanceBuffer`] says what comes out.
/// `classes` is the number of classes C of the class logits `f32 [N, C]`.
///
/// # Errors
/// A sentence, if sizes or numbers do not fit each other.
pub fn launches(
    logits: &MaskLogits,
    classes: usize,
    config: &InstanceConfig,
    target: &Target,
) -> Result<PostProcess, String> {
    let pairs = logits.objects * classes;
    let k = config.max_per_image.min(pairs);
    let masks = masks(logits, k)?;
    let buffers = InstanceBuffer::all(k, logits.original, InstanceBuffer::Boxes);
    let Some(masks) = masks else {
        let program = Program { kernel: "nothing".into(), ..Program::default() };
        return Ok(PostProcess { program, buffers });
    };
    let scores = Arg::Workspace(0);
    let scores_bytes = (pairs * 4).next_multiple_of(256);
    let ranked = rank(pairs, k, target)?;
    let mut launches = vec![score(logits, classes, config, scores.clone())];
    // The operator's program, between the scores and the buffers.
    launches.extend(ranked.launches.into_iter().map(|launch| {
        let place = |arg| match arg {
            Arg::Input(_) => scores.clone(),
            Arg::Output(0) => InstanceBuffer::Scores.arg(),
            Arg::Output(_) => InstanceBuffer::Pairs.arg(),
            Arg::Workspace(offset) => Arg::Workspace(scores_bytes + offset),
            other => other,
        };
        Launch { args: launch.args.into_iter().map(place).collect(), ..launch }
    }));
    let slots = SlotParams { instances: k as u32, classes: classes as u32, min_score: config.min_score };
    launches.push(Launch {
        source: "instance_rank.cu",
        entry: "instance_slots",
        defines: rank_defines(logits, config),
        grid: [1; 3],
        block: [RANK_THREADS, 1, 1],
        shared: (k * 4) as u32,
        args: vec![
            InstanceBuffer::Scores.arg(),
            InstanceBuffer::Pairs.arg(),
            InstanceBuffer::Places.arg(),
            InstanceBuffer::Objects.arg(),
            Arg::of(&slots),
        ],
    });
    launches.push(masks);
    let workspace = scores_bytes + ranked.workspace;
    let program =
        Program { kernel: "ranked, bands of masks".into(), launches, workspace, ..Program::default() };
    Ok(PostProcess { program, buffers })
}

/// The bit masks of the objects of `slots` places, if there are any.
fn masks(logits: &MaskLogits, slots: usize) -> Result<Option<Launch>, String> {
    let sampler = logits.sampler(BAND)?;
    if slots == 0 {
        return Ok(None);
    }
    let mask_words = (mask_bytes(logits.original) / 4) as u32;
    let params = InstanceParams { sampler, objects: logits.objects as u32, mask_words };
    let width = logits.original.1;
    Ok(Some(Launch {
        source: "postprocess_instance.cu",
        entry: "postprocess_instance",
        defines: vec![storage(logits.dtype)],
        grid: [bands(logits.original) as u32, slots as u32, 1],
        block: [THREADS as u32, 1, 1],
        shared: (sampler.shared() + 16 * width.div_ceil(TILE_W) + 4 * width) as u32,
        args: vec![
            MASK_LOGITS,
            InstanceBuffer::Objects.arg(),
            InstanceBuffer::Masks.arg(),
            InstanceBuffer::Extents.arg(),
            InstanceBuffer::HostMasks.arg(),
            Arg::of(&params),
        ],
    }))
}

fn rank_defines(logits: &MaskLogits, config: &InstanceConfig) -> Vec<(&'static str, i64)> {
    vec![storage(logits.dtype), ("MASK_SCORE", i64::from(config.mask_score))]
}

/// The scores of all pairs.
fn score(logits: &MaskLogits, classes: usize, config: &InstanceConfig, scores: Arg) -> Launch {
    let pixels = logits.size.0 * logits.size.1;
    let runs = pixels.div_ceil(QUALITY_RUN);
    let params = ScoreParams {
        classes: classes as u32,
        proposals: config.proposals.min(logits.objects) as u32,
        things: config.things.min(classes) as u32,
        pixels: pixels as u32,
        runs: runs as u32,
    };
    Launch {
        source: "instance_rank.cu",
        entry: "instance_scores",
        defines: rank_defines(logits, config),
        grid: [logits.objects as u32, 1, 1],
        block: [RANK_THREADS, 1, 1],
        shared: if config.mask_score { (runs * QUALITY_LANES * 8) as u32 } else { 0 },
        args: vec![MASK_LOGITS, CLASS_LOGITS, scores, Arg::of(&params)],
    }
}

/// The `k` best of a row of scores: the operator's program.
fn rank(pairs: usize, k: usize, target: &Target) -> Result<Program, String> {
    let op = TopK { k }.into();
    let inputs = [ValueType::rows([1, pairs])];
    let outputs = [ValueType::rows([1, k]), ValueType::index([1, k])];
    ops::program(&Site { op: &op, inputs: &inputs, constant: &[false], outputs: &outputs }, target)
}

/// Bit masks of a run by place. Bands without a pixel hold what earlier runs left there.
#[derive(Clone, Copy)]
pub struct Masks<'a> {
    bits: &'a [u8],
    extents: &'a [Extent],
    /// Height and width of the photo.
    size: (usize, usize),
}

impl<'a> Masks<'a> {
    /// Masks by place for photos of `size` (height, width), each [`mask_bytes`] long, and what each of
    /// their bands covers, `[places, bands]`.
    pub fn new(bits: &'a [u8], extents: &'a [Extent], size: (usize, usize)) -> Self {
        Masks { bits, extents, size }
    }

    /// What the mask at a place covers; nothing if there is no such place.
    pub fn extent(&self, place: usize) -> Extent {
        let bands = self.extents.chunks(bands(self.size).max(1)).nth(place).unwrap_or_default();
        bands.iter().fold(Extent::NOTHING, |all, &part| all.join(part))
    }

    /// Copies the mask at a place, in the layout of `BitMask`, over a mask that is empty outside of the
    /// rows `stale`: bands that have pixels neither here nor there are not touched.
    ///
    /// # Errors
    /// [`Error::Shape`] if there is no such place, or `mask` has not the photo's size.
    pub fn copy(&self, place: usize, stale: Range<usize>, mask: &mut [u8]) -> Result<()> {
        let ((height, width), stride) = (self.size, mask_bytes(self.size));
        let Some(bits) =
            self.bits.chunks(stride).nth(place).filter(|_| mask.len() == (height * width).div_ceil(8))
        else {
            let (places, bytes) = (self.bits.len() / stride, mask.len());
            let reason = format!("place {place} of {places} for a mask of {height}x{width} in {bytes} bytes");
            return Err(Error::Shape { op: "postprocess", value: "masks".into(), reason });
        };
        let (band, extents) = (Extent::ROWS * width / 8, &self.extents[place * bands(self.size)..]);
        let bands = mask.chunks_mut(band).zip(bits.chunks(band)).zip(extents);
        for (first, ((to, from), extent)) in (0..).step_by(Extent::ROWS).zip(bands) {
            if extent.area > 0 {
                to.copy_from_slice(&from[..to.len()]);
            } else if first < stale.end && stale.start < first + Extent::ROWS {
                to.fill(0);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Photos of 70 x 12 pixels: bands of 32, 32 and 6 rows, 48, 48 and 9 bytes.
    const SIZE: (usize, usize) = (70, 12);

    #[test]
    fn bands_without_pixels_are_empty_whatever_was_left_there() {
        let stride = mask_bytes(SIZE);
        let bits: Vec<u8> = (0..2 * stride).map(|i| i as u8 | 1).collect();
        let filled = Extent { area: 7, left: 0, right: 3, top: 0, bottom: 1 };
        let extents = [Extent::NOTHING, filled, Extent::NOTHING, filled, Extent::NOTHING, filled];
        let masks = Masks::new(&bits, &extents, SIZE);
        for place in 0..2 {
            let mut mask = vec![0xff; 105];
            masks.copy(place, 0..70, &mut mask).unwrap();
            for (i, &byte) in mask.iter().enumerate() {
                let band = i / 48;
                let wanted = if extents[3 * place + band].area > 0 { bits[place * stride + i] } else { 0 };
                assert_eq!(byte, wanted, "byte {i} of mask {place}");
            }
        }
        // What is known to be empty is not written: the last band of mask 0, if only the first two had
        // pixels before.
        let mut mask = vec![0xff; 105];
        masks.copy(0, 0..33, &mut mask).unwrap();
        assert!(mask[..48].iter().all(|&byte| byte == 0));
        assert!(mask[48..96] == bits[48..96] && mask[96..].iter().all(|&byte| byte == 0xff));
        let fault = masks.copy(2, 0..0, &mut [0; 105]).unwrap_err().to_string();
        assert!(fault.contains("place 2 of 2"), "{fault}");
        let fault = masks.copy(0, 0..0, &mut [0; 104]).unwrap_err().to_string();
        assert!(fault.contains("70x12 in 104 bytes"), "{fault}");
    }
}
