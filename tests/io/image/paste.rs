//! Masks pasted into boxes against the official PyTorch code, given its boxes and probabilities.

use knet::image::instance::{Detections, InstanceResult, Paster};
use knet::image::preprocess::Geometry;
use serde_json::Value;

use super::goldens::{Goldens, own};
use testkit::shared::reference;

/// Pixels of all masks that differ; `wanted` gives bits by their place, mask after mask.
fn differing(found: &Detections, geometry: &Geometry, wanted: impl Fn(usize) -> bool) -> usize {
    let (mut paster, mut result) = (Paster::default(), InstanceResult::default());
    paster.run(found, geometry, 0.0, &mut result).unwrap();
    assert_eq!(result.instances().len(), found.scores.len());
    let (height, width) = geometry.original;
    let mut different = 0;
    for (index, instance) in result.instances().iter().enumerate() {
        let mask = result.mask(instance);
        let of = |at: usize| mask.get(at / width, at % width) != wanted(index * height * width + at);
        different += (0..height * width).filter(|&at| of(at)).count();
        assert_eq!((instance.area, instance.bbox), (mask.area(), mask.bbox()));
    }
    // What an earlier photo left shows in no later one.
    let again = result.clone();
    paster.run(found, geometry, 0.0, &mut result).unwrap();
    assert_eq!(again, result, "a second call gives the same result");
    different
}

#[test]
fn masks_are_pasted_as_upstream() {
    let goldens = Goldens::open(own("unit/ops.safetensors"));
    let ((_, boxes), (_, probabilities)) = (goldens.f32("paste.boxes"), goldens.f32("paste.masks"));
    let (shape, wanted) = goldens.u8("paste.bool_48x72");
    let found = Detections {
        boxes: &boxes,
        scores: &[0.5; 3],
        labels: &[0; 3],
        mask_size: (28, 28),
        probabilities: &probabilities,
    };
    let size = (shape[1], shape[2]);
    let geometry = Geometry { original: size, resized: size, padded: size };
    assert_eq!(differing(&found, &geometry, |at| wanted[at] != 0), 0);
}

#[test]
fn detections_of_whole_models_are_pasted_as_upstream() {
    for model in ["mask_rcnn_r50_fpn", "cascade_mask_rcnn_r50_fpn"] {
        let Some(meta) = reference(&format!("masks of {model}"), &format!("{model}/meta.json")) else {
            return;
        };
        let values: Value = serde_json::from_slice(&std::fs::read(&meta).unwrap()).unwrap();
        for (case, file) in [("a", "golden.safetensors"), ("b", "golden_b.safetensors")] {
            let goldens = Goldens::open(meta.with_file_name(file));
            let pair = |key: &str, first: usize| {
                let side = |i: usize| values["cases"][case][key][first + i].as_u64().expect(key) as usize;
                (side(0), side(1))
            };
            let geometry = Geometry {
                original: pair("ori_shape", 0),
                resized: pair("img_shape", 0),
                padded: pair("input_shape", 2),
            };
            let ((_, dets), (_, labels)) = (goldens.f32("final.dets"), goldens.i32("final.det_labels"));
            let (_, probabilities) = goldens.f32("final.mask_prob28");
            let (dets, _) = dets.as_chunks::<5>();
            let boxes: Vec<f32> = dets.iter().flat_map(|[l, t, r, b, _]| [*l, *t, *r, *b]).collect();
            let scores: Vec<f32> = dets.iter().map(|[.., score]| *score).collect();
            let mask_size = (28, 28);
            let found = Detections {
                boxes: &boxes,
                scores: &scores,
                labels: &labels,
                mask_size,
                probabilities: &probabilities,
            };
            let (_, packed) = goldens.u8("final.masks_packed");
            let different = differing(&found, &geometry, |at| packed[at / 8] & (0x80 >> (at % 8)) != 0);
            println!("{model} case {case}: {different} mask bits differ");
            assert!(different <= 5, "{model} case {case}: {different} mask bits differ");
        }
    }
}
