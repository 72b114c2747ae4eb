//! Every operator over the shapes of real layers: the cases of the registry that ask for it
//! ([`Case::bench`](knet::ops::case::Case)). Walks the registry: a new operator needs no line here.
//!
//! Criterion's "elements" are floating-point operations of the direct algorithm, so that Gelem/s are GFLOP/s
//! (Winograd may exceed the peak of the machine); operators that compute nothing are measured in bytes read
//! and written. Filters and norms are constants, as in a model: packing them is not in the time.
//!
//! Where there is a GPU, groups that end in `-cuda` are the device's time of the same cases in f16.
//!
//! For comparing two commits on one idle machine: `cargo bench --bench ops -- --save-baseline before`, then
//! `-- --baseline before`. `KNET_THREADS` sets the number of threads (2), `KNET_ISA` lowers the instruction
//! set. For comparison with PyTorch see `tools/peer`.

mod common;
#[path = "common/gpu.rs"]
mod gpu;

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
use std::collections::HashMap;
use std::time::Duration;
use testkit::run::{Operands, fill, one_node};

fn bench_case(criterion: &mut Criterion, pool: &Pool, case: &Case) {
    let selection = Selection::new(Isa::detect(), pool.threads());
    let inputs = case.make_inputs(7);
    let (graph, weights) = one_node(case, &inputs, Operands::of_model(&case.op)).expect("a case is valid");
    let plan = cpu::plan(&graph, selection).expect("a case can be planned");
    // An operator without operands is a constant: a model runs it when it is loaded.
    let Some(step) = plan.steps.first() else { return };
    let throughput = match step.flops {
        0 => Throughput::Bytes(step.bytes()),
        flops => Throughput::Elements(flops),
    };
    let mut executor = pool.run(|| Executor::new(plan, &weights)).expect("an executor");
    for (index, input) in inputs.iter().enumerate().take(executor.plan().inputs.len()) {
        fill(&mut executor, index, input);
    }
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
    let mut criterion = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .configure_from_args();
    ops(&mut criterion);
    cuda_ops(&mut criterion);
    criterion.final_summary();
}
