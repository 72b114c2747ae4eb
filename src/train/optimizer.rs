//! AdamW with clipping by the global norm, accumulation over batches and a moving average of the weights: the
//! nodes that do it in a training graph, and what the host says for each update.

use super::loss_scale::LossScale;
use crate::dist::Share;
use crate::error::{Error, Result};
use crate::exec::Executor;
use crate::graph::{Builder, InputId, OutputId, Param, SegmentId, ValueId, VariableId};
use crate::ops::gradient_norm::join;
use crate::ops::{Accumulate, AdamW, ClipScale, Fill, MovingAverage, Op, Pairs, SumSquares, ValueType};
use serde::{Deserialize, Serialize};

/// Settings of a group of parameters.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Group {
    /// The parameters whose key contains this text, as in mmcv's `custom_keys`.
    pub contains: String,
    /// Factor on the learning rate.
    #[serde(default = "one")]
    pub lr: f64,
    /// Factor on the weight decay.
    #[serde(default = "one")]
    pub weight_decay: f64,
}

fn one() -> f64 {
    1.0
}

/// Settings of an [`Optimizer`]; the defaults are K-Net's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdamWConfig {
    /// Base learning rate.
    pub lr: f64,
    /// Decay rates of the first and second moment.
    pub betas: [f64; 2],
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Gradients are scaled down to this global L2 norm; 0 leaves them alone.
    pub clip_norm: f64,
    /// Decay of the moving average of the weights; 0 keeps none.
    pub ema: f64,
    /// The first group that a key belongs to decides.
    pub groups: Vec<Group>,
}

impl Default for AdamWConfig {
    fn default() -> Self {
        let backbone = Group { contains: "backbone".into(), lr: 0.25, weight_decay: 1.0 };
        AdamWConfig {
            lr: 1e-4,
            betas: [0.9, 0.999],
            eps: 1e-8,
            weight_decay: 0.05,
            clip_norm: 1.0,
            ema: 0.0,
            groups: vec![backbone],
        }
    }
}

impl AdamWConfig {
    /// Checks the ranges.
    ///
    /// # Errors
    /// [`Error::Usage`] naming the field.
    pub fn validate(&self) -> Result<()> {
        let unit = |v: f64| (0.0..1.0).contains(&v);
        let checks = [
            ("lr", self.lr.is_finite() && self.lr > 0.0),
            ("betas", self.betas.into_iter().all(unit)),
            ("eps", self.eps.is_finite() && self.eps > 0.0),
            ("weight_decay", self.weight_decay.is_finite() && self.weight_decay >= 0.0),
            ("clip_norm", self.clip_norm.is_finite() && self.clip_norm >= 0.0),
            ("ema", unit(self.ema)),
            ("groups", self.groups.iter().all(|g| g.lr >= 0.0 && g.weight_decay >= 0.0)),
        ];
        match checks.into_iter().find(|(_, ok)| !ok) {
            Some((field, _)) => Err(Error::usage(format!("optimizer: {field} is out of range"))),
            None => Ok(()),
        }
    }
}

/// A parameter to be updated, while its graph is built.
#[derive(Clone, Debug)]
pub struct Weight {
    /// Which.
    pub param: Param,
    /// Its value.
    pub variable: ValueId,
    /// Its gradient.
    pub gradient: ValueId,
}

/// What the optimizer keeps of a parameter, each in the parameter's layout in the graph.
#[derive(Clone, Debug)]
pub struct OptimizerSlot {
    /// Which.
    pub param: Param,
    /// First moment.
    pub first: VariableId,
    /// Second moment.
    pub second: VariableId,
    /// Moving average of the parameter, if one is kept. It begins as the parameter.
    pub average: Option<VariableId>,
}

/// The rates of parameters that have the same factors.
#[derive(Clone, Debug)]
struct Rates {
    input: InputId,
    /// Factor on the learning rate.
    lr: f64,
    weight_decay: f64,
}

