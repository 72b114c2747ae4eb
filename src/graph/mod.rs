//! The graph: static single assignment, static shapes, named values.
//!
//! A model function builds a [`Graph`] through a [`Builder`]; [`passes`] rewrite it; `plan` schedules it. A
//! value is defined once (by the caller, by a parameter or by a node) before it is used, and its type is
//! known from the start, so that memory can be laid out before anything runs.

pub mod autodiff;
pub mod builder;
mod handle;
pub mod passes;

pub use builder::Builder;
pub use handle::{InputId, OutputId, SegmentId, VariableId};

use crate::error::{Error, Result};
use crate::ops::{Op, ValueType};
use crate::tensor::{Shape, Tensor};
use serde::{Deserialize, Serialize};
use std::fmt::Write as _;

/// Index of a value in its graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ValueId(pub(crate) u32);

impl ValueId {
    /// Position among [`Graph::values`].
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// How a checkpoint tensor becomes a parameter. Checkpoints keep PyTorch's layouts; the graph has its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Layout {
    /// Taken as it is.
    Plain,
    /// Convolution weights: `[K, C, R, S]` (OIHW) becomes `[K, R, S, C]`.
    Filter,
    /// 1x1 convolution weights used as a matrix: `[N, C, 1, 1]` becomes `[N, C]`.
    Matrix,
    /// Weights of a linear layer used as a 1x1 convolution: `[K, C]` becomes `[K, 1, 1, C]`.
    Pointwise,
    /// Weights of a transposed convolution used as a 1x1 convolution to all pixels of a block:
    /// `[C, K, R, S]` becomes `[K R S, 1, 1, C]`.
    Transposed,
    /// Weights of a linear layer over a map of so many channels, which upstream reads channel by channel:
    /// `[N, C T]` becomes `[N, T C]`.
    Flattened(usize),
}

impl Layout {
    /// The parameter's shape, given the checkpoint's.
    pub fn apply_shape(self, upstream: &[usize]) -> Vec<usize> {
        match (self, upstream) {
            (Layout::Filter, &[k, c, r, s]) => vec![k, r, s, c],
            (Layout::Matrix, &[n, c, 1, 1]) => vec![n, c],
            (Layout::Pointwise, &[k, c]) => vec![k, 1, 1, c],
            (Layout::Transposed, &[c, k, r, s]) => vec![k * r * s, 1, 1, c],
            _ => upstream.to_vec(),
        }
    }

    /// Converts a checkpoint tensor.
    pub fn apply(self, tensor: Tensor) -> Tensor {
        let upstream = tensor.shape();
        let shape = Shape::new(&self.apply_shape(upstream.dims()));
        match self.exchanged(upstream.dims()) {
            Some([matrices, rows, columns]) => {
                Tensor::new(shape, transposed(&tensor, matrices, rows, columns))
            }
            None => tensor.reshape(shape),
        }
    }

    /// Converts back: `upstream` is the checkpoint's shape.
    pub fn invert(self, tensor: Tensor, upstream: &[usize]) -> Tensor {
        let shape = Shape::new(upstream);
        match self.exchanged(upstream) {
            Some([matrices, rows, columns]) => {
                Tensor::new(shape, transposed(&tensor, matrices, columns, rows))
            }
            None => tensor.reshape(shape),
        }
    }

    /// The matrices of the checkpoint that are transposed, their rows and columns; `None` if elements stay
    /// in their order.
    fn exchanged(self, upstream: &[usize]) -> Option<[usize; 3]> {
        match (self, upstream) {
            (Layout::Filter, &[k, c, r, s]) if r * s != 1 => Some([k, c, r * s]),
            (Layout::Transposed, &[c, k, r, s]) => Some([1, c, k * r * s]),
            (Layout::Flattened(channels), &[n, columns]) => Some([n, channels, columns / channels.max(1)]),
            _ => None,
        }
    }
}

/// The elements of a stack of matrices, each transposed.
fn transposed(tensor: &Tensor, matrices: usize, rows: usize, columns: usize) -> Vec<f32> {
    let source = tensor.data();
    let mut data = Vec::with_capacity(source.len());
    for matrix in 0..matrices {
        let matrix = &source[matrix * rows * columns..][..rows * columns];
        (0..columns).for_each(|column| data.extend((0..rows).map(|row| matrix[row * columns + column])));
    }
    data
}

