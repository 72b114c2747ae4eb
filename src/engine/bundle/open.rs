//! Opening a bundle: what it is, whether it may be used here, and the back end over it.

use super::manifest::{MANIFEST_KEY, Manifest, Target};
use crate::bundle::Bundle;
use crate::checkpoint::Checkpoint;
use crate::cpu::{Arithmetic, Pool, Selection, Weights};
#[cfg(feature = "cuda")]
use crate::cuda::{self, Runtime};
use crate::engine::ModelOptions;
#[cfg(feature = "cuda")]
use crate::engine::Tuning;
use crate::engine::backend::{Backend, Device, Notes, lacks_int8};
use crate::engine::quantized::Quantized;
use crate::engine::source::{CONFIG_KEY, said_config};
use crate::error::{Error, Result};
use crate::fsio;
use crate::isa::{Dot, Int8, Isa};
use crate::model::Config;
use crate::tensor::Precision;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

/// Whether a file begins as bundles do. What cannot be read is told where it is opened.
pub fn is_bundle(path: &Path) -> bool {
    let begin = format!("{{\"__metadata__\":{{\"{MANIFEST_KEY}\":");
    let mut start = vec![0; 8 + begin.len()];
    let read = fsio::open_file(path).is_ok_and(|mut file| file.read_exact(&mut start).is_ok());
    read && start[8..] == *begin.as_bytes()
}

/// Opens a bundle, whatever it is for: the model, and what it was made for.
///
/// # Errors
/// As [`Checkpoint::open_sealed`]; [`Error::Checkpoint`] if it is no bundle of this version;
/// [`Error::Usage`] if it holds another model than `name`.
pub fn read(path: &Path, name: Option<&str>) -> Result<(Config, Manifest, Arc<Bundle>)> {
    // By threads that are gone when the model is there.
    let file = Pool::new(0)?.run(|| Checkpoint::open_sealed(path))?;
    let text = file.metadata().get(MANIFEST_KEY).map_or("", String::as_str);
    let manifest = Manifest::parse(text).map_err(|reason| Error::checkpoint(path, reason))?;
    let config = said_config(&file, name)?;
    // Before a graph of so many is built. What else does not fit is not found when it is looked for.
    let (stages, entries) = (config.head.stages, file.names().len());
    if stages > entries {
        let reason = format!("`{CONFIG_KEY}` says {stages} stages, in a bundle of {entries} entries");
        return Err(Error::checkpoint(path, reason));
    }
    let made_for = format!("{} on {}", manifest.sizes(), manifest.devices());
    Ok((config, manifest, Arc::new(Bundle::new(file, made_for))))
}

/// A model of a bundle.
pub(in crate::engine) struct Opened {
    pub config: Config,
    pub manifest: Manifest,
    pub backend: Backend,
    pub notes: Notes,
    pub quantized: Option<Quantized>,
}

