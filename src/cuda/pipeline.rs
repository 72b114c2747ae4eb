//! From the bytes of a photo to masks or a panoptic assignment in one captured graph: copy in,
//! pre-processing, the network, post-processing, copies out; one wait. Bit masks are not copied:
//! post-processing puts what they have of pixels where the host reads it.

use super::executor::Executor;
use super::memory::{DeviceBuffer, Pinned};
use super::on_device::{DeviceResults, DeviceSlice, Enqueued};
use super::post::{self, Extent, MaskLogits, Ranking};
use super::pre::{PixelFormat, Preprocess, YuvMatrix};
use super::recording::{Bound, capture, copy_in, copy_out, replay};
use super::runtime::Runtime;
use crate::cuda::gpu::Target;
use crate::cuda::launch::{Arg, Launch, Program};
use crate::error::{Error, Result};
use crate::tensor::DType;
use cudarc::driver::CudaGraph;
use rayon::prelude::*;
use std::ops::Range;

/// What a pipeline does around the network.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ends {
    /// From the photo to the network input.
    pub preprocess: Preprocess,
    /// Height and width of results: the photo's, or what it was before someone else resized it.
    pub original: (usize, usize),
    /// Results at the size of the photo.
    pub results: Results,
}

/// What comes out of a pipeline.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Results {
    /// The best instances and their bit masks.
    Instances(Ranking),
    /// An object for every pixel; of `proposals` things and one for each of `stuff` classes.
    Assignment {
        /// Objects that are things.
        proposals: usize,
        /// Thing classes.
        things: usize,
        /// Stuff classes.
        stuff: usize,
    },
}

/// The ends of an executor for photos of one size. Several may share one executor, as runs do not overlap.
pub struct Pipeline {
    image: Pinned,
    /// The results of post-processing, in the order of its program; those that stay on the device are empty.
    results: Vec<Pinned>,
    logits: MaskLogits,
    graph: CudaGraph,
    pub(super) ends: Ends,
    /// Dropped before the memory that it works in.
    pub(super) enqueued: Option<Enqueued>,
    /// Results, then the image's pixels, then the workspace.
    memory: Vec<DeviceBuffer>,
    prepare: Bound,
    /// What follows the network where results stay on the device.
    post: Vec<Bound>,
    /// What follows it where they go to the host.
    _post_to_host: Vec<Bound>,
}

// SAFETY: handles of the driver, which may be used from any thread once the context is bound, as every method
// does.
unsafe impl Send for Pipeline {}

