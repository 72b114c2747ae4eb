//! One training step: forward and matching costs, assignment on the host, losses and gradients.
//!
//! The plan is one list of steps over one arena. The host breaks it once, where the first late input is read:
//! it takes the cost matrices, assigns proposals to objects, and uploads what the losses compare with.
//! Nothing is allocated after the first step.

use super::data::Batch;
use super::matcher::Matcher;
use super::network::{self as names, Term, TermKind, TrainNetwork, TrainSpec, build_training};
use crate::cpu::{self, Arithmetic, Executor, Pool, Selection, Weights};
use crate::error::{Error, Result};
use crate::graph::Param;
use crate::isa::Isa;
use crate::model::IMAGE;
use crate::tensor::{DType, Tensor};
use std::ops::Range;
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
    executor: Executor,
    pool: Pool,
    /// First step of the second segment.
    split: usize,
    rounds: Vec<Round>,
    terms: Vec<TermSlot>,
    image: usize,
    masks: usize,
    labels: usize,
    class_weights: Option<usize>,
    seg_labels: usize,
    shape: Shape,
    matcher: Matcher,
    losses: Losses,
    norms: Vec<(String, usize)>,
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

/// Where a round's numbers lie.
struct Round {
    objects: usize,
    /// Result with the costs of matching it.
    cost: usize,
    matched: usize,
    labels: Option<usize>,
    rank: Option<usize>,
    /// Slot of each object, `[B, objects]`.
    slots: Vec<Option<usize>>,
    /// Objects with a target in the whole batch.
    positives: usize,
}

struct TermSlot {
    term: Term,
    output: usize,
    seed: usize,
    /// Weight over normalisation in the current step.
    factor: f32,
}

impl TrainStep {
    /// Plans a step and loads the parameters from `weights`.
    ///
    /// # Errors
    /// As [`build_training`], [`cpu::plan`] and the source of the weights.
    pub fn new(spec: &TrainSpec<'_>, weights: &Weights, isa: Isa, threads: usize) -> Result<Self> {
        let pool = Pool::new(threads)?;
        let network = build_training(spec)?;
        // Exact: what a stage pools hangs on which side of 0 a mask logit falls, and a pixel of a small mask
        // is a per cent of it.
        let selection = Selection { arithmetic: Arithmetic::Exact, ..Selection::new(isa, pool.threads()) };
        let plan = cpu::plan(&network.graph, selection)?;
        let mut executor = pool.run(|| Executor::new(plan, weights))?;
        for index in 0..executor.plan().variables.len() {
            let param = executor.plan().variables[index].0.clone();
            let tensor = param.layout.apply(weights.load(&param)?);
            executor.variable_mut(index).copy_from_slice(tensor.data());
        }
        TrainStep::bind(spec, network, executor, pool)
    }

