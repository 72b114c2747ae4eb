//! Fast paths against references over random shapes and attributes, for every instruction set of this
//! processor; and type inference over types that do not fit.

use knet::isa::Isa;
use knet::ops::activation::Activation;
use knet::ops::case::{Case, Filling, Tolerance};
use knet::ops::epilogue::Epilogue;
use knet::ops::resize::ResizeMode;
use knet::ops::{
    Attention, Concat, Conv2d, GroupNorm, LayerNorm, Linear, MaskConv, MaskPool, MaxPool2d, Op, Resize,
    Slice, Softmax, TopK, ValueType, all_cases,
};
use knet::tensor::{Shape, Tensor};
use proptest::prelude::*;
use testkit::run;

/// Checks an operator over random inputs of these shapes, and skips what its inference refuses.
fn check(op: impl Into<Op>, shapes: &[&[usize]], tolerance: Tolerance) -> Result<(), TestCaseError> {
    check_filled(op, shapes, Filling::Uniform(-1.0, 1.0), tolerance)
}

/// Whether sums of terms of order 1 happened to cancel, which a result of one or two elements may: its
/// relative error then says nothing of the sum's accuracy.
fn cancels(op: &Op, truth: &[Tensor<f64>]) -> bool {
    let sums = matches!(op, Op::Conv2d(_) | Op::Linear(_) | Op::MatMul(_) | Op::MaskConv(_));
    let small = |t: &Tensor<f64>| {
        let squares: f64 = t.data().iter().map(|v| v * v).sum();
        !t.data().is_empty() && squares < 0.01 * t.data().len() as f64
    };
    sums && truth.iter().any(small)
}

/// [`check`] with another filling of the first input.
fn check_filled(
    op: impl Into<Op>,
    shapes: &[&[usize]],
    fill: Filling,
    tolerance: Tolerance,
) -> Result<(), TestCaseError> {
    let case = Case::new("random", op, shapes).fill(0, fill).tolerance(tolerance);
    prop_assume!(case.op.infer(&case.inputs).is_ok());
    let inputs = case.make_inputs(11);
    let exact: Vec<Tensor<f64>> = inputs.iter().map(Tensor::to_f64).collect();
    let truth = case.op.reference(&exact.iter().collect::<Vec<_>>());
    prop_assume!(!cancels(&case.op, &truth));
    for isa in Isa::available() {
        run::check_case(&case, &inputs, &truth, isa, &[1, 3])
            .map_err(|error| TestCaseError::fail(format!("{isa}: {error}\n{case:?}")))?;
    }
    Ok(())
}

/// Sizes around the edges of vectors and tiles.
fn size() -> impl Strategy<Value = usize> {
    prop_oneof![1usize..10, 14usize..19, 30usize..36, Just(48), 62usize..67]
}

fn activation() -> impl Strategy<Value = Option<Activation>> {
    let kinds = [None, Some(Activation::Relu), Some(Activation::Relu6), Some(Activation::Sigmoid)];
    prop::sample::select(kinds.to_vec())
}

fn epilogue() -> impl Strategy<Value = Epilogue> {
    let parts = (any::<bool>(), any::<bool>(), activation());
    parts.prop_map(|(bias, residual, activation)| Epilogue { bias, residual, activation })
}

/// The shapes of a product with the operands of its epilogue.
fn with_operands(product: Op, epilogue: Epilogue, shapes: &[Vec<usize>]) -> Option<Vec<Vec<usize>>> {
    let types: Vec<ValueType> = shapes.iter().map(|s| ValueType::rows(s.as_slice())).collect();
    let y = product.infer(&types).ok()?[0].shape;
    let mut shapes = shapes.to_vec();
    shapes.extend(epilogue.bias.then(|| vec![y.last()]));
    shapes.extend(epilogue.residual.then(|| y.dims().to_vec()));
    Some(shapes)
}

