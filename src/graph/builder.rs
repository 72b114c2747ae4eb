//! Building graphs.

use super::{Graph, Layout, Node, Param, Source, Value, ValueId, infer};
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
        let params = graph.values.iter().enumerate().filter_map(|(index, value)| match &value.source {
            Source::Param(param) | Source::Variable(param) => {
                Some((param.key.clone(), ValueId(index as u32)))
            }
            _ => None,
        });
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
    pub fn output(&mut self, name: &str, value: ValueId) {
        self.graph.outputs.push((name.to_string(), value));
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
