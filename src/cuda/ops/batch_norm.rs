use super::CudaOp;
use super::divisor::divisor;
use super::global_avg_pool::BLOCK as COLUMN_SUMS;
use super::launches::{elements, per_element, storage, vector};
use super::sum_parts::sum_parts;
use crate::cuda::gpu::Target;
use crate::cuda::launch::{Arg, Launch, Packing, Program};
use crate::ops::epilogue::Epilogue;
use crate::ops::{BatchNorm, BatchNormGrad, BatchNormTrain, BatchNormTrainGrad, ValueType};
use crate::plan::Site;
use crate::tensor::DType;

/// Pixels of a part: 32 of each row of threads.
pub(super) const PART_PIXELS: usize = 1024;
/// Bytes of the moments of a part.
const MOMENTS_BYTES: usize = 8;

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    pixels: u32,
    vectors: u32,
    parts: u32,
    part_pixels: u32,
    eps: f32,
    by_vectors: [u32; 2],
}

/// A map as the kernels see it.
struct Columns {
    x: ValueType,
    pixels: usize,
    channels: usize,
    vector: usize,
    parts: usize,
    eps: f32,
}

impl Columns {
    fn new(x: ValueType, eps: f32) -> Result<Columns, String> {
        elements(x)?;
        let channels = x.shape.last();
        let pixels = x.shape.len().checked_div(channels).unwrap_or(0);
        let parts = pixels.div_ceil(PART_PIXELS);
        Ok(Columns { x, pixels, channels, vector: vector(x.dtype, channels), parts, eps })
    }

    fn launch(&self, entry: &'static str, geometry: Launch, args: Vec<Arg>) -> Launch {
        let vectors = self.channels / self.vector;
        let params = Params {
            pixels: self.pixels as u32,
            vectors: vectors as u32,
            parts: self.parts as u32,
            part_pixels: PART_PIXELS as u32,
            eps: self.eps,
            by_vectors: divisor(vectors.max(1)),
        };
        Launch {
            source: "batch_norm/batch_norm.cu",
            entry,
            defines: vec![storage(self.x.dtype), ("VECTOR", self.vector as i64)],
            args: args.into_iter().chain([Arg::of(&params)]).collect(),
            ..geometry
        }
    }

    /// A block for some vectors of channels and a part of the pixels.
    fn by_part(&self, entry: &'static str, args: Vec<Arg>) -> Launch {
        let tiles = (self.channels / self.vector).div_ceil(COLUMN_SUMS[0] as usize);
        let geometry =
            Launch { grid: [tiles as u32, self.parts as u32, 1], block: COLUMN_SUMS, ..per_element(0) };
        self.launch(entry, geometry, args)
    }

    /// A thread for a vector of a pixel.
    fn by_vector(&self, entry: &'static str, args: Vec<Arg>) -> Launch {
        self.launch(entry, per_element(self.pixels * self.channels / self.vector), args)
    }

    /// The gradients, of the operands `x`, gamma, mean, variance and `dy`: dx, dgamma, dbeta.
    fn grad(&self, site: &Site<'_>, train: bool) -> Result<Program, String> {
        let packing = [0, 4].map(|input| Packing::plain(site.dtype(input, Packing::plain(self.x.dtype))));
        if packing.iter().any(|packing| packing.dtype != self.x.dtype) {
            return Err(format!("gradient {} of a map {}", site.inputs[4], self.x));
        }
        let parts_bytes = self.parts * self.channels * 4;
        let [dgamma, dbeta] = [0, parts_bytes.next_multiple_of(256)];
        let mut launches = Vec::new();
        let [x, gamma, mean, variance, dy] = [0, 1, 2, 3, 4].map(Arg::Input);
        if self.pixels > 0 {
            let to = [dgamma, dbeta].map(Arg::Workspace);
            let operands = [&x, &mean, &variance, &dy].into_iter().cloned().chain(to);
            launches.push(self.by_part("sums", operands.collect()));
        }
        for (output, at) in [(1, dgamma), (2, dbeta)] {
            let mut sum = sum_parts(self.parts, self.channels, self.channels, Epilogue::default());
            (sum.args[0], sum.args[3]) = (Arg::Workspace(at), Arg::Output(output));
            launches.push(sum);
        }
        if self.pixels > 0 {
            let [to, scale, shift] = [0, 1, 2].map(Arg::Output);
            let mut launch = self.by_vector("dx", vec![x, gamma, mean, variance, dy, scale, shift, to]);
            launch.defines.push(("TRAIN", i64::from(train)));
            launches.push(launch);
        }
        let plain = Packing::plain(DType::F32);
        Ok(Program {
            kernel: format!("{} parts x{}", self.parts, self.vector),
            launches,
            workspace: (dbeta + parts_bytes).max(256),
            packing: vec![packing[0], plain, plain, plain, packing[1]],
        })
    }
}

impl CudaOp for BatchNorm {
    fn program(&self, site: &Site<'_>, _: &Target) -> Result<Program, String> {
        let columns = Columns::new(site.inputs[0], self.eps)?;
        let mut args: Vec<Arg> = (0..5).map(Arg::Input).collect();
        args.extend([Arg::Null, Arg::Output(0)]);
        let launches = vec![columns.by_vector("normalise", args)];
        Ok(Program { kernel: format!("frozen x{}", columns.vector), launches, ..Program::default() })
    }
}

impl CudaOp for BatchNormTrain {
    fn program(&self, site: &Site<'_>, _: &Target) -> Result<Program, String> {
        let columns = Columns::new(site.inputs[0], self.eps)?;
        let parts_bytes = columns.parts * columns.channels * MOMENTS_BYTES;
        let at = parts_bytes.next_multiple_of(256);
        let [x, gamma, beta] = [0, 1, 2].map(Arg::Input);
        let [y, mean, variance] = [0, 1, 2].map(Arg::Output);
        let (parts, relative) = (Arg::Workspace(0), Arg::Workspace(at));
        let combine = vec![x.clone(), parts.clone(), relative.clone(), mean, variance.clone()];
        // The first pixel of the map is what means are relative to.
        let normalise = vec![x.clone(), gamma, beta, relative, variance, x.clone(), y];
        let launches = vec![
            columns.by_part("moments", vec![x, parts]),
            columns.launch("combine", per_element(columns.channels * 32), combine),
            columns.by_vector("normalise", normalise),
        ];
        Ok(Program {
            kernel: format!("{} parts x{}", columns.parts, columns.vector),
            launches,
            workspace: at + columns.channels * 4,
            ..Program::default()
        })
    }
}

impl CudaOp for BatchNormGrad {
    fn program(&self, site: &Site<'_>, _: &Target) -> Result<Program, String> {
        Columns::new(site.inputs[0], self.eps)?.grad(site, false)
    }
}

impl CudaOp for BatchNormTrainGrad {
    fn program(&self, site: &Site<'_>, _: &Target) -> Result<Program, String> {
        Columns::new(site.inputs[0], self.eps)?.grad(site, true)
    }
}
