//! Runs graphs on the CPU back end and by the operators' references. Shared by the test suites that
//! compare the two.

use knet::cpu::{self, Executor, Selection, Weights};
use knet::error::Result;
use knet::graph::{Builder, Graph, Layout, Param, Source, ValueId};
use knet::isa::{Dot, Int8, Isa};
use knet::ops::binary::{Binary, BinaryKind};
use knet::ops::case::{Case, Tolerance, relative_l2};
use knet::ops::{Op, Role, ValueType};
use knet::tensor::{DType, Tensor};
use rayon::{ThreadPool, ThreadPoolBuilder};
use std::collections::HashMap;
use std::sync::OnceLock;

/// Thread counts under which every kernel must give the same bits.
pub const THREADS: [usize; 4] = [1, 2, 3, 5];

/// How the operands of a one-node graph reach it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Operands {
    /// All are inputs of the graph.
    Inputs,
    /// The first is an input, the others are parameters: filters are packed once, norms are constants.
    Params,
}

impl Operands {
    /// As in a model.
    pub fn of_model(op: &Op) -> Operands {
        if op.has_weights() { Operands::Params } else { Operands::Inputs }
    }
}

/// A result: its type, and its elements as bits (of `f32` or `i32`).
#[derive(Clone, Debug)]
pub struct Output {
    /// Shape and element type.
    pub ty: ValueType,
    /// The elements.
    pub bits: Vec<u32>,
}

/// A gradient of a parameter has another role than that of an input: no kernel knows.
impl PartialEq for Output {
    fn eq(&self, other: &Self) -> bool {
        self.ty.is_like(&other.ty) && self.bits == other.bits
    }
}

impl Output {
    /// The elements as references give them: indices as floats of the same value.
    pub fn to_f64(&self) -> Vec<f64> {
        let float = |&bits: &u32| match self.ty.dtype {
            DType::F16 | DType::BF16 | DType::U8 => unreachable!("callers see floats as f32"),
            DType::F32 => f64::from(f32::from_bits(bits)),
            DType::I32 => f64::from(bits as i32),
        };
        self.bits.iter().map(float).collect()
    }
}

fn is_input(case: &Case, operand: usize, operands: Operands) -> bool {
    operand == 0 || operands == Operands::Inputs || case.inputs[operand].dtype == DType::I32
}

/// A graph of one node and the tensors of its parameters. Indices are always inputs: parameters are floats.
pub fn one_node(case: &Case, inputs: &[Tensor], operands: Operands) -> Result<(Graph, Weights)> {
    node_between(case, inputs, operands, false)
}

/// [`one_node`], whose maps are not the graph's own inputs and results, but these times one: what a back end
/// stores as it likes.
pub fn inner_node(case: &Case, inputs: &[Tensor], operands: Operands) -> Result<(Graph, Weights)> {
    node_between(case, inputs, operands, true)
}

fn node_between(case: &Case, inputs: &[Tensor], operands: Operands, inner: bool) -> Result<(Graph, Weights)> {
    let mut builder = Builder::new();
    let mut params = HashMap::new();
    let mut ids = Vec::new();
    for (index, tensor) in inputs.iter().enumerate() {
        let name = format!("operand{index}");
        ids.push(if is_input(case, index, operands) {
            builder.input(&name, case.inputs[index])
        } else {
            params.insert(name.clone(), tensor.clone());
            builder.param(&name, tensor.shape().dims(), Layout::Plain)?
        });
    }
    if inner {
        ids.iter_mut().try_for_each(|id| times_one(&mut builder, *id).map(|product| *id = product))?;
    }
    for (index, mut id) in builder.nodes("result", case.op.clone(), &ids)?.into_iter().enumerate() {
        if inner {
            id = times_one(&mut builder, id)?;
        }
        builder.output(&format!("result{index}"), id);
    }
    let weights =
        Weights::new(Box::new(move |param| Ok(one(param).unwrap_or_else(|| params[&param.key].clone()))));
    Ok((builder.finish()?, weights))
}

/// A map times one, so that it is neither input nor result of the graph but what a back end stores as it
/// likes; the one is a parameter that [`one`] gives. Other values as they are.
pub fn times_one(builder: &mut Builder, id: ValueId) -> Result<ValueId> {
    let ty = builder.graph().value(id).ty;
    if ty.role != Role::Map || ty.shape.is_empty() {
        return Ok(id);
    }
    let ones = vec![1; ty.shape.rank()];
    let one = builder.param(&format!("one{}", ones.len()), &ones, Layout::Plain)?;
    builder.node("stored", Binary { kind: BinaryKind::Mul }, &[id, one])
}

