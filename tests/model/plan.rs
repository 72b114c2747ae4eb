//! Plans of small graphs: which concatenations are steps, that values made in place are those that copies
//! would be, and how a run is cut and variables are updated.

use knet::cpu::{self, Selection};
use knet::cuda::gpu::{Caps, Precision, Target};
use knet::cuda::{self, stored};
use knet::dist::Share;
use knet::exec::{Executor, Host};
use knet::graph::passes::{DropRates, optimize};
use knet::graph::{Builder, Graph, InputId, OutputId, SegmentId, ValueId, VariableId};
use knet::isa::Isa;
use knet::model::Config;
use knet::ops::activation::Activation;
use knet::ops::binary::BinaryKind;
use knet::ops::case::relative_l2;
use knet::ops::{Accumulate, Activate, Binary, Concat, Fill, Reshape, Role, TopK, ValueType};
use knet::plan::{Choice, Operand, Plan, Variable};
use knet::tensor::{DType, Tensor};
use knet::train::network::{LossWeights, TrainSpec, build_training};
use knet::train::optimizer::AdamWConfig;
use testkit::run;

/// Concatenations among the steps of the plan; its results must be those of the references.
fn concats(graph: &Graph) -> usize {
    let inputs: Vec<Tensor> = graph
        .values()
        .iter()
        .filter(|value| matches!(value.source, knet::graph::Source::Input))
        .enumerate()
        .map(|(n, value)| {
            let mut next = n as f32;
            Tensor::from_fn(value.ty.shape, |_| {
                next += 0.37;
                next.sin()
            })
        })
        .collect();
    let wanted = run::reference(graph, &inputs);
    let mut machine = run::Machine::new(graph, &run::no_weights(), Isa::detect(), 2).unwrap();
    // The second run finds the arena as the first one left it.
    for _ in 0..2 {
        for (found, wanted) in machine.run(&inputs).iter().zip(&wanted) {
            assert!(relative_l2(&found.to_f64(), wanted.data()) < 1e-6);
        }
    }
    let plan = cpu::plan(graph, Selection::new(Isa::detect(), 2)).unwrap();
    plan.steps.iter().filter(|step| step.op.name() == "concat").count()
}

fn relu(b: &mut Builder, name: &str, x: ValueId) -> ValueId {
    b.node(name, Activate { activation: Activation::Relu }, &[x]).unwrap()
}

/// `sigmoid(concat(relu(x), relu(y)))` for operands of these numbers of rows of 64 floats, which is 256
/// bytes.
fn joined(rows: [usize; 2], columns: usize, axis: usize) -> (Builder, [ValueId; 3]) {
    let mut b = Builder::new();
    let parts = [("x", rows[0]), ("y", rows[1])].map(|(name, rows)| {
        let input = b.input(name, ValueType::rows([1, rows, columns]));
        relu(&mut b, &format!("{name}.relu"), input)
    });
    let all = b.node("all", Concat { axis }, &parts).unwrap();
    let y = b.node("result", Activate { activation: Activation::Sigmoid }, &[all]).unwrap();
    b.output("result", y);
    (b, [parts[0], parts[1], all])
}

#[test]
fn operands_are_made_inside_the_result() {
    let (b, _) = joined([2, 3], 64, 1);
    assert_eq!(concats(&b.finish().unwrap()), 0);
    let (b, _) = joined([1, 1], 64, 0);
    assert_eq!(concats(&b.finish().unwrap()), 0);
    // Both are read after the result, and are results themselves.
    let (mut b, [x, y, all]) = joined([4, 4], 64, 1);
    let sum = b.node("sum", Binary { kind: BinaryKind::Add }, &[x, y]).unwrap();
    b.output("sum", sum);
    b.output("x", x);
    b.output("all", all);
    assert_eq!(concats(&b.finish().unwrap()), 0);
}

#[test]
fn what_cannot_be_made_in_place_is_copied() {
    // The second operand would begin where no slot may.
    let (b, _) = joined([3, 4], 20, 1);
    assert_eq!(concats(&b.finish().unwrap()), 1);
    // Rows of the operands alternate in the result.
    let (b, _) = joined([2, 2], 64, 2);
    assert_eq!(concats(&b.finish().unwrap()), 1);
    // A value has one place: the second concatenation copies.
    let (mut b, [x, y, _]) = joined([2, 2], 64, 1);
    let twice = b.node("twice", Concat { axis: 1 }, &[y, x]).unwrap();
    b.output("twice", twice);
    assert_eq!(concats(&b.finish().unwrap()), 1);
    let (mut b, [x, ..]) = joined([2, 2], 64, 1);
    let same = b.node("same", Concat { axis: 1 }, &[x, x]).unwrap();
    b.output("same", same);
    assert_eq!(concats(&b.finish().unwrap()), 1);
}

