//! A detector's predictions compared with objects: the assignment, and what the losses need of it.

use super::TermSlot;
use crate::error::{Error, Result};
use crate::exec::{Executor, Host};
use crate::graph::InputId;
use crate::train::data::Batch;
use crate::train::matcher::Matcher;
use crate::train::network::objects::{self, ObjectTargets, TARGET_STRIDE};
use crate::train::network::{TermKind, TrainSpec};

/// The rounds of a step and what they are matched to.
pub(super) struct Objects {
    targets: ObjectTargets,
    rounds: Vec<Round>,
    shape: Shape,
    matcher: Matcher,
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
    /// Slot of each object, `[B, objects]`.
    slots: Vec<Option<usize>>,
    /// Objects with a target in the whole batch.
    positives: usize,
}

impl Objects {
    pub(super) fn new(spec: &TrainSpec<'_>, targets: ObjectTargets) -> Self {
        let config = spec.config;
        let round =
            |ids: &objects::Round| Round { slots: vec![None; spec.batch * ids.objects], positives: 0 };
        Objects {
            rounds: targets.rounds.iter().map(round).collect(),
            targets,
            shape: Shape {
                batch: spec.batch,
                slots: spec.max_objects,
                proposals: config.head.proposals,
                things: config.classes.things,
                classes: config.classes.count(),
                pixels: spec.size.iter().map(|side| side / TARGET_STRIDE).product(),
            },
            matcher: Matcher::with_capacity(config.head.proposals, spec.max_objects),
        }
    }

    pub(super) fn costs<'a>(&self, executor: &'a dyn Executor, round: usize) -> &'a [f32] {
        executor.read(self.targets.rounds[round].cost).floats()
    }

    pub(super) fn matched(&self, round: usize) -> &[Option<usize>] {
        &self.rounds[round].slots
    }

    /// Matches every round by the costs of the first segment, and uploads what the losses compare with.
    ///
    /// # Errors
    /// [`Error::Diverged`] for costs that are not finite.
    pub(super) fn compare(
        &mut self,
        executor: &mut dyn Executor,
        batch: &Batch,
        terms: &mut [TermSlot],
    ) -> Result<()> {
        self.assign(executor, batch)?;
        self.fill_targets(executor, batch, terms);
        Ok(())
    }

    /// The targets of a batch that matching needs.
    pub(super) fn targets<'a>(&self, batch: &'a Batch) -> [(InputId, Host<'a>); 2] {
        [(self.targets.masks, Host::F32(&batch.masks)), (self.targets.labels, Host::I32(&batch.labels))]
    }

    /// Uploads what matching weights classes by.
    pub(super) fn load(&self, executor: &mut dyn Executor) {
        if let Some(input) = self.targets.class_weights {
            let Shape { proposals, things, classes, .. } = self.shape;
            for (index, weight) in executor.input(input).floats().iter_mut().enumerate() {
                let (object, class) = (index / classes, index % classes);
                // A proposal answers for things alone, a stuff kernel for its own class alone.
                let pair =
                    if object < proposals { class < things } else { class == things + object - proposals };
                *weight = f32::from(u8::from(pair));
            }
        }
    }

    /// Matches every round by the costs of the first segment.
    fn assign(&mut self, executor: &dyn Executor, batch: &Batch) -> Result<()> {
        let Shape { slots, proposals, things, .. } = self.shape;
        for (index, (ids, round)) in self.targets.rounds.iter().zip(&mut self.rounds).enumerate() {
            let (costs, objects) = (executor.read(ids.cost).floats(), ids.objects);
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
    fn fill_targets(&self, executor: &mut dyn Executor, batch: &Batch, terms: &mut [TermSlot]) {
        let Shape { slots, pixels, classes, .. } = self.shape;
        let label = |image: usize, slot: usize| batch.labels[image * slots + slot];
        let mask = |image: usize, slot: usize| &batch.masks[(image * slots + slot) * pixels..][..pixels];
        for (ids, round) in self.targets.rounds.iter().zip(&self.rounds) {
            let matched = executor.input(ids.matched).indices();
            for (value, slot) in matched.iter_mut().zip(&round.slots) {
                *value = slot.map_or(-1, |slot| slot as i32);
            }
            if let Some(input) = ids.labels {
                let labels = executor.input(input).indices().iter_mut().zip(&round.slots);
                for (object, (value, slot)) in labels.enumerate() {
                    *value = slot.map_or(classes as i32, |slot| label(object / ids.objects, slot));
                }
            }
            if let Some(input) = ids.rank {
                let ranks = executor.input(input).indices();
                ranks.fill(-1);
                for (object, slot) in round.slots.iter().enumerate() {
                    let Some(slot) = *slot else { continue };
                    let (image, object) = (object / ids.objects, object % ids.objects);
                    paint(&mut ranks[image * pixels..][..pixels], mask(image, slot), object as i32);
                }
            }
        }
        // Stuff first, then the matched things of the kernel head in order of proposal.
        let seg = executor.input(self.targets.seg_labels).indices();
        seg.fill(classes as i32);
        for image in 0..batch.ids.len() {
            let seg = &mut seg[image * pixels..][..pixels];
            for slot in batch.things[image]..batch.objects[image] {
                paint(seg, mask(image, slot), label(image, slot));
            }
            let objects = self.targets.rounds[0].objects;
            for slot in self.rounds[0].slots[image * objects..][..objects].iter().flatten() {
                paint(seg, mask(image, *slot), label(image, *slot));
            }
        }
        let labelled = seg.iter().filter(|&&label| label < classes as i32).count();
        for slot in terms {
            let positives = self.rounds[slot.term.round].positives;
            let count = match slot.term.kind {
                TermKind::Mask => positives * pixels,
                TermKind::Dice => positives,
                TermKind::Class => positives.max(1),
                TermKind::Rank | TermKind::Pixel => self.shape.batch * pixels,
                TermKind::Seg => labelled.max(1),
            };
            slot.divide_by(executor, count);
        }
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
