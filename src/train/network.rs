//! The training graph: the network, the costs its matching needs, the losses, their gradients, and what an
//! update does with them.
//!
//! A *round* is a set of predictions with losses: round 0 is the kernel head, round `s + 1` the update stage
//! `s`. The masks of round `r` are matched by the predictions of round `r - 1` (round 0, and round 1 too, by
//! the initial masks), so the costs of all rounds are known after the forward pass, and the host breaks the
//! run there: see [`step`](super::step).
//!
//! The host reaches all it reads and writes by the handles in [`TrainNetwork`]; names are for people.

use super::optimizer::{self, AdamWConfig, Optimizer, Weight};
use crate::error::{Error, Result};
use crate::graph::autodiff::gradients;
use crate::graph::passes::{eliminate_dead_code, optimize_for_training, train_batch_norm};
use crate::graph::{Builder, Graph, InputId, OutputId, Param, SegmentId, ValueId, VariableId};
use crate::model::{Config, SIZE_DIVISOR, TapMode, Task, build};
use crate::ops::binary::BinaryKind;
use crate::ops::resize::ResizeMode;
use crate::ops::{
    Binary, ClassCost, CrossEntropyLoss, Fill, FocalLoss, MaskCost, MaskLoss, MovingAverage, Reshape, Resize,
    Slice, ValueType,
};
use serde::{Deserialize, Serialize};

/// Masks are compared at this stride of the input.
pub const TARGET_STRIDE: usize = 4;

/// Share of a batch in the running statistics of a norm.
const MOMENTUM: f32 = 0.1;

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
    /// What updates the parameters; `None` for losses and gradients alone.
    pub optimizer: Option<&'a AdamWConfig>,
    /// Batches whose gradients make one update.
    pub accumulate: usize,
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
    /// Upstream's name.
    pub name: String,
    /// What it measures.
    pub kind: TermKind,
    /// Whose predictions; 0 for the semantic maps.
    pub round: usize,
    /// Loss weight.
    pub weight: f32,
    /// The sum before normalisation, `[1]`.
    pub loss: OutputId,
    /// Late input: what seeds its gradient, weight over normalisation, `[1]`.
    pub seed: InputId,
}

/// What the host matches a round of predictions by, and what it says of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Round {
    /// Objects: the kernel head predicts no stuff masks of its own.
    pub objects: usize,
    /// Costs of matching it, `[B, proposals, G]`. Rounds 0 and 1 share theirs.
    pub cost: OutputId,
    /// Late input: slot of each object, `[B, N]`, -1 for none.
    pub matched: InputId,
    /// Late input: class of each object, `[B * N, 1]`; the number of classes stands for background. The
    /// kernel head has none.
    pub labels: Option<InputId>,
    /// Late input: object of each pixel, `[B, H / 4 * W / 4]`, -1 for none; panoptic models only.
    pub rank: Option<InputId>,
}

/// Inputs that belong to no round and no term.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inputs {
    /// Images, as the model takes them.
    pub image: InputId,
    /// Soft target masks, `[B, G, H / 4, W / 4]`.
    pub masks: InputId,
    /// Class of each target, `[B, G]`, -1 for an empty slot.
    pub labels: InputId,
    /// Weight of each (object, class) pair in the class loss of a panoptic model, `[N, K]`.
    pub class_weights: Option<InputId>,
    /// Late input: class of each pixel, `[B, H / 4 * W / 4]`; the number of classes stands for background.
    pub seg_labels: InputId,
}

/// The segments of a step, in order; those of the [`Optimizer`] follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segments {
    /// Predictions and costs.
    pub forward: SegmentId,
    /// Losses and gradients: it reads the late inputs.
    pub backward: SegmentId,
    /// What a batch that went well leaves for later: running statistics, and its part of a sum of gradients.
    pub follow: SegmentId,
}

/// A parameter with a gradient.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trained {
    /// Which.
    pub param: Param,
    /// Its value.
    pub variable: VariableId,
    /// Its gradient in the graph's layout; where several batches make an update, the sum of theirs so far.
    pub gradient: OutputId,
}

/// A training graph and how to reach its values.
#[derive(Debug)]
pub struct TrainNetwork {
    /// Forward, costs, losses, gradients and updates.
    pub graph: Graph,
    /// How a step is cut.
    pub segments: Segments,
    /// What a batch fills.
    pub inputs: Inputs,
    /// The kernel head and every stage.
    pub rounds: Vec<Round>,
    /// The loss terms in upstream's order.
    pub terms: Vec<Term>,
    /// Parameters that are trained, in order of definition.
    pub trained: Vec<Trained>,
    /// Running statistics of the batch norms in training.
    pub statistics: Vec<(Param, VariableId)>,
    /// The optimizer, if one was asked for.
    pub optimizer: Option<Optimizer>,
}

