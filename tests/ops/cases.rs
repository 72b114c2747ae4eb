//! Every case of every operator: the CPU's kernels against the references, for each instruction set this
//! processor has; the same bits for any number of threads, for constant and for computed operands, and
//! from run to run. Walks the registry: a new operator needs no line here. Operators that only the rewrites of
//! GPUs make have no kernel here, and are refused.

use knet::cpu::{self, Selection};
use knet::error::Error;
use knet::isa::Isa;
use knet::ops::all_cases;
use knet::ops::case::Case;
use knet::tensor::Tensor;
use libtest_mimic::{Failed, Trial};
use std::collections::HashSet;
use std::sync::{Arc, OnceLock};
use testkit::run;

/// Operations of a case from which on the portable kernels are left to its smaller siblings: they take sixteen
/// runs (numbers of threads, places of operands, twice each) a second and more apiece.
const TOO_LARGE_IF_PORTABLE: u64 = 30_000_000;

/// A case with its inputs and their results by reference, computed when first asked for.
struct Prepared {
    case: Case,
    inputs: Vec<Tensor>,
    truth: OnceLock<Vec<Tensor<f64>>>,
}

impl Prepared {
    fn check(&self, isa: Isa) -> Result<(), Failed> {
        let truth = self.truth.get_or_init(|| {
            let inputs: Vec<Tensor<f64>> = self.inputs.iter().map(Tensor::to_f64).collect();
            self.case.op.reference(&inputs.iter().collect::<Vec<_>>())
        });
        run::check_case(&self.case, &self.inputs, truth, isa, &run::THREADS)?;
        Ok(())
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
        let prepared = Arc::new(Prepared { case, inputs, truth: OnceLock::new() });
        let sets = Isa::available();
        for isa in sets.iter().copied().filter(|&isa| !(large && isa == Isa::Portable && sets.len() > 1)) {
            let prepared = prepared.clone();
            trials.push(Trial::test(format!("cases/{name}/{isa}"), move || prepared.check(isa)));
        }
    }
    trials
}
