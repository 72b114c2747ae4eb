//! Operators against tensors made by PyTorch (`tests/goldens`; their making is described in
//! `ops/INDEX.md` of the reference data). Each golden case is a small graph, checked twice: by the
//! references in double precision, which must agree to the rounding of the stored f32, and by the CPU
//! back end for each instruction set.
//!
//! Goldens keep PyTorch's layouts (NCHW, OIHW); operands are converted on the way in and results on the
//! way out.

use knet::graph::{Builder, Graph, ValueId};
use knet::isa::Isa;
use knet::ops::activation::Activation;
use knet::ops::case::{Tolerance, relative_l2};
use knet::ops::epilogue::Epilogue;
use knet::ops::non_max_suppression::Groups;
use knet::ops::resize::ResizeMode;
use knet::ops::{
    Activate, AdaptiveAvgPool2d, Attention, BatchNorm, Conv2d, DeformConv2d, GroupNorm, LayerNorm, Linear,
    MaxPool2d, NonMaxSuppression, Op, PixelUnshuffle, Resize, RoiAlign, Role, SinePositionalEncoding,
    Softmax, ValueType, WindowAttention,
};
use knet::tensor::Tensor;
use libtest_mimic::{Failed, Trial};
use serde_json::Value;
use std::sync::Arc;
use testkit::golden::{File, STORED, eps, integer};
use testkit::run;

/// Goldens computed by PyTorch in f32 on angles up to 2 pi: a rounding of the angle shifts a sine by 2.4e-7.
const OFFICIAL_SINE: f64 = 5e-7;
/// Goldens computed by PyTorch in f32, source coordinates (here up to 7) included: 7 * 6e-8 of a pixel.
const OFFICIAL_RESIZE: f64 = 5e-7;

/// Goldens computed by PyTorch in f32, whose own sums round.
const OFFICIAL_SUMS: f64 = 3e-7;

/// Elements at the start that thinned goldens keep.
const HEAD: usize = 64;

/// NHWC to NCHW.
const CHANNELS_FIRST: [usize; 4] = [0, 3, 1, 2];

/// A graph with its inputs and what PyTorch makes of them.
struct Golden {
    name: String,
    graph: Graph,
    inputs: Vec<Tensor>,
    /// Brings the result into PyTorch's layout.
    axes: Vec<usize>,
    /// Of a thinned golden: it keeps the first [`HEAD`] elements and then every so-many-th.
    stride: usize,
    wanted: Tensor,
    /// Bound on the error of the references.
    reference: f64,
    /// Bound on the error of the CPU back end.
    fast: f64,
}

impl Golden {
    /// One operator over `inputs`, already in the graph's layout, with f64-made results in the same layout.
    fn new(name: String, op: impl Into<Op>, inputs: Vec<Tensor>, wanted: Tensor) -> Self {
        Golden::composed(name, inputs, wanted, |builder, ids| builder.node("result", op, ids))
    }

    /// What `build` makes of operands of the types of `inputs`, as [`Golden::new`].
    fn composed(
        name: String,
        inputs: Vec<Tensor>,
        wanted: Tensor,
        build: impl FnOnce(&mut Builder, &[ValueId]) -> knet::Result<ValueId>,
    ) -> Self {
        let mut builder = Builder::new();
        let named = inputs.iter().enumerate();
        let ids: Vec<_> =
            named.map(|(i, t)| builder.input(&format!("operand{i}"), ValueType::map(t.shape()))).collect();
        let result = build(&mut builder, &ids).unwrap_or_else(|error| panic!("{name}: {error}"));
        builder.output("result", result);
        let graph = builder.finish().unwrap();
        let axes = (0..wanted.shape().rank()).collect();
        let fast = Tolerance::REDUCTION.relative_l2;
        Golden { name, graph, inputs, axes, stride: 1, wanted, reference: STORED, fast }
    }

    /// The same with results in NCHW.
    fn nchw(name: String, op: impl Into<Op>, inputs: Vec<Tensor>, wanted: Tensor) -> Self {
        Golden { axes: CHANNELS_FIRST.to_vec(), ..Golden::new(name, op, inputs, wanted) }
    }

    fn bounds(self, reference: f64, fast: f64) -> Self {
        Golden { reference, fast, ..self }
    }

    fn check_reference(&self) -> Result<(), Failed> {
        let result = run::reference(&self.graph, &self.inputs).remove(0);
        self.compare(result, self.reference)
    }