impl Pipeline {
    /// Binds pre- and post-processing around `executor`, whose results `cls_score` and `mask_preds` are those
    /// of these positions, and captures all of it.
    ///
    /// # Errors
    /// [`Error::Memory`] if device or host have too little; [`Error::Cuda`] for sizes that the kernels do not
    /// take, and as the driver says.
    pub fn new(
        executor: &Executor,
        runtime: &Runtime,
        ends: &Ends,
        [cls_score, mask_preds]: [usize; 2],
    ) -> Result<Pipeline> {
        let device = executor.device();
        let plan = executor.plan();
        let (input, scores, masks) =
            (&plan.inputs[0].1, &plan.outputs[cls_score].1, &plan.outputs[mask_preds].1);
        let Ends { preprocess, original, results } = ends;
        let shape = masks.ty.shape;
        let logits = MaskLogits {
            objects: shape[1],
            size: (shape[2], shape[3]),
            dtype: masks.ty.dtype,
            padded: preprocess.padded,
            resized: preprocess.resized,
            original: *original,
        };
        let PostProcess { program, results: kinds } = PostProcess::new(&logits, results, &runtime.target())?;
        let prepare = preprocess.launch(input.ty.dtype).map_err(Error::Cuda)?;
        runtime.load(&program.launches.iter().chain([&prepare]).collect::<Vec<_>>())?;

        let (rows, chroma_rows) = match preprocess.format {
            PixelFormat::Nv12(_) => (preprocess.source.0, preprocess.source.0.div_ceil(2)),
            PixelFormat::Rgb8 | PixelFormat::Bgr8 => (preprocess.source.0, 0),
        };
        let image = Pinned::new(device, preprocess.pitch * (rows + chroma_rows))?;
        let pixels = DeviceBuffer::new(device, image.len(), "the photo")?;
        let chroma = pixels.pointer() + (preprocess.pitch * rows) as u64;
        let network_input = executor.address(input)?;
        let prepare = Bound::new(runtime, &prepare, |arg| {
            Ok(match arg {
                Arg::Input(0) => pixels.pointer(),
                Arg::Input(_) => chroma,
                _ => network_input,
            })
        })?;

        let workspace = DeviceBuffer::new(device, program.workspace, "post-processing")?;
        let (mut on_device, mut on_host) = (Vec::new(), Vec::new());
        for &(bytes, kind) in &kinds {
            let sizes = match kind {
                Kind::Copied => [bytes, bytes],
                Kind::Kept => [bytes, 0],
                Kind::Written => [0, bytes],
            };
            on_device.push(DeviceBuffer::new(device, sizes[0], "results at the size of the photo")?);
            on_host.push(Pinned::new(device, sizes[1])?);
        }
        let (mask_logits, score_logits) = (executor.address(masks)?, executor.address(scores)?);
        let bind = |to_host: bool| -> Result<Vec<Bound>> {
            let address = |arg: &Arg| match arg {
                Arg::Input(0) => Ok(mask_logits),
                Arg::Input(_) => Ok(score_logits),
                Arg::Output(i) if kinds[*i].1 != Kind::Written => Ok(on_device[*i].pointer()),
                Arg::Output(i) if to_host => on_host[*i].on_device(),
                Arg::Workspace(offset) => Ok(workspace.pointer() + *offset as u64),
                Arg::Output(_) | Arg::Null | Arg::Struct(_) => Ok(0),
            };
            program.launches.iter().map(|launch| Bound::new(runtime, launch, address)).collect()
        };
        let (post, post_to_host) = (bind(false)?, bind(true)?);
        let graph = capture(device, || {
            copy_in(device, &image, pixels.pointer())?;
            prepare.launch(device)?;
            executor.record()?;
            post_to_host.iter().try_for_each(|launch| launch.launch(device))?;
            let copied =
                on_device.iter().zip(&on_host).zip(&kinds).filter(|(_, (_, kind))| *kind == Kind::Copied);
            copied.into_iter().try_for_each(|((from, to), _)| copy_out(device, from.pointer(), to))
        })?;
        let mut memory = on_device;
        memory.extend([pixels, workspace]);
        Ok(Pipeline {
            image,
            results: on_host,
            logits,
            graph,
            ends: *ends,
            enqueued: None,
            memory,
            prepare,
            post,
            _post_to_host: post_to_host,
        })
    }

    /// The photo's bytes, to be filled before every [`Pipeline::run`]: as many as rows and pitch say.
    pub fn image_mut(&mut self) -> &mut [u8] {
        self.image.as_mut_slice()
    }

    /// Runs everything: one graph launch, one wait.
    ///
    /// # Errors
    /// [`Error::Cuda`] as the driver says.
    pub fn run(&mut self, executor: &mut Executor) -> Result<()> {
        executor.join()?;
        replay(executor.device(), &self.graph)
    }

    /// Sends all between the copies in and out to the device's stream.
    pub(super) fn record(&self, executor: &Executor) -> Result<()> {
        let device = executor.device();
        self.prepare.launch(device)?;
        executor.record()?;
        self.post.iter().try_for_each(|launch| launch.launch(device))
    }

    /// Where the image goes on the device.
    pub(super) fn pixels(&self) -> u64 {
        self.memory[self.memory.len() - 2].pointer()
    }

