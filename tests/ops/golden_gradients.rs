//! Gradients against those of PyTorch's autograd (`tests/goldens`): single operators, and the parts of a
//! kernel update stage with all their parameters. A golden is a small graph; it goes through the passes and
//! then through autodiff, and its results and gradients are checked by the references in double precision and
//! on the CPU for each instruction set.

use crate::goldens::{
    MERGING_PARAMETERS, WINDOW_PARAMETERS, deformable, merged, swin_attention, window_map, windows_of,
};
use knet::cpu::Weights;
use knet::graph::autodiff::gradients;
use knet::graph::passes::optimize;
use knet::graph::{Builder, Graph, Source, ValueId};
use knet::isa::Isa;
use knet::model::{Config, Objects, kernel_update_head, kernel_updator, semantic_update_head};
use knet::ops::activation::Activation;
use knet::ops::binary::BinaryKind;
use knet::ops::case::relative_l2;
use knet::ops::epilogue::Epilogue;
use knet::ops::resize::ResizeMode;
use knet::ops::{
    Activate, AdaptiveAvgPool2d, Attention, BatchNorm, BatchNormTrain, Binary, Conv2d, Fill, GroupNorm,
    LayerNorm, Linear, MaxPool2d, Op, Resize, Softmax, ValueType,
};
use knet::tensor::{Shape, Tensor};
use libtest_mimic::{Failed, Trial};
use std::collections::HashMap;
use std::sync::Arc;
use testkit::golden::{CHANNELS_LAST, File, STORED, eps, integer};
use testkit::run;

/// One f32 operator and its gradient, a few roundings of 6e-8 each that a norm may scale up.
const OPERATOR: f64 = 2e-6;
/// Some twenty f32 operators in a row and their gradients, of width 8 to 24.
const STAGE: f64 = 1e-5;
/// A norm of two elements leaves little but their sign: its gradient is what remains of terms 1,000 times as
/// large that cancel.
const PAIRS: f64 = 3e-4;
/// A softmax that is all but 1 somewhere: its gradient there is what a mean, under weights that are stored as
/// f32, leaves of `dy`, and smaller than `dy` by as much as the weight is close to 1.
const SATURATED: f64 = 4e-5;
/// Batches whose norm magnifies roundings: two elements a channel, or a mean far above the deviation.
const MAGNIFIED: f64 = 1e-5;

/// An operand and the gradient that PyTorch gives it, in the graph's layout.
struct Operand {
    value: Tensor,
    grad: Option<Tensor>,
}

/// A result by PyTorch and the upstream gradient it was given, in the graph's layout.
struct Outcome {
    value: Tensor,
    upstream: Option<Tensor>,
}

/// A graph of results and gradients, with what PyTorch makes of it.
struct Check {
    name: String,
    graph: Graph,
    inputs: Vec<Tensor>,
    /// By key, in PyTorch's layout.
    params: Arc<HashMap<String, Tensor>>,
    /// Name and value of each result of the graph.
    wanted: Vec<(String, Tensor)>,
    /// Bound on the error of the CPU.
    fast: f64,
}