    fn check_fast(&self, isa: Isa) -> Result<(), Failed> {
        let mut machine = run::Machine::new(&self.graph, &run::no_weights(), isa, 2)?;
        let result = machine.run(&self.inputs).remove(0);
        self.compare(Tensor::new(result.ty.shape, result.to_f64()), self.fast)
    }

    fn compare(&self, result: Tensor<f64>, bound: f64) -> Result<(), Failed> {
        let result = result.permute(&self.axes);
        if self.stride == 1 && result.shape() != self.wanted.shape() {
            return Err(format!("result is {}, golden is {}", result.shape(), self.wanted.shape()).into());
        }
        let (head, tail) = result.data().split_at(HEAD.min(result.data().len()));
        let kept: Vec<f64> = head.iter().chain(tail.iter().step_by(self.stride)).copied().collect();
        if kept.len() != self.wanted.data().len() {
            return Err(format!("{} elements to compare with {}", kept.len(), self.wanted.shape()).into());
        }
        let error = relative_l2(&kept, self.wanted.to_f64().data());
        if error.is_nan() || error > bound {
            return Err(format!("off by {error:.3e} relative L2, at most {bound:.1e}").into());
        }
        Ok(())
    }
}

fn conv2d() -> Vec<Golden> {
    let file = File::read("ops", "conv2d");
    file.each(|name, case, attributes| {
        let pair = |name| [integer(attributes, name); 2];
        let bias = file.find(case, "bias");
        let op = Conv2d {
            stride: pair("stride"),
            padding: pair("padding"),
            padding_end: pair("padding"),
            dilation: pair("dilation"),
            groups: integer(attributes, "groups"),
            epilogue: Epilogue { bias: bias.is_some(), ..Epilogue::default() },
            ..Conv2d::new()
        };
        let mut inputs = vec![file.map(case, "x"), file.map(case, "weight")];
        inputs.extend(bias);
        Some(Golden::nchw(name, op, inputs, file.get(case, "y")))
    })
}

fn deform_conv2d() -> Vec<Golden> {
    let file = File::read("ops", "deform_conv2d");
    file.each(|name, case, attributes| {
        let op = deformable(&file, case, attributes)?;
        let inputs = ["x", "weight", "offset"].map(|tensor| file.map(case, tensor)).into();
        Some(Golden::nchw(name, op, inputs, file.get(case, "y")))
    })
}

/// The operator of a case of `deform_conv2d`; the file has all attributes and those tensors that it can be
/// tested by.
pub fn deformable(file: &File, case: &str, attributes: &Value) -> Option<DeformConv2d> {
    file.find(case, "x")?;
    let [stride, padding, dilation] = ["stride", "padding", "dilation"].map(|name| integer(attributes, name));
    let conv = Conv2d { dilation: [dilation; 2], ..Conv2d::with(stride, padding) };
    Some(DeformConv2d { conv })
}

fn linear() -> Vec<Golden> {
    let file = File::read("ops", "linear");
    file.each(|name, case, _| {
        let mut inputs = file.all(case, ["x", "weight"]);
        let bias = file.find(case, "bias");
        let epilogue = Epilogue { bias: bias.is_some(), ..Epilogue::default() };
        inputs.extend(bias);
        Some(Golden::new(name, Linear { epilogue }, inputs, file.get(case, "y")))
    })
}

fn norms() -> Vec<Golden> {
    let batch = File::read("ops", "batch_norm");
    let mut goldens = batch.each(|name, case, attributes| {
        if attributes["training"] == true {
            return None;
        }
        let mut inputs = vec![batch.map(case, "x")];
        inputs.extend(batch.all(case, ["weight", "bias", "running_mean", "running_var"]));
        Some(Golden::nchw(name, BatchNorm { eps: eps(attributes) }, inputs, batch.get(case, "y")))
    });
    let group = File::read("ops", "group_norm");
    goldens.extend(group.each(|name, case, attributes| {
        let groups = integer(attributes, "num_groups");
        let op = GroupNorm { groups, eps: eps(attributes), activation: None };
        let mut inputs = vec![group.map(case, "x")];
        inputs.extend(group.all(case, ["weight", "bias"]));
        Some(Golden::nchw(name, op, inputs, group.get(case, "y")))
    }));
    let layer = File::read("ops", "layer_norm");
    goldens.extend(layer.each(|name, case, attributes| {
        let op = LayerNorm { eps: eps(attributes), activation: None };
        Some(Golden::new(name, op, layer.all(case, ["x", "weight", "bias"]), layer.get(case, "y")))
    }));
    goldens
}

