//! Losses, matching and the optimizer against tensors made by the official code (`tests/goldens/ops`):
//! references in double precision and the CPU's kernels, values and gradients.

use knet::checkpoint::Checkpoint;
use knet::cpu::{self, Executor, Pool, Selection};
use knet::dist::Share;
use knet::exec::Host;
use knet::graph::autodiff::gradients;
use knet::graph::{Builder, Layout, Param, ValueId};
use knet::isa::Isa;
use knet::ops::case::relative_l2;
use knet::ops::{CrossEntropyLoss, Fill, FocalLoss, MaskCost, MaskLoss, Op, ValueType};
use knet::tensor::Tensor;
use knet::train::matcher::Matcher;
use knet::train::optimizer::{self, AdamWConfig, Batches, Weight};
use std::path::Path;
use testkit::run;

/// The goldens are float64 results rounded to float32.
const REFERENCE: f64 = 2e-7;
/// Float32 evaluation of a handful of roundings per element.
const KERNEL: f64 = 2e-6;

fn golden(op: &str) -> Checkpoint {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/goldens/ops/{op}.safetensors"));
    Checkpoint::open(file).unwrap()
}

fn integers(file: &Checkpoint, name: &str) -> Vec<i32> {
    let bytes = file.bytes(name).unwrap().chunks_exact(4);
    bytes.map(|b| i32::from_le_bytes(b.try_into().unwrap())).collect()
}

/// An operand: its type and its values.
type Operand = (ValueType, Tensor);

fn floats(values: Tensor) -> Operand {
    (ValueType::map(values.shape()), values)
}

/// Indices, as floats of the same value.
fn indices<const N: usize>(shape: [usize; N], values: impl IntoIterator<Item = i32>) -> Operand {
    let values = values.into_iter().map(|index| index as f32).collect();
    (ValueType::index(shape), Tensor::new(shape, values))
}

/// A loss with its first operand's gradient: result `index` of `op`, times `scale`.
fn check(what: &str, op: &Op, operands: &[Operand], index: usize, scale: f32, loss: &Tensor, grad: &Tensor) {
    let mut b = Builder::new();
    let ids: Vec<ValueId> =
        operands.iter().enumerate().map(|(i, (ty, _))| b.input(&format!("{i}"), *ty)).collect();
    let seed = b.input("seed", ValueType::exact([1]));
    let results = b.nodes("loss", op.clone(), &ids).unwrap();
    let found = gradients(&mut b, &[(results[index], seed)], &ids[..1]).unwrap();
    b.output("loss", results[index]);
    b.output("grad", found[0].unwrap());
    let graph = b.finish().unwrap();
    let mut inputs: Vec<Tensor> = operands.iter().map(|(_, values)| values.clone()).collect();
    inputs.push(Tensor::new([1], vec![scale]));
    let judge = |who: &str, value: f64, found: &[f64], bound: f64| {
        let wanted = f64::from(loss.data()[0]);
        let off = (value * f64::from(scale) - wanted).abs() / wanted.abs().max(1e-6);
        assert!(off < bound, "{what}, {who}: loss {}, {wanted}", value * f64::from(scale));
        let off = relative_l2(found, grad.to_f64().data());
        assert!(off < bound, "{what}, {who}: gradient off by {off:.1e}");
    };
    let truth = run::reference(&graph, &inputs);
    judge("reference", truth[0].data()[0], truth[1].data(), REFERENCE);
    for isa in Isa::available() {
        let mut machine = run::Machine::new(&graph, &run::no_weights(), isa, 2).unwrap();
        let found = machine.run(&inputs);
        judge(&isa.to_string(), found[0].to_f64()[0], &found[1].to_f64(), KERNEL);
    }
}

/// Rows `[N, ..]` as `[1, N, .., 1]` planes, with the identity as matching.
fn planes(x: &Tensor) -> Tensor {
    let dims = x.shape();
    x.clone().reshape([1, dims[0], dims[1], dims[2]])
}

#[test]
fn mask_losses() {
    for (op, index, cases) in [
        ("bce_mask_loss", 0, &["a", "one", "extreme"][..]),
        ("dice_loss", 1, &["a", "one", "empty_target", "soft"]),
    ] {
        let file = golden(op);
        let load = |case: &str, name: &str| file.load_f32(&format!("{case}.{name}")).unwrap();
        for case in cases {
            let logits = load(case, "logits");
            let rows = logits.shape()[0];
            let matched = indices([1, rows], 0..rows as i32);
            let operands = [floats(planes(&logits)), floats(planes(&load(case, "target"))), matched];
            // Mean over all elements, and 4 times the mean over rows.
            let scale = if index == 0 { 1.0 / logits.data().len() as f32 } else { 4.0 / rows as f32 };
            let grad = load(case, "grad_logits");
            check(
                &format!("{op}/{case}"),
                &MaskLoss.into(),
                &operands,
                index,
                scale,
                &load(case, "loss"),
                &grad,
            );
        }
    }
}

