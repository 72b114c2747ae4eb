//! What is largest around its place.

use super::{
    Gradient, Inferred, Operator, ValueType,
    case::{Case, Filling, Tolerance},
    expect_inputs, expect_rank,
};
use crate::tensor::Tensor;
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// `y[b, i, j, c] = x[b, i, j, c]` where no pixel of the window around it is larger in channel `c`, else 0:
/// suppression of maps of scores without boxes. A pixel with a NaN in its window is 0.
///
/// Input and output: `[B, H, W, C]`. The window has `size` pixels along each axis, `size / 2` of them before
/// the pixel: 3 looks at all neighbours, 2 at those above and to the left (SOLOv2's points NMS).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocalMaxima {
    /// Pixels along a side of the window.
    pub size: usize,
}

impl LocalMaxima {
    /// The pixels of the window of pixel `index`, along an axis of so many.
    pub fn window(&self, index: usize, pixels: usize) -> Range<usize> {
        let before = self.size / 2;
        index.saturating_sub(before)..(index + self.size - before).min(pixels)
    }
}

impl Operator for LocalMaxima {
    const NAME: &'static str = "local_maxima";
    const GRADIENT: Gradient = Gradient::None("a choice moves by jumps");

    fn infer(&self, inputs: &[ValueType]) -> Inferred {
        expect_inputs(inputs, 1)?;
        let x = expect_rank(inputs, 0, 4, "[B, H, W, C]")?;
        match self.size {
            0 => Err(format!("a window without pixels over {x}")),
            _ => Ok(vec![inputs[0]]),
        }
    }

    fn reference(&self, inputs: &[&Tensor<f64>]) -> Vec<Tensor<f64>> {
        let x = inputs[0];
        vec![Tensor::from_fn(x.shape(), |index| {
            let value = x.at(index);
            let columns = self.window(index[2], x.shape()[2]);
            let mut around = self
                .window(index[1], x.shape()[1])
                .flat_map(|row| columns.clone().map(move |column| [index[0], row, column, index[3]]));
            if around.all(|other| value >= x.at(&other)) { value } else { 0.0 }
        })]
    }

    fn flops(&self, _: &[ValueType], outputs: &[ValueType]) -> u64 {
        (self.size * self.size * outputs[0].shape.len()) as u64
    }

    fn cases() -> Vec<Case> {
        let case = |name: &str, size, shape: &[usize]| {
            Case::new(name, LocalMaxima { size }, &[shape]).tolerance(Tolerance::EXACT)
        };
        vec![
            case("one", 2, &[1, 1, 1, 1]),
            case("odd", 2, &[2, 5, 7, 19]),
            case("all_neighbours", 3, &[1, 6, 5, 33]),
            case("wide", 4, &[1, 3, 9, 5]),
            case("itself", 1, &[1, 3, 4, 5]),
            case("equal", 2, &[1, 4, 4, 8]).fill(0, Filling::Constant(0.5)),
            case("empty", 2, &[1, 0, 4, 8]),
            case("grid", 2, &[1, 40, 40, 80]).bench(),
        ]
    }
}