/// A parameter: a checkpoint tensor by its upstream name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Param {
    /// Key in the official `state_dict`.
    pub key: String,
    /// Shape in the checkpoint.
    pub upstream_shape: Vec<usize>,
    /// Conversion to the graph's layout.
    pub layout: Layout,
}

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq)]
pub enum Source {
    /// The caller provides it at every run.
    Input,
    /// A parameter that stays as it is: what depends on such parameters alone is computed once.
    Param(Param),
    /// A value that lives in the arena for good and changes between runs, as in training. It begins as a
    /// parameter, or as zeros.
    Variable(Option<Param>),
    /// Output `output` of node `node`.
    Node {
        /// Position among [`Graph::nodes`].
        node: usize,
        /// Which of its outputs.
        output: usize,
    },
}

/// A value of the graph.
#[derive(Clone, Debug, PartialEq)]
pub struct Value {
    /// Name for people: the upstream module or tap it corresponds to.
    pub name: String,
    /// Shape and element type.
    pub ty: ValueType,
    /// Definition.
    pub source: Source,
}

/// One application of an operator.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// Operator and attributes.
    pub op: Op,
    /// Operands.
    pub inputs: Vec<ValueId>,
    /// Results, in the operator's order.
    pub outputs: Vec<ValueId>,
}

/// A computation: nodes in an order in which every value is defined before it is used.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Graph {
    pub(crate) values: Vec<Value>,
    pub(crate) nodes: Vec<Node>,
    pub(crate) outputs: Vec<(String, ValueId)>,
    /// Name and first node of each segment.
    pub(crate) segments: Vec<(String, usize)>,
    pub(crate) updates: Vec<(ValueId, ValueId)>,
}

impl Graph {
    /// All values; a [`ValueId`] is a position here.
    pub fn values(&self) -> &[Value] {
        &self.values
    }

    /// All nodes, in order.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// Named results.
    pub fn outputs(&self) -> &[(String, ValueId)] {
        &self.outputs
    }

    /// For each value, whether it is an input or a result: what callers write or read.
    pub fn seen_by_callers(&self) -> Vec<bool> {
        let mut seen: Vec<bool> =
            self.values.iter().map(|value| matches!(value.source, Source::Input)).collect();
        self.outputs.iter().for_each(|(_, id)| seen[id.index()] = true);
        seen
    }

    /// Marks values of which a view is marked, and the views of those that are.
    pub fn mark_views(&self, marked: &mut [bool]) {
        let mut viewed: Vec<usize> = (0..self.values.len()).collect();
        for node in self.nodes.iter().filter(|node| matches!(node.op, Op::Reshape(_))) {
            viewed[node.outputs[0].index()] = viewed[node.inputs[0].index()];
        }
        for (value, &of) in viewed.iter().enumerate() {
            marked[of] |= marked[value];
        }
        for (value, &of) in viewed.iter().enumerate() {
            marked[value] = marked[of];
        }
    }

    /// Name and first node of each segment; none if nothing cuts a run.
    pub fn segments(&self) -> &[(String, usize)] {
        &self.segments
    }

    /// The segment that a node belongs to; 0 if there are none.
    pub fn segment_of(&self, node: usize) -> usize {
        self.segments.iter().filter(|(_, first)| *first <= node).count().saturating_sub(1)
    }

    /// Variables and their new values: when the segment that makes a new value is done, the variable has it.
    /// In the graph a variable is the old value.
    pub fn updates(&self) -> &[(ValueId, ValueId)] {
        &self.updates
    }

    /// The values that the caller provides, in order of definition.
    pub fn inputs(&self) -> impl Iterator<Item = (InputId, ValueId)> {
        let ids = self.defined_as(|source| matches!(source, Source::Input));
        (0..).map(InputId).zip(ids)
    }

    /// The variables, in order of definition.
    pub fn variables(&self) -> impl Iterator<Item = (VariableId, ValueId)> {
        let ids = self.defined_as(|source| matches!(source, Source::Variable(_)));
        (0..).map(VariableId).zip(ids)
    }

    fn defined_as(&self, wanted: impl Fn(&Source) -> bool) -> impl Iterator<Item = ValueId> {
        let found = self.values.iter().enumerate().filter(move |(_, value)| wanted(&value.source));
        found.map(|(index, _)| ValueId(index as u32))
    }

    /// The handle of an input. Passes keep it.
    ///
    /// # Errors
    /// [`Error::Graph`] if the value is none.
    pub fn input_id(&self, value: ValueId) -> Result<InputId> {
        let found = self.inputs().find(|&(_, id)| id == value).map(|(input, _)| input);
        found.ok_or_else(|| Error::Graph(format!("`{}` is no input", self.value(value).name)))
    }

