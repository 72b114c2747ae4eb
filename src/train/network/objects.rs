//! A detector's losses: masks, classes and semantic maps, compared with the objects they are matched with.
//!
//! A *round* is a set of predictions with losses: round 0 is the kernel head, round `s + 1` the update stage
//! `s`. The masks of round `r` are matched by the predictions of round `r - 1` (round 0, and round 1 too, by
//! the initial masks), so the costs of all rounds are known after the forward pass, and the host breaks the
//! run there: see [`step`](crate::train::step).

use super::{Assembly, Compared, TargetInputs, Term, TermKind};
use crate::error::Result;
use crate::graph::{InputId, OutputId, ValueId};
use crate::model::SIZE_DIVISOR;
use crate::ops::binary::BinaryKind;
use crate::ops::{
    Binary, ClassCost, CrossEntropyLoss, FocalLoss, MaskCost, MaskLoss, Reshape, Slice, ValueType,
};

/// Masks are compared at this stride of the input.
pub const TARGET_STRIDE: usize = 4;

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

/// What a batch fills.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectTargets {
    /// The kernel head and every stage.
    pub rounds: Vec<Round>,
    /// Soft target masks, `[B, G, H / 4, W / 4]`.
    pub masks: InputId,
    /// Class of each target, `[B, G]`, -1 for an empty slot.
    pub labels: InputId,
    /// Weight of each (object, class) pair in the class loss of a panoptic model, `[N, K]`.
    pub class_weights: Option<InputId>,
    /// Late input: class of each pixel, `[B, H / 4 * W / 4]`; the number of classes stands for background.
    pub seg_labels: InputId,
}

/// Predictions of one round.
struct Predictions {
    /// Class logits `[B, N, K]`; the kernel head has none.
    classes: Option<ValueId>,
    /// Mask logits `[B, N, H / 4, W / 4]`.
    masks: ValueId,
}

/// Inputs known before the run.
struct Known {
    masks: ValueId,
    labels: ValueId,
    class_weights: Option<ValueId>,
}

impl Known {
    fn new(a: &mut Assembly<'_>) -> Result<Self> {
        let (batch, slots, config) = (a.spec.batch, a.spec.max_objects, a.spec.config);
        let [h, w] = a.target_size();
        let masks = a.b.input("target.masks", ValueType::map([batch, slots, h, w]));
        let labels = a.b.input("target.labels", ValueType::index([batch, slots]));
        let pairs = ValueType::exact([config.objects(), config.classes.count()]);
        let class_weights = (config.classes.stuff > 0).then(|| a.b.input("class_weights", pairs));
        Ok(Known { masks, labels, class_weights })
    }
}

/// The losses, and the costs that matching needs.
pub(super) fn compare(a: &mut Assembly<'_>) -> Result<Compared> {
    let predictions = a.predictions()?;
    let known = Known::new(a)?;
    let costs = a.costs(&predictions, &known)?;
    let backward = a.b.segment("backward");
    let (rounds, terms, seg_labels) = a.losses(&predictions, &known, &costs)?;
    let id = |value: ValueId| a.b.input_id(value);
    let targets = ObjectTargets {
        rounds,
        masks: id(known.masks)?,
        labels: id(known.labels)?,
        class_weights: known.class_weights.map(id).transpose()?,
        seg_labels,
    };
    Ok(Compared { backward, targets: TargetInputs::Objects(targets), terms })
}

impl Assembly<'_> {
    fn target_size(&self) -> [usize; 2] {
        debug_assert!(SIZE_DIVISOR.is_multiple_of(TARGET_STRIDE));
        self.spec.size.map(|side| side / TARGET_STRIDE)
    }

    /// Planes `[B, N, h, w]` resized bilinearly to the size of the targets.
    fn at_target_size(&mut self, name: &str, masks: ValueId) -> Result<ValueId> {
        let size = self.target_size();
        self.resized(name, masks, size)
    }

    /// The first `len` objects of `[B, N, ..]`.
    fn first_objects(&mut self, name: &str, x: ValueId, len: usize) -> Result<ValueId> {
        if self.b.shape(x)[1] == len {
            return Ok(x);
        }
        self.b.node(&format!("{name}.things"), Slice { axis: 1, start: 0, len }, &[x])
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
    ) -> Result<(Vec<Round>, Vec<Term>, InputId)> {
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
        Ok((rounds, terms, seg_labels))
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
