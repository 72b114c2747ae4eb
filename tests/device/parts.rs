//! Parts of a network on the CUDA back end, between values of the official code's run, so that neither rounding
//! errors nor K-Net's hard threshold (a logit within rounding of 0 gives or takes a whole pixel) add up from
//! part to part. Inputs are the goldens where they are stored in full, else the f32 values of our CPU back
//! end, which `tests/model` compares with the same goldens; results are compared with the goldens always.
//!
//! How far off a part may be in 16 bits follows from its length: see [`variances`]. `networks.rs` says which
//! parts there are.

use knet::Engine;
use knet::cpu::{Arithmetic, Weights};
use knet::cuda::gpu::{Precision, Target};
use knet::cuda::{self, Executor, Runtime, stored};
use knet::engine;
use knet::engine::source::{self, WeightSource};
use knet::graph::passes::optimize;
use knet::graph::{Graph, Source, ValueId};
use knet::image::preprocess::{PreprocessConfig, Preprocessor};
use knet::isa::Isa;
use knet::model::{Config, IMAGE, Network, TapLayout, TapMode, build};
use knet::ops::Op;
use knet::ops::case::relative_l2;
use knet::tensor::{DType, Tensor};
use std::cell::RefCell;
use std::collections::HashMap;
use testkit::model_golden::Golden;
use testkit::parts::{cut, value_called};
use testkit::run::Machine;

/// Relative L2 allowed to a part in f32, the tolerance of taps of whole models (`tests/model/goldens.rs`):
/// goldens and CPU have float32 errors of their own.
const F32_TOLERANCE: f64 = 1e-5;

/// Least intersection over union of masks in a precision: f16's is asked for; bf16 rounds 8 times as
/// coarsely, and so moves 8 times as many pixels of the outlines at the most.
pub fn least_iou(precision: Precision) -> f64 {
    match precision {
        Precision::Bf16 => 0.96,
        _ => 0.995,
    }
}

/// A part of the network by the names of its taps, or of values of the graph that are none.
#[derive(Clone)]
pub struct Part {
    pub name: String,
    pub inputs: Vec<String>,
    pub outputs: Vec<String>,
}

impl Part {
    pub fn new(name: impl Into<String>, inputs: &[&str], outputs: &[&str]) -> Part {
        let owned = |names: &[&str]| names.iter().map(|name| name.to_string()).collect();
        Part { name: name.into(), inputs: owned(inputs), outputs: owned(outputs) }
    }
}

/// The masks that pool the first object features: those of the proposals, without the stuff maps of panoptic
/// models.
pub const PROPOSAL_MASKS: &str = "rpn_head.mask_preds";

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

/// A network with what precedes and follows each of its parts.
pub struct Bench {
    golden: Golden,
    pub config: Config,
    network: Network,
    /// Every tap as the CPU computes it in f32, in upstream's layout.
    taps: HashMap<String, Tensor>,
    /// Rows of objects and masks as the CPU computes them in f32 of what a stage is given. Those of its whole run
    /// may stem from a mask with a pixel more or less than the golden's.
    rows: RefCell<HashMap<String, Tensor>>,
    image: Tensor,
    runtime: Runtime,
}

impl Bench {
    pub fn new(golden: Golden, precision: Precision, ordinal: usize) -> knet::Result<Bench> {
        let (config, load) = source::open(&WeightSource::Seeded(0), Some(golden.model))?;
        let photo = golden.image();
        // As the goldens' own comparison computes: a mask pixel that rounding puts on the other side of 0 would
        // move a whole stage.
        let cpu = Engine::builder().model(golden.model).device(engine::Device::Cpu).size(None);
        let mut cpu = cpu.arithmetic(Arithmetic::Exact).build()?;
        let taps = cpu.session_mut().taps(&photo)?.into_iter().collect();
        let mut preprocessor = Preprocessor::new(PreprocessConfig {
            size: None,
            mean: config.input.normalization.mean,
            std: config.input.normalization.std,
            divisor: config.size_divisor(),
        })?;
        let geometry = preprocessor.geometry(photo.height() as usize, photo.width() as usize);
        let mut pixels = vec![0.0; geometry.input_len()];
        preprocessor.run(&photo, &mut pixels)?;
        let (height, width) = geometry.padded;
        Ok(Bench {
            network: build(&config, 1, [height, width], TapMode::All)?,
            image: Tensor::new([1, height, width, 3], pixels),
            runtime: Runtime::new(cuda::Device::open(ordinal)?, precision, load)?,
            golden,
            config,
            taps,
            rows: RefCell::default(),
        })
    }

    /// A value of the network by the name of its tap, and the tap's layout upstream.
    fn value(&self, name: &str) -> (ValueId, TapLayout) {
        let tap = self.network.taps.iter().find(|tap| tap.name == name);
        tap.map_or_else(
            || (value_called(&self.network.graph, name), TapLayout::Same),
            |tap| (tap.value, tap.layout),
        )
    }

    /// What the official code has for a value, as the network lays it out.
    fn known(&self, name: &str, shape: &[usize], layout: TapLayout) -> Vec<f32> {
        if name == IMAGE {
            return self.image.data().to_vec();
        }
        if name == PROPOSAL_MASKS {
            let mut masks = self.known("rpn.mask_preds", shape, layout);
            masks.truncate(shape.iter().product());
            return masks;
        }
        let full = self.golden.meta["tensors"][name]["stored"] == "full";
        let tensor = match self.taps.get(name) {
            Some(_) if full => self.golden.tensors.load_f32(name).unwrap(),
            Some(tap) => self.rows.borrow().get(name).unwrap_or(tap).clone(),
            None => return self.on_cpu(name),
        };
        match layout {
            TapLayout::Features => tensor.permute(&[0, 2, 3, 1]).into_data(),
            _ => tensor.into_data(),
        }
    }

