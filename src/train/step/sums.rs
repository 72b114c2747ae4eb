//! What several ranks add up after each batch.

use crate::dist::Ranks;
use crate::error::{Error, Result};
use crate::exec::{DeviceFloats, Executor};
use crate::graph::{OutputId, SegmentId};
use crate::train::network::buckets::Bucket;
use crate::train::network::{Statistic, Trained};
use crate::train::optimizer::Optimizer;

/// Sums of gradients over ranks and batches.
#[derive(Debug)]
pub(super) enum Sums {
    /// On the host, all parameters one after the other.
    Host {
        /// The same on all ranks.
        total: Vec<f32>,
        /// Of the last batch here.
        own: Vec<f32>,
    },
    /// Of one batch, where GPUs have them.
    Device {
        /// Where the gradients lie that are whole after each segment.
        buckets: Vec<(SegmentId, DeviceFloats)>,
        /// Buckets that ran for the current batch.
        run: usize,
        /// Buckets whose sums over ranks have begun.
        begun: usize,
    },
}

impl Sums {
    /// On the device, if the network has buckets.
    pub(super) fn new(executor: &mut dyn Executor, buckets: &[Bucket], trained: &[Trained]) -> Result<Sums> {
        if buckets.is_empty() {
            return Ok(Sums::Host { total: Vec::new(), own: Vec::new() });
        }
        let place = |bucket: &Bucket| {
            let gradients: Vec<OutputId> = bucket.of(trained).map(|trained| trained.gradient).collect();
            let on_host = || Error::Graph("gradients of ranks on GPUs are not on a GPU".into());
            Ok((bucket.segment, executor.on_device(&gradients)?.ok_or_else(on_host)?))
        };
        let buckets = buckets.iter().map(place).collect::<Result<_>>()?;
        Ok(Sums::Device { buckets, run: 0, begun: 0 })
    }

    pub(super) fn are_on_device(&self) -> bool {
        matches!(self, Sums::Device { .. })
    }

    /// Begins a batch.
    pub(super) fn begin_batch(&mut self) {
        if let Sums::Device { run, begun, .. } = self {
            (*run, *begun) = (0, 0);
        }
    }

    /// Up to which segment a GPU is to run next, to end a bucket.
    pub(super) fn next_segment(&mut self) -> Option<SegmentId> {
        let Sums::Device { buckets, run, .. } = self else { return None };
        let (segment, _) = buckets.get(*run)?;
        *run += 1;
        Some(*segment)
    }

    /// Begins the sums of the buckets that were started, which are made as soon as the GPU has come to their
    /// end.
    pub(super) fn begin(&mut self, ranks: Option<&Ranks>) -> Result<()> {
        let (Sums::Device { buckets, run, begun }, Some(ranks)) = (self, ranks) else { return Ok(()) };
        for (_, floats) in &buckets[*begun..*run] {
            // Counted even if it fails: the others see it fail as well.
            *begun += 1;
            ranks.begin_sum(floats)?;
        }
        Ok(())
    }

    /// Begins all sums that have not begun.
    pub(super) fn begin_all(&mut self, ranks: &Ranks) -> Result<()> {
        if let Sums::Device { buckets, run, .. } = self {
            *run = buckets.len();
        }
        self.begin(Some(ranks))
    }

    /// Adds the gradients of the last batch of every rank. On the host the optimizer gets the sums when an
    /// update is due; on a GPU they are in the gradients' place.
    pub(super) fn join(
        &mut self,
        executor: &mut dyn Executor,
        ranks: &Ranks,
        trained: &[Trained],
        optimizer: Option<&Optimizer>,
    ) -> Result<()> {
        self.begin_all(ranks)?;
        match self {
            Sums::Host { total, own } => join_on_host([total, own], executor, ranks, trained, optimizer),
            Sums::Device { .. } => {
                self.begin_batch();
                ranks.finish_sums()
            }
        }
    }
}

fn join_on_host(
    [total, own]: [&mut Vec<f32>; 2],
    executor: &mut dyn Executor,
    ranks: &Ranks,
    trained: &[Trained],
    optimizer: Option<&Optimizer>,
) -> Result<()> {
    let Some(optimizer) = optimizer else { return Ok(()) };
    own.clear();
    trained.iter().for_each(|trained| {
        own.extend_from_slice(executor.read(trained.gradient).floats());
    });
    total.resize(own.len(), 0.0);
    ranks.add(total, own, optimizer.sums_begin())?;
    if optimizer.is_due() {
        let mut rest = total.as_slice();
        for &sum in optimizer.sums() {
            let len = executor.variables()[sum.index()].operand.ty.shape.len();
            let (values, others) = rest.split_at(len);
            executor.write_variable(sum, values)?;
            rest = others;
        }
    }
    Ok(())
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
