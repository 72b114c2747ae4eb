//! Parts of a network between values of the official code's run, so that neither rounding errors nor K-Net's
//! hard threshold (a logit within rounding of 0 gives or takes a whole pixel) add up from part to part. Inputs
//! are the goldens where they are stored in full, else the f32 values of our CPU back end, which `tests/model`
//! compares with the same goldens; results are compared with the goldens always.
//!
//! [`network_parts`](crate::parts::network_parts) says which parts there are. How far off one may be is for
//! the suites to say, which run it.

use crate::model_golden::Golden;
use crate::parts::{PROPOSAL_MASKS, Part, cut, value_called};
use crate::run::Machine;
use knet::Engine;
use knet::cpu::{Arithmetic, Weights};
use knet::engine;
use knet::engine::source::{self, WeightSource};
use knet::error::Result;
use knet::graph::passes::optimize;
use knet::graph::{Graph, Source, ValueId};
use knet::image::preprocess::{PreprocessConfig, Preprocessor};
use knet::isa::Isa;
use knet::model::{Config, IMAGE, Network, TapLayout, TapMode, build};
use knet::ops::Op;
use knet::ops::case::relative_l2;
use knet::tensor::Tensor;
use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt;

/// Relative L2 allowed to a part in f32, the tolerance of taps of whole models (`tests/model/goldens.rs`):
/// goldens and CPU have float32 errors of their own.
pub const F32_TOLERANCE: f64 = 1e-5;

/// A result of a part beside the golden's.
pub struct Compared {
    label: String,
    /// Relative L2.
    pub error: f64,
    /// Relative L2 of the golden against PyTorch in float64, where it was measured.
    pub noise: Option<f64>,
    /// Of mask logits: intersection over union of the masks with those in f32.
    pub mask_iou: Option<f64>,
}

impl fmt::Display for Compared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:.2e}", self.label, self.error)
    }
}

/// A network with what precedes and follows each of its parts.
pub struct Bench {
    golden: Golden,
    /// What the model is.
    pub config: Config,
    network: Network,
    /// Every tap as the CPU computes it in f32, in upstream's layout.
    taps: HashMap<String, Tensor>,
    /// Rows of objects and masks as the CPU computes them in f32 of what a stage is given. Those of its whole run
    /// may stem from a mask with a pixel more or less than the golden's.
    rows: RefCell<HashMap<String, Tensor>>,
    image: Tensor,
}

impl Bench {
    /// Runs the model on the golden's photo.
    ///
    /// # Errors
    /// As the engine's.
    pub fn new(golden: Golden) -> Result<Bench> {
        let source::Opened { config, .. } = source::open(&WeightSource::Seeded(0), Some(golden.model))?;
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

    /// Whether a value is mask logits, which the CPU stores as f32 in any precision.
    pub fn is_mask_logits(&self, name: &str) -> bool {
        let graph = &self.network.graph;
        matches!(&graph.value(self.end(name)).source,
            Source::Node { node, .. } if matches!(graph.nodes()[*node].op, Op::MaskConv(_)))
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
        let source::Opened { load, .. } =
            source::open(&WeightSource::Seeded(0), Some(self.golden.model)).unwrap();
        let mut cpu = Machine::new(&graph, &Weights::new(load), Isa::detect(), 2).unwrap();
        cpu.run(std::slice::from_ref(&self.image))[0].bits.iter().map(|&bits| f32::from_bits(bits)).collect()
    }

    /// The graph of a part, and what it is given.
    ///
    /// # Errors
    /// As the passes'.
    pub fn part(&self, part: &Part) -> Result<(Graph, Vec<Tensor>)> {
        let ends = |names: &[String]| -> Vec<(String, ValueId)> {
            names.iter().map(|name| (name.clone(), self.end(name))).collect()
        };
        let (inputs, outputs) = (ends(&part.inputs), ends(&part.outputs));
        let operand = |(name, id): &(String, ValueId)| {
            let layout = if name == IMAGE { TapLayout::Same } else { self.value(name).1 };
            let shape = self.network.graph.value(*id).ty.shape;
            Tensor::new(shape, self.known(name, shape.dims(), layout))
        };
        let operands = inputs.iter().map(operand).collect();
        Ok((optimize(cut(&self.network.graph, &inputs, &outputs))?, operands))
    }

    /// Compares a part's results, in the order of its graph's, with the golden's.
    ///
    /// # Errors
    /// As the CPU's, which computes what the next part is given.
    pub fn compare(
        &self,
        part: &Part,
        graph: &Graph,
        operands: &[Tensor],
        found: impl IntoIterator<Item = Tensor>,
    ) -> Result<Vec<Compared>> {
        if part.outputs.iter().any(|name| self.value(name).1 == TapLayout::Objects) {
            self.keep_rows(graph, operands)?;
        }
        let compare = |((name, _), tensor): (&(String, ValueId), Tensor)| {
            let (found, wanted) = (self.upstream(name, tensor), self.golden.values(name));
            let wanted: Vec<f64> = wanted.into_iter().map(f64::from).collect();
            let mask_iou = name.ends_with("mask_preds").then(|| {
                let rows = self.rows.borrow();
                iou_of_signs(&found, rows.get(name).unwrap_or(&self.taps[name]).data())
            });
            Compared {
                label: format!("{} {} {name:<22}", self.golden.model, self.golden.case),
                error: relative_l2(&self.golden.sample(name, &found), &wanted),
                noise: self.golden.meta["fp32_vs_fp64"][name]["rel_l2"].as_f64(),
                mask_iou,
            }
        };
        Ok(graph.outputs().iter().zip(found).map(compare).collect())
    }

    /// Computes a part on the CPU, for what the next one is given.
    fn keep_rows(&self, graph: &Graph, operands: &[Tensor]) -> Result<()> {
        let source::Opened { load, .. } = source::open(&WeightSource::Seeded(0), Some(self.golden.model))?;
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
