use super::CudaOp;
use super::launches::{elements, expect_f32, per_element, vector};
use crate::cuda::gpu::Target;
use crate::cuda::launch::{Arg, Launch, Program};
use crate::ops::MovingAverage;
use crate::plan::Site;
use crate::tensor::DType;

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct AverageParams {
    vectors: u32,
    factor: f32,
}

impl CudaOp for MovingAverage {
    fn program(&self, site: &Site<'_>, _: &Target) -> Result<Program, String> {
        expect_f32(site, 0..3)?;
        let count = elements(site.outputs[0])? as usize;
        let vector = vector(DType::F32, count);
        let params = AverageParams { vectors: (count / vector) as u32, factor: self.factor };
        let launch = Launch {
            source: "optimizer.cu",
            entry: "moving_average",
            defines: vec![("VECTOR", vector as i64)],
            args: vec![Arg::Input(0), Arg::Input(1), Arg::Input(2), Arg::Output(0), Arg::of(&params)],
            ..per_element(count / vector)
        };
        Ok(Program { kernel: format!("elements x{vector}"), launches: vec![launch], ..Program::default() })
    }
}
