//! Reverse-mode differentiation as a rewrite: gradient nodes are appended to the same graph, so that the same
//! passes, planner and executors run them. What the backward nodes read of the forward pass simply lives
//! longer.

use super::{Builder, ValueId};
use crate::error::{Error, Result};
use crate::ops::{Backward, Binary, binary::BinaryKind};

/// Appends to the graph what computes the gradient of `sum over seeds of <gradient, value>` with respect to
/// each value of `wrt`.
///
/// A seed is a value and its upstream gradient: for a loss, one number (its weight). The gradient of a value
/// that no seed depends on is `None`. Contributions of several uses are added in reverse order of use.
///
/// # Errors
/// [`Error::Graph`] if an operator on the way has no gradient or a seed's gradient has another type than its
/// value; as [`Builder::node`].
pub fn gradients(
    b: &mut Builder,
    seeds: &[(ValueId, ValueId)],
    wrt: &[ValueId],
) -> Result<Vec<Option<ValueId>>> {
    let mut tape = Tape { needs: needs(b, wrt), grads: vec![None; b.graph().values().len()] };
    for &(value, grad) in seeds {
        tape.add(b, value, grad)?;
    }
    for index in (0..b.graph().nodes().len()).rev() {
        let node = b.graph().nodes()[index].clone();
        let grads: Vec<Option<ValueId>> = node.outputs.iter().map(|id| tape.grad(*id)).collect();
        let needs: Vec<bool> = node.inputs.iter().map(|id| tape.needs[id.index()]).collect();
        if grads.iter().all(Option::is_none) || !needs.contains(&true) {
            continue;
        }
        let name = b.graph().value(node.outputs[0]).name.clone();
        let site = Backward {
            name: &name,
            inputs: &node.inputs,
            outputs: &node.outputs,
            grads: &grads,
            needs: &needs,
        };
        let found = node.op.backward(b, &site)?;
        if found.len() != node.inputs.len() {
            let (op, given, wanted) = (node.op.name(), found.len(), node.inputs.len());
            return Err(Error::Graph(format!("{op} gives {given} gradients for {wanted} operands")));
        }
        for (&input, grad) in node.inputs.iter().zip(found) {
            if let Some(grad) = grad.filter(|_| tape.needs[input.index()]) {
                tape.add(b, input, grad)?;
            }
        }
    }
    Ok(wrt.iter().map(|&id| tape.grad(id)).collect())
}

/// Which values depend on those of `wrt`.
fn needs(b: &Builder, wrt: &[ValueId]) -> Vec<bool> {
    let mut needs = vec![false; b.graph().values().len()];
    wrt.iter().for_each(|id| needs[id.index()] = true);
    for node in b.graph().nodes() {
        if node.inputs.iter().any(|id| needs[id.index()]) {
            node.outputs.iter().for_each(|id| needs[id.index()] = true);
        }
    }
    needs
}

/// Gradients found so far, for the values of the forward graph.
struct Tape {
    needs: Vec<bool>,
    grads: Vec<Option<ValueId>>,
}

impl Tape {
    fn grad(&self, id: ValueId) -> Option<ValueId> {
        self.grads[id.index()]
    }

    fn add(&mut self, b: &mut Builder, value: ValueId, grad: ValueId) -> Result<()> {
        let (of, is) = (b.graph().value(value), b.graph().value(grad));
        if !of.ty.is_like(&is.ty) {
            return Err(Error::Graph(format!("`{}` is {} but its gradient {}", of.name, of.ty, is.ty)));
        }
        let sum = match self.grads[value.index()] {
            None => grad,
            Some(known) => {
                let name = format!("{}.grad", of.name);
                b.node(&name, Binary { kind: BinaryKind::Add }, &[known, grad])?
            }
        };
        self.grads[value.index()] = Some(sum);
        Ok(())
    }
}
