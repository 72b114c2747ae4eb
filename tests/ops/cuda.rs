//! Every case of every operator that a GPU can run: its CUDA kernels, compiled by NVRTC to PTX and run on
//! the emulator with all checks on, against the reference, in every precision. Walks the registry: a new
//! operator needs no line here.

use knet::cuda::Plan;
use knet::cuda::gpu::Precision;
use knet::cuda::launch::Program;
use knet::ops::case::Case;
use knet::ops::{ValueType, all_cases};
use knet::plan::constants::Constants;
use knet::plan::{Operand, Step};
use libtest_mimic::{Failed, Trial};
use ptxemu::Config;
use rayon::prelude::*;
use testkit::cuda_case;
use testkit::cuda_case::{given, one_node, parameters, seen};
use testkit::emulate::{Run, plan};
use testkit::run::Operands;

/// Emulated multiply-adds of one case that CI has the time for; larger cases have smaller siblings.
const MAX_MACS: u64 = 60_000_000;
/// Values read and written, likewise: what computes little is emulated by them.
const MAX_VALUES: usize = 6_000_000;

/// A plan of one case.
fn plan_of(case: &Case, precision: Precision, operands: Operands) -> Result<Plan, String> {
    plan(&one_node(case, operands), precision).map_err(|e| e.to_string())
}

fn check(case: &Case, precision: Precision, operands: Operands) -> Result<(), Failed> {
    let inputs = case.make_inputs(7);
    let plan = plan_of(case, precision, operands)?;
    let constants = Constants::new(parameters(inputs.clone()));
    let inputs = seen(&plan, &inputs);
    let config = Config { seed: 1, late_async: true, ..Config::default() };
    let run = Run { plan: &plan, constants: &constants, config };
    Ok(cuda_case::compare(case, &plan, precision, &inputs, &run.run(&given(&plan, &inputs))?)?)
}

/// The precisions and places of operands of which each gives the case a program of its own, and those that
/// have none, whose trials say why. f32 comes first, which holds results to the tightest bound: a program
/// that is f32's is not run again for another precision.
fn distinct(case: &Case) -> Vec<(Precision, Operands)> {
    let mut programs: Vec<Vec<(Program, Vec<ValueType>)>> = Vec::new();
    let mut kept = Vec::new();
    for precision in Precision::ALL {
        for operands in [Operands::Params, Operands::Inputs] {
            // bf16's programs are f16's with another type: what operands that are inputs change in them is
            // tried there.
            let twice = operands == Operands::Inputs && precision == Precision::Bf16;
            if twice || operands == Operands::Inputs && case.inputs.len() == 1 {
                continue;
            }
            if let Ok(plan) = plan_of(case, precision, operands) {
                let types = |operands: &[Operand]| operands.iter().map(|o| o.ty).collect::<Vec<_>>();
                let step = |step: &Step<Program>| {
                    (step.program.clone(), [types(&step.inputs), types(&step.outputs)].concat())
                };
                let program = plan.steps.iter().map(step).collect();
                if programs.contains(&program) {
                    continue;
                }
                programs.push(program);
            }
            kept.push((precision, operands));
        }
    }
    kept
}

/// A trial for each program that a precision and a place of the operands give a case that a GPU can run.
pub fn trials() -> Vec<Trial> {
    let possible =
        |case: &Case| cuda_case::runs(case) && case.flops() <= 2 * MAX_MACS && case.values() <= MAX_VALUES;
    let trials_of = |case: Case| {
        let trial = |(precision, operands): (Precision, Operands)| {
            let name = format!("cuda/{}/{}/{operands:?}", case.full_name(), precision.name()).to_lowercase();
            let case = case.clone();
            Trial::test(name, move || check(&case, precision, operands))
        };
        distinct(&case).into_iter().map(trial).collect::<Vec<_>>()
    };
    all_cases().into_par_iter().filter(possible).flat_map_iter(trials_of).collect()
}