/// The host's side of the updates in a graph: it counts them and says how far each goes.
#[derive(Clone, Debug)]
pub struct Optimizer {
    config: AdamWConfig,
    slots: Vec<OptimizerSlot>,
    /// 1 of each of these slots if the last update made a value that is NaN or infinite.
    faults: Vec<(OutputId, Vec<usize>)>,
    rates: Vec<Rates>,
    /// 0 begins a new sum of gradients.
    keep: Option<InputId>,
    /// Among several ranks on CPUs, the sums, which they make together: one for each slot.
    sums: Vec<VariableId>,
    /// What the sum of gradients is divided by to be their mean.
    count: InputId,
    /// Sum of the squares of all gradients.
    squares: OutputId,
    /// Share of the parameters in their moving averages.
    follow: Option<InputId>,
    /// Clipping and updates.
    segment: SegmentId,
    /// Updates done.
    updates: u64,
    batches: Batches,
    /// Batches since, those of all ranks.
    pending: usize,
    /// Of gradients in f16.
    scale: Option<LossScale>,
    /// Whether the last update was left out.
    left_out: bool,
}

/// How many batches make an update.
#[derive(Clone, Copy, Debug)]
pub struct Batches {
    /// On each rank.
    pub accumulate: usize,
    /// Which rank this is.
    pub share: Share,
    /// Whether what ranks make of their batches is summed on their GPUs before the graph adds it up.
    pub on_device: bool,
}

impl Batches {
    /// Of all ranks.
    fn count(&self) -> usize {
        self.accumulate.max(1) * self.share.ranks
    }
}

/// Appends the updates of `weights` to a graph, whose current segment runs for each batch: there go sums of
/// gradients, which replace those of `weights` if several batches make an update. One segment follows, which
/// finds the norm of the gradients and updates. `losses` is the sum of the squares of a batch's losses, as
/// [`SumSquares`] gives it: if it is not finite, the batch leaves no trace, and if the norm is not, the
/// update is none.
///
/// # Errors
/// As [`AdamWConfig::validate`]; as [`Builder::node`].
pub fn append(
    b: &mut Builder,
    config: &AdamWConfig,
    batches: Batches,
    losses: ValueId,
    weights: &mut [Weight],
) -> Result<Optimizer> {
    config.validate()?;
    let mut sums = Vec::new();
    let keep = match batches {
        Batches { share: Share { ranks: 2.., .. }, on_device: false, .. } => {
            for Weight { param, gradient, .. } in weights.iter_mut() {
                let ty = b.graph().value(*gradient).ty;
                *gradient = b.variable(&format!("sum.{}", param.key), ty, None)?;
                sums.push(b.variable_id(*gradient)?);
            }
            None
        }
        Batches { accumulate: 2.., .. } => Some(append_sums(b, losses, weights)?),
        _ => None,
    };
    let segment = b.segment("update");
    let count = b.input("count", ValueType::exact([1]));
    let (scale, squares) = append_norm(b, config, [count, losses], weights)?;
    let follow = (config.ema > 0.0).then(|| b.input("ema.rate", ValueType::exact([1])));
    let mut kept = Vec::new();
    for Weight { param: Param { key, .. }, variable, .. } in weights.iter() {
        let ty = b.graph().value(*variable).ty;
        kept.push([
            b.variable(&format!("first.{key}"), ty, None)?,
            b.variable(&format!("second.{key}"), ty, None)?,
        ]);
    }
    let mut rates: Vec<(Rates, ValueId, Vec<usize>)> = Vec::new();
    for (index, Weight { param, .. }) in weights.iter().enumerate() {
        let group = config.groups.iter().find(|group| param.key.contains(&group.contains));
        let lr = group.map_or(1.0, |group| group.lr);
        let weight_decay = group.map_or(1.0, |group| group.weight_decay) * config.weight_decay;
        let known = rates.iter_mut().find(|(rates, ..)| (rates.lr, rates.weight_decay) == (lr, weight_decay));
        if let Some((.., members)) = known {
            members.push(index);
            continue;
        }
        let value = b.input(&format!("rates.{}", rates.len()), ValueType::exact([3]));
        rates.push((Rates { input: b.input_id(value)?, lr, weight_decay }, value, vec![index]));
    }
    let mut faults = Vec::new();
    let mut updated = vec![scale; weights.len()];
    for (_, rates, members) in &rates {
        for members in members.chunks(AdamW::MOST) {
            let of = |&index: &usize| (&weights[index], kept[index]);
            let chunk: Vec<_> = members.iter().map(of).collect();
            let next = append_updates(b, config, [scale, *rates], &chunk)?;
            for (&index, next) in members.iter().zip(next.chunks_exact(3)) {
                updated[index] = next[0];
            }
            let name = format!("faults.{}", faults.len());
            faults.push((b.output(&name, next[3 * members.len()]), members.to_vec()));
        }
    }
    let averages = match follow {
        None => vec![None; weights.len()],
        Some(rate) => append_averages(b, [rate, scale], weights, &updated)?,
    };
    let mut slots = Vec::new();
    for ((Weight { param, .. }, [first, second]), average) in weights.iter().zip(kept).zip(averages) {
        let [first, second] = [b.variable_id(first)?, b.variable_id(second)?];
        slots.push(OptimizerSlot { param: param.clone(), first, second, average });
    }
    Ok(Optimizer {
        config: config.clone(),
        slots,
        faults,
        rates: rates.into_iter().map(|(rates, ..)| rates).collect(),
        keep,
        count: b.input_id(count)?,
        squares,
        follow: follow.map(|id| b.input_id(id)).transpose()?,
        segment,
        updates: 0,
        sums,
        batches,
        pending: 0,
        scale: None,
        left_out: false,
    })
}

