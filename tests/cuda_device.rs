//! The CUDA back end on a device: every case of every operator, whole models, the same bits from run to run. It runs
//! where `KNET_TEST_DEVICE` names a GPU: a real one (`tools/gpu-suite`) or the emulator's (`tools/with-ptxemu`), on which
//! only the small cases are run again, as `tests/cuda_ops.rs` has emulated all of them.

#[path = "common/cuda_case.rs"]
mod cuda_case;
#[path = "common/device.rs"]
#[expect(dead_code, reason = "other suites read files")]
mod device;
#[path = "common/emulate.rs"]
#[expect(dead_code, reason = "the emulated suites use the rest")]
mod emulate;
#[path = "common/model.rs"]
#[expect(dead_code, reason = "other suites write files")]
mod model;

use cuda_case::{HOST_ONLY, Operands, one_node, seen};
use knet::cuda::tune::{self, Measured, Scope, Table, Timer};
use knet::cuda::{Device, Executor, Runtime, select, stored};
use knet::engine::{self, Segmentation};
use knet::ops::case::Case;
use knet::ops::epilogue::Epilogue;
use knet::ops::{Conv2d, Linear, all_cases};
use knet::plan::Plan;
use knet::plan::launch::Precision;
use knet::tensor::{DType, Tensor};
use libtest_mimic::{Arguments, Failed, Trial};
use std::collections::HashMap;

/// Operations of the largest case that is run: `KNET_TEST_FLOPS` (compute-sanitizer slows kernels down a hundredfold), else
/// few on the emulator, and all on a GPU.
fn most_flops(emulated: bool) -> u64 {
    match std::env::var("KNET_TEST_FLOPS") {
        Ok(text) => text.parse().expect("KNET_TEST_FLOPS is a number"),
        Err(_) if emulated => 200_000,
        Err(_) => u64::MAX,
    }
}

fn runtime(ordinal: usize, precision: Precision, params: HashMap<String, Tensor>) -> knet::Result<Runtime> {
    Runtime::new(Device::open(ordinal)?, precision, Box::new(move |param| Ok(params[&param.key].clone())))
}

/// The results of a run over `inputs`; indices as numbers.
fn run(executor: &mut Executor, inputs: &[Tensor]) -> knet::Result<Vec<Vec<f32>>> {
    for index in 0..executor.plan().inputs.len() {
        executor.input_mut(index).copy_from_slice(inputs[index].data());
    }
    executor.run()?;
    let floats = |index: usize| match executor.output_type(index).dtype {
        DType::I32 => executor.output(index).iter().map(|v| v.to_bits() as i32 as f32).collect(),
        _ => executor.output(index).to_vec(),
    };
    Ok((0..executor.plan().outputs.len()).map(floats).collect())
}

fn check_case(case: &Case, precision: Precision, ordinal: usize) -> Result<(), Failed> {
    let inputs = case.make_inputs(7);
    let (graph, params) = one_node(case, &inputs, Operands::Params);
    let runtime = runtime(ordinal, precision, params)?;
    let target = runtime.target();
    let plan = Plan::build_stored(&graph, stored(target), select(target))?;
    let inputs = seen(&plan, &inputs, precision);
    let mut executor = Executor::with_floats(plan.clone(), &runtime)?;
    let runs = [run(&mut executor, &inputs)?, run(&mut executor, &inputs)?];
    let bits = |run: &[Vec<f32>]| run.iter().flatten().map(|v| v.to_bits()).collect::<Vec<_>>();
    if bits(&runs[0]) != bits(&runs[1]) {
        return Err("two runs give different bits".into());
    }
    Ok(cuda_case::compare(case, &plan, precision, &inputs, &runs[0])?)
}