    fn bind(spec: &TrainSpec<'_>, network: TrainNetwork, executor: Executor, pool: Pool) -> Result<Self> {
        let plan = executor.plan();
        let input = |name: &str| {
            let found = plan.inputs.iter().position(|(input, _)| input == name);
            found.ok_or_else(|| Error::Graph(format!("the training graph has no input `{name}`")))
        };
        let output = |name: &str| {
            let found = executor.output_index(name);
            found.ok_or_else(|| Error::Graph(format!("the training graph has no result `{name}`")))
        };
        let config = spec.config;
        let panoptic = config.stuff_classes > 0;
        let mut late: Vec<String> = vec![names::SEG_LABELS.to_string()];
        let mut rounds = Vec::new();
        for (index, &objects) in network.objects.iter().enumerate() {
            let labels = (index > 0).then(|| names::labels_input(index));
            let rank = panoptic.then(|| names::rank_input(index));
            let matched = names::matched_input(index);
            rounds.push(Round {
                objects,
                cost: output(&names::cost_output(index))?,
                matched: input(&matched)?,
                labels: labels.as_deref().map(input).transpose()?,
                rank: rank.as_deref().map(input).transpose()?,
                slots: vec![None; spec.batch * objects],
                positives: 0,
            });
            late.extend(labels.into_iter().chain(rank).chain([matched]));
        }
        let mut terms = Vec::new();
        for term in network.terms {
            late.push(term.seed());
            terms.push(TermSlot {
                output: output(&term.name)?,
                seed: input(&term.seed())?,
                term,
                factor: 0.0,
            });
        }
        let named = |slot: &TermSlot| (slot.term.name.clone(), 0.0);
        let losses = Losses { terms: terms.iter().map(named).collect(), total: 0.0 };
        let late: Vec<&str> = late.iter().map(String::as_str).collect();
        let shape = Shape {
            batch: spec.batch,
            slots: spec.max_objects,
            proposals: config.proposals,
            things: config.thing_classes,
            classes: config.classes(),
            pixels: spec.size.iter().map(|side| side / names::TARGET_STRIDE).product(),
        };
        Ok(TrainStep {
            split: plan.first_use(&late),
            rounds,
            terms,
            image: input(IMAGE)?,
            masks: input(names::TARGET_MASKS)?,
            labels: input(names::TARGET_LABELS)?,
            class_weights: panoptic.then(|| input(names::CLASS_WEIGHTS)).transpose()?,
            seg_labels: input(names::SEG_LABELS)?,
            shape,
            matcher: Matcher::with_capacity(config.proposals, spec.max_objects),
            losses,
            norms: network.norms,
            executor,
            pool,
        })
    }

    /// The executor, whose results are the gradients after [`TrainStep::run`].
    pub fn executor(&self) -> &Executor {
        &self.executor
    }

    /// The executor and the pool it runs in: what an optimizer needs.
    pub fn parts_mut(&mut self) -> (&mut Executor, &Pool) {
        (&mut self.executor, &self.pool)
    }

    /// Every trained or trainable parameter with its current values, in the checkpoint's layout.
    pub fn parameters(&self) -> impl Iterator<Item = (&Param, Tensor)> {
        let variables = self.executor.plan().variables.iter().enumerate();
        variables.map(|(index, (param, operand))| {
            let tensor = Tensor::new(operand.ty.shape, self.executor.variable(index).to_vec());
            (param, param.layout.invert(tensor, &param.upstream_shape))
        })
    }

    /// Batch norms in training; see [`TrainNetwork::norms`].
    pub fn norms(&self) -> &[(String, usize)] {
        &self.norms
    }

    /// Slot that each object of a round was matched with in the last step, `[B, objects]`.
    pub fn matched(&self, round: usize) -> &[Option<usize>] {
        &self.rounds[round].slots
    }

    /// Result of the graph by name, valid after [`TrainStep::run`]: costs, raw loss sums, gradients.
    pub fn result(&self, name: &str) -> Option<&[f32]> {
        self.executor.output_index(name).map(|index| self.executor.output(index))
    }

    /// One forward and backward pass over a batch of the planned shape.
    ///
    /// # Errors
    /// [`Error::Shape`] if the batch has another shape; [`Error::Diverged`] naming the first term that is NaN
    /// or infinite.
    pub fn run(&mut self, batch: &Batch) -> Result<&Losses> {
        self.run_segments(batch, |executor, steps| executor.run_steps(steps))
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
        self.run_segments(batch, |executor, steps| executor.run_steps_timed(steps, &mut report))
    }

    fn run_segments(
        &mut self,
        batch: &Batch,
        mut run: impl FnMut(&mut Executor, Range<usize>) + Send,
    ) -> Result<&Losses> {
        self.load(batch)?;
        let (executor, split) = (&mut self.executor, self.split);
        let end = executor.plan().steps.len();
        self.pool.run(|| run(executor, 0..split));
        self.assign(batch)?;
        self.fill_targets(batch);
        let executor = &mut self.executor;
        self.pool.run(|| run(executor, split..end));
        self.collect(batch)
    }