#[test]
fn inputs_views_and_joined_values_are_copied() {
    let mut b = Builder::new();
    let x = b.input("x", ValueType::rows([1, 2, 64]));
    let made = relu(&mut b, "made", x);
    let view = b.node("view", Reshape { shape: [1, 2, 64].into() }, &[made]).unwrap();
    let other = relu(&mut b, "other", x);
    let with_input = b.node("with_input", Concat { axis: 1 }, &[x, other]).unwrap();
    let with_view = b.node("with_view", Concat { axis: 1 }, &[other, view]).unwrap();
    let third = relu(&mut b, "third", with_view);
    let inner = b.node("inner", Concat { axis: 1 }, &[third, made]).unwrap();
    let outer = b.node("outer", Concat { axis: 1 }, &[inner, with_input]).unwrap();
    b.output("outer", outer);
    // Only `inner` is made in place.
    assert_eq!(concats(&b.finish().unwrap()), 3);
}

#[test]
fn a_gpu_stores_the_maps_of_training_in_half_precision_and_nothing_else() {
    let config = Config::named("knet_s3_r50_fpn_panoptic").unwrap();
    let optimizer = AdamWConfig { ema: 0.9, ..AdamWConfig::default() };
    let spec = TrainSpec {
        config: &config,
        batch: 2,
        size: [64, 64],
        max_objects: 5,
        weights: LossWeights::default(),
        frozen: &[],
        train_batch_norm: true,
        dropout: DropRates::default(),
        seed: 0,
        optimizer: Some(&optimizer),
        accumulate: 2,
        recompute: 0,
        share: Share::ALONE,
    };
    let network = build_training(&spec).unwrap();
    let target = Target { caps: Caps::H100, precision: Precision::F16 };
    let plan: Plan =
        Plan::build(&network.graph, |_, ty| stored(target)(ty), |_| Ok(Choice::default())).unwrap();
    assert!(plan.variables.len() > 100);
    for Variable { name, operand, .. } in &plan.variables {
        assert_eq!(operand.ty.dtype, DType::F32, "{name}: a variable is its own master copy");
    }
    let find = |ends: &[(String, Operand)], name: &str| {
        ends.iter().find(|(end, _)| end == name).unwrap_or_else(|| panic!("no {name}")).1.ty
    };
    for (inputs, dtype) in [
        (&["image", "target.masks"][..], DType::F16),
        (&["target.labels", "matched.0", "labels.1", "rank.2", "seg.labels"], DType::I32),
        (&["class_weights", "seed.loss_rpn_mask"], DType::F32),
    ] {
        inputs.iter().for_each(|name| assert_eq!(find(&plan.inputs, name).dtype, dtype, "{name}"));
    }
    for (name, operand) in &plan.outputs {
        assert_eq!(operand.ty.dtype, DType::F32, "{name}: costs, losses, statistics and gradients");
    }
    let exact = find(&plan.outputs, "cost.1");
    assert_eq!(exact.role, Role::Exact);
    let maps = plan.steps.iter().flat_map(|step| &step.outputs).filter(|o| o.ty.role == Role::Map);
    assert!(maps.clone().count() > 300 && maps.into_iter().all(|map| map.ty.dtype == DType::F16));
}

#[test]
fn the_place_of_the_best_can_be_an_operand() {
    // Indices travel like any value: as a result, an input, and another view of one.
    let mut b = Builder::new();
    let x = b.input("x", ValueType::rows([1, 6]));
    let given = b.input("given", ValueType::index([2, 3]));
    let best = b.nodes("best", TopK { k: 2 }, &[x]).unwrap()[1];
    let flat = b.node("flat", Reshape { shape: [6].into() }, &[given]).unwrap();
    b.output("best", best);
    b.output("flat", flat);
    let graph = b.finish().unwrap();
    let inputs = [
        Tensor::new([1, 6], vec![0.5, 3.0, -1.0, 2.0, 0.0, 1.0]),
        Tensor::new([2, 3], vec![-1.0, 0.0, 1.0, 2.0, 16_777_216.0, -2_147_483_648.0]),
    ];
    let found = run::Machine::new(&graph, &run::no_weights(), Isa::detect(), 2).unwrap().run(&inputs);
    assert_eq!(found[0].to_f64(), [1.0, 3.0]);
    assert_eq!(found[1].to_f64(), inputs[1].to_f64().data());
    assert!(found.iter().all(|output| output.ty.dtype == DType::I32 && output.ty.role == Role::Index));
}

