//! Features of boxes.

use super::{
    Gradient, Inferred, Operator, Role, ValueType,
    case::{Case, Filling},
    expect_rank,
};
use crate::tensor::Tensor;
use serde::{Deserialize, Serialize};

/// A region whose sides are no numbers, or of more pixels of its level than any map has, is empty.
const MOST_PIXELS: f32 = 1e6;

/// What lies in a box, as a map of `size` x `size` bins: the mean of bilinear samples within each (He et al.,
/// *Mask R-CNN*, section 3). A box is looked for in the level of a pyramid that suits its size (Lin et al.,
/// *Feature Pyramid Networks*, equation 1): the first up to twice `finest` pixels, the root of width times
/// height, and each following one to twice as many.
///
/// Inputs: levels `[B, H, W, C]`, each at twice the stride of the one before; boxes `[B, N, 4]` in pixels of
/// the image. Output: `[B N, size, size, C]`.
///
/// Pixels have their centres at halves (upstream's `aligned`). A bin has as many samples along an axis as it
/// has pixels, rounded up (`sampling_ratio` 0). A sample between the outermost centres and one pixel beyond
/// them takes the outermost pixel; further out it is zero. A box without width or height, or one that is
/// turned over, has no samples along that axis: its bins are zero.
///
/// Source: `mmcv/ops/csrc/pytorch/cpu/roi_align.cpp`; the rule of levels is mmdet's `SingleRoIExtractor`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct RoiAlign {
    /// Bins along a side.
    pub size: usize,
    /// Pixels of the image between those of the first level.
    pub stride: usize,
    /// See above.
    pub finest: f32,
    /// Of the result: a map that convolutions read, or rows of pooled features.
    pub role: Role,
}

/// The samples of a box along one axis.
#[derive(Clone, Copy, Debug)]
pub struct Samples {
    start: f32,
    bin: f32,
    /// How many each bin has.
    pub count: usize,
}

/// Two pixels along an axis and their shares in a sample.
pub type Taps = [(usize, f32); 2];

impl RoiAlign {
    /// The level of so many that a box is looked for in.
    pub fn level(&self, b: [f32; 4], levels: usize) -> usize {
        let side = ((b[2] - b[0]) * (b[3] - b[1])).sqrt();
        let level = (side / self.finest + 1e-6).log2().floor();
        // NaN is level 0, where it has no samples.
        (level.max(0.0) as usize).min(levels - 1)
    }

    /// The samples between two coordinates of a box in a level.
    pub fn samples(&self, level: usize, low: f32, high: f32) -> Samples {
        let scale = 1.0 / (self.stride << level) as f32;
        let (start, end) = (low * scale - 0.5, high * scale - 0.5);
        let extent = end - start;
        let bin = extent / self.size as f32;
        let sound = start.abs() < MOST_PIXELS && extent < MOST_PIXELS;
        // Upstream refuses boxes that are turned over; as floats, such counts and NaN become 0.
        Samples { start, bin, count: if sound { bin.ceil() as usize } else { 0 } }
    }
}

impl Samples {
    /// Where sample `index` of a bin falls on an axis of so many pixels; `None` outside.
    pub fn taps(&self, bin: usize, index: usize, pixels: usize) -> Option<Taps> {
        let within = (index as f32 + 0.5) * self.bin / self.count as f32;
        let at = self.start + bin as f32 * self.bin + within;
        if pixels == 0 || at < -1.0 || at > pixels as f32 {
            return None;
        }
        let at = at.max(0.0);
        let low = at as usize;
        if low >= pixels - 1 {
            return Some([(pixels - 1, 1.0), (pixels - 1, 0.0)]);
        }
        let share = at - low as f32;
        Some([(low, 1.0 - share), (low + 1, share)])
    }
}

/// The four pixels around a point: those of a row with those of a column.
fn pairs(v: Taps, h: Taps) -> [((usize, f32), (usize, f32)); 4] {
    [(v[0], h[0]), (v[0], h[1]), (v[1], h[0]), (v[1], h[1])]
}

impl Operator for RoiAlign {
    const NAME: &'static str = "roi_align";
    const GRADIENT: Gradient = Gradient::None("two-stage detectors are not trained");

