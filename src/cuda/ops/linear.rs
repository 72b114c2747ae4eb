use super::activation::number;
use super::sum_parts::sum_parts;
use super::{CudaOp, Rounding};
use crate::cuda::gpu::Target;
use crate::cuda::launch::{Arg, Launch, Program};
use crate::cuda::tiles::rows::{self, Product, SplitTile};
use crate::ops::Linear;
use crate::ops::epilogue::Epilogue;
use crate::plan::Site;
use crate::tensor::DType;

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    rows: u32,
    columns: u32,
    terms: u32,
    split: u32,
    x_stride: u32,
    w_stride: u32,
    y_stride: u32,
}

/// A product of the first two operands by `kernels/rows/linear.cu`, all operands f32.
pub(super) struct Rows {
    pub product: Product,
    /// Whether all matrices of the batch share `x`.
    pub shared_x: bool,
    /// The bias belongs to rows, not columns.
    pub row_bias: bool,
    pub epilogue: Epilogue,
}

impl Rows {
    pub fn program(&self, target: &Target) -> Program {
        self.planned(&rows::choose(&self.product, &target.caps))
    }

    pub fn candidates(&self, target: &Target) -> Vec<Program> {
        rows::candidates(&self.product, &target.caps).iter().map(|choice| self.planned(choice)).collect()
    }

    fn planned(&self, choice: &SplitTile) -> Program {
        let Product { m: rows, n: columns, .. } = self.product;
        let mut program = Program { kernel: self.name(choice), ..Program::default() };
        if choice.splits == 1 {
            program.launches.push(self.tiles(choice, self.epilogue, Arg::Output(0)));
        } else {
            let count = rows * columns;
            program.workspace = choice.splits * count * 4;
            program.launches.push(self.tiles(choice, Epilogue::default(), Arg::Workspace(0)));
            program.launches.push(sum_parts(choice.splits, count, columns, self.epilogue));
        }
        program
    }

    fn name(&self, choice: &SplitTile) -> String {
        format!("{} {choice}", if self.product.tensor_cores { "tf32" } else { "f32" })
    }

    /// The launch that multiplies and writes to `y`.
    fn tiles(&self, choice: &SplitTile, epilogue: Epilogue, y: Arg) -> Launch {
        let operand = |index: Option<usize>| index.map_or(Arg::Null, Arg::Input);
        let Product { m: rows, n: columns, k: terms, batch, tensor_cores, .. } = self.product;
        let tile = choice.tile;
        let [warps_m, warps_n, warps_k] = tile.warps;
        let y_stride = if batch * choice.splits > 1 { rows * columns } else { 0 };
        let params = Params {
            rows: rows as u32,
            columns: columns as u32,
            terms: terms as u32,
            split: choice.split_terms(terms) as u32,
            x_stride: if self.shared_x { 0 } else { (rows * terms) as u32 },
            w_stride: if batch > 1 { (columns * terms) as u32 } else { 0 },
            y_stride: y_stride as u32,
        };
        Launch {
            source: "rows/linear.cu",
            entry: "linear",
            defines: vec![
                ("MATH", i64::from(tensor_cores)),
                ("COPY", if terms.is_multiple_of(4) { 4 } else { 1 }),
                ("BM", tile.m as i64),
                ("BN", tile.n as i64),
                ("SLABS", tile.slabs as i64),
                ("STAGES", tile.stages as i64),
                ("WARPS_M", warps_m as i64),
                ("WARPS_N", warps_n as i64),
                ("WARPS_K", warps_k as i64),
                ("PARTIAL", i64::from(choice.splits > 1)),
                ("ROW_BIAS", i64::from(self.row_bias)),
                ("ACTIVATION", number(epilogue.activation)),
            ],
            grid: [
                columns.div_ceil(tile.n) as u32,
                rows.div_ceil(tile.m) as u32,
                (batch * choice.splits) as u32,
            ],
            block: [tile.threads() as u32, 1, 1],
            shared: tile.shared() as u32,
            args: vec![
                Arg::Input(0),
                Arg::Input(1),
                operand(epilogue.bias_input()),
                operand(epilogue.residual_input()),
                y,
                Arg::of(&params),
            ],
        }
    }
}

/// A linear layer as a product of rows.
fn layer(op: &Linear, site: &Site<'_>, target: &Target) -> Result<Rows, String> {
    let y = site.outputs[0];
    if y.dtype != DType::F32 || site.inputs[0].dtype != DType::F32 {
        return Err(format!("a linear layer over a map stored as {y} is a 1x1 convolution"));
    }
    let product = Product {
        m: y.shape.len() / y.shape.last(),
        n: y.shape.last(),
        k: site.inputs[1].shape[1],
        batch: 1,
        tensor_cores: target.precision.is_half(),
        may_split: true,
    };
    Ok(Rows { product, shared_x: false, row_bias: false, epilogue: op.epilogue })
}

impl CudaOp for Linear {
    const ROUNDING: Rounding = Rounding::Factors;

    fn program(&self, site: &Site<'_>, target: &Target) -> Result<Program, String> {
        Ok(layer(self, site, target)?.program(target))
    }

    fn candidates(&self, site: &Site<'_>, target: &Target) -> Result<Vec<Program>, String> {
        Ok(layer(self, site, target)?.candidates(target))
    }
}
