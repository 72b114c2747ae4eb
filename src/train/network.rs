//! The training graph: the network, the costs its matching needs, the losses, and their gradients.
//!
//! A *round* is a set of predictions with losses: round 0 is the kernel head, round `s + 1` the update stage
//! `s`. The masks of round `r` are matched by the predictions of round `r - 1` (round 0, and round 1 too, by
//! the initial masks), so the costs of all rounds are known after the forward pass, and the host breaks the
//! run once: see [`step`](super::step).

use crate::error::{Error, Result};
use crate::graph::autodiff::gradients;
use crate::graph::passes::{eliminate_dead_code, optimize, train_batch_norm};
use crate::graph::{Builder, Graph, Node, Param, ValueId};
use crate::model::{Config, SIZE_DIVISOR, TapMode, build};
use crate::ops::binary::BinaryKind;
use crate::ops::resize::ResizeMode;
use crate::ops::{
    Binary, ClassCost, CrossEntropyLoss, FocalLoss, MaskCost, MaskLoss, Op, Reshape, Resize, Slice, ValueType,
};
use serde::{Deserialize, Serialize};

/// Masks are compared at this stride of the input.
pub const TARGET_STRIDE: usize = 4;

/// Input: soft target masks `[B, G, H / 4, W / 4]`.
pub const TARGET_MASKS: &str = "target.masks";
/// Input: class of each target `[B, G]`, -1 for an empty slot.
pub const TARGET_LABELS: &str = "target.labels";
/// Input: weight of each (object, class) pair in the class loss of a panoptic model, `[N, K]`.
pub const CLASS_WEIGHTS: &str = "class_weights";
/// Late input: class of each pixel, `[B, H / 4 * W / 4]`; the number of classes stands for background.
pub const SEG_LABELS: &str = "seg.labels";

/// Weights of the loss terms; those of masks, dice and classes are the weights of the matching costs too. The
/// default is upstream's.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LossWeights {
    /// Binary cross-entropy of masks.
    pub mask: f32,
    /// Dice of masks.
    pub dice: f32,
    /// Focal loss of classes.
    pub class: f32,
    /// Softmax over the objects of a pixel; panoptic models only.
    pub rank: f32,
    /// Focal loss of the semantic maps.
    pub seg: f32,
}

impl Default for LossWeights {
    fn default() -> Self {
        LossWeights { mask: 1.0, dice: 4.0, class: 2.0, rank: 0.1, seg: 1.0 }
    }
}

/// What a training graph is made for.
#[derive(Clone, Debug)]
pub struct TrainSpec<'a> {
    /// The model.
    pub config: &'a Config,
    /// Images of a step.
    pub batch: usize,
    /// Height and width of the network's input.
    pub size: [usize; 2],
    /// G: most targets of an image, stuff included.
    pub max_objects: usize,
    /// Weights of the loss terms.
    pub weights: LossWeights,
    /// Parameters whose key starts with one of these stay as they are.
    pub frozen: &'a [String],
    /// Batch norms that are not frozen normalise by the statistics of the batch instead of the running ones.
    pub train_batch_norm: bool,
}

/// Kind of a loss term.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TermKind {
    /// Binary cross-entropy of masks: mean over the pixels of the positives.
    Mask,
    /// Dice of masks: mean over the positives.
    Dice,
    /// Focal loss of classes, over the number of positives.
    Class,
    /// Rank loss: mean over all pixels.
    Rank,
    /// Focal loss of the semantic maps, over the number of labelled pixels.
    Seg,
}

/// A loss term.
#[derive(Clone, Debug, PartialEq)]
pub struct Term {
    /// Upstream's name, and the name of the graph's result: the sum before normalisation, `[1]`.
    pub name: String,
    /// What it measures.
    pub kind: TermKind,
    /// Whose predictions; 0 for the semantic maps.
    pub round: usize,
    /// Loss weight.
    pub weight: f32,
}

impl Term {
    /// Name of the late input that seeds its gradient: weight over normalisation, `[1]`.
    pub fn seed(&self) -> String {
        format!("seed.{}", self.name)
    }
}

/// The late input that holds the slot of each object of a round, `[B, N]`.
pub fn matched_input(round: usize) -> String {
    format!("matched.{round}")
}

/// The late input that holds the class of each object of a round, `[B * N, 1]`; the number of classes stands
/// for background.
pub fn labels_input(round: usize) -> String {
    format!("labels.{round}")
}