impl Check {
    /// `forward` gives the results from the operands. Its parameters are found in `file` by their keys.
    fn new(
        (name, file, case): (String, &File, &str),
        operands: Vec<Operand>,
        outcomes: Vec<Outcome>,
        forward: impl FnOnce(&mut Builder, &[ValueId]) -> Vec<ValueId>,
    ) -> Self {
        let mut b = Builder::new();
        let ids: Vec<ValueId> = operands
            .iter()
            .enumerate()
            .map(|(i, operand)| b.input(&format!("operand{i}"), ValueType::map(operand.value.shape())))
            .collect();
        for (i, id) in forward(&mut b, &ids).into_iter().enumerate() {
            b.output(&format!("result{i}"), id);
        }
        let graph = optimize(b.finish().unwrap()).unwrap_or_else(|error| panic!("{name}: {error}"));

        // The passes have renumbered all values.
        let mut wrt = Vec::new();
        let (mut params, mut param_grads) = (HashMap::new(), Vec::new());
        let mut b = Builder::resume(graph);
        let find = |b: &Builder, name: &str| {
            b.graph().values().iter().position(|value| value.name == name).expect("an operand")
        };
        let position_to_id: Vec<ValueId> = all_ids(b.graph());
        for (i, operand) in operands.iter().enumerate() {
            if let Some(grad) = &operand.grad {
                let name = format!("operand{i}");
                wrt.push((name.clone(), position_to_id[find(&b, &name)], grad.clone()));
            }
        }
        for (position, value) in b.graph().values().iter().enumerate() {
            if let Source::Param(param) = &value.source {
                params.insert(param.key.clone(), file.get(case, &param.key));
                let grad = param.layout.apply(file.get(case, &format!("grad_{}", param.key)));
                param_grads.push((param.key.clone(), position_to_id[position], grad));
            }
        }
        wrt.extend(param_grads);

        let mut wanted = Vec::new();
        let mut inputs: Vec<Tensor> = operands.into_iter().map(|operand| operand.value).collect();
        let mut seeds = Vec::new();
        let results = b.graph().outputs().to_vec();
        for ((result, id), outcome) in results.into_iter().zip(outcomes) {
            if let Some(upstream) = outcome.upstream {
                let ty = ValueType::map(upstream.shape());
                seeds.push((id, b.input(&format!("{result}.upstream"), ty)));
                inputs.push(upstream);
            }
            wanted.push((result, outcome.value));
        }
        let ids: Vec<ValueId> = wrt.iter().map(|(_, id, _)| *id).collect();
        let found = gradients(&mut b, &seeds, &ids).unwrap_or_else(|error| panic!("{name}: {error}"));
        for (grad, (of, _, value)) in found.into_iter().zip(wrt) {
            match grad {
                Some(grad) => {
                    b.output(&format!("grad_{of}"), grad);
                    wanted.push((format!("grad_{of}"), value));
                }
                None => assert!(value.data().iter().all(|&v| v == 0.0), "{name}: {of} has no gradient"),
            }
        }
        let graph = b.finish().unwrap();
        Check { name, graph, inputs, params: params.into(), wanted, fast: OPERATOR }
    }

    fn fast(self, fast: f64) -> Self {
        Check { fast, ..self }
    }

    fn check_reference(&self) -> Result<(), Failed> {
        let results = run::reference_with(&self.graph, &self.inputs, |param| self.params[&param.key].clone());
        self.compare(results.iter().map(|result| (result.shape(), result.data().to_vec())), 2.0 * STORED)
    }

    fn check_fast(&self, isa: Isa) -> Result<(), Failed> {
        let params = self.params.clone();
        let weights = Weights::new(Box::new(move |param| Ok(params[&param.key].clone())));
        let results = run::Machine::new(&self.graph, &weights, isa, 2)?.run(&self.inputs);
        self.compare(results.iter().map(|result| (result.ty.shape, result.to_f64())), self.fast)
    }

    fn compare(
        &self,
        results: impl ExactSizeIterator<Item = (Shape, Vec<f64>)>,
        bound: f64,
    ) -> Result<(), Failed> {
        assert_eq!(results.len(), self.wanted.len());
        for ((shape, result), (name, wanted)) in results.zip(&self.wanted) {
            if shape != wanted.shape() {
                return Err(format!("{name} is {shape}, golden is {}", wanted.shape()).into());
            }
            let error = relative_l2(&result, wanted.to_f64().data());
            if error.is_nan() || error > bound {
                return Err(format!("{name} is off by {error:.3e} relative L2, at most {bound:.1e}").into());
            }
        }
        Ok(())
    }
}

/// The ids of all values, in order.
fn all_ids(graph: &Graph) -> Vec<ValueId> {
    let mut ids: Vec<ValueId> =
        graph.nodes().iter().flat_map(|node| node.inputs.iter().chain(&node.outputs)).copied().collect();
    ids.extend(graph.outputs().iter().map(|(_, id)| *id));
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), graph.values().len(), "every value is used");
    ids
}

fn same(tensor: Tensor) -> Tensor {
    tensor
}

fn channels_last(tensor: Tensor) -> Tensor {
    tensor.permute(&CHANNELS_LAST)
}

