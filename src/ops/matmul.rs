//! Batched matrix product of two activations.

use super::{
    Backward, Inferred, Operator, ReduceSum, Role, ValueType, case::Case, expect_inputs, expect_rank,
};
use crate::error::Result;
use crate::graph::{Builder, ValueId};
use crate::tensor::{Shape, Tensor};
use serde::{Deserialize, Serialize};

/// `y[b, m, n] = sum over k of a[b, m, k] * b[b, k, n]`.
///
/// Inputs: `a` `[B, M, K]` (`[B, K, M]` if `transpose_a`), `b` `[B, K, N]` (`[B, N, K]` if `transpose_b`); an
/// operand with one matrix gives it to the whole batch. Output: `[B, M, N]`. A product with constant weights
/// is a [`Linear`](super::Linear).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MatMul {
    /// The matrices of the first input are stored transposed.
    pub transpose_a: bool,
    /// The matrices of the second input are stored transposed.
    pub transpose_b: bool,
    /// What the result is, of which the operands say nothing: rows of objects may be the product of two maps.
    pub role: Role,
}

impl MatMul {
    /// The product of matrices as they are stored, for a result of this role.
    pub fn new(role: Role) -> MatMul {
        MatMul { transpose_a: false, transpose_b: false, role }
    }

    /// `[B, M, K, N]` of these input shapes (each `[batch, rows, columns]`).
    pub fn extents(&self, a: &[usize], b: &[usize]) -> [usize; 4] {
        let (m, k) = if self.transpose_a { (a[2], a[1]) } else { (a[1], a[2]) };
        let n = if self.transpose_b { b[1] } else { b[2] };
        [if a[0] == 1 { b[0] } else { a[0] }, m, k, n]
    }

    /// Emits the product of two values, or its sum over the batch if `like` has one matrix for a batch of
    /// several.
    fn product(self, b: &mut Builder, name: &str, inputs: &[ValueId; 2], like: ValueId) -> Result<ValueId> {
        let wanted = b.shape(like);
        let [batch, m, _, n] = self.extents(b.shape(inputs[0]).dims(), b.shape(inputs[1]).dims());
        if wanted[0] == batch {
            return b.node(name, self, inputs);
        }
        let each = b.node(&format!("{name}.each"), self, inputs)?;
        b.node(name, ReduceSum { shape: Shape::from([1, m, n]) }, &[each])
    }
}

impl Operator for MatMul {
    const NAME: &'static str = "matmul";

    fn infer(&self, inputs: &[ValueType]) -> Inferred {
        expect_inputs(inputs, 2)?;
        let a = expect_rank(inputs, 0, 3, "[B, M, K] or its transpose")?;
        let b = expect_rank(inputs, 1, 3, "[B, K, N] or its transpose")?;
        let [batch, m, k, n] = self.extents(a.dims(), b.dims());
        let k_of_b = if self.transpose_b { b[2] } else { b[1] };
        if ![1, batch].contains(&a[0]) || ![1, batch].contains(&b[0]) || k_of_b != k {
            let [ta, tb] = [self.transpose_a, self.transpose_b].map(|t| if t { " transposed" } else { "" });
            return Err(format!("{a}{ta} times {b}{tb} is no product"));
        }
        Ok(vec![ValueType { role: self.role, ..ValueType::rows([batch, m, n]) }])
    }

    fn reference(&self, inputs: &[&Tensor<f64>]) -> Vec<Tensor<f64>> {
        let (a, b) = (inputs[0], inputs[1]);
        let [batch, m, k, n] = self.extents(a.shape().dims(), b.shape().dims());
        let (a_at, b_at) = (a.data(), b.data());
        let matrix = |t: &Tensor<f64>, i: usize| if t.shape()[0] == 1 { 0 } else { i };
        vec![Tensor::from_fn([batch, m, n], |index| {
            let [i, row, col] = [index[0], index[1], index[2]];
            let (ia, ib) = (matrix(a, i), matrix(b, i));
            let term = |j| {
                let a = if self.transpose_a { (ia * k + j) * m + row } else { (ia * m + row) * k + j };
                let b = if self.transpose_b { (ib * n + col) * k + j } else { (ib * k + j) * n + col };
                a_at[a] * b_at[b]
            };
            (0..k).map(term).sum()
        })]
    }