/// The late input that holds the object of each pixel, `[B, H / 4 * W / 4]`, -1 for none.
pub fn rank_input(round: usize) -> String {
    format!("rank.{round}")
}

/// The result that holds the costs of matching round `round`, `[B, proposals, G]`. Rounds 0 and 1 share
/// theirs.
pub fn cost_output(round: usize) -> String {
    format!("cost.{}", round.max(1))
}

/// The result that holds the gradient of a parameter.
pub fn grad_output(key: &str) -> String {
    format!("grad.{key}")
}

/// A training graph.
#[derive(Debug)]
pub struct TrainNetwork {
    /// Forward, costs, losses and gradients.
    pub graph: Graph,
    /// The loss terms in upstream's order.
    pub terms: Vec<Term>,
    /// Rounds of predictions: the kernel head and every stage.
    pub rounds: usize,
    /// Objects of each round: the kernel head predicts no stuff masks of its own.
    pub objects: Vec<usize>,
    /// Parameters that are trained, in order of definition.
    pub trained: Vec<Param>,
    /// Batch norms in training: their names, and the number of values that a statistic is taken over. The
    /// results `{name}.batch_mean` and `{name}.batch_var` (biased) are for the running statistics.
    pub norms: Vec<(String, usize)>,
}

/// Predictions of one round.
struct Round {
    /// Class logits `[B, N, K]`; the kernel head has none.
    classes: Option<ValueId>,
    /// Mask logits `[B, N, H / 4, W / 4]`.
    masks: ValueId,
}

/// Builds the training graph.
///
/// # Errors
/// As [`build`]; [`Error::Usage`] for an empty batch or no target slots, or if nothing is left to train.
pub fn build_training(spec: &TrainSpec<'_>) -> Result<TrainNetwork> {
    if spec.batch == 0 || spec.max_objects == 0 {
        let (batch, slots) = (spec.batch, spec.max_objects);
        return Err(Error::usage(format!(
            "a batch of {batch} images with {slots} target slots trains nothing"
        )));
    }
    let frozen = |param: &Param| {
        let statistic = param.key.ends_with("running_mean") || param.key.ends_with("running_var");
        statistic || spec.frozen.iter().any(|prefix| param.key.starts_with(prefix.as_str()))
    };
    let mut graph = build(spec.config, spec.batch, spec.size, TapMode::Predictions)?.graph;
    if spec.train_batch_norm {
        train_batch_norm(&mut graph, |param| !frozen(param));
    }
    let norms = trained_norms(&graph);
    let mut graph = optimize(graph)?;
    let taps = graph.take_outputs();
    let variables = graph.make_variables(|param| !frozen(param));
    let mut assembly = Assembly { b: Builder::resume(graph), spec, taps };
    let rounds = assembly.rounds()?;
    let inputs = Inputs::new(&mut assembly)?;
    assembly.costs(&rounds, &inputs)?;
    let (terms, losses) = assembly.losses(&rounds, &inputs)?;
    let objects = rounds.iter().map(|round| assembly.b.shape(round.masks)[1]).collect();

    let Assembly { mut b, taps, .. } = assembly;
    for (name, value) in taps.iter().filter(|(name, _)| is_statistic(name)) {
        b.output(name, *value);
    }
    let mut seeds = Vec::new();
    for (term, &loss) in terms.iter().zip(&losses) {
        b.output(&term.name, loss);
        seeds.push((loss, b.input(&term.seed(), ValueType::exact([1]))));
    }
    let grads = gradients(&mut b, &seeds, &variables)?;
    let mut trained = Vec::new();
    for (&variable, grad) in variables.iter().zip(grads) {
        let Some(grad) = grad else { continue };
        let key = b.graph().value(variable).name.clone();
        trained.extend(b.graph().param(variable).cloned());
        b.output(&grad_output(&key), grad);
    }
    if trained.is_empty() {
        return Err(Error::usage(format!("frozen {:?} leave nothing to train", spec.frozen)));
    }
    let mut graph = b.finish()?;
    eliminate_dead_code(&mut graph);
    graph.verify()?;
    Ok(TrainNetwork { graph, terms, rounds: rounds.len(), objects, trained, norms })
}

/// Name of the result with the mean of a batch norm in training, `[C]`.
pub fn batch_mean_output(norm: &str) -> String {
    format!("{norm}.batch_mean")
}

