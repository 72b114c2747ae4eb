//! Two-stage detectors on the CPU: against the official PyTorch code (mmdet), and where there is little or
//! nothing to be found.

use crate::rcnn_golden::{check, run};
use knet::checkpoint::seeded;
use knet::cpu::{self, Arithmetic, Executor, Selection, Weights};
use knet::engine::Device;
use knet::graph::Param;
use knet::graph::passes::optimize;
use knet::image::instance::InstanceResult;
use knet::image::preprocess::{PreprocessConfig, Preprocessor};
use knet::isa::Isa;
use knet::model::{TapMode, build};
use knet::task::{AnyTask, Found, HostOutputs, Postprocess, PostprocessOptions};
use testkit::device;
use testkit::model::{photo, small_detector};
use testkit::model_golden::Golden;

/// Goldens of two-stage detectors are not in the repository. `tests/device` runs them on a GPU.
fn with_shared(model: &'static str, case: &'static str, most_others: usize, most_bits: u32) {
    if device::device() != Device::Cpu {
        return;
    }
    let Some(golden) = Golden::find(model, case) else { return };
    let found = run(&golden, |graph, load, inputs| {
        let selection = Selection { arithmetic: Arithmetic::Exact, ..Selection::new(Isa::detect(), 2) };
        let mut executor = Executor::new(cpu::plan(graph, selection)?, &Weights::new(load))?;
        for (index, values) in inputs.into_iter().enumerate() {
            executor.input_mut(index).copy_from_slice(values);
        }
        executor.run();
        let result = |(index, (name, _)): (usize, &(String, _))| {
            (name.clone(), (executor.output_type(index).shape, executor.output(index).to_vec()))
        };
        Ok(executor.plan().outputs.iter().enumerate().map(result).collect())
    });
    check(&golden, &found.unwrap(), most_others, most_bits);
}

#[test]
fn mask_rcnn_a() {
    with_shared("mask_rcnn_r50_fpn", "a", 0, 50);
}

#[test]
fn mask_rcnn_b() {
    with_shared("mask_rcnn_r50_fpn", "b", 0, 50);
}

#[test]
fn cascade_mask_rcnn_a() {
    with_shared("cascade_mask_rcnn_r50_fpn", "a", 0, 50);
}

#[test]
fn cascade_mask_rcnn_b() {
    with_shared("cascade_mask_rcnn_r50_fpn", "b", 0, 50);
}

/// A small model on a photo of these sides, whose weights are changed.
fn detect(
    stages: usize,
    (height, width): (u32, u32),
    change: impl Fn(&str, &mut [f32]) + Send + Sync + 'static,
) -> InstanceResult {
    let config = small_detector(stages);
    let load = move |param: &Param| {
        let mut tensor = seeded::tensor(&param.key, &param.upstream_shape, 0)?;
        change(&param.key, tensor.data_mut());
        Ok(tensor)
    };
    let size = PreprocessConfig { size: None, divisor: config.size_divisor(), ..PreprocessConfig::default() };
    let mut preprocessor = Preprocessor::new(size).unwrap();
    let geometry = preprocessor.geometry(height as usize, width as usize);
    let network = build(&config, 1, [geometry.padded.0, geometry.padded.1], TapMode::Off).unwrap();
    let plan = cpu::plan(&optimize(network.graph).unwrap(), Selection::new(Isa::detect(), 1)).unwrap();
    let mut executor = Executor::new(plan, &Weights::new(Box::new(load))).unwrap();
    preprocessor.run(&photo(height, width), executor.input_mut(0)).unwrap();
    executor.input_mut(1).copy_from_slice(&geometry.info());
    executor.run();
    let network: &HostOutputs<'_> = &|name| {
        let index = executor.output_index(name).unwrap();
        Ok((executor.output_type(index).shape, executor.output(index)))
    };
    let mut found = Found::default();
    let mut task = AnyTask::new(&config, &PostprocessOptions::default()).unwrap();
    task.on_host(network, &geometry, &mut found).unwrap();
    let Found::Instance(found) = found else { panic!("no instances") };
    found
}

/// Whether a parameter is of this layer.
fn is_of(key: &str, layer: &str) -> bool {
    key.rsplit_once('.').is_some_and(|(prefix, _)| prefix.ends_with(layer))
}

#[test]
fn no_proposals_are_no_detections() {
    for stages in [1, 3] {
        for layer in ["rpn_cls", "rpn_reg"] {
            let broken = detect(stages, (64, 96), move |key, values| {
                if is_of(key, layer) {
                    values.fill(f32::NAN);
                }
            });
            assert_eq!(broken.instances().len(), 0, "{layer} of {stages} stages is NaN");
        }
    }
}

#[test]
fn heads_without_numbers_are_no_panic() {
    for layer in ["fc_cls", "fc_reg", "shared_fcs.1", "conv_logits", "upsample"] {
        let broken = detect(1, (64, 96), move |key, values| {
            if is_of(key, layer) {
                values.fill(f32::NAN);
            }
        });
        if ["fc_cls", "shared_fcs.1"].contains(&layer) {
            assert_eq!(broken.instances().len(), 0, "a score that is no number is none: {layer}");
        }
        assert!(broken.instances().iter().all(|instance| instance.area <= 64 * 96));
    }
}

#[test]
fn all_detections_of_one_class_are_the_best_of_them() {
    let found = detect(1, (96, 64), |key, values| {
        if key.ends_with("fc_cls.weight") {
            values.fill(0.0);
        } else if key.ends_with("fc_cls.bias") {
            values.copy_from_slice(&[0.0, 0.0, 9.0, 0.0, 0.0, 0.0]);
        }
    });
    assert!(!found.instances().is_empty() && found.instances().len() <= 30);
    assert!(found.instances().iter().all(|instance| instance.label == 2 && instance.score > 0.9));
}

/// Anchors that stay where they are: most reach beyond the photo, and are clipped to it.
#[test]
fn boxes_lie_within_the_photo_and_a_photo_may_be_smaller_than_an_anchor() {
    for (height, width) in [(32, 32), (1, 1), (33, 7)] {
        let found = detect(3, (height, width), |key, values| {
            if is_of(key, "rpn_reg") {
                values.fill(0.0);
            }
        });
        assert!(!found.instances().is_empty(), "{height}x{width}");
        for instance in found.instances() {
            let [left, top, right, bottom] = found.detector_box(instance).unwrap();
            assert!(0.0 <= left && left <= right && right <= width as f32, "{left} to {right} of {width}");
            assert!(0.0 <= top && top <= bottom && bottom <= height as f32, "{top} to {bottom} of {height}");
        }
    }
}
