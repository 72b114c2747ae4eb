//! What a model that is trained does otherwise than one in use. Not among the passes of
//! [`optimize`](super::optimize), which fold what is as in use away: to be called before them.

use crate::graph::{Graph, InputId, OutputId, Param, Source, Value, ValueId};
use crate::ops::{BatchNorm, BatchNormTrain, Op, ValueType, dropout::DropKind};
use serde::{Deserialize, Serialize};

/// A batch norm that takes its statistics from the batch.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainedNorm {
    /// Values that a statistic is taken over.
    pub count: usize,
    /// The running mean, which is no longer an operand, and the batch's.
    pub mean: (Param, OutputId),
    /// The same of the variance; the batch's is biased.
    pub variance: (Param, OutputId),
}

/// Makes `batch_norm` nodes whose scale and shift `select` chooses normalise by the statistics of the batch.
/// Those become outputs of the graph, `{norm}.batch_mean` and `{norm}.batch_var` (biased) for a norm with the
/// parameter `{norm}.weight`, so that a trainer can update the running ones, which are no longer operands.
pub fn train_batch_norm(graph: &mut Graph, select: impl Fn(&Param) -> bool) -> Vec<TrainedNorm> {
    let mut trained = Vec::new();
    for index in 0..graph.nodes.len() {
        let Op::BatchNorm(BatchNorm { eps }) = graph.nodes[index].op else { continue };
        let [x, gamma, beta, mean, variance] = graph.nodes[index].inputs[..] else { continue };
        let chosen = |id: ValueId| matches!(&graph.value(id).source, Source::Param(param) if select(param));
        if !chosen(gamma) || !chosen(beta) {
            continue;
        }
        let (Some(mean), Some(variance)) = (graph.param(mean).cloned(), graph.param(variance).cloned())
        else {
            continue;
        };
        let shape = graph.value(x).ty.shape;
        let mean_output = OutputId(graph.outputs.len() as u32);
        let variance_output = OutputId(mean_output.0 + 1);
        trained.push(TrainedNorm {
            count: shape.len() / shape.last().max(1),
            mean: (mean, mean_output),
            variance: (variance, variance_output),
        });
        let weight = &graph.value(gamma).name;
        let norm = weight.strip_suffix(".weight").unwrap_or(weight).to_string();
        let ty = ValueType::exact(graph.value(gamma).ty.shape);
        for (output, statistic) in [(1, "batch_mean"), (2, "batch_var")] {
            let (id, name) = (ValueId(graph.values.len() as u32), format!("{norm}.{statistic}"));
            let source = Source::Node { node: index, output };
            graph.values.push(Value { name: name.clone(), ty, source });
            graph.nodes[index].outputs.push(id);
            graph.outputs.push((name, id));
        }
        graph.nodes[index].op = BatchNormTrain { eps }.into();
        graph.nodes[index].inputs = vec![x, gamma, beta];
    }
    trained
}

/// How often training drops what. 0 drops nothing.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DropRates {
    /// Probability that a channel is dropped before a class layer.
    pub channel: f32,
    /// Probability that the last block's branches are dropped; those of earlier blocks are less often, down
    /// to never.
    pub path: f32,
}

impl Default for DropRates {
    /// Upstream's; its semantic models drop paths at 0.3.
    fn default() -> Self {
        DropRates { channel: 0.1, path: 0.2 }
    }
}

/// A `dropout` node in training.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TrainedDropout {
    /// The factors, `[images, channels or 1]`: 0, or `1 / (1 - rate)` with probability `1 - rate`.
    pub factors: InputId,
    /// Probability that one is 0.
    pub rate: f32,
}

