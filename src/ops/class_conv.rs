//! The classifier of masks, for one class of each.

use super::{
    Gradient, Inferred, Operator, ValueType,
    case::{Case, Filling},
    expect_indices, expect_inputs, expect_rank, expect_shape,
};
use crate::tensor::Tensor;
use serde::{Deserialize, Serialize};

/// `y[n, h, w] = sum over c of x[n, h, w, c] * weight[k, c] + bias[k]` with `k = classes[n]`: a 1x1
/// convolution of which each map needs the channel of its own class alone. A class that there is not gives
/// zeros.
///
/// Inputs: `x` `[N, H, W, C]`, `weight` `[K, C]`, `bias` `[K]`, `classes` `[N]`. Output: `[N, H, W]`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClassConv;

impl Operator for ClassConv {
    const NAME: &'static str = "class_conv";
    const GRADIENT: Gradient = Gradient::None("two-stage detectors are not trained");

    fn infer(&self, inputs: &[ValueType]) -> Inferred {
        expect_inputs(inputs, 4)?;
        let x = expect_rank(inputs, 0, 4, "[N, H, W, C]")?;
        let weight = expect_rank(inputs, 1, 2, "[K, C]")?;
        if weight[1] != x[3] {
            return Err(format!("weight {weight} does not fit features {x}"));
        }
        expect_shape(inputs, 2, [weight[0]], "bias")?;
        expect_indices(inputs, 3, [x[0]], "classes")?;
        Ok(vec![inputs[0].with_shape([x[0], x[1], x[2]])])
    }

    fn reference(&self, inputs: &[&Tensor<f64>]) -> Vec<Tensor<f64>> {
        let [x, weight, bias, classes] = [0, 1, 2, 3].map(|i| inputs[i]);
        let [n, h, w, c] = [0, 1, 2, 3].map(|axis| x.shape()[axis]);
        vec![Tensor::from_fn([n, h, w], |index| {
            let class = classes.data()[index[0]];
            if !(0.0..weight.shape()[0] as f64).contains(&class) {
                return 0.0;
            }
            let pixel = (index[0] * h + index[1]) * w + index[2];
            let (x, weight) = (&x.data()[pixel * c..][..c], &weight.data()[class as usize * c..][..c]);
            x.iter().zip(weight).map(|(x, weight)| x * weight).sum::<f64>() + bias.data()[class as usize]
        })]
    }

    fn flops(&self, inputs: &[ValueType], _: &[ValueType]) -> u64 {
        2 * inputs[0].shape.len() as u64
    }

    fn cases() -> Vec<Case> {
        let case = |name: &str, [n, h, w, c]: [usize; 4], classes: usize| {
            Case::new(name, ClassConv, &[&[n, h, w, c], &[classes, c], &[classes], &[n]])
                .exact(1)
                .exact(2)
                .fill(3, Filling::Index(0, classes as i32))
        };
        vec![
            case("one", [1, 1, 1, 1], 1),
            case("odd", [3, 5, 7, 19], 4),
            case("no_maps", [0, 4, 4, 8], 3),
            case("wide", [2, 9, 10, 264], 3),
            case("no_class", [3, 4, 4, 8], 3).fill(3, Filling::Index(-1, 5)),
            case("masks", [100, 28, 28, 256], 80).bench(),
        ]
    }
}
