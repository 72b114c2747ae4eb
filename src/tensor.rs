//! Shapes, element types and host tensors.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::ops::Index;

/// Largest number of dimensions of any value.
pub const MAX_RANK: usize = 6;

/// Dimensions of a value, row-major, last dimension fastest. Small and `Copy`, so that plans can hand
/// shapes around at run time without allocating.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "Vec<usize>", try_from = "Vec<usize>")]
pub struct Shape {
    rank: u8,
    dims: [usize; MAX_RANK],
}

impl Shape {
    /// A shape from its dimensions.
    ///
    /// # Panics
    /// If there are more than [`MAX_RANK`] dimensions: shapes come from model code, never from input.
    pub fn new(dims: &[usize]) -> Self {
        assert!(dims.len() <= MAX_RANK, "shape {dims:?} has more than {MAX_RANK} dimensions");
        let mut stored = [1; MAX_RANK];
        stored[..dims.len()].copy_from_slice(dims);
        Shape { rank: dims.len() as u8, dims: stored }
    }

    /// The dimensions as a slice.
    pub fn dims(&self) -> &[usize] {
        &self.dims[..self.rank as usize]
    }

    /// Number of dimensions.
    pub fn rank(&self) -> usize {
        self.rank as usize
    }

    /// Number of elements; 1 for a scalar (rank 0).
    pub fn len(&self) -> usize {
        self.dims().iter().product()
    }

    /// True if some dimension is 0.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The last dimension (channels of an NHWC activation), 1 for a scalar.
    pub fn last(&self) -> usize {
        self.dims().last().copied().unwrap_or(1)
    }
}

impl Index<usize> for Shape {
    type Output = usize;
    fn index(&self, axis: usize) -> &usize {
        &self.dims()[axis]
    }
}

impl From<&[usize]> for Shape {
    fn from(dims: &[usize]) -> Self {
        Shape::new(dims)
    }
}

impl<const N: usize> From<[usize; N]> for Shape {
    fn from(dims: [usize; N]) -> Self {
        Shape::new(&dims)
    }
}

impl From<Shape> for Vec<usize> {
    fn from(shape: Shape) -> Self {
        shape.dims().to_vec()
    }
}

impl TryFrom<Vec<usize>> for Shape {
    type Error = String;

    /// For what was written: a shape that is too long is an error there, not a mistake in code.
    fn try_from(dims: Vec<usize>) -> Result<Self, String> {
        if dims.len() > MAX_RANK {
            return Err(format!("shape {dims:?} has more than {MAX_RANK} dimensions"));
        }
        Ok(Shape::new(&dims))
    }
}

impl fmt::Debug for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[")?;
        for (i, d) in self.dims().iter().enumerate() {
            if i > 0 {
                f.write_str(", ")?;
            }
            write!(f, "{d}")?;
        }
        f.write_str("]")
    }
}

/// Element type of a value. Graphs speak of floats as `F32`; a plan may store them in fewer bits
/// (`Plan::build`). Checkpoints in f16 or bf16 are widened when loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum DType {
    /// 32-bit float.
    F32,
    /// IEEE half: 5 bits of exponent, 11 of significand.
    F16,
    /// bfloat16: 8 bits of exponent, 8 of significand.
    BF16,
    /// 32-bit signed integer (indices).
    I32,
    /// 8-bit unsigned integer: a code of [`Levels`](crate::ops::levels::Levels). No graph has it; plans for
    /// CPUs store what quantized convolutions exchange so.
    U8,
}

impl DType {
    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            DType::F32 | DType::I32 => 4,
            DType::F16 | DType::BF16 => 2,
            DType::U8 => 1,
        }
    }

    /// Lower-case name, as in plan dumps.
    pub fn name(self) -> &'static str {
        match self {
            DType::F32 => "f32",
            DType::F16 => "f16",
            DType::BF16 => "bf16",
            DType::I32 => "i32",
            DType::U8 => "u8",
        }
    }
}

/// How feature maps are stored and multiplied. Accumulation, norms, softmax and everything of one row an
/// object are f32 in each.
///
/// A CPU knows two of them: bf16, where it has instructions that multiply it, and f32, which it takes for the
/// others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Precision {
    /// f32 storage and f32 multiplication: for parity with reference data.
    F32,
    /// f32 storage; convolutions on tensor cores, by three TF32 products for each f32 one, which keep 22 bits
    /// of each factor.
    Tf32x3,
    /// f16 maps and filters on tensor cores. Rows of objects are multiplied in TF32. What a GPU takes by
    /// itself.
    #[default]
    F16,
    /// bf16 maps and filters. Rows of objects are multiplied in TF32 on a GPU, in f32 on a CPU.
    Bf16,
}

