//! Mean over all pixels of a map.

use super::{Gradient, Inferred, Operator, ValueType, case::Case, expect_inputs, expect_rank};
use crate::tensor::Tensor;
use serde::{Deserialize, Serialize};

/// `y[b, c]` is the mean of `x[b, .., .., c]`.
///
/// Input: `x` `[B, H, W, C]` with at least one pixel. Output: `[B, C]`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GlobalAvgPool;

impl Operator for GlobalAvgPool {
    const NAME: &'static str = "global_avg_pool";
    const GRADIENT: Gradient = Gradient::None("classifiers are not trained here");

    fn infer(&self, inputs: &[ValueType]) -> Inferred {
        expect_inputs(inputs, 1)?;
        let x = expect_rank(inputs, 0, 4, "[B, H, W, C]")?;
        if x[1] * x[2] == 0 {
            return Err(format!("map {x} has no pixels to average"));
        }
        Ok(vec![ValueType::rows([x[0], x[3]])])
    }

    fn reference(&self, inputs: &[&Tensor<f64>]) -> Vec<Tensor<f64>> {
        let x = inputs[0];
        let (batch, pixels, c) = (x.shape()[0], x.shape()[1] * x.shape()[2], x.shape()[3]);
        let mut y = Tensor::zeros([batch, c]);
        for (i, v) in x.data().iter().enumerate() {
            y.data_mut()[i / c / pixels * c + i % c] += v;
        }
        y.data_mut().iter_mut().for_each(|v| *v /= pixels as f64);
        vec![y]
    }

    fn flops(&self, inputs: &[ValueType], _: &[ValueType]) -> u64 {
        inputs[0].shape.len() as u64
    }

    fn cases() -> Vec<Case> {
        let case = |name: &str, shape: &[usize]| Case::new(name, GlobalAvgPool, &[shape]);
        vec![
            case("one", &[1, 1, 1, 1]),
            case("odd", &[3, 5, 7, 19]),
            case("no_images", &[0, 4, 4, 8]),
            case("no_channels", &[2, 4, 4, 0]),
            // 40,000 terms: a running f32 sum would show here.
            case("large_map", &[1, 200, 200, 33]),
            case("lite_head", &[1, 7, 7, 1280]).bench(),
        ]
    }
}