    fn backward(&self, b: &mut Builder, site: &Backward<'_>) -> Result<Vec<Option<ValueId>>> {
        let (dy, x, y) = (site.grad()?, site.inputs[0], site.inputs[1]);
        // The gradient of an operand is what the operand is.
        let role = |b: &Builder, of: ValueId| b.graph().value(of).ty.role;
        let turned = |transpose_a, transpose_b, role| MatMul { transpose_a, transpose_b, role };
        let mut grads = vec![None; 2];
        if site.needs[0] {
            let role = role(b, x);
            let (op, factors) = match self.transpose_a {
                false => (turned(false, !self.transpose_b, role), [dy, y]),
                true => (turned(self.transpose_b, true, role), [y, dy]),
            };
            grads[0] = Some(op.product(b, &site.named("left.grad"), &factors, x)?);
        }
        if site.needs[1] {
            let role = role(b, y);
            let (op, factors) = match self.transpose_b {
                false => (turned(!self.transpose_a, false, role), [x, dy]),
                true => (turned(true, self.transpose_a, role), [dy, x]),
            };
            grads[1] = Some(op.product(b, &site.named("right.grad"), &factors, y)?);
        }
        Ok(grads)
    }

    fn flops(&self, inputs: &[ValueType], _: &[ValueType]) -> u64 {
        let [batch, m, k, n] = self.extents(inputs[0].shape.dims(), inputs[1].shape.dims());
        2 * (batch * m * k * n) as u64
    }

    fn cases() -> Vec<Case> {
        let plain = MatMul::new(Role::Rows);
        let (ta, tb) = (MatMul { transpose_a: true, ..plain }, MatMul { transpose_b: true, ..plain });
        let both = MatMul { transpose_b: true, ..ta };
        vec![
            Case::new("one", plain, &[&[1, 1, 1], &[1, 1, 1]]),
            Case::new("odd", plain, &[&[3, 5, 7], &[3, 7, 11]]),
            Case::new("transposed_a", ta, &[&[2, 19, 13], &[2, 19, 33]]),
            Case::new("transposed_b", tb, &[&[2, 13, 19], &[2, 33, 19]]),
            Case::new("transposed_both", both, &[&[2, 19, 13], &[2, 33, 19]]),
            Case::new("column", plain, &[&[1, 300, 70], &[1, 70, 1]]),
            Case::new("many_terms", plain, &[&[1, 9, 5000], &[1, 5000, 21]]),
            Case::new("no_rows", ta, &[&[2, 3, 0], &[2, 3, 4]]),
            Case::new("no_terms", plain, &[&[2, 3, 0], &[2, 0, 4]]),
            Case::new("shared_a", ta, &[&[1, 19, 13], &[3, 19, 33]]),
            Case::new("shared_b", tb, &[&[3, 13, 19], &[1, 33, 19]]),
            Case::new("empty_batch", plain, &[&[0, 3, 4], &[1, 4, 5]]),
            Case::new("tall", ta, &[&[2, 70, 500], &[2, 70, 90]]),
            Case::new("long", ta, &[&[1, 5000, 40], &[1, 5000, 70]]),
            Case::new("both_large", both, &[&[2, 190, 130], &[1, 330, 190]]),
            // The gradients of a mask convolution: of its kernels and of its features.
            Case::new("masks_times_map", plain, &[&[2, 21, 700], &[2, 700, 40]]).map(0).map(1),
            Case::new("masks_times_chunks", plain, &[&[2, 170, 640], &[2, 640, 136]]).map(0).map(1),
            Case::new(
                "masks_times_kernels",
                MatMul { role: Role::Map, ..ta },
                &[&[2, 19, 301], &[2, 19, 36]],
            )
            .map(0),
            Case::new(
                "chunks_times_shared_kernels",
                MatMul { role: Role::Map, ..ta },
                &[&[2, 70, 304], &[1, 70, 72]],
            )
            .map(0),
            Case::new("map_of_long", MatMul { role: Role::Map, ..tb }, &[&[1, 20, 900], &[1, 33, 900]])
                .map(1),
            Case::new("gather", tb, &[&[1, 100, 4096], &[1, 256, 4096]]).bench(),
            Case::new("knet", plain, &[&[1, 153, 256], &[1, 256, 256]]).bench(),
            Case::new("ffn_weight_grad", ta, &[&[1, 306, 2048], &[1, 306, 256]]).bench(),
            Case::new("mask_features_grad", ta, &[&[2, 100, 4096], &[2, 100, 256]]).bench(),
            Case::new("mask_kernels_grad", plain, &[&[2, 100, 4096], &[2, 4096, 256]]).bench(),
        ]
    }
}
