//! Resizing of maps, with the semantics of PyTorch's `interpolate`.

use super::{
    Backward, Gradient, Inferred, Operator, ValueType, case::Case, case::Tolerance, expect_inputs,
    expect_rank,
};
use crate::error::Result;
use crate::graph::{Builder, ValueId};
use crate::tensor::Tensor;
use serde::{Deserialize, Serialize};

/// How values between pixels come about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ResizeMode {
    /// The pixel at `floor(i * step)`.
    Nearest,
    /// Linear in both directions between pixel centres; beyond the outermost centres the outermost value.
    Bilinear {
        /// The corner pixels of input and output coincide (`step = (in - 1) / (out - 1)`, source `i * step`)
        /// instead of the corners of the maps (`step = in / out`, source `(i + 0.5) * step - 0.5`).
        align_corners: bool,
    },
    /// Linear in both directions where each pixel becomes a block of a whole number of pixels along each
    /// axis, and lies at the pixel `block / 2` (rounded down) of it (CondInst's "aligned bilinear").
    Blocks,
}

/// Resizes a map: `[B, H, W, C]` to `[B, size[0], size[1], C]`.
///
/// Pairs are (vertical, horizontal). Which pixel is nearest is decided in `f32`, as PyTorch does whatever the
/// element type: where `i * step` is a whole number a more exact product may fall on the other side of it.
/// Bilinear interpolation has no such jump, so its coordinates are exact.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Resize {
    /// Interpolation.
    pub mode: ResizeMode,
    /// Output size.
    pub size: [usize; 2],
    /// Source pixels per output pixel where PyTorch was given a scale factor (`1 / scale_factor`); otherwise
    /// it is `in / out`. Without effect if corners are aligned.
    pub step: Option<[f64; 2]>,
}

/// What one output row or column is made of: `(1 - weight) * x[low] + weight * x[high]`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Taps {
    /// First source pixel.
    pub low: usize,
    /// Second source pixel, `low` or its right neighbour.
    pub high: usize,
    /// Weight of `high`, in [0, 1].
    pub weight: f64,
}

impl Resize {
    /// Taps of output `index` along `axis` (0 vertical, 1 horizontal) of a map of `input` pixels, at least 1.
    pub fn taps(&self, axis: usize, input: usize, index: usize) -> Taps {
        let output = self.size[axis];
        let step = self.step.map(|step| step[axis]);
        let source = match self.mode {
            ResizeMode::Nearest => {
                let step = step.map_or(input as f32 / output as f32, |step| step as f32);
                let low = ((index as f32 * step) as usize).min(input - 1);
                return Taps { low, high: low, weight: 0.0 };
            }
            ResizeMode::Bilinear { align_corners: true } => {
                (index * (input - 1)) as f64 / output.saturating_sub(1).max(1) as f64
            }
            ResizeMode::Bilinear { align_corners: false } => {
                let step = step.unwrap_or(input as f64 / output as f64);
                ((index as f64 + 0.5) * step - 0.5).max(0.0)
            }
            ResizeMode::Blocks => {
                let block = output / input;
                index.saturating_sub(block / 2) as f64 / block as f64
            }
        };
        let low = (source as usize).min(input - 1);
        Taps { low, high: (low + 1).min(input - 1), weight: (source - low as f64).clamp(0.0, 1.0) }
    }
}

impl Operator for Resize {
    const NAME: &'static str = "resize";

    fn infer(&self, inputs: &[ValueType]) -> Inferred {
        expect_inputs(inputs, 1)?;
        let x = expect_rank(inputs, 0, 4, "[B, H, W, C]")?;
        let y = inputs[0].with_shape([x[0], self.size[0], self.size[1], x[3]]);
        if x[1] * x[2] == 0 && self.size[0] * self.size[1] != 0 {
            return Err(format!("map {x} has no pixels to make {y} from"));
        }
        let whole = |axis: usize| x[1 + axis] > 0 && self.size[axis].is_multiple_of(x[1 + axis]);
        if self.mode == ResizeMode::Blocks && !(whole(0) && whole(1) && self.size[0] * self.size[1] > 0) {
            return Err(format!("pixels of {x} do not become whole blocks of {y}"));
        }
        if self.step.is_some_and(|step| !step.iter().all(|s| s.is_finite() && *s > 0.0)) {
            return Err(format!("step {:?} from {x} to {y} must be positive", self.step));
        }
        Ok(vec![y])
    }