impl Precision {
    /// All of them.
    pub const ALL: [Precision; 4] = [Precision::F32, Precision::Tf32x3, Precision::F16, Precision::Bf16];

    /// Element type of feature maps, mask logits and filters.
    pub fn storage(self) -> DType {
        match self {
            Precision::F32 | Precision::Tf32x3 => DType::F32,
            Precision::F16 => DType::F16,
            Precision::Bf16 => DType::BF16,
        }
    }

    /// Lower-case name.
    pub fn name(self) -> &'static str {
        match self {
            Precision::Tf32x3 => "tf32x3",
            other => other.storage().name(),
        }
    }

    /// Whether feature maps and filters are stored in 16 bits.
    pub fn is_half(self) -> bool {
        self.storage() != DType::F32
    }
}

/// A dense host tensor. `T` is `f32` for weights and results and `f64` for operator references.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor<T = f32> {
    shape: Shape,
    data: Vec<T>,
}

impl<T: Copy + Default> Tensor<T> {
    /// A tensor of `shape` over `data`.
    ///
    /// # Panics
    /// If the number of elements differs; readers of foreign files check before they build tensors.
    pub fn new(shape: impl Into<Shape>, data: Vec<T>) -> Self {
        let shape = shape.into();
        assert_eq!(shape.len(), data.len(), "shape {shape} needs {} elements", shape.len());
        Tensor { shape, data }
    }

    /// A tensor of zeros.
    pub fn zeros(shape: impl Into<Shape>) -> Self {
        let shape = shape.into();
        Tensor { shape, data: vec![T::default(); shape.len()] }
    }

    /// A tensor whose element at each multi-index is `f(index)`.
    pub fn from_fn(shape: impl Into<Shape>, mut f: impl FnMut(&[usize]) -> T) -> Self {
        let shape = shape.into();
        let mut index = [0usize; MAX_RANK];
        let rank = shape.rank();
        let mut data = Vec::with_capacity(shape.len());
        for _ in 0..shape.len() {
            data.push(f(&index[..rank]));
            for axis in (0..rank).rev() {
                index[axis] += 1;
                if index[axis] < shape[axis] {
                    break;
                }
                index[axis] = 0;
            }
        }
        Tensor { shape, data }
    }

    /// The shape.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// The elements, row-major.
    pub fn data(&self) -> &[T] {
        &self.data
    }

    /// The elements, row-major, for writing.
    pub fn data_mut(&mut self) -> &mut [T] {
        &mut self.data
    }

    /// The elements, by value.
    pub fn into_data(self) -> Vec<T> {
        self.data
    }

    /// The element at a multi-index.
    ///
    /// # Panics
    /// If the index is out of range.
    pub fn at(&self, index: &[usize]) -> T {
        self.data[self.offset(index)]
    }

    /// Writes the element at a multi-index.
    ///
    /// # Panics
    /// If the index is out of range.
    pub fn set(&mut self, index: &[usize], value: T) {
        let offset = self.offset(index);
        self.data[offset] = value;
    }

    /// The same elements under another shape.
    ///
    /// # Panics
    /// If the number of elements differs.
    pub fn reshape(self, shape: impl Into<Shape>) -> Self {
        Tensor::new(shape, self.data)
    }

    /// The tensor with its axes reordered: axis `i` of the result is axis `axes[i]` of `self`.
    pub fn permute(&self, axes: &[usize]) -> Self {
        assert_eq!(axes.len(), self.shape.rank(), "permutation {axes:?} of {}", self.shape);
        let mut stride = [1usize; MAX_RANK];
        for axis in (0..axes.len().saturating_sub(1)).rev() {
            stride[axis] = stride[axis + 1] * self.shape[axis + 1];
        }
        let dims: Vec<usize> = axes.iter().map(|&a| self.shape[a]).collect();
        Tensor::from_fn(dims.as_slice(), |index| {
            self.data[index.iter().zip(axes).map(|(i, &a)| i * stride[a]).sum::<usize>()]
        })
    }

    fn offset(&self, index: &[usize]) -> usize {
        assert_eq!(index.len(), self.shape.rank(), "index {index:?} into {}", self.shape);
        index.iter().zip(self.shape.dims()).fold(0, |acc, (&i, &d)| {
            assert!(i < d, "index {index:?} into {}", self.shape);
            acc * d + i
        })
    }
}

impl Tensor<f32> {
    /// The tensor in double precision, for references.
    pub fn to_f64(&self) -> Tensor<f64> {
        Tensor { shape: self.shape, data: self.data.iter().map(|&v| f64::from(v)).collect() }
    }
}

impl Tensor<f64> {
    /// The tensor rounded to single precision.
    pub fn to_f32(&self) -> Tensor<f32> {
        Tensor { shape: self.shape, data: self.data.iter().map(|&v| v as f32).collect() }
    }
}
