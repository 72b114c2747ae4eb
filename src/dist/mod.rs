//! Several processes, *ranks*, that train one model: each has all weights and a share of every update.
//!
//! A launcher starts them (`mpiexec`, `srun`, `torchrun`), MPI carries what they tell each other. Everything
//! that ranks on CPUs add up is added in the order of ranks, so that N ranks learn, bit for bit, what one
//! rank learns from N batches an update: see [`Ranks::add`]. Ranks on GPUs, one process each, sum by NCCL
//! where the numbers lie ([`Ranks::begin_sum`]); without MPI it carries the messages too.

#[cfg(feature = "cuda")]
mod gpu;
mod launcher;
mod mpi;
#[cfg(feature = "cuda")]
mod rendezvous;

pub use launcher::Launch;

use crate::error::{Error, Result};
use crate::exec::DeviceFloats;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

/// Floats that ranks exchange at once, of each rank: messages long enough to be fast, buffers that are small
/// beside a model. Which sums are made, and how, does not depend on it.
const BUCKET: usize = 1 << 20;

/// Which of several ranks this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// From 0.
    pub rank: usize,
    /// Number of ranks.
    pub ranks: usize,
}

impl Share {
    /// The only one.
    pub const ALONE: Share = Share { rank: 0, ranks: 1 };
}

/// What carries messages between ranks. Every rank makes the same calls in the same order, one at a time.
pub trait Collective: Send + Sync {
    /// Which rank this is.
    fn share(&self) -> Share;

    /// What carries them, for people.
    fn name(&self) -> String;

    /// Fills `all` with what every rank gave as `own`, in the order of ranks. `own` is as long everywhere.
    ///
    /// # Errors
    /// [`Error::Ranks`] if another rank is gone.
    fn gather(&self, own: &[u8], all: &mut [u8]) -> Result<()>;

    /// Gives each rank its part of `own`, which has as many equal parts as there are ranks, and fills `all`
    /// with this rank's part of what every rank gave, in the order of ranks.
    ///
    /// # Errors
    /// As [`Collective::gather`].
    fn exchange(&self, own: &[f32], all: &mut [f32]) -> Result<()> {
        let Share { rank, ranks } = self.share();
        let part = own.len() / ranks;
        let mut everything = vec![0.0; ranks * own.len()];
        self.gather(bytemuck::cast_slice(own), bytemuck::cast_slice_mut(&mut everything))?;
        for (to, from) in all.chunks_exact_mut(part.max(1)).zip(everything.chunks_exact(own.len().max(1))) {
            to.copy_from_slice(&from[rank * part..][..part]);
        }
        Ok(())
    }

    /// Ends all ranks at once, this one with `code`.
    fn abort(&self, code: u8) -> !;
}

/// What adds up the floats of ranks on GPUs. Calls take turns with those of the [`Collective`], and are as
/// much the same on all ranks.
pub trait DeviceSums: Send + Sync {
    /// The number of this rank's GPU among those of the driver.
    fn ordinal(&self) -> usize;

    /// What carries them, for people.
    fn name(&self) -> String;

    /// Begins to replace floats by their sums over ranks, the same on all to the bit: when their stream has
    /// come so far, and beside what is sent to it later. Sums are made in the order in which they were begun.
    ///
    /// # Errors
    /// [`Error::Ranks`] if another rank is gone.
    fn begin(&self, floats: &DeviceFloats) -> Result<()>;

    /// Waits for all sums that were begun.
    ///
    /// # Errors
    /// As [`DeviceSums::begin`]; the floats are then of no use.
    fn finish(&self) -> Result<()>;
}

/// The ranks of a run, seen from one of them.
pub struct Ranks {
    engine: Box<dyn Collective>,
    /// Between the GPUs, if the ranks have some.
    device: Option<Box<dyn DeviceSums>>,
    /// Ranks on this machine.
    local: usize,
    /// Whether all ranks know that the run has failed.
    failed: AtomicBool,
}

