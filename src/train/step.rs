//! One training step: forward and matching costs, assignment on the host, losses and gradients, and the
//! update.
//!
//! The plan is one list of steps over one arena, in segments. The host breaks a step between two: it takes
//! the cost matrices, assigns proposals to objects, and uploads what the losses compare with. Nothing is
//! allocated after the first step.

use super::data::Batch;
use super::matcher::Matcher;
use super::network::{
    self, Inputs, Segments, Term, TermKind, TrainNetwork, TrainSpec, Trained, build_training,
};
use super::optimizer::{Optimizer, run};
use crate::engine::{Device, training_executor};
use crate::error::{Error, Result};
use crate::exec::{Executor, Host, Report};
use crate::graph::{Param, VariableId};
use crate::plan::constants::ParamLoader;
use crate::tensor::Tensor;
use std::time::Duration;

/// The losses of a step, weighted and normalised as upstream reports them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Losses {
    /// Every term by its upstream name.
    pub terms: Vec<(String, f32)>,
    /// Their sum.
    pub total: f32,
}

impl Losses {
    /// A term by name.
    pub fn term(&self, name: &str) -> Option<f32> {
        self.terms.iter().find(|(term, _)| term == name).map(|&(_, value)| value)
    }
}

/// A planned training step, bound to memory.
pub struct TrainStep {
    executor: Box<dyn Executor>,
    segments: Segments,
    inputs: Inputs,
    rounds: Vec<Round>,
    terms: Vec<TermSlot>,
    trained: Vec<Trained>,
    statistics: Vec<(Param, VariableId)>,
    optimizer: Option<Optimizer>,
    shape: Shape,
    matcher: Matcher,
    losses: Losses,
}

/// Extents that all rounds share.
#[derive(Clone, Copy)]
struct Shape {
    batch: usize,
    slots: usize,
    /// Proposals: the objects that are matched.
    proposals: usize,
    things: usize,
    classes: usize,
    /// Pixels of a target mask.
    pixels: usize,
}

/// A round in the current step.
struct Round {
    ids: network::Round,
    /// Slot of each object, `[B, objects]`.
    slots: Vec<Option<usize>>,
    /// Objects with a target in the whole batch.
    positives: usize,
}

struct TermSlot {
    term: Term,
    /// Weight over normalisation in the current step.
    factor: f32,
}

impl TrainStep {
    /// Plans a step for a device and loads the parameters, which `load` gives in the checkpoint's layout.
    ///
    /// # Errors
    /// As [`build_training`] and [`training_executor`].
    pub fn new(spec: &TrainSpec<'_>, load: Box<ParamLoader>, device: Device, threads: usize) -> Result<Self> {
        let network = build_training(spec)?;
        let executor = training_executor(device, &network.graph, threads, load)?;
        Ok(TrainStep::bind(spec, network, executor))
    }

    fn bind(spec: &TrainSpec<'_>, network: TrainNetwork, executor: Box<dyn Executor>) -> Self {
        let config = spec.config;
        let round =
            |ids: network::Round| Round { ids, slots: vec![None; spec.batch * ids.objects], positives: 0 };
        let named = |term: &Term| (term.name.clone(), 0.0);
        TrainStep {
            losses: Losses { terms: network.terms.iter().map(named).collect(), total: 0.0 },
            rounds: network.rounds.into_iter().map(round).collect(),
            terms: network.terms.into_iter().map(|term| TermSlot { term, factor: 0.0 }).collect(),
            segments: network.segments,
            inputs: network.inputs,
            trained: network.trained,
            statistics: network.statistics,
            optimizer: network.optimizer,
            shape: Shape {
                batch: spec.batch,
                slots: spec.max_objects,
                proposals: config.head.proposals,
                things: config.classes.things,
                classes: config.classes.count(),
                pixels: spec.size.iter().map(|side| side / network::TARGET_STRIDE).product(),
            },
            matcher: Matcher::with_capacity(config.head.proposals, spec.max_objects),
            executor,
        }
    }

    /// What runs it.
    pub fn executor(&self) -> &dyn Executor {
        &*self.executor
    }

    /// The optimizer, if the step has one.
    pub fn optimizer(&self) -> Option<&Optimizer> {
        self.optimizer.as_ref()
    }

    /// The parameters with a gradient.
    pub fn trained(&self) -> &[Trained] {
        &self.trained
    }

    /// Every parameter that changes, running statistics among them.
    pub fn changing(&self) -> impl Iterator<Item = (&Param, VariableId)> {
        let trained = self.trained.iter().map(|trained| (&trained.param, trained.variable));
        trained.chain(self.statistics.iter().map(|(param, variable)| (param, *variable)))
    }

    /// The values of [`TrainStep::changing`], in the checkpoint's layout.
    ///
    /// # Errors
    /// As [`TrainStep::read`].
    pub fn parameters(&self) -> Result<Vec<(&Param, Tensor)>> {
        self.changing().map(|(param, variable)| Ok((param, self.read(param, variable)?))).collect()
    }

