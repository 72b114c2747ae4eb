//! The training graph: the network, the losses of its task, their gradients, and what an update does with
//! them.
//!
//! What predictions are compared with is the task's: a detector's masks and classes are matched with objects
//! ([`objects`]), a semantic model's class maps with the class of each pixel ([`pixels`]).
//!
//! The host reaches all it reads and writes by the handles in [`TrainNetwork`]; names are for people.

pub mod buckets;
pub mod objects;
pub mod pixels;

use super::optimizer::{self, AdamWConfig, Batches, Optimizer, Weight};
use crate::dist::Share;
use crate::error::{Error, Result};
use crate::graph::autodiff::gradients;
use crate::graph::passes::{
    DropRates, Part, Stretch, TrainedDropout, TrainedNorm, eliminate_dead_code, optimize_for_training, order,
    recompute, stretches, train_batch_norm, train_dropout,
};
use crate::graph::{Builder, Graph, InputId, OutputId, Param, SegmentId, ValueId, VariableId};
use crate::model::{self, Config, TapMode, Task};
use crate::ops::resize::ResizeMode;
use crate::ops::{Fill, MovingAverage, Reshape, Resize, ValueType};
use buckets::Bucket;
use objects::ObjectTargets;
use pixels::PixelTargets;
use serde::{Deserialize, Serialize};

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
    /// Focal loss of a detector's semantic maps.
    pub seg: f32,
    /// Softmax over the classes of a pixel; semantic models only.
    pub pixel: f32,
    /// The same of the auxiliary head.
    pub auxiliary: f32,
}

impl Default for LossWeights {
    fn default() -> Self {
        LossWeights { mask: 1.0, dice: 4.0, class: 2.0, rank: 0.1, seg: 1.0, pixel: 1.0, auxiliary: 0.4 }
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
    /// G: most targets of an image, stuff included; of no meaning to a semantic model.
    pub max_objects: usize,
    /// Weights of the loss terms.
    pub weights: LossWeights,
    /// Parameters whose key starts with one of these stay as they are.
    pub frozen: &'a [String],
    /// Batch norms that are not frozen normalise by the statistics of the batch instead of the running ones.
    pub train_batch_norm: bool,
    /// How often channels and paths are dropped.
    pub dropout: DropRates,
    /// Seed of what is dropped.
    pub seed: u64,
    /// What updates the parameters; `None` for losses and gradients alone.
    pub optimizer: Option<&'a AdamWConfig>,
    /// Batches whose gradients make one update, on each rank.
    pub accumulate: usize,
    /// Values of so many of [`TrainNetwork::stretches`] are not kept for the backward pass, but made again in
    /// it: less memory, more work, the same bits. [`usize::MAX`] is all of them.
    pub recompute: usize,
    /// Which rank this is. Among several, sums over ranks and running statistics are made by
    /// [`TrainStep::join`](crate::train::step::TrainStep::join), not in the graph.
    pub share: Share,
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
    /// Softmax cross-entropy of class maps, over the number of all pixels, labelled or not.
    Pixel,
}

/// A loss term.
#[derive(Clone, Debug, PartialEq)]
pub struct Term {
    /// Upstream's name.
    pub name: String,
    /// What it measures.
    pub kind: TermKind,
    /// Whose predictions; 0 for those of no round.
    pub round: usize,
    /// Loss weight.
    pub weight: f32,
    /// The sum before normalisation, `[1]`.
    pub loss: OutputId,
    /// Late input: what seeds its gradient, weight over normalisation, `[1]`.
    pub seed: InputId,
}

/// The segments of a step, in order; those of the [`Optimizer`] follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segments {
    /// Predictions and what their matching needs.
    pub forward: SegmentId,
    /// Losses and gradients: it reads the late inputs. Of ranks on GPUs it is the first of several: see
    /// [`TrainNetwork::buckets`].
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
    /// Its gradient in the graph's layout; where several batches make an update, the sum of theirs so far,
    /// but among several ranks that of the last batch alone.
    pub gradient: OutputId,
}

/// A running statistic of a batch norm in training.
#[derive(Clone, Debug, PartialEq)]
pub struct Statistic {
    /// Which.
    pub param: Param,
    /// Its value.
    pub variable: VariableId,
    /// That of the batch.
    pub batch: OutputId,
    /// What the batch's is multiplied by: a running variance is unbiased, a batch's is not.
    pub factor: f32,
}

impl Statistic {
    /// Lets running values follow those of a batch: what [`MovingAverage`] does.
    pub fn follow(&self, running: &mut [f32], batch: &[f32]) {
        for (running, &batch) in running.iter_mut().zip(batch) {
            *running += (self.factor * batch - *running) * MOMENTUM;
        }
    }
}

/// What predictions are compared with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetInputs {
    /// A detector's.
    Objects(ObjectTargets),
    /// A semantic model's.
    Pixels(PixelTargets),
}

