//! Pointwise functions of two operands.

use super::{
    Backward, Inferred, Operator, ReduceSum, Role, ValueType, case::Case, case::Tolerance, expect_float,
    expect_inputs,
};
use crate::error::Result;
use crate::graph::{Builder, ValueId};
use crate::tensor::Tensor;
use serde::{Deserialize, Serialize};

/// A pointwise function of two operands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum BinaryKind {
    /// `a + b`.
    Add,
    /// `a * b`.
    Mul,
}

impl BinaryKind {
    /// The function in double precision.
    pub fn apply(self, a: f64, b: f64) -> f64 {
        match self {
            BinaryKind::Add => a + b,
            BinaryKind::Mul => a * b,
        }
    }
}

/// `y = a + b` or `y = a * b`.
///
/// Inputs: `a` of any shape, `b` of the same shape or with leading axes of size 1, along which it is
/// repeated. Output: as `a`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Binary {
    /// The function.
    pub kind: BinaryKind,
}

impl Operator for Binary {
    const NAME: &'static str = "binary";

    fn infer(&self, inputs: &[ValueType]) -> Inferred {
        expect_inputs(inputs, 2)?;
        let (a, b) = (expect_float(inputs, 0)?, expect_float(inputs, 1)?);
        let leading = b.dims().iter().take_while(|&&d| d == 1).count();
        if a.rank() != b.rank() || a.dims()[leading..] != b.dims()[leading..] {
            return Err(format!("{b} is neither {a} nor {a} with leading axes of size 1"));
        }
        Ok(vec![ValueType { role: Role::of(inputs), ..inputs[0] }])
    }

    fn reference(&self, inputs: &[&Tensor<f64>]) -> Vec<Tensor<f64>> {
        let (mut y, b) = (inputs[0].clone(), inputs[1].data());
        for (i, v) in y.data_mut().iter_mut().enumerate() {
            *v = self.kind.apply(*v, b[i % b.len()]);
        }
        vec![y]
    }

    fn backward(&self, b: &mut Builder, site: &Backward<'_>) -> Result<Vec<Option<ValueId>>> {
        let grad = site.grad()?;
        let mut grads = vec![None; 2];
        for (index, what) in ["da", "db"].into_iter().enumerate().filter(|&(index, _)| site.needs[index]) {
            let (this, other) = (site.inputs[index], site.inputs[1 - index]);
            let mut found = match self.kind {
                BinaryKind::Add => grad,
                // The first operand has the shape of the product, so it can lead either.
                BinaryKind::Mul if index == 0 => b.node(&site.named(what), *self, &[grad, other])?,
                BinaryKind::Mul => b.node(&site.named(what), *self, &[other, grad])?,
            };
            let shape = b.shape(this);
            if shape != b.shape(found) {
                found = b.node(&site.named("db.sum"), ReduceSum { shape }, &[found])?;
            }
            grads[index] = Some(found);
        }
        Ok(grads)
    }

    fn flops(&self, _: &[ValueType], outputs: &[ValueType]) -> u64 {
        outputs[0].shape.len() as u64
    }

    fn cases() -> Vec<Case> {
        let (add, mul) = (Binary { kind: BinaryKind::Add }, Binary { kind: BinaryKind::Mul });
        let case = |name: &str, op: Binary, a: &[usize], b: &[usize]| {
            Case::new(name, op, &[a, b]).tolerance(Tolerance::POINTWISE)
        };
        vec![
            case("add_one", add, &[1], &[1]),
            case("mul_odd", mul, &[3, 5, 7], &[3, 5, 7]),
            case("add_batch", add, &[3, 5, 7], &[1, 5, 7]),
            case("mul_channel", mul, &[3, 5, 7], &[1, 1, 7]),
            case("add_scalar", add, &[3, 5], &[1, 1]),
            case("add_empty", add, &[0, 5], &[1, 5]),
            case("add_tasks", add, &[3, 50, 251], &[1, 1, 251]),
            case("mul_tasks", mul, &[2, 201, 97], &[2, 201, 97]),
            case("mul_scalar_tasks", mul, &[40, 999], &[1, 1]),
            case("add_encoding", add, &[2, 25, 42, 256], &[1, 25, 42, 256]).bench(),
            case("add_map", add, &[1, 100, 168, 256], &[1, 100, 168, 256]).bench(),
        ]
    }
}