/// Gives the `dropout` nodes whose rate is not 0 an input for their factors, which the trainer draws for
/// every run.
pub fn train_dropout(graph: &mut Graph, rates: &DropRates) -> Vec<TrainedDropout> {
    let first = graph.inputs().count() as u32;
    let mut trained = Vec::new();
    for index in 0..graph.nodes.len() {
        let Op::Dropout(op) = graph.nodes[index].op else { continue };
        let rate = match op.kind {
            DropKind::Channel => rates.channel,
            DropKind::Path { share } => share * rates.path,
        };
        let [x] = graph.nodes[index].inputs[..] else { continue };
        if rate <= 0.0 {
            continue;
        }
        let ty = ValueType::exact(op.factors(graph.value(x).ty.shape.dims()));
        let name = format!("{}.factors", graph.result_name(&graph.nodes[index]));
        let id = ValueId(graph.values.len() as u32);
        graph.values.push(Value { name, ty, source: Source::Input });
        graph.nodes[index].inputs.push(id);
        trained.push(TrainedDropout { factors: InputId(first + trained.len() as u32), rate });
    }
    trained
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::passes::optimize;
    use crate::graph::{Builder, Layout};
    use crate::ops::dropout::Dropout;
    use crate::ops::{Binary, Conv2d, binary::BinaryKind};

    /// Two convolutions with a norm each; that of `b` is trained.
    fn trained() -> Graph {
        let mut b = Builder::new();
        let mut x = b.input("x", ValueType::map([2, 5, 4, 3]));
        for layer in ["a", "b"] {
            let filter = b.param(&format!("{layer}.conv.weight"), &[3, 3, 1, 1], Layout::Filter).unwrap();
            x = b.node(&format!("{layer}.conv"), Conv2d::with(1, 0), &[x, filter]).unwrap();
            let mut operands = vec![x];
            for field in ["weight", "bias", "running_mean", "running_var"] {
                operands.push(b.param(&format!("{layer}.bn.{field}"), &[3], Layout::Plain).unwrap());
            }
            x = b.node(&format!("{layer}.bn"), BatchNorm { eps: 1e-5 }, &operands).unwrap();
        }
        b.output("y", x);
        let mut graph = b.finish().unwrap();
        train_batch_norm(&mut graph, |param| param.key.starts_with("b."));
        graph.verify().unwrap();
        graph
    }

    #[test]
    fn trained_norms_give_their_statistics_and_are_not_folded() {
        let graph = optimize(trained()).unwrap();
        let ops: Vec<&str> = graph.nodes.iter().map(|node| node.op.name()).collect();
        assert_eq!(ops, ["fold_batch_norm", "conv2d", "conv2d", "batch_norm_train"]);
        let outputs: Vec<&str> = graph.outputs.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(outputs, ["y", "b.bn.batch_mean", "b.bn.batch_var"]);
        let norm = &graph.nodes[3];
        assert_eq!(norm.inputs.len(), 3);
        let results: Vec<ValueId> = graph.outputs.iter().map(|&(_, id)| id).collect();
        assert_eq!(norm.outputs, results);
        assert!(
            graph.params().all(|param| !param.key.starts_with("b.bn.running")),
            "running statistics left"
        );
    }

    #[test]
    fn norms_that_are_not_chosen_stay_as_they_are() {
        let mut graph = trained();
        let before = graph.clone();
        train_batch_norm(&mut graph, |_| false);
        assert_eq!(graph, before);
        // The scale alone is not enough.
        train_batch_norm(&mut graph, |param| param.key == "a.bn.weight");
        assert_eq!(graph, before);
    }

    /// A residual branch, half as often dropped as the last, and channels.
    fn dropped() -> Graph {
        let mut b = Builder::new();
        let x = b.input("x", ValueType::map([2, 5, 4, 3]));
        let filter = b.param("conv.weight", &[3, 3, 1, 1], Layout::Filter).unwrap();
        let y = b.node("conv", Conv2d::with(1, 0), &[x, filter]).unwrap();
        let path = Dropout { kind: DropKind::Path { share: 0.5 } };
        let y = b.node("path", path, &[y]).unwrap();
        let y = b.node("sum", Binary { kind: BinaryKind::Add }, &[y, x]).unwrap();
        let y = b.node("channels", Dropout { kind: DropKind::Channel }, &[y]).unwrap();
        b.output("y", y);
        b.finish().unwrap()
    }

    #[test]
    fn nothing_is_dropped_in_use() {
        let graph = optimize(dropped()).unwrap();
        let ops: Vec<&str> = graph.nodes().iter().map(|node| node.op.name()).collect();
        assert_eq!(ops, ["conv2d"], "the sum is not fused");
        assert_eq!(graph.inputs().count(), 1);
    }

    #[test]
    fn what_is_dropped_in_training_takes_factors() {
        let mut graph = dropped();
        assert_eq!(train_dropout(&mut graph, &DropRates { channel: 0.0, path: 0.0 }), []);
        assert_eq!(graph, dropped());
        let found = train_dropout(&mut graph, &DropRates { channel: 0.25, path: 0.5 });
        let graph = optimize(graph).unwrap();
        let ops: Vec<&str> = graph.nodes().iter().map(|node| node.op.name()).collect();
        assert_eq!(ops, ["conv2d", "dropout", "binary", "dropout"]);
        assert_eq!(found.iter().map(|found| found.rate).collect::<Vec<_>>(), [0.25, 0.25]);
        let factors = found.iter().map(|found| graph.value(graph.input(found.factors).unwrap()));
        let factors: Vec<_> =
            factors.map(|value| (value.name.as_str(), value.ty.shape.dims().to_vec())).collect();
        assert_eq!(factors, [("path.factors", vec![2, 1]), ("channels.factors", vec![2, 3])]);
    }
}
