use super::CudaOp;
use super::launches::{Range, copy_ranges, elements, expect_f32, per_element, storage, vector};
use crate::cuda::gpu::Target;
use crate::cuda::launch::{Arg, Launch, Packing, Program};
use crate::ops::Dropout;
use crate::plan::Site;

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    vectors: u32,
    columns: u32,
}

impl CudaOp for Dropout {
    fn program(&self, site: &Site<'_>, _: &Target) -> Result<Program, String> {
        let y = site.outputs[0];
        let packing = vec![Packing::plain(y.dtype)];
        let count = elements(y)? as usize;
        if site.inputs.len() == 1 {
            let whole = Range {
                from: Some(0),
                width: count,
                from_rows: 1,
                from_stride: count,
                from_start: 0,
                to_start: 0,
            };
            let launch = copy_ranges(y, 1, count, &[whole])?;
            return Ok(Program {
                kernel: "copy".into(),
                launches: vec![launch],
                packing,
                ..Program::default()
            });
        }
        expect_f32(site, [1])?;
        let images = y.shape[0];
        let channels = self.factors(y.shape.dims())[1];
        let vector = vector(y.dtype, if channels > 1 { channels } else { count / images });
        let params = Params {
            vectors: (count / images / vector) as u32,
            columns: if channels > 1 { channels / vector } else { 0 } as u32,
        };
        let row = per_element(params.vectors as usize);
        let launch = Launch {
            source: "dropout.cu",
            entry: "dropout",
            defines: vec![storage(y.dtype), ("VECTOR", vector as i64)],
            grid: [row.grid[0], images as u32, 1],
            args: vec![Arg::Input(0), Arg::Input(1), Arg::Output(0), Arg::of(&params)],
            ..row
        };
        let kernel = format!("elements x{vector}");
        Ok(Program { kernel, launches: vec![launch], packing, ..Program::default() })
    }
}
