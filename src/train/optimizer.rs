//! AdamW with clipping by the global norm, accumulation over batches and a moving average of the weights: the
//! nodes that do it in a training graph, and what the host says for each update.

use super::loss_scale::LossScale;
use crate::dist::Share;
use crate::error::{Error, Result};
use crate::exec::{Executor, Report};
use crate::graph::{Builder, InputId, OutputId, Param, SegmentId, ValueId, VariableId};
use crate::ops::gradient_norm::join;
use crate::ops::{Accumulate, AdamW, ClipScale, Fill, MovingAverage, SumSquares, ValueType};
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
    /// 1 if the last update made a value that is NaN or infinite.
    fault: OutputId,
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
    segments: [SegmentId; 2],
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
/// gradients, which replace those of `weights` if several batches make an update. Two segments follow: one
/// finds the norm of the gradients, one updates.
///
/// # Errors
/// As [`AdamWConfig::validate`]; as [`Builder::node`].
pub fn append(
    b: &mut Builder,
    config: &AdamWConfig,
    batches: Batches,
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
        Batches { accumulate: 2.., .. } => Some(append_sums(b, weights)?),
        _ => None,
    };
    let norm = b.segment("norm");
    let count = b.input("count", ValueType::exact([1]));
    let (scale, squares) = append_norm(b, config, count, weights)?;
    let update = b.segment("update");
    let follow = (config.ema > 0.0).then(|| b.input("ema.rate", ValueType::exact([1])));
    let (mut rates, mut slots): (Vec<(Rates, ValueId)>, _) = (Vec::new(), Vec::new());
    for weight in weights.iter() {
        let group = config.groups.iter().find(|group| weight.param.key.contains(&group.contains));
        let lr = group.map_or(1.0, |group| group.lr);
        let weight_decay = group.map_or(1.0, |group| group.weight_decay) * config.weight_decay;
        let known = rates.iter().find(|(rates, _)| (rates.lr, rates.weight_decay) == (lr, weight_decay));
        let value = match known {
            Some((_, value)) => *value,
            None => {
                let value = b.input(&format!("rates.{}", rates.len()), ValueType::exact([3]));
                rates.push((Rates { input: b.input_id(value)?, lr, weight_decay }, value));
                value
            }
        };
        slots.push(append_update(b, config, weight, [scale, value], follow)?);
    }
    Ok(Optimizer {
        config: config.clone(),
        slots,
        rates: rates.into_iter().map(|(rates, _)| rates).collect(),
        keep,
        count: b.input_id(count)?,
        squares,
        follow: follow.map(|id| b.input_id(id)).transpose()?,
        segments: [norm, update],
        updates: 0,
        sums,
        batches,
        pending: 0,
        scale: None,
        left_out: false,
    })
}

/// Sums of gradients in place of gradients; gives the input that begins new ones.
fn append_sums(b: &mut Builder, weights: &mut [Weight]) -> Result<InputId> {
    let keep = b.input("keep", ValueType::exact([1]));
    for Weight { param, gradient, .. } in weights {
        let name = format!("sum.{}", param.key);
        let sum = b.variable(&name, b.graph().value(*gradient).ty, None)?;
        let next = b.node(&format!("{name}.next"), Accumulate, &[sum, *gradient, keep])?;
        b.update(sum, next);
        *gradient = next;
    }
    b.input_id(keep)
}

/// The factor on gradients, and the sum of their squares.
fn append_norm(
    b: &mut Builder,
    config: &AdamWConfig,
    count: ValueId,
    weights: &[Weight],
) -> Result<(ValueId, OutputId)> {
    let mut total = b.node("squares.none", Fill { shape: [3].into(), value: 0.0 }, &[])?;
    for weights in weights.chunks(SumSquares::MOST) {
        let operands: Vec<ValueId> =
            std::iter::once(total).chain(weights.iter().map(|weight| weight.gradient)).collect();
        total = b.node("squares", SumSquares, &operands)?;
    }
    let op = ClipScale { clip_norm: config.clip_norm };
    Ok((b.node("clip", op, &[total, count])?, b.output("squares", total)))
}

