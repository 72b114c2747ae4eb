//! What an operator allows and its kernel on a GPU does not: planning refuses, naming the operator and the
//! limit.

use knet::cuda::gpu::{Caps, Precision, Target};
use knet::error::Error;
use knet::graph::passes::optimize;
use knet::graph::{Builder, Layout};
use knet::model::config::MODEL_NAMES;
use knet::model::{Backbone, Config, TapMode, build};
use knet::ops::fused_conv2d::moments_shape;
use knet::ops::fused_linear::Prologue;
use knet::ops::non_max_suppression::Groups;
use knet::ops::{
    AdaptiveAvgPool2d, Concat, Conv2d, DeformConv2d, FusedConv2d, FusedLinear, NonMaxSuppression, NormSum,
    Op, RoiAlign, Role, ValueType, WindowAttention, WindowAttentionGrad,
};
use knet::tensor::DType;
use std::collections::BTreeMap;
use testkit::emulate;

/// Plans a node of `op` over inputs of these types and gives the reason of its refusal.
fn refused(op: impl Into<Op>, inputs: &[ValueType]) -> String {
    let op = op.into();
    let name = op.name();
    let mut builder = Builder::new();
    // Filters of convolutions have to be constants.
    let filter = |i| i == 1 && matches!(op, Op::Conv2d(_) | Op::DeformConv2d(_) | Op::FusedConv2d(_));
    let operand = |(i, ty): (usize, &ValueType)| match filter(i) {
        true => builder.param("w", ty.shape.dims(), Layout::Plain).unwrap(),
        false => builder.input(&format!("x{i}"), *ty),
    };
    let ids: Vec<_> = inputs.iter().enumerate().map(operand).collect();
    for (i, id) in builder.nodes("y", op, &ids).unwrap().into_iter().enumerate() {
        builder.output(&format!("y{i}"), id);
    }
    match emulate::plan(&builder.finish().unwrap(), Precision::F16) {
        Err(Error::Shape { op, value, reason }) if op == name && value == "y" => reason,
        other => panic!("{name} is not refused by name: {:?}", other.map(|plan| plan.steps.len())),
    }
}

/// At a size whose smallest maps are odd.
#[test]
fn models_are_planned() {
    for name in MODEL_NAMES {
        let config = Config::named(name).unwrap();
        let graph = optimize(build(&config, 1, [544, 800], TapMode::Off).unwrap().graph).unwrap();
        for precision in Precision::ALL {
            let plan = knet::cuda::plan(&graph, Target { caps: Caps::H100, precision });
            if config.is_for_cpu_inference() {
                let error = plan.map(|plan| plan.steps.len()).unwrap_err().to_string();
                assert!(error.contains("has no CUDA kernel"), "{name}: {error}");
                continue;
            }
            assert!(plan.is_ok(), "{name} in {}: {}", precision.name(), plan.unwrap_err());
        }
    }
}

/// A block of a Swin: two norms, one pass over the map each, attention, and four matrix products, on whose
/// passes the residual sums ride. Products over maps so small that their sums are split take another launch.
#[test]
fn a_block_of_a_swin_is_seven_launches() {
    // The stages whose maps are large.
    for (name, size, large) in
        [("knet_s3_upernet_swin-t", [512, 512], 0..2), ("knet_s3_swin_l_panoptic", [800, 1344], 0..3)]
    {
        let config = Config::named(name).unwrap();
        let Backbone::Swin(swin) = &config.backbone else { panic!("{name} has no Swin") };
        let graph = optimize(build(&config, 1, size, TapMode::Off).unwrap().graph).unwrap();
        for precision in Precision::ALL {
            let plan = knet::cuda::plan(&graph, Target { caps: Caps::H100, precision }).unwrap();
            let mut blocks = BTreeMap::<(usize, usize), (usize, usize)>::new();
            for step in &plan.steps {
                let Some((stage, rest)) = step.name.split_once(".blocks.") else { continue };
                let (_, stage) = stage.rsplit_once('.').unwrap();
                let (block, _) = rest.split_once('.').unwrap();
                let launches = &step.program.launches;
                assert!(
                    launches[1..].iter().all(|launch| launch.source == "conv/split_k.cu"),
                    "{}",
                    step.name
                );
                let (steps, all) =
                    blocks.entry((stage.parse().unwrap(), block.parse().unwrap())).or_default();
                (*steps, *all) = (*steps + 1, *all + launches.len());
            }
            assert_eq!(blocks.len(), swin.depths.iter().sum::<usize>());
            assert!(blocks.values().all(|&(steps, _)| steps == 7), "{name}: {blocks:?}");
            let of_large = |(&(stage, _), &(_, all))| !large.contains(&stage) || all == 7;
            assert!(blocks.iter().all(of_large), "{name}: {blocks:?}");
        }
    }
}

