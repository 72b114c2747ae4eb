use super::CudaOp;
use super::divisor::divisor;
use super::global_avg_pool::BLOCK;
use super::launches::{elements, per_pixel, storage, vector};
use crate::cuda::gpu::Target;
use crate::cuda::launch::{Arg, Launch, Packing, Program};
use crate::ops::{AdaptiveAvgPool2d, AdaptiveAvgPool2dGrad, ValueType};
use crate::plan::Site;

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    height: u32,
    width: u32,
    out_height: u32,
    out_width: u32,
    vectors: u32,
    tiles: u32,
}

/// # Errors
/// A sentence if the bins of `y` over the pixels of `x` are beyond the kernels' whole numbers.
fn check(x: ValueType, y: ValueType) -> Result<(), String> {
    for axis in [1, 2] {
        let (pixels, bins) = (x.shape[axis], y.shape[axis]);
        if pixels * bins > i32::MAX as usize {
            return Err(format!(
                "{pixels} pixels in {bins} bins along an axis; the kernel counts up to 2147483647 products"
            ));
        }
    }
    Ok(())
}

impl CudaOp for AdaptiveAvgPool2d {
    fn program(&self, site: &Site<'_>, _: &Target) -> Result<Program, String> {
        let (x, y) = (site.inputs[0], site.outputs[0]);
        elements(x)?;
        elements(y)?;
        check(x, y)?;
        let vector = vector(x.dtype, x.shape[3]);
        let vectors = (x.shape[3] / vector) as u32;
        let params = Params {
            height: x.shape[1] as u32,
            width: x.shape[2] as u32,
            out_height: y.shape[1] as u32,
            out_width: y.shape[2] as u32,
            vectors,
            tiles: vectors.div_ceil(BLOCK[0]),
        };
        let launch = Launch {
            source: "adaptive_avg_pool2d.cu",
            entry: "adaptive_avg_pool2d",
            defines: vec![storage(x.dtype), ("VECTOR", vector as i64)],
            grid: [params.tiles * params.out_width, params.out_height, x.shape[0] as u32],
            block: BLOCK,
            shared: 0,
            args: vec![Arg::Input(0), Arg::Output(0), Arg::of(&params)],
        };
        Ok(Program {
            kernel: format!("bins x{vector}"),
            launches: vec![launch],
            packing: vec![Packing::plain(x.dtype)],
            ..Program::default()
        })
    }
}

/// `Params` of `kernels/adaptive_avg_pool2d_grad.cu`.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct GradParams {
    height: u32,
    width: u32,
    out_height: u32,
    out_width: u32,
    vectors: u32,
    by_vectors: [u32; 2],
}

impl CudaOp for AdaptiveAvgPool2dGrad {
    fn program(&self, site: &Site<'_>, _: &Target) -> Result<Program, String> {
        let (dy, dx) = (site.inputs[0], site.outputs[0]);
        elements(dx)?;
        elements(dy)?;
        check(dx, dy)?;
        let vector = vector(dx.dtype, dx.shape[3]);
        let params = GradParams {
            height: dx.shape[1] as u32,
            width: dx.shape[2] as u32,
            out_height: dy.shape[1] as u32,
            out_width: dy.shape[2] as u32,
            vectors: (dx.shape[3] / vector) as u32,
            by_vectors: divisor(dx.shape[3] / vector),
        };
        let launch = Launch {
            source: "adaptive_avg_pool2d_grad.cu",
            entry: "adaptive_avg_pool2d_grad",
            defines: vec![storage(dx.dtype), ("VECTOR", vector as i64)],
            args: vec![Arg::Input(0), Arg::Output(0), Arg::of(&params)],
            ..per_pixel(dx, vector)
        };
        Ok(Program {
            kernel: format!("gather x{vector}"),
            launches: vec![launch],
            packing: vec![Packing::plain(dx.dtype)],
            ..Program::default()
        })
    }
}
