//! Rewrites of an optimised graph for devices on which a launch costs more than a small step, and memory more
//! than arithmetic.

mod conv_tails;
mod filters;
mod linears;

pub use conv_tails::fuse_conv_tails;
pub use filters::pack_filters;
pub use linears::fuse_linears;

use crate::graph::{Graph, Node, Source, Value, ValueId};
use crate::ops::ValueType;

fn define(graph: &mut Graph, name: String, ty: ValueType) -> ValueId {
    let id = ValueId(graph.values.len() as u32);
    // Whoever calls this makes the node and links it.
    graph.values.push(Value { name, ty, source: Source::Node { node: usize::MAX, output: 0 } });
    id
}

/// Notes at each value which node defines it, after nodes have moved.
fn link(graph: &mut Graph) {
    for (node, Node { outputs, .. }) in graph.nodes.iter().enumerate() {
        for (output, id) in outputs.iter().enumerate() {
            graph.values[id.index()].source = Source::Node { node, output };
        }
    }
}
