//! Operators that make the new value of a variable, with operand and result in the same memory, as plans have
//! them where nothing else reads the old value.

use knet::cuda::gpu::{Precision, Target};
use knet::cuda::{ops, stored};
use knet::ops::{ValueType, all_cases};
use knet::plan::Site;
use testkit::cuda_case::check_program;
use testkit::emulate::CAPS;

#[test]
fn results_take_the_place_of_the_operands_they_replace() {
    let target = Target { caps: CAPS, precision: Precision::Bf16 };
    let place = |types: &[ValueType]| types.iter().map(|&ty| stored(target)(ty)).collect::<Vec<_>>();
    let mut operators = Vec::new();
    for case in all_cases().iter().filter(|case| !case.op.replaces(case.inputs.len()).is_empty()) {
        let outputs = place(&case.op.infer(&case.inputs).unwrap());
        if outputs[0].shape.is_empty() {
            continue;
        }
        let (inputs, constant) = (place(&case.inputs), vec![false; case.inputs.len()]);
        let site = Site { op: &case.op, inputs: &inputs, constant: &constant, outputs: &outputs };
        let program = ops::program(&site, &target).unwrap_or_else(|e| panic!("{}: {e}", case.full_name()));
        check_program(case, &site, &program, target.precision)
            .unwrap_or_else(|e| panic!("{}: {e}", case.full_name()));
        operators.push(case.op.name());
    }
    operators.dedup();
    assert!(operators.len() >= 3, "{operators:?}");
}
