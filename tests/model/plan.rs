//! Plans of small graphs: which concatenations are steps, and that values made in place are those that copies
//! would be.

use knet::cpu::{self, Selection};
use knet::graph::{Builder, Graph, ValueId};
use knet::isa::Isa;
use knet::ops::activation::Activation;
use knet::ops::binary::BinaryKind;
use knet::ops::case::relative_l2;
use knet::ops::{Activate, Binary, Concat, Reshape, ValueType};
use knet::tensor::Tensor;
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
        let input = b.input(name, ValueType::f32([1, rows, columns]));
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
    let x = b.input("x", ValueType::f32([1, 2, 64]));
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
