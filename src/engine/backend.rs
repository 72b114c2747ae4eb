//! Where a model computes: the CPU or a GPU.

use super::ModelOptions;
use crate::cpu::{self, Arithmetic, Selection, Weights};
#[cfg(feature = "cuda")]
use crate::cuda::{self, Runtime};
use crate::error::{Error, Result};
use crate::graph::Graph;
use crate::isa::{Dot, Int8, Isa};
use crate::plan::Plan;
use crate::plan::constants::ParamLoader;
use crate::tensor::Precision;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// Where a model computes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Device {
    /// The first GPU if it can be used, else the CPU; [`Model::device_note`](super::Model::device_note)
    /// then says why.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// This NVIDIA GPU. If it cannot be used, that is an error.
    Cuda(usize),
}

impl FromStr for Device {
    type Err = Error;

    /// `auto`, `cpu`, `cuda` or `cuda:N`.
    fn from_str(text: &str) -> Result<Device> {
        let ordinal = || text.strip_prefix("cuda:")?.parse::<u8>().ok();
        match (text, ordinal()) {
            ("auto", _) => Ok(Device::Auto),
            ("cpu", _) => Ok(Device::Cpu),
            ("cuda", _) => Ok(Device::Cuda(0)),
            (_, Some(number)) => Ok(Device::Cuda(number.into())),
            _ => Err(Error::usage(format!("`{text}` is no device; takes auto, cpu, cuda or cuda:N"))),
        }
    }
}

impl Serialize for Device {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Device {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Device, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Device::Auto => f.write_str("auto"),
            Device::Cpu => f.write_str("cpu"),
            Device::Cuda(ordinal) => write!(f, "cuda:{ordinal}"),
        }
    }
}

/// A back end with constants: those of a model, or a session's share of them.
pub(super) enum Backend {
    Cpu {
        selection: Selection,
        weights: Arc<Weights>,
    },
    #[cfg(feature = "cuda")]
    Cuda(Arc<Runtime>),
}

/// A device that can be used.
#[cfg(feature = "cuda")]
type Gpu = cuda::Device;
#[cfg(not(feature = "cuda"))]
type Gpu = std::convert::Infallible;

#[cfg(feature = "cuda")]
fn ready(ordinal: usize) -> Result<Gpu> {
    let device = cuda::Device::open(ordinal)?;
    Runtime::check(&device)?;
    Ok(device)
}

#[cfg(not(feature = "cuda"))]
fn ready(_: usize) -> Result<Gpu> {
    Err(Error::NoDevice("knet was built without its feature `cuda`".into()))
}

/// What a person may want to know of how a back end came about.
pub(super) struct Notes {
    /// Why the CPU computes.
    pub device: Option<String>,
    /// Why a tuning table is not followed.
    pub tuning: Option<String>,
    /// Why quantized weights are not computed in int8.
    pub precision: Option<String>,
}

impl Backend {
    /// The back end that `options` ask for, and why it is not the GPU if it might have been, or does not
    /// follow the tuning table.
    pub(super) fn new(options: &ModelOptions, load: Box<ParamLoader>) -> Result<(Backend, Notes)> {
        let (gpu, device) = match options.device {
            Device::Cpu => (None, None),
            Device::Cuda(ordinal) => (Some(ready(ordinal)?), None),
            Device::Auto => match ready(0) {
                Ok(gpu) => (Some(gpu), None),
                Err(reason) => (None, Some(reason.to_string())),
            },
        };
        let Some(gpu) = gpu else {
            let selection = cpu_selection(options)?;
            let backend = Backend::Cpu { selection, weights: Arc::new(Weights::new(load)) };
            return Ok((backend, Notes { device, tuning: None, precision: None }));
        };
        Backend::on_gpu(gpu, options, load)
    }

    #[cfg(feature = "cuda")]
    fn on_gpu(gpu: Gpu, options: &ModelOptions, load: Box<ParamLoader>) -> Result<(Backend, Notes)> {
        let mut runtime = Runtime::new(gpu, options.precision.unwrap_or_default(), load)?;
        let tuning = options.tuning.apply(&mut runtime)?;
        Ok((Backend::Cuda(Arc::new(runtime)), Notes { device: None, tuning, precision: None }))
    }

    #[cfg(not(feature = "cuda"))]
    fn on_gpu(gpu: Gpu, _: &ModelOptions, _: Box<ParamLoader>) -> Result<(Backend, Notes)> {
        match gpu {}
    }

    /// The same constants for a session of `threads` threads, on a GPU with a stream of its own.
    pub(super) fn fork(&self, threads: usize) -> Result<Backend> {
        Ok(match self {
            Backend::Cpu { selection, weights } => {
                let selection = Selection { threads, ..*selection };
                Backend::Cpu { selection, weights: weights.clone() }
            }
            #[cfg(feature = "cuda")]
            Backend::Cuda(runtime) => Backend::Cuda(Arc::new(runtime.fork()?)),
        })
    }