fn activations() -> Vec<Golden> {
    let file = File::read("ops", "activations");
    file.each(|name, case, attributes| {
        let x = file.get(case, "x");
        let rank = x.shape().rank() as i64;
        let (op, reference, fast): (Op, f64, f64) = match case.split('_').next() {
            Some("relu") => (Activate { activation: Activation::Relu }.into(), 0.0, 0.0),
            Some("sigmoid") => {
                let op = Activate { activation: Activation::Sigmoid };
                (op.into(), STORED, Tolerance::POINTWISE.relative_l2)
            }
            Some("softmax") => {
                let axis = attributes["dim"].as_i64().expect("dim").rem_euclid(rank) as usize;
                (Softmax { axis }.into(), STORED, Tolerance::REDUCTION.relative_l2)
            }
            _ => return None,
        };
        Some(Golden::new(name, op, vec![x], file.get(case, "y")).bounds(reference, fast))
    })
}

fn resize() -> Vec<Golden> {
    let file = File::read("ops", "bilinear_resize");
    file.each(|name, case, attributes| {
        let wanted = file.get(case, "y");
        let align_corners = attributes["align_corners"] == true;
        let nearest = attributes["mode"] == "nearest";
        let mode = if nearest { ResizeMode::Nearest } else { ResizeMode::Bilinear { align_corners } };
        let op = Resize {
            mode,
            size: [wanted.shape()[2], wanted.shape()[3]],
            step: attributes["scale_factor"].as_f64().map(|factor| [1.0 / factor; 2]),
        };
        let golden = Golden::nchw(name, op, vec![file.map(case, "x")], wanted);
        Some(if nearest { golden.bounds(0.0, 0.0) } else { golden.bounds(STORED, 3e-7) })
    })
}

fn max_pool() -> Vec<Golden> {
    let file = File::read("ops", "max_pool2d");
    file.each(|name, case, attributes| {
        let pair = |name| [integer(attributes, name); 2];
        let op = MaxPool2d { kernel: pair("kernel"), stride: pair("stride"), padding: pair("padding") };
        let golden = Golden::nchw(name, op, vec![file.map(case, "x")], file.get(case, "y"));
        Some(golden.bounds(0.0, 0.0))
    })
}

/// The projections, the attention and the residual sum as a model composes them.
fn attention() -> Vec<Golden> {
    let file = File::read("ops", "multihead_attention");
    file.each(|name, case, attributes| {
        let heads = integer(attributes, "num_heads");
        // [N, batch, C] to [batch, N, C].
        let mut inputs = vec![file.get(case, "x").permute(&[1, 0, 2])];
        inputs.extend(file.all(
            case,
            [
                "p.attn.in_proj_weight",
                "p.attn.in_proj_bias",
                "p.attn.out_proj.weight",
                "p.attn.out_proj.bias",
            ],
        ));
        let golden = Golden::composed(name, inputs, file.get(case, "y"), |builder, ids| {
            let projection = Linear { epilogue: Epilogue::BIAS };
            let qkv = builder.node("qkv", projection, &ids[..3])?;
            let mixed = builder.node("mixed", Attention { heads }, &[qkv])?;
            let with_residual = Linear { epilogue: Epilogue { residual: true, ..Epilogue::BIAS } };
            builder.node("y", with_residual, &[mixed, ids[3], ids[4], ids[0]])
        });
        Some(Golden { axes: vec![1, 0, 2], ..golden })
    })
}

/// Attention within windows between its projections, as a block of Swin has it.
fn window_attention() -> Vec<Golden> {
    let file = File::read("ops", "swin_attention");
    file.each(|name, case, attributes| {
        let map = |tensor: &str| window_map(&file, case, attributes, tensor);
        let mut inputs = vec![map("x")];
        inputs.extend(file.all(case, WINDOW_PARAMETERS));
        let op = windows_of(attributes);
        Some(Golden::composed(name, inputs, map("y"), |builder, ids| swin_attention(builder, op, ids)))
    })
}

/// Parameters of attention within windows and its projections, as upstream calls them.
pub const WINDOW_PARAMETERS: [&str; 5] = [
    "p.w_msa.qkv.weight",
    "p.w_msa.qkv.bias",
    "p.w_msa.relative_position_bias_table",
    "p.w_msa.proj.weight",
    "p.w_msa.proj.bias",
];

