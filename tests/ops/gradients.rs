//! Every `backward` against finite differences, in double precision, over the operator's own cases: as
//! PyTorch's `gradcheck` does it (eps 1e-6, atol 1e-5, rtol 1e-3). Walks the registry: a new operator needs
//! no line here.
//!
//! The function checked is `L = sum over results of <result, weight>` with fixed random weights. Large cases
//! are checked at a sample of their elements, and cases whose reference takes seconds are left to their
//! smaller siblings.

use knet::graph::autodiff::gradients;
use knet::graph::{Builder, Graph};
use knet::ops::case::{Case, Filling};
use knet::ops::{Gradient, ValueType, all_cases};
use knet::tensor::{DType, Tensor};
use libtest_mimic::{Failed, Trial};
use testkit::run;

const EPS: f64 = 1e-6;
const ATOL: f64 = 1e-5;
const RTOL: f64 = 1e-3;

/// Elements checked of every operand, at most.
const SAMPLES: usize = 48;
/// Operations spent on a case, in all its evaluations by reference.
const BUDGET: u64 = 100_000_000;
/// A case of more operations has smaller siblings and is left out.
const TOO_LARGE: u64 = 30_000_000;

/// A case with its backward graph. Graph inputs: the operands, then a weight for each float result.
struct Check {
    case: Case,
    graph: Graph,
    inputs: Vec<Tensor>,
    weights: Vec<Tensor>,
    /// Result of the graph that is the gradient of each operand; `None` where it is zero by definition.
    grads: Vec<Option<usize>>,
    /// What [`Gradient`] leaves out.
    constants: &'static [usize],
    detached: &'static [usize],
}

impl Check {
    /// `None` if the operator has no gradient and need not have one.
    fn new(case: Case) -> Result<Option<Check>, String> {
        let mut b = Builder::new();
        let operand = |(i, ty): (usize, &_)| b.input(&format!("operand{i}"), *ty);
        let ids: Vec<_> = case.inputs.iter().enumerate().map(operand).collect();
        let results = b.nodes("result", case.op.clone(), &ids).expect("a case is well formed");
        let (constants, detached, none): (_, &[usize], _) = match case.op.gradient() {
            Gradient::None(_) => (&[][..], &[], true),
            Gradient::Of { constants, detached } => (constants, detached, false),
        };
        let seeded =
            |&(i, id): &(usize, _)| b.graph().value(id).ty.dtype == DType::F32 && !detached.contains(&i);
        let floats: Vec<_> = results.iter().copied().enumerate().filter(seeded).map(|(_, id)| id).collect();
        let mut weights = Vec::new();
        let mut seeds = Vec::new();
        for (i, &result) in floats.iter().enumerate() {
            let ty = b.graph().value(result).ty;
            seeds.push((result, b.input(&format!("weight{i}"), ty)));
            let mut weight = case.clone();
            weight.inputs = vec![ty];
            weight.fills = vec![knet::ops::case::Filling::Uniform(-1.0, 1.0)];
            weights.extend(weight.make_inputs(90 + i as u64));
        }
        let found = match gradients(&mut b, &seeds, &ids) {
            Ok(found) => found,
            Err(_) if none => return Ok(None),
            Err(error) => return Err(error.to_string()),
        };
        if ids.is_empty() {
            return Ok(None);
        }
        if none {
            return Err(format!(
                "{} has a gradient, and its `GRADIENT` says that it has none",
                case.op.name()
            ));
        }
        let mut outputs = 0;
        let mut grads = Vec::new();
        for (i, grad) in found.into_iter().enumerate() {
            grads.push(grad.map(|grad| {
                b.output(&format!("grad{i}"), grad);
                outputs += 1;
                outputs - 1
            }));
        }
        let inputs = case.make_inputs(11);
        let graph = b.finish().expect("a valid graph");
        Ok(Some(Check { graph, case, inputs, weights, grads, constants, detached }))
    }

    /// Operations of a run; what moves values alone is counted by them.
    fn work(&self) -> u64 {
        self.case.flops().max(self.case.values() as u64).max(1)
    }

    fn loss(&self, inputs: &[Tensor<f64>]) -> f64 {
        let results = self.case.op.reference(&inputs.iter().collect::<Vec<_>>());
        let seeded = |&(i, ty): &(usize, ValueType)| ty.dtype == DType::F32 && !self.detached.contains(&i);
        let floats = self.case.outputs().into_iter().enumerate().filter(seeded).map(|(i, _)| &results[i]);
        let product = |(result, weight): (&Tensor<f64>, &Tensor)| -> f64 {
            result.data().iter().zip(weight.data()).map(|(&r, &w)| r * f64::from(w)).sum()
        };
        floats.zip(&self.weights).map(product).sum()
    }

    fn run(&self) -> Result<(), Failed> {
        let all: Vec<Tensor> = self.inputs.iter().chain(&self.weights).cloned().collect();
        let results = run::reference(&self.graph, &all);
        let mut inputs: Vec<Tensor<f64>> = self.inputs.iter().map(Tensor::to_f64).collect();
        let affordable = (BUDGET / (2 * self.work() * inputs.len() as u64)).max(2) as usize;
        for operand in 0..inputs.len() {
            // An operand of zeros sits on a corner on purpose, where there is no derivative.
            let corner = self.case.fills[operand] == Filling::Constant(0.0);
            let index = self.case.inputs[operand].dtype == DType::I32;
            if corner || index || self.constants.contains(&operand) {
                continue;
            }
            let len = inputs[operand].data().len();
            let samples = SAMPLES.min(affordable).min(len);
            for sample in 0..samples {
                // Spread over the tensor, with an odd offset so that all channels and rows are met.
                let at = if samples == len { sample } else { (sample * len / samples + sample * 7) % len };
                let value = inputs[operand].data()[at];
                if value + EPS == value {
                    continue; // Too large for the step to reach it.
                }
                let mut difference = 0.0;
                for sign in [1.0, -1.0] {
                    inputs[operand].data_mut()[at] = value + sign * EPS;
                    difference += sign * self.loss(&inputs);
                }
                inputs[operand].data_mut()[at] = value;
                let numeric = difference / (2.0 * EPS);
                let analytic = self.grads[operand].map_or(0.0, |index| results[index].data()[at]);
                let off = (analytic - numeric).abs();
                if off.is_nan() || off > ATOL + RTOL * numeric.abs() {
                    let what =
                        format!("operand {operand}, element {at}: {analytic} but {numeric} by differences");
                    return Err(what.into());
                }
            }
        }
        Ok(())
    }
}

/// A trial for each case that is small enough.
pub fn trials() -> Vec<Trial> {
    let mut trials = Vec::new();
    for case in all_cases() {
        let name = format!("gradients/{}", case.full_name());
        match Check::new(case) {
            Ok(Some(check)) if check.work() <= TOO_LARGE => {
                trials.push(Trial::test(name, move || check.run()));
            }
            Ok(_) => {}
            Err(reason) => trials.push(Trial::test(name, move || Err(reason.into()))),
        }
    }
    trials
}
