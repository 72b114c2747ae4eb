//! Frozen batch normalisation.

use super::{
    Inferred, Operator, ValueType, case::Case, case::Fill, expect_float, expect_inputs, expect_shape,
};
use crate::tensor::Tensor;

/// `y = (x - mean[c]) * gamma[c] / sqrt(variance[c] + eps) + beta[c]`, with stored statistics (Ioffe and
/// Szegedy 2015, in inference mode).
///
/// Inputs: `x` `[.., C]`, then `gamma`, `beta`, `mean`, `variance` `[C]`. Output: as `x`. After a convolution it
/// is folded away, see [`FoldBatchNorm`](super::FoldBatchNorm).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BatchNorm {
    /// Added to the variance.
    pub eps: f32,
}

impl Operator for BatchNorm {
    const NAME: &'static str = "batch_norm";

    fn infer(&self, inputs: &[ValueType]) -> Inferred {
        expect_inputs(inputs, 5)?;
        let x = expect_float(inputs, 0)?;
        if x.rank() == 0 {
            return Err(format!("input 0 must be f32 [.., C], is {}", inputs[0]));
        }
        for (index, what) in [(1, "gamma"), (2, "beta"), (3, "mean"), (4, "variance")] {
            expect_shape(inputs, index, [x.last()], what)?;
        }
        Ok(vec![inputs[0]])
    }

    fn reference(&self, inputs: &[&Tensor<f64>]) -> Vec<Tensor<f64>> {
        let [gamma, beta, mean, variance] = [1, 2, 3, 4].map(|i| inputs[i].data());
        let mut y = inputs[0].clone();
        let channels = y.shape().last().max(1);
        for (i, v) in y.data_mut().iter_mut().enumerate() {
            let c = i % channels;
            *v = (*v - mean[c]) * gamma[c] / (variance[c] + f64::from(self.eps)).sqrt() + beta[c];
        }
        vec![y]
    }

    fn flops(&self, _: &[ValueType], outputs: &[ValueType]) -> u64 {
        2 * outputs[0].shape.len() as u64
    }

    fn cases() -> Vec<Case> {
        let case = |name: &str, x: &[usize]| {
            let c = x[x.len() - 1];
            Case::new(name, BatchNorm { eps: 1e-5 }, &[x, &[c], &[c], &[c], &[c]])
                .fill(4, Fill::Uniform(0.5, 2.0))
        };
        vec![
            case("one", &[1]),
            case("odd", &[2, 3, 7, 5]),
            case("one_channel", &[3, 50, 1]),
            case("empty", &[0, 2, 4]),
            case("layer1", &[1, 50, 84, 256]).bench(),
        ]
    }
}
