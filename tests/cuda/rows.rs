//! Kernels over objects as an H100 and a small GPU choose them, which the operator suite's device of four
//! multiprocessors does not: compiled by NVRTC, run on the PTX emulator with all checks on, and compared with
//! the reference.

use knet::cuda::gpu::{Caps, Precision, Target};
use knet::cuda::{ops, stored};
use knet::ops::activation::Activation;
use knet::ops::case::{Case, Filling};
use knet::ops::epilogue::Epilogue;
use knet::ops::fused_linear::Prologue;
use knet::ops::{FusedLinear, Linear, MaskConv, MaskCost, MaskPool, Op, ValueType};
use knet::plan::Site;
use testkit::cuda_case::check_program;

/// A GPU with little shared memory, as an RTX 4090 has.
const SMALL: Caps = Caps { compute: (8, 9), multiprocessors: 128, shared_per_block: 101_376, ..Caps::H100 };

/// Runs a case of all inputs, and gives the kernel that was chosen.
fn check(case: &Case, target: Target) -> Result<String, String> {
    check_candidate(case, target, 0).map(|(kernel, _)| kernel)
}

/// Runs a case of all inputs by one of its candidates, and gives its kernel and how many there are.
fn check_candidate(case: &Case, target: Target, index: usize) -> Result<(String, usize), String> {
    let types: Vec<ValueType> = case.inputs.iter().map(|&ty| stored(target)(ty)).collect();
    let outputs: Vec<ValueType> = case.op.infer(&case.inputs)?.iter().map(|&ty| stored(target)(ty)).collect();
    let constant = vec![false; types.len()];
    let site = Site { op: &case.op, inputs: &types, constant: &constant, outputs: &outputs };
    let candidates = ops::candidates(&site, &target)?;
    assert_eq!(candidates[0], ops::program(&site, &target)?, "the model's choice comes first");
    let program = &candidates[index];
    program.check(&target.caps)?;
    check_program(case, &site, program, target.precision)?;
    Ok((program.kernel.clone(), candidates.len()))
}

/// Checks every candidate of a case; their kernels.
fn check_candidates(case: &Case, target: Target) -> Vec<String> {
    let (mut kernels, mut count) = (Vec::new(), 1);
    while kernels.len() < count {
        match check_candidate(case, target, kernels.len()) {
            Ok((kernel, all)) => {
                kernels.push(kernel);
                count = all;
            }
            Err(fault) => panic!("{} in {}: {fault}", case.full_name(), target.precision.name()),
        }
    }
    kernels
}