/// A training graph and how to reach its values.
#[derive(Debug)]
pub struct TrainNetwork {
    /// Forward, costs, losses, gradients and updates.
    pub graph: Graph,
    /// How a step is cut.
    pub segments: Segments,
    /// Of ranks on GPUs, which gradients are summed over ranks after each segment of the backward pass.
    pub buckets: Vec<Bucket>,
    /// Images, as the model takes them.
    pub image: InputId,
    /// What predictions are compared with.
    pub targets: TargetInputs,
    /// What is dropped in a run.
    pub dropouts: Vec<TrainedDropout>,
    /// The loss terms in upstream's order.
    pub terms: Vec<Term>,
    /// Parameters that are trained, in order of definition.
    pub trained: Vec<Trained>,
    /// Running statistics of the batch norms in training.
    pub statistics: Vec<Statistic>,
    /// The optimizer, if one was asked for.
    pub optimizer: Option<Optimizer>,
    /// What may be made again in the backward pass, in the order in which it is given up; the first
    /// [`TrainSpec::recompute`] are.
    pub stretches: Vec<Stretch>,
}

/// Builds the training graph.
///
/// # Errors
/// As [`model::build`]; [`Error::Usage`] for an empty batch or no target slots, for a batch norm that would
/// take its statistics from single values, or if nothing is left to train.
pub fn build_training(spec: &TrainSpec<'_>) -> Result<TrainNetwork> {
    build(spec, false)
}

/// As [`build_training`]; `on_device`: gradients of several ranks are summed on their GPUs, where the
/// backward pass leaves them, and the graph goes on as that of one process does.
///
/// # Errors
/// As there.
pub(in crate::train) fn build(spec: &TrainSpec<'_>, on_device: bool) -> Result<TrainNetwork> {
    spec.config.check_trainable()?;
    let detector = spec.config.task != Task::Semantic;
    if spec.batch == 0 || (detector && spec.max_objects == 0) {
        let (batch, slots) = (spec.batch, spec.max_objects);
        return Err(Error::usage(format!(
            "a batch of {batch} images with {slots} target slots trains nothing"
        )));
    }
    let frozen = |param: &Param| {
        let statistic = param.key.ends_with("running_mean") || param.key.ends_with("running_var");
        statistic || spec.frozen.iter().any(|prefix| param.key.starts_with(prefix.as_str()))
    };
    let mut graph = model::build(spec.config, spec.batch, spec.size, TapMode::Predictions)?.graph;
    let norms = match spec.train_batch_norm {
        true => train_batch_norm(&mut graph, |param| !frozen(param)),
        false => Vec::new(),
    };
    check_norms(&norms)?;
    let dropouts = train_dropout(&mut graph, &spec.dropout);
    let mut graph = optimize_for_training(graph)?;
    let taps = graph.take_outputs();
    let mut b = Builder::resume(graph);
    let forward = b.segment("forward");
    let mut assembly = Assembly { b, spec, taps };
    let image = assembly.image()?;
    let Compared { backward, targets, terms } = match detector {
        true => objects::compare(&mut assembly)?,
        false => pixels::compare(&mut assembly)?,
    };
    let mut averages = Vec::new();
    for norm in &norms {
        // The running variance is unbiased, the batch's is not.
        let unbiased = norm.count as f32 / (norm.count as f32 - 1.0);
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
    let first = graph.nodes().len();
    let mut b = Builder::resume(graph);
    let mut weights = backpropagate(&mut b, &terms, &variables)?;
    if weights.is_empty() {
        return Err(Error::usage(format!("frozen {:?} leave nothing to train", spec.frozen)));
    }
    let mut graph = b.finish()?;
    let stretches = given_up(&mut graph, first, spec);
    let mut b = Builder::resume(graph);
    let of_terms: Vec<ValueId> = terms.iter().map(|term| b.graph().outputs()[term.loss.index()].1).collect();
    let losses = optimizer::append_squares(&mut b, "losses", &of_terms)?;
    let buckets = if on_device { buckets::divide(&mut b, backward, &weights) } else { Vec::new() };
    let follow = b.segment("follow");
    let statistics = follow_statistics(&mut b, averages, losses, spec.share)?;
    // Several ranks look at the gradients before they are summed.
    let of_batch: Vec<ValueId> = weights.iter().map(|weight| weight.gradient).collect();
    let batches = Batches { accumulate: spec.accumulate, share: spec.share, on_device };
    let optimizer =
        spec.optimizer.map(|config| optimizer::append(&mut b, config, batches, losses, &mut weights));
    let optimizer = optimizer.transpose()?;
    let mut trained = Vec::new();
    for (Weight { param, variable, gradient }, of_batch) in weights.into_iter().zip(of_batch) {
        let gradient = if spec.share.ranks > 1 { of_batch } else { gradient };
        let gradient = b.output(&format!("grad.{}", param.key), gradient);
        trained.push(Trained { param, variable: b.variable_id(variable)?, gradient });
    }
    let mut graph = b.finish()?;
    eliminate_dead_code(&mut graph);
    graph.verify()?;
    let segments = Segments { forward, backward, follow };
    Ok(TrainNetwork {
        graph,
        segments,
        buckets,
        image,
        targets,
        dropouts,
        terms,
        trained,
        statistics,
        optimizer,
        stretches,
    })
}

/// The stretches of a step whose gradients are the nodes from `first` on, in the order in which they are
/// given up, once the first of them are.
fn given_up(graph: &mut Graph, first: usize, spec: &TrainSpec<'_>) -> Vec<Stretch> {
    fn part<'n>(config: &Config, name: &'n str) -> Option<Part<'n>> {
        pixels::stretch(name).or_else(|| config.stretch(name))
    }
    let found = stretches(graph, first, |name| part(spec.config, name));
    let sorted: Vec<Stretch> = order(&found).into_iter().map(|index| found[index].clone()).collect();
    let again = &sorted[..spec.recompute.min(sorted.len())];
    if !again.is_empty() {
        let is_again = |part: &Part<'_>| again.iter().any(|stretch| stretch.name == part.name());
        recompute(graph, first, |name| part(spec.config, name).filter(is_again));
    }
    sorted
}