/// Sums of gradients in place of gradients; gives the input that begins new ones.
fn append_sums(b: &mut Builder, losses: ValueId, weights: &mut [Weight]) -> Result<InputId> {
    let keep = b.input("keep", ValueType::exact([1]));
    let mut pairs = Vec::new();
    for Weight { param, gradient, .. } in weights.iter() {
        let ty = b.graph().value(*gradient).ty;
        pairs.push([b.variable(&format!("sum.{}", param.key), ty, None)?, *gradient]);
    }
    let next = append_pairs(b, "sums", Accumulate, [keep, losses], &pairs)?;
    weights.iter_mut().zip(next).for_each(|(weight, next)| weight.gradient = next);
    b.input_id(keep)
}

/// New values of variables, each of which comes of its old one and another value, given a number and a gate.
///
/// # Errors
/// As [`Builder::node`].
pub(super) fn append_pairs(
    b: &mut Builder,
    name: &str,
    op: impl Into<Op> + Copy,
    factors: [ValueId; 2],
    pairs: &[[ValueId; 2]],
) -> Result<Vec<ValueId>> {
    let mut all = Vec::new();
    for pairs in pairs.chunks(Pairs::MOST) {
        let operands: Vec<ValueId> = factors.iter().chain(pairs.iter().flatten()).copied().collect();
        all.extend(b.nodes(name, op, &operands)?);
    }
    pairs.iter().zip(&all).for_each(|([variable, _], &next)| b.update(*variable, next));
    Ok(all)
}

/// The sum of the squares of all elements of `values`, as [`SumSquares`] gives it.
///
/// # Errors
/// As [`Builder::node`].
pub(super) fn append_squares(b: &mut Builder, name: &str, values: &[ValueId]) -> Result<ValueId> {
    let mut total = b.node(&format!("{name}.none"), Fill { shape: [3].into(), value: 0.0 }, &[])?;
    for values in values.chunks(SumSquares::MOST) {
        let operands: Vec<ValueId> = std::iter::once(total).chain(values.iter().copied()).collect();
        total = b.node(name, SumSquares, &operands)?;
    }
    Ok(total)
}

