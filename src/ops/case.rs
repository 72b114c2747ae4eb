//! Test cases of operators: one list drives correctness tests, property tests and benches.

use super::{Op, ValueType};
use crate::tensor::Tensor;

/// How an input of a case is filled.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Filling {
    /// Uniform in `[low, high)`.
    Uniform(f64, f64),
    /// One value everywhere.
    Constant(f64),
    /// Indices, uniform from the first (included) to the second (not included).
    Index(i32, i32),
}

/// Largest error a fast path may show against the reference.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tolerance {
    /// Bound on `|fast - reference|_2 / |reference|_2` (absolute where the reference is all zero).
    pub relative_l2: f64,
    /// Why this bound holds.
    pub reason: &'static str,
}

impl Tolerance {
    /// Bit-exact: the operator moves or compares values and computes none.
    pub const EXACT: Tolerance = Tolerance { relative_l2: 0.0, reason: "moves values, computes none" };
    /// A few roundings per element.
    pub const POINTWISE: Tolerance =
        Tolerance { relative_l2: 3e-7, reason: "a few f32 roundings of 6e-8 per element" };
    /// f32 accumulation.
    pub const REDUCTION: Tolerance = Tolerance {
        relative_l2: 2e-6,
        reason: "f32 accumulation: error grows as sqrt(K) * 6e-8, K up to 20,000 terms in blocks",
    };
}

/// One run of one operator.
#[derive(Clone, Debug)]
pub struct Case {
    /// Short name, unique within the operator.
    pub name: String,
    /// Operator and attributes.
    pub op: Op,
    /// Input types.
    pub inputs: Vec<ValueType>,
    /// How each input is filled.
    pub fills: Vec<Filling>,
    /// Bound on the error of fast paths.
    pub tolerance: Tolerance,
    /// True if benches run it (the shapes of real layers).
    pub bench: bool,
}

impl Case {
    /// A case over float inputs of these shapes, filled uniformly in [-1, 1), judged by
    /// [`Tolerance::REDUCTION`]. Inputs of four dimensions are maps, all others rows: as a model has them.
    pub fn new(name: impl Into<String>, op: impl Into<Op>, shapes: &[&[usize]]) -> Self {
        Case {
            name: name.into(),
            op: op.into(),
            inputs: shapes.iter().map(|&shape| operand(shape)).collect(),
            fills: vec![Filling::Uniform(-1.0, 1.0); shapes.len()],
            tolerance: Tolerance::REDUCTION,
            bench: false,
        }
    }

    /// Fills input `index` otherwise; with indices, it is one of indices.
    pub fn fill(mut self, index: usize, fill: Filling) -> Self {
        if matches!(fill, Filling::Index(..)) {
            self.inputs[index] = ValueType::index(self.inputs[index].shape);
        }
        self.fills[index] = fill;
        self
    }

    /// Makes input `index` a map, whatever its rank: planes of one are rows to some operators.
    pub fn map(mut self, index: usize) -> Self {
        self.inputs[index] = ValueType::map(self.inputs[index].shape);
        self
    }

    /// Makes input `index` one that no back end stores shorter than f32.
    pub fn exact(mut self, index: usize) -> Self {
        self.inputs[index] = ValueType::exact(self.inputs[index].shape);
        self
    }

    /// Judges by another tolerance.
    pub fn tolerance(mut self, tolerance: Tolerance) -> Self {
        self.tolerance = tolerance;
        self
    }

    /// Marks the case as a real layer that benches run.
    pub fn bench(mut self) -> Self {
        self.bench = true;
        self
    }

    /// Types of the results.
    ///
    /// # Panics
    /// If the operator does not take these inputs: cases are sound.
    pub fn outputs(&self) -> Vec<ValueType> {
        self.op.infer(&self.inputs).expect("cases are sound")
    }

    /// Floating-point operations of the direct algorithm.
    ///
    /// # Panics
    /// As [`Case::outputs`].
    pub fn flops(&self) -> u64 {
        self.op.flops(&self.inputs, &self.outputs())
    }

    /// Values of operands and results: the work of what computes little.
    ///
    /// # Panics
    /// As [`Case::outputs`].
    pub fn values(&self) -> usize {
        self.inputs.iter().chain(&self.outputs()).map(|ty| ty.shape.len()).sum()
    }

    /// `op/name`.
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.op.name(), self.name)
    }

    /// The inputs: exact f32 values drawn from a SplitMix64 stream that depends on `seed` and the input's
    /// index alone. Indices are floats of the same value, as in references: who runs the case on a back end
    /// writes them as i32.
    pub fn make_inputs(&self, seed: u64) -> Vec<Tensor> {
        let make = |(i, (ty, fill)): (usize, (&ValueType, &Filling))| {
            let mut state = seed ^ (i as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
            Tensor::from_fn(ty.shape, |_| match *fill {
                Filling::Uniform(low, high) => (low + (high - low) * unit(&mut state)) as f32,
                Filling::Constant(value) => value as f32,
                Filling::Index(low, high) => (low + (f64::from(high - low) * unit(&mut state)) as i32) as f32,
            })
        };
        self.inputs.iter().zip(&self.fills).enumerate().map(make).collect()
    }
}

fn operand(shape: &[usize]) -> ValueType {
    if shape.len() == 4 { ValueType::map(shape) } else { ValueType::rows(shape) }
}

/// Next draw of a SplitMix64 stream, uniform in [0, 1).
fn unit(state: &mut u64) -> f64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^= z >> 31;
    (z >> 40) as f64 / (1u64 << 24) as f64
}

/// `|a - b|_2 / |b|_2`, or `|a - b|_2` if `b` is all zero. NaN counts as an infinite error unless both are
/// NaN.
pub fn relative_l2(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len(), "relative_l2 of {} and {} elements", a.len(), b.len());
    let (mut difference, mut norm) = (0.0f64, 0.0f64);
    for (&x, &y) in a.iter().zip(b) {
        if x.to_bits() == y.to_bits() || (x.is_nan() && y.is_nan()) {
            norm += if y.is_finite() { y * y } else { 0.0 };
            continue;
        }
        let d = x - y;
        if d.is_nan() {
            return f64::INFINITY;
        }
        difference += d * d;
        norm += y * y;
    }
    if norm == 0.0 { difference.sqrt() } else { (difference / norm).sqrt() }
}
