//! Filters that change from step to step, as the kernels of a step read them.

use super::{
    Gradient, Inferred, Operator, ValueType, case::Case, case::Filling, case::Tolerance, expect_rank,
    expect_shape,
};
use crate::tensor::{Shape, Tensor};
use serde::{Deserialize, Serialize};

/// What [`PackFilters`] makes of one filter.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct PackedFilter {
    /// The `eps` of a frozen batch norm that is folded into it, as [`FoldBatchNorm`](super::FoldBatchNorm)
    /// does.
    pub norm: Option<f32>,
    /// A result is the filter in its own order, as its convolution reads it.
    pub straight: bool,
    /// A result is the filter turned by half a turn, its filters and channels in each other's place: the
    /// convolution of `dy` with it is the gradient of a map under stride 1.
    pub turned: bool,
}

impl PackedFilter {
    /// Operands: the filter, and those of the norm.
    pub fn operands(&self) -> usize {
        if self.norm.is_some() { 5 } else { 1 }
    }

    /// Results: the copies, and a bias of the norm.
    pub fn results(&self) -> usize {
        [self.straight, self.turned, self.norm.is_some()].map(usize::from).iter().sum()
    }
}

/// Copies of many filters as maps are stored, in one pass over the f32 masters. `train_filters` of the CUDA
/// back end makes these of [`FoldBatchNorm`](super::FoldBatchNorm) and of what convolutions and their
/// gradients would each lay out for themselves.
///
/// Inputs of each filter: `filter` `[K, R, S, C]`, then with a norm `gamma`, `beta`, `mean` and `variance`
/// `[K]`. Outputs of each, where asked for: `straight` `[K, R, S, C]`; `turned` `[C, R, S, K]` with
/// `turned[c, r, s, k] = straight[k, R - 1 - r, S - 1 - s, c]`; with a norm its bias `[K]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PackFilters {
    /// The filters.
    pub filters: Vec<PackedFilter>,
}

impl PackFilters {
    /// Most filters.
    pub const MOST: usize = 128;

    /// Each filter with the positions of its first operand and its first result.
    pub fn places(&self) -> impl Iterator<Item = (PackedFilter, usize, usize)> {
        self.filters.iter().scan((0, 0), |next, &filter| {
            let (operand, result) = *next;
            *next = (operand + filter.operands(), result + filter.results());
            Some((filter, operand, result))
        })
    }
}

/// The shape of the turned filter.
pub(crate) fn turned_shape(w: Shape) -> Shape {
    [w[3], w[1], w[2], w[0]].into()
}

impl Operator for PackFilters {
    const NAME: &'static str = "pack_filters";
    const GRADIENT: Gradient = Gradient::None("made of operators that have one, for a whole step");

    fn infer(&self, inputs: &[ValueType]) -> Inferred {
        let most = PackFilters::MOST;
        if !(1..=most).contains(&self.filters.len()) {
            return Err(format!("takes 1 to {most} filters, was given {}", self.filters.len()));
        }
        super::expect_inputs(inputs, self.filters.iter().map(PackedFilter::operands).sum())?;
        let mut outputs = Vec::new();
        for (filter, at, _) in self.places() {
            let w = expect_rank(inputs, at, 4, "[K, R, S, C]")?;
            if filter.norm.is_some() {
                for (index, what) in [(1, "gamma"), (2, "beta"), (3, "mean"), (4, "variance")] {
                    expect_shape(inputs, at + index, [w[0]], what)?;
                }
            }
            outputs.extend(filter.straight.then(|| ValueType::map(w)));
            outputs.extend(filter.turned.then(|| ValueType::map(turned_shape(w))));
            outputs.extend(filter.norm.map(|_| inputs[at + 2]));
        }
        Ok(outputs)
    }

    fn reference(&self, inputs: &[&Tensor<f64>]) -> Vec<Tensor<f64>> {
        let mut outputs = Vec::new();
        for (filter, at, _) in self.places() {
            let operands = &inputs[at..at + filter.operands()];
            let (w, bias) = match filter.norm {
                Some(eps) => {
                    let mut folded = super::FoldBatchNorm { eps }.reference(operands);
                    let bias = folded.pop();
                    (folded.swap_remove(0), bias)
                }
                None => (operands[0].clone(), None),
            };
            let [_, r, s, _] = [0, 1, 2, 3].map(|axis| w.shape()[axis]);
            let turned = filter.turned.then(|| {
                Tensor::from_fn(turned_shape(w.shape()), |at| {
                    w.at(&[at[3], r - 1 - at[1], s - 1 - at[2], at[0]])
                })
            });
            outputs.extend(filter.straight.then_some(w));
            outputs.extend(turned);
            outputs.extend(bias);
        }
        outputs
    }

    fn flops(&self, inputs: &[ValueType], _: &[ValueType]) -> u64 {
        let normed = self.places().filter(|(filter, ..)| filter.norm.is_some());
        normed.map(|(_, at, _)| (inputs[at].shape.len() + 4 * inputs[at + 1].shape.len()) as u64).sum()
    }

    fn cases() -> Vec<Case> {
        let (both, normed) = (
            PackedFilter { norm: None, straight: true, turned: true },
            PackedFilter { norm: Some(1e-5), straight: true, turned: true },
        );
        let case = |name: &str, filters: &[(PackedFilter, [usize; 4])]| {
            let op = PackFilters { filters: filters.iter().map(|&(filter, _)| filter).collect() };
            let mut shapes: Vec<Vec<usize>> = Vec::new();
            for (filter, w) in filters {
                shapes.push(w.to_vec());
                shapes.extend(vec![vec![w[0]]; filter.operands() - 1]);
            }
            let shapes: Vec<&[usize]> = shapes.iter().map(Vec::as_slice).collect();
            let places: Vec<_> = op.places().collect();
            let case = Case::new(name, op, &shapes).tolerance(Tolerance::POINTWISE);
            places.into_iter().fold(case, |case, (filter, at, _)| {
                let case = case.exact(at);
                if filter.norm.is_some() { case.fill(at + 4, Filling::Uniform(0.5, 2.0)) } else { case }
            })
        };
        let straight = PackedFilter { turned: false, ..both };
        let turned = PackedFilter { straight: false, ..both };
        vec![
            case("chunk", &[(both, [8, 1, 1, 8])]),
            case("no_filters", &[(normed, [0, 3, 3, 8]), (both, [8, 1, 1, 8])]),
            case("tasks", &[(normed, [72, 3, 2, 136]), (straight, [5, 3, 3, 8]), (turned, [16, 1, 3, 24])]),
            case("most", &[(both, [8, 1, 1, 8]); PackFilters::MOST]),
            case(
                "block",
                &[(normed, [256, 1, 1, 64]), (normed, [64, 3, 3, 64]), (straight, [64, 3, 3, 256])],
            )
            .bench(),
        ]
    }
}
