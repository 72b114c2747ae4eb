//! `knet compile`

use crate::size::{self, Size};
use crate::voice::tell;
use crate::{PrecisionArgument, guard, source};
use clap::Args;
use knet::cpu::Arithmetic;
use knet::cuda::gpu::{GPUS, Gpu, Target};
use knet::engine::bundle::{self, For};
use knet::engine::{Device, Model, ModelOptions, WeightSource};
use knet::tensor::Precision;
use knet::{Error, Result};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Make one file of a model for these sizes and devices, which opens without packing and without compiling
///
/// A bundle holds constants as kernels read them, mapped and not copied, and for GPUs their compiled kernels
/// and the table of `knet tune` that is followed here. It is opened wherever weights are, by --weights.
/// Frames of other shapes than those of --size are refused, and so are other CPUs, other GPUs and other
/// versions of knet: keep the checkpoint.
#[derive(Args)]
pub struct Arguments {
    /// Checkpoint, or `seeded:N` [default: the person model that comes with the program; seeded:0 for a model
    /// named by --model]
    #[arg(long, value_name = "FILE")]
    weights: Option<WeightSource>,

    /// Model name, for weights that do not say it
    #[arg(long, value_name = "NAME")]
    model: Option<String>,

    /// Size of the resized photo, which the network sees rounded up to multiples of 32: one or several,
    /// `384x512,512x384`, or SHORT,LONG for a lying one. May be given several times [default: the model's
    /// own, lying and standing]
    #[arg(long, value_name = "HxW[,HxW]", value_parser = parse_sizes)]
    size: Vec<Sizes>,

    /// Devices: cpu (this one's instruction set), a compute capability such as sm_87, a GPU (h100, h200,
    /// a100, a10, l4, l40s, rtx4090 or orin), or cuda or cuda:N for the one that is here
    #[arg(long, value_name = "DEVICE", value_delimiter = ',', default_value = "cpu")]
    target: Vec<String>,

    /// How feature maps are stored and multiplied [default: f16 on a GPU; on a CPU bf16 if this one has
    /// AMX, else f32]
    #[arg(long, value_enum)]
    precision: Option<PrecisionArgument>,

    /// Round as little as PyTorch does, as --precise of other commands: exact kernels on the CPU, f32 on a
    /// GPU
    #[arg(long, conflicts_with = "precision")]
    precise: bool,

    /// File to write [default: the weights' name with the ending .knet, here]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,

    /// Replace a file that this command did not make (the weights never)
    #[arg(long)]
    overwrite: bool,
}

/// Sizes of one option.
#[derive(Clone)]
struct Sizes(Vec<Size>);

fn parse_sizes(text: &str) -> Result<Sizes, String> {
    let several = text.contains(['x', 'X']);
    let each = if several { text.split(',').collect() } else { vec![text] };
    each.into_iter().map(size::parse).collect::<Result<_, _>>().map(Sizes)
}

pub fn run(arguments: &Arguments) -> Result<()> {
    let weights = source(arguments.weights.as_ref(), arguments.model.as_deref());
    let out = arguments.out.clone().unwrap_or_else(|| default_out(&weights, arguments.model.as_deref()));
    let inputs: guard::Inputs = match &weights {
        WeightSource::File(path) => vec![path.clone()],
        WeightSource::Embedded { .. } | WeightSource::Seeded(_) => Vec::new(),
    }
    .into_iter()
    .collect();
    guard::check(&out, &inputs, bundle::is_bundle, arguments.overwrite)?;
    let options = |device| ModelOptions {
        weights: weights.clone(),
        name: arguments.model.clone(),
        device,
        precision: match arguments.precision {
            _ if arguments.precise => Some(Precision::F32),
            // Where no bundle is for the CPU it only reads the constants, and need not multiply bf16.
            _ if device == Device::Cpu && !arguments.target.iter().any(|name| name == "cpu") => {
                Some(Precision::F32)
            }
            named => named.and_then(PrecisionArgument::of_maps),
        },
        int8: arguments.precision.and_then(PrecisionArgument::int8),
        arithmetic: if arguments.precise { Arithmetic::Exact } else { Arithmetic::Fast },
        ..ModelOptions::default()
    };
    let cpu = options(Device::Cpu);
    let gpu = options(Device::Cuda(0)).precision.unwrap_or_default();
    let devices: Vec<For> = arguments
        .target
        .iter()
        .map(|name| device(name, gpu, |device| Model::load(&options(device))))
        .collect::<Result<_>>()?;
    let model = Model::load(&cpu)?;
    let named: Vec<Size> = arguments.size.iter().flat_map(|sizes| sizes.0.clone()).collect();
    let sizes: Vec<_> = size::inputs(&named, model.config()).into_iter().collect();
    let made = bundle::compile(&model, &sizes, &devices, &out)?;
    let (config, manifest, _) = bundle::read(&out, None)?;
    tell(format_args!(
        "{}: {} at {} for {}: {} entries, {:.1} MiB",
        out.display(),
        config.name,
        manifest.sizes(),
        manifest.devices(),
        made.entries,
        made.bytes as f64 / f64::from(1 << 20)
    ))
}

fn default_out(weights: &WeightSource, model: Option<&str>) -> PathBuf {
    let name = match weights {
        WeightSource::File(path) => path.file_name().map_or(Path::new("model"), Path::new),
        WeightSource::Embedded { .. } => Path::new("knet_s3_lite0_person"),
        WeightSource::Seeded(_) => Path::new(model.unwrap_or("model")),
    };
    name.with_extension("knet")
}

/// The device of a name; `open` loads the model on a device that is here.
fn device(
    name: &str,
    precision: Precision,
    open: impl FnOnce(Device) -> Result<std::sync::Arc<Model>>,
) -> Result<For> {
    if name == "cpu" {
        return Ok(For::Cpu);
    }
    if let Ok(device @ Device::Cuda(_)) = name.parse() {
        let model = open(device)?;
        let selection = model.selection().ok_or_else(|| Error::usage(format!("`{name}` is no GPU")))?;
        return Ok(For::Cuda { name: model.device(), selection: selection.clone() });
    }
    let of = |gpu: &Gpu| {
        let (major, minor) = gpu.caps.compute;
        name.eq_ignore_ascii_case(gpu.name) || name == format!("sm_{major}{minor}")
    };
    let known = || {
        let mut names: Vec<String> = GPUS.iter().map(|gpu| gpu.name.to_string()).collect();
        let compute = GPUS.iter().map(|gpu| gpu.caps.compute);
        names.extend(
            compute.collect::<BTreeSet<_>>().iter().map(|(major, minor)| format!("sm_{major}{minor}")),
        );
        names.join(", ")
    };
    let gpu = GPUS
        .iter()
        .find(|gpu| of(gpu))
        .ok_or_else(|| Error::usage(format!("--target {name}: takes cpu, cuda, cuda:N, {}", known())))?;
    Ok(For::Cuda { name: gpu.name.into(), selection: Target { caps: gpu.caps, precision }.into() })
}