    /// How kernels are chosen and the constants, on the CPU.
    pub(super) fn cpu(&self) -> Option<(Selection, &Weights)> {
        match self {
            Backend::Cpu { selection, weights } => Some((*selection, weights)),
            #[cfg(feature = "cuda")]
            Backend::Cuda(_) => None,
        }
    }

    /// Whether layers of quantized weights are to be computed in int8; the reason if they might be and
    /// cannot.
    pub(super) fn takes_int8(&self, options: &ModelOptions) -> Result<bool, String> {
        let unnamed = options.precision.is_none() && options.arithmetic != Arithmetic::Exact;
        if !options.int8.unwrap_or(unnamed) {
            return Ok(false);
        }
        if self.is_gpu() {
            return Err("a GPU takes them as numbers of its own precision".into());
        }
        match Int8::detect() {
            Some(_) => Ok(true),
            None => Err(lacks_int8()),
        }
    }

    pub(super) fn is_gpu(&self) -> bool {
        !matches!(self, Backend::Cpu { .. })
    }

    /// The device, for people.
    pub(super) fn name(&self) -> String {
        match self {
            Backend::Cpu { selection: Selection { isa, bf16: Some(dot), .. }, .. } => {
                format!("cpu ({isa}, bf16 by {dot})")
            }
            Backend::Cpu { selection, .. } => format!("cpu ({})", selection.isa),
            #[cfg(feature = "cuda")]
            Backend::Cuda(runtime) => {
                let precision = runtime.target().precision.name();
                format!("{} ({precision})", runtime.device().name())
            }
        }
    }

    /// Bytes of the constants that are loaded, as kernels read them.
    pub(super) fn constant_bytes(&self) -> usize {
        match self {
            Backend::Cpu { weights, .. } => weights.bytes(),
            #[cfg(feature = "cuda")]
            Backend::Cuda(runtime) => runtime.constant_bytes(),
        }
    }

    /// The plan of `graph`, for people.
    pub(super) fn plan(&self, graph: &Graph) -> Result<Plan> {
        match self {
            Backend::Cpu { selection, .. } => Ok(cpu::plan(graph, *selection)?.described()),
            #[cfg(feature = "cuda")]
            Backend::Cuda(runtime) => Ok(cuda::plan(graph, runtime.selection().clone())?.described()),
        }
    }

    /// The GPU's runtime.
    #[cfg(feature = "cuda")]
    pub(super) fn runtime(&self) -> Option<&Runtime> {
        match self {
            Backend::Cpu { .. } => None,
            Backend::Cuda(runtime) => Some(runtime),
        }
    }
}

/// How the CPU chooses kernels. How many threads there are is for sessions to say.
fn cpu_selection(options: &ModelOptions) -> Result<Selection> {
    let bf16 = match options.precision {
        Some(precision) => named_bf16(precision)?,
        None if options.arithmetic == Arithmetic::Exact => None,
        None => Dot::detect().filter(|dot| dot.pays()),
    };
    let int8 = Int8::detect().unwrap_or(Int8::Portable);
    Ok(Selection { arithmetic: options.arithmetic, bf16, int8, ..Selection::new(Isa::detect(), 1) })
}

/// Of a CPU that does not multiply 8-bit integers.
pub(super) fn lacks_int8() -> String {
    format!(
        "this CPU has no instructions that multiply 8-bit integers (AVX-VNNI, AVX-512 VNNI or AMX), or KNET_ISA excludes them; it computes by {}",
        Isa::detect()
    )
}

/// The instructions by which the CPU has a precision that was named.
///
/// # Errors
/// [`Error::Usage`] for bf16 on a CPU that does not multiply it.
pub(super) fn named_bf16(precision: Precision) -> Result<Option<Dot>> {
    if precision != Precision::Bf16 {
        return Ok(None);
    }
    let lacks = || {
        Error::usage(format!(
            "--precision bf16: this CPU has no instructions that multiply bf16 (AVX-512 BF16 or AMX), or KNET_ISA excludes them; it computes by {} in f32",
            Isa::detect()
        ))
    };
    Dot::detect().map(Some).ok_or_else(lacks)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_read_and_written() {
        for text in ["auto", "cpu", "cuda:0", "cuda:3"] {
            assert_eq!(text.parse::<Device>().unwrap().to_string(), text);
        }
        assert_eq!("cuda".parse::<Device>().unwrap(), Device::Cuda(0));
        for text in ["", "gpu", "cuda:", "cuda:x", "cuda:-1", "cpu:0", "cuda:999"] {
            assert!(text.parse::<Device>().is_err(), "{text}");
        }
    }
}
