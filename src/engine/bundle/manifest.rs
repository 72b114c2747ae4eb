//! What a bundle says of itself.

use crate::cpu::Arithmetic;
#[cfg(feature = "cuda")]
use crate::cuda::{
    self, Selection,
    compile::Code,
    gpu::{Caps, Precision},
    tune::Table,
};
#[cfg(feature = "cuda")]
use crate::error::Error;
use crate::error::Result;
use serde::{Deserialize, Serialize};
#[cfg(feature = "cuda")]
use std::sync::Arc;

/// Key of the manifest in the metadata: the first one of them in the file.
pub const MANIFEST_KEY: &str = "knet.bundle";

/// Version of the manifest, of names and of the layouts of packed constants.
const FORMAT: u32 = 1;

/// For what a bundle was made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    format: u32,
    /// Version of knet that made it, and that alone reads it.
    pub knet: String,
    /// Heights and widths of the network's input.
    pub sizes: Vec<[usize; 2]>,
    /// Devices.
    pub targets: Vec<Target>,
}

/// A device for which a bundle holds constants and code, with all that kernels are chosen by.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "lowercase")]
pub enum Target {
    /// The CPU, if it has this instruction set.
    Cpu {
        /// As `KNET_ISA` names it.
        isa: String,
        /// Whether it rounds as [`Arithmetic::Exact`].
        exact: bool,
        /// Whether maps and filters are bf16: it then needs instructions for them.
        #[serde(default)]
        bf16: bool,
        /// Whether quantized layers are int8: the same of those.
        #[serde(default)]
        int8: bool,
    },
    /// GPUs of a compute capability.
    Cuda {
        /// The GPU that kernels were chosen for, as people call it.
        name: String,
        /// Compute capability, as in (9, 0).
        compute: (u32, u32),
        /// Storage type of feature maps.
        precision: String,
        /// `cubin`, or `ptx`.
        code: String,
        /// What kernels were chosen by, and the measured table, if there was one, as JSON.
        selection: serde_json::Value,
    },
}

/// What kernels of a GPU are chosen by, as a bundle has it.
#[cfg(feature = "cuda")]
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Chosen {
    caps: Caps,
    table: Option<serde_json::Value>,
}

impl Manifest {
    /// For these sizes and devices, by this version.
    pub(super) fn new(sizes: Vec<[usize; 2]>, targets: Vec<Target>) -> Manifest {
        Manifest { format: FORMAT, knet: env!("CARGO_PKG_VERSION").into(), sizes, targets }
    }

    /// The manifest in a text.
    ///
    /// # Errors
    /// A sentence, if it is of another version or no manifest.
    pub(super) fn parse(text: &str) -> Result<Manifest, String> {
        // Fields of another version may be others.
        #[derive(Deserialize)]
        struct Versions {
            format: u32,
            knet: String,
        }
        let (own, versions) = (env!("CARGO_PKG_VERSION"), serde_json::from_str::<Versions>(text));
        let Versions { format, knet } = versions.map_err(|error| format!("`{MANIFEST_KEY}`: {error}"))?;
        if (format, &*knet) != (FORMAT, own) {
            return Err(format!(
                "made by knet {knet} (format {format}), this is {own} (format {FORMAT}): make it again from its checkpoint by `knet compile`"
            ));
        }
        let manifest: Manifest =
            serde_json::from_str(text).map_err(|error| format!("`{MANIFEST_KEY}`: {error}"))?;
        if manifest.sizes.is_empty() || manifest.targets.is_empty() {
            return Err(format!("`{MANIFEST_KEY}` names no size or no device"));
        }
        Ok(manifest)
    }

    /// Sizes, for people.
    pub fn sizes(&self) -> String {
        let sizes = self.sizes.iter().map(|[height, width]| format!("{height}x{width}"));
        sizes.collect::<Vec<_>>().join(", ")
    }

    /// Devices, for people.
    pub fn devices(&self) -> String {
        self.targets.iter().map(Target::title).collect::<Vec<_>>().join(", ")
    }
}

impl Target {
    /// The device, for people.
    pub fn title(&self) -> String {
        match self {
            Target::Cpu { isa, exact, bf16, int8 } => {
                let how = if *exact { " (precise)" } else { "" };
                let short = match (bf16, int8) {
                    (false, false) => "",
                    (true, false) => " and bf16",
                    (false, true) => " and int8",
                    (true, true) => ", bf16 and int8",
                };
                format!("CPUs with {isa}{how}{short}")
            }
            Target::Cuda { name, compute: (major, minor), precision, .. } => {
                format!("sm_{major}{minor} ({name}, {precision})")
            }
        }
    }