/// The factor on gradients, given the count and the losses' squares; and the sum of the gradients' squares.
fn append_norm(
    b: &mut Builder,
    config: &AdamWConfig,
    [count, losses]: [ValueId; 2],
    weights: &[Weight],
) -> Result<(ValueId, OutputId)> {
    let gradients: Vec<ValueId> = weights.iter().map(|weight| weight.gradient).collect();
    let total = append_squares(b, "squares", &gradients)?;
    let op = ClipScale { clip_norm: config.clip_norm };
    Ok((b.node("clip", op, &[total, count, losses])?, b.output("squares", total)))
}

/// Updates of parameters and of their moments; gives their new values, and the faults.
fn append_updates(
    b: &mut Builder,
    config: &AdamWConfig,
    factors: [ValueId; 2],
    weights: &[(&Weight, [ValueId; 2])],
) -> Result<Vec<ValueId>> {
    let [beta1, beta2] = config.betas.map(|beta| beta as f32);
    let op = AdamW { beta1, beta2, eps: config.eps as f32 };
    let mut operands = factors.to_vec();
    for &(&Weight { variable, gradient, .. }, [first, second]) in weights {
        operands.extend([variable, gradient, first, second]);
    }
    let next = b.nodes("updates", op, &operands)?;
    for (&(weight, [first, second]), next) in weights.iter().zip(next.chunks_exact(3)) {
        for (variable, &next) in [weight.variable, first, second].into_iter().zip(next) {
            b.update(variable, next);
        }
    }
    Ok(next)
}

/// Moving averages of the `updated` parameters, given their rate and a gate.
fn append_averages(
    b: &mut Builder,
    factors: [ValueId; 2],
    weights: &[Weight],
    updated: &[ValueId],
) -> Result<Vec<Option<VariableId>>> {
    let (mut averages, mut pairs) = (Vec::new(), Vec::new());
    for (Weight { param, variable, .. }, &updated) in weights.iter().zip(updated) {
        let (name, ty) = (format!("average.{}", param.key), b.graph().value(*variable).ty);
        let average = b.variable(&name, ty, Some(param.clone()))?;
        averages.push(Some(b.variable_id(average)?));
        pairs.push([average, updated]);
    }
    append_pairs(b, "averages", MovingAverage { factor: 1.0 }, factors, &pairs)?;
    Ok(averages)
}

impl Optimizer {
    /// The parameters with their moments.
    pub fn slots(&self) -> &[OptimizerSlot] {
        &self.slots
    }

    /// Updates done.
    pub fn updates(&self) -> u64 {
        self.updates
    }

    /// Updates tried, and batches since, those of lower ranks in this turn among them; of the batch that
    /// comes after an update `under_way`, whose end nobody has to know for it.
    pub fn place(&self, under_way: bool) -> (u64, u64) {
        let tried = self.updates + self.scale.map_or(0, |scale| scale.left_out);
        let (more, pending) = if under_way { (1, 0) } else { (0, self.pending) };
        (tried + more, (pending + self.batches.share.rank) as u64)
    }

    /// Among several ranks on CPUs, the sums of gradients, one for each slot.
    pub fn sums(&self) -> &[VariableId] {
        &self.sums
    }

    /// Whether the sums hold no batch but the last one of each rank.
    pub fn sums_begin(&self) -> bool {
        self.pending == self.batches.share.ranks
    }

    /// Whether an update is due.
    pub fn is_due(&self) -> bool {
        self.pending >= self.batches.count()
    }

    /// Restores the number of updates, which bias correction depends on.
    pub fn set_updates(&mut self, updates: u64) {
        self.updates = updates;
    }

    /// The factor on losses, if gradients are in f16.
    pub fn loss_scale(&self) -> Option<LossScale> {
        self.scale
    }

    /// Lets losses be scaled, or not.
    pub fn set_loss_scale(&mut self, scale: Option<LossScale>) {
        self.scale = scale;
    }