/// Refuses statistics of single values, whose variance is none: a map of one pixel, of one image.
fn check_norms(norms: &[TrainedNorm]) -> Result<()> {
    let Some(norm) = norms.iter().find(|norm| norm.count < 2) else { return Ok(()) };
    let name = norm.mean.0.key.trim_end_matches(".running_mean");
    Err(Error::usage(format!(
        "batch norm `{name}` cannot take its statistics from a batch that gives it {} value a channel: data.batch \
         of 2 or more, or batch_norm = \"frozen\"",
        norm.count
    )))
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

/// Lets running statistics follow those of the batch, which are results, with these factors, unless the sum
/// of the squares of its losses is not finite; among several ranks, whoever runs the graph does it.
fn follow_statistics(
    b: &mut Builder,
    averages: Vec<(Param, OutputId, f32)>,
    losses: ValueId,
    share: Share,
) -> Result<Vec<Statistic>> {
    if averages.is_empty() {
        return Ok(Vec::new());
    }
    let rate = b.node("momentum", Fill { shape: [1].into(), value: MOMENTUM }, &[])?;
    let mut statistics = Vec::new();
    let mut by_factor: Vec<(f32, Vec<[ValueId; 2]>)> = Vec::new();
    for (param, batch, factor) in averages {
        let (_, of_batch) = b.graph().outputs()[batch.index()];
        let running = b.variable(&param.key, b.graph().value(of_batch).ty, Some(param.clone()))?;
        match by_factor.iter_mut().find(|(known, _)| *known == factor) {
            Some((_, pairs)) => pairs.push([running, of_batch]),
            None => by_factor.push((factor, vec![[running, of_batch]])),
        }
        statistics.push(Statistic { param, variable: b.variable_id(running)?, batch, factor });
    }
    if share.ranks == 1 {
        for (factor, pairs) in by_factor {
            optimizer::append_pairs(b, "statistics", MovingAverage { factor }, [rate, losses], &pairs)?;
        }
    }
    Ok(statistics)
}

/// The losses of a task.
struct Compared {
    /// The segment that they begin.
    backward: SegmentId,
    targets: TargetInputs,
    terms: Vec<Term>,
}

/// The graph while it grows from predictions to losses.
struct Assembly<'a> {
    b: Builder,
    spec: &'a TrainSpec<'a>,
    taps: Vec<(String, ValueId)>,
}

impl Assembly<'_> {
    fn tap(&self, name: &str) -> Result<ValueId> {
        let found = self.taps.iter().find(|(tap, _)| tap == name);
        found.map(|&(_, id)| id).ok_or_else(|| Error::Graph(format!("the model has no `{name}`")))
    }

    /// The input of the network.
    fn image(&self) -> Result<InputId> {
        let image = self.b.graph().inputs().next().map(|(id, _)| id);
        image.ok_or_else(|| Error::Graph("the model takes no image".into()))
    }

    /// Planes `[B, N, h, w]` resized bilinearly.
    fn resized(&mut self, name: &str, masks: ValueId, [h, w]: [usize; 2]) -> Result<ValueId> {
        let from = self.b.shape(masks);
        let reshape = |b: &mut Builder, what: &str, shape: [usize; 4], x| {
            b.node(&format!("{name}.{what}"), Reshape { shape: shape.into() }, &[x])
        };
        let planes = reshape(&mut self.b, "planes", [from[0] * from[1], from[2], from[3], 1], masks)?;
        let op = Resize { mode: ResizeMode::Bilinear { align_corners: false }, size: [h, w], step: None };
        let resized = self.b.node(&format!("{name}.scaled"), op, &[planes])?;
        reshape(&mut self.b, "masks", [from[0], from[1], h, w], resized)
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
}
