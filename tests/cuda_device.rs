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
use knet::cuda::{Device, Executor, Runtime, select, stored};
use knet::engine::{self, Segmentation};
use knet::ops::all_cases;
use knet::ops::case::Case;
use knet::plan::Plan;
use knet::plan::launch::Precision;
use libtest_mimic::{Arguments, Failed, Trial};

/// Operations of the largest case that is run: `KNET_TEST_FLOPS` (compute-sanitizer slows kernels down a hundredfold), else
/// few on the emulator, and all on a GPU.
fn most_flops(emulated: bool) -> u64 {
    match std::env::var("KNET_TEST_FLOPS") {
        Ok(text) => text.parse().expect("KNET_TEST_FLOPS is a number"),
        Err(_) if emulated => 200_000,
        Err(_) => u64::MAX,
    }
}

fn check_case(case: &Case, precision: Precision, ordinal: usize) -> Result<(), Failed> {
    let inputs = case.make_inputs(7);
    let (graph, params) = one_node(case, &inputs, Operands::Params);
    let runtime = Runtime::new(
        Device::open(ordinal)?,
        precision,
        Box::new(move |param| Ok(params[&param.key].clone())),
    )?;
    let target = runtime.target();
    let plan = Plan::build_stored(&graph, stored(target), select(target))?;
    let inputs = seen(&plan, &inputs, precision);
    let mut executor = Executor::with_floats(plan.clone(), &runtime)?;
    let mut runs = Vec::new();
    for _ in 0..2 {
        for index in 0..plan.inputs.len() {
            executor.input_mut(index).copy_from_slice(inputs[index].data());
        }
        executor.run()?;
        let outputs = 0..plan.outputs.len();
        runs.push(outputs.map(|i| executor.output(i).to_vec()).collect::<Vec<_>>());
    }
    let bits = |run: &[Vec<f32>]| run.iter().flatten().map(|v| v.to_bits()).collect::<Vec<_>>();
    if bits(&runs[0]) != bits(&runs[1]) {
        return Err("two runs give different bits".into());
    }
    let floats = |(index, output): (usize, &Vec<f32>)| match executor.output_type(index).dtype {
        knet::tensor::DType::I32 => output.iter().map(|v| v.to_bits() as i32 as f32).collect(),
        _ => output.clone(),
    };
    let found: Vec<Vec<f32>> = runs[0].iter().enumerate().map(floats).collect();
    Ok(cuda_case::compare(case, &plan, precision, &inputs, &found)?)
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
