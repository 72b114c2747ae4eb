//! AdamW with decoupled weight decay (Loshchilov and Hutter 2019), gradient clipping, accumulation and a
//! moving average of the weights, in PyTorch's order of operations.

use super::network::grad_output;
use crate::cpu::{Executor, Pool};
use crate::error::{Error, Result};
use crate::memory;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// Elements of a task and of a partial sum: fixed, so that every bit is the same for any number of threads.
const CHUNK: usize = 1 << 14;

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

/// Settings of [`AdamW`]; the defaults are K-Net's.
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

/// One trained parameter.
#[derive(Clone, Debug)]
pub struct Slot {
    /// Upstream key.
    pub key: String,
    /// First moment.
    pub first: Vec<f32>,
    /// Second moment.
    pub second: Vec<f32>,
    /// Moving average of the parameter; empty if none is kept.
    pub average: Vec<f32>,
    /// Sum of gradients since the last update; empty without accumulation.
    accumulated: Vec<f32>,
    variable: usize,
    output: usize,
    lr: f64,
    weight_decay: f64,
}

/// Optimizer state over the variables of a training executor.
#[derive(Clone, Debug)]
pub struct AdamW {
    config: AdamWConfig,
    slots: Vec<Slot>,
    partial: Vec<f64>,
    /// Updates done.
    updates: u64,
    accumulate: usize,
    pending: usize,
}

impl AdamW {
    /// State for every variable of `executor` that has a gradient; `accumulate` steps make one update.
    /// Averages start at the variables' values, so load those first.
    ///
    /// # Errors
    /// As [`AdamWConfig::validate`]; [`Error::Memory`] if there is too little for the moments.
    pub fn new(config: AdamWConfig, executor: &Executor, accumulate: usize) -> Result<Self> {
        config.validate()?;
        let trained: usize = executor.plan().variables.iter().map(|(_, operand)| operand.ty.bytes()).sum();
        let copies = 2 + usize::from(config.ema > 0.0) + usize::from(accumulate > 1);
        memory::check("the optimizer with its moments of every parameter", trained.saturating_mul(copies))?;
        let mut slots = Vec::new();
        let mut chunks = 0;
        for (variable, (param, operand)) in executor.plan().variables.iter().enumerate() {
            let Some(output) = executor.output_index(&grad_output(&param.key)) else { continue };
            let len = operand.ty.shape.len();
            let group = config.groups.iter().find(|group| param.key.contains(&group.contains));
            slots.push(Slot {
                key: param.key.clone(),
                first: vec![0.0; len],
                second: vec![0.0; len],
                average: if config.ema > 0.0 { executor.variable(variable).to_vec() } else { Vec::new() },
                accumulated: if accumulate > 1 { vec![0.0; len] } else { Vec::new() },
                variable,
                output,
                lr: group.map_or(1.0, |group| group.lr),
                weight_decay: group.map_or(1.0, |group| group.weight_decay) * config.weight_decay,
            });
            chunks += len.div_ceil(CHUNK);
        }
        let accumulate = accumulate.max(1);
        Ok(AdamW { config, slots, partial: vec![0.0; chunks], updates: 0, accumulate, pending: 0 })
    }

    /// The parameters with their moments.
    pub fn slots(&self) -> &[Slot] {
        &self.slots
    }

    /// The same, to restore a run. The lengths must stay.
    pub fn slots_mut(&mut self) -> &mut [Slot] {
        &mut self.slots
    }

    /// Updates done.
    pub fn updates(&self) -> u64 {
        self.updates
    }

    /// Restores the number of updates, which bias correction depends on.
    pub fn set_updates(&mut self, updates: u64) {
        self.updates = updates;
    }

    /// Takes the gradients of the executor's last run. After every `accumulate` of them the variables are
    /// updated with learning rate `lr` (before the groups' factors); then the global norm of the mean
    /// gradient before clipping is returned. If that is NaN or infinite, nothing has been updated.
    ///
    /// # Errors
    /// [`Error::Graph`] if variables and gradients share memory.
    pub fn step(&mut self, executor: &mut Executor, pool: &Pool, lr: f64) -> Result<Option<f64>> {
        pool.run(|| self.step_inside(executor, lr))
    }