/// Where a sample lies is rounded to no 16 bits.
#[test]
fn offsets_are_f32_in_every_precision() {
    let config = Config::named("knet_s3_r101_dcn_panoptic").unwrap();
    let graph = optimize(build(&config, 1, [64, 64], TapMode::Off).unwrap().graph).unwrap();
    for precision in Precision::ALL {
        let plan = emulate::plan(&graph, precision).unwrap();
        let deformed = plan.steps.iter().filter(|step| step.op.name() == "deform_conv2d");
        let offsets: Vec<_> = deformed.map(|step| step.inputs.last().unwrap().ty.dtype).collect();
        assert_eq!(offsets, [DType::F32; 30], "{}", precision.name());
    }
}

/// Nor are they read where a graph has them as a map.
#[test]
fn offsets_that_are_a_map() {
    let op = DeformConv2d { conv: Conv2d::with(1, 1) };
    let shapes: [[usize; 4]; 3] = [[1, 5, 4, 8], [8, 3, 3, 8], [1, 5, 4, 18]];
    let reason = refused(op, &shapes.map(ValueType::map));
    assert_eq!(reason, "operand 2 of a convolution to f16[1, 5, 4, 8] is f16[1, 5, 4, 18], not f32");
}

/// A block keeps where its taps fall; so many fit into no multiprocessor.
#[test]
fn more_deformed_taps_than_shared_memory_has_room_for() {
    let op = DeformConv2d { conv: Conv2d::with(1, 8) };
    let shapes: [[usize; 4]; 3] = [[1, 5, 4, 8], [8, 17, 17, 8], [1, 5, 4, 2 * 17 * 17]];
    let mut inputs = shapes.map(ValueType::map);
    inputs[2] = ValueType::exact(inputs[2].shape);
    let reason = refused(op, &inputs);
    assert_eq!(reason, "no tile of the convolution fits into 166912 bytes of shared memory");
}

/// Depthwise kernels write what they read.
#[test]
fn an_exact_result_of_a_convolution_in_groups() {
    let op = Conv2d { groups: 8, role: Role::Exact, ..Conv2d::with(1, 1) };
    let reason = refused(op, &[ValueType::map([1, 5, 4, 8]), ValueType::map([8, 3, 3, 1])]);
    let wanted = "no kernel has a result of another type than its map with 8 groups, 3x3 taps and 8 channels";
    assert_eq!(reason, wanted);
}

#[test]
fn more_bins_and_pixels_than_are_counted_in_32_bits() {
    let reason = refused(AdaptiveAvgPool2d { size: [50_000, 1] }, &[ValueType::map([1, 50_000, 1, 8])]);
    let wanted = "50000 pixels in 50000 bins along an axis; the kernel counts up to 2147483647 products";
    assert_eq!(reason, wanted);
}

#[test]
fn more_operands_than_a_concatenation_has_parameters_for() {
    let reason = refused(Concat { axis: 1 }, &[ValueType::rows([1, 2, 8]); 9]);
    assert_eq!(reason, "9 ranges are joined; the kernel takes up to 8");
}

