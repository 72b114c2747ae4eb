//! `knet inspect`

use crate::size::{self, Size};
use crate::{PrecisionArgument, print};
use clap::Args;
use gpu::GpuPlan;
use knet::checkpoint::Checkpoint;
use knet::cuda::gpu::{Gpu, find};
use knet::engine::bundle::is_bundle;
use knet::engine::{Device, WeightSource, source};
use knet::graph::Param;
use knet::model::TapMode;
use knet::plan::Place;
use knet::{Engine, Result};
use serde_json::{Value, json};

mod bundle;
mod gpu;

/// Show what a checkpoint holds and what running it costs
///
/// Prints model, task, parameters and one line a step: kernel, shape, operations, bytes moved, place in the
/// arena. With --gpu, the steps are those of a CUDA plan for a GPU that need not be here: what each launches,
/// its least time by the data sheet's rates, and what the cost model of convolutions thinks it takes. Of a
/// bundle of `knet compile` it prints what it is for and holds, once all of it was checked.
#[derive(Args)]
pub struct Arguments {
    /// Checkpoint (.safetensors), bundle (.knet), or `seeded:N` [default: the person model that comes with
    /// the program; seeded:0 for a model named by --model]
    file: Option<WeightSource>,

    /// Model name, for files that do not say
    #[arg(long, value_name = "NAME")]
    model: Option<String>,

    /// Size of the resized photo, which the network sees rounded up to multiples of 32 [default: the model's
    /// own, 800x1333 for COCO]
    #[arg(long, value_name = "HxW|SHORT,LONG", value_parser = size::parse)]
    size: Option<Size>,

    /// Worker threads the plan is made for [default: one per core]
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    threads: u16,

    /// Plan for this GPU: h100, h200, a100, a10, l4, l40s, rtx4090 or orin
    #[arg(long, value_name = "NAME", value_parser = find)]
    gpu: Option<&'static Gpu>,

    /// How the GPU stores and multiplies feature maps
    #[arg(long, value_enum, default_value = "f16", requires = "gpu")]
    precision: PrecisionArgument,

    /// Plan a training step: forward, matching, losses, backward, clipping and AdamW. The table has a line an
    /// operator, the JSON every step
    #[arg(long, requires = "gpu")]
    train: bool,

    /// Images of a training step
    #[arg(long, value_name = "N", default_value_t = 2, requires = "train", value_parser = clap::value_parser!(u32).range(1..=1024))]
    batch: u32,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub fn run(arguments: &Arguments) -> Result<()> {
    let file = crate::source(arguments.file.as_ref(), arguments.model.as_deref());
    if let WeightSource::File(path) = &file
        && is_bundle(path)
    {
        return bundle::show(path, arguments.model.as_deref(), arguments.json);
    }
    let mut builder = Engine::builder().weights(file.clone()).threads(usize::from(arguments.threads));
    if let Some(name) = &arguments.model {
        builder = builder.model(name);
    }
    if arguments.gpu.is_some() {
        builder = builder.device(Device::Cpu);
    }
    let engine = builder.build()?;
    let size = arguments.size.unwrap_or(Size::of(engine.config())).padded(engine.config());
    let precision = arguments.precision.of_gpu()?;
    let gpu = match arguments.gpu {
        Some(gpu) if arguments.train => {
            Some(GpuPlan::training(engine.config(), size, arguments.batch as usize, gpu, precision)?)
        }
        Some(gpu) => Some(GpuPlan::new(engine.config(), size, gpu, precision)?),
        None => None,
    };
    let plan = match &gpu {
        Some(gpu) => gpu.plan.described(),
        None => engine.session().plan((size[0], size[1]), TapMode::Off)?.0,
    };
    let tensors = source::parameters(engine.config())?;
    let size_of = |p: &Param| p.upstream_shape.iter().product::<usize>();
    let values: usize = tensors.iter().map(size_of).sum();
    // As PyTorch counts them: what training changes, not the statistics of norms.
    let statistics = |p: &&Param| p.key.ends_with(".running_mean") || p.key.ends_with(".running_var");
    let parameters = values - tensors.iter().filter(statistics).map(size_of).sum::<usize>();
    let quantized = source::open(&file, arguments.model.as_deref())?.quantized;
    let stored = match &file {
        WeightSource::File(path) => Checkpoint::open(path)?.tensors().iter().map(|t| t.bytes).sum(),
        WeightSource::Embedded { bytes, .. } => bytes.len(),
        WeightSource::Seeded(_) => 4 * values,
    };
    if arguments.json {
        let mut report = json!({
            "weights": file.to_string(),
            "config": engine.config(),
            "parameters": parameters,
            "tensors": tensors.len(),
            "stored_bytes": stored,
            "size": size,
            "flops": plan.flops(),
            "arena_bytes": plan.arena_bytes,
            "steps": plan.steps.iter().map(step_json).collect::<Vec<_>>(),
        });
        if let Some(quantized) = &quantized {
            report["quantization"] = json!(quantized);
        }
        if let Some(gpu) = &gpu {
            report["gpu"] = gpu.totals();
            for index in 0..plan.steps.len() {
                report["steps"][index]["gpu"] = gpu.step_json(index);
            }
        }
        return print(&format!("{report:#}\n"));
    }
    let config = engine.config();
    let mib = |bytes: usize| bytes as f64 / f64::from(1 << 20);
    let mut rows = vec![
        ("weights", file.to_string()),
        ("model", format!("{} ({})", config.name, config.task.name())),
        ("classes", format!("{} things, {} stuff", config.classes.things, config.classes.stuff)),
        match (&config.rcnn, &config.solov2, &config.condinst) {
            (Some(rcnn), ..) => ("boxes", format!("{} proposals, {} stages", rcnn.proposals, rcnn.stages)),
            (_, Some(solov2), _) => ("kernels", format!("{} best of all cells", solov2.candidates)),
            (.., Some(condinst)) => ("boxes", format!("{} best of each level", condinst.candidates)),
            (None, None, None) => {
                ("kernels", format!("{} instance, {} stages", config.head.proposals, config.head.stages))
            }
        },
        ("parameters", format!("{:.2} M", parameters as f64 / 1e6)),
        ("stored", format!("{} tensors, {:.1} MiB", tensors.len(), mib(stored))),
        ("input", format!("{}x{}", size[0], size[1])),
        ("operations", format!("{:.1} GFLOP", plan.flops() as f64 / 1e9)),
        ("arena", format!("{:.1} MiB", mib(plan.arena_bytes))),
    ];
    rows.extend(quantized.map(|quantized| ("quantized", quantized.summary())));
    rows.extend(gpu.iter().flat_map(GpuPlan::head));
    let head: String = rows.iter().map(|(name, value)| format!("{name:<12} {value}\n")).collect();
    match gpu {
        Some(gpu) if arguments.train => print(&format!("{head}\n{}", gpu.operators())),
        Some(gpu) => print(&format!("{head}\n{}", gpu.table())),
        None => print(&format!("{head}\n{plan}")),
    }
}

fn step_json(step: &knet::plan::Step) -> Value {
    let offset = match step.outputs[0].place {
        Place::Arena(slot) => slot.offset,
        Place::Const(_) => 0,
    };
    json!({
        "name": step.name,
        "op": step.op.name(),
        "attributes": step.op.attributes(),
        "kernel": step.kernel,
        "shape": step.outputs[0].ty.shape.dims(),
        "flops": step.flops,
        "bytes": step.bytes(),
        "offset": offset,
        "workspace": step.workspace.bytes,
    })
}