    fn step_inside(&mut self, executor: &mut Executor, lr: f64) -> Result<Option<f64>> {
        self.pending += 1;
        if self.accumulate > 1 {
            let first = self.pending == 1;
            for slot in &mut self.slots {
                add_gradient(&mut slot.accumulated, executor.output(slot.output), first);
            }
        }
        if self.pending < self.accumulate {
            return Ok(None);
        }
        self.pending = 0;
        let mean = 1.0 / self.accumulate as f64;
        let norm = mean * self.sum_of_squares(executor).sqrt();
        if !norm.is_finite() {
            return Ok(Some(norm));
        }
        self.updates += 1;
        let clip =
            if self.config.clip_norm > 0.0 { (self.config.clip_norm / (norm + 1e-6)).min(1.0) } else { 1.0 };
        let [beta1, beta2] = self.config.betas;
        let correction = |beta: f64| 1.0 - beta.powi(self.updates.min(i32::MAX as u64) as i32);
        // A young average follows more closely, so that it does not remember the start.
        let ema = self.config.ema.min((1 + self.updates) as f64 / (10 + self.updates) as f64);
        for slot in &mut self.slots {
            let lr = lr * slot.lr;
            let update = Update {
                scale: (clip * mean) as f32,
                keep: (1.0 - lr * slot.weight_decay) as f32,
                beta1: beta1 as f32,
                beta2: beta2 as f32,
                step: (lr / correction(beta1)) as f32,
                root: correction(beta2).sqrt() as f32,
                eps: self.config.eps as f32,
                ema: ema as f32,
            };
            let (values, grads) = executor.variable_and_output(slot.variable, slot.output)?;
            let grads = if self.accumulate > 1 { &slot.accumulated } else { grads };
            let state = slot.first.par_chunks_mut(CHUNK).zip(slot.second.par_chunks_mut(CHUNK));
            let work = values.par_chunks_mut(CHUNK).zip(grads.par_chunks(CHUNK)).zip(state);
            if slot.average.is_empty() {
                work.for_each(|((p, g), (m, v))| update.run(p, g, m, v, &mut []));
            } else {
                let work = work.zip(slot.average.par_chunks_mut(CHUNK));
                work.for_each(|(((p, g), (m, v)), average)| update.run(p, g, m, v, average));
            }
        }
        Ok(Some(norm))
    }

    /// Sum of squares of all gradients, in a fixed order.
    fn sum_of_squares(&mut self, executor: &Executor) -> f64 {
        let mut rest = self.partial.as_mut_slice();
        for slot in &self.slots {
            let grads =
                if self.accumulate > 1 { &slot.accumulated[..] } else { executor.output(slot.output) };
            let (partial, tail) = rest.split_at_mut(grads.len().div_ceil(CHUNK));
            rest = tail;
            grads.par_chunks(CHUNK).zip(partial).for_each(|(grads, sum)| {
                *sum = grads.iter().map(|&g| f64::from(g) * f64::from(g)).sum();
            });
        }
        self.partial.iter().sum()
    }
}

fn add_gradient(sum: &mut [f32], grads: &[f32], first: bool) {
    sum.par_chunks_mut(CHUNK).zip(grads.par_chunks(CHUNK)).for_each(|(sum, grads)| {
        if first {
            sum.copy_from_slice(grads);
        } else {
            sum.iter_mut().zip(grads).for_each(|(sum, g)| *sum += g);
        }
    });
}

/// Factors of one update, the same for all elements of a parameter.
#[derive(Clone, Copy)]
struct Update {
    scale: f32,
    keep: f32,
    beta1: f32,
    beta2: f32,
    step: f32,
    root: f32,
    eps: f32,
    ema: f32,
}

impl Update {
    fn run(&self, p: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32], average: &mut [f32]) {
        for (((p, &g), m), v) in p.iter_mut().zip(g).zip(m).zip(v) {
            let g = g * self.scale;
            *m += (g - *m) * (1.0 - self.beta1);
            *v = *v * self.beta2 + (1.0 - self.beta2) * g * g;
            *p = *p * self.keep - self.step * (*m / (v.sqrt() / self.root + self.eps));
        }
        for (average, p) in average.iter_mut().zip(p) {
            *average += (*p - *average) * (1.0 - self.ema);
        }
    }
}
