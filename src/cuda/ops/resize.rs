use super::CudaOp;
use super::divisor::divisor;
use super::launches::{elements, per_pixel, storage, vector};
use crate::cuda::gpu::Target;
use crate::cuda::launch::{Arg, Launch, Program};
use crate::ops::resize::ResizeMode;
use crate::ops::{Resize, ResizeGrad, ValueType};
use crate::plan::Site;

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Axis {
    input: u32,
    output: u32,
    step: f32,
    step_rest: f32,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    vertical: Axis,
    horizontal: Axis,
    vectors: u32,
    by_vectors: [u32; 2],
    offset: f32,
}

/// Number of the interpolation in `kernels/common/resize_taps.cuh`.
fn mode_number(mode: ResizeMode) -> i64 {
    match mode {
        ResizeMode::Nearest => 0,
        ResizeMode::Bilinear { .. } | ResizeMode::Blocks => 1,
    }
}

/// Sizes of an axis, and source pixels per output pixel as the sum of two floats (as one, if nearest: see
/// [`Resize::taps`]).
fn axis(resize: &Resize, axis: usize, input: usize) -> Axis {
    let output = resize.size[axis];
    let given = resize.step.map(|step| step[axis]);
    let step = match resize.mode {
        ResizeMode::Nearest => given.map_or(input as f32 / output as f32, |step| step as f32).into(),
        ResizeMode::Bilinear { align_corners: false } => given.unwrap_or(input as f64 / output as f64),
        ResizeMode::Bilinear { align_corners: true } => (input - 1) as f64 / (output - 1).max(1) as f64,
        ResizeMode::Blocks => input as f64 / output as f64,
    };
    let rest = step - f64::from(step as f32);
    Axis { input: input as u32, output: output as u32, step: step as f32, step_rest: rest as f32 }
}

/// One thread a vector of a pixel of `to`: the resized `map`, or the gradient of `map`.
fn program(
    [source, entry]: [&'static str; 2],
    resize: &Resize,
    map: ValueType,
    to: ValueType,
) -> Result<Program, String> {
    elements(map)?;
    elements(to)?;
    let vector = vector(to.dtype, to.shape[3]);
    let [v, h] = [0, 1].map(|axis| resize.size[axis] / map.shape[1 + axis].max(1));
    let offset = match resize.mode {
        ResizeMode::Bilinear { align_corners: false } => 0.5,
        ResizeMode::Nearest | ResizeMode::Bilinear { align_corners: true } => 0.0,
        ResizeMode::Blocks if v != h => {
            return Err(format!("blocks of {v}x{h} pixels, which are no squares"));
        }
        // `(p + offset) / v - offset` is `(p - v / 2) / v`, rounded down in the numerator.
        ResizeMode::Blocks => (v / 2) as f32 / (v - 1).max(1) as f32,
    };
    let params = Params {
        vertical: axis(resize, 0, map.shape[1]),
        horizontal: axis(resize, 1, map.shape[2]),
        vectors: (to.shape[3] / vector) as u32,
        by_vectors: divisor(to.shape[3] / vector),
        offset,
    };
    let launch = Launch {
        source,
        entry,
        defines: vec![storage(to.dtype), ("VECTOR", vector as i64), ("MODE", mode_number(resize.mode))],
        args: vec![Arg::Input(0), Arg::Output(0), Arg::of(&params)],
        ..per_pixel(to, vector)
    };
    let name = if resize.mode == ResizeMode::Nearest { "nearest" } else { "bilinear" };
    Ok(Program { kernel: format!("{name} x{vector}"), launches: vec![launch], ..Program::default() })
}

impl CudaOp for Resize {
    fn program(&self, site: &Site<'_>, _: &Target) -> Result<Program, String> {
        program(["resize.cu", "resize"], self, site.inputs[0], site.outputs[0])
    }
}

impl CudaOp for ResizeGrad {
    fn program(&self, site: &Site<'_>, _: &Target) -> Result<Program, String> {
        let (dy, dx) = (site.inputs[0], site.outputs[0]);
        elements(dy)?;
        let resize = self.forward([dy.shape[1], dy.shape[2]]);
        program(["resize_grad.cu", "resize_grad"], &resize, dx, dx)
    }
}
