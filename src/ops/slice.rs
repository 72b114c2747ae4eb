//! A range of one axis.

use super::{
    Backward, Inferred, Operator, ValueType, case::Case, case::Tolerance, expect_float, expect_inputs,
};
use crate::error::Result;
use crate::graph::{Builder, ValueId};
use crate::tensor::{Shape, Tensor};
use serde::{Deserialize, Serialize};

/// Elements `start .. start + len` of `axis`, for any shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slice {
    /// The axis that is cut.
    pub axis: usize,
    /// First element kept.
    pub start: usize,
    /// Number of elements kept.
    pub len: usize,
}

impl Operator for Slice {
    const NAME: &'static str = "slice";

    fn infer(&self, inputs: &[ValueType]) -> Inferred {
        expect_inputs(inputs, 1)?;
        let x = expect_float(inputs, 0)?;
        let size = x.dims().get(self.axis).copied();
        if size.is_none_or(|size| self.start > size || self.len > size - self.start) {
            let Slice { axis, start, len } = self;
            return Err(format!("{x} has no elements {start} .. {start} + {len} along axis {axis}"));
        }
        let mut dims = x.dims().to_vec();
        dims[self.axis] = self.len;
        Ok(vec![inputs[0].with_shape(Shape::new(&dims))])
    }

    fn reference(&self, inputs: &[&Tensor<f64>]) -> Vec<Tensor<f64>> {
        let mut dims = inputs[0].shape().dims().to_vec();
        dims[self.axis] = self.len;
        vec![Tensor::from_fn(dims.as_slice(), |index| {
            let mut index = index.to_vec();
            index[self.axis] += self.start;
            inputs[0].at(&index)
        })]
    }

    fn backward(&self, b: &mut Builder, site: &Backward<'_>) -> Result<Vec<Option<ValueId>>> {
        let Slice { axis, start, .. } = *self;
        let size = b.shape(site.inputs[0])[axis];
        Ok(vec![Some(b.node(&site.named("dx"), Unslice { axis, start, size }, &[site.grad()?])?)])
    }

    fn flops(&self, _: &[ValueType], _: &[ValueType]) -> u64 {
        0
    }

    fn cases() -> Vec<Case> {
        let case = |name: &str, axis, start, len, shape: &[usize]| {
            Case::new(name, Slice { axis, start, len }, &[shape]).tolerance(Tolerance::EXACT)
        };
        vec![
            case("one", 0, 0, 1, &[1]),
            case("first", 0, 1, 2, &[4, 5]),
            case("middle", 1, 2, 3, &[2, 7, 5]),
            case("last", 2, 3, 2, &[2, 3, 5]),
            case("nothing", 1, 5, 0, &[2, 5]),
            case("whole", 1, 0, 5, &[2, 5, 3]),
            case("empty", 1, 1, 2, &[0, 5, 3]),
            case("tasks", 1, 1, 301, &[7, 303, 11]),
            case("stuff", 1, 80, 53, &[1, 133, 100, 168]).bench(),
        ]
    }
}

/// Puts a tensor among zeros: the gradient of a [`Slice`].
///
/// Input: `dy` of any shape. Output: as `dy`, but `size` long along `axis`: `dy` from `start`, zeros
/// elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unslice {
    /// The axis that grows.
    pub axis: usize,
    /// Where the operand begins.
    pub start: usize,
    /// Size of the axis in the result.
    pub size: usize,
}

impl Operator for Unslice {
    const NAME: &'static str = "unslice";

    fn infer(&self, inputs: &[ValueType]) -> Inferred {
        expect_inputs(inputs, 1)?;
        let dy = expect_float(inputs, 0)?;
        let Unslice { axis, start, size } = *self;
        let fits = |&len: &usize| start <= size && len <= size - start;
        if !dy.dims().get(axis).is_some_and(fits) {
            return Err(format!("{dy} does not fit from {start} into {size} elements along axis {axis}"));
        }
        let mut dims = dy.dims().to_vec();
        dims[axis] = size;
        Ok(vec![inputs[0].with_shape(Shape::new(&dims))])
    }

    fn reference(&self, inputs: &[&Tensor<f64>]) -> Vec<Tensor<f64>> {
        let mut dims = inputs[0].shape().dims().to_vec();
        let kept = self.start..self.start + dims[self.axis];
        dims[self.axis] = self.size;
        vec![Tensor::from_fn(dims.as_slice(), |index| {
            if !kept.contains(&index[self.axis]) {
                return 0.0;
            }
            let mut index = index.to_vec();
            index[self.axis] -= self.start;
            inputs[0].at(&index)
        })]
    }

    fn backward(&self, b: &mut Builder, site: &Backward<'_>) -> Result<Vec<Option<ValueId>>> {
        let Unslice { axis, start, .. } = *self;
        let len = b.shape(site.inputs[0])[axis];
        Ok(vec![Some(b.node(&site.named("dx"), Slice { axis, start, len }, &[site.grad()?])?)])
    }

    fn flops(&self, _: &[ValueType], _: &[ValueType]) -> u64 {
        0
    }

    fn cases() -> Vec<Case> {
        let case = |name: &str, axis, start, size, shape: &[usize]| {
            Case::new(name, Unslice { axis, start, size }, &[shape]).tolerance(Tolerance::EXACT)
        };
        vec![
            case("one", 0, 0, 1, &[1]),
            case("first", 0, 1, 4, &[2, 5]),
            case("middle", 1, 2, 7, &[2, 3, 5]),
            case("last", 2, 3, 5, &[2, 3, 2]),
            case("nothing", 1, 5, 5, &[2, 0]),
            case("whole", 1, 0, 5, &[2, 5, 3]),
            case("empty", 1, 1, 5, &[0, 2, 3]),
            case("tasks", 1, 1, 303, &[7, 301, 11]),
            case("stuff", 1, 80, 133, &[1, 53, 100, 168]).bench(),
        ]
    }
}