#[test]
fn focal_losses() {
    let file = golden("focal_loss");
    let settings: serde_json::Value = serde_json::from_str(&file.metadata()["meta"]).unwrap();
    for case in ["weighted", "row_weight", "no_positive", "mean", "extreme"] {
        let load = |name: &str| file.load_f32(&format!("{case}.{name}")).unwrap();
        let logits = load("logits");
        let [rows, classes] = [logits.shape()[0], logits.shape()[1]];
        let labels = indices([rows, 1], integers(&file, &format!("{case}.labels")));
        let mut operands = vec![floats(logits.clone().reshape([rows, classes, 1])), labels];
        if file.info(&format!("{case}.weight")).is_some() {
            let weight = load("weight");
            let full = (0..rows * classes)
                .map(|i| weight.data()[if weight.shape().rank() == 1 { i / classes } else { i }]);
            operands.push(floats(Tensor::new([rows, classes], full.collect())));
        }
        let op = FocalLoss { alpha: FocalLoss::ALPHA, weighted: operands.len() == 3 };
        let attrs = &settings["cases"][case];
        let number = |name: &str| attrs[name].as_f64();
        let weight = number("loss_weight").unwrap_or(1.0);
        let scale = match number("avg_factor") {
            Some(factor) => weight / (factor + f64::from(f32::EPSILON)),
            None => weight / (rows * classes) as f64,
        };
        let grad = load("grad_logits");
        check(&format!("focal/{case} {attrs}"), &op.into(), &operands, 0, scale as f32, &load("loss"), &grad);
    }
}

#[test]
fn cross_entropies() {
    let file = golden("cross_entropy");
    for case in ["a", "aux", "avg_non_ignore", "all_ignored", "one", "c150"] {
        let load = |name: &str| file.load_f32(&format!("{case}.{name}")).unwrap();
        let logits = load("logits");
        let [b, k, h, w] = [0, 1, 2, 3].map(|axis| logits.shape()[axis]);
        let labels: Vec<i32> = integers(&file, &format!("{case}.target"))
            .into_iter()
            .map(|l| if l == 255 { -1 } else { l })
            .collect();
        let valid = labels.iter().filter(|&&l| l >= 0).count();
        let count = if case == "avg_non_ignore" { valid } else { labels.len() };
        // The auxiliary head's weight.
        let weight = if case == "aux" { 0.4 } else { 1.0 };
        let scale = weight / count as f32;
        let operands = [floats(logits.reshape([b, k, h * w])), indices([b, h * w], labels)];
        check(
            &format!("ce/{case}"),
            &CrossEntropyLoss.into(),
            &operands,
            0,
            scale,
            &load("loss"),
            &load("grad_logits"),
        );
    }
}

/// The assignment of the official matcher (scipy), from the official costs and from our own.
#[test]
fn hungarian() {
    let file = golden("hungarian");
    for case in ["a", "no_cls", "more_gt_than_queries", "zero_gt", "one", "big"] {
        let name = |what: &str| format!("{case}.{what}");
        let wanted: Vec<Option<usize>> =
            integers(&file, &name("gt_inds")).into_iter().map(|i| (i > 0).then(|| i as usize - 1)).collect();
        let mut matched = vec![None; wanted.len()];
        if case == "zero_gt" {
            assert!(Matcher::default().assign(&[], 0, 0, &mut matched));
            assert_eq!(matched, wanted);
            continue;
        }
        let cost = file.load_f32(&name("cost")).unwrap();
        let objects = cost.shape()[1];
        assert!(Matcher::default().assign(cost.data(), objects, objects, &mut matched));
        assert_eq!(matched, wanted, "{case}");

        let logits = planes(&file.load_f32(&name("mask_logits")).unwrap());
        let masks = planes(&file.load_f32(&name("gt_masks")).unwrap());
        let op = MaskCost { mask_weight: 1.0, dice_weight: 4.0 };
        let ours = op_reference(&op.into(), &[logits, masks]);
        let parts = ["cost_mask", "cost_dice"].map(|part| file.load_f32(&name(part)).unwrap());
        let sum: Vec<f64> =
            parts[0].data().iter().zip(parts[1].data()).map(|(a, b)| f64::from(*a) + f64::from(*b)).collect();
        let off = relative_l2(ours.data(), &sum);
        assert!(off < 1e-6, "{case}: mask cost off by {off:.1e}");
        if file.info(&name("cost_focal")).is_none() || case == "no_cls" {
            continue;
        }
        let logits = file.load_f32(&name("cls_logits")).unwrap();
        let [rows, classes] = [logits.shape()[0], logits.shape()[1]];
        let labels = integers(&file, &name("gt_labels")).into_iter().map(|l| l as f32).collect();
        let op = knet::ops::ClassCost { objects: rows, weight: 2.0 };
        let operands = [logits.reshape([1, rows, classes]), Tensor::new([1, objects], labels)];
        let off = relative_l2(
            op_reference(&op.into(), &operands).data(),
            file.load_f32(&name("cost_focal")).unwrap().to_f64().data(),
        );
        assert!(off < 1e-6, "{case}: class cost off by {off:.1e}");
    }
}