/// The model of a bundle on the device that `options` ask for.
///
/// # Errors
/// As [`read`]; [`Error::NoDevice`] if the bundle is for other devices, or the one that it is for cannot be
/// used; [`Error::Usage`] for a precision, arithmetic or table that is not the bundle's.
pub(in crate::engine) fn open(path: &Path, options: &ModelOptions) -> Result<Opened> {
    let (config, manifest, bundle) = read(path, options.name.as_deref())?;
    let other = |reason: String| {
        let (path, devices) = (path.display(), manifest.devices());
        Error::NoDevice(format!("{path}: the bundle is for {devices}; {reason}"))
    };
    let gpu = match options.device {
        Device::Cpu => Err(None),
        device => on_gpu(&manifest, &bundle, device, options)?.map_err(Some),
    };
    let reason = match (gpu, options.device) {
        (Ok(backend), _) => {
            let notes = Notes { device: None, tuning: None, precision: None };
            return Ok(Opened { config, manifest, backend, notes, quantized: None });
        }
        (Err(reason), Device::Cuda(_)) => return Err(other(reason.unwrap_or_default())),
        (Err(reason), _) => reason,
    };
    let here = instruction_set(Isa::detect());
    let found = manifest.targets.iter().find_map(|target| match target {
        Target::Cpu { isa, exact, bf16, int8 } if *isa == here => Some((*exact, *bf16, *int8)),
        _ => None,
    });
    let Some((exact, bf16, int8)) = found else {
        let gpu = reason.map_or(String::new(), |reason| format!(", and {reason}"));
        return Err(other(format!("this is a CPU with {here}{gpu}")));
    };
    let bf16 = match (bf16, options.precision) {
        (false, Some(Precision::Bf16)) => return Err(other("bf16 was asked for".into())),
        (true, Some(Precision::F32)) => return Err(other("f32 was asked for".into())),
        (false, _) => None,
        (true, _) => Some(Dot::detect().ok_or_else(|| {
            other(format!(
                "this CPU, with {here}, does not multiply bf16: `knet compile --precision f32` is for it"
            ))
        })?),
    };
    let quantized = match (int8, options.int8) {
        (false, Some(true)) => return Err(other("int8 was asked for".into())),
        (true, Some(false)) => return Err(other("other numbers than int8 were asked for".into())),
        (false, _) => None,
        (true, _) if Int8::detect().is_none() => return Err(other(lacks_int8())),
        (true, _) => Quantized::said(bundle.file())?,
    };
    let arithmetic = Target::arithmetic(exact);
    if options.arithmetic == Arithmetic::Exact && arithmetic != Arithmetic::Exact {
        let reason = "its kernels round as fast ones do: make it with --precise for exact ones";
        return Err(Error::usage(format!("{}: {reason}", path.display())));
    }
    let int8 = Int8::detect().unwrap_or(Int8::Portable);
    let selection = Selection { arithmetic, bf16, int8, ..Selection::new(Isa::detect(), 1) };
    let backend = Backend::Cpu { selection, weights: Arc::new(Weights::mapped(bundle)) };
    let notes = Notes { device: reason, tuning: None, precision: None };
    Ok(Opened { config, manifest, backend, notes, quantized })
}

/// An instruction set as a bundle names it: layouts of different processors may bear one name.
pub(super) fn instruction_set(isa: Isa) -> String {
    format!("{} {isa}", std::env::consts::ARCH)
}

/// The GPU that is asked for, if the bundle is for it; else why not.
#[cfg(feature = "cuda")]
fn on_gpu(
    manifest: &Manifest,
    bundle: &Arc<Bundle>,
    device: Device,
    options: &ModelOptions,
) -> Result<Result<Backend, String>> {
    if !manifest.targets.iter().any(|target| matches!(target, Target::Cuda { .. })) {
        return Ok(Err("it holds nothing for a GPU".into()));
    }
    if let Tuning::File(table) = &options.tuning {
        let (table, path) = (table.display(), bundle.file().path().display());
        return Err(Error::usage(format!("{table}: {path} has its own table, or none")));
    }
    let ordinal = if let Device::Cuda(ordinal) = device { ordinal } else { 0 };
    let gpu = match cuda::Device::open(ordinal) {
        Ok(gpu) => gpu,
        Err(error) if device == Device::Auto => return Ok(Err(error.to_string())),
        Err(error) => return Err(error),
    };
    let (major, minor) = gpu.caps().compute;
    let mut here = Vec::new();
    for target in &manifest.targets {
        let fault = |reason| Error::checkpoint(bundle.file().path(), format!("`{MANIFEST_KEY}`: {reason}"));
        let Some((selection, code)) = target.selection().map_err(fault)? else { continue };
        if selection.target().caps.compute == (major, minor) {
            here.push((selection, code));
        }
    }
    // Of several precisions the one that was asked for; of one, that, unless another was named.
    let precision = options.precision.unwrap_or_default();
    let wanted = |(selection, _): &(cuda::Selection, _)| selection.target().precision == precision;
    let chosen = match here.iter().position(wanted) {
        Some(found) => found,
        None if here.is_empty() => return Ok(Err(format!("{} is sm_{major}{minor}", gpu.name()))),
        None if precision == Precision::default() => 0,
        None => return Ok(Err(format!("{} was asked for", precision.name()))),
    };
    let (selection, code) = here.swap_remove(chosen);
    Ok(Ok(Backend::Cuda(Arc::new(Runtime::bundled(gpu, selection, code, bundle.clone())))))
}

#[cfg(not(feature = "cuda"))]
fn on_gpu(_: &Manifest, _: &Arc<Bundle>, _: Device, _: &ModelOptions) -> Result<Result<Backend, String>> {
    Ok(Err("knet was built without its feature `cuda`".into()))
}
