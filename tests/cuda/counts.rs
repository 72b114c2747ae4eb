//! What the emulator counts of the heaviest layers of K-Net, of attention within windows, of deformable
//! convolutions and of what training has besides, as an H100 would run them, held to the table
//! `kernels/counts.tsv`. No GPU is asked: these are the numbers that
//! predict speed, not times. The table's header explains its columns.
//!
//! A few blocks of each launch run, the first, some in the middle and the last; counts are theirs. Results
//! are not looked at, and nothing but counts is checked: the operators' own tests do that.

use knet::cuda::gpu::roofline;
use knet::cuda::gpu::{Caps, Precision, Target};
use knet::cuda::launch::{Launch, Packing, Program};
use knet::cuda::nvrtc::{Code, Job};
use knet::graph::passes::optimize;
use knet::graph::{Builder, Graph, Layout};
use knet::model::{Config, TapMode, build};
use knet::ops::activation::Activation;
use knet::ops::epilogue::Epilogue;
use knet::ops::{
    Conv2d, DeformConv2d, DeformConv2dFilterGrad, DeformConv2dInputGrad, Op, ValueType, WindowAttention,
    WindowAttentionGrad,
};
use knet::plan::{Operand, Place, Step};
use ptxemu::{Memory, Options, Report, Traffic};
use rayon::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::{Path, PathBuf};
use testkit::emulate::{Operands, nvrtc, run_launch};
use testkit::occupancy::{ARCHITECTURES, H100};
use testkit::{emulate, sass};

const TARGET: Target = Target { caps: Caps::H100, precision: Precision::F16 };

/// Distinct layers that the table has, the heaviest; layers of kernels that are not among them come on top.
const HEAVIEST: usize = 30;

/// Steps that launch the same.
struct Layer {
    step: Step<Program>,
    times: usize,
    /// The least time that an H100 takes, in µs.
    roofline: f64,
}

impl Layer {
    fn new(step: Step<Program>, target: &Target) -> Layer {
        let roofline = roofline::step(&step, target).as_secs_f64() * 1e6;
        Layer { step, times: 1, roofline }
    }
}

/// The heaviest layers of `knet_s3_r50_fpn` at 800 x 1344 by the roofline, which no choice of kernel sways,
/// and the heaviest layer of each choice of kernel that they lack.
fn layers() -> Vec<Layer> {
    let config = Config::named("knet_s3_r50_fpn").expect("a model of ours");
    let network = build(&config, 1, [800, 1344], TapMode::Off).expect("a size it takes");
    let plan = knet::cuda::plan(&optimize(network.graph).expect("a sound graph"), TARGET).expect("a plan");
    let mut layers: Vec<Layer> = Vec::new();
    for step in plan.steps {
        match layers.iter_mut().find(|l| l.step.op.name() == step.op.name() && l.step.program == step.program)
        {
            Some(layer) => layer.times += 1,
            None => layers.push(Layer::new(step, &TARGET)),
        }
    }
    layers.sort_by(|a, b| b.roofline.total_cmp(&a.roofline));
    let mut known = BTreeSet::new();
    let mut place = 0;
    layers.retain(|layer| {
        place += 1;
        known.insert((layer.step.op.name(), layer.step.program.kernel.clone())) || place <= HEAVIEST
    });
    layers.extend(swin_windows());
    layers.extend(deformed_layers());
    layers.extend(training_layers());
    layers.extend(deformed_gradients());
    layers
}

/// Steps of training that take less than so many µs at best are not looked at.
const LEAST: f64 = 0.3;

