use super::CudaOp;
use super::activation::number;
use super::launches::{elements, lanes, storage};
use crate::cuda::gpu::Target;
use crate::cuda::launch::{Arg, Launch, Packing, Program};
use crate::ops::NormSum;
use crate::ops::fused_conv2d::PART_PIXELS;
use crate::plan::Site;
use crate::tensor::DType;

/// Threads of a block: `THREADS` of `kernels/norm_sum.cu`.
const THREADS: usize = 512;
/// Pixels that a thread takes at a time, and how often: `BATCH` and `BATCHES` of `kernels/norm_sum.cu`.
const PIXELS: [usize; 2] = [4, 2];
/// Most vectors of channels of a slice.
const MAX_COLUMNS: usize = 8;
/// Most terms: the kernel has parameters for so many.
pub(in crate::cuda) const MAX_TERMS: usize = 4;

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    pixels: u32,
    channels: u32,
    parts: u32,
    eps: f32,
}

impl CudaOp for NormSum {
    fn program(&self, site: &Site<'_>, _: &Target) -> Result<Program, String> {
        let x = site.inputs[0];
        elements(x)?;
        let (pixels, channels) = (x.shape[1] * x.shape[2], x.shape[3]);
        let (lanes, width) = (lanes(x.dtype), channels / self.groups);
        if !width.is_multiple_of(lanes) {
            return Err(format!("groups of {width} channels; takes multiples of {lanes}"));
        }
        if self.normalised.len() > MAX_TERMS {
            return Err(format!("{} terms; the kernel takes up to {MAX_TERMS}", self.normalised.len()));
        }
        let vectors = channels / lanes;
        let columns = (1 << vectors.trailing_zeros()).min(MAX_COLUMNS);
        let block_pixels = THREADS / columns * PIXELS[0] * PIXELS[1];
        let params = Params {
            pixels: pixels as u32,
            channels: channels as u32,
            parts: pixels.div_ceil(PART_PIXELS) as u32,
            eps: self.eps,
        };
        let mut args = vec![Arg::Null; 4 * MAX_TERMS];
        let mut packing = vec![Packing::plain(DType::F32); site.inputs.len()];
        let mut norms = 0;
        for (term, (at, normalised)) in self.terms().enumerate() {
            let operands = if normalised { 4 } else { 1 };
            args[4 * term..][..operands]
                .iter_mut()
                .enumerate()
                .for_each(|(i, arg)| *arg = Arg::Input(at + i));
            packing[at] = Packing::plain(x.dtype);
            norms |= i64::from(normalised) << term;
        }
        args.extend([Arg::Output(0), Arg::of(&params)]);
        let launch = Launch {
            source: "norm_sum.cu",
            entry: "norm_sum",
            defines: vec![
                storage(x.dtype),
                ("ACTIVATION", number(self.activation)),
                ("WIDTH", width as i64),
                ("TERMS", self.normalised.len() as i64),
                ("NORMS", norms),
                ("COLUMNS", columns as i64),
            ],
            grid: [pixels.div_ceil(block_pixels) as u32, (vectors / columns) as u32, x.shape[0] as u32],
            block: [columns as u32, (THREADS / columns) as u32, 1],
            shared: 0,
            args,
        };
        let kernel = format!("{} terms x{lanes}", self.normalised.len());
        Ok(Program { kernel, launches: vec![launch], packing, workspace: 0 })
    }
}
