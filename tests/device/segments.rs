//! The contract of executors ([`knet::exec`]) on a device: segments, updates, and what is refused.

use crate::beside;
use knet::cuda::gpu::Precision;
use knet::cuda::{Executor, Runtime};
use knet::graph::{Builder, Layout, Param};
use knet::isa::Isa;
use knet::ops::activation::Activation;
use knet::ops::binary::BinaryKind;
use knet::ops::{Activate, Binary, ValueType};
use knet::tensor::Tensor;
use knet::{cpu, cuda, exec};
use libtest_mimic::{Failed, Trial};

/// A graph with an update of each kind that a GPU can run, in two segments of which the second takes what the
/// host made of the first: on the GPU as on the CPU, through the contract that both keep.
fn check_segments(ordinal: usize) -> Result<(), Failed> {
    let ty = ValueType::rows([5, 24]);
    let add = Binary { kind: BinaryKind::Add };
    let mut b = Builder::new();
    let x = b.input("x", ty);
    let param = |key: &str| Param { key: key.into(), upstream_shape: vec![5, 24], layout: Layout::Plain };
    let weight = b.variable("weight", ty, Some(param("weight")))?;
    let last = b.variable("last", ty, None)?;
    let first = b.segment("first");
    let sum = b.node("sum", add, &[x, weight])?;
    let found = b.node("found", add, &[sum, last])?;
    let found = b.output("found", found);
    let second = b.segment("second");
    let late = b.input("late", ty);
    // The weight is read by what makes its new value, so that is copied; `last` is not.
    let moved = b.node("moved", add, &[weight, late])?;
    b.update(weight, moved);
    let next = b.node("next", Activate { activation: Activation::Relu }, &[late])?;
    b.update(last, next);
    let scaled = b.node("scaled", add, &[moved, sum])?;
    let scaled = b.output("scaled", scaled);
    let [x, late] = [x, late].map(|id| b.input_id(id).expect("an input"));
    let variables = [weight, last].map(|id| b.variable_id(id).expect("a variable"));
    let graph = b.finish()?;

    let start = |_: &Param| Ok(Tensor::from_fn([5, 24], |at| at.iter().sum::<usize>() as f32 / 8.0));
    let load = Box::new(|param: &Param| -> knet::Result<Tensor> { panic!("no constant `{}`", param.key) });
    let runtime = Runtime::new(cuda::Device::open(ordinal)?, Precision::F32, load)?;
    let plan = knet::cuda::plan(&graph, runtime.target())?;
    assert_eq!(plan.segments.iter().map(|segment| segment.copies.len()).collect::<Vec<_>>(), [0, 1]);
    let gpu = Executor::with_floats(plan, &runtime)?;
    let plan = cpu::plan(&graph, cpu::Selection::new(Isa::detect(), 1))?;
    let cpu = cpu::Executor::new(plan, &cpu::Weights::new(Box::new(move |param| start(param))))?;
    let mut results = Vec::new();
    for mut executor in [Box::new(gpu) as Box<dyn exec::Executor>, Box::new(cpu)] {
        executor.load(&start)?;
        let mut values = Vec::new();
        for run in 0..3 {
            let image: Vec<f32> = (0..120).map(|i| ((i * 5 + run) % 11) as f32 - 4.0).collect();
            executor.write(x, exec::Host::F32(&image))?;
            let mut steps = Vec::new();
            match run {
                1 => executor.run_timed(first, &mut |step, _| steps.push(step))?,
                _ => executor.run(first)?,
            }
            let answer: Vec<f32> = executor.read(found).floats().iter().map(|v| 0.5 * v - 1.0).collect();
            executor.write(late, exec::Host::F32(&answer))?;
            match run {
                1 => executor.run_timed(second, &mut |step, _| steps.push(step))?,
                _ => executor.run(second)?,
            }
            assert_eq!(steps, if run == 1 { vec![0, 1, 2, 3, 4] } else { vec![] });
            values
                .extend([executor.read(found).floats(), executor.read(scaled).floats()].map(<[f32]>::to_vec));
            for variable in variables {
                let mut value = vec![0.0; 120];
                executor.read_variable(variable, &mut value)?;
                values.push(value);
            }
        }
        results.push(values);
    }
    assert_eq!(results[0], results[1]);
    assert!(results[0][2] != results[0][6], "the weight moves");
    Ok(())
}

/// Trials of this file.
pub fn trials(ordinal: usize) -> Vec<Trial> {
    vec![beside("segments/updates", move || check_segments(ordinal))]
}