/// Of every operator that a training step of `knet_s3_r50_fpn_panoptic` over two images of 800 x 1344 has, and
/// inference with it has not, the heaviest step, and that of any other number of launches: sums of parts are
/// launches of their own, and so are the phases of a stride. In f16: a GPU trains in bf16, and kernels differ by
/// the name of the type.
fn training_layers() -> Vec<Layer> {
    let config = Config::named("knet_s3_r50_fpn_panoptic").expect("a model of ours");
    let inference = build(&config, 1, [64, 64], TapMode::Off).expect("a size it takes").graph;
    let inferred: BTreeSet<&str> = inference.nodes().iter().map(|node| node.op.name()).collect();
    let plan = knet::cuda::plan(&emulate::training_graph(), TARGET).expect("a plan");
    let mut layers: Vec<Layer> = Vec::new();
    for step in plan.steps.into_iter().filter(|step| !inferred.contains(step.op.name())) {
        match layers.iter_mut().find(|l| l.step.op.name() == step.op.name() && l.step.program == step.program)
        {
            Some(layer) => layer.times += 1,
            None => layers.push(Layer::new(step, &TARGET)),
        }
    }
    layers.retain(|layer| layer.roofline >= LEAST);
    layers.sort_by(|a, b| b.roofline.total_cmp(&a.roofline));
    let mut known = BTreeSet::new();
    layers.retain(|layer| known.insert((layer.step.op.name(), layer.step.program.launches.len())));
    layers
}

/// The gradients of a deformable convolution of the first stage of R101-DCN at 800 x 1344 that has them.
fn deformed_gradients() -> impl Iterator<Item = Layer> {
    let [h, w, channels] = [100, 168, 128];
    let Conv2d { stride, padding, dilation, .. } = Conv2d::with(1, 1);
    let input = DeformConv2dInputGrad { stride, padding, dilation };
    let filter = DeformConv2dFilterGrad { stride, padding, dilation, kernel: [3, 3] };
    [("layer2.dcn.input.grad", Op::from(input)), ("layer2.dcn.filter.grad", Op::from(filter))]
        .into_iter()
        .map(move |(name, op)| {
            let mut builder = Builder::new();
            let dy = builder.input("dy", ValueType::map([1, h, w, channels]));
            let x = builder.input("x", ValueType::map([1, h, w, channels]));
            let offsets = builder.input("offsets", ValueType::exact([1, h, w, 18]));
            let operands = match &op {
                Op::DeformConv2dInputGrad(_) => {
                    let filter = ValueType::weight([channels, 3, 3, channels]);
                    vec![dy, builder.variable("w", filter, None).expect("a new name"), x, offsets]
                }
                _ => vec![x, dy, offsets],
            };
            let results = builder.nodes(name, op, &operands).expect("sound types");
            for (i, id) in results.into_iter().enumerate() {
                builder.output(&format!("result{i}"), id);
            }
            let graph = builder.finish().expect("a sound graph");
            let step = knet::cuda::plan(&graph, TARGET).expect("a plan").steps.remove(0);
            Layer::new(step, &TARGET)
        })
}

/// The operand that says where a deformable convolution or its gradients sample.
fn offset_input(op: &Op) -> Option<usize> {
    match op {
        Op::DeformConv2d(op) => Some(op.offset_input()),
        Op::DeformConv2dInputGrad(_) => Some(3),
        Op::DeformConv2dFilterGrad(_) => Some(2),
        _ => None,
    }
}

/// Shifted attention of the first stages of Swin-T and, with windows of 12, Swin-L, at 800 x 1344, and the
/// gradients of the former: those that have the most pixels.
fn swin_windows() -> impl Iterator<Item = Layer> {
    let of = |name: &'static str, heads: usize, window: usize, grad: bool| {
        let op = WindowAttention { heads, window, shift: window / 2 };
        let map = [1, 200, 336, 32 * heads];
        let step =
            knet::cuda::plan(&one_attention(name, op, map, grad), TARGET).expect("a plan").steps.remove(0);
        Layer::new(step, &TARGET)
    };
    [("swin_t.windows", 3, 7, false), ("swin_l.windows", 6, 12, false), ("swin_t.windows.grad", 3, 7, true)]
        .into_iter()
        .map(move |(name, heads, window, grad)| of(name, heads, window, grad))
}