fn slices(shapes: &[Vec<usize>]) -> Vec<&[usize]> {
    shapes.iter().map(Vec::as_slice).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn conv2d(
        batch in 1usize..3, map in [1usize..14, 1usize..14], taps in [1usize..5, 1usize..5],
        groups in prop_oneof![3 => Just(1usize), 1 => 2usize..5], channels in size(), filters in size(),
        stride in [1usize..4, 1usize..4], padding in [0usize..4, 0usize..4], padding_end in [0usize..4, 0usize..4], dilation in [1usize..4, 1usize..4],
        epilogue in epilogue(),
    ) {
        let plain = Conv2d { stride, padding, padding_end, dilation, groups, ..Conv2d::new() };
        let (channels, filters) = if groups == 1 { (channels, filters) } else { (channels % 9 + 1, filters % 9 + 1) };
        let shapes = [
            vec![batch, map[0], map[1], channels * groups],
            vec![filters * groups, taps[0], taps[1], channels],
        ];
        let shapes = with_operands(plain.into(), epilogue, &shapes);
        prop_assume!(shapes.is_some());
        check(Conv2d { epilogue, ..plain }, &slices(&shapes.unwrap()), Tolerance::REDUCTION)?;
    }

    #[test]
    fn depthwise_conv2d(
        map in [1usize..20, 1usize..20], taps in prop::sample::select(vec![1usize, 3, 5]), channels in size(),
        stride in 1usize..3, padding in 0usize..3, after in 0usize..4, activation in activation(),
    ) {
        let epilogue = Epilogue { activation, ..Epilogue::BIAS };
        let op = Conv2d { groups: channels, epilogue, padding_end: [after; 2], ..Conv2d::with(stride, padding) };
        let shapes: [&[usize]; 3] = [&[1, map[0], map[1], channels], &[channels, taps, taps, 1], &[channels]];
        check(op, &shapes, Tolerance::REDUCTION)?;
    }

    #[test]
    fn linear(rows in 0usize..70, k in size(), n in size(), epilogue in epilogue()) {
        let shapes = with_operands(Linear::default().into(), epilogue, &[vec![1, rows, k], vec![n, k]]);
        check(Linear { epilogue }, &slices(&shapes.unwrap()), Tolerance::REDUCTION)?;
    }

    #[test]
    fn group_norm(
        batch in 1usize..3, map in [1usize..20, 1usize..20], groups in 1usize..9, per_group in 1usize..20,
        offset in -3.0..3.0f64, activation in activation(),
    ) {
        let channels = groups * per_group;
        // A single value a group is its own mean: the result is beta, whatever the rounding.
        let op = GroupNorm { groups, eps: 1e-5, activation };
        let shapes: [&[usize]; 3] = [&[batch, map[0], map[1], channels], &[channels], &[channels]];
        check_filled(op, &shapes, Filling::Uniform(offset - 1.0, offset + 1.0), Tolerance::REDUCTION)?;
    }

    #[test]
    fn layer_norm(rows in 0usize..40, channels in size(), offset in -3.0..3.0f64, activation in activation()) {
        let op = LayerNorm { eps: 1e-5, activation };
        let fill = Filling::Uniform(offset - 1.0, offset + 1.0);
        check_filled(op, &[&[2, rows, channels], &[channels], &[channels]], fill, Tolerance::REDUCTION)?;
    }

    #[test]
    fn softmax(dims in prop::collection::vec(1usize..12, 1..5), axis in 0usize..4, scale in 0.1..40.0f64) {
        let op = Softmax { axis: axis % dims.len() };
        check_filled(op, &[&dims], Filling::Uniform(-scale, scale), Tolerance::REDUCTION)?;
    }

    #[test]
    fn attention(batch in 1usize..3, tokens in 1usize..70, heads in 1usize..5, width in 1usize..40) {
        check(Attention { heads }, &[&[batch, tokens, 3 * heads * width]], Tolerance::REDUCTION)?;
    }

    #[test]
    fn concat(
        dims in prop::collection::vec(1usize..6, 1..5), axis in 0usize..4,
        inputs in prop::collection::vec((0usize..9, any::<bool>()), 1..9),
    ) {
        let axis = axis % dims.len();
        let shape = |&(size, repeated): &(usize, bool)| {
            let mut dims = dims.clone();
            dims[0] = if repeated { 1 } else { dims[0] };
            dims[axis] = size;
            dims
        };
        let shapes: Vec<Vec<usize>> = inputs.iter().map(shape).collect();
        check(Concat { axis }, &slices(&shapes), Tolerance::EXACT)?;
    }

    #[test]
    fn slice(dims in prop::collection::vec(1usize..9, 1..5), axis in 0usize..4, start in 0usize..9, len in 0usize..9) {
        let axis = axis % dims.len();
        let start = start % (dims[axis] + 1);
        let len = len.min(dims[axis] - start);
        check(Slice { axis, start, len }, &[&dims], Tolerance::EXACT)?;
    }

    #[test]
    fn resize(
        batch in 1usize..3, map in [1usize..14, 1usize..14], size in [1usize..30, 1usize..30], channels in size(),
        mode in 0usize..3, step in prop::option::of([0.2..3.0f64, 0.2..3.0f64]),
    ) {
        let (mode, tolerance) = match mode {
            0 => (ResizeMode::Nearest, Tolerance::EXACT),
            mode => (ResizeMode::Bilinear { align_corners: mode == 1 }, Tolerance::POINTWISE),
        };
        check(Resize { mode, size, step }, &[&[batch, map[0], map[1], channels]], tolerance)?;
    }

    #[test]
    fn max_pool2d(
        map in [1usize..20, 1usize..20], kernel in [1usize..6, 1usize..6], stride in [1usize..4, 1usize..4],
        padding in [0usize..3, 0usize..3], channels in size(),
    ) {
        let op = MaxPool2d { kernel, stride, padding };
        check(op, &[&[2, map[0], map[1], channels]], Tolerance::EXACT)?;
    }

    #[test]
    fn mask_pool(batch in 1usize..3, objects in 1usize..20, map in [1usize..20, 1usize..20], channels in size()) {
        let (masks, x) = ([batch, objects, map[0], map[1]], [batch, map[0], map[1], channels]);
        check(MaskPool, &[&masks, &x], Tolerance::REDUCTION)?;
    }

    #[test]
    fn mask_conv(
        batch in 1usize..3, shared in any::<bool>(), objects in size(), map in [1usize..20, 1usize..20],
        channels in size(), bias in any::<bool>(),
    ) {
        let kernels = [if shared { 1 } else { batch }, objects, channels];
        let shapes: [&[usize]; 3] = [&kernels, &[batch, map[0], map[1], channels], &[objects]];
        check(MaskConv { bias }, &shapes[..2 + usize::from(bias)], Tolerance::REDUCTION)?;
    }

    #[test]
    fn top_k(batch in 1usize..4, n in 1usize..200, k in 1usize..200, levels in prop_oneof![Just(1e-6), Just(0.5)]) {
        // A narrow range of values makes many ties.
        let fill = Filling::Uniform(1.0, 1.0 + levels);
        check_filled(TopK { k: k.min(n) }, &[&[batch, n]], fill, Tolerance::EXACT)?;
    }

    /// Any operator may be offered any types: it refuses with a sentence or gives types, and never panics.
    #[test]
    fn inference_never_panics(
        pick in any::<prop::sample::Index>(),
        types in prop::collection::vec((prop::collection::vec(0usize..5, 0..6), any::<bool>()), 0..10),
    ) {
        let cases = all_cases();
        let ty = |(dims, index): &(Vec<usize>, bool)| {
            if *index { ValueType::index(dims.as_slice()) } else { ValueType::rows(dims.as_slice()) }
        };
        let types: Vec<ValueType> = types.iter().map(ty).collect();
        if let Err(reason) = pick.get(&cases).op.infer(&types) {
            prop_assert!(!reason.is_empty());
        }
    }

    /// The same near the types an operator does take: one dimension of one input is off.
    #[test]
    fn inference_never_panics_near_misses(
        pick in any::<prop::sample::Index>(), input in any::<prop::sample::Index>(), axis in 0usize..6,
        size in 0usize..9, drop in any::<bool>(),
    ) {
        let cases = all_cases();
        let case = pick.get(&cases);
        prop_assume!(!case.inputs.is_empty());
        let mut types = case.inputs.clone();
        let ty = &mut types[input.index(case.inputs.len())];
        let mut dims = ty.shape.dims().to_vec();
        prop_assume!(axis < dims.len());
        if drop { drop_axis(&mut dims, axis) } else { dims[axis] = size }
        ty.shape = Shape::new(&dims);
        if let Err(reason) = case.op.infer(&types) {
            prop_assert!(!reason.is_empty());
        }
    }
}

fn drop_axis(dims: &mut Vec<usize>, axis: usize) {
    dims.remove(axis);
}