    /// Where the results lie on the device.
    pub(super) fn on_device(&self) -> DeviceResults {
        let slice = |index: usize| {
            let buffer = &self.memory[index];
            DeviceSlice { address: buffer.pointer(), bytes: buffer.len() }
        };
        match self.ends.results {
            Results::Instances(_) => {
                let [masks, scores, pairs, places] = [0, 2, 3, 4].map(slice);
                DeviceResults::Instances {
                    masks,
                    mask_bytes: self.logits.mask_bytes(),
                    scores,
                    pairs,
                    places,
                }
            }
            Results::Assignment { .. } => {
                let [objects, areas, scores, classes] = [0, 1, 2, 3].map(slice);
                DeviceResults::Assignment { objects, areas, scores, classes }
            }
        }
    }

    /// Of [`Results::Instances`]: by descending score, the scores, `object * C + class` and the place of the
    /// mask ([`u32::MAX`]: dropped, as are all after it).
    pub fn ranking(&self) -> (&[f32], &[i32], &[u32]) {
        (self.results[2].as_slice(), self.results[3].as_slice(), self.results[4].as_slice())
    }

    /// Of [`Results::Instances`]: the bit masks by place.
    pub fn masks(&self) -> Masks<'_> {
        Masks::new(self.results[6].as_slice(), self.results[1].as_slice(), &self.logits)
    }

    /// Of [`Results::Assignment`]: the object of each pixel.
    pub fn assignment(&self) -> &[u16] {
        self.results[0].as_slice()
    }

    /// Of [`Results::Assignment`]: the pixels that each object wins, and those of its own mask.
    pub fn areas(&self) -> (&[u32], &[u32]) {
        self.results[1].as_slice().split_at(self.logits.objects)
    }

    /// Of [`Results::Assignment`]: score and class of each object.
    pub fn classified(&self) -> (&[f32], &[u32]) {
        (self.results[2].as_slice(), self.results[3].as_slice())
    }
}

/// What pipelines around a network run besides it: pre-processing of every format of image into an input of
/// element type `input`, and post-processing of these logits. Which kernels these are does not depend on the
/// sizes of photos.
///
/// # Errors
/// As [`Pipeline::new`] for sizes that the kernels do not take.
pub fn launches(
    input: DType,
    logits: &MaskLogits,
    results: &Results,
    target: &Target,
) -> Result<Vec<Launch>> {
    let PostProcess { program, .. } = PostProcess::new(logits, results, target)?;
    let (source, resized, padded) = (logits.padded, logits.resized, logits.padded);
    let (mean, std) = ([0.0; 3], [1.0; 3]);
    let mut launches = program.launches;
    for format in [PixelFormat::Rgb8, PixelFormat::Bgr8, PixelFormat::Nv12(YuvMatrix::default())] {
        let preprocess = Preprocess { format, source, pitch: 3 * source.1, resized, padded, mean, std };
        launches.push(preprocess.launch(input).map_err(Error::Cuda)?);
    }
    Ok(launches)
}

/// Copies a photo's bytes, equally many at both ends, on the threads of the pool that it is called in: one
/// thread copies a large photo more slowly than the bus takes it.
pub fn copy_photo(from: &[u8], to: &mut [u8]) {
    const AT_ONCE: usize = 256 << 10;
    to.par_chunks_mut(AT_ONCE).zip(from.par_chunks(AT_ONCE)).for_each(|(to, from)| to.copy_from_slice(from));
}

/// Bit masks of a run by place. Bands without a pixel hold what earlier runs left there.
#[derive(Clone, Copy)]
pub struct Masks<'a> {
    bits: &'a [u8],
    extents: &'a [Extent],
    logits: &'a MaskLogits,
}

impl<'a> Masks<'a> {
    /// Masks by place, each [`MaskLogits::mask_bytes`] long, and what each of their bands covers,
    /// `[places, bands]`.
    pub fn new(bits: &'a [u8], extents: &'a [Extent], logits: &'a MaskLogits) -> Self {
        Masks { bits, extents, logits }
    }

    /// What the mask at a place covers; nothing if there is no such place.
    pub fn extent(&self, place: usize) -> Extent {
        let bands = self.extents.chunks(self.logits.bands().max(1)).nth(place).unwrap_or_default();
        bands.iter().fold(Extent::NOTHING, |all, &part| all.join(part))
    }

