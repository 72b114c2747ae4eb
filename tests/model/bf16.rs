//! Parts of networks in bf16 on the CPU, between values of the official code's run ([`testkit::bench`]), with
//! the instructions that this processor has for such products, or a plain loop. A part lies between values
//! that are stored as within the whole network, not as callers see them.

use knet::cpu::{self, Plan, Selection, Weights};
use knet::engine::source::{self, WeightSource};
use knet::isa::{Dot, Isa};
use knet::model::IMAGE;
use knet::ops::Op;
use knet::plan::arena::Slot;
use knet::plan::{Operand, Place};
use knet::tensor::{DType, Tensor};
use testkit::bench::{Bench, F32_TOLERANCE};
use testkit::model_golden::Golden;
use testkit::parts::{inner, network_parts};
use testkit::run::{Machine, one};

/// Square of what rounding to bf16 makes of a value, at most: half of the last of eight digits.
const ROUNDING: f64 = 1.0 / 65536.0;

/// Square of the relative error allowed to each result of a plan, from the roundings on the longest way to it,
/// by the rule of `tests/device/parts.rs`: errors of different layers are independent, so that squares add. Of
/// what is rounded the plan tells: results that it stores as bf16, and both factors of products of bf16, if
/// they are not stored so.
fn variances(plan: &Plan) -> Vec<f64> {
    // Of what lies in the arena. What is made inside a concatenation is read as a part of it.
    let mut known: Vec<(Slot, f64)> = Vec::new();
    let overlap = |a: Slot, b: Slot| a.offset < b.offset + b.bytes && b.offset < a.offset + a.bytes;
    let variance = |known: &[(Slot, f64)], operand: &Operand| match operand.place {
        Place::Arena(slot) => {
            known.iter().filter(|(other, _)| overlap(slot, *other)).map(|&(_, v)| v).fold(0.0, f64::max)
        }
        Place::Const(_) => 0.0,
    };
    let square = |operand: &Operand| if operand.ty.dtype == DType::BF16 { ROUNDING } else { 0.0 };
    for step in &plan.steps {
        let of_operands = step.inputs.iter().map(|operand| variance(&known, operand)).fold(0.0, f64::max);
        let factors = match step.op {
            _ if !step.kernel.starts_with("tiles ") => 0.0,
            // Ones and zeros.
            Op::MaskPool(_) => 0.0,
            _ => 2.0 * ROUNDING - square(&step.inputs[0]) - square(&step.inputs[1]),
        };
        for output in &step.outputs {
            let Place::Arena(slot) = output.place else { continue };
            known.retain(|(other, _)| !overlap(slot, *other));
            known.push((slot, of_operands + factors + square(output)));
        }
    }
    plan.outputs.iter().map(|(_, operand)| variance(&known, operand)).collect()
}

/// Checks the parts of a model, from this one on.
fn check(model: &'static str, first: &str) {
    let bench = Bench::new(Golden::open(model, "a")).unwrap();
    let (dot, isa) = (Dot::detect().unwrap_or(Dot::Portable), Isa::detect());
    let selection = Selection { bf16: Some(dot), ..Selection::new(isa, 2) };
    let source::Opened { load, .. } = source::open(&WeightSource::Seeded(0), Some(model)).unwrap();
    let weights = Weights::new(Box::new(move |param| one(param).map_or_else(|| load(param), Ok)));
    let (mut faults, mut products) = (Vec::new(), 0);
    for part in network_parts(&bench.config).iter().skip_while(|part| part.name != first) {
        let (part_graph, operands) = bench.part(part).unwrap();
        let graph = inner(&part_graph, |name| name == IMAGE || bench.is_mask_logits(name));
        let plan = cpu::plan(&graph, selection).unwrap();
        products += plan.steps.iter().filter(|step| step.kernel == format!("tiles {dot}")).count();
        let variances = variances(&plan);
        let found = Machine::with(&graph, &weights, selection).unwrap().run(&operands);
        let found = found.into_iter().map(|output| {
            Tensor::new(output.ty.shape, output.bits.iter().map(|&bits| f32::from_bits(bits)).collect())
        });
        for (found, variance) in
            bench.compare(part, &part_graph, &operands, found).unwrap().iter().zip(variances)
        {
            // The golden's own roundings, in f32, beside ours.
            let bound = variance.sqrt() + F32_TOLERANCE.max(2.0 * found.noise.unwrap_or_default());
            println!("bf16 {dot} {found} of {bound:.2e}");
            if found.error.is_nan() || found.error > bound {
                faults.push(format!("{found} of {bound:.2e}"));
            }
        }
    }
    assert!(products > 0, "nothing was multiplied by {dot}");
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn instance_r50() {
    check("knet_s3_r50_fpn", "C2");
}

/// Backbone, pyramid and semantic FPN are the instance model's, of the same weights and photo.
#[test]
fn panoptic_r50() {
    check("knet_s3_r50_fpn_panoptic", "head features");
}

#[test]
fn fcn_r50() {
    check("knet_s3_fcn_r50-d8", "C2");
}

#[test]
fn upernet_swin_t() {
    check("knet_s3_upernet_swin-t", "C2");
}