    /// A variable of the shape of `param`, in the checkpoint's layout.
    ///
    /// # Errors
    /// As [`Executor::read_variable`].
    pub fn read(&self, param: &Param, variable: VariableId) -> Result<Tensor> {
        let mut tensor = Tensor::zeros(self.executor.variables()[variable.index()].operand.ty.shape);
        self.executor.read_variable(variable, tensor.data_mut())?;
        Ok(param.layout.invert(tensor, &param.upstream_shape))
    }

    /// Gives a variable of the shape of `param` a value in the checkpoint's layout.
    ///
    /// # Errors
    /// As [`Executor::write_variable`].
    pub fn write(&mut self, param: &Param, variable: VariableId, tensor: &Tensor) -> Result<()> {
        self.executor.write_variable(variable, param.layout.apply(tensor.clone()).data())
    }

    /// Restores the number of updates, which bias correction depends on.
    pub fn set_updates(&mut self, updates: u64) {
        self.optimizer.iter_mut().for_each(|optimizer| optimizer.set_updates(updates));
    }

    /// The running statistics, for [`TrainStep::break_off`].
    ///
    /// # Errors
    /// As [`TrainStep::read`].
    pub fn statistics(&self) -> Result<Vec<Tensor>> {
        self.statistics.iter().map(|(param, variable)| self.read(param, *variable)).collect()
    }

    /// Forgets the batches since the last update, when the running statistics were these.
    ///
    /// # Errors
    /// As [`TrainStep::write`].
    pub fn break_off(&mut self, statistics: &[Tensor]) -> Result<()> {
        self.optimizer.iter_mut().for_each(Optimizer::break_off);
        for ((param, variable), tensor) in self.statistics.clone().iter().zip(statistics) {
            self.write(param, *variable, tensor)?;
        }
        Ok(())
    }

    /// Costs of matching a round, `[B, proposals, G]`, valid after [`TrainStep::run`].
    pub fn costs(&self, round: usize) -> &[f32] {
        self.executor.read(self.rounds[round].ids.cost).floats()
    }

    /// The gradient of a parameter in the graph's layout, valid after [`TrainStep::run`].
    pub fn gradient(&self, trained: &Trained) -> &[f32] {
        self.executor.read(trained.gradient).floats()
    }

    /// Slot that each object of a round was matched with in the last step, `[B, objects]`.
    pub fn matched(&self, round: usize) -> &[Option<usize>] {
        &self.rounds[round].slots
    }

    /// One forward and backward pass over a batch of the planned shape.
    ///
    /// # Errors
    /// [`Error::Shape`] if the batch has another shape; [`Error::Diverged`] naming the first term that is NaN
    /// or infinite.
    pub fn run(&mut self, batch: &Batch) -> Result<&Losses> {
        self.run_segments(batch, None)
    }

    /// As [`TrainStep::run`], and gives the time of each step of the plan to `report`.
    ///
    /// # Errors
    /// As [`TrainStep::run`].
    pub fn run_timed(
        &mut self,
        batch: &Batch,
        mut report: impl FnMut(usize, Duration) + Send,
    ) -> Result<&Losses> {
        self.run_segments(batch, Some(&mut report))
    }

    /// As [`Optimizer::step`], for the batches that were run since the last update. Without an optimizer
    /// there is never an update.
    ///
    /// # Errors
    /// As there.
    pub fn update(&mut self, lr: f64) -> Result<Option<f64>> {
        self.update_by(lr, None)
    }

    /// As [`TrainStep::update`], and gives the time of each step of the plan to `report`.
    ///
    /// # Errors
    /// As [`TrainStep::update`].
    pub fn update_timed(
        &mut self,
        lr: f64,
        mut report: impl FnMut(usize, Duration) + Send,
    ) -> Result<Option<f64>> {
        self.update_by(lr, Some(&mut report))
    }

    fn update_by(&mut self, lr: f64, report: Option<&mut Report<'_>>) -> Result<Option<f64>> {
        let Some(optimizer) = &mut self.optimizer else { return Ok(None) };
        optimizer.step(&mut *self.executor, lr, report)
    }

    fn run_segments(&mut self, batch: &Batch, mut report: Option<&mut Report<'_>>) -> Result<&Losses> {
        let Segments { forward, backward, follow } = self.segments;
        self.load(batch)?;
        run(&mut *self.executor, forward, &mut report)?;
        self.assign(batch)?;
        self.fill_targets(batch);
        run(&mut *self.executor, backward, &mut report)?;
        self.collect(batch)?;
        // A batch whose losses are of no use leaves no trace.
        self.optimizer.iter_mut().for_each(|optimizer| optimizer.begin_batch(&mut *self.executor));
        run(&mut *self.executor, follow, &mut report)?;
        Ok(&self.losses)
    }

