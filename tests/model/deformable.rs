//! The panoptic R101 with deformable convolutions against the official code, on every instruction set.
//!
//! Where a sample lies carries the rounding of the features that its offset was computed of, so that logits are
//! noisier than in other models: PyTorch's own float32 logits are up to 1e-4 from its float64 ones where masks
//! are first thresholded, and later more. Some of them are nearer 0 than that (`gather_margin` in `meta.json`);
//! on which side they fall depends on the order of sums, and all that follows depends on it. So the thresholds
//! are given PyTorch's masks, and ours must differ from them in sign by such logits alone; all else is ours,
//! from the photo to the panoptic map.

use crate::goldens::compare_panoptic;
use knet::checkpoint::seeded;
use knet::cpu::Weights;
use knet::graph::ValueId;
use knet::graph::passes::optimize;
use knet::image::HeadOutput;
use knet::image::panoptic::{PanopticConfig, PanopticPostprocessor, PanopticResult};
use knet::image::preprocess::{Geometry, PreprocessConfig, Preprocessor};
use knet::isa::Isa;
use knet::model::{Config, IMAGE, Network, SIZE_DIVISOR, TapLayout, TapMode, build};
use knet::ops::case::relative_l2;
use knet::tensor::Tensor;
use std::collections::HashMap;
use testkit::model_golden::Golden;
use testkit::parts::{cut, value_called};
use testkit::run::Machine;

const MODEL: &str = "knet_s3_r101_dcn_panoptic";

/// Relative L2 allowed for a tap before the first threshold, and behind it. PyTorch's float32 is up to 5.5e-6
/// from its float64 before it (features), 6.7e-6 behind it (mask logits of the last stage); two independent
/// float32 evaluations differ by up to the sum.
const TOLERANCE: [f64; 2] = [1e-5, 1.4e-5];

/// Masks that are thresholded, in order: the proposals' before stuff joins them, then what each stage gets.
const THINGS: &str = "rpn_head.mask_preds";
const GATES: [&str; 3] = ["rpn.mask_preds", "s0.mask_preds", "s1.mask_preds"];

/// The network with the values that are known by the names of their taps, in the graph's layout.
struct Run {
    golden: Golden,
    network: Network,
    weights: Weights,
    isa: Isa,
    values: HashMap<String, Tensor>,
}

impl Run {
    fn new(golden: Golden, isa: Isa) -> Run {
        let config = Config::named(MODEL).unwrap();
        let photo = golden.image();
        let mut preprocessor = Preprocessor::new(PreprocessConfig {
            size: None,
            mean: config.input.normalization.mean,
            std: config.input.normalization.std,
            divisor: SIZE_DIVISOR,
        })
        .unwrap();
        let geometry = preprocessor.geometry(photo.height() as usize, photo.width() as usize);
        let mut pixels = vec![0.0; geometry.input_len()];
        preprocessor.run(&photo, &mut pixels).unwrap();
        let (height, width) = geometry.padded;
        let network = build(&config, 1, [height, width], TapMode::All).unwrap();
        let weights = Weights::new(Box::new(|param| seeded::tensor(&param.key, &param.upstream_shape, 0)));
        let values = HashMap::from([(IMAGE.into(), Tensor::new([1, height, width, 3], pixels))]);
        Run { golden, network, weights, isa, values }
    }

    fn value(&self, name: &str) -> ValueId {
        let graph = &self.network.graph;
        if name == IMAGE {
            return graph.inputs().next().unwrap().1;
        }
        let tap = self.network.taps.iter().find(|tap| tap.name == name);
        tap.map_or_else(|| value_called(graph, name), |tap| tap.value)
    }

    /// Computes what lies between known values and these taps, compares it and keeps it.
    fn compute(&mut self, inputs: &[&str], outputs: &[String], tolerance: f64) {
        let named = |name: &str| (name.to_string(), self.value(name));
        let inputs: Vec<_> = inputs.iter().map(|name| named(name)).collect();
        let results: Vec<_> = outputs.iter().map(|name| named(name)).collect();
        let graph = optimize(cut(&self.network.graph, &inputs, &results)).unwrap();
        let operands: Vec<Tensor> = inputs.iter().map(|(name, _)| self.values[name].clone()).collect();
        let found = Machine::new(&graph, &self.weights, self.isa, 2).unwrap().run(&operands);
        for (name, found) in outputs.iter().zip(found) {
            let tensor = Tensor::new(found.ty.shape, found.bits.iter().map(|&v| f32::from_bits(v)).collect());
            let tap = self.network.taps.iter().find(|tap| tap.name == *name).unwrap();
            let upstream = match tap.layout {
                TapLayout::Features => tensor.clone().permute(&[0, 3, 1, 2]),
                _ => tensor.clone(),
            };
            let wanted: Vec<f64> = self.golden.values(name).into_iter().map(f64::from).collect();
            let error = relative_l2(&self.golden.sample(name, upstream.data()), &wanted);
            println!("{MODEL} {} {} {name:<22} {error:.2e}", self.golden.case, self.isa);
            assert!(error <= tolerance, "{} {} {name}: relative L2 {error:.2e}", self.golden.case, self.isa);
            self.values.insert(name.clone(), tensor);
        }
    }