/// A deformable convolution of each stage of R101-DCN at 800 x 1344 that has them.
fn deformed_layers() -> impl Iterator<Item = Layer> {
    [("layer2.dcn", [100, 168], 128), ("layer3.dcn", [50, 84], 256), ("layer4.dcn", [25, 42], 512)]
        .into_iter()
        .map(|(name, [h, w], channels)| {
            let mut builder = Builder::new();
            let operands = [
                builder.input("x", ValueType::map([1, h, w, channels])),
                builder.param("w", &[channels, 3, 3, channels], Layout::Plain).expect("a new name"),
                builder.param("b", &[channels], Layout::Plain).expect("a new name"),
                builder.input("offsets", ValueType::exact([1, h, w, 18])),
            ];
            let epilogue = Epilogue { activation: Some(Activation::Relu), ..Epilogue::BIAS };
            let op = DeformConv2d { conv: Conv2d { epilogue, ..Conv2d::with(1, 1) } };
            let id = builder.node(name, op, &operands).expect("sound types");
            builder.output("result", id);
            let graph = builder.finish().expect("a sound graph");
            let step = knet::cuda::plan(&graph, TARGET).expect("a plan").steps.remove(0);
            Layer::new(step, &TARGET)
        })
}

/// Attention within windows of a map, or its gradients, alone.
fn one_attention(name: &str, op: WindowAttention, [b, h, w, c]: [usize; 4], grad: bool) -> Graph {
    let mut builder = Builder::new();
    let mut operands = vec![
        builder.input("qkv", ValueType::map([b, h, w, 3 * c])),
        builder.param("bias", &[3 * c], Layout::Plain).expect("a new name"),
        builder.param("table", &[op.offsets(), op.heads], Layout::Plain).expect("a new name"),
    ];
    let op = if grad {
        operands.push(builder.input("dy", ValueType::map([b, h, w, c])));
        Op::from(WindowAttentionGrad { of: op })
    } else {
        Op::from(op)
    };
    for (i, id) in builder.nodes(name, op, &operands).expect("sound types").into_iter().enumerate() {
        builder.output(&format!("result{i}"), id);
    }
    builder.finish().expect("a sound graph")
}

/// Bytes of a constant in this packing.
fn packed(operand: &Operand, packing: Packing) -> usize {
    let dims = operand.ty.shape.dims();
    let columns: usize = dims[dims.len() - packing.row_dims.min(dims.len())..].iter().product();
    let elements: usize = dims.iter().product();
    let (rows, columns) = match packing.transposed {
        true => (columns, elements / columns),
        false => (elements / columns, columns),
    };
    rows * columns.next_multiple_of(packing.row_multiple.max(1)) * packing.dtype.size()
}

/// The first blocks of a grid, two in the middle, and the last.
fn sample(blocks: u64) -> Vec<Range<u64>> {
    match blocks {
        0..=6 => std::iter::once(0..blocks).collect(),
        _ => vec![0..2, blocks / 2..blocks / 2 + 2, blocks - 2..blocks],
    }
}

/// Counts of some blocks of each launch.
fn count(layer: &Layer) -> Vec<Report> {
    let step = &layer.step;
    let program = &step.program;
    // Nobody has written it: values do not change what is counted, but for offsets.
    let memory = Memory::new(Options::default()).unwrap();
    let room = |bytes: usize| memory.alloc(bytes as u64, "operand").unwrap();
    let input = |(index, operand): (usize, &Operand)| match operand.place {
        Place::Arena(_) => room(operand.ty.bytes()),
        Place::Const(_) => room(packed(operand, program.packing_of(index))),
    };
    let inputs: Vec<u64> = step.inputs.iter().enumerate().map(input).collect();
    if let Some(index) = offset_input(&step.op) {
        // Points between four pixels each.
        let halves = 0.5f32.to_le_bytes().repeat(step.inputs[index].ty.shape.len());
        memory.write(inputs[index], &halves).unwrap();
    }
    let outputs: Vec<u64> = step.outputs.iter().map(|o| room(o.ty.bytes())).collect();
    let workspace = (program.workspace > 0).then(|| room(program.workspace));
    let operands = Operands { inputs: &inputs, outputs: &outputs, workspace };
    let one = |launch: &Launch| {
        let mut report = Report::default();
        let blocks = launch.grid.iter().map(|&n| u64::from(n)).product();
        // What some blocks add to the lists of pixels, others work on: few would leave the lists short.
        let fills_lists = launch.source == "conv/deformed_grad.cu" && launch.entry != "gather";
        let chosen = if fills_lists { std::iter::once(0..blocks).collect() } else { sample(blocks) };
        for blocks in chosen {
            let config = ptxemu::Config {
                blocks: Some(blocks),
                check_uninit: false,
                check_races: false,
                ..ptxemu::Config::default()
            };
            let part = run_launch(launch, &operands, &memory, &config);
            report.merge(&part.unwrap_or_else(|e| panic!("{}: {e}", step.name)));
        }
        report
    };
    program.launches.iter().map(one).collect()
}

