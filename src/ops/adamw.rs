//! One update of AdamW: Adam with decoupled weight decay (Loshchilov and Hutter 2019).

use super::{
    Gradient, Inferred, Operator, ValueType, case::Case, case::Filling, expect_float, expect_inputs,
    expect_shape,
};
use crate::tensor::Tensor;
use serde::{Deserialize, Serialize};

/// With `g = scale * gradient`, in PyTorch's order of operations:
///
/// ```text
/// first'     = first + (g - first) * (1 - beta1)
/// second'    = second * beta2 + (1 - beta2) * g * g
/// parameter' = parameter * keep - step * first' / (sqrt(second') / root + eps)
/// ```
///
/// Inputs: `parameter`, its `gradient`, `first` and `second` moment, all of one shape; `scale` `[1]`, by
/// which clipping and the mean over batches shrink the gradient; `rates` `[3]`, which are `keep = 1 - lr *
/// decay`, `step = lr / (1 - beta1^t)` and `root = sqrt(1 - beta2^t)` for update `t`.
///
/// Outputs: `parameter'`, `first'` and `second'`, which replace their operands, and `fault` `[1]`: 1 if an
/// element of `parameter'` is NaN or infinite, else 0.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct AdamW {
    /// Decay rate of the first moment.
    pub beta1: f32,
    /// Decay rate of the second moment.
    pub beta2: f32,
    /// Added to the root of the second moment.
    pub eps: f32,
}

impl Operator for AdamW {
    const NAME: &'static str = "adamw";
    const GRADIENT: Gradient = Gradient::None("an update follows the gradients");
    const REPLACES: &'static [(usize, usize)] = &[(0, 0), (2, 1), (3, 2)];

    fn infer(&self, inputs: &[ValueType]) -> Inferred {
        expect_inputs(inputs, 6)?;
        let shape = expect_float(inputs, 0)?;
        for (index, what) in [(1, "gradient"), (2, "first moment"), (3, "second moment")] {
            expect_shape(inputs, index, shape, what)?;
        }
        expect_shape(inputs, 4, [1], "scale")?;
        expect_shape(inputs, 5, [3], "rates")?;
        Ok(vec![inputs[0], inputs[2], inputs[3], ValueType::exact([1])])
    }

    fn reference(&self, inputs: &[&Tensor<f64>]) -> Vec<Tensor<f64>> {
        let [p, gradient, m, v, scale, rates] = inputs else { return Vec::new() };
        let (scale, &[keep, step, root]) = (scale.data()[0], rates.data()) else { return Vec::new() };
        let [beta1, beta2, eps] = [self.beta1, self.beta2, self.eps].map(f64::from);
        let each = |f: &dyn Fn(usize) -> f64| {
            let mut next = 0..;
            Tensor::from_fn(p.shape(), |_| next.next().map_or(0.0, f))
        };
        let g = |i: usize| scale * gradient.data()[i];
        let first = each(&|i| m.data()[i] + (g(i) - m.data()[i]) * (1.0 - beta1));
        let second = each(&|i| v.data()[i] * beta2 + (1.0 - beta2) * g(i) * g(i));
        let parameter =
            each(&|i| p.data()[i] * keep - step * (first.data()[i] / (second.data()[i].sqrt() / root + eps)));
        let fault = f64::from(u8::from(parameter.data().iter().any(|v| !v.is_finite())));
        vec![parameter, first, second, Tensor::new([1], vec![fault])]
    }

    fn flops(&self, inputs: &[ValueType], _: &[ValueType]) -> u64 {
        // Counting division and root as one each.
        15 * inputs[0].shape.len() as u64
    }

    fn cases() -> Vec<Case> {
        let case = |name: &str, shape: &[usize]| {
            let op = AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8 };
            // Second moments are those of gradients in [-1, 1); the rates those of an early, large step.
            Case::new(name, op, &[shape, shape, shape, shape, &[1], &[3]])
                .fill(3, Filling::Uniform(0.01, 1.0))
                .fill(4, Filling::Uniform(0.1, 1.0))
                .fill(5, Filling::Uniform(0.1, 1.0))
                .tolerance(super::case::Tolerance::POINTWISE)
        };
        vec![
            case("one", &[1]),
            case("odd", &[3, 5, 7]),
            case("empty", &[0, 3]),
            case("tasks", &[70, 1001]),
            case("no_step", &[9]).fill(5, Filling::Constant(1.0)).fill(4, Filling::Constant(0.0)),
            case("infinite", &[37]).fill(0, Filling::Constant(f64::INFINITY)),
            case("infinite_blocks", &[9001]).fill(0, Filling::Constant(f64::INFINITY)),
            case("filter", &[256, 3, 3, 256]).exact(0).exact(1).exact(2).exact(3).bench(),
        ]
    }
}
