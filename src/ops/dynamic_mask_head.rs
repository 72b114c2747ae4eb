//! Mask heads whose parameters the network computes.

use super::{
    Gradient, Inferred, Operator, ValueType,
    case::{Case, Filling},
    expect_indices, expect_inputs, expect_rank, expect_shape,
};
use crate::tensor::Tensor;
use serde::{Deserialize, Serialize};

/// Channels between the layers.
pub const HIDDEN: usize = 8;

/// CondInst's mask heads (Tian et al., 2020): three 1x1 convolutions for each object, with ReLU between them,
/// over where a pixel is as seen from the object and over the features.
///
/// Inputs: features `[B, H, W, C]`; parameters `[B, N, P]`, the weights of the layers, `[8, 2 + C]`, `[8, 8]`
/// and `[8]`, then their biases; places `[B, N, 3]`, column and row in pixels and the size that is one unit;
/// and how many objects of each image there are, `[B]`. Output: planar logits `[B, N, H, W]`, zeros of those
/// beyond.
///
/// The first two channels are `(place - pixel) / unit`, column and row, where a pixel lies at
/// `index stride + stride / 2` (rounded down).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DynamicMaskHead {
    /// Pixels of the image between neighbours.
    pub stride: usize,
}

impl DynamicMaskHead {
    /// Number of parameters of an object, for so many channels of features.
    pub fn parameters(channels: usize) -> usize {
        HIDDEN * (channels + 2) + HIDDEN * HIDDEN + HIDDEN + HIDDEN + HIDDEN + 1
    }

    /// Where a row or column lies.
    pub fn at(&self, index: usize) -> usize {
        index * self.stride + self.stride / 2
    }
}

/// The parameters of an object, layer by layer.
#[derive(Clone, Copy, Debug)]
pub struct Layers<'a, T> {
    /// Weights of each layer, a row for each of its outputs.
    pub weights: [&'a [T]; 3],
    /// Biases of each layer.
    pub biases: [&'a [T]; 3],
}

impl<'a, T> Layers<'a, T> {
    /// Takes the parameters apart.
    pub fn of(parameters: &'a [T], channels: usize) -> Self {
        let (first, rest) = parameters.split_at(HIDDEN * (channels + 2));
        let (second, rest) = rest.split_at(HIDDEN * HIDDEN);
        let (third, biases) = rest.split_at(HIDDEN);
        let biases = [&biases[..HIDDEN], &biases[HIDDEN..2 * HIDDEN], &biases[2 * HIDDEN..]];
        Layers { weights: [first, second, third], biases }
    }
}

impl Operator for DynamicMaskHead {
    const NAME: &'static str = "dynamic_mask_head";
    const GRADIENT: Gradient = Gradient::None("detectors that K-Net is compared with are not trained");

    fn infer(&self, inputs: &[ValueType]) -> Inferred {
        expect_inputs(inputs, 4)?;
        let x = expect_rank(inputs, 0, 4, "[B, H, W, C]")?;
        let parameters = expect_rank(inputs, 1, 3, "[B, N, P]")?;
        let wanted = [x[0], parameters[1], DynamicMaskHead::parameters(x[3])];
        expect_shape(inputs, 1, wanted, "parameters")?;
        expect_shape(inputs, 2, [x[0], parameters[1], 3], "places")?;
        expect_indices(inputs, 3, [x[0]], "counts")?;
        Ok(vec![ValueType::map([x[0], parameters[1], x[1], x[2]])])
    }

    fn reference(&self, inputs: &[&Tensor<f64>]) -> Vec<Tensor<f64>> {
        let [x, parameters, places, counts] = [0, 1, 2, 3].map(|i| inputs[i]);
        let [batch, h, w, c] = [0, 1, 2, 3].map(|axis| x.shape()[axis]);
        let (n, p) = (parameters.shape()[1], parameters.shape()[2]);
        vec![Tensor::from_fn([batch, n, h, w], |index| {
            let [b, object, row, column] = [index[0], index[1], index[2], index[3]];
            if object as f64 >= counts.data()[b] {
                return 0.0;
            }
            let place = &places.data()[(b * n + object) * 3..][..3];
            let at = |index: usize| self.at(index) as f64;
            let mut values = vec![(place[0] - at(column)) / place[2], (place[1] - at(row)) / place[2]];
            values.extend(&x.data()[((b * h + row) * w + column) * c..][..c]);
            let layers = Layers::of(&parameters.data()[(b * n + object) * p..][..p], c);
            for layer in 0..3 {
                let rows = layers.weights[layer].chunks_exact(values.len());
                let outputs = rows.zip(layers.biases[layer]).map(|(row, bias)| {
                    let sum = row.iter().zip(&values).map(|(w, v)| w * v).sum::<f64>() + bias;
                    if layer < 2 { sum.max(0.0) } else { sum }
                });
                values = outputs.collect();
            }
            values[0]
        })]
    }

    fn flops(&self, inputs: &[ValueType], outputs: &[ValueType]) -> u64 {
        2 * outputs[0].shape.len() as u64 * inputs[1].shape[2] as u64
    }

    fn cases() -> Vec<Case> {
        let case = |name: &str, [b, h, w, c]: [usize; 4], n: usize| {
            let shapes: [&[usize]; 4] =
                [&[b, h, w, c], &[b, n, DynamicMaskHead::parameters(c)], &[b, n, 3], &[b]];
            Case::new(name, DynamicMaskHead { stride: 8 }, &shapes)
                .exact(2)
                .fill(2, Filling::Uniform(16.0, 90.0))
                .fill(3, Filling::Index(0, n as i32 + 1))
        };
        let all = |n: i32| Filling::Index(n, n + 1);
        vec![
            // Of one value alone no bound relative to it would hold if its terms cancelled.
            case("one", [1, 1, 1, 1], 1).fill(1, Filling::Uniform(0.0, 1.0)).fill(3, all(1)),
            case("odd", [2, 5, 7, 8], 9),
            case("channels", [1, 9, 6, 19], 3).fill(3, all(3)),
            case("none", [1, 5, 7, 8], 0),
            case("no_pixels", [1, 0, 7, 8], 2),
            case("too_many", [1, 4, 7, 8], 3).fill(3, all(50)),
            case("detections", [1, 100, 168, 8], 100).fill(3, all(100)).bench(),
        ]
    }
}