    fn reference(&self, inputs: &[&Tensor<f64>]) -> Vec<Tensor<f64>> {
        let x = inputs[0];
        let shape = x.shape();
        vec![Tensor::from_fn([shape[0], self.size[0], self.size[1], shape[3]], |index| {
            let [b, row, column, c] = [index[0], index[1], index[2], index[3]];
            let (v, h) = (self.taps(0, shape[1], row), self.taps(1, shape[2], column));
            let (fy, fx) = (v.weight, h.weight);
            let at = |y, x_| x.at(&[b, y, x_, c]);
            (1.0 - fy) * ((1.0 - fx) * at(v.low, h.low) + fx * at(v.low, h.high))
                + fy * ((1.0 - fx) * at(v.high, h.low) + fx * at(v.high, h.high))
        })]
    }

    fn backward(&self, b: &mut Builder, site: &Backward<'_>) -> Result<Vec<Option<ValueId>>> {
        let x = b.shape(site.inputs[0]);
        let grad = ResizeGrad { mode: self.mode, size: [x[1], x[2]], step: self.step };
        Ok(vec![Some(b.node(&site.named("dx"), grad, &[site.grad()?])?)])
    }

    fn flops(&self, _: &[ValueType], outputs: &[ValueType]) -> u64 {
        let per_output = if self.mode == ResizeMode::Nearest { 0 } else { 7 };
        per_output * outputs[0].shape.len() as u64
    }

    fn cases() -> Vec<Case> {
        let [half, aligned] = [false, true].map(|align_corners| ResizeMode::Bilinear { align_corners });
        let case = |name: &str, mode, step, size, shape: &[usize]| {
            let tolerance = if mode == ResizeMode::Nearest { Tolerance::EXACT } else { Tolerance::POINTWISE };
            Case::new(name, Resize { mode, size, step }, &[shape]).tolerance(tolerance)
        };
        vec![
            case("nearest_one", ResizeMode::Nearest, None, [1, 1], &[1, 1, 1, 1]),
            case("nearest_odd", ResizeMode::Nearest, None, [9, 4], &[2, 5, 7, 3]),
            case("nearest_planar", ResizeMode::Nearest, None, [26, 50], &[3, 13, 26, 1]),
            case("nearest_step", ResizeMode::Nearest, Some([0.5; 2]), [14, 18], &[1, 7, 9, 16]),
            case("half_odd", half, None, [5, 7], &[2, 2, 3, 5]),
            case("half_one_pixel", half, None, [3, 4], &[1, 1, 1, 3]),
            case("half_same", half, None, [3, 4], &[1, 3, 4, 9]).tolerance(Tolerance::EXACT),
            case("half_down", half, None, [4, 5], &[1, 9, 13, 33]),
            case("half_step", half, Some([0.5; 2]), [6, 10], &[1, 3, 5, 17]),
            case("half_step_down", half, Some([2.0; 2]), [3, 4], &[1, 7, 9, 8]),
            case("half_planar", half, Some([0.5; 2]), [26, 34], &[70, 13, 17, 1]),
            // Far from the first pixel a coordinate rounded to f32 would cost the weights most of their
            // digits.
            case("half_wide", half, None, [2, 701], &[1, 2, 997, 1]),
            case("half_empty", half, None, [6, 10], &[0, 3, 5, 2]),
            case("half_to_nothing", half, None, [0, 10], &[1, 3, 5, 2]),
            case("aligned_odd", aligned, None, [13, 9], &[2, 5, 7, 2]),
            case("aligned_many", aligned, None, [13, 9], &[2, 5, 7, 21]),
            case("aligned_to_one", aligned, None, [1, 1], &[1, 5, 6, 2]),
            case("blocks_x2", ResizeMode::Blocks, None, [10, 14], &[2, 5, 7, 19]),
            case("blocks_x3", ResizeMode::Blocks, None, [9, 3], &[1, 3, 1, 2]),
            case("blocks_same", ResizeMode::Blocks, None, [3, 4], &[1, 3, 4, 9]).tolerance(Tolerance::EXACT),
            case("fpn_x2", ResizeMode::Nearest, None, [50, 84], &[1, 25, 42, 256]).bench(),
            case("semantic_x2", half, Some([0.5; 2]), [100, 168], &[1, 50, 84, 256]).bench(),
            case("masks_x2", half, Some([0.5; 2]), [200, 336], &[20, 100, 168, 1]).bench(),
        ]
    }
}

/// The gradient of [`Resize`]: its transpose, `[B, P, Q, C]` to `[B, size[0], size[1], C]`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ResizeGrad {
    /// Interpolation of the resize.
    pub mode: ResizeMode,
    /// Size of what was resized.
    pub size: [usize; 2],
    /// See [`Resize::step`].
    pub step: Option<[f64; 2]>,
}

impl ResizeGrad {
    /// The operator that is differentiated, given the size of its result.
    pub fn forward(&self, size: [usize; 2]) -> Resize {
        Resize { mode: self.mode, size, step: self.step }
    }
}