    fn load(&mut self, batch: &Batch) -> Result<()> {
        copy(self.executor.input_mut(self.image), &batch.images, "images")?;
        copy(self.executor.input_mut(self.masks), &batch.masks, "masks")?;
        copy(self.executor.input_i32_mut(self.labels), &batch.labels, "labels")?;
        if let Some(input) = self.class_weights {
            let Shape { proposals, things, classes, .. } = self.shape;
            for (index, weight) in self.executor.input_mut(input).iter_mut().enumerate() {
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
            let costs = self.executor.output(round.cost);
            for image in 0..batch.ids.len() {
                let costs = &costs[image * proposals * slots..][..proposals * slots];
                let matched = &mut round.slots[image * round.objects..][..round.objects];
                let (thing_slots, stuff_slots) = matched.split_at_mut(proposals);
                if !self.matcher.assign(costs, slots, batch.things[image], thing_slots) {
                    let what = format!("matching costs of round {index}");
                    return Err(Error::Diverged { what, ids: vec![batch.ids[image]] });
                }
                stuff_slots.fill(None);
                if round.objects > proposals {
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
            let matched = self.executor.input_i32_mut(round.matched);
            for (value, slot) in matched.iter_mut().zip(&round.slots) {
                *value = slot.map_or(-1, |slot| slot as i32);
            }
            if let Some(input) = round.labels {
                let labels = self.executor.input_i32_mut(input).iter_mut().zip(&round.slots);
                for (object, (value, slot)) in labels.enumerate() {
                    *value = slot.map_or(classes as i32, |slot| label(object / round.objects, slot));
                }
            }
            if let Some(input) = round.rank {
                let ranks = self.executor.input_i32_mut(input);
                ranks.fill(-1);
                for (object, slot) in round.slots.iter().enumerate() {
                    let Some(slot) = *slot else { continue };
                    let (image, object) = (object / round.objects, object % round.objects);
                    paint(&mut ranks[image * pixels..][..pixels], mask(image, slot), object as i32);
                }
            }
        }
        // Stuff first, then the matched things of the kernel head in order of proposal.
        let seg = self.executor.input_i32_mut(self.seg_labels);
        seg.fill(classes as i32);
        for image in 0..batch.ids.len() {
            let seg = &mut seg[image * pixels..][..pixels];
            for slot in batch.things[image]..batch.objects[image] {
                paint(seg, mask(image, slot), label(image, slot));
            }
            let round = &self.rounds[0];
            for slot in round.slots[image * round.objects..][..round.objects].iter().flatten() {
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
            self.executor.input_mut(slot.seed)[0] = slot.factor;
        }
    }

    fn collect(&mut self, batch: &Batch) -> Result<&Losses> {
        self.losses.total = 0.0;
        for (slot, (_, loss)) in self.terms.iter().zip(&mut self.losses.terms) {
            debug_assert!(self.executor.output_type(slot.output).dtype == DType::F32);
            *loss = slot.factor * self.executor.output(slot.output)[0];
            if !loss.is_finite() {
                return Err(Error::Diverged { what: slot.term.name.clone(), ids: batch.ids.clone() });
            }
            self.losses.total += *loss;
        }
        Ok(&self.losses)
    }
}

/// Fills an input of the plan.
fn copy<T: Copy>(memory: &mut [T], values: &[T], what: &str) -> Result<()> {
    if memory.len() != values.len() {
        return Err(Error::Shape {
            op: "train step",
            value: what.to_string(),
            reason: format!("{} values, the plan takes {}", values.len(), memory.len()),
        });
    }
    memory.copy_from_slice(values);
    Ok(())
}

/// Writes `value` wherever the (soft) mask is not zero.
fn paint(map: &mut [i32], mask: &[f32], value: i32) {
    for (pixel, &mask) in map.iter_mut().zip(mask) {
        if mask > 0.0 {
            *pixel = value;
        }
    }
}
