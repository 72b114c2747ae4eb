//! Chains of quantized convolutions, whose maps are stored as codes.

use knet::cpu::{self, Selection};
use knet::graph::passes::optimize;
use knet::graph::passes::quantize::{Quantization, candidates, quantize};
use knet::graph::{Builder, Graph, Layout, ValueId};
use knet::isa::{Int8, Isa};
use knet::ops::activation::Activation;
use knet::ops::binary::{Binary, BinaryKind};
use knet::ops::case::Case;
use knet::ops::epilogue::Epilogue;
use knet::ops::levels::Levels;
use knet::ops::{Activate, Conv2d, Resize, ValueType, resize::ResizeMode};
use knet::tensor::{DType, Tensor};
use libtest_mimic::{Failed, Trial};
use testkit::run;

/// Channels of the maps between blocks, and within.
const WIDE: usize = 72;
const NARROW: usize = 40;
const FEW: usize = 24;

fn conv(b: &mut Builder, name: &str, x: ValueId, op: Conv2d, filter: [usize; 4]) -> ValueId {
    let op = Conv2d { epilogue: Epilogue::BIAS, ..op };
    let weight = b.param(&format!("{name}.weight"), &filter, Layout::Filter).unwrap();
    let bias = b.param(&format!("{name}.bias"), &filter[..1], Layout::Plain).unwrap();
    b.node(name, op, &[x, weight, bias]).unwrap()
}

fn relu(b: &mut Builder, x: ValueId) -> ValueId {
    b.node("relu", Activate { activation: Activation::Relu }, &[x]).unwrap()
}

/// Two residual blocks and one with a depthwise convolution between a stem (with a depthwise one, which reads
/// no codes) and a last layer, with one map that others read too.
fn blocks() -> Graph {
    let mut b = Builder::new();
    let image = b.input("image", ValueType::map([1, 18, 22, 3]));
    let stem = conv(&mut b, "stem", image, Conv2d::with(1, 1), [WIDE, 3, 3, 3]);
    let x = relu(&mut b, stem);
    let depthwise = Conv2d { groups: WIDE, ..Conv2d::with(1, 1) };
    let x = conv(&mut b, "stem.depthwise", x, depthwise, [WIDE, 1, 3, 3]);
    let mut x = relu(&mut b, x);
    for (block, stride) in [("a", 1), ("b", 2)] {
        let name = |part: &str| format!("{block}.{part}");
        let y = conv(&mut b, &name("conv1"), x, Conv2d::with(1, 0), [NARROW, WIDE, 1, 1]);
        let y = relu(&mut b, y);
        let y = conv(&mut b, &name("conv2"), y, Conv2d::with(stride, 1), [NARROW, NARROW, 3, 3]);
        let y = relu(&mut b, y);
        let y = conv(&mut b, &name("conv3"), y, Conv2d::with(1, 0), [WIDE, NARROW, 1, 1]);
        let shortcut = match stride {
            1 => x,
            _ => conv(&mut b, &name("downsample"), x, Conv2d::with(stride, 0), [WIDE, WIDE, 1, 1]),
        };
        let sum = b.node(&name("sum"), Binary { kind: BinaryKind::Add }, &[y, shortcut]).unwrap();
        x = relu(&mut b, sum);
    }
    // Filters of FEW terms are quantized for the depthwise convolution behind them.
    let y = conv(&mut b, "c.reduce", x, Conv2d::with(1, 0), [FEW, WIDE, 1, 1]);
    let y = conv(&mut b, "c.expand", y, Conv2d::with(1, 0), [NARROW, FEW, 1, 1]);
    let y = relu(&mut b, y);
    let depthwise = Conv2d { groups: NARROW, ..Conv2d::with(1, 1) };
    let y = conv(&mut b, "c.depthwise", y, depthwise, [NARROW, 1, 3, 3]);
    let y = relu(&mut b, y);
    let y = conv(&mut b, "c.project", y, Conv2d::with(1, 0), [WIDE, NARROW, 1, 1]);
    let y = b.node("c.sum", Binary { kind: BinaryKind::Add }, &[y, x]).unwrap();
    let x = relu(&mut b, y);
    // And those that nobody reads so are not.
    let few = conv(&mut b, "few.reduce", x, Conv2d::with(1, 0), [FEW, WIDE, 1, 1]);
    let x = conv(&mut b, "few.expand", few, Conv2d::with(1, 0), [WIDE, FEW, 1, 1]);
    let lateral = conv(&mut b, "lateral", x, Conv2d::with(1, 0), [NARROW, WIDE, 1, 1]);
    let resize = Resize { size: [18, 22], mode: ResizeMode::Bilinear { align_corners: false }, step: None };
    let large = b.node("large", resize, &[lateral]).unwrap();
    let last = conv(&mut b, "last", large, Conv2d::with(1, 1), [5, NARROW, 3, 3]);
    b.output("last", last);
    optimize(b.finish().unwrap()).unwrap()
}

