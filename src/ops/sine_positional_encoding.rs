//! Sine positional encoding of a map.

use super::{Gradient, Inferred, Operator, ValueType, case::Case, case::Tolerance, expect_inputs};
use crate::tensor::Tensor;
use serde::{Deserialize, Serialize};

/// Encodes the position of each pixel (Carion et al. 2020, appendix A.4; mmdet's normalised variant).
///
/// The coordinate of row `y` is `2 pi (y + 1) / (height + 1e-6)`. Feature `i` of an axis is the sine (even
/// `i`) or cosine (odd `i`) of `coordinate / 10000^(2 floor(i / 2) / features)`; the features of `y` come
/// first, then those of `x`. No inputs; output `[1, height, width, 2 * features]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SinePositionalEncoding {
    /// Rows of the map.
    pub height: usize,
    /// Columns of the map.
    pub width: usize,
    /// Features per axis.
    pub features: usize,
}

impl Operator for SinePositionalEncoding {
    const NAME: &'static str = "sine_positional_encoding";
    const GRADIENT: Gradient = Gradient::None("no operands");

    fn infer(&self, inputs: &[ValueType]) -> Inferred {
        expect_inputs(inputs, 0)?;
        Ok(vec![ValueType::map([1, self.height, self.width, 2 * self.features])])
    }

    fn reference(&self, _: &[&Tensor<f64>]) -> Vec<Tensor<f64>> {
        // One table an axis: every row of pixels shares the features of y, every column those of x.
        let table = |size: usize| -> Vec<f64> {
            let feature = |position: usize, i: usize| {
                let coordinate = std::f64::consts::TAU * (position + 1) as f64 / (size as f64 + 1e-6);
                let angle = coordinate / 10_000f64.powf((i / 2 * 2) as f64 / self.features as f64);
                if i.is_multiple_of(2) { angle.sin() } else { angle.cos() }
            };
            (0..size * self.features).map(|j| feature(j / self.features, j % self.features)).collect()
        };
        let (rows, columns, n) = (table(self.height), table(self.width), self.features);
        let mut y = Vec::with_capacity(2 * n * self.height * self.width);
        for row in 0..self.height {
            for column in 0..self.width {
                y.extend_from_slice(&rows[row * n..][..n]);
                y.extend_from_slice(&columns[column * n..][..n]);
            }
        }
        vec![Tensor::new([1, self.height, self.width, 2 * n], y)]
    }

    fn flops(&self, _: &[ValueType], _: &[ValueType]) -> u64 {
        (2 * (self.height + self.width) * self.features) as u64
    }

    fn cases() -> Vec<Case> {
        let case = |name: &str, height, width, features| {
            let op = SinePositionalEncoding { height, width, features };
            Case::new(name, op, &[]).tolerance(Tolerance::POINTWISE)
        };
        vec![
            case("one", 1, 1, 128),
            case("odd", 3, 5, 7),
            case("row", 1, 9, 16),
            case("empty", 0, 5, 8),
            case("c5", 25, 42, 128).bench(),
        ]
    }
}