    /// Copies the mask at a place, in the layout of `BitMask`, over a mask that is empty outside of the rows
    /// `stale`: bands that have pixels neither here nor there are not touched.
    ///
    /// # Errors
    /// [`Error::Shape`] if there is no such place, or `mask` has not the photo's size.
    pub fn copy(&self, place: usize, stale: Range<usize>, mask: &mut [u8]) -> Result<()> {
        let ((height, width), stride) = (self.logits.original, self.logits.mask_bytes());
        let Some(bits) =
            self.bits.chunks(stride).nth(place).filter(|_| mask.len() == (height * width).div_ceil(8))
        else {
            let (places, bytes) = (self.bits.len() / stride, mask.len());
            let reason = format!("place {place} of {places} for a mask of {height}x{width} in {bytes} bytes");
            return Err(Error::Shape { op: "postprocess", value: "masks".into(), reason });
        };
        let (band, extents) = (Extent::ROWS * width / 8, &self.extents[place * self.logits.bands()..]);
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

/// Where a result of post-processing goes.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    /// Made on the device and copied to the host.
    Copied,
    /// Made on the device, and not copied.
    Kept,
    /// Written to the host by its kernel.
    Written,
}

/// What follows the network.
struct PostProcess {
    program: Program,
    /// Bytes of each result, and where it goes.
    results: Vec<(usize, Kind)>,
}

impl PostProcess {
    fn new(logits: &MaskLogits, results: &Results, target: &Target) -> Result<Self> {
        use Kind::{Copied, Kept, Written};
        let (n, pixels) = (logits.objects, logits.original.0 * logits.original.1);
        let (program, results) = match results {
            Results::Instances(ranking) => {
                let k = ranking.instances.min(n * ranking.classes);
                let (masks, extents) = (k * logits.mask_bytes(), k * logits.bands() * size_of::<Extent>());
                let small = (4 * k, Copied);
                // The objects of places are what the launch of the masks reads.
                let kinds =
                    [(masks, Kept), (extents, Copied), small, small, small, (4 * k, Kept), (masks, Written)];
                (post::instances(logits, ranking, target), kinds.to_vec())
            }
            &Results::Assignment { proposals, things, stuff } => {
                let sizes = [2 * pixels, 8 * n, 4 * n, 4 * n];
                (
                    post::panoptic(logits, proposals, things, stuff),
                    sizes.map(|bytes| (bytes, Copied)).to_vec(),
                )
            }
        };
        Ok(PostProcess { program: program.map_err(Error::Cuda)?, results })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Photos of 70 x 12 pixels: bands of 32, 32 and 6 rows, 48, 48 and 9 bytes.
    const LOGITS: MaskLogits = MaskLogits {
        objects: 2,
        size: (10, 4),
        dtype: DType::F16,
        padded: (80, 32),
        resized: (70, 12),
        original: (70, 12),
    };

    #[test]
    fn bands_without_pixels_are_empty_whatever_was_left_there() {
        let stride = LOGITS.mask_bytes();
        let bits: Vec<u8> = (0..2 * stride).map(|i| i as u8 | 1).collect();
        let filled = Extent { area: 7, left: 0, right: 3, top: 0, bottom: 1 };
        let extents = [Extent::NOTHING, filled, Extent::NOTHING, filled, Extent::NOTHING, filled];
        let masks = Masks { bits: &bits, extents: &extents, logits: &LOGITS };
        for place in 0..2 {
            let mut mask = vec![0xff; 105];
            masks.copy(place, 0..70, &mut mask).unwrap();
            for (i, &byte) in mask.iter().enumerate() {
                let band = i / 48;
                let wanted = if extents[3 * place + band].area > 0 { bits[place * stride + i] } else { 0 };
                assert_eq!(byte, wanted, "byte {i} of mask {place}");
            }
        }
        // What is known to be empty is not written: the last band of mask 0, if only the first two had pixels
        // before.
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