/// Times every candidate of a case as `knet tune` does, then runs it as a table would have it.
fn check_candidates(case: &Case, precision: Precision, ordinal: usize, most: usize) -> Result<(), Failed> {
    let inputs = case.make_inputs(7);
    let (graph, params) = one_node(case, &inputs, Operands::Params);
    let mut runtime = runtime(ordinal, precision, params)?;
    let target = runtime.target();
    let modelled = Plan::build_stored(&graph, stored(target), select(target))?;
    let tasks = tune::tasks(&modelled, &target, most)?;
    let [task] = &tasks[..] else { return Err(format!("{} tasks", tasks.len()).into()) };
    let mut timer = Timer::new(&runtime, &tasks, 2)?;
    for index in (0..task.candidates.len()).chain([0]) {
        timer.measure(task, index)?;
    }
    drop(timer);
    let inputs = seen(&modelled, &inputs, precision);
    for program in &task.candidates {
        let mut table = Table::new(runtime.scope());
        let (kernel, model) = (program.kernel.clone(), modelled.steps[0].kernel.clone());
        let measured = Measured { kernel, microseconds: 1.0, model, model_microseconds: 2.0 };
        table.insert(task.site.site().to_string(), measured);
        runtime.adopt(table)?;
        let plan = Plan::build_stored(&graph, stored(target), select(runtime.selection().clone()))?;
        if plan.steps[0].kernel != program.kernel {
            return Err(
                format!("planned as {}, the table says {}", plan.steps[0].kernel, program.kernel).into()
            );
        }
        let mut executor = Executor::with_floats(plan.clone(), &runtime)?;
        let found = run(&mut executor, &inputs)?;
        cuda_case::compare(case, &plan, precision, &inputs, &found)
            .map_err(|fault| format!("{}: {fault}", program.kernel))?;
    }
    // The table now asks for the last candidate, and a plan without the table for the first.
    match Executor::new(modelled, &runtime) {
        Err(error) if error.to_string().contains("planned as") => {}
        _ => return Err("a plan of another selection was bound".into()),
    }
    let foreign = Table::new(Scope { device: "another".into(), ..runtime.scope() });
    match runtime.adopt(foreign) {
        Err(reason) if reason.contains("another") => Ok(()),
        _ => Err("a table of another device was taken".into()),
    }
}

/// Cases of operators with a choice.
fn choices() -> Vec<Case> {
    vec![
        Case::new("taps", Conv2d::with(1, 1), &[&[1, 5, 7, 16], &[24, 3, 3, 16]]),
        Case::new("stem", Conv2d::with(2, 3), &[&[1, 11, 14, 3], &[24, 7, 7, 3]]),
        Case::new("depthwise", Conv2d { groups: 8, ..Conv2d::with(1, 1) }, &[&[1, 6, 7, 8], &[8, 3, 3, 1]]),
        Case::new("linear", Linear { epilogue: Epilogue::BIAS }, &[&[1, 5, 260], &[12, 260], &[12]]),
    ]
}

/// The same photo many times, alternating with another of another size: the same masks each time.
fn check_determinism(name: &str, precision: Precision, emulated: bool) -> Result<(), Failed> {
    let runs = if emulated { 3 } else { 100 };
    let mut engine = device::builder().model(name).precision(precision).size(Some((64, 96))).build()?;
    let (photo, other) = (model::photo(96, 128), model::photo(64, 64));
    let first = engine.segment(&photo)?;
    let mut result = Segmentation::default();
    for run in 1..runs {
        if run % 10 == 1 {
            engine.segment(&other)?;
        }
        engine.segment_into(&photo, &mut result)?;
        if result != first {
            return Err(format!("run {run} differs from the first").into());
        }
    }
    Ok(())
}

fn main() {
    let mut trials = Vec::new();
    if let engine::Device::Cuda(ordinal) = device::device() {
        let emulated = Device::open(ordinal).expect("the device under test").is_emulated();
        let most = most_flops(emulated);
        for case in all_cases().into_iter().filter(|case| !HOST_ONLY.contains(&case.op.name())) {
            let outputs = case.op.infer(&case.inputs).expect("cases are sound");
            if case.op.flops(&case.inputs, &outputs) > most {
                continue;
            }
            for precision in Precision::ALL {
                let name = format!("{}/{}", case.full_name(), precision.name());
                let case = case.clone();
                trials.push(Trial::test(name, move || check_case(&case, precision, ordinal)));
            }
        }
        for (case, precision) in
            choices().into_iter().flat_map(|case| Precision::ALL.map(|p| (case.clone(), p)))
        {
            let name = format!("tuning/{}/{}", case.name, precision.name());
            let most = if emulated { 4 } else { 1000 };
            trials.push(Trial::test(name, move || check_candidates(&case, precision, ordinal, most)));
        }
        let precisions = if emulated { &[Precision::F16][..] } else { &Precision::ALL };
        for name in ["knet_s3_lite0_fpn", "knet_s3_r50_fpn_panoptic"] {
            for &precision in precisions {
                let check = move || check_determinism(name, precision, emulated);
                trials.push(Trial::test(format!("determinism/{name}/{}", precision.name()), check));
            }
        }
    }
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}
