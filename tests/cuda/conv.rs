//! Every tile of the implicit GEMM, whichever the cost model would choose: compiled by NVRTC, run on the PTX
//! emulator with all checks on, and compared with the reference.

use knet::cuda::gpu::GPUS;
use knet::cuda::gpu::roofline;
use knet::cuda::gpu::{Caps, Precision, Target};
use knet::cuda::ops::{conv2d, deform_conv2d, fused_conv2d};
use knet::cuda::stored;
use knet::cuda::tiles::conv::{self, Addressing, ConvChoice, GemmTile};
use knet::graph::passes::optimize;
use knet::model::{Config, TapMode, build};
use knet::ops::activation::Activation;
use knet::ops::case::Case;
use knet::ops::case::Filling;
use knet::ops::epilogue::Epilogue;
use knet::ops::{Conv2d, DeformConv2d, FusedConv2d, Op, Operator, ValueType};
use knet::plan::Site;
use ptxemu::Report;
use testkit::cuda_case::check_program;
use testkit::emulate::CAPS;

/// Runs a convolution by this choice and compares it with the reference.
fn check(case: &Case, precision: Precision, choice: ConvChoice) -> Result<Report, String> {
    let target = Target { caps: CAPS, precision };
    let constant: Vec<bool> = (0..case.inputs.len()).map(|i| i == 1 || i == 2).collect();
    let place = |(i, &ty): (usize, &ValueType)| if constant[i] { ty } else { stored(target)(ty) };
    let types: Vec<ValueType> = case.inputs.iter().enumerate().map(place).collect();
    let outputs: Vec<ValueType> = case.op.infer(&case.inputs)?.iter().map(|&ty| stored(target)(ty)).collect();
    let site = Site { op: &case.op, inputs: &types, constant: &constant, outputs: &outputs };
    let program = match &case.op {
        Op::Conv2d(op) => conv2d::program(op, &site, &choice)?,
        Op::DeformConv2d(op) => deform_conv2d::program(op, &site, &choice)?,
        Op::FusedConv2d(op) => fused_conv2d::program(op, &site, &choice)?,
        other => panic!("{} is no convolution", other.name()),
    };
    check_program(case, &site, &program, precision)
}

/// A convolution with bias, residual and ReLU.
fn case(op: Conv2d, x: [usize; 4], w: [usize; 4]) -> Case {
    let op = Conv2d {
        epilogue: Epilogue { bias: true, residual: true, activation: Some(Activation::Relu) },
        ..op
    };
    let types = [x, w].map(ValueType::map);
    // The residual has the shape of the result, which a convolution without a tail tells.
    let y = Conv2d { epilogue: Epilogue::default(), ..op }.infer(&types).unwrap()[0].shape;
    Case::new("forced", op, &[&x, &w, &w[..1], y.dims()])
}

