//! What a network that takes more than pixels is told of a photo.

use crate::error::{Error, Result};
use crate::plan::Operand;
use crate::tensor::DType;

/// Numbers for inputs of a network, by the inputs' names. A network need not have them.
#[derive(Clone, Copy, Debug, Default)]
pub struct Told<'a>(pub &'a [(&'a str, &'a [f32])]);

impl<'a> Told<'a> {
    /// The numbers for an input, if there are some.
    ///
    /// # Errors
    /// [`Error::Graph`] if the input takes others, or another count.
    pub(super) fn of(self, (name, operand): &(String, Operand)) -> Result<Option<&'a [f32]>> {
        let Some((_, values)) = self.0.iter().find(|(known, _)| known == name) else { return Ok(None) };
        if operand.ty.dtype != DType::F32 || operand.ty.shape.len() != values.len() {
            let (ty, count) = (operand.ty, values.len());
            return Err(Error::Graph(format!("input `{name}` is {ty}, and told {count} numbers of f32")));
        }
        Ok(Some(values))
    }
}