/// Levels for every candidate, as the maps of `blocks` are.
fn levels(graph: &Graph) -> Quantization {
    candidates(graph).into_iter().map(|c| (c.key, Levels::up_to(3.0, false))).collect()
}

fn load(key: &str, shape: &[usize]) -> Tensor {
    let seed = key.bytes().fold(7u64, |seed, byte| seed.wrapping_mul(31).wrapping_add(byte.into()));
    // Filters of a size that keeps maps as they are.
    let depth = shape[1..].iter().product::<usize>().max(1) as f32;
    let values = Case::new("", Conv2d::new(), &[shape]).make_inputs(seed).remove(0);
    Tensor::new(values.shape(), values.data().iter().map(|v| v * (3.0 / depth).sqrt()).collect())
}

fn candidates_are_between_first_and_last() -> Result<(), Failed> {
    let keys: Vec<String> = candidates(&blocks()).into_iter().map(|c| c.key).collect();
    let wanted = [
        "a.conv1",
        "a.conv2",
        "a.conv3",
        "b.conv1",
        "b.conv2",
        "b.downsample",
        "b.conv3",
        "c.reduce",
        "c.expand",
        "c.depthwise",
        "c.project",
        "few.reduce",
        "lateral",
    ];
    let mut wanted = wanted.map(|name| format!("{name}.weight"));
    let mut found = keys.clone();
    found.sort();
    wanted.sort();
    if found != wanted { Err(format!("{keys:?}").into()) } else { Ok(()) }
}

fn chain(int8: Int8, isa: Isa) -> Result<(), Failed> {
    let mut graph = blocks();
    let levels = levels(&graph);
    quantize(&mut graph, &levels);
    graph.verify()?;
    let image = Case::new("", Conv2d::new(), &[&[1, 18, 22, 3]]).make_inputs(3).remove(0);
    let weights = || cpu::Weights::new(Box::new(|param| Ok(load(&param.key, &param.upstream_shape))));
    let selection = Selection { int8, ..Selection::new(isa, 2) };
    let plan = cpu::plan(&graph, selection)?;
    let codes = |step: &&knet::plan::Step<_>| step.outputs[0].ty.dtype == DType::U8;
    let stored: Vec<&str> = plan.steps.iter().filter(codes).map(|step| step.name.as_str()).collect();
    // Maps within blocks and between them; the last block's, which `few.reduce` alone reads.
    if stored.len() != 10 {
        return Err(format!("codes are stored of {stored:?}").into());
    }
    let found = run::Machine::with(&graph, &weights(), selection)?.run(std::slice::from_ref(&image));
    // The stem and what follows the codes are sums of f32, in another order each: a level or two go the other
    // way in thousands.
    let wanted = run::reference_with(&graph, &[image], |param| load(&param.key, &param.upstream_shape));
    run::compare(&found, &wanted, 2e-3)?;
    Ok(())
}

/// With an image whose stem gives what f32 holds, every later layer but the last is integers.
fn same_bits(selections: &[Selection]) -> Result<(), Failed> {
    let mut graph = blocks();
    let levels = levels(&graph);
    quantize(&mut graph, &levels);
    let image = Case::new("", Conv2d::new(), &[&[1, 18, 22, 3]]).make_inputs(3).remove(0);
    let mut first = None;
    for &selection in selections {
        let weights = cpu::Weights::new(Box::new(|param| Ok(load(&param.key, &param.upstream_shape))));
        let found = run::Machine::with(&graph, &weights, selection)?.run(std::slice::from_ref(&image));
        if first.get_or_insert(found.clone()) != &found {
            return Err(format!("{selection:?}: other bits than {:?}", selections[0]).into());
        }
    }
    Ok(())
}

/// Trials of every engine.
pub fn trials() -> Vec<Trial> {
    let mut trials = vec![Trial::test("quantized/candidates", candidates_are_between_first_and_last)];
    for int8 in Int8::available() {
        trials.push(Trial::test(format!("quantized/chain/{int8}"), move || chain(int8, Isa::detect())));
    }
    for isa in Isa::available() {
        trials
            .push(Trial::test(format!("quantized/chain/portable {isa}"), move || chain(Int8::Portable, isa)));
    }
    trials.push(Trial::test("quantized/same_bits", || {
        let engines = Int8::available().into_iter();
        let selections: Vec<Selection> = engines
            .flat_map(|int8| {
                [1, 2].map(|threads| Selection { int8, ..Selection::new(Isa::detect(), threads) })
            })
            .collect();
        same_bits(&selections)
    }));
    trials
}
