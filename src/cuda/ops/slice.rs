use super::CudaOp;
use super::launches::{Range, copy_ranges};
use crate::cuda::gpu::Target;
use crate::cuda::launch::{Packing, Program};
use crate::ops::Slice;
use crate::plan::Site;

impl CudaOp for Slice {
    fn program(&self, site: &Site<'_>, _: &Target) -> Result<Program, String> {
        let y = site.outputs[0];
        let dims = site.inputs[0].shape.dims();
        let inner: usize = dims[self.axis + 1..].iter().product();
        let rows: usize = dims[..self.axis].iter().product();
        let width = self.len * inner;
        let range = Range {
            width,
            from_rows: rows,
            from_stride: dims[self.axis] * inner,
            from_start: self.start * inner,
            to_start: 0,
        };
        let launch = copy_ranges(y, rows, width, &[range])?;
        let packing = vec![Packing::plain(y.dtype)];
        Ok(Program { kernel: "slice".into(), launches: vec![launch], packing, ..Program::default() })
    }
}