/// A graph of two segments whose variables are updated in every way there is.
struct Updates {
    graph: Graph,
    inputs: [InputId; 2],
    segments: [SegmentId; 2],
    /// In place; by a copy, as it is read after; in place of what is read no more.
    variables: [VariableId; 3],
    outputs: [OutputId; 2],
}

fn updates() -> Updates {
    let mut b = Builder::new();
    let ty = ValueType::rows([3, 40]);
    let add = Binary { kind: BinaryKind::Add };
    let x = b.input("x", ty);
    let [sum, weight, last] = ["sum", "weight", "last"].map(|name| b.variable(name, ty, None).unwrap());
    let first = b.segment("first");
    let seen = b.node("seen", add, &[x, last]).unwrap();
    let shown = b.node("shown", Activate { activation: Activation::Relu }, &[seen]).unwrap();
    let shown = b.output("shown", shown);
    let second = b.segment("second");
    let y = b.input("y", ty);
    let keep = b.node("keep", Fill { shape: [1].into(), value: 1.0 }, &[]).unwrap();
    // `keep` is finite: a gate that is open.
    let summed = b.node("summed", Accumulate, &[keep, keep, sum, y]).unwrap();
    b.update(sum, summed);
    let moved = b.node("moved", add, &[weight, summed]).unwrap();
    let before = b.node("before", add, &[weight, seen]).unwrap();
    b.update(weight, moved);
    let next = b.node("next", Activate { activation: Activation::Relu }, &[y]).unwrap();
    b.update(last, next);
    let before = b.output("before", before);
    Updates {
        inputs: [x, y].map(|id| b.input_id(id).unwrap()),
        segments: [first, second],
        variables: [sum, weight, last].map(|id| b.variable_id(id).unwrap()),
        outputs: [shown, before],
        graph: b.finish().unwrap(),
    }
}

#[test]
fn segments_stop_a_run_and_updates_replace_variables() {
    let Updates { graph, inputs: [x, y], segments: [first, second], variables, outputs } = updates();
    let plan = cpu::plan(&graph, Selection::new(Isa::detect(), 2)).unwrap();
    let names: Vec<&str> = plan.segments.iter().map(|segment| segment.name.as_str()).collect();
    assert_eq!(names, ["first", "second"]);
    assert_eq!(plan.segments[0].steps, 0..2);
    assert_eq!(plan.segments[1].steps, 2..6);
    assert_eq!((&plan.segments[0].inputs[..], &plan.segments[1].inputs[..]), (&[x][..], &[y][..]));
    assert_eq!(
        (&plan.segments[0].outputs[..], &plan.segments[1].outputs[..]),
        (&outputs[..1], &outputs[1..])
    );
    let copied: Vec<usize> = plan.segments.iter().map(|segment| segment.copies.len()).collect();
    assert_eq!(copied, [0, 1], "`weight` alone is read after its new value is made");
    let executor = cpu::Executor::new(plan, &run::no_weights()).unwrap();
    let mut executor: Box<dyn Executor> = Box::new(executor.in_pool(cpu::Pool::new(2).unwrap()));
    executor.load(&|_| unreachable!("all begin as zeros")).unwrap();

    let value = |seed: usize| -> Vec<f32> { (0..120).map(|i| ((i * 7 + seed) % 13) as f32 - 6.0).collect() };
    let [mut sum, mut weight, mut last] = [(); 3].map(|()| vec![0.0f32; 120]);
    for run in 0..3 {
        let (seen, late) = (value(run), value(run + 5));
        executor.write(x, Host::F32(&seen)).unwrap();
        executor.run(first).unwrap();
        let seen: Vec<f32> = seen.iter().zip(&last).map(|(x, last)| x + last).collect();
        let shown: Vec<f32> = seen.iter().map(|v| v.max(0.0)).collect();
        assert_eq!(executor.read(outputs[0]).floats(), shown);
        executor.write(y, Host::F32(&late)).unwrap();
        executor.run(second).unwrap();
        let before: Vec<f32> = weight.iter().zip(&seen).map(|(w, s)| w + s).collect();
        assert_eq!(executor.read(outputs[1]).floats(), before);
        for i in 0..120 {
            sum[i] += late[i];
            weight[i] += sum[i];
            last[i] = late[i].max(0.0);
        }
        for (variable, wanted) in variables.iter().zip([&sum, &weight, &last]) {
            let mut found = vec![0.0; 120];
            executor.read_variable(*variable, &mut found).unwrap();
            assert_eq!(found, *wanted, "run {run}");
        }
    }
    let error = executor.write(x, Host::I32(&[1])).unwrap_err().to_string();
    assert!(error.contains('x') && error.contains("1 indices") && error.contains("f32[3, 40]"), "{error}");
    assert!(executor.write_variable(variables[0], &[0.0]).is_err());
}