/// The operator of a case of `swin_attention`.
pub fn windows_of(attributes: &Value) -> WindowAttention {
    let field = |name| integer(attributes, name);
    let (heads, window, shift) = (field("num_heads"), field("window_size"), field("shift_size"));
    WindowAttention { heads, window, shift }
}

/// Tokens of a case of `swin_attention`, `[B, H W, C]`, as a map.
pub fn window_map(file: &File, case: &str, attributes: &Value, tensor: &str) -> Tensor {
    let tokens = file.get(case, tensor);
    let [batch, channels] = [tokens.shape()[0], tokens.shape()[2]];
    tokens.reshape([batch, integer(attributes, "H"), integer(attributes, "W"), channels])
}

/// Both projections and what is between them, of a map and [`WINDOW_PARAMETERS`].
pub fn swin_attention(b: &mut Builder, op: WindowAttention, ids: &[ValueId]) -> knet::Result<ValueId> {
    let projection = Linear { epilogue: Epilogue::BIAS };
    let qkv = b.node("qkv", projection, &ids[..3])?;
    let mixed = b.node("mixed", op, &[qkv, ids[2], ids[3]])?;
    b.node("y", projection, &[mixed, ids[4], ids[5]])
}

/// The merging of patches between two stages of Swin.
fn patch_merging() -> Vec<Golden> {
    let file = File::read("ops", "patch_merging");
    file.each(|name, case, attributes| {
        let mut inputs = vec![window_map(&file, case, attributes, "x")];
        inputs.extend(file.all(case, MERGING_PARAMETERS));
        let wanted = file.get(case, "y");
        let [height, width] = [0, 1].map(|axis| attributes["out_hw"][axis].as_u64().unwrap() as usize);
        let map = [wanted.shape()[0], height, width, wanted.shape()[2]];
        Some(Golden::composed(name, inputs, wanted.reshape(map), merged))
    })
}

/// Parameters of the merging of patches, as upstream calls them.
pub const MERGING_PARAMETERS: [&str; 3] = ["p.norm.weight", "p.norm.bias", "p.reduction.weight"];

/// The merging of patches, of a map and [`MERGING_PARAMETERS`].
pub fn merged(b: &mut Builder, ids: &[ValueId]) -> knet::Result<ValueId> {
    let x = b.node("sampler", PixelUnshuffle { factor: 2 }, &ids[..1])?;
    let x = b.node("norm", LayerNorm { eps: 1e-5, activation: None }, &[x, ids[1], ids[2]])?;
    b.node("y", Linear::default(), &[x, ids[3]])
}

fn adaptive_pool() -> Vec<Golden> {
    let file = File::read("ops", "adaptive_avg_pool2d");
    file.each(|name, case, attributes| {
        let op = AdaptiveAvgPool2d { size: [integer(attributes, "output_size"); 2] };
        Some(Golden::nchw(name, op, vec![file.map(case, "x")], file.get(case, "y")))
    })
}

fn sine_encoding() -> Vec<Golden> {
    let file = File::read("ops", "sine_positional_encoding");
    let make = |name, case: &str, attributes: &Value, tensor: &str, reference, fast| {
        let op = SinePositionalEncoding {
            height: integer(attributes, "H"),
            width: integer(attributes, "W"),
            features: integer(attributes, "num_feats"),
        };
        Golden::nchw(name, op, vec![], file.get(case, tensor)).bounds(reference, fast)
    };
    let mut goldens = file
        .each(|name, case, attributes| Some(make(name, case, attributes, "y", OFFICIAL_SINE, OFFICIAL_SINE)));
    goldens.extend(file.each(|name, case, attributes| {
        file.find(case, "y64")?;
        Some(make(format!("{name}_y64"), case, attributes, "y64", STORED, STORED))
    }));
    goldens
}

