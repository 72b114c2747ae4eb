//! One update of parameters by AdamW: Adam with decoupled weight decay (Loshchilov and Hutter 2019).

use super::{Gradient, Inferred, Operator, ValueType, case::Case, case::Filling, expect_float, expect_shape};
use crate::tensor::Tensor;
use serde::{Deserialize, Serialize};

/// For each parameter, with `g = scale * gradient`, in PyTorch's order of operations:
///
/// ```text
/// first'     = first + (g - first) * (1 - beta1)
/// second'    = second * beta2 + (1 - beta2) * g * g
/// parameter' = parameter * keep - step * first' / (sqrt(second') / root + eps)
/// ```
///
/// Inputs: `scale` `[1]`, by which clipping and the mean over batches shrink gradients: if it is NaN or
/// infinite, all stays as it is; `rates` `[3]`, for update `t` `keep = 1 - lr * decay`,
/// `step = lr / (1 - beta1^t)` and `root = sqrt(1 - beta2^t)`; then of each of N parameters its value, its
/// `gradient`, and its `first` and `second` moment, all of one shape.
///
/// Outputs: of each parameter `parameter'`, `first'` and `second'`, which replace their operands; then
/// `faults` `[N]`: 1 where an element of `parameter'` is NaN or infinite, else 0.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct AdamW {
    /// Decay rate of the first moment.
    pub beta1: f32,
    /// Decay rate of the second moment.
    pub beta2: f32,
    /// Added to the root of the second moment.
    pub eps: f32,
}

impl AdamW {
    /// Most parameters.
    pub const MOST: usize = 32;

    /// Operand `index` of parameter `parameter`: 0 the value, 1 the gradient, 2 and 3 the moments.
    pub const fn operand(parameter: usize, index: usize) -> usize {
        2 + 4 * parameter + index
    }

    /// How many parameters so many operands are.
    pub const fn parameters(operands: usize) -> usize {
        operands.saturating_sub(2) / 4
    }
}

impl Operator for AdamW {
    const NAME: &'static str = "adamw";
    const GRADIENT: Gradient = Gradient::None("an update follows the gradients");

    fn replaces(operands: usize) -> Vec<(usize, usize)> {
        let of = |i| {
            [(0, 0), (2, 1), (3, 2)].map(|(operand, result)| (AdamW::operand(i, operand), 3 * i + result))
        };
        (0..AdamW::parameters(operands)).flat_map(of).collect()
    }

    fn infer(&self, inputs: &[ValueType]) -> Inferred {
        let count = AdamW::parameters(inputs.len());
        if inputs.len() != AdamW::operand(count, 0) || !(1..=AdamW::MOST).contains(&count) {
            let most = AdamW::MOST;
            return Err(format!(
                "takes a scale, rates and 4 operands of each of 1 to {most} parameters, was given {}",
                inputs.len()
            ));
        }
        expect_shape(inputs, 0, [1], "scale")?;
        expect_shape(inputs, 1, [3], "rates")?;
        let mut outputs = Vec::with_capacity(3 * count + 1);
        for at in (0..count).map(|i| AdamW::operand(i, 0)) {
            let shape = expect_float(inputs, at)?;
            for (index, what) in [(1, "gradient"), (2, "first moment"), (3, "second moment")] {
                expect_shape(inputs, at + index, shape, what)?;
            }
            outputs.extend([inputs[at], inputs[at + 2], inputs[at + 3]]);
        }
        outputs.push(ValueType::exact([count]));
        Ok(outputs)
    }

    fn reference(&self, inputs: &[&Tensor<f64>]) -> Vec<Tensor<f64>> {
        let [scale, rates, values @ ..] = inputs else { return Vec::new() };
        let (scale, &[keep, step, root]) = (scale.data()[0], rates.data()) else { return Vec::new() };
        let [beta1, beta2, eps] = [self.beta1, self.beta2, self.eps].map(f64::from);
        let (mut outputs, mut faults) = (Vec::new(), Vec::new());
        for of_parameter in values.chunks_exact(4) {
            let [p, gradient, m, v] = of_parameter else { continue };
            let each = |old: &Tensor<f64>, f: &dyn Fn(usize) -> f64| {
                let mut next = 0..;
                let value = |_: &[usize]| next.next().map_or(0.0, f);
                if scale.is_finite() { Tensor::from_fn(p.shape(), value) } else { old.clone() }
            };
            let g = |i: usize| scale * gradient.data()[i];
            let first = each(m, &|i| m.data()[i] + (g(i) - m.data()[i]) * (1.0 - beta1));
            let second = each(v, &|i| v.data()[i] * beta2 + (1.0 - beta2) * g(i) * g(i));
            let parameter = each(p, &|i| {
                p.data()[i] * keep - step * (first.data()[i] / (second.data()[i].sqrt() / root + eps))
            });
            faults.push(f64::from(u8::from(parameter.data().iter().any(|v| !v.is_finite()))));
            outputs.extend([parameter, first, second]);
        }
        outputs.push(Tensor::new([faults.len()], faults));
        outputs
    }

    fn flops(&self, inputs: &[ValueType], _: &[ValueType]) -> u64 {
        // Counting division and root as one each.
        inputs[2..].iter().step_by(4).map(|ty| 15 * ty.shape.len() as u64).sum()
    }

    fn cases() -> Vec<Case> {
        let case = |name: &str, shapes: &[&[usize]]| {
            let op = AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8 };
            let operands = shapes.iter().flat_map(|&shape| [shape; 4]);
            let operands: Vec<&[usize]> = [&[1][..], &[3]].into_iter().chain(operands).collect();
            // Second moments are those of gradients in [-1, 1); the rates those of an early, large step.
            let case = Case::new(name, op, &operands)
                .fill(0, Filling::Uniform(0.1, 1.0))
                .fill(1, Filling::Uniform(0.1, 1.0))
                .tolerance(super::case::Tolerance::POINTWISE);
            let second = |i| AdamW::operand(i, 3);
            (0..shapes.len()).fold(case, |case, i| case.fill(second(i), Filling::Uniform(0.01, 1.0)))
        };
        let infinite =
            |case: Case, i: usize| case.fill(AdamW::operand(i, 0), Filling::Constant(f64::INFINITY));
        let filters = case("filters", &[&[256, 3, 3, 256], &[256], &[256, 1, 1, 1024]]);
        let maps = (0..3).flat_map(|i| (0..4).map(move |index| AdamW::operand(i, index)));
        vec![
            case("one", &[&[1]]),
            case("odd", &[&[3, 5, 7], &[2], &[4, 9]]),
            case("empty", &[&[0, 3], &[5]]),
            case("tasks", &[&[9], &[70, 1001], &[16]]),
            case("most", &[&[5][..]; AdamW::MOST]),
            case("no_step", &[&[9]]).fill(0, Filling::Constant(0.0)).fill(1, Filling::Constant(1.0)),
            case("left_out", &[&[37], &[8]]).fill(0, Filling::Constant(f64::NAN)),
            infinite(case("infinite", &[&[7], &[37], &[9]]), 1),
            infinite(case("infinite_blocks", &[&[7], &[9001], &[9]]), 1),
            maps.fold(filters, Case::exact).bench(),
        ]
    }
}