/// Name of an operand in the file, and how it is brought to the graph's layout.
type Loaded = (&'static str, fn(Tensor) -> Tensor);

/// Operands by name with their gradients, brought into the graph's layout.
fn operands(file: &File, case: &str, names: &[Loaded]) -> Vec<Operand> {
    let operand = |&(name, layout): &Loaded| {
        let value = layout(file.find(case, name)?);
        Some(Operand { value, grad: file.find(case, &format!("grad_{name}")).map(layout) })
    };
    names.iter().filter_map(operand).collect()
}

/// A result by name with its upstream gradient.
fn outcome(file: &File, case: &str, name: &str, layout: fn(Tensor) -> Tensor) -> Outcome {
    let upstream = layout(file.get(case, &format!("grad_{name}")));
    Outcome { value: layout(file.get(case, name)), upstream: Some(upstream) }
}

/// One operator with the result `y`, which has the layout of the first operand.
fn operator(of: (String, &File, &str), op: impl Into<Op>, names: &[Loaded]) -> Option<Check> {
    let (file, case) = (of.1, of.2);
    let (operands, outcome) = (operands(file, case, names), outcome(file, case, "y", names[0].1));
    let forward = |b: &mut Builder, ids: &[ValueId]| vec![b.node("y", op, ids).unwrap()];
    Some(Check::new(of, operands, vec![outcome], forward))
}

fn products() -> Vec<Check> {
    let conv = File::read("ops", "conv2d");
    let mut checks = conv.each(|name, case, attributes| {
        let pair = |name| [integer(attributes, name); 2];
        let op = Conv2d {
            stride: pair("stride"),
            padding: pair("padding"),
            padding_end: pair("padding"),
            dilation: pair("dilation"),
            groups: integer(attributes, "groups"),
            epilogue: Epilogue { bias: conv.find(case, "bias").is_some(), ..Epilogue::default() },
            ..Conv2d::new()
        };
        operator((name, &conv, case), op, &[("x", channels_last), ("weight", channels_last), ("bias", same)])
    });
    let deform = File::read("ops", "deform_conv2d");
    checks.extend(deform.each(|name, case, attributes| {
        let op = deformable(&deform, case, attributes)?;
        let names: [Loaded; 3] = ["x", "weight", "offset"].map(|tensor| (tensor, channels_last as _));
        operator((name, &deform, case), op, &names)
    }));
    let linear = File::read("ops", "linear");
    checks.extend(linear.each(|name, case, _| {
        let bias = linear.find(case, "bias").is_some();
        let op = Linear { epilogue: Epilogue { bias, ..Epilogue::default() } };
        operator((name, &linear, case), op, &[("x", same), ("weight", same), ("bias", same)])
    }));
    checks
}

fn norms() -> Vec<Check> {
    let group = File::read("ops", "group_norm");
    let mut checks = group.each(|name, case, attributes| {
        let groups = integer(attributes, "num_groups");
        let op = GroupNorm { groups, eps: eps(attributes), activation: None };
        let names: [Loaded; 3] = [("x", channels_last), ("weight", same), ("bias", same)];
        let check = operator((name, &group, case), op, &names)?;
        Some(if case == "b" { check.fast(PAIRS) } else { check })
    });
    let layer = File::read("ops", "layer_norm");
    checks.extend(layer.each(|name, case, attributes| {
        let op = LayerNorm { eps: eps(attributes), activation: None };
        operator((name, &layer, case), op, &[("x", same), ("weight", same), ("bias", same)])
    }));
    let batch = File::read("ops", "batch_norm");
    checks.extend(batch.each(|name, case, attributes| {
        let eps = eps(attributes);
        if attributes["training"] == true {
            return Some(trained_norm((name, &batch, case), BatchNormTrain { eps }));
        }
        let names: [Loaded; 5] = [
            ("x", channels_last),
            ("weight", same),
            ("bias", same),
            ("running_mean", same),
            ("running_var", same),
        ];
        operator((name, &batch, case), BatchNorm { eps }, &names)
    }));
    checks
}

/// A norm over the batch, with the running statistics as a trainer updates them: a tenth of the batch's,
/// whose variance is unbiased.
fn trained_norm(of: (String, &File, &str), op: BatchNormTrain) -> Check {
    let (file, case) = (of.1, of.2);
    let operands = operands(
        file,
        case,
        &[
            ("x", channels_last),
            ("weight", same),
            ("bias", same),
            ("running_mean", same),
            ("running_var", same),
        ],
    );
    let mut outcomes = vec![outcome(file, case, "y", channels_last)];
    for name in ["running_mean_after", "running_var_after"] {
        outcomes.push(Outcome { value: file.get(case, name), upstream: None });
    }
    let x = operands[0].value.shape();
    let count = (x.len() / x.last()) as f32;
    let check = Check::new(of, operands, outcomes, |b, ids| {
        let results = b.nodes("y", op, &ids[..3]).unwrap();
        let mut update = |running: ValueId, batch: ValueId, share: f32| {
            let mut scaled = |value: ValueId, factor: f32| {
                let factor = Fill { shape: b.shape(value), value: factor };
                let factor = b.node("factor", factor, &[]).unwrap();
                b.node("scaled", Binary { kind: BinaryKind::Mul }, &[value, factor]).unwrap()
            };
            let parts = [scaled(running, 0.9), scaled(batch, share)];
            b.node("running", Binary { kind: BinaryKind::Add }, &parts).unwrap()
        };
        let mean = update(ids[3], results[1], 0.1);
        let variance = update(ids[4], results[2], 0.1 * count / (count - 1.0));
        vec![results[0], mean, variance]
    });
    match of_case(&check.name) {
        "train_offset_mean" | "train_1x1_batch2" => check.fast(MAGNIFIED),
        _ => check,
    }
}

/// The case in `operator/case`.
fn of_case(name: &str) -> &str {
    name.rsplit('/').next().unwrap_or_default()
}

fn pointwise() -> Vec<Check> {
    let file = File::read("ops", "activations");
    file.each(|name, case, attributes| {
        let rank = file.get(case, "x").shape().rank() as i64;
        let op: Op = match case.split('_').next() {
            Some("relu") => Activate { activation: Activation::Relu }.into(),
            Some("sigmoid") => Activate { activation: Activation::Sigmoid }.into(),
            Some("softmax") => {
                let axis = attributes["dim"].as_i64().expect("dim").rem_euclid(rank) as usize;
                Softmax { axis }.into()
            }
            _ => return None,
        };
        let check = operator((name, &file, case), op, &[("x", same)])?;
        Some(if case == "softmax_large" { check.fast(SATURATED) } else { check })
    })
}

fn maps() -> Vec<Check> {
    let resize = File::read("ops", "bilinear_resize");
    let mut checks = resize.each(|name, case, attributes| {
        let y = resize.get(case, "y").shape();
        let align_corners = attributes["align_corners"] == true;
        let nearest = attributes["mode"] == "nearest";
        let mode = if nearest { ResizeMode::Nearest } else { ResizeMode::Bilinear { align_corners } };
        let step = attributes["scale_factor"].as_f64().map(|factor| [1.0 / factor; 2]);
        operator((name, &resize, case), Resize { mode, size: [y[2], y[3]], step }, &[("x", channels_last)])
    });
    let pool = File::read("ops", "max_pool2d");
    checks.extend(pool.each(|name, case, attributes| {
        let pair = |name| [integer(attributes, name); 2];
        let op = MaxPool2d { kernel: pair("kernel"), stride: pair("stride"), padding: pair("padding") };
        operator((name, &pool, case), op, &[("x", channels_last)])
    }));
    checks
}

/// The projections, the attention and the residual sum as a model composes them.
fn attention() -> Vec<Check> {
    let file = File::read("ops", "multihead_attention");
    file.each(|name, case, attributes| {
        let heads = integer(attributes, "num_heads");
        // [N, batch, C] to [batch, N, C].
        let batch_first: fn(Tensor) -> Tensor = |tensor| tensor.permute(&[1, 0, 2]);
        let names = [
            ("x", batch_first),
            ("p.attn.in_proj_weight", same),
            ("p.attn.in_proj_bias", same),
            ("p.attn.out_proj.weight", same),
            ("p.attn.out_proj.bias", same),
        ];
        let (operands, y) = (operands(&file, case, &names), outcome(&file, case, "y", batch_first));
        Some(Check::new((name, &file, case), operands, vec![y], |b, ids| {
            let projection = Linear { epilogue: Epilogue::BIAS };
            let qkv = b.node("qkv", projection, &ids[..3]).unwrap();
            let mixed = b.node("mixed", Attention { heads }, &[qkv]).unwrap();
            let mixed = b.node("projected", projection, &[mixed, ids[3], ids[4]]).unwrap();
            vec![b.node("y", Binary { kind: BinaryKind::Add }, &[mixed, ids[0]]).unwrap()]
        }))
    })
}

/// Attention within windows between its projections, as a block of Swin has it.
fn window_attention() -> Vec<Check> {
    let file = File::read("ops", "swin_attention");
    file.each(|name, case, attributes| {
        let map = |tensor: &str| window_map(&file, case, attributes, tensor);
        let mut all = vec![Operand { value: map("x"), grad: Some(map("grad_x")) }];
        all.extend(operands(
            &file,
            case,
            &WINDOW_PARAMETERS.map(|name| (name, same as fn(Tensor) -> Tensor)),
        ));
        assert!(all.iter().all(|operand| operand.grad.is_some()), "{case}: a parameter without a gradient");
        let y = Outcome { value: map("y"), upstream: Some(map("grad_y")) };
        let op = windows_of(attributes);
        Some(Check::new((name, &file, case), all, vec![y], |b, ids| {
            vec![swin_attention(b, op, ids).unwrap()]
        }))
    })
}

/// The merging of patches between two stages of Swin.
fn patch_merging() -> Vec<Check> {
    let file = File::read("ops", "patch_merging");
    file.each(|name, case, attributes| {
        let map = |tensor: &str| window_map(&file, case, attributes, tensor);
        let mut all = vec![Operand { value: map("x"), grad: Some(map("grad_x")) }];
        let parameters = MERGING_PARAMETERS.map(|name| (name, same as fn(Tensor) -> Tensor));
        all.extend(operands(&file, case, &parameters));
        let [height, width] = [0, 1].map(|axis| attributes["out_hw"][axis].as_u64().unwrap() as usize);
        let result = |tensor: &str| {
            let tokens = file.get(case, tensor);
            let map = [tokens.shape()[0], height, width, tokens.shape()[2]];
            tokens.reshape(map)
        };
        let y = Outcome { value: result("y"), upstream: Some(result("grad_y")) };
        Some(Check::new((name, &file, case), all, vec![y], |b, ids| vec![merged(b, ids).unwrap()]))
    })
}

fn adaptive_pool() -> Vec<Check> {
    let file = File::read("ops", "adaptive_avg_pool2d");
    file.each(|name, case, attributes| {
        let x = operands(&file, case, &[("x", channels_last as fn(Tensor) -> Tensor)]);
        let y = outcome(&file, case, "y", channels_last);
        let op = AdaptiveAvgPool2d { size: [integer(attributes, "output_size"); 2] };
        Some(Check::new((name, &file, case), x, vec![y], |b, ids| vec![b.node("y", op, ids).unwrap()]))
    })
}

fn stages() -> Vec<Check> {
    let updator = File::read("ops", "kernel_updator");
    let mut checks = updator.each(|name, case, attributes| {
        let channels = integer(attributes, "in_channels");
        // Case `k3` is of 3x3 instance kernels, which no K-Net detector has.
        if case == "k3" {
            return None;
        }
        let rows = |tensor: Tensor| {
            let rows = tensor.data().len() / channels;
            tensor.reshape([1, rows, channels])
        };
        let operand = |name: &str| Operand {
            value: rows(updator.get(case, name)),
            grad: Some(rows(updator.get(case, &format!("grad_{name}")))),
        };
        let operands = vec![operand("update_feature"), operand("input_feature")];
        let upstream = Some(rows(updator.get(case, "grad_y")));
        let y = Outcome { value: rows(updator.get(case, "y")), upstream };
        let check = Check::new((name, &updator, case), operands, vec![y], |b, ids| {
            vec![kernel_updator(b, "p", ids[0], ids[1]).unwrap()]
        });
        Some(check.fast(STAGE))
    });
    let head = File::read("ops", "kernel_update_head_det");
    checks.extend(head.each(|name, case, attributes| {
        let mut config = Config::named("knet_s3_r50_fpn").unwrap();
        (config.neck.channels, config.head.feedforward_channels) = (12, 24);
        config.head.heads = integer(attributes, "num_heads");
        config.classes.things = integer(attributes, "num_classes");
        // [B, N, C, 1, 1] to [B, N, C].
        let objects: fn(Tensor) -> Tensor = |tensor| {
            let dims = tensor.shape();
            tensor.reshape([dims[0], dims[1], dims[2]])
        };
        let names =
            [("x", channels_last as fn(Tensor) -> Tensor), ("proposal_feat", objects), ("mask_preds", same)];
        let results =
            [("cls_score", same as fn(Tensor) -> Tensor), ("new_mask_preds", same), ("obj_feat", objects)];
        let outcomes = results.map(|(result, layout)| outcome(&head, case, result, layout)).into();
        let check = Check::new((name, &head, case), operands(&head, case, &names), outcomes, |b, ids| {
            let objects = Objects { features: ids[0], kernels: ids[1], masks: ids[2] };
            let out = kernel_update_head(b, &config, "p", objects).unwrap();
            vec![out.cls_score, out.objects.masks, out.objects.kernels]
        });
        Some(check.fast(STAGE))
    }));
    checks.extend(semantic_stages());
    checks
}

/// Stages of semantic models, one of them with kernels twice as wide as its updator.
fn semantic_stages() -> Vec<Check> {
    let head = File::read("ops", "kernel_update_head_seg");
    head.each(|name, case, attributes| {
        let (channels, updator) =
            (integer(attributes, "in_channels"), integer(attributes, "updator_channels"));
        let mut config = Config::named("knet_s3_fcn_r50-d8").unwrap();
        config.neck.channels = channels;
        config.head.heads = integer(attributes, "num_heads");
        let hidden = head.get(case, "p.ffn.layers.0.0.bias").shape()[0];
        config.head.feedforward_channels = hidden;
        // [B, N, C, 1, 1] to [B, N, C].
        let objects: fn(Tensor) -> Tensor = |tensor| {
            let dims = tensor.shape();
            tensor.reshape([dims[0], dims[1], dims[2]])
        };
        let names =
            [("x", channels_last as fn(Tensor) -> Tensor), ("proposal_feat", objects), ("mask_preds", same)];
        let results = [("new_mask_preds", same as fn(Tensor) -> Tensor), ("obj_feat", objects)];
        let outcomes = results.map(|(result, layout)| outcome(&head, case, result, layout)).into();
        let check = Check::new((name, &head, case), operands(&head, case, &names), outcomes, |b, ids| {
            let objects = Objects { features: ids[0], kernels: ids[1], masks: ids[2] };
            let out = semantic_update_head(b, &config, updator, "p", objects).unwrap();
            vec![out.objects.masks, out.objects.kernels]
        });
        Some(check.fast(STAGE))
    })
}

/// Trials of the references and of every instruction set.
pub fn trials() -> Vec<Trial> {
    let families = [
        products(),
        norms(),
        pointwise(),
        maps(),
        attention(),
        window_attention(),
        patch_merging(),
        adaptive_pool(),
        stages(),
    ];
    let mut trials = Vec::new();
    for check in families.into_iter().flatten().map(Arc::new) {
        let reference = check.clone();
        trials.push(Trial::test(format!("golden_gradients/{}/reference", check.name), move || {
            reference.check_reference()
        }));
        for isa in Isa::available() {
            let fast = check.clone();
            trials.push(Trial::test(format!("golden_gradients/{}/{isa}", check.name), move || {
                fast.check_fast(isa)
            }));
        }
    }
    assert!(trials.len() > 100, "only {} trials: are the goldens whole?", trials.len());
    trials
}
