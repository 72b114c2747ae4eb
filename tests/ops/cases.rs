//! Every case of every operator: the CPU's kernels against the references, for each instruction set this
//! processor has; the same bits for any number of threads, for constant and for computed operands, and from
//! run to run; and with maps of bf16 against the references of what is stored. Walks the registry: a new
//! operator needs no line here. Operators that only the rewrites of GPUs make have no kernel here, and are
//! refused.

use half::bf16;
use knet::cpu::{self, Selection};
use knet::error::Error;
use knet::isa::{Dot, Int8, Isa};
use knet::ops::case::Case;
use knet::ops::{Op, Role, ValueType, all_cases};
use knet::tensor::{DType, Tensor};
use libtest_mimic::{Failed, Trial};
use std::collections::HashSet;
use std::sync::{Arc, OnceLock};
use testkit::run;

/// Operations of a case from which on the portable kernels are left to its smaller siblings: they take
/// sixteen runs (numbers of threads, places of operands, twice each) a second and more apiece.
const TOO_LARGE_IF_PORTABLE: u64 = 30_000_000;

/// The same of products of bf16 by a plain loop.
const LARGEST_BY_PLAIN_LOOP: u64 = 3_000_000;

/// A case with its inputs and their results by reference, computed when first asked for.
struct Prepared {
    case: Case,
    inputs: Vec<Tensor>,
    truth: OnceLock<Vec<Tensor<f64>>>,
    /// The same of inputs that bf16 holds.
    in_bf16: OnceLock<(Vec<Tensor>, Vec<Tensor<f64>>)>,
}

fn reference(case: &Case, inputs: &[Tensor]) -> Vec<Tensor<f64>> {
    let inputs: Vec<Tensor<f64>> = inputs.iter().map(Tensor::to_f64).collect();
    case.op.reference(&inputs.iter().collect::<Vec<_>>())
}

fn rounded(tensor: &Tensor) -> Tensor {
    Tensor::new(tensor.shape(), tensor.data().iter().map(|&v| bf16::from_f32(v).to_f32()).collect())
}

impl Prepared {
    fn check(&self, isa: Isa) -> Result<(), Failed> {
        let truth = self.truth.get_or_init(|| reference(&self.case, &self.inputs));
        run::check_case(&self.case, &self.inputs, truth, isa, &run::THREADS)?;
        Ok(())
    }

    fn check_in_bf16(&self, dot: Dot) -> Result<(), Failed> {
        let (inputs, truth) = self.in_bf16.get_or_init(|| {
            // Indices are numbers that bf16 may not hold.
            let round = |(tensor, ty): (&Tensor, &ValueType)| match ty.dtype {
                DType::I32 => tensor.clone(),
                _ => rounded(tensor),
            };
            let inputs: Vec<Tensor> = self.inputs.iter().zip(&self.case.inputs).map(round).collect();
            let truth = reference(&self.case, &inputs);
            (inputs, truth)
        });
        let isa = if dot == Dot::Portable { Isa::Portable } else { Isa::detect() };
        run::check_case_in_bf16(&self.case, inputs, truth, isa, dot)?;
        Ok(())
    }

    fn check_in_int8(&self, int8: Int8) -> Result<(), Failed> {
        let truth = self.truth.get_or_init(|| reference(&self.case, &self.inputs));
        run::check_case_in_int8(&self.case, &self.inputs, truth, Isa::detect(), int8)?;
        Ok(())
    }

    /// Whether it multiplies maps by tiles.
    fn has_products(&self) -> bool {
        matches!(self.case.op, Op::Conv2d(_) | Op::Linear(_) | Op::MaskConv(_) | Op::MaskPool(_))
    }

    /// Whether it has maps, which may be bf16, or rows that are multiplied as such.
    fn computes_in_bf16(&self) -> bool {
        matches!(self.case.op, Op::Linear(_))
            || self.case.inputs.iter().chain(&self.case.outputs()).any(|ty| ty.role == Role::Map)
    }
}

fn refused(case: &Case, inputs: &[Tensor]) -> Result<(), Failed> {
    let (graph, _) = run::one_node(case, inputs, run::Operands::Inputs)?;
    match cpu::plan(&graph, Selection::new(Isa::detect(), 1)) {
        Err(Error::Shape { op, .. }) if op == case.op.name() => Ok(()),
        other => Err(format!("not refused by name: {other:?}").into()),
    }
}

/// A trial for each case and instruction set.
pub fn trials() -> Vec<Trial> {
    let mut trials = Vec::new();
    let mut names = HashSet::new();
    for case in all_cases() {
        let name = case.full_name();
        assert!(names.insert(name.clone()), "two cases are called {name}");
        let inputs = case.make_inputs(7);
        if case.op.is_lowered() {
            trials.push(Trial::test(format!("cases/{name}/refused"), move || refused(&case, &inputs)));
            continue;
        }
        let large = case.flops() > TOO_LARGE_IF_PORTABLE;
        let work = case.flops().max(case.values() as u64);
        let (truth, in_bf16) = (OnceLock::new(), OnceLock::new());
        let prepared = Arc::new(Prepared { case, inputs, truth, in_bf16 });
        let dots = Dot::available();
        // The others are about the engines, which most operators do not use.
        let wanted = |dot: &Dot| match dot {
            Dot::Portable => work <= LARGEST_BY_PLAIN_LOOP && (dots.len() == 1 || prepared.has_products()),
            _ => dots.last() == Some(dot) || prepared.has_products(),
        };
        for dot in dots.iter().copied().filter(|dot| prepared.computes_in_bf16() && wanted(dot)) {
            let prepared = prepared.clone();
            trials.push(Trial::test(format!("cases/{name}/bf16 {dot}"), move || prepared.check_in_bf16(dot)));
        }
        // The plain loop is every set's below.
        let quantized = matches!(prepared.case.op, Op::QuantizedConv2d(_));
        for int8 in Int8::available().into_iter().filter(|&int8| quantized && int8 != Int8::Portable) {
            let prepared = prepared.clone();
            trials
                .push(Trial::test(format!("cases/{name}/int8 {int8}"), move || prepared.check_in_int8(int8)));
        }
        let sets = Isa::available();
        for isa in sets.iter().copied().filter(|&isa| !(large && isa == Isa::Portable && sets.len() > 1)) {
            let prepared = prepared.clone();
            trials.push(Trial::test(format!("cases/{name}/{isa}"), move || prepared.check(isa)));
        }
    }
    trials
}