/// Machine instructions a product in the loops of matrix products, as NVRTC compiles the launch for an H100.
fn machine_loop(launch: &Launch) -> Option<f64> {
    let job = Job {
        source: launch.source,
        defines: launch.defines.clone(),
        compute: ARCHITECTURES[H100].compute,
        code: Code::Cubin,
    };
    let cubin = nvrtc().unwrap().compile(&job).unwrap_or_else(|e| panic!("{e}"));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("kernel.cubin");
    std::fs::write(&path, cubin).unwrap();
    let (instructions, products) = sass::product_loops(&sass::listing(&path), launch.entry);
    ratio(instructions as u64, products as u64)
}

fn ratio(a: u64, b: u64) -> Option<f64> {
    (b > 0).then(|| a as f64 / b as f64)
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn path() -> PathBuf {
    root().join("kernels/counts.tsv")
}

fn defines(launch: &Launch) -> String {
    let each: Vec<String> = launch.defines.iter().map(|(name, value)| format!("{name}={value}")).collect();
    each.join(" ")
}

/// Registers of a thread by source, entry and defines, from `kernels/resources.tsv`.
fn registers() -> BTreeMap<[String; 3], u32> {
    let text = std::fs::read_to_string(root().join("kernels/resources.tsv")).unwrap();
    let name = ARCHITECTURES[H100].name();
    let row = |line: &str| {
        let cells: Vec<&str> = line.split('\t').collect();
        let key = [cells[0], cells[1], cells[2]].map(str::to_string);
        (cells[3] == name).then(|| (key, cells[4].parse().unwrap()))
    };
    text.lines().skip(1).filter_map(row).collect()
}

/// Whether more of a column is better or worse; other columns only describe.
#[derive(Clone, Copy, PartialEq)]
enum Better {
    More,
    Less,
    Neither,
}

/// Columns, which way they are better, and what the header says of them.
const COLUMNS: [(&str, Better, &str); 22] = [
    ("layer", Better::Neither, "the first value that such a step yields"),
    ("layers", Better::Neither, "steps that launch just the same"),
    ("operator", Better::Neither, "and its choice of kernel"),
    ("launch", Better::Neither, "number of the launch in the step, its source"),
    ("roofline_us", Better::Neither, "least time of the step on an H100, by its operations or bytes"),
    ("blocks", Better::Neither, "of the grid"),
    ("registers", Better::Neither, "of a thread, from resources.tsv"),
    ("occupancy", Better::More, "resident warps in percent of the most; shared memory is the launch's own"),
    ("waves", Better::Neither, "blocks by those that the device holds at once"),
    ("macs_byte", Better::More, "multiply-adds of mma by bytes that blocks read from global memory (L2)"),
    ("conflict", Better::Less, "wavefronts of shared memory by those without bank conflicts; ideal 1.00"),
    (
        "load16",
        Better::Less,
        "sectors of 32 bytes a 128 bytes read in 16-byte lanes (a request of 8 lanes); ideal 4.00",
    ),
    ("load16_share", Better::More, "percent of the bytes read from global memory that come in 16-byte lanes"),
    ("load_rest", Better::Less, "sectors a 128 bytes of distinct bytes for the other loads; ideal 4.00"),
    ("store16", Better::Less, "as load16, for stores"),
    ("store16_share", Better::More, "as load16_share, for stores"),
    ("store_rest", Better::Less, "as load_rest, for stores"),
    (
        "loop_ptx",
        Better::Less,
        "PTX instructions issued a mma in the main loop; `-` also where products are in no loop",
    ),
    ("loop_sass", Better::Less, "machine instructions a HMMA in the main loop's text for sm_90"),
    ("all_ptx", Better::Less, "PTX instructions issued a mma in the whole launch"),
    ("shared_mma", Better::Less, "wavefronts of shared memory a mma in the whole launch"),
    ("issue_us", Better::Less, "PTX instructions of the launch at 4 a clock and multiprocessor, in µs"),
];

const HEADER: &str = "\
# What the PTX emulator counts of the heaviest layers of knet_s3_r50_fpn at 800 x 1344 in f16, planned for an H100: the numbers
# that predict speed. No GPU ran them. The 30 heaviest distinct layers by the roofline, and the heaviest of every other choice
# of kernel; then attention within windows of Swin's first stages at that size, shifted; then a deformable convolution of each
# stage of R101-DCN, a quarter of each sample from each of four pixels; then of every operator that a training step of
# knet_s3_r50_fpn_panoptic over two such images has and inference has not the heaviest step, and that of any other number of
# launches; then the gradients of a deformable convolution. A row is a launch. Counts are of up to
# six blocks of the launch: two first, two in the middle, two last; all of those that fill lists for others.
# KNET_UPDATE=1 cargo test --test cuda counts:: writes this file; the test fails where a row gets worse. `-`: there are none.
";

/// The cells of a launch's row.
fn row(layer: &Layer, index: usize, report: &Report, sass: Option<f64>, registers: u32) -> Vec<String> {
    let launch = &layer.step.program.launches[index];
    let blocks: u64 = launch.grid.iter().map(|&n| u64::from(n)).product();
    let threads = launch.block.iter().product();
    let module = emulate::module(launch).unwrap();
    let shared = launch.shared + module.entry(launch.entry).map_or(0, |e| e.static_shared);
    let multiprocessors = TARGET.caps.multiprocessors;
    let at_once = multiprocessors * ARCHITECTURES[H100].resident(threads, registers, shared);
    let occupancy = ARCHITECTURES[H100].occupancy(threads, registers, shared);
    let less = |all: &Traffic, wide: &Traffic| {
        ratio(4 * (all.sectors - wide.sectors), all.ideal_sectors - wide.ideal_sectors)
    };
    let (load, wide_load) = (&report.global_load, &report.wide_load);
    let (store, wide_store) = (&report.global_store, &report.wide_store);
    let sectors = |t: &Traffic| (t.instructions > 0).then(|| t.sectors_per_full_request());
    let (waves, ideal) = report.shared_waves();
    let cell = |value: Option<f64>| value.map_or("-".to_string(), |v| format!("{v:.2}"));
    let share = |part: &Traffic, all: &Traffic| {
        ratio(100 * part.bytes, all.bytes).map_or("-".to_string(), |v| format!("{v:.0}"))
    };
    let issued = report.instructions as f64 / report.blocks as f64 * blocks as f64;
    let clocks = issued / (4.0 * f64::from(multiprocessors));
    vec![
        layer.step.name.clone(),
        layer.times.to_string(),
        format!("{} {}", layer.step.op.name(), layer.step.program.kernel),
        format!("{} {}:{}", index + 1, launch.source, launch.entry),
        format!("{:.2}", layer.roofline),
        blocks.to_string(),
        registers.to_string(),
        occupancy.to_string(),
        format!("{:.2}", blocks as f64 / f64::from(at_once.max(1))),
        cell((report.mma > 0).then(|| report.mma_macs as f64 / load.bytes.max(1) as f64)),
        cell(ratio(waves, ideal)),
        cell(sectors(wide_load)),
        share(wide_load, load),
        cell(less(load, wide_load)),
        cell(sectors(wide_store)),
        share(wide_store, store),
        cell(less(store, wide_store)),
        cell(ratio(report.loop_instructions, report.loop_mma)),
        cell(sass.filter(|_| report.loop_mma > 0)),
        cell(ratio(report.instructions, report.mma)),
        cell(ratio(waves, report.mma)),
        format!("{:.2}", clocks / f64::from(TARGET.caps.clock_mhz)),
    ]
}

/// The table: a row for each launch of each layer.
fn table() -> Vec<Vec<String>> {
    let layers = layers();
    let launches: Vec<&Launch> = layers.iter().flat_map(|layer| &layer.step.program.launches).collect();
    let mut distinct: BTreeMap<[String; 3], &Launch> = BTreeMap::new();
    let key = |launch: &Launch| [launch.source.to_string(), launch.entry.to_string(), defines(launch)];
    for launch in launches {
        distinct.insert(key(launch), launch);
    }
    let compiled: BTreeMap<[String; 3], Option<f64>> = distinct
        .into_par_iter()
        .map(|(key, launch)| {
            emulate::module(launch).unwrap();
            (key, machine_loop(launch))
        })
        .collect();
    let registers = registers();
    let mut rows = Vec::new();
    for layer in &layers {
        for (index, report) in count(layer).iter().enumerate() {
            let key = key(&layer.step.program.launches[index]);
            let taken = registers.get(&key).unwrap_or_else(|| {
                panic!(
                    "{key:?} is not in kernels/resources.tsv: KNET_UPDATE=1 cargo test --test cuda gates::"
                )
            });
            rows.push(row(layer, index, report, compiled[&key], *taken));
        }
    }
    rows
}

/// Numbers of a row by column.
fn number(row: &[String], column: &str) -> Option<f64> {
    let at = COLUMNS.iter().position(|(name, ..)| *name == column).unwrap();
    row[at].parse().ok()
}

/// Limits beyond which a kernel is at fault, whatever the table says: kernel, column, least and most, and why
/// they are not the ideal.
const EXCEPTIONS: [(&str, &str, f64, &str); 8] = [
    (
        "attention/window.cu:window_attention",
        "conflict",
        1.02,
        "in windows of 12 x 12 a warp looks up biases among 36 neighbours, which lie in 32 banks",
    ),
    (
        "conv/split_k.cu:add_partials",
        "load16",
        8.00,
        "a lane reads the 32 bytes of its eight sums in two loads",
    ),
    (
        "conv/few_channels.cu:few_channels",
        "load16",
        4.40,
        "filters have rows of 21 chunks, from half a sector on",
    ),
    (
        "reduce_sum.cu:reduce_sum",
        "store16",
        8.00,
        "a lane writes the 32 bytes of its eight sums in two stores",
    ),
    (
        "group_norm_grad.cu:parts",
        "store16",
        8.00,
        "a lane writes the parts of eight channels, 16 bytes each, one by one",
    ),
    (
        "group_norm_grad.cu:groups",
        "load16",
        5.90,
        "a group's channels of one part are 128 bytes, and sums of rows read 16 of them at a time",
    ),
    ("group_norm_grad.cu:dx", "load16", 4.70, "a lane reads the 32 bytes of its eight scales in two loads"),
    ("mask_loss.cu:mask_loss", "load16", 8.00, "a lane has an object, whose parts follow one another"),
];

/// What holds of every launch: shared memory without bank conflicts, whole sectors, memory-bound kernels in
/// 16-byte lanes, a main loop that leaves issue slots.
fn check(row: &[String], faults: &mut Vec<String>) {
    let launch = row[3].split(' ').nth(1).unwrap();
    let exception = |column: &str| {
        EXCEPTIONS
            .iter()
            .find(|(kernel, of, ..)| *kernel == launch && *of == column)
            .map(|(.., most, _)| *most)
    };
    // Biases and the ragged ends of splits, a few of a hundred requests, cost the rest of the sectors.
    for (column, most) in [("conflict", 1.01), ("load16", 4.20), ("store16", 4.00)] {
        let most = exception(column).unwrap_or(most);
        if number(row, column).is_some_and(|is| is > most + 0.005) {
            faults.push(format!("{} {launch}: {column} {:?}, at most {most}", row[0], number(row, column)));
        }
    }
    // A multiprocessor of an H100 issues 4 instructions a clock, and `mma.sync` (m16n8k16) takes about 1.6
    // clocks of it, as it reaches 63 % of the peak (Luo et al. 2024, "Benchmarking and dissecting the NVIDIA
    // Hopper GPU"): 6.4 slots. TF32's products are half as large and belong to launches that wait for memory,
    // as do those of attention, which has its softmax between them. A deformable convolution blends one factor
    // of its products in the loop, and is bound by that: by what it issues; so is the gradient of its filter,
    // whose loop finds the points of each step as well, and whose text has, sample by sample, both ways to read
    // one: on the map with all its pixels, or not. A third of that text is issued (`loop_ptx`). The gradient of
    // its offsets has three requests to memory for two products, as a sample meets nothing but its own four
    // pixels, and waits for them. The costs of matching make probabilities and their sums in the loop, and wait
    // for memory.
    let most = match row[2].split(' ').next() {
        Some("deform_conv2d") => 10.5,
        Some("deform_conv2d_filter_grad") => 20.9,
        Some("deform_conv2d_input_grad") => 15.5,
        Some("mask_cost") => 13.7,
        _ => 6.4,
    };
    if !["rows/", "attention/"].iter().any(|folder| launch.starts_with(folder))
        && number(row, "loop_sass").is_some_and(|is| is > most)
    {
        faults.push(format!(
            "{} {launch}: {:?} machine instructions a mma",
            row[0],
            number(row, "loop_sass")
        ));
    }
}

#[test]
fn the_heaviest_layers_count_no_worse_than_the_table_says() {
    let rows = table();
    let mut faults = Vec::new();
    rows.iter().for_each(|row| check(row, &mut faults));
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    let layers: usize =
        rows.iter().filter(|row| row[3].starts_with("1 ")).map(|row| row[1].parse::<usize>().unwrap()).sum();
    assert!(layers >= HEAVIEST, "{layers} layers");
    if std::env::var_os("KNET_UPDATE").is_some() {
        let mut text = HEADER.to_string();
        COLUMNS.iter().for_each(|(name, _, what)| text += &format!("#   {name}: {what}\n"));
        text += &(COLUMNS.map(|(name, ..)| name).join("\t") + "\n");
        rows.iter().for_each(|row| text += &(row.join("\t") + "\n"));
        std::fs::write(path(), text).unwrap();
        return;
    }
    let text = std::fs::read_to_string(path()).unwrap();
    let known: Vec<Vec<String>> = text
        .lines()
        .filter(|line| !line.starts_with('#'))
        .skip(1)
        .map(|line| line.split('\t').map(str::to_string).collect())
        .collect();
    let same = |a: &[String], b: &[String]| a[0] == b[0] && a[2..4] == b[2..4];
    let mut worse = Vec::new();
    for row in &rows {
        let place = format!("{} launch {}", row[0], row[3]);
        let Some(before) = known.iter().find(|known| same(known, row)) else {
            worse.push(format!("{place}: not in the table"));
            continue;
        };
        for (name, better, _) in COLUMNS {
            // A last digit may differ by rounding.
            let (was, is) = (number(before, name), number(row, name));
            let slack = was.unwrap_or(0.0).abs() * 0.005 + 0.011;
            let bad = match (better, was, is) {
                (Better::Neither, ..) => false,
                (Better::More, Some(was), Some(is)) => is < was - slack,
                (Better::Less, Some(was), Some(is)) => is > was + slack,
                _ => was.is_some() != is.is_some(),
            };
            if bad {
                worse.push(format!("{place}: {name} {was:?} -> {is:?}"));
            }
        }
    }
    for gone in known.iter().filter(|known| !rows.iter().any(|row| same(known, row))) {
        worse.push(format!("{} launch {}: in the table, but not planned any more", gone[0], gone[3]));
    }
    assert!(
        worse.is_empty(),
        "{}: {} worse, new or gone; if that is meant, KNET_UPDATE=1 cargo test --test cuda counts:: records it:\n{}",
        path().display(),
        worse.len(),
        worse.join("\n")
    );
}
