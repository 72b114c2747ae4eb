//! Every operator over the shapes of real layers: the cases of the registry that ask for it
//! ([`Case::bench`](knet::ops::case::Case)). Walks the registry: a new operator needs no line here.
//!
//! Criterion's "elements" are floating-point operations of the direct algorithm, so that Gelem/s are GFLOP/s
//! (Winograd may exceed the peak of the machine); operators that compute nothing are measured in bytes read
//! and written. Filters and norms are constants, as in a model: packing them is not in the time.
//!
//! Where there is a GPU, groups that end in `-cuda` are the device's time of the same cases in f16.
//!
//! `cargo bench --bench ops -- table` measures the kernels over the layers of K-Net, of Cascade Mask R-CNN and of
//! a network with windowed attention instead: GFLOP/s, GB/s, and the share of the roofline that this machine's
//! own ceilings make, which are measured in the same run. A map that stays in a cache may pass that of memory.
//! It writes `target/kernels.json`, in the form of `benches/results/README.md`.
//!
//! For comparing two commits on one idle machine: `cargo bench --bench ops -- --save-baseline before`, then
//! `-- --baseline before`. `KNET_THREADS` sets the number of threads (2), `KNET_ISA` lowers the instruction
//! set. For comparison with PyTorch see `tools/peer`.

#[path = "common/ceilings.rs"]
mod ceilings;
mod common;
#[path = "common/gpu.rs"]
mod gpu;
#[path = "common/layers.rs"]
mod layers;
#[path = "common/results.rs"]
mod results;

use ceilings::Ceilings;
use criterion::{Criterion, Throughput};
use knet::cpu::{self, Executor, Pool, Selection};
use knet::cuda::gpu::Precision;
use knet::cuda::{self, Runtime, Told};
use knet::error::Result;
use knet::graph::Param;
use knet::isa::Isa;
use knet::ops::all_cases;
use knet::ops::case::Case;
use knet::tensor::Tensor;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::time::{Duration, Instant};
use testkit::run::{Operands, fill, one_node};

/// A case that is ready to run; nothing if its operator is a constant, which a model runs when it is loaded.
fn prepare(pool: &Pool, case: &Case) -> Option<Executor> {
    let selection = Selection::new(Isa::detect(), pool.threads());
    let inputs = case.make_inputs(7);
    let (graph, weights) = one_node(case, &inputs, Operands::of_model(&case.op)).expect("a case is valid");
    let plan = cpu::plan(&graph, selection).expect("a case can be planned");
    plan.steps.first()?;
    let mut executor = pool.run(|| Executor::new(plan, &weights)).expect("an executor");
    for (index, input) in inputs.iter().enumerate().take(executor.plan().inputs.len()) {
        fill(&mut executor, index, input);
    }
    Some(executor)
}

fn bench_case(criterion: &mut Criterion, pool: &Pool, case: &Case) {
    let Some(mut executor) = prepare(pool, case) else { return };
    let step = &executor.plan().steps[0];
    let throughput = match step.flops {
        0 => Throughput::Bytes(step.bytes()),
        flops => Throughput::Elements(flops),
    };
    let mut group = criterion.benchmark_group(case.op.name());
    group.throughput(throughput);
    // The loop runs within the pool: entering it for every call would be most of the time of the small
    // operators.
    group.bench_function(&case.name, |bencher| pool.run(|| bencher.iter(|| executor.run())));
}

fn ops(criterion: &mut Criterion) {
    let pool = Pool::new(common::threads()).expect("threads");
    for case in all_cases().into_iter().filter(|case| case.bench && !case.op.is_lowered()) {
        bench_case(criterion, &pool, &case);
    }
}

/// Whose layers the table has, and at which size.
const MODELS: [(&str, &str, [usize; 2]); 3] = [
    ("knet_s3_r50_fpn", "K-Net R50", [800, 1344]),
    ("cascade_mask_rcnn_r50_fpn", "Cascade Mask R-CNN R50", [800, 1344]),
    ("knet_s3_upernet_swin-t", "K-Net UPerNet Swin-T", [512, 512]),
];
/// Runs of a layer: at least so many, and for so long. The median counts.
const RUNS: usize = 7;
const SECONDS: f64 = 0.1;

/// Median of the seconds that a run takes.
fn seconds(pool: &Pool, executor: &mut Executor) -> f64 {
    let mut times = Vec::new();
    pool.run(|| {
        executor.run();
        while times.len() < RUNS || times.iter().sum::<f64>() < SECONDS {
            let start = Instant::now();
            executor.run();
            times.push(start.elapsed().as_secs_f64());
        }
    });
    results::median(&times)
}