/// Checks `cases` and that they meet exactly these kernels.
fn check_all(cases: &[Case], caps: Caps, precisions: &[Precision], wanted: &[&str]) {
    let (mut faults, mut kernels) = (Vec::new(), Vec::new());
    for case in cases {
        for &precision in precisions {
            match check(case, Target { caps, precision }) {
                Ok(kernel) => kernels.push(kernel),
                Err(fault) => faults.push(format!("{} in {}: {fault}", case.full_name(), precision.name())),
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    kernels.dedup();
    assert_eq!(kernels, wanted);
}

fn linear(name: &str, rows: usize, columns: usize, terms: usize) -> Case {
    let epilogue = Epilogue { bias: true, residual: true, activation: Some(Activation::Relu) };
    let shapes: [&[usize]; 4] = [&[1, rows, terms], &[columns, terms], &[columns], &[1, rows, columns]];
    Case::new(name, Linear { epilogue }, &shapes)
}

#[test]
fn tiles_of_linear_layers() {
    let cases = [
        linear("smallest", 100, 256, 256),
        linear("small", 97, 770, 128),
        linear("wide", 100, 2040, 96),
        linear("large", 153, 2048, 64),
        linear("long", 37, 96, 2048),
        linear("odd", 45, 1999, 33),
    ];
    let tf32 = ["tf32 16x16", "tf32 32x32", "tf32 32x64", "tf32 64x64", "tf32 16x16 split 4", "tf32 32x64"];
    check_all(&cases, Caps::H100, &[Precision::F16], &tf32);
    let f32 = ["f32 16x16", "f32 32x64", "f32 16x16 split 4", "f32 16x16"];
    check_all(&cases, SMALL, &[Precision::F32], &f32);
    // Masks in f32 are the product of the kernels with very many pixels.
    let masks = Case::new("masks", MaskConv { bias: true }, &[&[1, 99, 36], &[1, 64, 65, 36], &[99]]);
    check_all(&[masks], SMALL, &[Precision::F32], &["f32 32x64"]);
}

#[test]
fn tiles_of_fused_layers() {
    let mut cases: Vec<Case> = knet::ops::all_cases();
    cases.retain(|case| matches!(case.op, Op::FusedLinear(_)) && case.name.starts_with("knet"));
    let op = FusedLinear { prologue: Prologue::Rows, biases: vec![false; 2], activation: None, keep: false };
    cases.push(Case::new("long", op, &[&[40, 512], &[530, 512], &[70, 512]]));
    let wanted = ["tf32 32x32", "tf32 64x64", "tf32 32x32", "tf32 16x16"];
    check_all(&cases, Caps::H100, &[Precision::F16], &wanted);
    cases.pop();
    check_all(&cases, SMALL, &[Precision::F32], &["f32 16x16", "f32 32x32"]);
}

const TENSOR: &[Precision] = &[Precision::F16, Precision::Bf16];

#[test]
fn tiles_of_mask_convolutions() {
    let case = |name: &str, objects: usize, channels: usize, [h, w]: [usize; 2]| {
        let shapes: [&[usize]; 3] = [&[1, objects, channels], &[2, h, w, channels], &[objects]];
        Case::new(name, MaskConv { bias: true }, &shapes)
    };
    let cases = [
        case("knet", 100, 256, [11, 16]),
        case("panoptic", 153, 256, [9, 15]),
        case("many_channels", 33, 330, [3, 50]),
        case("many_objects", 330, 96, [8, 9]),
        case("few", 7, 64, [20, 17]),
    ];
    let mut kernels = [
        "mma 128x128 kept 4 x4",
        "mma 160x128 kept 4 x4",
        "mma 64x128 kept 4 x4",
        "mma 128x128 kept 2 x2",
        "mma 32x128 kept 1 x2",
    ];
    check_all(&cases, Caps::H100, TENSOR, &kernels);
    (kernels[0], kernels[1]) = ("mma 128x128 kept 4 x2", "mma 160x128 kept 2 x3");
    check_all(&cases, SMALL, TENSOR, &kernels);
}

#[test]
fn tiles_of_mask_poolings() {
    let case = |name: &str, objects: usize, channels: usize, [h, w]: [usize; 2]| {
        let case = Case::new(name, MaskPool, &[&[2, objects, h, w], &[2, h, w, channels]]);
        case.fill(0, Filling::Uniform(-2.0, 1.0))
    };
    let cases = [
        case("knet", 100, 256, [25, 42]),
        case("panoptic", 153, 256, [16, 23]),
        case("odd", 33, 131, [15, 50]),
        case("many_objects", 330, 96, [24, 31]),
    ];
    let kernels = ["mma split 17", "mma split 6", "mma split 12"];
    check_all(&cases, Caps::H100, TENSOR, &kernels);
    check_all(&cases, SMALL, TENSOR, &kernels);
    let f32 = ["f32 split 7", "f32 split 4", "f32 split 12", "f32 split 5"];
    check_all(&cases, SMALL, &[Precision::F32], &f32);
}

/// What `knet tune` may choose in place of the model's choice.
#[test]
fn every_candidate_gives_the_same_result() {
    // So few multiprocessors that small maps are not split to the utmost by every candidate.
    let caps = Caps { multiprocessors: 4, ..Caps::H100 };
    let mask_conv = |objects: usize, channels: usize| {
        Case::new(
            "candidates",
            MaskConv { bias: true },
            &[&[1, objects, channels], &[1, 5, 9, channels], &[objects]],
        )
    };
    let mask_pool = Case::new("candidates", MaskPool, &[&[1, 33, 20, 24], &[1, 20, 24, 40]]);
    let mask_cost = MaskCost { mask_weight: 1.0, dice_weight: 4.0 };
    let mask_cost = Case::new("candidates", mask_cost, &[&[1, 33, 20, 24], &[1, 40, 20, 24]]);
    let cases = [
        (linear("candidates", 20, 40, 520), 8, 8),
        (mask_conv(40, 200), 6, 4),
        (mask_pool.fill(0, Filling::Uniform(-2.0, 1.0)), 2, 2),
        (mask_cost.fill(0, Filling::Uniform(-6.0, 6.0)).fill(1, Filling::Uniform(0.0, 1.0)), 2, 2),
    ];
    for (case, tensor, f32) in cases {
        for (precision, least) in [(Precision::F16, tensor), (Precision::F32, f32)] {
            let kernels = check_candidates(&case, Target { caps, precision });
            let different: std::collections::HashSet<&String> = kernels.iter().collect();
            assert_eq!(different.len(), kernels.len(), "{kernels:?}");
            assert!(kernels.len() >= least, "{}: {kernels:?}", case.full_name());
        }
    }
}
