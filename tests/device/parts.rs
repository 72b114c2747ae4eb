//! Parts of a network on the CUDA back end, between values of the official code's run
//! ([`testkit::bench`]).
//!
//! How far off a part may be in 16 bits follows from its length: see [`variances`].

use knet::cuda::gpu::{Precision, Target};
use knet::cuda::{self, Executor, Runtime, stored};
use knet::engine::source::{self, WeightSource};
use knet::graph::{Graph, Source, ValueId};
use knet::ops::Op;
use knet::tensor::{DType, Tensor};
use std::collections::HashMap;
use testkit::bench::{self, F32_TOLERANCE};
use testkit::model_golden::Golden;
use testkit::parts::Part;

/// Least intersection over union of masks in a precision: f16's is asked for; bf16 rounds 8 times as
/// coarsely, and so moves 8 times as many pixels of the outlines at the most.
pub fn least_iou(precision: Precision) -> f64 {
    match precision {
        Precision::Bf16 => 0.96,
        _ => 0.995,
    }
}

/// Square of the relative error allowed to each value of a part, from the rounding on the longest way to it.
///
/// Rounding to a type of unit roundoff u (2^-11 for f16, 2^-8 for bf16) makes an error of at most u, and of u
/// / 2.4 in the root mean square (uniform within an ulp, mantissas log-uniform). Errors of different layers
/// are independent, so that squares add: u^2 for each value that is stored in 16 bits, u^2 for a filter or
/// mask kernel that is, and twice 2^-22 for a product of rows of objects, both of whose factors are TF32.
/// Accumulation is in f32 throughout.
///
/// This takes each layer to hand on the relative error of its input as it is. In truth norms and sums of
/// opposite signs amplify it and averages damp it, within the factor 2.4 between u and what rounding makes of
/// it: results are 0.1 to 0.6 of this off.
fn variances(graph: &Graph, target: Target) -> HashMap<ValueId, f64> {
    let tf32 = 2f64.powi(-22);
    let square = |dtype| match dtype {
        DType::F16 => 2f64.powi(-22),
        DType::BF16 => 2f64.powi(-16),
        _ => 0.0,
    };
    let storage = square(target.precision.storage());
    let type_of = |id: ValueId| stored(target)(graph.value(id).ty).dtype;
    let mut variances = HashMap::new();
    for node in graph.nodes() {
        let of_operand = |&id: &ValueId| match graph.value(id).source {
            Source::Input => Some(square(type_of(id))),
            _ => variances.get(&id).copied(),
        };
        let variance = node.inputs.iter().filter_map(of_operand).reduce(f64::max);
        // What depends on parameters alone is computed once, in f64.
        let Some(variance) = variance else { continue };
        let factors = match node.op {
            Op::Conv2d(_) | Op::MaskConv(_) => storage,
            // Samples or probabilities, the other factor, are rounded on the way too.
            Op::DeformConv2d(_) => 2.0 * storage,
            Op::WindowAttention(_) => storage,
            Op::Linear(_) | Op::Attention(_) if target.precision != Precision::F32 => 2.0 * tf32,
            _ => 0.0,
        };
        variances.extend(node.outputs.iter().map(|&id| (id, variance + factors + square(type_of(id)))));
    }
    variances
}

/// A network with what precedes and follows each of its parts, and the device.
pub struct Bench {
    pub bench: bench::Bench,
    runtime: Runtime,
}

impl Bench {
    pub fn new(golden: Golden, precision: Precision, ordinal: usize) -> knet::Result<Bench> {
        let source::Opened { load, .. } = source::open(&WeightSource::Seeded(0), Some(golden.model))?;
        let runtime = Runtime::new(cuda::Device::open(ordinal)?, precision, load)?;
        Ok(Bench { bench: bench::Bench::new(golden)?, runtime })
    }

    /// Runs a part and gives a line for each result that is further off than it may be.
    pub fn check(&self, part: &Part) -> knet::Result<Vec<String>> {
        let (graph, operands) = self.bench.part(part)?;
        let target = self.runtime.target();
        let variances = variances(&graph, target);
        let mut executor = Executor::with_floats(cuda::plan(&graph, target)?, &self.runtime)?;
        for (index, operand) in operands.iter().enumerate() {
            executor.input_mut(index).copy_from_slice(operand.data());
        }
        executor.run()?;
        let found = (0..graph.outputs().len())
            .map(|index| Tensor::new(executor.output_type(index).shape, executor.output(index).to_vec()));
        let mut faults = Vec::new();
        for (found, (_, id)) in
            self.bench.compare(part, &graph, &operands, found)?.iter().zip(graph.outputs())
        {
            let bound = match target.precision {
                // Two float32 evaluations differ by up to twice what PyTorch's is from its float64, where the
                // golden says that.
                Precision::F32 => F32_TOLERANCE.max(2.0 * found.noise.unwrap_or_default()),
                _ => variances[id].sqrt(),
            };
            let mut line = format!("{} {found} of {bound:.2e}", target.precision.name());
            let mut good = found.error <= bound;
            if let Some(iou) = found.mask_iou {
                line += &format!(", mask IoU {iou:.5}");
                good &= iou >= least_iou(target.precision);
            }
            println!("{line}");
            if !good {
                faults.push(line);
            }
        }
        Ok(faults)
    }
}