/// Predictions of one round.
struct Predictions {
    /// Class logits `[B, N, K]`; the kernel head has none.
    classes: Option<ValueId>,
    /// Mask logits `[B, N, H / 4, W / 4]`.
    masks: ValueId,
}

/// Refuses a model whose losses are not known here: a semantic one.
///
/// # Errors
/// [`Error::Usage`].
pub fn check_trainable(config: &Config) -> Result<()> {
    match config.task {
        Task::Instance | Task::Panoptic => Ok(()),
        Task::Semantic => Err(Error::usage(format!(
            "model `{}` is semantic: detectors alone are trained here, instance and panoptic ones",
            config.name
        ))),
    }
}

/// Builds the training graph.
///
/// # Errors
/// As [`build`] and [`check_trainable`]; [`Error::Usage`] for an empty batch or no target slots, or if
/// nothing is left to train.
pub fn build_training(spec: &TrainSpec<'_>) -> Result<TrainNetwork> {
    check_trainable(spec.config)?;
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
    let norms = match spec.train_batch_norm {
        true => train_batch_norm(&mut graph, |param| !frozen(param)),
        false => Vec::new(),
    };
    let mut graph = optimize_for_training(graph)?;
    let taps = graph.take_outputs();
    let mut b = Builder::resume(graph);
    let forward = b.segment("forward");
    let mut assembly = Assembly { b, spec, taps };
    let predictions = assembly.predictions()?;
    let known = Known::new(&mut assembly)?;
    let costs = assembly.costs(&predictions, &known)?;
    let backward = assembly.b.segment("backward");
    let Compared { rounds, terms, seg_labels } = assembly.losses(&predictions, &known, &costs)?;
    let inputs = known.inputs(&assembly.b, seg_labels)?;
    let mut averages = Vec::new();
    for norm in &norms {
        // The running variance is unbiased, the batch's is not.
        let unbiased = norm.count as f32 / (norm.count as f32 - 1.0).max(1.0);
        for (param, batch, factor) in
            [(&norm.mean.0, norm.mean.1, 1.0), (&norm.variance.0, norm.variance.1, unbiased)]
        {
            let (name, value) = &assembly.taps[batch.index()];
            averages.push((param.clone(), assembly.b.output(name, *value), factor));
        }
    }

    // Most taps are no results here: what serves them alone goes, and with it parameters that nothing trains.
    let mut graph = assembly.b.finish()?;
    eliminate_dead_code(&mut graph);
    let variables = graph.make_variables(|param| !frozen(param));
    let mut b = Builder::resume(graph);
    let mut weights = backpropagate(&mut b, &terms, &variables)?;
    if weights.is_empty() {
        return Err(Error::usage(format!("frozen {:?} leave nothing to train", spec.frozen)));
    }
    let follow = b.segment("follow");
    let statistics = follow_statistics(&mut b, averages)?;
    let optimizer =
        spec.optimizer.map(|config| optimizer::append(&mut b, config, spec.accumulate, &mut weights));
    let optimizer = optimizer.transpose()?;
    let mut trained = Vec::new();
    for Weight { param, variable, gradient } in weights {
        let gradient = b.output(&format!("grad.{}", param.key), gradient);
        trained.push(Trained { param, variable: b.variable_id(variable)?, gradient });
    }
    let mut graph = b.finish()?;
    eliminate_dead_code(&mut graph);
    graph.verify()?;
    let segments = Segments { forward, backward, follow };
    Ok(TrainNetwork { graph, segments, inputs, rounds, terms, trained, statistics, optimizer })
}

/// Appends the gradients of the losses with respect to `variables`; those without are left out.
fn backpropagate(b: &mut Builder, terms: &[Term], variables: &[ValueId]) -> Result<Vec<Weight>> {
    let missing = || Error::Graph("a loss has no seed".into());
    let seed = |term: &Term| {
        let (_, loss) = b.graph().outputs()[term.loss.index()];
        Ok((loss, b.graph().input(term.seed).ok_or_else(missing)?))
    };
    let seeds = terms.iter().map(seed).collect::<Result<Vec<_>>>()?;
    let found = gradients(b, &seeds, variables)?;
    let weight = |(&variable, gradient): (&ValueId, Option<ValueId>)| {
        Some(Weight { param: b.graph().param(variable)?.clone(), variable, gradient: gradient? })
    };
    Ok(variables.iter().zip(found).filter_map(weight).collect())
}