    /// How coarsely kernels on the CPU round.
    pub(super) fn arithmetic(exact: bool) -> Arithmetic {
        if exact { Arithmetic::Exact } else { Arithmetic::Fast }
    }

    /// GPUs like the one that `selection` is for.
    ///
    /// # Errors
    /// [`Error::Usage`] if the selection does not become JSON.
    #[cfg(feature = "cuda")]
    pub(super) fn cuda(name: String, selection: &Selection, code: Code) -> Result<Target> {
        let cuda::gpu::Target { caps, precision } = selection.target();
        let json = || {
            let table = selection.table().map(Table::to_json).transpose()?;
            serde_json::to_value(Chosen { caps, table })
        };
        let selection = json().map_err(|error| Error::usage(format!("the choice of kernels: {error}")))?;
        Ok(Target::Cuda {
            name,
            compute: caps.compute,
            precision: precision.name().into(),
            code: code.name().into(),
            selection,
        })
    }

    /// How kernels of this GPU are chosen, and the form of their code; `None` for the CPU.
    ///
    /// # Errors
    /// A sentence on what no device is like.
    #[cfg(feature = "cuda")]
    pub(super) fn selection(&self) -> Result<Option<(Selection, Code)>, String> {
        let Target::Cuda { compute, precision: name, code, selection, .. } = self else { return Ok(None) };
        let precision = Precision::ALL.into_iter().find(|precision| precision.name() == name);
        let precision = precision.ok_or_else(|| format!("no precision is called `{name}`"))?;
        let code = Code::named(code).ok_or_else(|| format!("`{code}` is neither cubin nor ptx"))?;
        let Chosen { caps, table } = Chosen::deserialize(selection).map_err(|error| error.to_string())?;
        if !is_plausible(&caps) || caps.compute != *compute {
            return Err(format!("no GPU is like this: {caps:?}"));
        }
        let target = cuda::gpu::Target { caps, precision };
        let selection = match table {
            Some(table) => Selection::tuned(target, Arc::new(Table::from_json(table)?)),
            None => target.into(),
        };
        Ok(Some((selection, code)))
    }
}

/// Whether cost models can count with it.
#[cfg(feature = "cuda")]
fn is_plausible(caps: &Caps) -> bool {
    (8..100).contains(&caps.compute.0)
        && caps.compute.1 < 10
        && (1..=4096).contains(&caps.multiprocessors)
        && (48 << 10..=1 << 20).contains(&caps.shared_per_block)
        && (caps.shared_per_block..=1 << 20).contains(&caps.shared_per_multiprocessor)
        && caps.l2_bytes >= 1 << 18
        && (100..=20_000).contains(&caps.clock_mhz)
        && (1..=100_000).contains(&caps.bandwidth_gbs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn manifests_are_read_back_and_others_refused() {
        let cpu = Target::Cpu { isa: "avx2".into(), exact: false, bf16: false, int8: false };
        let manifest = Manifest::new(vec![[384, 512]], vec![cpu]);
        let text = serde_json::to_string(&manifest).unwrap();
        assert_eq!(Manifest::parse(&text), Ok(manifest.clone()));
        let other = Manifest { knet: "0.0.1".into(), ..manifest.clone() };
        let fault = Manifest::parse(&serde_json::to_string(&other).unwrap()).unwrap_err();
        assert!(fault.contains("made by knet 0.0.1"), "{fault}");
        let empty = Manifest { sizes: Vec::new(), ..manifest };
        for text in [serde_json::to_string(&empty).unwrap(), text.replace("sizes", "size"), "[]".into()] {
            assert!(Manifest::parse(&text).is_err(), "{text}");
        }
    }

    #[cfg(feature = "cuda")]
    #[test]
    fn a_gpu_s_selection_is_read_back_and_no_gpu_of_fancy() {
        let target = cuda::gpu::Target { caps: Caps::H100, precision: Precision::Bf16 };
        let written = Target::cuda("h100".into(), &target.into(), Code::Cubin).unwrap();
        let (selection, code) = written.selection().unwrap().unwrap();
        assert_eq!((selection.target(), code), (target, Code::Cubin));
        assert_eq!(written.title(), "sm_90 (h100, bf16)");
        for (field, value) in [("multiprocessors", 0), ("l2_bytes", 0), ("shared_per_block", 1 << 30)] {
            let mut written = written.clone();
            let Target::Cuda { selection, .. } = &mut written else { unreachable!() };
            selection["caps"][field] = value.into();
            assert!(written.selection().unwrap_err().contains("no GPU is like this"), "{field}");
        }
    }
}
