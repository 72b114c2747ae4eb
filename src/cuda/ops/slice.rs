use super::CudaOp;
use super::launches::{Range, copy_ranges};
use crate::cuda::gpu::Target;
use crate::cuda::launch::{Packing, Program};
use crate::ops::{Slice, Unslice};
use crate::plan::Site;
use crate::tensor::Shape;

/// Rows of `shape` that are cut or joined along `axis`, and elements of a step along it.
fn around(shape: Shape, axis: usize) -> [usize; 2] {
    let dims = shape.dims();
    [&dims[..axis], &dims[axis + 1..]].map(|dims| dims.iter().product())
}

impl CudaOp for Slice {
    fn program(&self, site: &Site<'_>, _: &Target) -> Result<Program, String> {
        let (x, y) = (site.inputs[0].shape, site.outputs[0]);
        let [rows, inner] = around(x, self.axis);
        let width = self.len * inner;
        let range = Range {
            from: Some(0),
            width,
            from_rows: rows,
            from_stride: x[self.axis] * inner,
            from_start: self.start * inner,
            to_start: 0,
        };
        let launch = copy_ranges(y, rows, width, &[range])?;
        let packing = vec![Packing::plain(y.dtype)];
        Ok(Program { kernel: "slice".into(), launches: vec![launch], packing, ..Program::default() })
    }
}

impl CudaOp for Unslice {
    fn program(&self, site: &Site<'_>, _: &Target) -> Result<Program, String> {
        let (dy, dx) = (site.inputs[0].shape, site.outputs[0]);
        let [rows, inner] = around(dy, self.axis);
        let [start, end] = [self.start, self.start + dy[self.axis]];
        let range = |from: Option<usize>, start: usize, end: usize| {
            let width = (end - start) * inner;
            let from_stride = if from.is_some() { width } else { 0 };
            Range { from, width, from_rows: rows, from_stride, from_start: 0, to_start: start * inner }
        };
        let ranges = [range(None, 0, start), range(Some(0), start, end), range(None, end, self.size)];
        let ranges: Vec<Range> = ranges.into_iter().filter(|range| range.width > 0).collect();
        let launch = copy_ranges(dx, rows, self.size * inner, &ranges)?;
        let packing = vec![Packing::plain(dx.dtype)];
        Ok(Program { kernel: "unslice".into(), launches: vec![launch], packing, ..Program::default() })
    }
}
