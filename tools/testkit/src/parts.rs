//! Parts of a network: the nodes between some of its values, to be fed with known values at one end and
//! compared at the other.

use knet::graph::{Builder, Graph, Source, ValueId};
use std::collections::{HashMap, HashSet};

/// What of `graph` lies between `inputs` and `outputs`, both by name and value: a graph with these inputs, in
/// this order, and these results. The other operands of its nodes must be parameters.
pub fn cut(graph: &Graph, inputs: &[(String, ValueId)], outputs: &[(String, ValueId)]) -> Graph {
    let given: HashSet<ValueId> = inputs.iter().map(|&(_, id)| id).collect();
    let mut needed: HashSet<ValueId> = outputs.iter().map(|&(_, id)| id).collect();
    for node in graph.nodes().iter().rev() {
        if node.outputs.iter().any(|id| needed.contains(id) && !given.contains(id)) {
            needed.extend(&node.inputs);
        }
    }
    let mut builder = Builder::new();
    let mut known: HashMap<ValueId, ValueId> = HashMap::new();
    for (name, id) in inputs {
        known.insert(*id, builder.input(name, graph.value(*id).ty));
    }
    for node in graph.nodes() {
        if !node.outputs.iter().any(|id| needed.contains(id) && !given.contains(id)) {
            continue;
        }
        let mut operands = Vec::new();
        for &id in &node.inputs {
            let operand = match (known.get(&id), &graph.value(id).source) {
                (Some(&operand), _) => operand,
                (None, Source::Param(param)) => {
                    builder.param(&param.key, &param.upstream_shape, param.layout).unwrap()
                }
                (None, _) => panic!("`{}` is needed and not given", graph.value(id).name),
            };
            operands.push(operand);
        }
        let name = &graph.value(node.outputs[0]).name;
        let results = builder.nodes(name, node.op.clone(), &operands).unwrap();
        known.extend(node.outputs.iter().copied().zip(results));
    }
    for (name, id) in outputs {
        builder.output(name, known[id]);
    }
    builder.finish().unwrap()
}

/// The value called `name`.
pub fn value_called(graph: &Graph, name: &str) -> ValueId {
    let ids = graph.nodes().iter().flat_map(|node| &node.outputs);
    let found = ids.copied().find(|&id| graph.value(id).name == name);
    found.unwrap_or_else(|| panic!("no value `{name}`"))
}
