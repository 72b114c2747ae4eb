//! Every case of every operator that a GPU can run: its CUDA kernels, compiled by NVRTC to PTX and run on
//! the emulator with all checks on, against the reference, in every precision. Walks the registry: a new
//! operator needs no line here.

use knet::cuda::gpu::Precision;
use knet::ops::all_cases;
use knet::ops::case::Case;
use knet::plan::constants::Constants;
use libtest_mimic::{Failed, Trial};
use ptxemu::Config;
use testkit::cuda_case;
use testkit::cuda_case::{given, one_node, seen};
use testkit::emulate::{Run, plan};
use testkit::run::Operands;

/// Emulated multiply-adds of one case that CI has the time for; larger cases have smaller siblings.
const MAX_MACS: u64 = 60_000_000;

fn check(case: &Case, precision: Precision, operands: Operands) -> Result<(), Failed> {
    let inputs = case.make_inputs(7);
    let (graph, params) = one_node(case, &inputs, operands);
    let constants = Constants::new(Box::new(move |param| Ok(params[&param.key].clone())));
    let plan = plan(&graph, precision).map_err(|e| e.to_string())?;
    let inputs = seen(&plan, &inputs);
    let config = Config { seed: 1, late_async: true, ..Config::default() };
    let run = Run { plan: &plan, constants: &constants, config };
    Ok(cuda_case::compare(case, &plan, precision, &inputs, &run.run(&given(&plan, &inputs))?)?)
}

/// A trial for each case that a GPU can run, precision and place of the operands.
pub fn trials() -> Vec<Trial> {
    let mut trials = Vec::new();
    for case in all_cases() {
        if !cuda_case::runs(&case) {
            continue;
        }
        let outputs = case.op.infer(&case.inputs).expect("cases are sound");
        if case.op.flops(&case.inputs, &outputs) > 2 * MAX_MACS {
            continue;
        }
        for precision in Precision::ALL {
            for operands in [Operands::Params, Operands::Inputs] {
                if operands == Operands::Inputs && case.inputs.len() == 1 {
                    continue;
                }
                let name =
                    format!("cuda/{}/{}/{operands:?}", case.full_name(), precision.name()).to_lowercase();
                let case = case.clone();
                trials.push(Trial::test(name, move || check(&case, precision, operands)));
            }
        }
    }
    trials
}
