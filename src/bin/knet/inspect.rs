//! `knet inspect`

use crate::parse_size;
use clap::Args;
use knet::checkpoint::Checkpoint;
use knet::engine::{WeightSource, source};
use knet::model::TapMode;
use knet::plan::Place;
use knet::{Engine, Result};
use serde_json::{Value, json};

/// Show what a checkpoint holds and what running it costs
///
/// Prints model, task, parameters and one line a step: kernel, shape, operations, bytes moved, place in the
/// arena.
#[derive(Args)]
pub struct Arguments {
    /// Checkpoint (.safetensors), or `seeded:N`
    file: WeightSource,

    /// Model name, for files that do not say
    #[arg(long, value_name = "NAME")]
    model: Option<String>,

    /// Size of the network input; rounded up to multiples of 32
    #[arg(long, value_name = "HxW", default_value = "800x1344", value_parser = parse_size)]
    size: [usize; 2],

    /// Worker threads the plan is made for [default: one per core]
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    threads: u16,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub fn run(arguments: &Arguments) -> Result<()> {
    let mut builder =
        Engine::builder().weights(arguments.file.clone()).threads(usize::from(arguments.threads));
    if let Some(name) = &arguments.model {
        builder = builder.model(name);
    }
    let engine = builder.build()?;
    let size = arguments.size.map(|s| s.next_multiple_of(knet::model::SIZE_DIVISOR));
    let (plan, _) = engine.plan((size[0], size[1]), TapMode::Off)?;
    let parameters = source::parameters(engine.config())?;
    let count: usize = parameters.iter().map(|p| p.upstream_shape.iter().product::<usize>()).sum();
    let stored = match &arguments.file {
        WeightSource::File(path) => Checkpoint::open(path)?.tensors().iter().map(|t| t.bytes).sum(),
        WeightSource::Seeded(_) => 4 * count,
    };
    if arguments.json {
        let report = json!({
            "weights": arguments.file.to_string(),
            "config": engine.config(),
            "parameters": count,
            "parameter_tensors": parameters.len(),
            "stored_bytes": stored,
            "size": size,
            "flops": plan.flops(),
            "arena_bytes": plan.arena_bytes,
            "steps": plan.steps.iter().map(step_json).collect::<Vec<_>>(),
        });
        println!("{report:#}");
        return Ok(());
    }
    let config = engine.config();
    let mib = |bytes: usize| bytes as f64 / f64::from(1 << 20);
    println!("weights      {}", arguments.file);
    println!("model        {} ({})", config.name, config.task.name());
    println!("classes      {} things, {} stuff", config.thing_classes, config.stuff_classes);
    println!("kernels      {} instance, {} stages", config.proposals, config.stages);
    println!(
        "parameters   {:.2} M in {} tensors, {:.1} MiB stored",
        count as f64 / 1e6,
        parameters.len(),
        mib(stored)
    );
    println!("input        {}x{}", size[0], size[1]);
    println!("operations   {:.1} GFLOP", plan.flops() as f64 / 1e9);
    println!("arena        {:.1} MiB\n", mib(plan.arena_bytes));
    print!("{plan}");
    Ok(())
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