/// The one of [`times_one`], if that is what this parameter is.
pub fn one(param: &Param) -> Option<Tensor> {
    let is_one = param.key.strip_prefix("one").is_some_and(|rank| rank.parse::<usize>().is_ok());
    is_one.then(|| Tensor::new(&param.upstream_shape[..], vec![1.0]))
}

/// Weights of a graph without parameters.
pub fn no_weights() -> Weights {
    Weights::new(Box::new(|param| panic!("no parameter `{}`", param.key)))
}

/// A planned graph with a pool of threads to run it in.
pub struct Machine {
    executor: Executor,
    pool: &'static ThreadPool,
}

impl Machine {
    /// Plans `graph` for this instruction set and number of threads.
    pub fn new(graph: &Graph, weights: &Weights, isa: Isa, threads: usize) -> Result<Self> {
        Machine::with(graph, weights, Selection::new(isa, threads))
    }

    /// Plans `graph` by this selection.
    pub fn with(graph: &Graph, weights: &Weights, selection: Selection) -> Result<Self> {
        let executor = Executor::new(cpu::plan(graph, selection)?, weights)?;
        Ok(Machine { executor, pool: pool(selection.threads) })
    }

    /// One run over these graph inputs; indices are given as floats of the same value.
    pub fn run(&mut self, inputs: &[Tensor]) -> Vec<Output> {
        for index in 0..self.executor.plan().inputs.len() {
            fill(&mut self.executor, index, &inputs[index]);
        }
        let executor = &mut self.executor;
        self.pool.install(|| executor.run());
        (0..executor.plan().outputs.len())
            .map(|index| Output {
                ty: executor.output_type(index),
                bits: executor.output(index).iter().map(|v| v.to_bits()).collect(),
            })
            .collect()
    }
}

/// Fills input `index`; indices are given as floats of the same value.
pub fn fill(executor: &mut Executor, index: usize, values: &Tensor) {
    if executor.plan().inputs[index].1.ty.dtype == DType::I32 {
        let memory = executor.input_i32_mut(index).iter_mut();
        memory.zip(values.data()).for_each(|(index, &value)| *index = value as i32);
    } else {
        executor.input_mut(index).copy_from_slice(values.data());
    }
}

/// The graph's results by the references of its nodes. Inputs are in the order of definition; the graph
/// has no parameters.
pub fn reference(graph: &Graph, inputs: &[Tensor]) -> Vec<Tensor<f64>> {
    reference_with(graph, inputs, |param| panic!("no parameter `{}`", param.key))
}

/// [`reference()`] of a graph whose parameters are those that `load` gives, in the checkpoint's layout.
pub fn reference_with(graph: &Graph, inputs: &[Tensor], load: impl Fn(&Param) -> Tensor) -> Vec<Tensor<f64>> {
    let mut inputs = inputs.iter();
    let mut values: Vec<Option<Tensor<f64>>> = graph
        .values()
        .iter()
        .map(|value| match &value.source {
            Source::Input => Some(inputs.next().expect("an input").to_f64()),
            Source::Param(param) | Source::Variable(Some(param)) => {
                Some(param.layout.apply(load(param)).to_f64())
            }
            Source::Variable(None) => Some(Tensor::zeros(value.ty.shape)),
            Source::Node { .. } => None,
        })
        .collect();
    for node in graph.nodes() {
        let operands: Vec<&Tensor<f64>> =
            node.inputs.iter().map(|id| values[id.index()].as_ref().expect("defined before use")).collect();
        let results = node.op.reference(&operands);
        for (id, result) in node.outputs.iter().zip(results) {
            values[id.index()] = Some(result);
        }
    }
    graph.outputs().iter().map(|(_, id)| values[id.index()].clone().expect("defined")).collect()
}

/// Compares results with the truth.
pub fn compare(found: &[Output], wanted: &[Tensor<f64>], bound: f64) -> Result<(), String> {
    if found.len() != wanted.len() {
        return Err(format!("{} results instead of {}", found.len(), wanted.len()));
    }
    for (index, (found, wanted)) in found.iter().zip(wanted).enumerate() {
        if found.ty.shape != wanted.shape() || found.bits.len() != wanted.data().len() {
            return Err(format!("result {index} is {}, not {}", found.ty, wanted.shape()));
        }
        let error = relative_l2(&found.to_f64(), wanted.data());
        if error.is_nan() || error > bound {
            return Err(format!("result {index} is off by {error:.3e} relative L2, at most {bound:.1e}"));
        }
    }
    Ok(())
}

