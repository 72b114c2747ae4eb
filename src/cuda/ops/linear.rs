use super::CudaOp;
use super::activation::number;
use crate::ops::Linear;
use crate::ops::epilogue::Epilogue;
use crate::plan::Site;
use crate::plan::launch::{Arg, Launch, Precision, Program, Target};
use crate::plan::select::rows::{self, Plan, Product};
use crate::tensor::DType;

/// Threads of a block that adds the parts of split sums.
const SUM_THREADS: usize = 256;

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

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct SumParams {
    count: u32,
    columns: u32,
    splits: u32,
}

/// A product by `kernels/linear.cu`, all operands f32.
pub(super) struct Rows {
    pub product: Product,
    pub x: usize,
    pub w: usize,
    /// Whether all matrices of the batch share `x`.
    pub shared_x: bool,
    /// The bias belongs to rows, not columns.
    pub row_bias: bool,
    /// Its operands count from the first after the product's two.
    pub epilogue: Epilogue,
}

impl Rows {
    pub fn program(&self, target: &Target) -> Program {
        let plan = rows::choose(&self.product, &target.caps);
        let Product { rows, columns, .. } = self.product;
        let mut program = Program { kernel: self.name(&plan), ..Program::default() };
        let operand = |index: Option<usize>| index.map_or(Arg::Null, Arg::Input);
        let [bias, residual] = [self.epilogue.bias_input(), self.epilogue.residual_input()].map(operand);
        let activation = number(self.epilogue.activation);
        if plan.splits == 1 {
            program.launches.push(self.tiles(&plan, [bias, residual, Arg::Output(0)], activation));
            return program;
        }
        let count = rows * columns;
        program.workspace = plan.splits * count * 4;
        program.launches.push(self.tiles(&plan, [Arg::Null, Arg::Null, Arg::Workspace(0)], 0));
        let params = SumParams { count: count as u32, columns: columns as u32, splits: plan.splits as u32 };
        program.launches.push(Launch {
            entry: "linear_sum",
            grid: [count.div_ceil(SUM_THREADS) as u32, 1, 1],
            block: [SUM_THREADS as u32, 1, 1],
            shared: 0,
            args: vec![Arg::Workspace(0), bias, residual, Arg::Output(0), Arg::of(&params)],
            ..self.tiles(&plan, [Arg::Null, Arg::Null, Arg::Null], activation)
        });
        program
    }

    fn name(&self, plan: &Plan) -> String {
        format!("{} {plan}", if self.product.tensor_cores { "tf32" } else { "f32" })
    }

    /// The launch that multiplies; `tail` is bias, residual and result.
    fn tiles(&self, plan: &Plan, tail: [Arg; 3], activation: i64) -> Launch {
        let Product { rows, columns, terms, batch, tensor_cores, .. } = self.product;
        let tile = plan.tile;
        let [warps_m, warps_n, warps_k] = tile.warps;
        let y_stride = if batch * plan.splits > 1 { rows * columns } else { 0 };
        let params = Params {
            rows: rows as u32,
            columns: columns as u32,
            terms: terms as u32,
            split: plan.split_terms(terms) as u32,
            x_stride: if self.shared_x { 0 } else { (rows * terms) as u32 },
            w_stride: if batch > 1 { (columns * terms) as u32 } else { 0 },
            y_stride: y_stride as u32,
        };
        let [bias, residual, y] = tail;
        Launch {
            source: "linear.cu",
            entry: "linear",
            defines: vec![
                ("MATH", i64::from(tensor_cores)),
                ("COPY", if terms.is_multiple_of(4) { 4 } else { 1 }),
                ("BM", tile.rows as i64),
                ("BN", tile.columns as i64),
                ("SLABS", tile.slabs as i64),
                ("STAGES", tile.stages as i64),
                ("WARPS_M", warps_m as i64),
                ("WARPS_N", warps_n as i64),
                ("WARPS_K", warps_k as i64),
                ("PARTIAL", i64::from(plan.splits > 1)),
                ("ROW_BIAS", i64::from(self.row_bias)),
                ("ACTIVATION", activation),
            ],
            grid: [
                columns.div_ceil(tile.columns) as u32,
                rows.div_ceil(tile.rows) as u32,
                (batch * plan.splits) as u32,
            ],
            block: [tile.threads() as u32, 1, 1],
            shared: tile.shared() as u32,
            args: vec![Arg::Input(self.x), Arg::Input(self.w), bias, residual, y, Arg::of(&params)],
        }
    }
}

impl CudaOp for Linear {
    fn program(&self, site: &Site<'_>, target: &Target) -> Result<Program, String> {
        let y = site.outputs[0];
        if y.dtype != DType::F32 || site.inputs[0].dtype != DType::F32 {
            return Err(format!("a linear layer over a map stored as {y} is a 1x1 convolution"));
        }
        let product = Product {
            rows: y.shape.len() / y.shape.last(),
            columns: y.shape.last(),
            terms: site.inputs[1].shape[1],
            batch: 1,
            tensor_cores: target.precision != Precision::F32,
            may_split: true,
        };
        let rows = Rows { product, x: 0, w: 1, shared_x: false, row_bias: false, epilogue: self.epilogue };
        Ok(rows.program(target))
    }
}
