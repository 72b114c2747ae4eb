use super::activation::number;
use super::{CudaOp, Rounding};
use crate::cuda::gpu::Target;
use crate::cuda::launch::{Arg, Launch, Program};
use crate::cuda::tiles::rows::{Layers, RowTile};
use crate::ops::FusedLinear;
use crate::ops::fused_linear::Prologue;
use crate::plan::Site;

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    rows: u32,
    terms: u32,
    columns: [u32; MAX_LAYERS],
    eps: f32,
}

/// Most layers of a launch.
pub(in crate::cuda) const MAX_LAYERS: usize = 3;
/// Most terms of a row, which a block keeps in shared memory; a row is whole chunks of 16 bytes.
pub(in crate::cuda) const MAX_TERMS: usize = 512;
/// Operands of rows that a prologue may have.
const MAX_OPERANDS: usize = 4;

impl FusedLinear {
    /// Pointers to the operands of the prologue: rows, gamma and beta of each.
    fn operands(&self) -> Vec<Arg> {
        let step = if self.prologue.has_norms() { 1 } else { 3 };
        let mut args = vec![Arg::Null; 3 * MAX_OPERANDS];
        for input in 0..self.prologue.operands() {
            args[input * step] = Arg::Input(input);
        }
        args
    }
}

impl FusedLinear {
    fn shape(&self, site: &Site<'_>, target: &Target) -> Result<Layers, String> {
        let x = site.inputs[0].shape;
        if self.biases.len() > MAX_LAYERS {
            return Err(format!("{} layers; the kernel takes up to {MAX_LAYERS}", self.biases.len()));
        }
        if !x.last().is_multiple_of(4) || x.last() > MAX_TERMS {
            return Err(format!("rows of {x}; the kernel takes multiples of 4 terms up to {MAX_TERMS}"));
        }
        Ok(Layers {
            rows: x.len() / x.last(),
            columns: self.layers().map(|(weight, _)| site.inputs[weight].shape[0]).collect(),
            terms: x.last(),
            operands: match self.prologue {
                Prologue::Rows | Prologue::Norm { .. } => 1,
                Prologue::Product => 2,
                Prologue::Gates { .. } => MAX_OPERANDS,
            },
            tensor_cores: target.precision.is_half(),
        })
    }

    fn tiled(&self, layers: &Layers, tile: &RowTile) -> Program {
        let (prologue, eps, row_activation) = match self.prologue {
            Prologue::Rows => (0, 0.0, None),
            Prologue::Norm { eps, activation } => (1, eps, activation),
            Prologue::Product => (2, 0.0, None),
            Prologue::Gates { eps } => (3, eps, None),
        };
        let mut columns = [0; MAX_LAYERS];
        columns.iter_mut().zip(&layers.columns).for_each(|(to, &from)| *to = from as u32);
        let params = Params { rows: layers.rows as u32, terms: layers.terms as u32, columns, eps };

        let mut args = self.operands();
        args.push(if self.keep { Arg::Output(self.biases.len()) } else { Arg::Null });
        for (layer, (weight, bias)) in self.layers().enumerate() {
            args.extend([Arg::Input(weight), bias.map_or(Arg::Null, Arg::Input), Arg::Output(layer)]);
        }
        let missing = MAX_LAYERS - self.biases.len();
        args.extend(std::iter::repeat_n(Arg::Null, 3 * missing));
        args.push(Arg::of(&params));

        let [warps_m, warps_n, warps_k] = tile.warps;
        let launch = Launch {
            source: "rows/fused.cu",
            entry: "fused_linear",
            defines: vec![
                ("MATH", i64::from(layers.tensor_cores)),
                ("BM", tile.m as i64),
                ("BN", tile.n as i64),
                ("WARPS_M", warps_m as i64),
                ("WARPS_N", warps_n as i64),
                ("WARPS_K", warps_k as i64),
                ("SLABS", layers.terms.div_ceil(32) as i64),
                ("PROLOGUE", prologue),
                ("ROW_ACTIVATION", number(row_activation)),
                ("ACTIVATION", number(self.activation)),
            ],
            grid: [layers.column_tiles(tile) as u32, layers.rows.div_ceil(tile.m) as u32, 1],
            block: [tile.threads() as u32, 1, 1],
            shared: tile.resident(layers.terms) as u32,
            args,
        };
        let math = if layers.tensor_cores { "tf32" } else { "f32" };
        let kernel = format!("{math} {}x{}", tile.m, tile.n);
        Program { kernel, launches: vec![launch], ..Program::default() }
    }
}

impl CudaOp for FusedLinear {
    const ROUNDING: Rounding = Rounding::Factors;

    fn program(&self, site: &Site<'_>, target: &Target) -> Result<Program, String> {
        let layers = self.shape(site, target)?;
        Ok(self.tiled(&layers, &layers.choose(&target.caps)))
    }

    fn candidates(&self, site: &Site<'_>, target: &Target) -> Result<Vec<Program>, String> {
        let layers = self.shape(site, target)?;
        Ok(layers.candidates(&target.caps).iter().map(|tile| self.tiled(&layers, tile)).collect())
    }
}