impl Ranks {
    /// The ranks that a launcher started this process among; `None` if it is alone. On GPUs each has its own,
    /// by its number on its machine; `gpu` is the number that the configuration names, `None` for CPUs. To be
    /// called before the process starts threads: it may set variables of NCCL's.
    ///
    /// # Errors
    /// [`Error::Usage`] if the launcher's variables contradict each other, and for more ranks on a machine
    /// than GPUs; [`Error::Ranks`] if MPI or NCCL is missing, or MPI is of another launcher.
    pub fn open(gpu: Option<usize>) -> Result<Option<Ranks>> {
        let launch = match Launch::read(&|name| std::env::var(name).ok())? {
            Some(launch) if launch.share.ranks > 1 => launch,
            _ => return Ok(None),
        };
        let ranks = match gpu {
            None => Ranks::new(Box::new(mpi::Mpi::start(&launch)?)),
            #[cfg(feature = "cuda")]
            Some(named) => gpu::open(&launch, named)?,
            #[cfg(not(feature = "cuda"))]
            Some(_) => return Err(Error::NoDevice("knet was built without its feature `cuda`".into())),
        };
        Ok(Some(Ranks { local: launch.local_ranks.unwrap_or(launch.share.ranks).max(1), ..ranks }))
    }

    /// Ranks that are connected already.
    pub fn new(engine: Box<dyn Collective>) -> Ranks {
        let local = engine.share().ranks;
        Ranks { engine, device: None, local, failed: AtomicBool::new(false) }
    }

    /// Which rank this is.
    pub fn share(&self) -> Share {
        self.engine.share()
    }

    /// What connects them, for people.
    pub fn name(&self) -> String {
        let mut names = vec![self.engine.name()];
        names.extend(self.device.as_ref().map(|device| device.name()));
        names.dedup();
        names.join(" and ")
    }

    /// The number of this rank's GPU, if ranks have GPUs.
    pub fn gpu(&self) -> Option<usize> {
        self.device.as_ref().map(|device| device.ordinal())
    }

    /// Threads for this rank's part of the machine's cores.
    pub fn threads(&self) -> usize {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        (cores / self.local).max(1)
    }

    /// Whether this rank writes what a run writes.
    pub fn is_first(&self) -> bool {
        self.share().rank == 0
    }

    /// Every rank's value, in the order of ranks.
    ///
    /// # Errors
    /// As [`Collective::gather`].
    pub fn share_values<T: Serialize + DeserializeOwned>(&self, own: &T) -> Result<Vec<T>> {
        let Share { ranks, .. } = self.share();
        let text = serde_json::to_vec(own).map_err(|e| Error::Ranks(e.to_string()))?;
        let mut lengths = vec![0; ranks * size_of::<u64>()];
        self.engine.gather(&(text.len() as u64).to_le_bytes(), &mut lengths)?;
        let lengths: Vec<usize> = lengths
            .chunks_exact(size_of::<u64>())
            .map(|bytes| u64::from_le_bytes(bytes.try_into().unwrap_or_default()) as usize)
            .collect();
        let longest = lengths.iter().copied().max().unwrap_or(0);
        let mut padded = text;
        padded.resize(longest, 0);
        let mut all = vec![0; ranks * longest];
        self.engine.gather(&padded, &mut all)?;
        let decode = |(bytes, &length): (&[u8], &usize)| {
            serde_json::from_slice(&bytes[..length]).map_err(|e| {
                Error::Ranks(format!("a rank of another version? Its message cannot be read: {e}"))
            })
        };
        all.chunks_exact(longest.max(1)).zip(&lengths).map(decode).collect()
    }

    /// Whether it is so on any rank.
    ///
    /// # Errors
    /// As [`Collective::gather`].
    pub fn any(&self, here: bool) -> Result<bool> {
        let mut all = vec![0; self.share().ranks];
        self.engine.gather(&[u8::from(here)], &mut all)?;
        Ok(all.contains(&1))
    }

    /// Every rank's result, if all went well.
    ///
    /// # Errors
    /// This rank's own error, or [`Error::Ranks`] with the number and the words of the first that failed; all
    /// ranks then know of it, and none waits for another.
    pub fn agree<T: Serialize + DeserializeOwned>(&self, own: Result<T>) -> Result<Vec<T>> {
        #[derive(Serialize, Deserialize)]
        enum Outcome<T> {
            Done(T),
            Failed(String),
        }
        let (outcome, error) = match own {
            Ok(value) => (Outcome::Done(value), None),
            Err(error) => (Outcome::Failed(error.to_string()), Some(error)),
        };
        let all = self.share_values(&outcome)?;
        let mut values = Vec::with_capacity(all.len());
        let mut fault = error;
        for (rank, outcome) in all.into_iter().enumerate() {
            match outcome {
                Outcome::Done(value) => values.push(value),
                Outcome::Failed(text) => {
                    fault.get_or_insert_with(|| Error::Ranks(format!("rank {rank} failed: {text}")));
                }
            }
        }
        match fault {
            None => Ok(values),
            Some(error) => {
                self.fail_together();
                Err(error)
            }
        }
    }

