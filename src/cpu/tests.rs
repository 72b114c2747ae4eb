//! Small cases of every operator against the references, on every instruction set this machine has: a first
//! look, between two edits and on processors that are emulated. `tests/ops` walks all cases, on several
//! numbers of threads.

use super::{Executor, Pool, Selection, Weights, plan};
use crate::error::Result;
use crate::graph::Builder;
use crate::isa::Isa;
use crate::ops::all_cases;
use crate::ops::case::{Case, relative_l2};
use crate::tensor::{DType, Tensor};

/// Operations of the largest case that is small.
const SMALL: u64 = 300_000;

/// The results of a case whose operands are the inputs of a graph; indices as floats of the same value.
fn run(case: &Case, inputs: &[Tensor], isa: Isa) -> Result<Vec<Vec<f64>>> {
    let mut builder = Builder::new();
    let operands: Vec<_> =
        case.inputs.iter().enumerate().map(|(i, &ty)| builder.input(&format!("operand{i}"), ty)).collect();
    for (i, id) in builder.nodes("result", case.op.clone(), &operands)?.into_iter().enumerate() {
        builder.output(&format!("result{i}"), id);
    }
    let weights = Weights::new(Box::new(|param| panic!("no parameter `{}`", param.key)));
    let mut executor = Executor::new(plan(&builder.finish()?, Selection::new(isa, 1))?, &weights)?;
    for (i, values) in inputs.iter().enumerate() {
        if case.inputs[i].dtype == DType::I32 {
            let memory = executor.input_i32_mut(i).iter_mut();
            memory.zip(values.data()).for_each(|(index, &value)| *index = value as i32);
        } else {
            executor.input_mut(i).copy_from_slice(values.data());
        }
    }
    // In the pool that the plan is for: a larger one has no room in the workspace.
    Pool::new(1)?.run(|| executor.run());
    let result = |i| match executor.output_type(i).dtype {
        DType::I32 => executor.output_i32(i).iter().map(|&v| f64::from(v)).collect(),
        _ => executor.output(i).iter().map(|&v| f64::from(v)).collect(),
    };
    Ok((0..executor.plan().outputs.len()).map(result).collect())
}

#[test]
fn small_cases_are_as_their_references() {
    let small = |case: &Case| !case.op.is_lowered() && case.flops() <= SMALL;
    let cases: Vec<Case> = all_cases().into_iter().filter(small).collect();
    for case in &cases {
        let name = case.full_name();
        let inputs = case.make_inputs(7);
        let exact: Vec<Tensor<f64>> = inputs.iter().map(Tensor::to_f64).collect();
        let wanted = case.op.reference(&exact.iter().collect::<Vec<_>>());
        for isa in Isa::available() {
            let found = run(case, &inputs, isa).unwrap_or_else(|e| panic!("{name} on {isa}: {e}"));
            assert_eq!(found.len(), wanted.len(), "{name} on {isa}");
            for (i, (found, wanted)) in found.iter().zip(&wanted).enumerate() {
                let error = relative_l2(found, wanted.data());
                let bound = case.tolerance.relative_l2;
                assert!(error <= bound, "{name} on {isa}: result {i} is off by {error:e}, at most {bound:e}");
            }
        }
    }
    let kinds: std::collections::HashSet<_> = cases.iter().map(|case| case.op.name()).collect();
    println!("{} cases of {} operators", cases.len(), kinds.len());
    assert!(cases.len() > 300 && kinds.len() > 60, "{} cases of {} operators", cases.len(), kinds.len());
}