    /// The handle of a variable. Passes keep it.
    ///
    /// # Errors
    /// [`Error::Graph`] if the value is none.
    pub fn variable_id(&self, value: ValueId) -> Result<VariableId> {
        let found = self.variables().find(|&(_, id)| id == value).map(|(variable, _)| variable);
        found.ok_or_else(|| Error::Graph(format!("`{}` is no variable", self.value(value).name)))
    }

    /// The value of an input's handle.
    pub fn input(&self, id: InputId) -> Option<ValueId> {
        self.inputs().nth(id.index()).map(|(_, value)| value)
    }

    /// For each value the one whose memory it is another view of: itself, but for reshapes.
    pub(crate) fn storage(&self) -> Vec<ValueId> {
        let mut storage: Vec<ValueId> = (0..self.values.len()).map(|index| ValueId(index as u32)).collect();
        for node in self.nodes.iter().filter(|node| matches!(node.op, Op::Reshape(_))) {
            storage[node.outputs[0].index()] = storage[node.inputs[0].index()];
        }
        storage
    }

    /// Takes the named results away, for a builder that goes on from them and declares its own.
    pub fn take_outputs(&mut self) -> Vec<(String, ValueId)> {
        std::mem::take(&mut self.outputs)
    }

    /// The value of an id.
    pub fn value(&self, id: ValueId) -> &Value {
        &self.values[id.index()]
    }

    /// All parameters, in order of first use by the builder.
    pub fn params(&self) -> impl Iterator<Item = &Param> {
        (0..self.values.len()).filter_map(|index| self.param(ValueId(index as u32)))
    }

    /// Turns the parameters that `select` chooses into variables and gives them, in order of definition.
    ///
    /// Call it after the passes: they fold only what is constant, and drop parameters that nothing needs, but
    /// no variable.
    pub fn make_variables(&mut self, select: impl Fn(&Param) -> bool) -> Vec<ValueId> {
        let mut variables = Vec::new();
        for (index, value) in self.values.iter_mut().enumerate() {
            if let Source::Param(param) = &value.source
                && select(param)
            {
                value.source = Source::Variable(Some(param.clone()));
                variables.push(ValueId(index as u32));
            }
        }
        variables
    }

    /// The parameter behind a value, if it is one.
    pub fn param(&self, id: ValueId) -> Option<&Param> {
        match &self.value(id).source {
            Source::Param(param) => Some(param),
            Source::Variable(param) => param.as_ref(),
            _ => None,
        }
    }

    /// The types of these values.
    pub fn types(&self, ids: &[ValueId]) -> Vec<ValueType> {
        ids.iter().map(|&id| self.value(id).ty).collect()
    }

    /// Checks every invariant: definitions before uses, one definition a value, types as the operators
    /// infer them, outputs that exist, updates that no later segment contradicts.
    ///
    /// # Errors
    /// [`Error::Graph`] or [`Error::Shape`] naming the first node or value at fault.
    pub fn verify(&self) -> Result<()> {
        let mut defined: Vec<bool> =
            self.values.iter().map(|v| !matches!(v.source, Source::Node { .. })).collect();
        for (index, node) in self.nodes.iter().enumerate() {
            for &input in &node.inputs {
                if defined.get(input.index()) != Some(&true) {
                    let op = node.op.name();
                    return Err(Error::Graph(format!(
                        "node {index} ({op}) uses %{} before it is defined",
                        input.0
                    )));
                }
            }
            let inferred = infer(self, &node.op, &node.inputs, &self.result_name(node))?;
            if inferred.len() != node.outputs.len() {
                return Err(Error::Graph(format!(
                    "node {index} ({}) defines {} values, not {}",
                    node.op.name(),
                    inferred.len(),
                    node.outputs.len()
                )));
            }
            for (output, (&id, ty)) in node.outputs.iter().zip(inferred).enumerate() {
                let value = self.value(id);
                if value.source != (Source::Node { node: index, output }) || defined[id.index()] {
                    return Err(Error::Graph(format!(
                        "`{}` is not defined by node {index} alone",
                        value.name
                    )));
                }
                if value.ty != ty {
                    let ValueType { role, .. } = value.ty;
                    return Err(Error::Graph(format!(
                        "`{}` is {} ({role:?}) but inferred {ty} ({:?})",
                        value.name, value.ty, ty.role
                    )));
                }
                defined[id.index()] = true;
            }
        }
        for (name, id) in &self.outputs {
            if defined.get(id.index()) != Some(&true) {
                return Err(Error::Graph(format!("output `{name}` is never defined")));
            }
        }
        let starts = std::iter::once(0).chain(self.segments.iter().map(|&(_, first)| first));
        if !starts.chain([self.nodes.len()]).is_sorted() || self.segments.first().is_some_and(|s| s.1 > 0) {
            return Err(Error::Graph(format!("segments {:?} are no division of a run", self.segments)));
        }
        self.verify_updates()
    }