    /// What losses are multiplied by.
    pub fn loss_factor(&self) -> f32 {
        self.scale.map_or(1.0, |scale| scale.factor)
    }

    /// Whether the last update was left out because gradients in f16 overflowed: losses are scaled by less
    /// from then on.
    pub fn was_left_out(&self) -> bool {
        self.left_out
    }

    /// Counts a batch of each rank, whose gradients are about to be summed.
    pub fn begin_batch(&mut self, executor: &mut dyn Executor) {
        if let Some(keep) = self.keep {
            executor.input(keep).floats().fill(f32::from(u8::from(self.pending > 0)));
        }
        self.pending += self.batches.share.ranks;
    }

    /// Forgets the batches since the last update.
    pub fn break_off(&mut self) {
        self.pending = 0;
    }

    /// Forgets the last batch, whose losses were of no use: the graph has left it out.
    pub fn withdraw_batch(&mut self) {
        self.pending = self.pending.saturating_sub(self.batches.share.ranks);
    }

    /// The segment that makes an update, if one is due after the last batch that has begun. What it needs is
    /// written for learning rate `lr` (before the groups' factors). [`Optimizer::finish`] follows when it has
    /// run.
    pub fn prepare(&self, executor: &mut dyn Executor, lr: f64) -> Option<SegmentId> {
        if !self.is_due() {
            return None;
        }
        executor.input(self.count).floats().fill(self.count() as f32);
        // That of a sum that is not finite makes none; then this is written again.
        let update = self.updates + 1;
        let [beta1, beta2] = self.config.betas;
        let correction = |beta: f64| 1.0 - beta.powi(update.min(i32::MAX as u64) as i32);
        for rates in &self.rates {
            let lr = lr * rates.lr;
            let values = [1.0 - lr * rates.weight_decay, lr / correction(beta1), correction(beta2).sqrt()];
            executor.input(rates.input).floats().copy_from_slice(&values.map(|value| value as f32));
        }
        if let Some(follow) = self.follow {
            // A young average follows more closely, so that it does not remember the start.
            let ema = self.config.ema.min((1 + update) as f64 / (10 + update) as f64);
            executor.input(follow).floats().fill(1.0 - ema as f32);
        }
        Some(self.segment)
    }

    /// What the sum of gradients is divided by to be their mean.
    fn count(&self) -> f64 {
        self.batches.count() as f64 * f64::from(self.loss_factor())
    }

    /// Counts the update that was made, and gives the global norm of the mean gradient before clipping. If
    /// that is NaN or infinite, nothing has been updated; with a loss scale that is [no
    /// fault](Optimizer::was_left_out).
    pub fn finish(&mut self, executor: &dyn Executor) -> f64 {
        self.pending = 0;
        let norm = join(executor.read(self.squares).floats()).sqrt() / self.count();
        self.left_out = !norm.is_finite() && self.scale.as_mut().is_some_and(LossScale::shrink);
        if norm.is_finite() {
            self.updates += 1;
            self.scale.iter_mut().for_each(LossScale::grow);
        }
        norm
    }

    /// After as many batches as make an update the variables are updated, by [`Optimizer::prepare`] and
    /// [`Optimizer::finish`].
    ///
    /// # Errors
    /// As [`Executor::run`].
    pub fn step(&mut self, executor: &mut dyn Executor, lr: f64) -> Result<Option<f64>> {
        let Some(segment) = self.prepare(executor, lr) else { return Ok(None) };
        executor.run(segment)?;
        Ok(Some(self.finish(executor)))
    }

    /// The first parameter that the last update made NaN or infinite.
    pub fn fault(&self, executor: &dyn Executor) -> Option<&Param> {
        let bad = self.faults.iter().flat_map(|(faults, slots)| {
            let faults = executor.read(*faults).floats().iter().zip(slots);
            faults.filter(|(fault, _)| **fault != 0.0).map(|(_, slot)| *slot)
        });
        bad.min().map(|slot| &self.slots[slot].param)
    }
}
