//! Types of values: shape, element type, and what kind of thing a value is.

use crate::tensor::{DType, Shape};
use serde::{Deserialize, Serialize};
use std::fmt;

/// What kind of thing a value is. A back end that stores values in fewer bits decides by this and by nothing
/// else: never by a shape.
///
/// Every operator says the role of its results. A result that is its operand in another form keeps the role;
/// of several operands that are joined, the first that is no weight decides ([`Role::of`]). What an operator
/// cannot know is an attribute ([`MatMul`](super::MatMul)).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Role {
    /// Feature maps, mask logits and soft masks, and their gradients. They are nearly all of the memory and
    /// of its traffic, and what reads them sums over many: they may take the precision's storage type.
    Map,
    /// Rows of objects: kernels, pooled features, class logits, and their gradients. f32, as they are few and
    /// the sums of mask pooling leave the range of f16.
    Rows,
    /// Parameters, what is computed of parameters alone, and gradients of filters. f32: a step of training is
    /// often less than half of the last digit that a 16-bit type keeps of a weight, which would then never
    /// change. Constants among them are packed once, in a type of the kernel's choice.
    Weight,
    /// What is compared, counted with or added up to one number: costs, losses and their seeds, statistics,
    /// coordinates, offsets, sums over a whole batch. Never stored shorter than f32.
    Exact,
    /// Indices: slots, labels, places. i32, and the only role of an i32.
    Index,
}

impl Role {
    /// The role of what joins these operands element by element: that of the first that is no
    /// [`Weight`](Role::Weight), as a parameter takes part in any computation without making its result one.
    pub fn of(operands: &[ValueType]) -> Role {
        let role = operands.iter().map(|ty| ty.role).find(|&role| role != Role::Weight);
        role.unwrap_or(Role::Weight)
    }
}

/// Shape, element type and role of a value.
///
/// Two types are equal if all three are: [`Graph::verify`](crate::graph::Graph::verify) holds every value to
/// the very type that its operator infers, so that no pass loses a role. Operands need not agree in roles:
/// whether one fits is asked by [`ValueType::is_like`]. A role is no part of a type's text, nor of the keys
/// that are made of it: a back end has turned it into an element type by then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ValueType {
    /// Dimensions.
    pub shape: Shape,
    /// Element type.
    pub dtype: DType,
    /// What kind of thing it is.
    pub role: Role,
}

impl ValueType {
    /// A float value of this role.
    fn float(shape: impl Into<Shape>, role: Role) -> Self {
        ValueType { shape: shape.into(), dtype: DType::F32, role }
    }

    /// A feature map, or masks: [`Role::Map`].
    pub fn map(shape: impl Into<Shape>) -> Self {
        ValueType::float(shape, Role::Map)
    }

    /// Rows of objects: [`Role::Rows`].
    pub fn rows(shape: impl Into<Shape>) -> Self {
        ValueType::float(shape, Role::Rows)
    }

    /// A parameter or what becomes of some: [`Role::Weight`].
    pub fn weight(shape: impl Into<Shape>) -> Self {
        ValueType::float(shape, Role::Weight)
    }

    /// A value that is never stored shorter than f32: [`Role::Exact`].
    pub fn exact(shape: impl Into<Shape>) -> Self {
        ValueType::float(shape, Role::Exact)
    }

    /// Indices: [`Role::Index`].
    pub fn index(shape: impl Into<Shape>) -> Self {
        ValueType { shape: shape.into(), dtype: DType::I32, role: Role::Index }
    }

    /// The same kind of value in another shape.
    pub fn with_shape(self, shape: impl Into<Shape>) -> Self {
        ValueType { shape: shape.into(), ..self }
    }

    /// Whether both have one shape and one element type, whatever their roles.
    pub fn is_like(&self, other: &ValueType) -> bool {
        (self.shape, self.dtype) == (other.shape, other.dtype)
    }

    /// Size in bytes.
    pub fn bytes(&self) -> usize {
        self.shape.len() * self.dtype.size()
    }
}

impl fmt::Display for ValueType {
    /// Element type and shape.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.dtype.name(), self.shape)
    }
}
