use super::CudaOp;
use super::launches::{Range, copy_ranges};
use crate::cuda::gpu::Target;
use crate::cuda::launch::{Packing, Program};
use crate::ops::Concat;
use crate::plan::Site;

impl CudaOp for Concat {
    fn program(&self, site: &Site<'_>, _: &Target) -> Result<Program, String> {
        let y = site.outputs[0];
        // A row is the joined axis with everything behind it; the axes before it count rows.
        let row = |shape: &[usize]| shape[self.axis..].iter().product::<usize>();
        let to_stride = row(y.shape.dims());
        let rows = y.shape.len() / to_stride.max(1);
        let mut to_start = 0;
        let ranges = site.inputs.iter().enumerate().map(|(operand, input)| {
            let width = row(input.shape.dims());
            let from_rows = input.shape.dims()[..self.axis].iter().product();
            let from = Some(operand);
            let range = Range { from, width, from_rows, from_stride: width, from_start: 0, to_start };
            to_start += width;
            range
        });
        let launch = copy_ranges(y, rows, to_stride, &ranges.collect::<Vec<_>>())?;
        let packing = vec![Packing::plain(y.dtype); site.inputs.len()];
        Ok(Program { kernel: "concat".into(), launches: vec![launch], packing, ..Program::default() })
    }
}
