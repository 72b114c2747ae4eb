//! What kernel choice may look at.

use super::{Operand, Place, Step};
use crate::ops::{Op, ValueType};
use std::fmt;

/// What a back end may look at when it chooses a kernel: a pure function of this makes plans printable.
#[derive(Clone, Copy, Debug)]
pub struct Site<'a> {
    /// Operator and attributes.
    pub op: &'a Op,
    /// Operand types.
    pub inputs: &'a [ValueType],
    /// Which operands are constants (their packing is done once; their types are the graph's).
    pub constant: &'a [bool],
    /// Result types.
    pub outputs: &'a [ValueType],
}

impl fmt::Display for Site<'_> {
    /// Everything that a choice may depend on, as in
    /// `linear { .. } f32[1, 100, 256], const f32[256, 256] -> f32[1, 100, 256]`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} ", self.op.name(), self.op.attributes())?;
        for (i, (ty, constant)) in self.inputs.iter().zip(self.constant).enumerate() {
            write!(f, "{}{}{ty}", if i > 0 { ", " } else { "" }, if *constant { "const " } else { "" })?;
        }
        f.write_str(" -> ")?;
        self.outputs
            .iter()
            .enumerate()
            .try_for_each(|(i, ty)| write!(f, "{}{ty}", if i > 0 { ", " } else { "" }))
    }
}

/// A [`Site`] by value. Two are equal if their texts are: what a choice may depend on, which roles are not.
#[derive(Clone, Debug)]
pub struct OwnedSite {
    op: Op,
    inputs: Vec<ValueType>,
    constant: Vec<bool>,
    outputs: Vec<ValueType>,
}

impl PartialEq for OwnedSite {
    fn eq(&self, other: &Self) -> bool {
        self.site().to_string() == other.site().to_string()
    }
}

impl OwnedSite {
    /// The same, borrowed.
    pub fn site(&self) -> Site<'_> {
        Site { op: &self.op, inputs: &self.inputs, constant: &self.constant, outputs: &self.outputs }
    }
}

impl<P> Step<P> {
    /// The site that the step's kernel was chosen for.
    pub fn site(&self) -> OwnedSite {
        let types = |operands: &[Operand]| operands.iter().map(|o| o.ty).collect();
        OwnedSite {
            op: self.op.clone(),
            inputs: types(&self.inputs),
            constant: self.inputs.iter().map(|o| matches!(o.place, Place::Const(_))).collect(),
            outputs: types(&self.outputs),
        }
    }
}
