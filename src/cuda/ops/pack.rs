//! Operands laid out on the device as kernels read them: what `cuda/pack.rs` does once for constants.

use super::divisor::divisor;
use super::launches::dtype_number;
use crate::cuda::launch::{Arg, Launch, Packing, Program};
use crate::ops::ValueType;
use crate::tensor::{DType, Shape};

/// Rows and columns of a block: `TILE` of `kernels/pack.cu`.
const TILE: usize = 32;
/// Rows of threads of a block: `LINES` of `kernels/pack.cu`.
const LINES: u32 = 8;

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    rows: u32,
    columns: u32,
    pitch: u32,
    first: i32,
    row_step: i32,
    step: [i32; 3],
    middle: u32,
    inner: u32,
    by_middle: [u32; 2],
    by_inner: [u32; 2],
}

/// A matrix of a tensor's elements: (i, j) is element `first + i * row_step` plus the product of `steps` and
/// the digits of `j` in `extents`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Matrix {
    pub rows: usize,
    pub extents: [usize; 3],
    pub first: usize,
    pub row_step: isize,
    pub steps: [isize; 3],
    /// Rows are followed by zeros up to a multiple of this.
    pub row_multiple: usize,
}

impl Matrix {
    /// What `packing` makes of a tensor.
    pub fn packed(shape: Shape, packing: Packing) -> Matrix {
        let dims = shape.dims();
        let length: usize = dims[dims.len() - packing.row_dims.min(dims.len())..].iter().product();
        let rows = shape.len().checked_div(length).unwrap_or(0);
        let (rows, columns, row_step, step) = match packing.transposed {
            true => (length, rows, 1, length),
            false => (rows, length, length, 1),
        };
        Matrix {
            rows,
            extents: [1, 1, columns],
            first: 0,
            row_step: row_step as isize,
            steps: [0, 0, step as isize],
            row_multiple: packing.row_multiple,
        }
    }

    fn columns(&self) -> usize {
        self.extents.iter().product()
    }

    /// Elements of a row, with the zeros.
    pub fn pitch(&self) -> usize {
        self.columns().next_multiple_of(self.row_multiple.max(1))
    }

    /// Elements of the matrix.
    fn len(&self) -> usize {
        self.rows * self.pitch()
    }

    /// The launch that writes it.
    fn launch(&self, from: Arg, source: DType, to: Arg, target: DType) -> Launch {
        let [_, middle, inner] = self.extents;
        let params = Params {
            rows: self.rows as u32,
            columns: self.columns() as u32,
            pitch: self.pitch() as u32,
            first: self.first as i32,
            row_step: self.row_step as i32,
            step: self.steps.map(|step| step as i32),
            middle: middle as u32,
            inner: inner as u32,
            by_middle: divisor(middle),
            by_inner: divisor(inner),
        };
        Launch {
            source: "pack.cu",
            entry: "pack",
            defines: vec![("SOURCE", dtype_number(source)), ("TARGET", dtype_number(target))],
            grid: [self.pitch().div_ceil(TILE) as u32, self.rows.div_ceil(TILE) as u32, 1],
            block: [TILE as u32, LINES, 1],
            shared: 0,
            args: vec![from, to, Arg::of(&params)],
        }
    }
}

/// Makes the launches of `program` read `to` where they read operand `input`.
fn redirect(launches: &mut [Launch], input: usize, to: &Arg) {
    let args = launches.iter_mut().flat_map(|launch| &mut launch.args);
    args.filter(|arg| **arg == Arg::Input(input)).for_each(|arg| *arg = to.clone());
}

/// Room for `bytes` more in the workspace of `program`.
fn reserve(program: &mut Program, bytes: usize) -> Arg {
    let at = program.workspace.next_multiple_of(256);
    program.workspace = at + bytes;
    Arg::Workspace(at)
}

/// Puts a launch before those of `program` that writes `matrix`, of operand `input`, to the workspace; they
/// read that instead. `types`: what the operand and the matrix are stored as.
pub(super) fn lay_out(program: &mut Program, input: usize, matrix: Matrix, [source, target]: [DType; 2]) {
    let to = reserve(program, matrix.len() * target.size());
    redirect(&mut program.launches, input, &to);
    program.launches.insert(0, matrix.launch(Arg::Input(input), source, to, target));
}

/// Lets `program` take an operand of type `ty` that is no constant where its launches read one as the program
/// packs it: one launch more, unless it lies so already.
pub(super) fn on_device(program: &mut Program, input: usize, ty: ValueType) {
    let packing = program.packing_of(input);
    let matrix = Matrix::packed(ty.shape, packing);
    let lies_so = !packing.transposed && matrix.pitch() == matrix.columns() && ty.dtype == packing.dtype;
    if !lies_so && !ty.shape.is_empty() {
        lay_out(program, input, matrix, [ty.dtype, packing.dtype]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::pack::{pack, unpack};
    use crate::tensor::Tensor;

    /// The elements that the kernel would put together.
    fn gathered(matrix: &Matrix, x: &[f32]) -> Vec<f32> {
        let [_, middle, inner] = matrix.extents;
        let place = |i: usize, j: usize| {
            let digits = [j / inner / middle, j / inner % middle, j % inner];
            let along: isize =
                digits.iter().zip(matrix.steps).map(|(&digit, step)| digit as isize * step).sum();
            (matrix.first as isize + i as isize * matrix.row_step + along) as usize
        };
        let element = |i, j| if j < matrix.columns() { x[place(i, j)] } else { 0.0 };
        let rows = 0..matrix.rows;
        rows.flat_map(|i| (0..matrix.pitch()).map(move |j| (i, j))).map(|(i, j)| element(i, j)).collect()
    }

    #[test]
    fn a_device_packs_as_the_host_does() {
        let tensor = Tensor::new([3, 2, 2, 5], (0..60).map(|i| i as f32).collect());
        for row_dims in 1..=4 {
            for (transposed, row_multiple) in [(false, 1), (false, 8), (true, 1), (true, 4)] {
                let packing = Packing { dtype: DType::F32, row_dims, transposed, row_multiple };
                let wanted = unpack(&pack(&tensor, packing), DType::F32);
                assert_eq!(gathered(&Matrix::packed(tensor.shape(), packing), tensor.data()), wanted);
            }
        }
    }
}