fn op_reference(op: &Op, operands: &[Tensor]) -> Tensor<f64> {
    let operands: Vec<Tensor<f64>> = operands.iter().map(Tensor::to_f64).collect();
    op.reference(&operands.iter().collect::<Vec<_>>()).remove(0)
}

/// Three updates of `torch.optim.AdamW` on three parameters with given gradients.
#[test]
fn adamw() {
    let file = golden("adamw");
    let settings: serde_json::Value = serde_json::from_str(&file.metadata()["meta"]).unwrap();
    for case in ["plain", "clip1", "no_decay", "tiny_grad"] {
        let attrs = &settings["cases"][case];
        let number = |name: &str| attrs[name].as_f64();
        let load = |name: String| file.load_f32(&format!("{case}.{name}")).unwrap();
        let config = AdamWConfig {
            lr: number("lr").unwrap(),
            weight_decay: number("weight_decay").unwrap(),
            clip_norm: number("clip_max_norm").unwrap_or(0.0),
            groups: Vec::new(),
            ..AdamWConfig::default()
        };
        let mut b = Builder::new();
        let (mut weights, mut inputs) = (Vec::new(), Vec::new());
        let keys = ["p0", "p1", "p2"];
        for key in keys {
            let shape = load(key.to_string()).shape();
            let (key, ty) = (key.to_string(), ValueType::weight(shape));
            let param = Param { key, upstream_shape: shape.dims().to_vec(), layout: Layout::Plain };
            let variable = b.variable(&param.key, ty, Some(param.clone())).unwrap();
            let gradient = b.input(&format!("{}.input", param.key), ty);
            inputs.push((b.input_id(gradient).unwrap(), b.variable_id(variable).unwrap()));
            weights.push(Weight { param, variable, gradient });
        }
        let losses = b.node("losses", Fill { shape: [3].into(), value: 0.0 }, &[]).unwrap();
        let batches = Batches { accumulate: 1, share: Share::ALONE, on_device: false };
        let mut optimizer = optimizer::append(&mut b, &config, batches, losses, &mut weights).unwrap();
        let plan = cpu::plan(&b.finish().unwrap(), Selection::new(Isa::detect(), 1)).unwrap();
        assert!(plan.segments.iter().all(|segment| segment.copies.is_empty()), "updates are done in place");
        let executor = Executor::new(plan, &run::no_weights()).unwrap().in_pool(Pool::new(1).unwrap());
        let mut executor: Box<dyn knet::exec::Executor> = Box::new(executor);
        executor.load(&|param| Ok(load(param.key.clone()))).unwrap();
        for step in 1..=3 {
            for (key, (input, _)) in keys.iter().zip(&inputs) {
                executor.write(*input, Host::F32(load(format!("g{step}.{key}")).data())).unwrap();
            }
            optimizer.begin_batch(&mut *executor);
            assert!(optimizer.step(&mut *executor, config.lr).unwrap().is_some());
        }
        for (key, (_, variable)) in keys.iter().zip(&inputs) {
            let wanted = load(format!("after3.{key}"));
            let mut found = Tensor::zeros(wanted.shape());
            executor.read_variable(*variable, found.data_mut()).unwrap();
            let off = relative_l2(found.to_f64().data(), wanted.to_f64().data());
            assert!(off < 1e-6, "{case}: {key} off by {off:.1e}");
        }
    }
}