/// Checks every tile of a list: in f16 (or f32) on every case, in bf16 and with the reduction in three parts
/// on the first one.
fn check_all(tiles: &[GemmTile], addressing: Addressing, precision: Precision, cases: &[Case]) {
    let mut faults = Vec::new();
    for (index, case) in cases.iter().enumerate() {
        let mut ways = vec![(precision, 1)];
        if index == 0 {
            ways.push((precision, 3));
            ways.extend((precision == Precision::F16).then_some((Precision::Bf16, 1)));
        }
        for (precision, splits) in ways {
            for &tile in tiles {
                let choice = ConvChoice::Gemm { addressing, tile, splits, microseconds: 0.0 };
                if let Err(fault) = check(case, precision, choice) {
                    faults.push(format!("{choice} {} of {:?}: {fault}", precision.name(), case.inputs));
                }
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// Ragged tiles along pixels and filters, a reduction that ends inside a step; whole chunks of filters and
/// not.
fn taps() -> [Case; 3] {
    [
        case(Conv2d::with(1, 1), [2, 9, 11, 40], [72, 3, 3, 40]),
        case(Conv2d::with(2, 1), [1, 15, 17, 8], [41, 3, 3, 8]),
        case(Conv2d { dilation: [2, 3], ..Conv2d::with(1, 2) }, [1, 13, 14, 64], [40, 3, 2, 64]),
    ]
}

fn pointwise() -> [Case; 2] {
    [
        case(Conv2d::new(), [2, 8, 9, 136], [136, 1, 1, 136]),
        case(Conv2d::new(), [1, 12, 12, 104], [35, 1, 1, 104]),
    ]
}

fn elements() -> [Case; 2] {
    [
        case(Conv2d::with(2, 3), [1, 31, 29, 3], [72, 7, 7, 3]),
        case(Conv2d::with(1, 1), [2, 7, 9, 13], [21, 3, 3, 13]),
    ]
}

/// Convolutions with offsets of up to `reach` pixels, over the map's borders and beyond them.
fn deformed(cases: impl IntoIterator<Item = Case>, reach: f64) -> Vec<Case> {
    let deform = |case: Case| {
        let Op::Conv2d(conv) = case.op else { panic!("{} is no convolution", case.name) };
        let mut shapes: Vec<_> = case.inputs.iter().map(|ty| ty.shape).collect();
        let (w, y) = (shapes[1], shapes[3]);
        shapes.push([y[0], y[1], y[2], 2 * w[1] * w[2]].into());
        let shapes: Vec<&[usize]> = shapes.iter().map(|shape| shape.dims()).collect();
        let case = Case::new("deformed", DeformConv2d { conv }, &shapes);
        case.exact(4).fill(4, Filling::Uniform(-reach, reach))
    };
    cases.into_iter().map(deform).collect()
}

/// Neither the multiplying units nor device memory are thought faster than they are, on any GPU we print
/// plans for.
#[test]
fn no_layer_of_a_model_is_thought_faster_than_its_roofline() {
    let models = [
        ("knet_s3_r50_fpn", [800, 1344]),
        ("knet_s3_r50_fpn_panoptic", [128, 192]),
        ("knet_s3_lite0_fpn", [320, 320]),
        ("knet_s3_r101_dcn_panoptic", [128, 192]),
    ];
    let mut layers = 0;
    for ((name, size), precision) in models.into_iter().flat_map(|m| Precision::ALL.map(|p| (m, p))) {
        let network = build(&Config::named(name).unwrap(), 1, size, TapMode::Off).unwrap();
        let target = Target { caps: Caps::H100, precision };
        let plan = knet::cuda::plan(&optimize(network.graph).unwrap(), target).unwrap();
        for step in &plan.steps {
            let site = step.site();
            let shape = match &step.op {
                Op::Conv2d(op) => conv2d::shape(op, &site.site()),
                Op::DeformConv2d(op) => deform_conv2d::shape(op, &site.site()),
                Op::FusedConv2d(fused) => conv2d::shape(&fused.conv, &site.site()),
                _ => continue,
            };
            for gpu in GPUS {
                let target = Target { caps: gpu.caps, precision };
                let choice = conv::conv(&shape, precision, &gpu.caps).unwrap();
                let Some(estimate) = choice.estimate() else { continue };
                let least = roofline::step(step, &target).as_secs_f64() * 1e6;
                assert!(
                    estimate >= least,
                    "{name} {} on {}: {choice}, {estimate} of {least} us",
                    step.name,
                    gpu.name
                );
                layers += 1;
            }
        }
    }
    assert!(layers > 1000, "{layers} layers");
}

/// What `knet tune` may choose in place of the model's choice.
#[test]
fn every_candidate_gives_the_same_result() {
    let depthwise = Conv2d { groups: 16, ..Conv2d::with(2, 1) };
    let cases = [
        (case(Conv2d::with(1, 1), [1, 5, 7, 40], [24, 3, 3, 40]), 10),
        (case(depthwise, [1, 9, 11, 16], [16, 3, 3, 1]), 3),
        (case(Conv2d::with(2, 3), [1, 15, 18, 3], [40, 7, 7, 3]), 2),
    ];
    for (case, least) in cases {
        let Op::Conv2d(op) = &case.op else { panic!("{} is no convolution", case.name) };
        let outputs = case.op.infer(&case.inputs).unwrap();
        let constant = vec![false; case.inputs.len()];
        let site = Site { op: &case.op, inputs: &case.inputs, constant: &constant, outputs: &outputs };
        for precision in [Precision::F16, Precision::F32] {
            let choices = conv::candidates(&conv2d::shape(op, &site), precision, &CAPS).unwrap();
            assert!(choices.len() >= least, "{choices:?}");
            assert_eq!(choices[0], conv::conv(&conv2d::shape(op, &site), precision, &CAPS).unwrap());
            for choice in choices {
                check(&case, precision, choice).unwrap_or_else(|fault| panic!("{choice}: {fault}"));
            }
        }
    }
}

#[test]
fn every_tensor_tile_under_taps() {
    check_all(conv::TENSOR_TILES, Addressing::Taps, Precision::F16, &taps());
}

#[test]
fn every_tensor_tile_pointwise() {
    check_all(conv::TENSOR_TILES, Addressing::Pointwise, Precision::F16, &pointwise());
}

#[test]
fn every_tensor_tile_element_by_element() {
    check_all(conv::TENSOR_ELEMENT_TILES, Addressing::Elements, Precision::F16, &elements());
}

#[test]
fn every_f32_tile() {
    check_all(conv::F32_TILES, Addressing::Taps, Precision::F32, &taps());
    check_all(conv::F32_TILES, Addressing::Pointwise, Precision::F32, &pointwise());
    check_all(conv::TF32X3_TILES, Addressing::Taps, Precision::Tf32x3, &taps());
    check_all(conv::TF32X3_TILES, Addressing::Pointwise, Precision::Tf32x3, &pointwise());
    check_all(conv::F32_ELEMENT_TILES, Addressing::Elements, Precision::F32, &elements());
}

#[test]
fn every_tile_under_deformed_taps() {
    let uneven = Conv2d { dilation: [2, 3], stride: [2, 1], ..Conv2d::with(1, 2) };
    let cases = deformed([case(uneven, [2, 13, 10, 40], [72, 3, 2, 40])], 3.0);
    check_all(conv::TENSOR_TILES, Addressing::Deformed, Precision::F16, &cases);
    // Steps of one tap, which tensor cores blend.
    let whole = deformed([case(uneven, [1, 13, 10, 128], [72, 3, 2, 128])], 3.0);
    for precision in [Precision::F16, Precision::Bf16] {
        check_all(conv::TENSOR_TILES, Addressing::Deformed, precision, &whole);
    }
    check_all(conv::F32_TILES, Addressing::Deformed, Precision::F32, &cases);
    check_all(conv::TF32X3_TILES, Addressing::Deformed, Precision::Tf32x3, &cases);
    let odd = deformed([case(Conv2d::with(1, 1), [2, 7, 9, 13], [21, 3, 3, 13])], 1.0);
    check_all(conv::TENSOR_ELEMENT_TILES, Addressing::DeformedElements, Precision::F16, &odd);
    check_all(conv::F32_ELEMENT_TILES, Addressing::DeformedElements, Precision::F32, &odd);
}

/// Sums as long as FPN's in one part: what tensor cores cut of them does not add up.
#[test]
fn long_sums_keep_their_digits() {
    let deep = case(Conv2d::with(1, 1), [1, 4, 5, 256], [8, 3, 3, 256]);
    let ways = [
        (Precision::Tf32x3, conv::TF32X3_TILES),
        (Precision::F16, conv::TENSOR_TILES),
        (Precision::Bf16, conv::TENSOR_TILES),
    ];
    for (precision, tile) in ways.into_iter().flat_map(|(p, tiles)| tiles.iter().map(move |&t| (p, t))) {
        let choice = ConvChoice::Gemm { addressing: Addressing::Taps, tile, splits: 1, microseconds: 0.0 };
        check(&deep, precision, choice).unwrap_or_else(|fault| panic!("{}: {fault}", precision.name()));
    }
}

/// Tails of every tile: the residual of half the size, and the moments, whether with the result or by a sweep
/// of their own.
#[test]
fn every_tensor_tile_with_tails() {
    let tailed = |x: [usize; 4], w: [usize; 4], upsampled, groups| {
        let epilogue = Epilogue { bias: true, residual: upsampled, activation: None };
        let op = FusedConv2d { conv: Conv2d { epilogue, ..Conv2d::with(1, w[1] / 2) }, upsampled, groups };
        let residual = [x[0], x[1] / 2, x[2] / 2, w[0]];
        let shapes: &[&[usize]] = &[&x, &w, &w[..1], &residual];
        Case::new("tailed", op, &shapes[..3 + usize::from(upsampled)])
    };
    let cases = [
        tailed([1, 22, 18, 72], [136, 1, 1, 72], true, Some(17)),
        tailed([1, 13, 21, 24], [72, 3, 3, 24], false, Some(9)),
        tailed([2, 8, 24, 40], [40, 1, 1, 40], true, Some(5)),
        tailed([2, 9, 11, 40], [64, 1, 1, 40], false, Some(8)),
    ];
    check_all(conv::TENSOR_TILES, Addressing::Taps, Precision::F16, &cases);
    check_all(conv::F32_TILES, Addressing::Taps, Precision::F32, &cases);
    check_all(conv::TF32X3_TILES, Addressing::Taps, Precision::Tf32x3, &cases);
}

/// What the memory pipes do for it: no two lanes meet in a bank, and every sector that comes or goes is used
/// whole.
#[test]
fn tensor_tiles_meet_no_bank_twice_and_move_whole_sectors() {
    let taps = case(Conv2d::with(1, 1), [1, 16, 16, 64], [128, 3, 3, 64]);
    let pointwise = case(Conv2d::new(), [1, 16, 16, 128], [128, 1, 1, 128]);
    for &tile in conv::TENSOR_TILES {
        for (case, addressing) in [(&taps, Addressing::Taps), (&pointwise, Addressing::Pointwise)] {
            let choice = ConvChoice::Gemm { addressing, tile, splits: 1, microseconds: 0.0 };
            let report = check(case, Precision::F16, choice).unwrap();
            for (name, traffic) in [
                ("ldmatrix", report.matrix_load),
                ("cp.async", report.async_store),
                ("shared loads", report.shared_load),
                ("shared stores", report.shared_store),
            ] {
                assert!(traffic.requests > 0, "{choice}: no {name}");
                assert_eq!(traffic.waves, traffic.requests, "{choice}: bank conflicts of {name}");
            }
            // The lanes that share a row take the bias in two loads of every other 16 bytes.
            let warps = report.blocks * (tile.threads() / 32) as u64;
            let unused = report.global_load.sectors - report.global_load.ideal_sectors;
            assert!(unused <= 8 * warps, "{choice}: {unused} sectors more than needed");
            assert_eq!(report.global_store.sectors_per_request(), 4.0, "{choice}");
        }
    }
}