    /// Compares the signs of masks, and takes PyTorch's masks from here on. Where signs differ, PyTorch's logit
    /// is nearer 0 than its float32 is from its float64 somewhere.
    fn force(&mut self, gate: &str) {
        let wanted = self.golden.values(gate);
        let noise = self.golden.meta["fp32_vs_fp64"][gate]["max_abs"].as_f64().unwrap();
        let ours = &self.values[gate];
        for (at, (&ours, &wanted)) in ours.data().iter().zip(&wanted).enumerate() {
            if (ours > 0.0) != (wanted > 0.0) {
                println!(
                    "{MODEL} {} {} {gate} [{at}] is {ours:e}, {wanted:e} in PyTorch",
                    self.golden.case, self.isa
                );
                assert!(f64::from(wanted.abs()) < noise, "{gate} [{at}] is {ours:e}, {wanted:e} in PyTorch");
            }
        }
        let shape = ours.shape();
        assert_eq!(wanted.len(), shape.len(), "{gate} is stored in full");
        self.values.insert(gate.into(), Tensor::new(shape, wanted));
    }
}

fn check(case: &'static str, isa: Isa) {
    let Some(golden) = Golden::find(MODEL, case) else { return };
    let mut run = Run::new(golden, isa);
    let names: Vec<String> = run.network.taps.iter().map(|tap| tap.name.clone()).collect();
    let before = |name: &&String| !name.starts_with('s') && *name != "rpn.proposal_feats";
    let taps: Vec<String> = names.iter().filter(before).cloned().collect();
    run.compute(&[IMAGE], &taps, TOLERANCE[0]);
    run.force(GATES[0]);
    let all = &run.values[GATES[0]];
    let [proposals, height, width] = [100, all.shape()[2], all.shape()[3]];
    let things = all.data()[..proposals * height * width].to_vec();
    run.values.insert(THINGS.into(), Tensor::new([1, proposals, height, width], things));
    let mut kernels = "rpn.proposal_feats".to_string();
    run.compute(&["rpn.x_feats", THINGS], std::slice::from_ref(&kernels), TOLERANCE[1]);
    for (stage, gate) in GATES.into_iter().enumerate() {
        if stage > 0 {
            run.force(gate);
        }
        let of_stage = |name: &&String| name.starts_with(&format!("s{stage}."));
        let taps: Vec<String> = names.iter().filter(of_stage).cloned().collect();
        run.compute(&["rpn.x_feats", &kernels, gate], &taps, TOLERANCE[1]);
        kernels = format!("s{stage}.obj_feat_out");
    }
    assert_eq!(run.golden.tensors.names().filter(|n| !n.starts_with("final.")).count(), names.len());

    let side = |entry: &str| {
        let side = |axis: usize| run.golden.meta[entry][axis].as_u64().unwrap() as usize;
        (side(0), side(1))
    };
    let geometry = Geometry {
        original: side("ori_shape"),
        resized: side("img_shape"),
        padded: side("batch_input_shape"),
    };
    let [scores, masks] = ["s2.cls_score", "s2.mask_preds"].map(|name| &run.values[name]);
    let head = HeadOutput {
        objects: scores.shape()[1],
        classes: scores.shape()[2],
        class_logits: scores.data(),
        mask_size: (masks.shape()[2], masks.shape()[3]),
        mask_logits: masks.data(),
    };
    let mut panoptic = PanopticResult::default();
    PanopticPostprocessor::new(PanopticConfig::default()).run(&head, &geometry, &mut panoptic).unwrap();
    compare_panoptic(&run.golden, &panoptic, || masks.clone());
}

#[test]
fn case_a() {
    Isa::available().into_iter().for_each(|isa| check("a", isa));
}

#[test]
fn case_b() {
    Isa::available().into_iter().for_each(|isa| check("b", isa));
}