impl Operator for ResizeGrad {
    const NAME: &'static str = "resize_grad";
    const GRADIENT: Gradient = Gradient::SECOND;

    fn infer(&self, inputs: &[ValueType]) -> Inferred {
        expect_inputs(inputs, 1)?;
        let dy = expect_rank(inputs, 0, 4, "[B, P, Q, C]")?;
        let dx = inputs[0].with_shape([dy[0], self.size[0], self.size[1], dy[3]]);
        self.forward([dy[1], dy[2]]).infer(&[dx])?;
        Ok(vec![dx])
    }

    fn reference(&self, inputs: &[&Tensor<f64>]) -> Vec<Tensor<f64>> {
        let dy = inputs[0];
        let [batch, p, q, channels] = [0, 1, 2, 3].map(|axis| dy.shape()[axis]);
        let forward = self.forward([p, q]);
        let mut dx = Tensor::zeros([batch, self.size[0], self.size[1], channels]);
        for (i, &grad) in dy.data().iter().enumerate() {
            let (c, column, row, b) =
                (i % channels, i / channels % q, i / channels / q % p, i / channels / q / p);
            let (v, h) = (forward.taps(0, self.size[0], row), forward.taps(1, self.size[1], column));
            for (y, vertical) in [(v.low, 1.0 - v.weight), (v.high, v.weight)] {
                for (x, horizontal) in [(h.low, 1.0 - h.weight), (h.high, h.weight)] {
                    let at = [b, y, x, c];
                    dx.set(&at, dx.at(&at) + grad * vertical * horizontal);
                }
            }
        }
        vec![dx]
    }

    fn flops(&self, inputs: &[ValueType], _: &[ValueType]) -> u64 {
        let per_input = if self.mode == ResizeMode::Nearest { 1 } else { 8 };
        per_input * inputs[0].shape.len() as u64
    }

    fn cases() -> Vec<Case> {
        let [half, aligned] = [false, true].map(|align_corners| ResizeMode::Bilinear { align_corners });
        let case = |name: &str, mode, step, size, shape: &[usize]| {
            Case::new(name, ResizeGrad { mode, size, step }, &[shape]).tolerance(Tolerance {
                relative_l2: 5e-7,
                reason: "f32 sums of up to 64 terms with f32 weights: a few roundings of 6e-8 each",
            })
        };
        let nearest = ResizeMode::Nearest;
        vec![
            case("nearest_one", nearest, None, [1, 1], &[1, 1, 1, 1]),
            case("nearest_odd", nearest, None, [5, 7], &[2, 9, 4, 3]),
            case("nearest_planar", nearest, None, [13, 26], &[3, 26, 50, 1]),
            case("nearest_many", nearest, Some([0.5; 2]), [7, 9], &[1, 14, 18, 16]),
            case("half_odd", half, None, [2, 3], &[2, 5, 7, 5]),
            case("half_one_pixel", half, None, [1, 1], &[1, 3, 4, 3]),
            case("half_same", half, None, [3, 4], &[1, 3, 4, 9]),
            case("half_down", half, None, [9, 13], &[1, 4, 5, 33]),
            case("half_step", half, Some([0.5; 2]), [3, 5], &[1, 6, 10, 17]),
            case("half_step_down", half, Some([2.0; 2]), [7, 9], &[1, 3, 4, 8]),
            case("half_planar", half, Some([0.5; 2]), [13, 17], &[70, 26, 34, 1]),
            case("half_planar_x4", half, None, [9, 37], &[5, 36, 148, 1]),
            case("half_planar_odd", half, None, [21, 33], &[2, 50, 95, 1]),
            case("half_planar_down", half, None, [21, 95], &[2, 11, 40, 1]),
            case("half_segments", half, Some([0.5; 2]), [19, 40], &[2, 38, 80, 300]),
            case("half_empty", half, None, [3, 5], &[0, 6, 10, 2]),
            case("half_from_nothing", half, None, [3, 5], &[1, 0, 10, 2]),
            case("aligned_odd", aligned, None, [5, 7], &[2, 13, 9, 2]),
            case("aligned_many", aligned, None, [5, 7], &[2, 13, 9, 21]),
            case("aligned_from_one", aligned, None, [5, 6], &[1, 1, 1, 2]),
            case("blocks_x2", ResizeMode::Blocks, None, [5, 7], &[2, 10, 14, 19]),
            case("fpn_x2", nearest, None, [25, 42], &[1, 50, 84, 256]).bench(),
            case("semantic_x2", half, Some([0.5; 2]), [50, 84], &[1, 100, 168, 256]).bench(),
            case("masks_x2", half, Some([0.5; 2]), [100, 168], &[20, 200, 336, 1]).bench(),
        ]
    }
}
