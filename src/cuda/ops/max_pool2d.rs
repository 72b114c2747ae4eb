use super::CudaOp;
use super::divisor::divisor;
use super::launches::{elements, per_pixel, storage, vector};
use crate::cuda::gpu::Target;
use crate::cuda::launch::{Arg, Launch, Packing, Program};
use crate::ops::{MaxPool2d, MaxPool2dGrad};
use crate::plan::Site;

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    height: u32,
    width: u32,
    out_height: u32,
    out_width: u32,
    vectors: u32,
    by_vectors: [u32; 2],
    stride_h: i32,
    stride_w: i32,
    pad_h: i32,
    pad_w: i32,
}

impl CudaOp for MaxPool2d {
    fn program(&self, site: &Site<'_>, _: &Target) -> Result<Program, String> {
        let (x, y) = (site.inputs[0], site.outputs[0]);
        elements(x)?;
        let vector = vector(y.dtype, y.shape[3]);
        let params = Params {
            height: x.shape[1] as u32,
            width: x.shape[2] as u32,
            out_height: y.shape[1] as u32,
            out_width: y.shape[2] as u32,
            vectors: (y.shape[3] / vector) as u32,
            by_vectors: divisor(y.shape[3] / vector),
            stride_h: self.stride[0] as i32,
            stride_w: self.stride[1] as i32,
            pad_h: self.padding[0] as i32,
            pad_w: self.padding[1] as i32,
        };
        let launch = Launch {
            source: "max_pool2d.cu",
            entry: "max_pool2d",
            defines: vec![
                storage(y.dtype),
                ("VECTOR", vector as i64),
                ("KERNEL_H", self.kernel[0] as i64),
                ("KERNEL_W", self.kernel[1] as i64),
            ],
            args: vec![Arg::Input(0), Arg::Output(0), Arg::of(&params)],
            ..per_pixel(y, vector)
        };
        Ok(Program { kernel: format!("windows x{vector}"), launches: vec![launch], ..Program::default() })
    }
}

/// `Params` of `kernels/max_pool2d_grad.cu`.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct GradParams {
    height: i32,
    width: i32,
    out_height: i32,
    out_width: i32,
    vectors: u32,
    by_vectors: [u32; 2],
    kernel_h: i32,
    kernel_w: i32,
    stride_h: i32,
    stride_w: i32,
    pad_h: i32,
    pad_w: i32,
}

impl CudaOp for MaxPool2dGrad {
    fn program(&self, site: &Site<'_>, _: &Target) -> Result<Program, String> {
        let ([x, dy], dx) = ([site.inputs[0], site.inputs[1]], site.outputs[0]);
        elements(x)?;
        let stored = Packing::plain(dx.dtype);
        if [0, 1].iter().any(|&input| site.dtype(input, stored) != dx.dtype) {
            return Err(format!("map {x} and gradient {dy} to {dx}"));
        }
        let vector = vector(dx.dtype, dx.shape[3]);
        let [kernel, stride, padding] =
            [self.pool.kernel, self.pool.stride, self.pool.padding].map(|pair| pair.map(|v| v as i32));
        let params = GradParams {
            height: x.shape[1] as i32,
            width: x.shape[2] as i32,
            out_height: dy.shape[1] as i32,
            out_width: dy.shape[2] as i32,
            vectors: (dx.shape[3] / vector) as u32,
            by_vectors: divisor(dx.shape[3] / vector),
            kernel_h: kernel[0],
            kernel_w: kernel[1],
            stride_h: stride[0],
            stride_w: stride[1],
            pad_h: padding[0],
            pad_w: padding[1],
        };
        let launch = Launch {
            source: "max_pool2d_grad.cu",
            entry: "max_pool2d_grad",
            defines: vec![storage(dx.dtype), ("VECTOR", vector as i64)],
            args: vec![Arg::Input(0), Arg::Input(1), Arg::Output(0), Arg::of(&params)],
            ..per_pixel(dx, vector)
        };
        Ok(Program {
            kernel: format!("gather x{vector}"),
            launches: vec![launch],
            packing: vec![stored; 2],
            ..Program::default()
        })
    }
}