    /// A new value is what a node makes, and the old one is not asked for once it is gone.
    fn verify_updates(&self) -> Result<()> {
        let storage = self.storage();
        for (index, &(variable, value)) in self.updates.iter().enumerate() {
            let (of, new) = (self.value(variable), self.value(value));
            let fault = |reason: &str| Err(Error::Graph(format!("update of `{}`: {reason}", of.name)));
            let Source::Variable(_) = of.source else { return fault("it is no variable") };
            let Source::Node { node, .. } = new.source else { return fault("its new value is no node's") };
            if storage[value.index()] != value {
                return fault("its new value is a view of another value");
            }
            if !of.ty.is_like(&new.ty) {
                return fault(&format!("it is {}, its new value {}", of.ty, new.ty));
            }
            if self.updates[..index].iter().any(|&(other, _)| other == variable) {
                return fault("it is updated twice");
            }
            if self.outputs.iter().any(|(_, id)| storage[id.index()] == variable) {
                return fault("its old value is a result, and gone when results are read");
            }
            let reads = |node: &Node| node.inputs.iter().any(|id| storage[id.index()] == variable);
            let last = self.nodes.iter().rposition(reads).unwrap_or(0);
            if self.segment_of(last) > self.segment_of(node) {
                return fault("a later segment reads the old value");
            }
        }
        Ok(())
    }

    /// The graph as text, one line a node.
    pub fn dump(&self) -> String {
        let mut text = String::new();
        for value in &self.values {
            if value.source == Source::Input {
                let _ = writeln!(text, "input {} : {}", value.name, value.ty);
            }
        }
        for (index, node) in self.nodes.iter().enumerate() {
            for (name, _) in self.segments.iter().filter(|(_, first)| *first == index) {
                let _ = writeln!(text, "segment {name}");
            }
            let show = |&id: &ValueId| match &self.value(id).source {
                Source::Node { .. } => format!("%{}", id.0),
                _ => self.value(id).name.clone(),
            };
            let outputs: Vec<String> = node.outputs.iter().map(show).collect();
            let inputs: Vec<String> = node.inputs.iter().map(show).collect();
            let types: Vec<String> = node.outputs.iter().map(|&id| self.value(id).ty.to_string()).collect();
            let _ = writeln!(
                text,
                "{} = {}({}) {} : {}  # {}",
                outputs.join(", "),
                node.op.name(),
                inputs.join(", "),
                node.op.attributes(),
                types.join(", "),
                self.result_name(node)
            );
        }
        for (name, id) in &self.outputs {
            let _ = writeln!(text, "output {name} = %{} : {}", id.0, self.value(*id).ty);
        }
        for (variable, value) in &self.updates {
            let _ = writeln!(text, "update {} = %{}", self.value(*variable).name, value.0);
        }
        text
    }

    fn result_name(&self, node: &Node) -> String {
        node.outputs.first().map(|&id| self.value(id).name.clone()).unwrap_or_default()
    }
}

/// Infers the result types of `op`, turning a refusal into an error that names operator and value.
pub(crate) fn infer(graph: &Graph, op: &Op, inputs: &[ValueId], name: &str) -> Result<Vec<ValueType>> {
    op.infer(&graph.types(inputs)).map_err(|reason| {
        let names: Vec<&str> = inputs.iter().map(|&id| graph.value(id).name.as_str()).collect();
        Error::Shape {
            op: op.name(),
            value: name.to_string(),
            reason: format!("{reason} (inputs: {})", names.join(", ")),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::{Activate, Role, activation::Activation};

    #[test]
    fn a_value_that_lost_its_role_is_refused() {
        let mut b = Builder::new();
        let x = b.input("x", ValueType::map([1, 2, 3, 4]));
        let y = b.node("y", Activate { activation: Activation::Relu }, &[x]).unwrap();
        b.output("y", y);
        let mut graph = b.finish().unwrap();
        graph.values[y.index()].ty.role = Role::Exact;
        let error = graph.verify().unwrap_err().to_string();
        assert!(
            error.contains("`y` is f32[1, 2, 3, 4] (Exact) but inferred f32[1, 2, 3, 4] (Map)"),
            "{error}"
        );
    }
}