/// Name of the result with the (biased) variance of a batch norm in training, `[C]`.
pub fn batch_var_output(norm: &str) -> String {
    format!("{norm}.batch_var")
}

fn is_statistic(output: &str) -> bool {
    output.ends_with(".batch_mean") || output.ends_with(".batch_var")
}

/// See [`TrainNetwork::norms`].
fn trained_norms(graph: &Graph) -> Vec<(String, usize)> {
    let nodes = graph.nodes().iter().filter(|node| matches!(node.op, Op::BatchNormTrain(_)));
    let norm = |node: &Node| {
        let weight = &graph.value(node.inputs[1]).name;
        let shape = graph.value(node.inputs[0]).ty.shape;
        (weight.strip_suffix(".weight").unwrap_or(weight).to_string(), shape.len() / shape.last())
    };
    nodes.map(norm).collect()
}

/// Inputs known before the run.
struct Inputs {
    masks: ValueId,
    labels: ValueId,
    class_weights: Option<ValueId>,
}

impl Inputs {
    fn new(a: &mut Assembly<'_>) -> Result<Self> {
        let (batch, slots, config) = (a.spec.batch, a.spec.max_objects, a.spec.config);
        let [h, w] = a.target_size();
        let masks = a.b.input(TARGET_MASKS, ValueType::map([batch, slots, h, w]));
        let labels = a.b.input(TARGET_LABELS, ValueType::index([batch, slots]));
        let pairs = ValueType::exact([config.objects(), config.classes()]);
        let class_weights = (config.stuff_classes > 0).then(|| a.b.input(CLASS_WEIGHTS, pairs));
        Ok(Inputs { masks, labels, class_weights })
    }
}

/// The graph while it grows from predictions to losses.
struct Assembly<'a> {
    b: Builder,
    spec: &'a TrainSpec<'a>,
    taps: Vec<(String, ValueId)>,
}