#[test]
fn more_layers_or_terms_than_rows_are_fused_with() {
    let layers = |count| FusedLinear {
        prologue: Prologue::Rows,
        biases: vec![false; count],
        activation: None,
        keep: false,
    };
    let operands = |terms: usize, count: usize| {
        let weight = ValueType::rows([16, terms]);
        [vec![ValueType::rows([1, 4, terms])], vec![weight; count]].concat()
    };
    assert_eq!(refused(layers(4), &operands(64, 4)), "4 layers; the kernel takes up to 3");
    let reason = refused(layers(1), &operands(516, 1));
    assert!(reason.ends_with("the kernel takes multiples of 4 terms up to 512"), "{reason}");
}

#[test]
fn more_groups_than_moments_have_threads_for() {
    let op = FusedConv2d { conv: Conv2d::with(1, 0), upsampled: false, groups: Some(512) };
    let reason = refused(op, &[ValueType::map([1, 4, 4, 8]), ValueType::rows([512, 1, 1, 8])]);
    assert_eq!(reason, "moments of 512 groups; the kernel takes up to 256");
}

#[test]
fn more_terms_than_a_sum_of_norms_has_parameters_for() {
    let normalised = vec![true, false, false, false, false];
    let op = NormSum { groups: 2, eps: 1e-5, activation: None, normalised };
    let map = ValueType::map([1, 4, 4, 16]);
    let moments = ValueType::exact(moments_shape(map.shape, 2));
    let norm = [map, moments, ValueType::exact([16]), ValueType::exact([16])];
    assert_eq!(refused(op, &[&norm[..], &[map; 4]].concat()), "5 terms; the kernel takes up to 4");
}

#[test]
fn more_levels_than_a_box_is_looked_for_in() {
    let level = ValueType::map([1, 4, 4, 8]);
    let boxes = ValueType::exact([1, 3, 4]);
    let op = RoiAlign { size: 7, stride: 4, finest: 56.0, role: Role::Map };
    let reason = refused(op, &[&[level; 5][..], &[boxes]].concat());
    assert_eq!(reason, "5 levels; the kernel takes up to 4");
}

#[test]
fn more_candidates_than_are_ranked_or_merged() {
    let suppression = |counts: &[usize], keep| {
        let candidates = counts.iter().sum();
        let op = NonMaxSuppression {
            iou_threshold: 0.5,
            score_threshold: 0.0,
            drop_empty: false,
            groups: Groups::Consecutive(counts.to_vec()),
            counted: false,
            keep,
        };
        refused(op, &[ValueType::exact([1, candidates, 4]), ValueType::exact([1, candidates])])
    };
    assert_eq!(suppression(&[2049, 3], 5), "a group of 2049 candidates; the kernel takes up to 2048");
    let reason = suppression(&[2000, 2000], 1025);
    assert_eq!(reason, "top 1025 of rows of 2050: at most 1024 of rows beyond 2048");
}

#[test]
fn windows_and_heads_beyond_shared_memory_or_registers() {
    let operands = |op: &WindowAttention, channels: usize| {
        vec![
            ValueType::map([1, 4, 4, 3 * channels]),
            ValueType::rows([3 * channels]),
            ValueType::rows([op.offsets(), 1]),
        ]
    };
    let grad = |op: WindowAttention, channels: usize| {
        let dy = ValueType::map([1, 4, 4, channels]);
        refused(WindowAttentionGrad { of: op }, &[operands(&op, channels), vec![dy]].concat())
    };
    let of = |window: usize| WindowAttention { heads: 1, window, shift: 0 };
    let shared = |window: usize, channels: usize| {
        format!(
            "windows of {window} x {window} pixels with heads of {channels} channels; the kernel has 101376 bytes \
             of shared memory"
        )
    };
    for (window, channels) in [(80, 32), (7, 1024)] {
        assert_eq!(refused(of(window), &operands(&of(window), channels)), shared(window, channels));
    }
    assert_eq!(grad(of(14), 32), shared(14, 32));
    assert_eq!(grad(of(17), 4), "windows of 289 pixels; the kernel of gradients takes up to 256");
}