/// The layers of the models, measured one after the other.
fn table(pool: &Pool, ceilings: &Ceilings) -> Vec<Value> {
    let mut models = Vec::new();
    for (model, label, size) in MODELS {
        println!("\n{label}, {}x{}", size[0], size[1]);
        println!("steps        ms  GFLOP/s     GB/s  roofline  layer");
        let mut rows = Vec::new();
        for layer in layers::of(model, size).expect("a model of the zoo") {
            let Some(mut executor) = prepare(pool, &layer.case) else { continue };
            let seconds = seconds(pool, &mut executor);
            let step = &executor.plan().steps[0];
            let (flops, bytes) = (step.flops, step.bytes());
            let share = ceilings.least(flops, bytes) / seconds;
            let [gflops, gbytes] = [flops, bytes].map(|work| work as f64 / seconds * 1e-9);
            println!(
                "{:>5} {:>9.3} {gflops:>8.1} {gbytes:>8.2} {:>8.0} %  {} ({}, {})",
                layer.steps,
                seconds * 1e3,
                100.0 * share,
                layer.case.name,
                layer.case.op.name(),
                step.kernel,
            );
            let shapes: Vec<String> =
                step.inputs.iter().map(|operand| operand.ty.shape.to_string()).collect();
            rows.push(json!({
                "layer": layer.case.name, "op": layer.case.op.name(), "kernel": step.kernel, "operands": shapes,
                "steps": layer.steps, "flops": flops, "bytes": bytes, "seconds": seconds, "roofline": share,
            }));
        }
        models.push(json!({"model": model, "label": label, "size": size, "layers": rows}));
    }
    models
}

/// A case on the GPU, by itself.
fn cuda_case(case: &Case, ordinal: usize) -> Result<cuda::Executor> {
    let inputs = case.make_inputs(7);
    let (graph, _) = one_node(case, &inputs, Operands::of_model(&case.op))?;
    let names: Vec<String> = (0..inputs.len()).map(|i| format!("operand{i}")).collect();
    let params: HashMap<String, Tensor> = names.into_iter().zip(inputs.iter().cloned()).collect();
    let load = Box::new(move |param: &Param| Ok(params[&param.key].clone()));
    let runtime = Runtime::new(cuda::Device::open(ordinal)?, Precision::F16, load)?;
    let mut executor = cuda::Executor::with_floats(cuda::plan(&graph, runtime.target())?, &runtime)?;
    for (index, input) in inputs.iter().enumerate().take(executor.plan().inputs.len()) {
        executor.input_mut(index).copy_from_slice(input.data());
    }
    executor.run()?;
    Ok(executor)
}

fn cuda_ops(criterion: &mut Criterion) {
    let Some(ordinal) = gpu::gpu() else { return };
    for case in all_cases().into_iter().filter(|case| case.bench) {
        // Operators of training have no kernels there.
        let Ok(mut executor) = cuda_case(&case, ordinal) else { continue };
        let Some(step) = executor.plan().steps.first() else { continue };
        let throughput = match step.flops {
            0 => Throughput::Bytes(step.bytes()),
            flops => Throughput::Elements(flops),
        };
        let mut group = criterion.benchmark_group(format!("{}-cuda", case.op.name()));
        group.throughput(throughput);
        group.bench_function(&case.name, |bencher| {
            bencher.iter_custom(|runs| {
                let mut total = Duration::ZERO;
                executor.time_steps(runs as usize, Told::default(), |_, time| total += time).expect("times");
                total
            });
        });
    }
}

fn main() {
    if results::table_alone() {
        let pool = Pool::new(common::threads()).expect("threads");
        let ceilings = Ceilings::measure(pool.threads());
        let [gflops, gbytes] = [ceilings.flops, ceilings.bytes].map(|ceiling| ceiling * 1e-9);
        println!(
            "{} threads reach {gflops:.1} GFLOP/s in registers, {gbytes:.2} GB/s copying",
            pool.threads()
        );
        let file = json!({
            "form": "knet kernels 1",
            "title": "Kernels over the layers of networks",
            "ceilings": {"gflops": gflops, "gbytes": gbytes},
            "models": table(&pool, &ceilings),
        });
        return results::write("kernels.json", "cargo bench --bench ops -- table", file);
    }
    let mut criterion = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .configure_from_args();
    ops(&mut criterion);
    cuda_ops(&mut criterion);
    criterion.final_summary();
}