/// The same operators in the `unit` goldens, which PyTorch computed in f32.
fn unit() -> Vec<Golden> {
    let file = File::read("unit", "ops");
    let x = file.map("bil", "x");
    let resize = |case: &str, tensor: &str, mode: ResizeMode, bound: f64| {
        let wanted = file.get(case, tensor);
        let op = Resize { mode, size: [wanted.shape()[2], wanted.shape()[3]], step: None };
        Golden::nchw(format!("unit/{case}.{tensor}"), op, vec![x.clone()], wanted).bounds(bound, bound)
    };
    let bilinear = ResizeMode::Bilinear { align_corners: false };
    let sine = |tensor: &str, height, width, stride| {
        let op = SinePositionalEncoding { height, width, features: 128 };
        let name = format!("unit/sine_pe.{tensor}");
        let golden = Golden::nchw(name, op, vec![], file.get("sine_pe", tensor));
        Golden { stride, axes: CHANNELS_FIRST.to_vec(), ..golden.bounds(OFFICIAL_SINE, OFFICIAL_SINE) }
    };
    vec![
        resize("bil", "up2", bilinear, OFFICIAL_RESIZE),
        resize("bil", "to_13x9", bilinear, OFFICIAL_RESIZE),
        resize("bil", "to_3x4", bilinear, OFFICIAL_RESIZE),
        resize("nearest", "to_10x14", ResizeMode::Nearest, 0.0),
        resize("nearest", "to_9x13", ResizeMode::Nearest, 0.0),
        sine("4x6", 4, 6, 1),
        sine("25x42", 25, 42, 67),
    ]
}

/// Boxes: their features, by image, and those that are kept of many, in order, with zeros after them.
fn boxes() -> Vec<Golden> {
    let file = File::read("unit", "ops");
    let (x, rois) = (file.map("roi", "x"), file.get("roi", "rois"));
    let mut goldens = Vec::new();
    for (size, image) in [(7, 0), (7, 1), (14, 0), (14, 1)] {
        let (shape, wanted) = (x.shape(), file.get("roi", &format!("out{size}")));
        let own: Vec<usize> =
            (0..rois.shape()[0]).filter(|&row| rois.at(&[row, 0]) == image as f32).collect();
        let map =
            Tensor::from_fn([1, shape[1], shape[2], shape[3]], |at| x.at(&[image, at[1], at[2], at[3]]));
        let boxes = Tensor::from_fn([1, own.len(), 4], |at| rois.at(&[own[at[1]], 1 + at[2]]));
        let dims = [own.len(), shape[3], size, size];
        let wanted = Tensor::from_fn(dims, |at| wanted.at(&[own[at[0]], at[1], at[2], at[3]]));
        let op = RoiAlign { size, stride: 4, finest: 56.0, role: Role::Map };
        let golden = Golden::nchw(format!("unit/roi.{size}.{image}"), op, vec![map, boxes], wanted);
        goldens.push(golden.bounds(OFFICIAL_SUMS, OFFICIAL_SUMS));
    }
    let (boxes, scores) = (file.get("nms", "boxes"), file.get("nms", "scores"));
    // `nms.keep_iou0.3`
    let kept = [
        30, 35, 16, 5, 53, 42, 18, 21, 23, 58, 8, 0, 40, 24, 34, 12, 57, 19, 32, 13, 48, 39, 10, 9, 36, 44,
        4, 50, 17, 31, 2, 7,
    ];
    let wanted = |at: &[usize]| kept.get(at[1]).map_or(0.0, |&kept| boxes.at(&[kept, at[2]]));
    let wanted = Tensor::from_fn([1, 40, 4], wanted);
    let op = NonMaxSuppression {
        iou_threshold: 0.3,
        score_threshold: -1.0,
        drop_empty: false,
        groups: Groups::Interleaved(1),
        counted: false,
        keep: 40,
    };
    let inputs = vec![boxes.clone().reshape([1, 60, 4]), scores.reshape([1, 60])];
    goldens.push(Golden::new("unit/nms".into(), op, inputs, wanted).bounds(0.0, 0.0));
    goldens
}

/// Trials of the references and of every instruction set.
pub fn trials() -> Vec<Trial> {
    let families = [
        conv2d(),
        deform_conv2d(),
        linear(),
        norms(),
        activations(),
        resize(),
        max_pool(),
        attention(),
        window_attention(),
        patch_merging(),
        adaptive_pool(),
        sine_encoding(),
        unit(),
        boxes(),
    ];
    let mut trials = Vec::new();
    for golden in families.into_iter().flatten().map(Arc::new) {
        let reference = golden.clone();
        trials.push(Trial::test(format!("goldens/{}/reference", golden.name), move || {
            reference.check_reference()
        }));
        for isa in Isa::available() {
            let fast = golden.clone();
            trials.push(Trial::test(format!("goldens/{}/{isa}", golden.name), move || fast.check_fast(isa)));
        }
    }
    assert!(trials.len() > 100, "only {} trials: are the goldens whole?", trials.len());
    trials
}
