//! `knet inspect --gpu`: the plan for a GPU that need not be here.

use crate::training::Setup;
use knet::Result;
use knet::cuda::gpu::{Gpu, Precision, Target, roofline};
use knet::cuda::launch::Program;
use knet::cuda::ops::conv2d;
use knet::cuda::tiles::conv::conv;
use knet::cuda::{Plan, plan};
use knet::graph::passes::optimize;
use knet::model::{Config, TapMode, build};
use knet::ops::Op;
use knet::plan::Step;
use knet::train::network::build_training;
use serde_json::{Value, json};

/// Object slots of an image of a training step: COCO has seven objects a photo in the mean.
const OBJECTS: usize = 12;

/// A plan and what each of its steps launches.
pub struct GpuPlan {
    gpu: &'static Gpu,
    target: Target,
    pub plan: Plan,
}

impl GpuPlan {
    /// Plans `config` by the cost models.
    pub fn new(
        config: &Config,
        size: [usize; 2],
        gpu: &'static Gpu,
        precision: Precision,
    ) -> Result<GpuPlan> {
        let target = Target { caps: gpu.caps, precision };
        let graph = optimize(build(config, 1, size, TapMode::Off)?.graph)?;
        Ok(GpuPlan { gpu, target, plan: plan(&graph, target)? })
    }

    /// Plans a training step of `batch` images.
    pub fn training(
        config: &Config,
        size: [usize; 2],
        batch: usize,
        gpu: &'static Gpu,
        precision: Precision,
    ) -> Result<GpuPlan> {
        let target = Target { caps: gpu.caps, precision };
        let network = build_training(&Setup::new(config).spec(batch, size, OBJECTS))?;
        Ok(GpuPlan { gpu, target, plan: plan(&network.graph, target)? })
    }

    /// What the cost model thinks a step takes, in microseconds; it knows implicit GEMMs alone.
    fn estimate(&self, step: &Step<Program>) -> Option<f64> {
        let op = match &step.op {
            Op::Conv2d(op) => op,
            Op::FusedConv2d(fused) => &fused.conv,
            _ => return None,
        };
        let shape = conv2d::shape(op, &step.site().site());
        conv(&shape, self.target.precision, &self.target.caps).ok()?.estimate()
    }

    /// The least time of a step, in microseconds.
    fn least(&self, step: &Step<Program>) -> f64 {
        roofline::step(step, &self.target).as_secs_f64() * 1e6
    }

    fn launches(&self) -> usize {
        self.plan.steps.iter().map(|step| step.program.launches.len()).sum()
    }

    /// Lines for people: device, totals.
    pub fn head(&self) -> Vec<(&'static str, String)> {
        let Gpu { title, caps, .. } = self.gpu;
        let (major, minor) = caps.compute;
        let (count, clock, bandwidth) = (caps.multiprocessors, caps.clock_mhz, caps.bandwidth_gbs);
        let least = roofline::plan(&self.plan, &self.target).as_secs_f64() * 1e6;
        let operations = roofline::compute(self.plan.flops(), &self.target).as_secs_f64() * 1e6;
        let estimates: f64 = self.plan.steps.iter().filter_map(|step| self.estimate(step)).sum();
        vec![
            (
                "gpu",
                format!(
                    "{title} ({major}.{minor}), {count} multiprocessors at {clock} MHz, {bandwidth} GB/s"
                ),
            ),
            ("precision", self.target.precision.name().to_string()),
            ("launches", format!("{} of {} steps", self.launches(), self.plan.steps.len())),
            ("roofline", format!("{least:.1} µs step by step, {operations:.1} µs for the operations alone")),
            ("model", format!("{estimates:.1} µs for implicit GEMMs")),
        ]
    }

    /// A line a step, and below it one for each of its launches.
    pub fn table(&self) -> String {
        let mut text = format!(
            "{:>4}  {:<44} {:<14} {:<34} {:<22} {:>9} {:>9} {:>9} {:>9} {:>9}\n",
            "step", "value", "op", "kernel", "shape", "MFLOP", "KiB", "roof µs", "model µs", "launches"
        );
        for (index, step) in self.plan.steps.iter().enumerate() {
            let program = &step.program;
            let estimate = self.estimate(step).map_or("-".to_string(), |us| format!("{us:.2}"));
            text += &format!(
                "{index:>4}  {:<44} {:<14} {:<34} {:<22} {:>9.2} {:>9} {:>9.2} {estimate:>9} {:>9}\n",
                step.name,
                step.op.name(),
                program.kernel,
                step.outputs[0].ty.shape.to_string(),
                step.flops as f64 / 1e6,
                roofline::bytes(step, &self.target) / 1024,
                self.least(step),
                program.launches.len()
            );
            for launch in &program.launches {
                text += &format!("      {launch}\n");
            }
        }
        text
    }

    /// A line an operator, what takes most by the roofline first.
    pub fn operators(&self) -> String {
        roofline::table(&roofline::by_operator(&self.plan, &self.target))
    }

    /// What [`GpuPlan::head`] says, as JSON.
    pub fn totals(&self) -> Value {
        json!({
            "gpu": self.gpu.name,
            "precision": self.target.precision.name(),
            "launches": self.launches(),
            "roofline_us": roofline::plan(&self.plan, &self.target).as_secs_f64() * 1e6,
        })
    }

    /// What a step has besides what every plan has.
    pub fn step_json(&self, index: usize) -> Value {
        let step = &self.plan.steps[index];
        let program = &step.program;
        let launches = program.launches.iter().map(|launch| {
            let defines: serde_json::Map<String, Value> =
                launch.defines.iter().map(|(name, value)| (name.to_string(), (*value).into())).collect();
            json!({
                "source": launch.source,
                "entry": launch.entry,
                "defines": defines,
                "grid": launch.grid,
                "block": launch.block,
                "shared": launch.shared,
            })
        });
        json!({
            "roofline_us": self.least(step),
            "model_us": self.estimate(step),
            "launches": launches.collect::<Vec<_>>(),
        })
    }
}