/// Lets running statistics follow those of the batch, which are results, with these factors.
fn follow_statistics(
    b: &mut Builder,
    averages: Vec<(Param, OutputId, f32)>,
) -> Result<Vec<(Param, VariableId)>> {
    if averages.is_empty() {
        return Ok(Vec::new());
    }
    let rate = b.node("momentum", Fill { shape: [1].into(), value: MOMENTUM }, &[])?;
    let mut statistics = Vec::new();
    for (param, batch, factor) in averages {
        let (_, batch) = b.graph().outputs()[batch.index()];
        let running = b.variable(&param.key, b.graph().value(batch).ty, Some(param.clone()))?;
        let next =
            b.node(&format!("{}.next", param.key), MovingAverage { factor }, &[running, batch, rate])?;
        b.update(running, next);
        statistics.push((param, b.variable_id(running)?));
    }
    Ok(statistics)
}

/// Inputs known before the run.
struct Known {
    image: ValueId,
    masks: ValueId,
    labels: ValueId,
    class_weights: Option<ValueId>,
}

impl Known {
    fn new(a: &mut Assembly<'_>) -> Result<Self> {
        let (_, image) =
            a.b.graph().inputs().next().ok_or_else(|| Error::Graph("the model takes no image".into()))?;
        let (batch, slots, config) = (a.spec.batch, a.spec.max_objects, a.spec.config);
        let [h, w] = a.target_size();
        let masks = a.b.input("target.masks", ValueType::map([batch, slots, h, w]));
        let labels = a.b.input("target.labels", ValueType::index([batch, slots]));
        let pairs = ValueType::exact([config.objects(), config.classes.count()]);
        let class_weights = (config.classes.stuff > 0).then(|| a.b.input("class_weights", pairs));
        Ok(Known { image, masks, labels, class_weights })
    }

    /// The handles, with that of the class of each pixel.
    fn inputs(&self, b: &Builder, seg_labels: InputId) -> Result<Inputs> {
        Ok(Inputs {
            image: b.input_id(self.image)?,
            masks: b.input_id(self.masks)?,
            labels: b.input_id(self.labels)?,
            class_weights: self.class_weights.map(|id| b.input_id(id)).transpose()?,
            seg_labels,
        })
    }
}

/// Rounds with what they are matched to, and their losses.
struct Compared {
    rounds: Vec<Round>,
    terms: Vec<Term>,
    seg_labels: InputId,
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

    /// An input that is known after the forward pass.
    fn late(&mut self, name: &str, ty: ValueType) -> Result<(ValueId, InputId)> {
        let value = self.b.input(name, ty);
        Ok((value, self.b.input_id(value)?))
    }

    /// The term `name`, whose sum is `loss`.
    fn term(
        &mut self,
        name: String,
        (kind, round): (TermKind, usize),
        weight: f32,
        loss: ValueId,
    ) -> Result<Term> {
        let (_, seed) = self.late(&format!("seed.{name}"), ValueType::exact([1]))?;
        Ok(Term { loss: self.b.output(&name, loss), name, kind, round, weight, seed })
    }

    fn predictions(&mut self) -> Result<Vec<Predictions>> {
        let initial = self.tap("rpn.mask_preds")?;
        let initial = self.first_objects("rpn.mask_preds", initial, self.spec.config.head.proposals)?;
        let masks = self.at_target_size("rpn.mask_preds", initial)?;
        let mut rounds = vec![Predictions { classes: None, masks }];
        for stage in 0..self.spec.config.head.stages {
            let name = format!("s{stage}.mask_preds");
            let masks = self.tap(&name)?;
            let masks = self.at_target_size(&name, masks)?;
            rounds.push(Predictions { classes: Some(self.tap(&format!("s{stage}.cls_score"))?), masks });
        }
        Ok(rounds)
    }