    /// What the CPU has in f32 for a value that is no tap.
    fn on_cpu(&self, name: &str) -> Vec<f32> {
        let ends = [IMAGE, name].map(|name| (name.to_string(), self.end(name)));
        let graph = optimize(cut(&self.network.graph, &ends[..1], &ends[1..])).unwrap();
        let (_, load) = source::open(&WeightSource::Seeded(0), Some(self.golden.model)).unwrap();
        let mut cpu = Machine::new(&graph, &Weights::new(load), Isa::detect(), 2).unwrap();
        cpu.run(std::slice::from_ref(&self.image))[0].bits.iter().map(|&bits| f32::from_bits(bits)).collect()
    }

    /// Runs a part and gives a line for each result that is further off than it may be.
    pub fn check(&self, part: &Part) -> knet::Result<Vec<String>> {
        let graph = &self.network.graph;
        let ends = |names: &[String]| -> Vec<(String, ValueId)> {
            names.iter().map(|name| (name.clone(), self.end(name))).collect()
        };
        let (inputs, outputs) = (ends(&part.inputs), ends(&part.outputs));
        let graph = optimize(cut(graph, &inputs, &outputs))?;
        let target = self.runtime.target();
        let variances = variances(&graph, target);
        let mut executor = Executor::with_floats(cuda::plan(&graph, target)?, &self.runtime)?;
        let mut operands = Vec::new();
        for (index, (name, id)) in inputs.iter().enumerate() {
            let layout = if name == IMAGE { TapLayout::Same } else { self.value(name).1 };
            let shape = self.network.graph.value(*id).ty.shape;
            let values = self.known(name, shape.dims(), layout);
            executor.input_mut(index).copy_from_slice(&values);
            operands.push(Tensor::new(shape, values));
        }
        executor.run()?;
        if part.outputs.iter().any(|name| self.value(name).1 == TapLayout::Objects) {
            self.keep_rows(&graph, &operands)?;
        }
        let mut faults = Vec::new();
        for (index, (name, id)) in graph.outputs().iter().enumerate() {
            let tensor = Tensor::new(executor.output_type(index).shape, executor.output(index).to_vec());
            let (found, wanted) = (self.upstream(name, tensor), self.golden.values(name));
            let wanted: Vec<f64> = wanted.into_iter().map(f64::from).collect();
            let sample = self.golden.sample(name, &found);
            let error = relative_l2(&sample, &wanted);
            let bound = match target.precision {
                // Two float32 evaluations differ by up to twice what PyTorch's is from its float64, where the
                // golden says that.
                Precision::F32 => {
                    let noise = self.golden.meta["fp32_vs_fp64"][name]["rel_l2"].as_f64();
                    F32_TOLERANCE.max(2.0 * noise.unwrap_or_default())
                }
                _ => variances[id].sqrt(),
            };
            let mut line = format!(
                "{} {} {} {name:<22} {error:.2e} of {bound:.2e}",
                self.golden.model,
                self.golden.case,
                target.precision.name()
            );
            let mut good = error <= bound;
            if name.ends_with("mask_preds") {
                let rows = self.rows.borrow();
                let iou = iou_of_signs(&found, rows.get(name).unwrap_or(&self.taps[name]).data());
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

    /// Computes a part on the CPU, for what the next one is given.
    fn keep_rows(&self, graph: &Graph, operands: &[Tensor]) -> knet::Result<()> {
        let (_, load) = source::open(&WeightSource::Seeded(0), Some(self.golden.model))?;
        let found = Machine::new(graph, &Weights::new(load), Isa::detect(), 2)?.run(operands);
        for ((name, _), found) in graph.outputs().iter().zip(found) {
            if matches!(self.value(name).1, TapLayout::Objects | TapLayout::Same) {
                let values = found.bits.iter().map(|&bits| f32::from_bits(bits)).collect();
                self.rows.borrow_mut().insert(name.clone(), Tensor::new(found.ty.shape, values));
            }
        }
        Ok(())
    }

    fn end(&self, name: &str) -> ValueId {
        if name != IMAGE {
            return self.value(name).0;
        }
        let operands = self.network.graph.nodes().iter().flat_map(|node| &node.inputs);
        let is_input = |id: &&ValueId| self.network.graph.value(**id).source == Source::Input;
        *operands.into_iter().find(is_input).expect("a network has an input")
    }

    fn upstream(&self, name: &str, tensor: Tensor) -> Vec<f32> {
        match self.value(name).1 {
            TapLayout::Features => tensor.permute(&[0, 3, 1, 2]).into_data(),
            _ => tensor.into_data(),
        }
    }
}

/// Intersection over union of the masks of two sets of logits.
fn iou_of_signs(a: &[f32], b: &[f32]) -> f64 {
    let count = |of: fn(bool, bool) -> bool| a.iter().zip(b).filter(|&(&a, &b)| of(a > 0.0, b > 0.0)).count();
    count(|a, b| a & b) as f64 / count(|a, b| a | b) as f64
}
