//! Building graphs.

use super::{
    Graph, InputId, Layout, Node, OutputId, Param, SegmentId, Source, Value, ValueId, VariableId, infer,
};
use crate::error::{Error, Result};
use crate::ops::{Op, ValueType};
use crate::tensor::Shape;
use std::collections::HashMap;

/// Builds a [`Graph`] node by node; types are inferred and checked at once, so that an error names the
/// very operator that does not fit.
#[derive(Debug, Default)]
pub struct Builder {
    graph: Graph,
    params: HashMap<String, ValueId>,
}

impl Builder {
    /// An empty graph.
    pub fn new() -> Self {
        Builder::default()
    }

    /// Goes on building a finished graph.
    pub fn resume(graph: Graph) -> Self {
        let ids = (0..graph.values.len()).map(|index| ValueId(index as u32));
        let params = ids.filter_map(|id| Some((graph.param(id)?.key.clone(), id)));
        Builder { params: params.collect(), graph }
    }

    /// What has been built so far.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// A value that the caller provides at every run.
    pub fn input(&mut self, name: &str, ty: ValueType) -> ValueId {
        self.define(Value { name: name.to_string(), ty, source: Source::Input })
    }

    /// The parameter `key`, whose shape in the checkpoint is `upstream_shape`.
    ///
    /// # Errors
    /// [`Error::Graph`] if the key was asked for before with another shape or layout.
    pub fn param(&mut self, key: &str, upstream_shape: &[usize], layout: Layout) -> Result<ValueId> {
        let param = Param { key: key.to_string(), upstream_shape: upstream_shape.to_vec(), layout };
        if let Some(&id) = self.params.get(key) {
            return match &self.graph.value(id).source {
                Source::Param(known) if *known == param => Ok(id),
                known => Err(Error::Graph(format!("parameter `{key}` as {param:?} and as {known:?}"))),
            };
        }
        let shape = Shape::new(&layout.apply_shape(upstream_shape));
        let value =
            Value { name: key.to_string(), ty: ValueType::weight(shape), source: Source::Param(param) };
        let id = self.define(value);
        self.params.insert(key.to_string(), id);
        Ok(id)
    }

    /// A value that changes between runs and begins as `initial`, or as zeros. Its type must be that of
    /// `initial` in the graph's layout.
    ///
    /// # Errors
    /// [`Error::Graph`] if it is not.
    pub fn variable(&mut self, name: &str, ty: ValueType, initial: Option<Param>) -> Result<ValueId> {
        if let Some(param) = &initial
            && !ty.is_like(&ValueType::weight(Shape::new(&param.layout.apply_shape(&param.upstream_shape))))
        {
            return Err(Error::Graph(format!("variable `{name}` is {ty}, but begins as {param:?}")));
        }
        Ok(self.define(Value { name: name.to_string(), ty, source: Source::Variable(initial) }))
    }

    /// Makes `value` the new value of a variable: see [`Graph::updates`].
    pub fn update(&mut self, variable: ValueId, value: ValueId) {
        self.graph.updates.push((variable, value));
    }

    /// Begins a segment: the nodes from here on, and those before as well if it is the first. Between
    /// segments the caller reads results and writes inputs. The name is for people.
    pub fn segment(&mut self, name: &str) -> SegmentId {
        let segments = &mut self.graph.segments;
        let first = if segments.is_empty() { 0 } else { self.graph.nodes.len() };
        segments.push((name.to_string(), first));
        SegmentId((segments.len() - 1) as u32)
    }

    /// As [`Builder::segment`], of the nodes from number `first` on, which the last segment has so far.
    pub fn segment_from(&mut self, name: &str, first: usize) -> SegmentId {
        let segments = &mut self.graph.segments;
        segments.push((name.to_string(), first));
        SegmentId((segments.len() - 1) as u32)
    }

    /// Applies an operator with one result, called `name`.
    ///
    /// # Errors
    /// [`Error::Shape`] if the operator does not take these inputs.
    pub fn node(&mut self, name: &str, op: impl Into<Op>, inputs: &[ValueId]) -> Result<ValueId> {
        Ok(self.nodes(name, op, inputs)?[0])
    }

    /// Applies an operator and gives all its results, called `name`, `name.1`, ...
    ///
    /// # Errors
    /// [`Error::Shape`] if the operator does not take these inputs.
    pub fn nodes(&mut self, name: &str, op: impl Into<Op>, inputs: &[ValueId]) -> Result<Vec<ValueId>> {
        let op = op.into();
        let node = self.graph.nodes.len();
        let types = infer(&self.graph, &op, inputs, name)?;
        let outputs: Vec<ValueId> = types
            .into_iter()
            .enumerate()
            .map(|(output, ty)| {
                let name = if output == 0 { name.to_string() } else { format!("{name}.{output}") };
                self.define(Value { name, ty, source: Source::Node { node, output } })
            })
            .collect();
        self.graph.nodes.push(Node { op, inputs: inputs.to_vec(), outputs: outputs.clone() });
        Ok(outputs)
    }

    /// Declares a result of the graph.
    pub fn output(&mut self, name: &str, value: ValueId) -> OutputId {
        self.graph.outputs.push((name.to_string(), value));
        OutputId((self.graph.outputs.len() - 1) as u32)
    }

    /// As [`Graph::input_id`].
    ///
    /// # Errors
    /// As there.
    pub fn input_id(&self, value: ValueId) -> Result<InputId> {
        self.graph.input_id(value)
    }

    /// As [`Graph::variable_id`].
    ///
    /// # Errors
    /// As there.
    pub fn variable_id(&self, value: ValueId) -> Result<VariableId> {
        self.graph.variable_id(value)
    }

    /// Shape of a value.
    pub fn shape(&self, id: ValueId) -> Shape {
        self.graph.value(id).ty.shape
    }

    /// The finished graph.
    ///
    /// # Errors
    /// As [`Graph::verify`].
    pub fn finish(self) -> Result<Graph> {
        self.graph.verify()?;
        Ok(self.graph)
    }

    fn define(&mut self, value: Value) -> ValueId {
        self.graph.values.push(value);
        ValueId((self.graph.values.len() - 1) as u32)
    }
}