#[test]
fn updates_that_contradict_the_order_are_refused() {
    type Build<'a> = &'a dyn Fn(&mut Builder, ValueId, ValueId);
    let refused = |build: Build<'_>| {
        let mut b = Builder::new();
        let ty = ValueType::rows([4]);
        let (x, variable) = (b.input("x", ty), b.variable("v", ty, None).unwrap());
        build(&mut b, x, variable);
        b.finish().unwrap_err().to_string()
    };
    let double = |b: &mut Builder, x| b.node("y", Binary { kind: BinaryKind::Add }, &[x, x]).unwrap();
    let cases: [(&str, Build<'_>); 5] = [
        ("no variable", &|b, x, _| {
            let y = double(b, x);
            b.update(x, y);
        }),
        ("no node's", &|b, x, v| b.update(v, x)),
        ("twice", &|b, x, v| {
            let y = double(b, x);
            b.update(v, y);
            b.update(v, y);
        }),
        ("is a result", &|b, x, v| {
            let y = double(b, x);
            b.update(v, y);
            b.output("v", v);
        }),
        ("a later segment reads", &|b, x, v| {
            b.segment("one");
            let y = double(b, x);
            b.update(v, y);
            b.segment("two");
            let z = double(b, v);
            b.output("z", z);
        }),
    ];
    for (wanted, build) in cases {
        let error = refused(build);
        assert!(error.contains(wanted), "{error} instead of {wanted}");
    }
}

#[test]
fn a_plan_is_read_back_as_it_was_written() {
    let config = Config::named("knet_s3_lite0_fpn").unwrap();
    let network = knet::model::build(&config, 1, [64, 96], knet::model::TapMode::Off).unwrap();
    let graph = optimize(network.graph).unwrap();

    // On a GPU: with everything that is launched.
    for precision in [Precision::F32, Precision::F16] {
        let plan = cuda::plan(&graph, Target { caps: Caps::H100, precision }).unwrap();
        let text = serde_json::to_string(&plan).unwrap();
        assert!(serde_json::from_str::<cuda::Plan>(&text).unwrap() == plan, "{precision:?}");
        let entry = format!("\"entry\":\"{}\"", plan.steps[0].program.launches[0].entry);
        let foreign = text.replacen(&entry, "\"entry\":\"no_such_kernel\"", 1);
        let fault = serde_json::from_str::<cuda::Plan>(&foreign).unwrap_err().to_string();
        assert!(fault.contains("`no_such_kernel` does not occur in kernels/"), "{fault}");
    }

    // On the CPU: without kernels, which the same selection gives again.
    let selection = Selection::new(Isa::detect(), 2);
    let plan = cpu::plan(&graph, selection).unwrap();
    let text = serde_json::to_string(&plan.described()).unwrap();
    let read: Plan = serde_json::from_str(&text).unwrap();
    assert_eq!(read, plan.described());
    let bound = cpu::rebind(&read, selection).unwrap();
    let names = |plan: &cpu::Plan| plan.steps.iter().map(|step| step.program.name()).collect::<Vec<_>>();
    assert_eq!(names(&bound), names(&plan));
    let mut foreign = read;
    foreign.steps[3].kernel = "a kernel of another version".into();
    let fault = cpu::rebind(&foreign, selection).expect_err("no such kernel").to_string();
    assert!(fault.contains("was planned with `a kernel of another version`"), "{fault}");
    let mut long = text.replacen("\"shape\":[", "\"shape\":[1,1,1,1,1,1,1,", 1);
    assert!(serde_json::from_str::<Plan>(&long).unwrap_err().to_string().contains("more than 6 dimensions"));
    long.truncate(100);
    assert!(serde_json::from_str::<Plan>(&long).is_err());
}