    /// Refuses ranks that were started with different settings; `all` are those of every rank.
    ///
    /// # Errors
    /// [`Error::Usage`] on every rank, naming the first that differs from rank 0 and the field.
    pub fn check_same(&self, all: &[BTreeMap<String, String>]) -> Result<()> {
        let shown = |settings: &BTreeMap<String, String>, key: &String| {
            settings.get(key).cloned().unwrap_or_else(|| "absent".into())
        };
        for (rank, other) in all.iter().enumerate() {
            let keys = all[0].keys().chain(other.keys());
            if let Some(key) = keys.into_iter().find(|key| all[0].get(*key) != other.get(*key)) {
                self.fail_together();
                return Err(Error::usage(format!(
                    "ranks differ: {key} is {} on rank 0 and {} on rank {rank}; start all with one configuration and one program",
                    shown(&all[0], key),
                    shown(other, key)
                )));
            }
        }
        Ok(())
    }

    /// Adds every rank's `own` to `total`, in the order of ranks; `anew` begins with rank 0's instead. All
    /// ranks have the same `total` before and after, to the bit: the sums are those that one process makes of
    /// the same terms one after the other. Each rank adds a part and tells the others.
    ///
    /// # Errors
    /// As [`Collective::gather`].
    pub fn add(&self, total: &mut [f32], own: &[f32], anew: bool) -> Result<()> {
        debug_assert_eq!(total.len(), own.len());
        let Share { rank, ranks } = self.share();
        let part = total.len().div_ceil(ranks).clamp(1, BUCKET);
        let (mut sent, mut got) = (vec![0.0; ranks * part], vec![0.0; ranks * part]);
        let mut sum = vec![0.0; part];
        for (total, own) in total.chunks_mut(ranks * part).zip(own.chunks(ranks * part)) {
            sent[..own.len()].copy_from_slice(own);
            self.engine.exchange(&sent, &mut got)?;
            let here = (rank * part).min(total.len())..((rank + 1) * part).min(total.len());
            let mine = &total[here];
            sum[..mine.len()].copy_from_slice(mine);
            for (term, values) in got.chunks_exact(part).enumerate() {
                if anew && term == 0 {
                    sum.copy_from_slice(values);
                } else {
                    sum.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
                }
            }
            self.engine.gather(bytemuck::cast_slice(&sum), bytemuck::cast_slice_mut(&mut got))?;
            total.copy_from_slice(&got[..total.len()]);
        }
        Ok(())
    }

    /// Begins to replace floats on this rank's GPU by their sums over ranks: see [`DeviceSums::begin`].
    ///
    /// # Errors
    /// As there; [`Error::Ranks`] if the ranks were connected for CPUs.
    pub fn begin_sum(&self, floats: &DeviceFloats) -> Result<()> {
        self.device_sums()?.begin(floats)
    }

    /// Waits for the sums that were begun.
    ///
    /// # Errors
    /// As [`Ranks::begin_sum`].
    pub fn finish_sums(&self) -> Result<()> {
        self.device_sums()?.finish()
    }

    fn device_sums(&self) -> Result<&dyn DeviceSums> {
        self.device.as_deref().ok_or_else(|| Error::Ranks("the ranks were connected for CPUs".into()))
    }

    /// Every rank's floats, in the order of ranks.
    ///
    /// # Errors
    /// As [`Collective::gather`].
    pub fn gather(&self, own: &[f32]) -> Result<Vec<f32>> {
        let mut all = vec![0.0; self.share().ranks * own.len()];
        self.engine.gather(bytemuck::cast_slice(own), bytemuck::cast_slice_mut(&mut all))?;
        Ok(all)
    }

    /// Notes that all ranks see the same fault.
    pub fn fail_together(&self) {
        self.failed.store(true, Ordering::Relaxed);
    }

    /// Ends this rank with an exit code after a fault. What all ranks know of, each ends by itself; of
    /// anything else the others know nothing, and would wait for ever.
    pub fn end(&self, code: u8) {
        if !self.failed.load(Ordering::Relaxed) {
            self.engine.abort(code);
        }
    }
}

#[cfg(test)]
mod tests;
