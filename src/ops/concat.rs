//! Joining tensors along one axis.

use super::{
    Backward, Inferred, Operator, ReduceSum, Role, Slice, ValueType, case::Case, case::Tolerance,
    expect_float,
};
use crate::error::Result;
use crate::graph::{Builder, ValueId};
use crate::tensor::{Shape, Tensor};
use serde::{Deserialize, Serialize};

/// The inputs one after the other along `axis`.
///
/// Inputs: values that agree in all other axes. If `axis` is not 0, an input whose axis 0 has size 1
/// is repeated along it, so that per-model constants join per-image values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Concat {
    /// The axis along which the inputs are joined.
    pub axis: usize,
}

impl Operator for Concat {
    const NAME: &'static str = "concat";

    fn infer(&self, inputs: &[ValueType]) -> Inferred {
        if inputs.is_empty() {
            return Err("takes at least 1 input, was given 0".into());
        }
        let first = expect_float(inputs, 0)?;
        if self.axis >= first.rank() {
            return Err(format!("{first} has no axis {}", self.axis));
        }
        let mut dims = first.dims().to_vec();
        if self.axis != 0 {
            dims[0] = inputs
                .iter()
                .filter_map(|ty| ty.shape.dims().first().copied())
                .find(|&d| d != 1)
                .unwrap_or(1);
        }
        dims[self.axis] = 0;
        for index in 0..inputs.len() {
            let shape = expect_float(inputs, index)?;
            let fits =
                |axis: usize| axis == self.axis || shape[axis] == dims[axis] || (axis == 0 && shape[0] == 1);
            if shape.rank() != dims.len() || !(0..dims.len()).all(fits) {
                return Err(format!("input {index} {shape} does not join {first} along axis {}", self.axis));
            }
            dims[self.axis] += shape[self.axis];
        }
        Ok(vec![ValueType { role: Role::of(inputs), ..inputs[0].with_shape(Shape::new(&dims)) }])
    }

    fn reference(&self, inputs: &[&Tensor<f64>]) -> Vec<Tensor<f64>> {
        let mut dims = inputs[0].shape().dims().to_vec();
        dims[self.axis] = inputs.iter().map(|x| x.shape()[self.axis]).sum();
        if self.axis != 0 {
            dims[0] = inputs.iter().map(|x| x.shape()[0]).find(|&d| d != 1).unwrap_or(1);
        }
        vec![Tensor::from_fn(dims.as_slice(), |index| {
            let mut index = index.to_vec();
            let mut input = 0;
            while index[self.axis] >= inputs[input].shape()[self.axis] {
                index[self.axis] -= inputs[input].shape()[self.axis];
                input += 1;
            }
            if self.axis != 0 && inputs[input].shape()[0] == 1 {
                index[0] = 0;
            }
            inputs[input].at(&index)
        })]
    }

    fn backward(&self, b: &mut Builder, site: &Backward<'_>) -> Result<Vec<Option<ValueId>>> {
        let (axis, mut start) = (self.axis, 0);
        let mut grads = vec![None; site.inputs.len()];
        for (index, &input) in site.inputs.iter().enumerate() {
            let shape = b.shape(input);
            let len = shape[axis];
            if site.needs[index] {
                let slice = Slice { axis, start, len };
                let mut grad = b.node(&site.named(&format!("dx{index}")), slice, &[site.grad()?])?;
                if b.shape(grad) != shape {
                    let name = site.named(&format!("dx{index}.sum"));
                    grad = b.node(&name, ReduceSum { shape }, &[grad])?;
                }
                grads[index] = Some(grad);
            }
            start += len;
        }
        Ok(grads)
    }

    fn flops(&self, _: &[ValueType], _: &[ValueType]) -> u64 {
        0
    }

    fn cases() -> Vec<Case> {
        let case = |name: &str, axis, shapes: &[&[usize]]| {
            Case::new(name, Concat { axis }, shapes).tolerance(Tolerance::EXACT)
        };
        vec![
            case("single", 0, &[&[3]]),
            case("first", 0, &[&[1, 5], &[2, 5], &[3, 5]]),
            case("last", 2, &[&[2, 3, 5], &[2, 3, 1], &[2, 3, 7]]),
            case("repeated", 1, &[&[3, 4, 5], &[1, 2, 5]]),
            case("with_empty", 1, &[&[2, 0, 5], &[2, 3, 5]]),
            case("eight", 1, &[&[2, 1][..]; 8]),
            case("all_empty", 0, &[&[0, 3], &[0, 3]]),
            case("repeated_middle", 2, &[&[1, 2, 3, 5], &[4, 2, 1, 5], &[1, 2, 2, 5]]),
            case("tasks", 1, &[&[3, 100, 97], &[1, 53, 97], &[3, 1, 97]]),
            case("stuff_masks", 1, &[&[1, 100, 100, 168], &[1, 53, 100, 168]]).bench(),
        ]
    }
}
