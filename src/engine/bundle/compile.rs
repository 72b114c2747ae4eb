//! Making a bundle.

use super::manifest::{MANIFEST_KEY, Manifest, Target};
use super::open::instruction_set;
use crate::checkpoint::{ALIGNMENT, StorageType, TensorData, TensorOut, write_sealed};
use crate::cpu::weights::Constant;
use crate::cpu::{self, Arithmetic, Pool, Selection, Weights};
#[cfg(feature = "cuda")]
use crate::cuda::{
    self,
    cache::Cache,
    compile::bundled,
    launch::{Arg, Launch},
    nvrtc::{Code, Job, Nvrtc},
    pack,
};
use crate::engine::Model;
use crate::engine::quantized::QUANTIZATION_KEY;
use crate::engine::source::CONFIG_KEY;
use crate::error::{Error, Result};
use crate::graph::Graph;
use crate::model::TapMode;
#[cfg(feature = "cuda")]
use crate::plan::{Operand, Place};
#[cfg(feature = "cuda")]
use rayon::prelude::*;
use std::borrow::Cow;
use std::collections::BTreeMap;
#[cfg(feature = "cuda")]
use std::collections::{HashSet, btree_map::Entry::Vacant};
use std::path::Path;

/// A device that a bundle is made for.
pub enum For {
    /// CPUs with the instruction set that this process uses.
    Cpu,
    /// GPUs of a compute capability, which need not be here.
    #[cfg(feature = "cuda")]
    Cuda {
        /// What people call it.
        name: String,
        /// How kernels are chosen there.
        selection: cuda::Selection,
    },
}

/// What was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compiled {
    /// Constants and pieces of code.
    pub entries: usize,
    /// Bytes of them.
    pub bytes: usize,
}

/// What is stored under a name.
enum Entry {
    /// Floats of a plan on the CPU, which are read where they lie.
    Floats(Constant),
    /// What is copied to a GPU, or given to its driver.
    #[cfg(feature = "cuda")]
    Bytes(Vec<u8>),
}

type Entries = BTreeMap<String, Entry>;

/// Writes a bundle of `model`, which is on the CPU, for sizes of the network's input (both sides multiples of
/// [`Config::size_divisor`](crate::model::Config::size_divisor)) and for `devices`, all or nothing. It holds
/// what sessions of those sizes need, with any number of stages and with deadlines.
///
/// # Errors
/// [`Error::Usage`] for a model on a GPU, or one that comes of a bundle, and for no size or device; as
/// [`Session::plan`](crate::engine::Session::plan) and the weights; [`Error::NoDevice`] and [`Error::Cuda`]
/// if there is no compiler for a GPU's code; [`Error::Io`] for a file that cannot be written.
pub fn compile(
    model: &Model,
    sizes: &[(usize, usize)],
    devices: &[For],
    path: impl AsRef<Path>,
) -> Result<Compiled> {
    let of_cpu = || Error::usage("a bundle is made of a model on the CPU");
    let (selection, weights) = model.backend.cpu().ok_or_else(of_cpu)?;
    if let Some(bundle) = weights.bundle() {
        let path = bundle.file().path().display();
        return Err(Error::usage(format!("{path}: a bundle is made of a checkpoint, not of a bundle")));
    }
    if sizes.is_empty() || devices.is_empty() {
        return Err(Error::usage("a bundle for no size, or for no device"));
    }
    let pool = Pool::new(0)?;
    let (mut entries, mut targets) = (Entries::new(), Vec::new());
    for device in devices {
        let (target, found) = match device {
            For::Cpu => on_cpu(model, sizes, selection, weights, &pool)?,
            #[cfg(feature = "cuda")]
            For::Cuda { name, selection } => on_gpu(model, sizes, name, selection, weights, &pool)?,
        };
        targets.push(target);
        entries.extend(found);
    }
    let manifest = Manifest::new(sizes.iter().map(|&(height, width)| [height, width]).collect(), targets);
    write(model, &manifest, &entries, path.as_ref())
}

fn on_cpu(
    model: &Model,
    sizes: &[(usize, usize)],
    selection: Selection,
    weights: &Weights,
    pool: &Pool,
) -> Result<(Target, Entries)> {
    let mut bound = Vec::new();
    for graph in graphs(model, sizes, true) {
        let plan = cpu::plan(&graph?, selection)?;
        bound.push(pool.run(|| cpu::Executor::new(plan, weights))?);
    }
    // What remains is what the plans read: originals of what was packed go.
    weights.trim();
    let entries = weights.entries().into_iter().map(|(name, constant)| (name, Entry::Floats(constant)));
    let exact = selection.arithmetic == Arithmetic::Exact;
    let bf16 = selection.bf16.is_some();
    let int8 = model.quantized().is_some();
    Ok((Target::Cpu { isa: instruction_set(selection.isa), exact, bf16, int8 }, entries.collect()))
}