    fn load(&mut self, batch: &Batch) -> Result<()> {
        let Inputs { image, masks, labels, class_weights, .. } = self.inputs;
        self.executor.write(image, Host::F32(&batch.images))?;
        self.executor.write(masks, Host::F32(&batch.masks))?;
        self.executor.write(labels, Host::I32(&batch.labels))?;
        if let Some(input) = class_weights {
            let Shape { proposals, things, classes, .. } = self.shape;
            for (index, weight) in self.executor.input(input).floats().iter_mut().enumerate() {
                let (object, class) = (index / classes, index % classes);
                // A proposal answers for things alone, a stuff kernel for its own class alone.
                let pair =
                    if object < proposals { class < things } else { class == things + object - proposals };
                *weight = f32::from(u8::from(pair));
            }
        }
        Ok(())
    }

    /// Matches every round by the costs of the first segment.
    fn assign(&mut self, batch: &Batch) -> Result<()> {
        let Shape { slots, proposals, things, .. } = self.shape;
        for (index, round) in self.rounds.iter_mut().enumerate() {
            let (costs, objects) = (self.executor.read(round.ids.cost).floats(), round.ids.objects);
            for image in 0..batch.ids.len() {
                let costs = &costs[image * proposals * slots..][..proposals * slots];
                let matched = &mut round.slots[image * objects..][..objects];
                let (thing_slots, stuff_slots) = matched.split_at_mut(proposals);
                if !self.matcher.assign(costs, slots, batch.things[image], thing_slots) {
                    let what = format!("matching costs of round {index}");
                    return Err(Error::Diverged { what, ids: vec![batch.ids[image]] });
                }
                stuff_slots.fill(None);
                if objects > proposals {
                    for slot in batch.things[image]..batch.objects[image] {
                        let class = batch.labels[image * slots + slot] as usize;
                        stuff_slots[class - things] = Some(slot);
                    }
                }
            }
            round.positives = round.slots.iter().flatten().count();
        }
        Ok(())
    }

    /// Uploads slots, labels, maps and the gradients' seeds.
    fn fill_targets(&mut self, batch: &Batch) {
        let Shape { slots, pixels, classes, .. } = self.shape;
        let label = |image: usize, slot: usize| batch.labels[image * slots + slot];
        let mask = |image: usize, slot: usize| &batch.masks[(image * slots + slot) * pixels..][..pixels];
        for round in &self.rounds {
            let matched = self.executor.input(round.ids.matched).indices();
            for (value, slot) in matched.iter_mut().zip(&round.slots) {
                *value = slot.map_or(-1, |slot| slot as i32);
            }
            if let Some(input) = round.ids.labels {
                let labels = self.executor.input(input).indices().iter_mut().zip(&round.slots);
                for (object, (value, slot)) in labels.enumerate() {
                    *value = slot.map_or(classes as i32, |slot| label(object / round.ids.objects, slot));
                }
            }
            if let Some(input) = round.ids.rank {
                let ranks = self.executor.input(input).indices();
                ranks.fill(-1);
                for (object, slot) in round.slots.iter().enumerate() {
                    let Some(slot) = *slot else { continue };
                    let (image, object) = (object / round.ids.objects, object % round.ids.objects);
                    paint(&mut ranks[image * pixels..][..pixels], mask(image, slot), object as i32);
                }
            }
        }
        // Stuff first, then the matched things of the kernel head in order of proposal.
        let seg = self.executor.input(self.inputs.seg_labels).indices();
        seg.fill(classes as i32);
        for image in 0..batch.ids.len() {
            let seg = &mut seg[image * pixels..][..pixels];
            for slot in batch.things[image]..batch.objects[image] {
                paint(seg, mask(image, slot), label(image, slot));
            }
            let Round { slots, ids, .. } = &self.rounds[0];
            for slot in slots[image * ids.objects..][..ids.objects].iter().flatten() {
                paint(seg, mask(image, *slot), label(image, *slot));
            }
        }
        let labelled = seg.iter().filter(|&&label| label < classes as i32).count();
        for slot in &mut self.terms {
            let positives = self.rounds[slot.term.round].positives;
            let count = match slot.term.kind {
                TermKind::Mask => positives * pixels,
                TermKind::Dice => positives,
                TermKind::Class => positives.max(1),
                TermKind::Rank => self.shape.batch * pixels,
                TermKind::Seg => labelled.max(1),
            };
            slot.factor = if count == 0 { 0.0 } else { slot.term.weight / count as f32 };
            self.executor.input(slot.term.seed).floats().fill(slot.factor);
        }
    }

    fn collect(&mut self, batch: &Batch) -> Result<()> {
        self.losses.total = 0.0;
        for (slot, (_, loss)) in self.terms.iter().zip(&mut self.losses.terms) {
            *loss = slot.factor * self.executor.read(slot.term.loss).floats()[0];
            if !loss.is_finite() {
                return Err(Error::Diverged { what: slot.term.name.clone(), ids: batch.ids.clone() });
            }
            self.losses.total += *loss;
        }
        Ok(())
    }
}

/// Writes `value` wherever the (soft) mask is not zero.
fn paint(map: &mut [i32], mask: &[f32], value: i32) {
    for (pixel, &mask) in map.iter_mut().zip(mask) {
        if mask > 0.0 {
            *pixel = value;
        }
    }
}
