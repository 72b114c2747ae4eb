//! What several ranks add up after each batch.

use crate::dist::Ranks;
use crate::error::{Error, Result};
use crate::exec::Executor;
use crate::graph::OutputId;
use crate::train::network::{Statistic, Trained};
use crate::train::optimizer::Optimizer;

/// Sums of gradients over ranks and batches, all parameters one after the other.
#[derive(Debug, Default)]
pub(super) struct Sums {
    /// The same on all ranks.
    total: Vec<f32>,
    /// Of the last batch here.
    own: Vec<f32>,
}

impl Sums {
    /// Adds the gradients of the last batch of every rank; the optimizer gets the sums when an update is due.
    pub(super) fn join(
        &mut self,
        executor: &mut dyn Executor,
        ranks: &Ranks,
        trained: &[Trained],
        optimizer: Option<&Optimizer>,
    ) -> Result<()> {
        let Some(optimizer) = optimizer else { return Ok(()) };
        self.own.clear();
        trained.iter().for_each(|trained| {
            self.own.extend_from_slice(executor.read(trained.gradient).floats());
        });
        self.total.resize(self.own.len(), 0.0);
        ranks.add(&mut self.total, &self.own, optimizer.sums_begin())?;
        if optimizer.is_due() {
            let mut rest = self.total.as_slice();
            for &sum in optimizer.sums() {
                let len = executor.variables()[sum.index()].operand.ty.shape.len();
                let (values, others) = rest.split_at(len);
                executor.write_variable(sum, values)?;
                rest = others;
            }
        }
        Ok(())
    }
}

/// Replaces the gradients of the last batch by their sums over ranks, where they lie on the GPUs.
pub(super) fn join_on_device(executor: &mut dyn Executor, ranks: &Ranks, trained: &[Trained]) -> Result<()> {
    let gradients: Vec<OutputId> = trained.iter().map(|trained| trained.gradient).collect();
    let on_host = || Error::Graph("gradients of ranks on GPUs are not on a GPU".into());
    ranks.sum_on_device(&executor.on_device(&gradients)?.ok_or_else(on_host)?)
}

/// Lets running statistics follow those of every rank's last batch, in the order of ranks.
pub(super) fn follow(executor: &mut dyn Executor, ranks: &Ranks, statistics: &[Statistic]) -> Result<()> {
    if statistics.is_empty() {
        return Ok(());
    }
    let mut own = Vec::new();
    for statistic in statistics {
        own.extend_from_slice(executor.read(statistic.batch).floats());
    }
    let all = ranks.gather(&own)?;
    let mut start = 0;
    for statistic in statistics {
        let len = executor.variables()[statistic.variable.index()].operand.ty.shape.len();
        let mut running = vec![0.0; len];
        executor.read_variable(statistic.variable, &mut running)?;
        for of_rank in all.chunks_exact(own.len()) {
            statistic.follow(&mut running, &of_rank[start..start + len]);
        }
        executor.write_variable(statistic.variable, &running)?;
        start += len;
    }
    Ok(())
}