#[cfg(feature = "cuda")]
fn on_gpu(
    model: &Model,
    sizes: &[(usize, usize)],
    name: &str,
    selection: &cuda::Selection,
    weights: &Weights,
    pool: &Pool,
) -> Result<(Target, Entries)> {
    let (mut entries, mut launches) = (Entries::new(), HashSet::new());
    let code = Code::wanted()?;
    let job = |launch: &Launch| Job {
        source: launch.source,
        defines: launch.defines.clone(),
        compute: selection.target().caps.compute,
        code,
    };
    for &size in sizes {
        launches.extend(model.launches(size, std::slice::from_ref(selection))?.iter().map(job));
    }
    for graph in graphs(model, sizes, false) {
        let plan = cuda::plan(&graph?, selection.clone())?;
        for step in &plan.steps {
            let args = step.program.launches.iter().flat_map(|launch| &launch.args);
            let inputs = args.filter_map(|arg| if let Arg::Input(input) = arg { Some(*input) } else { None });
            for input in inputs {
                let Operand { place: Place::Const(index), .. } = step.inputs[input] else { continue };
                let packing = step.program.packing_of(input);
                let name = pack::name(&plan.consts[index].key, packing);
                if let Vacant(place) = entries.entry(name) {
                    let constant = pool.run(|| weights.constants().constant(&plan.consts, index))?;
                    place.insert(Entry::Bytes(pack::pack(&constant, packing)));
                }
            }
            launches.extend(step.program.launches.iter().map(job));
        }
    }
    let compiled = |job: &Job| {
        let compiled = Cache::user().compile(job, Nvrtc::get)?;
        Ok((bundled::name(job), Entry::Bytes(bundled::seal(job, &compiled)?)))
    };
    let jobs: Vec<Job> = launches.into_iter().collect();
    entries.extend(pool.run(|| jobs.par_iter().map(compiled).collect::<Result<Vec<_>>>())?);
    Ok((Target::cuda(name.into(), selection, code)?, entries))
}

/// The networks that sessions may run at these sizes: with every number of stages, and on the CPU also one
/// that ends after any.
fn graphs(model: &Model, sizes: &[(usize, usize)], cut: bool) -> impl Iterator<Item = Result<Graph>> {
    let most = model.config().head.stages;
    let numbers = (1.min(most)..=most).map(|stages| (TapMode::Off, stages));
    let kinds: Vec<_> = numbers.chain((cut && most > 1).then_some((TapMode::Stages, most))).collect();
    sizes.iter().flat_map(move |&size| {
        kinds.clone().into_iter().map(move |(taps, stages)| Ok(model.graph(size, taps, stages)?.0))
    })
}

fn write(model: &Model, manifest: &Manifest, entries: &Entries, path: &Path) -> Result<Compiled> {
    let text = serde_json::to_string(manifest).map_err(|error| Error::usage(error.to_string()))?;
    let mut metadata: BTreeMap<String, String> =
        [(MANIFEST_KEY.to_string(), text), (CONFIG_KEY.to_string(), model.config().to_json())].into();
    if let Some(quantized) = model.quantized() {
        metadata.insert(QUANTIZATION_KEY.to_string(), quantized.to_json());
    }
    let line = ALIGNMENT / size_of::<f32>();
    // The few that do not end with a line of the cache are filled up.
    let stored: Vec<(&str, [usize; 1], Stored<'_>)> = entries
        .iter()
        .map(|(name, entry)| match entry {
            Entry::Floats(constant) => {
                let mut floats = Cow::Borrowed(constant.as_slice());
                let length = floats.len().next_multiple_of(line);
                if length > floats.len() {
                    floats.to_mut().resize(length, 0.0);
                }
                (name.as_str(), [length], Stored::Floats(floats))
            }
            #[cfg(feature = "cuda")]
            Entry::Bytes(bytes) => (name.as_str(), [bytes.len()], Stored::Bytes(bytes)),
        })
        .collect();
    let tensors = stored.iter().map(|(name, shape, stored)| {
        let data = match stored {
            Stored::Floats(floats) => TensorData::F32(floats),
            Stored::Bytes(bytes) => TensorData::Raw(StorageType::U8, bytes),
        };
        TensorOut { name, shape, data }
    });
    write_sealed(path, tensors, &metadata)?;
    let bytes = stored.iter().map(|(_, _, stored)| match stored {
        Stored::Floats(floats) => size_of_val(&**floats),
        Stored::Bytes(bytes) => bytes.len(),
    });
    Ok(Compiled { entries: entries.len(), bytes: bytes.sum() })
}

/// An entry as it is written.
enum Stored<'a> {
    Floats(Cow<'a, [f32]>),
    #[cfg_attr(not(feature = "cuda"), expect(dead_code, reason = "there is nothing but floats"))]
    Bytes(&'a [u8]),
}
