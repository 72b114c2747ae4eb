use super::CudaOp;
use super::linear::Rows;
use crate::ops::MaskConv;
use crate::ops::epilogue::Epilogue;
use crate::plan::Site;
use crate::plan::launch::{Precision, Program, Target};
use crate::plan::select::rows::Product;

impl CudaOp for MaskConv {
    fn program(&self, site: &Site<'_>, target: &Target) -> Result<Program, String> {
        let [kernels, x] = [site.inputs[0].shape, site.inputs[1].shape];
        let batch = x[0];
        let shared = kernels[0] != batch;
        if target.precision == Precision::F32 {
            // Masks are planar, so that they are the product of the kernels' rows with the pixels' rows.
            let product = Product {
                rows: kernels[1],
                columns: x[1] * x[2],
                terms: x[3],
                batch,
                tensor_cores: false,
                may_split: false,
            };
            let epilogue = Epilogue { bias: self.bias, ..Epilogue::default() };
            let rows = Rows { product, x: 0, w: 1, shared_x: shared, row_bias: true, epilogue };
            return Ok(rows.program(target));
        }
        Err("not yet".into())
    }
}