    fn infer(&self, inputs: &[ValueType]) -> Inferred {
        if inputs.len() < 2 {
            return Err(format!("takes levels and boxes, was given {} inputs", inputs.len()));
        }
        let last = inputs.len() - 1;
        let boxes = expect_rank(inputs, last, 3, "[B, N, 4]")?;
        let first = expect_rank(inputs, 0, 4, "[B, H, W, C]")?;
        for index in 0..last {
            let level = expect_rank(inputs, index, 4, "[B, H, W, C]")?;
            if [level[0], level[3]] != [first[0], first[3]] {
                return Err(format!("level {level} is not of {first}"));
            }
        }
        if boxes[0] != first[0] || boxes[2] != 4 || self.stride == 0 || self.size == 0 {
            return Err(format!("boxes {boxes} are not of {first}, or bins and stride of {self:?} are none"));
        }
        let shape = [boxes[0] * boxes[1], self.size, self.size, first[3]];
        Ok(vec![ValueType { role: self.role, ..inputs[0].with_shape(shape) }])
    }

    fn reference(&self, inputs: &[&Tensor<f64>]) -> Vec<Tensor<f64>> {
        let (boxes, levels) = (inputs[inputs.len() - 1], &inputs[..inputs.len() - 1]);
        let (channels, size, count) = (levels[0].shape()[3], self.size, boxes.shape()[1]);
        let rows = boxes.shape()[0] * count;
        let mut y = Tensor::zeros([rows, size, size, channels]);
        for row in 0..rows {
            let b = [0, 1, 2, 3].map(|side| boxes.data()[4 * row + side] as f32);
            let level = self.level(b, levels.len());
            let (map, shape) = (levels[level], levels[level].shape());
            let (across, down) = (self.samples(level, b[0], b[2]), self.samples(level, b[1], b[3]));
            for bin in 0..size * size {
                let out = &mut y.data_mut()[(row * size * size + bin) * channels..][..channels];
                for sample in 0..down.count * across.count {
                    let v = down.taps(bin / size, sample / across.count, shape[1]);
                    let h = across.taps(bin % size, sample % across.count, shape[2]);
                    let (Some(v), Some(h)) = (v, h) else { continue };
                    for ((row_at, down_share), (column_at, across_share)) in pairs(v, h) {
                        let share = f64::from(down_share) * f64::from(across_share);
                        let at = ((row / count * shape[1] + row_at) * shape[2] + column_at) * channels;
                        for (c, out) in out.iter_mut().enumerate() {
                            *out += share * map.data()[at + c] / (down.count * across.count) as f64;
                        }
                    }
                }
            }
        }
        vec![y]
    }

    fn flops(&self, _: &[ValueType], outputs: &[ValueType]) -> u64 {
        // Two samples along each axis of a bin, of four pixels each.
        2 * 16 * outputs[0].shape.len() as u64
    }

    fn cases() -> Vec<Case> {
        let case = |name: &str, size, levels: &[[usize; 4]], count: usize, far: f64| {
            let op = RoiAlign { size, stride: 4, finest: 10.0, role: Role::Map };
            let boxes = [levels[0][0], count, 4];
            let mut shapes: Vec<&[usize]> = levels.iter().map(|level| &level[..]).collect();
            shapes.push(&boxes);
            let last = levels.len();
            Case::new(name, op, &shapes).exact(last).fill(last, Filling::Uniform(-0.2 * far, far))
        };
        let pyramid = [[1, 200, 336, 256], [1, 100, 168, 256], [1, 50, 84, 256], [1, 25, 42, 256]];
        let bench = |name: &str, size, count| {
            let mut bench = case(name, size, &pyramid, count, 1400.0).bench();
            let role = if size == 7 { Role::Rows } else { Role::Map };
            bench.op = RoiAlign { size, stride: 4, finest: 56.0, role }.into();
            bench
        };
        let of_rows = |mut case: Case, size| {
            case.op = RoiAlign { size, stride: 4, finest: 10.0, role: Role::Rows }.into();
            case
        };
        vec![
            case("one", 1, &[[1, 1, 1, 1]], 1, 6.0),
            of_rows(case("rows", 3, &[[2, 9, 7, 24], [2, 5, 4, 24]], 9, 40.0), 3),
            of_rows(case("odd_rows", 2, &[[1, 5, 6, 7]], 4, 30.0), 2),
            case("odd", 3, &[[2, 7, 9, 19]], 13, 40.0),
            case("levels", 7, &[[2, 12, 16, 40], [2, 6, 8, 40], [2, 3, 4, 40]], 25, 60.0),
            case("outside", 2, &[[1, 5, 5, 32]], 30, 90.0),
            case("empty_boxes", 4, &[[1, 5, 5, 8]], 3, 0.0).fill(1, Filling::Constant(5.0)),
            case("no_boxes", 7, &[[2, 5, 5, 8]], 0, 20.0),
            bench("boxes", 7, 300),
            bench("masks", 14, 40),
        ]
    }
}
