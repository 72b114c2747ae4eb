use super::CudaOp;
use super::launches::{common_vector, dtype_number, elements, expect_f32, storage};
use crate::cuda::gpu::Target;
use crate::cuda::launch::{Arg, Launch, Packing, Program};
use crate::ops::mask_loss::{DICE_EPS, MaskLoss, MaskLossGrad};
use crate::plan::Site;

/// Threads of a block: `THREADS` of `kernels/mask_loss.cu`.
const THREADS: usize = 256;

/// Vectors of pixels that a thread takes, one after the other.
const VECTORS: usize = 4;

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    objects: u32,
    slots: u32,
    vectors: u32,
    share: u32,
    eps: f32,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct TotalParams {
    objects: u32,
    parts: u32,
    eps: f32,
}

/// Blocks that go over the pixels of every object.
struct Planes {
    params: Params,
    defines: Vec<(&'static str, i64)>,
    /// Objects of all images, and shares of an object's pixels.
    objects: usize,
    parts: usize,
    packing: Vec<Packing>,
}

impl Planes {
    fn new(site: &Site<'_>) -> Result<Self, String> {
        let (logits, targets) = (site.inputs[0], site.inputs[1]);
        elements(logits)?;
        elements(targets)?;
        // Constant targets lie as the logits do.
        let packing = vec![Packing::plain(logits.dtype); 2];
        let [x, t] = [0, 1].map(|input| site.dtype(input, packing[input]));
        let pixels = logits.shape[2] * logits.shape[3];
        let vector = common_vector(&[x, t], pixels);
        let (vectors, share) = (pixels / vector, THREADS * VECTORS);
        let params = Params {
            objects: logits.shape[1] as u32,
            slots: targets.shape[1] as u32,
            vectors: vectors as u32,
            share: share as u32,
            eps: DICE_EPS as f32,
        };
        let defines = vec![storage(x), ("TARGET", dtype_number(t)), ("VECTOR", vector as i64)];
        let (objects, parts) = (site.inputs[2].shape.len(), vectors.div_ceil(share));
        Ok(Planes { params, defines, objects, parts, packing })
    }

    fn launch(&self, entry: &'static str, grid: [usize; 2], args: Vec<Arg>) -> Launch {
        Launch {
            source: "mask_loss.cu",
            entry,
            defines: self.defines.clone(),
            grid: [grid[0] as u32, grid[1] as u32, 1],
            block: [THREADS as u32, 1, 1],
            shared: 0,
            args,
        }
    }
}

impl CudaOp for MaskLoss {
    fn program(&self, site: &Site<'_>, _: &Target) -> Result<Program, String> {
        let planes = Planes::new(site)?;
        let Planes { objects, parts, params, .. } = planes;
        let operands = (0..3).map(Arg::Input);
        let mut launches = Vec::new();
        if objects * parts > 0 {
            let args = operands.chain([Arg::Workspace(0), Arg::of(&params)]).collect();
            launches.push(planes.launch("mask_loss_parts", [objects, parts], args));
        }
        let total = TotalParams { objects: objects as u32, parts: parts as u32, eps: params.eps };
        let results = (0..3).map(Arg::Output);
        let from = if launches.is_empty() { Arg::Null } else { Arg::Workspace(0) };
        let args = [from, Arg::Input(2)].into_iter().chain(results).chain([Arg::of(&total)]).collect();
        launches.push(planes.launch("mask_loss", [1, 1], args));
        Ok(Program {
            kernel: format!("{parts} parts"),
            launches,
            // Four sums of each.
            workspace: objects * parts * 16,
            packing: planes.packing,
        })
    }
}

impl CudaOp for MaskLossGrad {
    fn program(&self, site: &Site<'_>, _: &Target) -> Result<Program, String> {
        expect_f32(site, 3..6)?;
        let planes = Planes::new(site)?;
        let operands = (0..6).map(Arg::Input);
        let args = operands.chain([Arg::Output(0), Arg::of(&planes.params)]).collect();
        let launches = vec![planes.launch("mask_loss_grad", [planes.objects, planes.parts], args)];
        let kernel = format!("{} parts", planes.parts);
        Ok(Program { kernel, launches, packing: planes.packing, ..Program::default() })
    }
}
