//! Group norms from moments that are known, added up.

use super::fused_conv2d::{PART_PIXELS, moments_shape};
use super::{
    Gradient, Inferred, Operator, ValueType, activation::Activation, case::Case, case::Filling,
    expect_inputs, expect_rank, expect_shape,
};
use crate::tensor::Tensor;
use serde::{Deserialize, Serialize};

/// `y = sum over terms of activation(norm(x))`, or of `x` as it is, where `norm` is a
/// [`GroupNorm`](super::GroupNorm) whose [moments](super::fused_conv2d::moments) came with the map: one pass
/// over memory, where norms and additions would take two for each map. `fuse_conv_tails` of the CUDA back end
/// makes these, for GPUs alone.
///
/// Inputs of a normalised term: `x` `[B, H, W, C]`, moments `[B, parts, 2 * groups]`, gamma and beta `[C]`;
/// of any other: `x`. Output: as `x`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NormSum {
    /// Groups of neighbouring channels; divides C.
    pub groups: usize,
    /// Added to the variance.
    pub eps: f32,
    /// Applied to every norm.
    pub activation: Option<Activation>,
    /// The terms: whether each is normalised. The first is.
    pub normalised: Vec<bool>,
}

impl NormSum {
    /// Position of each term's map among the operands, and whether it is normalised.
    pub fn terms(&self) -> impl Iterator<Item = (usize, bool)> {
        let mut next = 0;
        self.normalised.iter().map(move |&normalised| {
            let x = next;
            next += if normalised { 4 } else { 1 };
            (x, normalised)
        })
    }

    fn norm(&self, inputs: &[&Tensor<f64>]) -> Tensor<f64> {
        let [x, moments, gamma, beta] = [0, 1, 2, 3].map(|i| inputs[i]);
        let (shape, parts) = (x.shape(), moments.shape()[1]);
        let (pixels, channels) = (shape[1] * shape[2], shape[3]);
        let width = channels / self.groups;
        let total = (pixels * width) as f64;
        let mut y = x.clone();
        for (b, group) in (0..shape[0]).flat_map(|b| (0..self.groups).map(move |group| (b, group))) {
            let part = |i: usize| {
                let at = 2 * ((b * parts + i) * self.groups + group);
                let count = (pixels - i * PART_PIXELS).min(PART_PIXELS) * width;
                (count as f64, moments.data()[at], moments.data()[at + 1])
            };
            let mean = (0..parts).map(part).map(|(n, mean, _)| n * mean).sum::<f64>() / total;
            let spread =
                (0..parts).map(part).map(|(n, part, m2)| m2 + n * (part - mean).powi(2)).sum::<f64>();
            let scale = 1.0 / (spread / total + f64::from(self.eps)).sqrt();
            for i in
                (0..pixels * width).map(|i| (b * pixels + i / width) * channels + group * width + i % width)
            {
                let v = (x.data()[i] - mean) * scale * gamma.data()[i % channels] + beta.data()[i % channels];
                y.data_mut()[i] = self.activation.map_or(v, |activation| activation.apply(v));
            }
        }
        y
    }
}

impl Operator for NormSum {
    const NAME: &'static str = "norm_sum";
    const GRADIENT: Gradient = Gradient::None("made of operators that have one, for inference");

    fn infer(&self, inputs: &[ValueType]) -> Inferred {
        expect_inputs(inputs, self.terms().map(|(_, normalised)| if normalised { 4 } else { 1 }).sum())?;
        if self.normalised.first() != Some(&true) {
            return Err(format!("the first of its terms must be normalised: {:?}", self.normalised));
        }
        let x = expect_rank(inputs, 0, 4, "[B, H, W, C]")?;
        if self.groups == 0 || !x[3].is_multiple_of(self.groups) {
            return Err(format!("{} groups do not divide the channels of {x}", self.groups));
        }
        for (at, normalised) in self.terms() {
            expect_shape(inputs, at, x, "term")?;
            if normalised {
                expect_shape(inputs, at + 1, moments_shape(x, self.groups), "moments")?;
                expect_shape(inputs, at + 2, [x[3]], "gamma")?;
                expect_shape(inputs, at + 3, [x[3]], "beta")?;
            }
        }
        Ok(vec![inputs[0]])
    }

    fn reference(&self, inputs: &[&Tensor<f64>]) -> Vec<Tensor<f64>> {
        let mut y = Tensor::zeros(inputs[0].shape());
        for (at, normalised) in self.terms() {
            let term = if normalised { self.norm(&inputs[at..at + 4]) } else { inputs[at].clone() };
            y.data_mut().iter_mut().zip(term.data()).for_each(|(y, &v)| *y += v);
        }
        vec![y]
    }

    fn flops(&self, _: &[ValueType], outputs: &[ValueType]) -> u64 {
        let per_norm = 3 + u64::from(self.activation.is_some());
        let each: u64 = self.normalised.iter().map(|&normalised| 1 + u64::from(normalised) * per_norm).sum();
        each * outputs[0].shape.len() as u64
    }

    fn cases() -> Vec<Case> {
        let relu = Some(Activation::Relu);
        let case = |name: &str, groups, activation, normalised: &[bool], x: [usize; 4]| {
            let moments = moments_shape(x.into(), groups);
            let channels = [x[3]];
            let norm: [&[usize]; 4] = [&x, moments.dims(), &channels, &channels];
            let shapes: Vec<&[usize]> =
                normalised.iter().flat_map(|&n| norm[..if n { 4 } else { 1 }].to_vec()).collect();
            let op = NormSum { groups, eps: 1e-5, activation, normalised: normalised.to_vec() };
            let mut case = Case::new(name, op.clone(), &shapes);
            // A sum of squares is not negative, and a mean is small beside its root.
            for (at, _) in op.terms().filter(|&(_, normalised)| normalised) {
                case = case.fill(at + 1, Filling::Uniform(10.0, 12.0));
            }
            case
        };
        vec![
            case("one_pixel", 1, None, &[true], [1, 1, 1, 8]),
            case("one", 4, relu, &[true], [2, 9, 13, 32]),
            case("two", 2, relu, &[true, true], [1, 17, 19, 16]),
            case("plain", 8, relu, &[true, false], [1, 12, 11, 64]),
            case("four", 9, relu, &[true, true, false, true], [1, 14, 23, 72]),
            case("sigmoid", 3, Some(Activation::Sigmoid), &[true], [1, 33, 40, 48]),
            case("empty", 2, None, &[true], [0, 3, 3, 16]),
            case("sfpn_sum", 32, relu, &[true; 4], [1, 25, 42, 256]),
        ]
    }
}
