//! `knet models`

use crate::size::Size;
use crate::{PrecisionArgument, print};
use clap::Args;
use knet::Result;
use knet::cpu::{self, Selection};
use knet::cuda;
use knet::cuda::gpu::{Gpu, Target, find};
use knet::graph::passes::optimize;
use knet::isa::Isa;
use knet::model::config::MODEL_NAMES;
use knet::model::{Config, TapMode, build};
use serde::Serialize;

/// List the models by name, with what each costs
///
/// Operations and memory are those of one photo that fills the model's own size, lying. Memory is what holds
/// everything between the network's input and its results, weights not counted: those take four bytes a
/// parameter, or two on a GPU in 16 bits. A dash stands for a GPU that has no kernel for an operator yet.
#[derive(Args)]
pub struct Arguments {
    /// Plan for this GPU: h100, h200, a100, a10, l4, l40s, rtx4090 or orin
    #[arg(long, value_name = "NAME", value_parser = find, default_value = "h100")]
    gpu: &'static Gpu,

    /// How the GPU stores and multiplies feature maps
    #[arg(long, value_enum, default_value = "f16")]
    precision: PrecisionArgument,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// A line of the list.
#[derive(Serialize)]
struct Line {
    model: &'static str,
    task: &'static str,
    /// Height and width of the network's input.
    input: [usize; 2],
    classes: usize,
    parameters: usize,
    flops: u64,
    cpu_bytes: usize,
    /// Nothing where a GPU lacks a kernel.
    gpu_bytes: Option<usize>,
}

impl Line {
    fn of(model: &'static str, target: Target) -> Result<Line> {
        let config = Config::named(model)?;
        let input = Size::of(&config).padded(&config);
        let graph = optimize(build(&config, 1, input, TapMode::Off)?.graph)?;
        let plan = cpu::plan(&graph, Selection::new(Isa::detect(), 1))?;
        Ok(Line {
            model,
            task: config.task.name(),
            input,
            classes: config.classes.count(),
            parameters: graph.params().map(|param| param.upstream_shape.iter().product::<usize>()).sum(),
            flops: plan.flops(),
            cpu_bytes: plan.arena_bytes,
            gpu_bytes: cuda::plan(&graph, target).ok().map(|plan| plan.arena_bytes),
        })
    }

    fn text(&self) -> String {
        let mib = |bytes: usize| format!("{:.0}", bytes as f64 / f64::from(1 << 20));
        format!(
            "{:<30} {:<9} {:>9} {:>8} {:>9.1} M {:>10.1} {:>9} {:>9}\n",
            self.model,
            self.task,
            format!("{}x{}", self.input[0], self.input[1]),
            self.classes,
            self.parameters as f64 / 1e6,
            self.flops as f64 / 1e9,
            mib(self.cpu_bytes),
            self.gpu_bytes.map_or_else(|| "-".to_string(), mib),
        )
    }
}

pub fn run(arguments: &Arguments) -> Result<()> {
    let target = Target { caps: arguments.gpu.caps, precision: arguments.precision.of_gpu()? };
    let lines = MODEL_NAMES.iter().map(|name| Line::of(name, target)).collect::<Result<Vec<Line>>>()?;
    if arguments.json {
        return print(&format!("{:#}\n", serde_json::json!(lines)));
    }
    let head = format!(
        "{:<30} {:<9} {:>9} {:>8} {:>11} {:>10} {:>9} {:>9}\n",
        "model", "task", "input", "classes", "parameters", "GFLOP", "CPU MiB", "GPU MiB"
    );
    print(&(head + &lines.iter().map(Line::text).collect::<String>()))
}
