use super::CudaOp;
use super::divisor::divisor;
use super::launches::{elements, per_pixel, storage, vector};
use crate::cuda::gpu::Target;
use crate::cuda::launch::{Arg, Launch, Program};
use crate::ops::Resize;
use crate::ops::resize::ResizeMode;
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

/// Number of the interpolation in `kernels/resize.cu`.
fn mode_number(mode: ResizeMode) -> i64 {
    match mode {
        ResizeMode::Nearest => 0,
        ResizeMode::Bilinear { .. } => 1,
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
    };
    let rest = step - f64::from(step as f32);
    Axis { input: input as u32, output: output as u32, step: step as f32, step_rest: rest as f32 }
}

impl CudaOp for Resize {
    fn program(&self, site: &Site<'_>, _: &Target) -> Result<Program, String> {
        let (x, y) = (site.inputs[0], site.outputs[0]);
        elements(x)?;
        let vector = vector(y.dtype, y.shape[3]);
        let offset = if self.mode == (ResizeMode::Bilinear { align_corners: false }) { 0.5 } else { 0.0 };
        let params = Params {
            vertical: axis(self, 0, x.shape[1]),
            horizontal: axis(self, 1, x.shape[2]),
            vectors: (y.shape[3] / vector) as u32,
            by_vectors: divisor(y.shape[3] / vector),
            offset,
        };
        let launch = Launch {
            source: "resize.cu",
            entry: "resize",
            defines: vec![storage(y.dtype), ("VECTOR", vector as i64), ("MODE", mode_number(self.mode))],
            args: vec![Arg::Input(0), Arg::Output(0), Arg::of(&params)],
            ..per_pixel(y, vector)
        };
        let name = if self.mode == ResizeMode::Nearest { "nearest" } else { "bilinear" };
        Ok(Program { kernel: format!("{name} x{vector}"), launches: vec![launch], ..Program::default() })
    }
}