    /// Costs of matching every round but the last, whose predictions match nothing.
    fn costs(&mut self, rounds: &[Predictions], inputs: &Known) -> Result<Vec<OutputId>> {
        let mut costs = Vec::new();
        let (weights, objects) = (self.spec.weights, self.spec.config.head.proposals);
        for (index, round) in rounds[..rounds.len() - 1].iter().enumerate() {
            let name = format!("cost.{}", index + 1);
            let masks = self.first_objects(&name, round.masks, objects)?;
            let op = MaskCost { mask_weight: weights.mask, dice_weight: weights.dice };
            let mut cost = self.b.node(&name, op, &[masks, inputs.masks])?;
            if let Some(classes) = round.classes {
                let op = ClassCost { objects, weight: weights.class };
                let of_classes = self.b.node(&format!("{name}.class"), op, &[classes, inputs.labels])?;
                cost = self.b.node(&name, Binary { kind: BinaryKind::Add }, &[cost, of_classes])?;
            }
            costs.push(self.b.output(&name, cost));
        }
        Ok(costs)
    }

    fn losses(
        &mut self,
        predictions: &[Predictions],
        inputs: &Known,
        costs: &[OutputId],
    ) -> Result<Compared> {
        let panoptic = self.spec.config.classes.stuff > 0;
        let weights = self.spec.weights;
        let (mut rounds, mut terms) = (Vec::new(), Vec::new());
        for (index, round) in predictions.iter().enumerate() {
            let named = |what: &str| match index {
                0 => format!("loss_rpn_{what}"),
                _ => format!("s{}_loss_{what}", index - 1),
            };
            let [batch, objects, h, w] = [0, 1, 2, 3].map(|axis| self.b.shape(round.masks)[axis]);
            let (mut labels, mut rank) = (None, None);
            if let Some(classes) = round.classes {
                let ty = ValueType::index([batch * objects, 1]);
                let (targets, id) = self.late(&format!("labels.{index}"), ty)?;
                labels = Some(id);
                let loss = self.class_loss(&named("cls"), classes, targets, inputs.class_weights)?;
                terms.push(self.term(named("cls"), (TermKind::Class, index), weights.class, loss)?);
            }
            let (slots, matched) =
                self.late(&format!("matched.{index}"), ValueType::index([batch, objects]))?;
            let found = self.b.nodes(&named("mask"), MaskLoss, &[round.masks, inputs.masks, slots])?;
            terms.push(self.term(named("mask"), (TermKind::Mask, index), weights.mask, found[0])?);
            terms.push(self.term(named("dice"), (TermKind::Dice, index), weights.dice, found[1])?);
            if panoptic {
                let (targets, id) = self.late(&format!("rank.{index}"), ValueType::index([batch, h * w]))?;
                rank = Some(id);
                let flat = Reshape { shape: [batch, objects, h * w].into() };
                let logits = self.b.node(&format!("{}.logits", named("rank")), flat, &[round.masks])?;
                let loss = self.b.node(&named("rank"), CrossEntropyLoss, &[logits, targets])?;
                terms.push(self.term(named("rank"), (TermKind::Rank, index), weights.rank, loss)?);
            }
            rounds.push(Round { objects, cost: costs[index.max(1) - 1], matched, labels, rank });
        }
        let maps = self.tap("rpn.seg_preds")?;
        let maps = self.at_target_size("rpn.seg_preds", maps)?;
        let [batch, classes, h, w] = [0, 1, 2, 3].map(|axis| self.b.shape(maps)[axis]);
        let (labels, seg_labels) = self.late("seg.labels", ValueType::index([batch, h * w]))?;
        let flat = Reshape { shape: [batch, classes, h * w].into() };
        let logits = self.b.node("loss_rpn_seg.logits", flat, &[maps])?;
        let op = FocalLoss { alpha: FocalLoss::ALPHA, weighted: false };
        let loss = self.b.node("loss_rpn_seg", op, &[logits, labels])?;
        terms.push(self.term("loss_rpn_seg".to_string(), (TermKind::Seg, 0), weights.seg, loss)?);
        Ok(Compared { rounds, terms, seg_labels })
    }

    fn class_loss(
        &mut self,
        name: &str,
        classes: ValueId,
        labels: ValueId,
        weights: Option<ValueId>,
    ) -> Result<ValueId> {
        let [batch, objects, count] = [0, 1, 2].map(|axis| self.b.shape(classes)[axis]);
        let rows = Reshape { shape: [batch * objects, count, 1].into() };
        let logits = self.b.node(&format!("{name}.logits"), rows, &[classes])?;
        let op = FocalLoss { alpha: FocalLoss::ALPHA, weighted: weights.is_some() };
        let mut operands = vec![logits, labels];
        operands.extend(weights);
        self.b.node(name, op, &operands)
    }
}