/// Runs a case with these thread counts, with operands as inputs and as parameters, twice each, against
/// `wanted`; every run must give the same bits.
pub fn check_case(
    case: &Case,
    inputs: &[Tensor],
    wanted: &[Tensor<f64>],
    isa: Isa,
    threads: &[usize],
) -> Result<(), String> {
    let mut first: Option<Vec<Output>> = None;
    for operands in [Operands::Inputs, Operands::Params] {
        let (graph, weights) = one_node(case, inputs, operands).map_err(|e| e.to_string())?;
        let given = inputs.iter().enumerate().filter(|(i, _)| is_input(case, *i, operands));
        let given: Vec<Tensor> = given.map(|(_, tensor)| tensor.clone()).collect();
        for &threads in threads {
            let site = format!("{operands:?}, {threads} threads");
            let mut machine =
                Machine::new(&graph, &weights, isa, threads).map_err(|e| format!("{site}: {e}"))?;
            for run in 0..2 {
                let found = machine.run(&given);
                if let Some(first) = &first {
                    if *first != found {
                        return Err(format!("{site}, run {run}: {}", first_difference(first, &found)));
                    }
                } else {
                    compare(&found, wanted, case.tolerance.relative_l2)
                        .map_err(|e| format!("{site}: {e}"))?;
                    first = Some(found);
                }
            }
        }
    }
    Ok(())
}

/// Runs a case with these instructions for products of codes, on one thread and on two, against `wanted`.
pub fn check_case_in_int8(
    case: &Case,
    inputs: &[Tensor],
    wanted: &[Tensor<f64>],
    isa: Isa,
    int8: Int8,
) -> Result<(), String> {
    let operands = Operands::of_model(&case.op);
    let (graph, weights) = one_node(case, inputs, operands).map_err(|e| e.to_string())?;
    let given = inputs.iter().enumerate().filter(|(i, _)| is_input(case, *i, operands));
    let given: Vec<Tensor> = given.map(|(_, tensor)| tensor.clone()).collect();
    for threads in [2, 1] {
        let selection = Selection { int8, ..Selection::new(isa, threads) };
        let mut machine = Machine::with(&graph, &weights, selection).map_err(|e| e.to_string())?;
        compare(&machine.run(&given), wanted, case.tolerance.relative_l2)
            .map_err(|e| format!("{threads} threads: {e}"))?;
    }
    Ok(())
}

/// Runs a case of an inner node with maps stored as bf16, on one thread and on two, against `wanted`, of
/// inputs that bf16 holds: results are then off by what they are off in f32 and by their own rounding.
pub fn check_case_in_bf16(
    case: &Case,
    inputs: &[Tensor],
    wanted: &[Tensor<f64>],
    isa: Isa,
    dot: Dot,
) -> Result<(), String> {
    let operands = Operands::of_model(&case.op);
    let (graph, weights) = inner_node(case, inputs, operands).map_err(|e| e.to_string())?;
    let given = inputs.iter().enumerate().filter(|(i, _)| is_input(case, *i, operands));
    let given: Vec<Tensor> = given.map(|(_, tensor)| tensor.clone()).collect();
    // Half of the last of bf16's eight digits; what moves values moves those that are stored.
    let rounding = if case.tolerance == Tolerance::EXACT { 0.0 } else { 1.0 / 256.0 };
    let mut first: Option<Vec<Output>> = None;
    for threads in [2, 1] {
        let int8 = Int8::detect().unwrap_or(Int8::Portable);
        let selection = Selection { bf16: Some(dot), int8, ..Selection::new(isa, threads) };
        let mut machine = Machine::with(&graph, &weights, selection).map_err(|e| e.to_string())?;
        let found = machine.run(&given);
        compare(&found, wanted, case.tolerance.relative_l2 + rounding)?;
        if let Some(first) = first.replace(found.clone())
            && first != found
        {
            return Err(format!("{threads} threads: {}", first_difference(&first, &found)));
        }
    }
    Ok(())
}

fn first_difference(first: &[Output], found: &[Output]) -> String {
    for (index, (a, b)) in first.iter().zip(found).enumerate() {
        let (x, y) = (a.to_f64(), b.to_f64());
        if let Some(at) = (0..x.len().min(y.len())).find(|&i| a.bits[i] != b.bits[i]) {
            return format!("result {index} differs from the first run at {at}: {} and {}", x[at], y[at]);
        }
    }
    "results differ from the first run in number, shape or type".to_string()
}

/// A pool of this many threads, made once.
fn pool(threads: usize) -> &'static ThreadPool {
    static POOLS: [OnceLock<ThreadPool>; 8] = [const { OnceLock::new() }; 8];
    POOLS[threads].get_or_init(|| ThreadPoolBuilder::new().num_threads(threads).build().expect("threads"))
}
