//! Ranks on GPUs, a process each: which GPU is whose, and NCCL between them.

use super::launcher::meeting;
use super::mpi::Mpi;
use super::rendezvous::{self, Lifelines};
use super::{Collective, DeviceSums, Launch, Ranks, Share};
use crate::cuda::Device;
use crate::cuda::device::count;
use crate::cuda::nccl::{Communicator, Nccl, UniqueId, exit};
use crate::error::{Error, Result, say};
use crate::exec::DeviceFloats;
use std::sync::Arc;

/// What pins NCCL to sums of a fixed order: rings, each of whose elements is added up from rank to rank, and
/// no protocol or multicast hardware that would be chosen by measuring.
const PINNED: [(&str, &str); 2] = [("NCCL_ALGO", "Ring"), ("NCCL_PROTO", "Simple")];

/// A rank's GPU and its connection to the others.
struct Gpu {
    ordinal: usize,
    communicator: Arc<Communicator>,
    name: String,
}

/// Messages of the host through the GPUs, where no MPI carries them.
struct Messages {
    share: Share,
    communicator: Arc<Communicator>,
    name: String,
}

/// Connects the ranks: by MPI and NCCL, or where they meet by NCCL alone. `named` is the number of the GPU in
/// the configuration.
///
/// # Errors
/// [`Error::Usage`] for GPUs that do not go around; [`Error::Ranks`] without NCCL, and if a rank is missing;
/// as [`Device::open`].
pub(super) fn open(launch: &Launch, named: usize) -> Result<Ranks> {
    let pinned = pin();
    let Launch { share, .. } = *launch;
    let prepare = || {
        let ordinal = choose(launch, named, count()?, std::env::var("CUDA_VISIBLE_DEVICES").ok().as_deref())?;
        Ok((ordinal, Device::open(ordinal)?, Nccl::open()?))
    };
    let connect = |(ordinal, device, nccl): (usize, Device, Nccl), id, watch| {
        let communicator = Communicator::connect(nccl, device, id, (share.rank, share.ranks), watch)?;
        let name = format!("{} with {pinned}", communicator.name());
        Ok(Gpu { ordinal, communicator: Arc::new(communicator), name })
    };
    if let Some(address) = meeting(&|name| std::env::var(name).ok())? {
        let prepared = prepare()?;
        let make = || Ok(prepared.2.unique_id()?.0);
        let (id, lines) = rendezvous::meet(&address, share, make)?;
        let watch = Box::new(move || Lifelines::lost(&lines));
        let gpu = connect(prepared, UniqueId(id), watch)?;
        let messages = Messages { share, communicator: gpu.communicator.clone(), name: gpu.name.clone() };
        return Ok(Ranks { device: Some(Box::new(gpu)), ..Ranks::new(Box::new(messages)) });
    }
    let ranks = Ranks::new(Box::new(Mpi::start(launch)?));
    let mut prepared = None;
    let mut own_id = || {
        let (.., nccl) = prepared.insert(prepare()?);
        if share.rank == 0 { Ok(nccl.unique_id()?.0.to_vec()) } else { Ok(Vec::new()) }
    };
    // A rank that has no GPU tells the others, which would wait for it.
    let ids = ranks.agree(own_id())?;
    let id = ids[0].as_slice().try_into().map_err(|_| Error::Ranks("rank 0 has no id of NCCL's".into()))?;
    let prepared = prepared.ok_or_else(|| Error::Ranks("this rank has no GPU".into()))?;
    let gpu = connect(prepared, UniqueId(id), Box::new(|| None)).inspect_err(|error| {
        // The others wait for this one, which MPI alone can end.
        say(format_args!("rank {}: error: {error}", share.rank));
        ranks.end(error.kind().exit_code());
    })?;
    Ok(Ranks { device: Some(Box::new(gpu)), ..ranks })
}

/// Pins the order of NCCL's sums unless the user has chosen; says what is set.
fn pin() -> String {
    let mut shown = Vec::new();
    for (name, value) in PINNED {
        if std::env::var_os(name).is_none_or(|set| set.is_empty()) {
            // SAFETY: ranks are connected before the process starts a thread that could look.
            unsafe { std::env::set_var(name, value) };
        }
        shown.push(format!("{name}={}", std::env::var(name).unwrap_or_default()));
    }
    shown.join(" ")
}