/// Moments, average and update of one parameter.
fn append_update(
    b: &mut Builder,
    config: &AdamWConfig,
    weight: &Weight,
    [scale, rates]: [ValueId; 2],
    follow: Option<ValueId>,
) -> Result<OptimizerSlot> {
    let Weight { param, variable, gradient } = weight;
    let (key, ty) = (&param.key, b.graph().value(*variable).ty);
    let first = b.variable(&format!("first.{key}"), ty, None)?;
    let second = b.variable(&format!("second.{key}"), ty, None)?;
    let [beta1, beta2] = config.betas.map(|beta| beta as f32);
    let op = AdamW { beta1, beta2, eps: config.eps as f32 };
    let next = b.nodes(&format!("{key}.next"), op, &[*variable, *gradient, first, second, scale, rates])?;
    for (variable, next) in [*variable, first, second].into_iter().zip(&next) {
        b.update(variable, *next);
    }
    let average = match follow {
        None => None,
        Some(rate) => {
            let average = b.variable(&format!("average.{key}"), ty, Some(param.clone()))?;
            let op = MovingAverage { factor: 1.0 };
            let followed = b.node(&format!("average.{key}.next"), op, &[average, next[0], rate])?;
            b.update(average, followed);
            Some(b.variable_id(average)?)
        }
    };
    Ok(OptimizerSlot {
        param: param.clone(),
        first: b.variable_id(first)?,
        second: b.variable_id(second)?,
        average,
        fault: b.output(&format!("fault.{key}"), next[3]),
    })
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

    /// Updates done, and batches since, those of lower ranks in this turn among them.
    pub fn place(&self) -> (u64, u64) {
        (self.updates, (self.pending + self.batches.share.rank) as u64)
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

    /// After as many batches as make an update the variables are updated with learning rate `lr` (before the
    /// groups' factors); then the global norm of the mean gradient before clipping is returned. If that is
    /// NaN or infinite, nothing has been updated; with a loss scale that is [no
    /// fault](Optimizer::was_left_out). `report` is given the times of the steps.
    ///
    /// # Errors
    /// As [`Executor::run`].
    pub fn step(
        &mut self,
        executor: &mut dyn Executor,
        lr: f64,
        mut report: Option<&mut Report<'_>>,
    ) -> Result<Option<f64>> {
        if !self.is_due() {
            return Ok(None);
        }
        self.pending = 0;
        let [norm, update] = self.segments;
        let count = self.batches.count() as f64 * f64::from(self.loss_factor());
        executor.input(self.count).floats().fill(count as f32);
        run(executor, norm, &mut report)?;
        let norm = join(executor.read(self.squares).floats()).sqrt() / count;
        self.left_out = !norm.is_finite() && self.scale.as_mut().is_some_and(LossScale::shrink);
        if !norm.is_finite() {
            return Ok(Some(norm));
        }
        self.updates += 1;
        self.scale.iter_mut().for_each(LossScale::grow);
        let [beta1, beta2] = self.config.betas;
        let correction = |beta: f64| 1.0 - beta.powi(self.updates.min(i32::MAX as u64) as i32);
        for rates in &self.rates {
            let lr = lr * rates.lr;
            let values = [1.0 - lr * rates.weight_decay, lr / correction(beta1), correction(beta2).sqrt()];
            executor.input(rates.input).floats().copy_from_slice(&values.map(|value| value as f32));
        }
        if let Some(follow) = self.follow {
            // A young average follows more closely, so that it does not remember the start.
            let ema = self.config.ema.min((1 + self.updates) as f64 / (10 + self.updates) as f64);
            executor.input(follow).floats().fill(1.0 - ema as f32);
        }
        run(executor, update, &mut report)?;
        Ok(Some(norm))
    }

    /// The first parameter that the last update made NaN or infinite.
    pub fn fault(&self, executor: &dyn Executor) -> Option<&Param> {
        let bad = |slot: &&OptimizerSlot| executor.read(slot.fault).floats() != [0.0];
        self.slots.iter().find(bad).map(|slot| &slot.param)
    }
}

/// Runs a segment, timed if anyone wants to know.
pub(super) fn run(
    executor: &mut dyn Executor,
    segment: SegmentId,
    report: &mut Option<&mut Report<'_>>,
) -> Result<()> {
    match report {
        None => executor.run(segment),
        Some(report) => executor.run_timed(segment, report),
    }
}