impl Assembly<'_> {
    fn target_size(&self) -> [usize; 2] {
        debug_assert!(SIZE_DIVISOR.is_multiple_of(TARGET_STRIDE));
        self.spec.size.map(|side| side / TARGET_STRIDE)
    }

    fn tap(&self, name: &str) -> Result<ValueId> {
        let found = self.taps.iter().find(|(tap, _)| tap == name);
        found.map(|&(_, id)| id).ok_or_else(|| Error::Graph(format!("the model has no `{name}`")))
    }

    /// Planes `[B, N, h, w]` resized bilinearly to the size of the targets.
    fn at_target_size(&mut self, name: &str, masks: ValueId) -> Result<ValueId> {
        let from = self.b.shape(masks);
        let [h, w] = self.target_size();
        let reshape = |b: &mut Builder, what: &str, shape: [usize; 4], x| {
            b.node(&format!("{name}.{what}"), Reshape { shape: shape.into() }, &[x])
        };
        let planes = reshape(&mut self.b, "planes", [from[0] * from[1], from[2], from[3], 1], masks)?;
        let op = Resize { mode: ResizeMode::Bilinear { align_corners: false }, size: [h, w], step: None };
        let resized = self.b.node(&format!("{name}.scaled"), op, &[planes])?;
        reshape(&mut self.b, "masks", [from[0], from[1], h, w], resized)
    }

    /// The first `len` objects of `[B, N, ..]`.
    fn first_objects(&mut self, name: &str, x: ValueId, len: usize) -> Result<ValueId> {
        if self.b.shape(x)[1] == len {
            return Ok(x);
        }
        self.b.node(&format!("{name}.things"), Slice { axis: 1, start: 0, len }, &[x])
    }

    fn rounds(&mut self) -> Result<Vec<Round>> {
        let initial = self.tap("rpn.mask_preds")?;
        let initial = self.first_objects("rpn.mask_preds", initial, self.spec.config.proposals)?;
        let masks = self.at_target_size("rpn.mask_preds", initial)?;
        let mut rounds = vec![Round { classes: None, masks }];
        for stage in 0..self.spec.config.stages {
            let name = format!("s{stage}.mask_preds");
            let masks = self.tap(&name)?;
            let masks = self.at_target_size(&name, masks)?;
            rounds.push(Round { classes: Some(self.tap(&format!("s{stage}.cls_score"))?), masks });
        }
        Ok(rounds)
    }

    /// Costs of matching every round but the last, whose predictions match nothing.
    fn costs(&mut self, rounds: &[Round], inputs: &Inputs) -> Result<()> {
        let (weights, objects) = (self.spec.weights, self.spec.config.proposals);
        for (index, round) in rounds[..rounds.len() - 1].iter().enumerate() {
            let name = cost_output(index + 1);
            let masks = self.first_objects(&name, round.masks, objects)?;
            let op = MaskCost { mask_weight: weights.mask, dice_weight: weights.dice };
            let mut cost = self.b.node(&name, op, &[masks, inputs.masks])?;
            if let Some(classes) = round.classes {
                let op = ClassCost { objects, weight: weights.class };
                let of_classes = self.b.node(&format!("{name}.class"), op, &[classes, inputs.labels])?;
                cost = self.b.node(&name, Binary { kind: BinaryKind::Add }, &[cost, of_classes])?;
            }
            self.b.output(&name, cost);
        }
        Ok(())
    }

    fn losses(&mut self, rounds: &[Round], inputs: &Inputs) -> Result<(Vec<Term>, Vec<ValueId>)> {
        let panoptic = self.spec.config.stuff_classes > 0;
        let weights = self.spec.weights;
        let (mut terms, mut losses) = (Vec::new(), Vec::new());
        let mut add = |name: String, kind, round, weight, loss| {
            terms.push(Term { name, kind, round, weight });
            losses.push(loss);
        };
        for (index, round) in rounds.iter().enumerate() {
            let named = |what: &str| match index {
                0 => format!("loss_rpn_{what}"),
                _ => format!("s{}_loss_{what}", index - 1),
            };
            let [batch, objects, h, w] = [0, 1, 2, 3].map(|axis| self.b.shape(round.masks)[axis]);
            if let Some(classes) = round.classes {
                let loss = self.class_loss(&named("cls"), index, classes, inputs.class_weights)?;
                add(named("cls"), TermKind::Class, index, weights.class, loss);
            }
            let matched = self.b.input(&matched_input(index), ValueType::index([batch, objects]));
            let found = self.b.nodes(&named("mask"), MaskLoss, &[round.masks, inputs.masks, matched])?;
            add(named("mask"), TermKind::Mask, index, weights.mask, found[0]);
            add(named("dice"), TermKind::Dice, index, weights.dice, found[1]);
            if panoptic {
                let labels = self.b.input(&rank_input(index), ValueType::index([batch, h * w]));
                let flat = Reshape { shape: [batch, objects, h * w].into() };
                let logits = self.b.node(&format!("{}.logits", named("rank")), flat, &[round.masks])?;
                let loss = self.b.node(&named("rank"), CrossEntropyLoss, &[logits, labels])?;
                add(named("rank"), TermKind::Rank, index, weights.rank, loss);
            }
        }
        let maps = self.tap("rpn.seg_preds")?;
        let maps = self.at_target_size("rpn.seg_preds", maps)?;
        let [batch, classes, h, w] = [0, 1, 2, 3].map(|axis| self.b.shape(maps)[axis]);
        let labels = self.b.input(SEG_LABELS, ValueType::index([batch, h * w]));
        let flat = Reshape { shape: [batch, classes, h * w].into() };
        let logits = self.b.node("loss_rpn_seg.logits", flat, &[maps])?;
        let op = FocalLoss { alpha: FocalLoss::ALPHA, weighted: false };
        let loss = self.b.node("loss_rpn_seg", op, &[logits, labels])?;
        add("loss_rpn_seg".to_string(), TermKind::Seg, 0, weights.seg, loss);
        Ok((terms, losses))
    }

    fn class_loss(
        &mut self,
        name: &str,
        round: usize,
        classes: ValueId,
        weights: Option<ValueId>,
    ) -> Result<ValueId> {
        let [batch, objects, count] = [0, 1, 2].map(|axis| self.b.shape(classes)[axis]);
        let labels = self.b.input(&labels_input(round), ValueType::index([batch * objects, 1]));
        let rows = Reshape { shape: [batch * objects, count, 1].into() };
        let logits = self.b.node(&format!("{name}.logits"), rows, &[classes])?;
        let op = FocalLoss { alpha: FocalLoss::ALPHA, weighted: weights.is_some() };
        let mut operands = vec![logits, labels];
        operands.extend(weights);
        self.b.node(name, op, &operands)
    }
}