/// The GPU of this process: that of its number on the machine, or the only one that it is let see.
fn choose(launch: &Launch, named: usize, gpus: usize, visible: Option<&str>) -> Result<usize> {
    let Launch { launcher, share, local_ranks, local_rank, .. } = launch;
    if gpus == 0 {
        return Err(Error::NoDevice("the driver has no device".into()));
    }
    let local_ranks = local_ranks.unwrap_or(local_rank.map_or(share.ranks, |rank| rank + 1));
    if local_ranks == 1 {
        return Ok(named);
    }
    if named > 0 {
        return Err(Error::usage(format!(
            "device cuda:{named}: {local_ranks} ranks on this machine would share one GPU; device = \"cuda\" gives each its own"
        )));
    }
    // As Slurm's --gpus-per-task has it.
    let only_one = visible.is_some_and(|list| !list.trim().is_empty() && !list.contains(','));
    if gpus == 1 && only_one {
        return Ok(0);
    }
    if local_ranks > gpus {
        return Err(Error::usage(format!(
            "{launcher} started {local_ranks} ranks on this machine, which has {gpus} GPU{}: one rank trains on one GPU",
            if gpus == 1 { "" } else { "s" }
        )));
    }
    local_rank.ok_or_else(|| {
        Error::usage(format!(
            "{launcher} does not say which of the {local_ranks} ranks on this machine this is: set LOCAL_RANK to its number from 0, or \
             CUDA_VISIBLE_DEVICES to its GPU"
        ))
    })
}

impl DeviceSums for Gpu {
    fn ordinal(&self) -> usize {
        self.ordinal
    }

    fn name(&self) -> String {
        self.name.clone()
    }

    fn begin(&self, floats: &DeviceFloats) -> Result<()> {
        self.communicator.begin_sum(floats)
    }

    fn finish(&self) -> Result<()> {
        self.communicator.finish_sums()
    }
}

impl Collective for Messages {
    fn share(&self) -> Share {
        self.share
    }

    fn name(&self) -> String {
        self.name.clone()
    }

    fn gather(&self, own: &[u8], all: &mut [u8]) -> Result<()> {
        self.communicator.gather(own, all)
    }

    /// The others see the connection end.
    fn abort(&self, code: u8) -> ! {
        exit(code)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn launch(local_rank: Option<usize>, local_ranks: Option<usize>) -> Launch {
        Launch { launcher: "torchrun", share: Share { rank: 4, ranks: 8 }, local_rank, local_ranks }
    }

    #[test]
    fn each_rank_of_a_machine_has_a_gpu_of_its_own() {
        for (local_rank, local_ranks, named, gpus, visible, wanted) in [
            (Some(3), Some(4), 0, 4, None, 3),
            (Some(1), Some(2), 0, 8, Some("0,1,2,3,4,5,6,7"), 1),
            // One device is all that a task may see.
            (Some(3), Some(4), 0, 1, Some("3"), 0),
            // A machine with one rank has the GPU that is named.
            (Some(0), Some(1), 2, 4, None, 2),
            (None, Some(1), 0, 4, None, 0),
            (Some(5), None, 0, 8, None, 5),
        ] {
            let found = choose(&launch(local_rank, local_ranks), named, gpus, visible).unwrap();
            assert_eq!(found, wanted, "{local_rank:?} of {local_ranks:?}");
        }
    }

    #[test]
    fn gpus_that_do_not_go_around_are_refused_with_both_numbers() {
        for (local_rank, local_ranks, named, gpus, visible, part) in [
            (Some(0), Some(4), 0, 2, None, "4 ranks on this machine, which has 2 GPUs"),
            (Some(0), Some(2), 0, 1, None, "2 ranks on this machine, which has 1 GPU:"),
            (Some(2), None, 0, 2, None, "3 ranks on this machine, which has 2 GPUs"),
            (Some(0), Some(2), 1, 2, None, "device cuda:1: 2 ranks on this machine would share one GPU"),
            (None, Some(2), 0, 2, None, "set LOCAL_RANK"),
            (Some(0), Some(2), 0, 0, Some(""), "no device"),
        ] {
            let error =
                choose(&launch(local_rank, local_ranks), named, gpus, visible).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}
