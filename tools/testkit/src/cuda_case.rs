//! Cases of operators on the CUDA back end: what the kernels see of the operands, and how far results may be
//! off.

use crate::emulate::{rounded, run_program};
use crate::run::Operands;
use knet::cuda::Plan;
use knet::cuda::gpu::Precision;
use knet::cuda::launch::{Packing, Program};
use knet::cuda::ops::{self, Rounding};
use knet::cuda::pack::{pack, unpack};
use knet::graph::{Builder, Graph, Layout};
use knet::ops::ValueType;
use knet::ops::case::{Case, relative_l2};
use knet::plan::constants::ParamLoader;
use knet::plan::{Place, Site};
use knet::tensor::{DType, Tensor};
use ptxemu::{Config, Memory, Options, Report};

/// Whether a plan for a GPU can have the case: it has kernels for the operator, or the result is a constant of
/// every plan, as there are no operands.
pub fn runs(case: &Case) -> bool {
    ops::has_kernel(&case.op) || case.inputs.is_empty()
}

/// A graph of one node. Indices are always inputs: parameters are floats.
pub fn one_node(case: &Case, operands: Operands) -> Graph {
    let mut builder = Builder::new();
    let mut ids = Vec::new();
    for (index, &ty) in case.inputs.iter().enumerate() {
        let name = format!("operand{index}");
        ids.push(if index == 0 || operands == Operands::Inputs || ty.dtype == DType::I32 {
            builder.input(&name, ty)
        } else {
            builder.param(&name, ty.shape.dims(), Layout::Plain).unwrap()
        });
    }
    for (index, id) in builder.nodes("result", case.op.clone(), &ids).unwrap().into_iter().enumerate() {
        builder.output(&format!("result{index}"), id);
    }
    builder.finish().unwrap()
}

/// The parameters of [`one_node`], of its operands.
pub fn parameters(operands: Vec<Tensor>) -> Box<ParamLoader> {
    Box::new(move |param| Ok(operands[operand(&param.key)].clone()))
}

/// Which operand of [`one_node`] an input or a parameter is.
fn operand(name: &str) -> usize {
    let index = name.strip_prefix("operand").and_then(|index| index.parse().ok());
    index.expect("a name of one_node")
}

/// The operands as the kernels see them: rounded as the arena or the packing stores them.
pub fn seen(plan: &Plan, inputs: &[Tensor]) -> Vec<Tensor> {
    let Some(step) = plan.steps.first() else { return inputs.to_vec() };
    let round = |(i, tensor): (usize, &Tensor)| match step.inputs[i].place {
        Place::Arena(_) => rounded(tensor, step.inputs[i].ty.dtype),
        Place::Const(_) => rounded(tensor, step.program.packing_of(i).dtype),
    };
    inputs.iter().enumerate().map(round).collect()
}

/// Of the operands of [`one_node`], those that the plan takes as inputs, in its order.
pub fn given(plan: &Plan, operands: &[Tensor]) -> Vec<Tensor> {
    let tensor = |(name, _): &(String, _)| operands[operand(name)].clone();
    plan.inputs.iter().map(tensor).collect()
}

/// Bound on the relative L2 error, and why.
pub fn bound(case: &Case, precision: Precision, stored: DType) -> f64 {
    // Rounding the result to f16 (11 bits) or bf16 (8 bits) to nearest: half an ulp at most, a third of that
    // in the mean. Moments are f32, but may be taken of a map that was rounded so. Tensor cores cut a running
    // sum towards zero after every 8 products, by 2^-24 of it in the mean: of a sum that grows as a random
    // walk does, all K / 8 cuts together make a bias of about 2/3 K / 8 2^-24, 2.3e-5 for K = 4608, a tenth
    // of what the rounding of the result makes.
    let rounding = ops::rounding(&case.op);
    let rounded = match rounding {
        Some(Rounding::Between | Rounding::BetweenTwice) => precision.storage(),
        _ => stored,
    };
    let of = |dtype| match dtype {
        DType::F32 | DType::I32 | DType::U8 => 0.0,
        DType::F16 => 3.5e-4,
        DType::BF16 => 2.8e-3,
    };
    // What is rounded before the product does as much, and by itself.
    let before = if rounding == Some(Rounding::Samples) { of(precision.storage()) } else { 0.0 };
    // Two roundings, of which neither knows of the other, make the root of two as much.
    let times = if rounding == Some(Rounding::BetweenTwice) { std::f64::consts::SQRT_2 } else { 1.0 };
    let storage = times * of(rounded) + before;
    // TF32 has 11 bits.
    let tf32 = match precision {
        // Three TF32 products leave out 2^-22 of each; and of the sum of each step of 8, which tensor cores
        // cut, 2^-24 in the mean.
        Precision::Tf32x3 => 5e-7,
        Precision::F16 | Precision::Bf16 if rounding == Some(Rounding::Factors) => 5e-4,
        _ => 0.0,
    };
    let exact = case.tolerance.relative_l2 == 0.0;
    if exact && stored == DType::F32 { 0.0 } else { case.tolerance.relative_l2 + storage + tf32 }
}

/// Compares the results of a case with the reference over the operands that the kernels saw.
pub fn compare(
    case: &Case,
    plan: &Plan,
    precision: Precision,
    seen: &[Tensor],
    found: &[Vec<f32>],
) -> Result<(), String> {
    let types: Vec<ValueType> = plan.outputs.iter().map(|(_, operand)| operand.ty).collect();
    compare_stored(case, &types, precision, seen, found)
}

/// As [`compare`], for results of these types in memory.
fn compare_stored(
    case: &Case,
    types: &[ValueType],
    precision: Precision,
    seen: &[Tensor],
    found: &[Vec<f32>],
) -> Result<(), String> {
    let doubles: Vec<Tensor<f64>> = seen.iter().map(Tensor::to_f64).collect();
    let wanted = case.op.reference(&doubles.iter().collect::<Vec<_>>());
    for (index, (found, wanted)) in found.iter().zip(&wanted).enumerate() {
        let found: Vec<f64> = found.iter().map(|&v| f64::from(v)).collect();
        let error = relative_l2(&found, wanted.data());
        let bound = bound(case, precision, types[index].dtype);
        if error.is_nan() || error > bound {
            return Err(format!("result {index} is off by {error:.3e} relative L2, at most {bound:.1e}"));
        }
    }
    Ok(())
}

/// Runs a program that need not be the planned one at the site of a case, without a plan, and compares its
/// results with the reference. Results lie in the memory of the operands that they may replace.
pub fn check_program(
    case: &Case,
    site: &Site<'_>,
    program: &Program,
    precision: Precision,
) -> Result<Report, String> {
    let memory = Memory::new(Options::default()).map_err(|e| e.to_string())?;
    let alloc = |bytes: usize| memory.alloc(bytes as u64, "operand").map_err(|e| e.to_string());
    let (mut addresses, mut seen) = (Vec::new(), Vec::new());
    for (i, tensor) in case.make_inputs(3).into_iter().enumerate() {
        let stored = Packing::plain(site.inputs[i].dtype);
        let packing = if site.constant[i] { program.packing_of(i) } else { stored };
        let bytes = pack(&tensor, packing);
        let address = alloc(bytes.len())?;
        memory.write(address, &bytes).map_err(|e| e.to_string())?;
        addresses.push(address);
        seen.push(rounded(&tensor, packing.dtype));
    }
    let replaces = site.op.replaces(site.inputs.len());
    let place = |(result, ty): (usize, &ValueType)| {
        let replaced = replaces.iter().find(|&&(_, by)| by == result);
        replaced.map_or_else(|| alloc(ty.bytes()), |&(operand, _)| Ok(addresses[operand]))
    };
    let results = site.outputs.iter().enumerate().map(place).collect::<Result<Vec<u64>, String>>()?;
    let config = Config { seed: 5, late_async: true, ..Config::default() };
    let report = run_program(program, &addresses, &results, &memory, &config)?;
    let read = |(ty, &address): (&ValueType, &u64)| {
        let mut bytes = vec![0; ty.bytes()];
        memory.read(address, &mut bytes).map_err(|e| e.to_string())?;
        Ok(unpack(&bytes, ty.dtype))
    };
    let found = site.outputs.iter().zip(&results).map(read).collect::<Result<Vec<_>, String>>()?;
    compare_stored(case, site.outputs, precision, &seen, &found)
        .map_err(|fault| format!("{}: {fault}", program.kernel))?;
    Ok(report)
}
