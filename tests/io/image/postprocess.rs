//! Instance and panoptic results against the official PyTorch code, teacher-forced with golden network
//! outputs.

use std::ops::Range;
use std::path::PathBuf;

use knet::error::ErrorKind;
use knet::image::HeadOutput;
use knet::image::bitmask::BitMask;
use knet::image::instance::{InstanceConfig, InstancePostprocessor, InstanceResult, Ranked};
use knet::image::panoptic::{PanopticConfig, PanopticPostprocessor, PanopticResult};
use knet::image::preprocess::Geometry;
use serde_json::Value;

use super::goldens::{Goldens, own};
use testkit::shared::reference;

/// Sizes of a case, from the reference's meta.json.
fn geometry(meta: &Value, case: &str) -> Geometry {
    let pair = |key: &str| {
        let side = |i: usize| meta["cases"][case][key][i].as_u64().expect(key) as usize;
        (side(0), side(1))
    };
    Geometry { original: pair("ori_shape"), resized: pair("img_shape"), padded: pair("batch_input_shape") }
}

fn cases(model: &str) -> Vec<(&'static str, Geometry, Goldens)> {
    let Some(meta) = reference(&format!("post-processing of {model}"), &format!("{model}/meta.json")) else {
        return Vec::new();
    };
    let values: Value = serde_json::from_slice(&std::fs::read(&meta).unwrap()).unwrap();
    let open = |file: &str| -> Goldens { Goldens::open(PathBuf::from(&meta).with_file_name(file)) };
    vec![
        ("a", geometry(&values, "a"), open("golden.safetensors")),
        ("b", geometry(&values, "b"), open("golden_b.safetensors")),
    ]
}

fn usizes(values: &[i32]) -> Vec<usize> {
    values.iter().map(|&v| usize::try_from(v).unwrap()).collect()
}

fn u32s(values: &[i32]) -> Vec<u32> {
    values.iter().map(|&v| u32::try_from(v).unwrap()).collect()
}

fn assert_scores(got: &[f32], want: &[f32]) {
    assert_eq!(got.len(), want.len());
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        // Two units in the last place of a value below 1: the sigmoids are independent implementations.
        assert!((g - w).abs() <= 1.2e-7, "score {i} is {g}, not {w}");
    }
}

#[test]
fn instances_are_upstreams() {
    let mut different = 0;
    for (case, geometry, goldens) in cases("knet_s3_r50_fpn") {
        let (class_shape, class_logits) = goldens.f32("s2.cls_score");
        let (mask_shape, mask_logits) = goldens.f32("s2.mask_preds");
        let head = HeadOutput {
            objects: class_shape[1],
            classes: class_shape[2],
            class_logits: &class_logits,
            mask_size: (mask_shape[2], mask_shape[3]),
            mask_logits: &mask_logits,
        };
        let mut result = InstanceResult::default();
        let mut post = InstancePostprocessor::new(InstanceConfig::default());
        post.run(&head, &geometry, &mut result).unwrap();
        let instances = result.instances();
        let scores: Vec<f32> = instances.iter().map(|i| i.score).collect();
        assert_scores(&scores, &goldens.f32("final.scores").1);
        let labels: Vec<usize> = instances.iter().map(|i| i.label).collect();
        assert_eq!(labels, usizes(&goldens.i32("final.labels").1), "case {case}: labels");
        let indices: Vec<usize> = instances.iter().map(|i| i.mask_index).collect();
        assert_eq!(indices, usizes(&goldens.i32("final.mask_indices").1), "case {case}: mask indices");

        // Upstream packs all masks into one stream of bits.
        let (_, packed) = goldens.u8("final.masks_packed");
        let pixels = geometry.original.0 * geometry.original.1;
        let mut wrong = 0;
        for (i, instance) in instances.iter().enumerate() {
            let mask = result.mask(instance);
            assert_eq!((mask.height(), mask.width()), geometry.original);
            for p in 0..pixels {
                let at = i * pixels + p;
                let want = packed[at / 8] & (0x80 >> (at % 8)) != 0;
                wrong += usize::from(want != mask.get(p / mask.width(), p % mask.width()));
            }
            assert_eq!(instance.area, mask.area());
        }
        let areas = usizes(&goldens.i32("final.mask_area").1);
        let area_error: usize = instances.iter().zip(&areas).map(|(i, &a)| i.area.abs_diff(a)).sum();
        assert!(area_error <= wrong);
        println!("instance case {case}: {wrong} of {} mask bits differ", pixels * instances.len());
        different += wrong;

        let again = result.clone();
        post.run(&head, &geometry, &mut result).unwrap();
        assert_eq!(again, result, "a second call gives the same result");
    }
    assert!(different <= 50, "{different} mask bits differ from PyTorch");
}

#[test]
fn panoptic_maps_are_upstreams() {
    let mut different = 0;
    for (case, geometry, goldens) in cases("knet_s3_r50_fpn_panoptic") {
        let (class_shape, class_logits) = goldens.f32("s2.cls_score");
        let (mask_shape, mask_logits) = goldens.f32("s2.mask_preds");
        let head = HeadOutput {
            objects: class_shape[1],
            classes: class_shape[2],
            class_logits: &class_logits,
            mask_size: (mask_shape[2], mask_shape[3]),
            mask_logits: &mask_logits,
        };
        let mut result = PanopticResult::default();
        let mut post = PanopticPostprocessor::new(PanopticConfig::default());
        post.run(&head, &geometry, &mut result).unwrap();
        assert_eq!((result.height, result.width), geometry.original);
        let trace = &result.trace;
        assert_scores(&trace.total_scores, &goldens.f32("final.total_scores").1);
        assert_eq!(trace.total_labels, u32s(&goldens.i32("final.total_labels").1), "case {case}");
        assert_eq!(trace.sorted_inds, u32s(&goldens.i32("final.sorted_inds").1), "case {case}");
        assert_eq!(result.map, u32s(&goldens.i32("final.pan").1), "case {case}: panoptic map");
        let argmax = u32s(&goldens.i32("final.argmax_ids").1);
        let pixels = argmax.iter().zip(&trace.argmax_ids).filter(|(a, b)| a != b).count();
        let error = |got: &[u32], key: &str| -> u32 {
            got.iter().zip(u32s(&goldens.i32(key).1)).map(|(g, w)| g.abs_diff(w)).sum()
        };
        let won = error(&trace.mask_area, "final.mask_area");
        let own = error(&trace.original_area, "final.original_area");
        println!("panoptic case {case}: {pixels} arg-max pixels, {won} won and {own} mask pixels differ");
        different += pixels + own as usize;

        let again = result.clone();
        post.run(&head, &geometry, &mut result).unwrap();
        assert_eq!(again, result, "a second call gives the same result");
    }
    assert!(different <= 50, "{different} pixels differ from PyTorch");
}

/// The unit golden: stride-4 logits and class probabilities that leave seven segments, things and stuff.
fn merge_case(threads: usize) -> (PanopticResult, Goldens) {
    let goldens = Goldens::open(own("panoptic_merge/panoptic_merge.safetensors"));
    let (class_shape, probabilities) = goldens.f32("cls_prob");
    let (mask_shape, mask_logits) = goldens.f32("scaled_mask_logits");
    let head = HeadOutput {
        objects: class_shape[0],
        classes: class_shape[1],
        class_logits: &probabilities,
        mask_size: (mask_shape[1], mask_shape[2]),
        mask_logits: &mask_logits,
    };
    let geometry = Geometry { original: (204, 300), resized: (136, 200), padded: (160, 224) };
    let mut result = PanopticResult::default();
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    pool.install(|| {
        let mut post = PanopticPostprocessor::new(PanopticConfig::default());
        post.run_probabilities(&head, &geometry, &mut result).unwrap();
    });
    (result, goldens)
}

#[test]
fn merge_with_seven_segments_is_upstreams() {
    let (result, goldens) = merge_case(2);
    assert_eq!(result.trace.total_scores, goldens.f32("total_scores").1);
    assert_eq!(result.trace.total_labels, u32s(&goldens.i32("total_labels").1));
    let (shape, want) = goldens.u16("pan");
    assert_eq!(shape, [result.height, result.width]);
    let wrong = result.map.iter().zip(&want).filter(|(g, w)| **g != u32::from(**w)).count();
    assert_eq!(wrong, 0, "{wrong} pixels of the panoptic map differ");

    let want =
        [(23, 1422), (1050, 861), (2068, 1516), (3061, 2626), (4025, 797), (5110, 15843), (6083, 20159)];
    let got: Vec<(u32, usize)> = result.segments.iter().map(|s| (s.id, s.area)).collect();
    assert_eq!(got, want);
    for segment in &result.segments {
        assert_eq!(segment.is_thing, segment.category < 80);
        let pixels = result.map.iter().filter(|&&v| v == segment.id).count();
        assert_eq!(pixels, segment.area);
    }
}

#[test]
fn merge_does_not_depend_on_the_number_of_threads() {
    let one = merge_case(1).0;
    for threads in [2, 3, 7] {
        assert!(merge_case(threads).0 == one, "{threads} threads");
    }
}

/// Upstream's chain in double precision, with full-resolution floats: the definition of the result.
mod reference {
    use super::Geometry;

    type Map = (usize, usize, Vec<f64>);

    fn bilinear(map: &Map, height: usize, width: usize) -> Map {
        let taps = |input: usize, output: usize, d: usize| {
            let at = ((d as f64 + 0.5) * input as f64 / output as f64 - 0.5).max(0.0);
            let low = (at as usize).min(input - 1);
            (low, (low + 1).min(input - 1), at - low as f64)
        };
        let mut out = Vec::with_capacity(height * width);
        for y in 0..height {
            let (y0, y1, fy) = taps(map.0, height, y);
            for x in 0..width {
                let (x0, x1, fx) = taps(map.1, width, x);
                let row = |y: usize| map.2[y * map.1 + x0] * (1.0 - fx) + map.2[y * map.1 + x1] * fx;
                out.push(row(y0) * (1.0 - fy) + row(y1) * fy);
            }
        }
        (height, width, out)
    }

    pub fn probability(logits: &[f32], size: (usize, usize), geometry: &Geometry) -> Vec<f64> {
        let map = (size.0, size.1, logits.iter().map(|&v| f64::from(v)).collect());
        let mut map = bilinear(&map, geometry.padded.0 / 4, geometry.padded.1 / 4);
        map.2.iter_mut().for_each(|v| *v = 1.0 / (1.0 + (-*v).exp()));
        let padded = bilinear(&map, geometry.padded.0, geometry.padded.1);
        let (height, width) = geometry.resized;
        let crop = (0..height).flat_map(|y| padded.2[y * padded.1..][..width].to_vec()).collect();
        bilinear(&(height, width, crop), geometry.original.0, geometry.original.1).2
    }
}

/// Smooth random logits: sums of a few waves, different for each object.
fn waves(objects: usize, (height, width): (usize, usize)) -> Vec<f32> {
    let mut out = Vec::with_capacity(objects * height * width);
    for k in 0..objects {
        let (a, b, c) = (0.2 + 0.13 * (k % 7) as f32, 0.31 + 0.09 * (k % 5) as f32, k as f32);
        for y in 0..height {
            for x in 0..width {
                let (y, x) = (y as f32, x as f32);
                out.push(6.0 * (a * y + c).sin() * (b * x - c).cos() - 1.5 + (x * y * 0.05 + c).sin());
            }
        }
    }
    out
}

#[test]
fn masks_follow_the_definition_at_any_size() {
    let sizes = [
        ((64, 96), (61, 90), (61, 90)),
        ((64, 96), (64, 96), (17, 33)),
        ((32, 64), (20, 50), (301, 77)),
        ((32, 32), (1, 32), (1, 900)),
        ((32, 32), (1, 1), (1, 1)),
        ((96, 32), (96, 3), (500, 7)),
    ];
    let (objects, classes) = (12, 3);
    let class_logits: Vec<f32> = (0..objects * classes).map(|i| (i as f32 * 1.7).sin() * 3.0).collect();
    for (padded, resized, original) in sizes {
        let geometry = Geometry { original, resized, padded };
        let mask_size = (padded.0 / 8, padded.1 / 8);
        let mask_logits = waves(objects, mask_size);
        let head = HeadOutput {
            objects,
            classes,
            class_logits: &class_logits,
            mask_size,
            mask_logits: &mask_logits,
        };
        let mut result = InstanceResult::default();
        let mut post = InstancePostprocessor::new(InstanceConfig {
            max_per_image: 40,
            min_score: 0.2,
            ..InstanceConfig::default()
        });
        post.run(&head, &geometry, &mut result).unwrap();
        assert!(!result.instances().is_empty());
        for instance in result.instances() {
            assert!(instance.score >= 0.2);
            let pixels = mask_size.0 * mask_size.1;
            let logits = &mask_logits[instance.mask_index * pixels..][..pixels];
            let want = reference::probability(logits, mask_size, &geometry);
            let mask = result.mask(instance);
            for (i, &p) in want.iter().enumerate() {
                // Float32 rounding of five blends of values up to 1.
                if (p - 0.5).abs() > 1e-6 {
                    let (y, x) = (i / original.1, i % original.1);
                    assert_eq!(mask.get(y, x), p > 0.5, "{geometry:?} pixel ({y}, {x}): {p}");
                }
            }
        }
    }
}

/// The best mask by class score is a faint one; its quality puts it behind a sharp mask.
#[test]
fn mask_quality_scales_scores_before_the_ranking() {
    let geometry = Geometry { original: (24, 40), resized: (24, 40), padded: (32, 64) };
    let mask_size = (4, 8);
    let mut mask_logits = vec![-9.0f32; 4 * 32];
    mask_logits[3..9].fill(0.1); // faint: probability 0.525
    mask_logits[32..64].fill(5.0); // sharp: 0.9933
    mask_logits[64..67].copy_from_slice(&[2.0, 0.0, f32::NAN]); // one pixel inside: 0.8808
    let class_logits = [2.0f32, -3.0, 1.0, -1.0, 0.0, 0.0, 9.0, 9.0]; // the last mask is empty
    let head = HeadOutput {
        objects: 4,
        classes: 2,
        class_logits: &class_logits,
        mask_size,
        mask_logits: &mask_logits,
    };
    let scores = |mask_score, max_per_image| {
        let config = InstanceConfig { mask_score, max_per_image, ..InstanceConfig::default() };
        let mut result = InstanceResult::default();
        InstancePostprocessor::new(config).run(&head, &geometry, &mut result).unwrap();
        result.instances().iter().map(|i| (i.mask_index, i.label, i.score)).collect::<Vec<_>>()
    };
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    let quality = [sigmoid(f64::from(0.1f32)), sigmoid(5.0), sigmoid(2.0), 0.0];
    let found = scores(true, 8);
    let order: Vec<_> = found.iter().map(|&(mask, label, _)| (mask, label)).collect();
    assert_eq!(order, [(1, 0), (0, 0), (2, 0), (2, 1), (1, 1), (0, 1), (3, 0), (3, 1)]);
    for &(mask, label, score) in &found {
        let want = sigmoid(f64::from(class_logits[2 * mask + label])) * quality[mask];
        // Three roundings of about 2e-7: both sigmoids and the product.
        assert!((f64::from(score) - want).abs() < 6e-7, "mask {mask}: {score}, not {want}");
    }
    assert_eq!(scores(true, 2).iter().map(|s| s.0).collect::<Vec<_>>(), [1, 0]);
    assert_eq!(scores(false, 3).iter().map(|s| s.0).collect::<Vec<_>>(), [3, 3, 0]);
    // Masks larger than a block of sums, of every number of pixels.
    for pixels in [4095, 4096, 4097, 13_001] {
        let logits: Vec<f32> = (0..pixels).map(|i| (i as f32 * 0.37).sin() * 4.0).collect();
        let inside: Vec<f64> = logits.iter().filter(|x| **x > 0.0).map(|&x| sigmoid(f64::from(x))).collect();
        let head = HeadOutput {
            objects: 1,
            classes: 1,
            class_logits: &[0.0],
            mask_size: (1, pixels),
            mask_logits: &logits,
        };
        let side = (8, 8 * pixels);
        let geometry = Geometry { original: (2, 9), resized: side, padded: side };
        let config = InstanceConfig { mask_score: true, ..InstanceConfig::default() };
        let mut result = InstanceResult::default();
        InstancePostprocessor::new(config).run(&head, &geometry, &mut result).unwrap();
        let want = 0.5 * inside.iter().sum::<f64>() / inside.len() as f64;
        assert!((f64::from(result.instances()[0].score) - want).abs() < 3e-7, "{pixels} pixels");
    }
}

#[test]
fn probabilities_of_exactly_one_half_are_outside() {
    // Logits of zero: every blend stays exactly 0.5, which is not greater than 0.5 and yet counts for B.
    let geometry = Geometry { original: (203, 301), resized: (121, 180), padded: (128, 192) };
    let mask_logits = vec![0.0; 2 * 16 * 24];
    let class_logits = [2.0, 1.0, 1.0, 2.0];
    let head = HeadOutput {
        objects: 2,
        classes: 2,
        class_logits: &class_logits,
        mask_size: (16, 24),
        mask_logits: &mask_logits,
    };
    let mut instances = InstanceResult::default();
    InstancePostprocessor::new(InstanceConfig::default()).run(&head, &geometry, &mut instances).unwrap();
    assert_eq!(instances.instances().len(), 4);
    assert_eq!(instances.masks().len(), 2);
    assert!(instances.instances().iter().all(|i| i.area == 0 && i.bbox == Default::default()));
    // Equal scores: the lower index comes first.
    let order: Vec<usize> = instances.instances().iter().map(|i| i.mask_index * 2 + i.label).collect();
    assert_eq!(order, [0, 3, 1, 2]);

    let config = PanopticConfig { proposals: 1, things: 1, stuff: 1, ..PanopticConfig::default() };
    let mut panoptic = PanopticResult::default();
    PanopticPostprocessor::new(config).run(&head, &geometry, &mut panoptic).unwrap();
    assert_eq!(panoptic.trace.original_area, [203 * 301; 2]);
    assert_eq!(panoptic.trace.mask_area, [203 * 301, 0], "the first of equals wins every pixel");
    assert_eq!(panoptic.segments.len(), 1);
}

#[test]
fn a_reused_result_holds_nothing_of_the_photo_before() {
    let sizes = [(203, 301), (64, 41)];
    let mut reused = InstanceResult::default();
    let mut assembled = InstanceResult::default();
    // Discs that move and shrink, then nothing, then another photo size and back.
    for (frame, (size, radius)) in
        [(0, 9.0), (0, 5.0), (0, 2.0), (0, -1.0), (1, 6.0), (0, 3.0)].into_iter().enumerate()
    {
        let original = sizes[size];
        let geometry = Geometry { original, resized: (121, 180), padded: (128, 192) };
        let disc = |i: usize| {
            let (object, y, x) = (i / 384, i % 384 / 24, i % 24);
            let (y, x) = (y as f32 - (3 * frame + object) as f32, x as f32 - (20 - 3 * frame) as f32);
            2.0 * (radius - y.hypot(x))
        };
        let mask_logits: Vec<f32> = (0..2 * 384).map(disc).collect();
        let head = HeadOutput {
            objects: 2,
            classes: 1,
            class_logits: &[2.0, 1.0],
            mask_size: (16, 24),
            mask_logits: &mask_logits,
        };
        let mut post = InstancePostprocessor::new(InstanceConfig::default());
        let mut fresh = InstanceResult::default();
        post.run(&head, &geometry, &mut fresh).unwrap();
        post.run(&head, &geometry, &mut reused).unwrap();
        assert_eq!(fresh, reused, "frame {frame}");

        // The same masks as a GPU hands them over: only rows that hold pixels, now or before, are written.
        let masks: Vec<&BitMask> = fresh.masks().collect();
        let copy_mask = |place: usize, stale: Range<usize>, to: &mut [u8]| {
            let bbox = fresh.instances()[place].bbox;
            let rows = if bbox.height == 0 {
                stale
            } else {
                stale.start.min(bbox.y)..stale.end.max(bbox.y + bbox.height)
            };
            let bytes = rows.start * original.1 / 8..(rows.end * original.1).div_ceil(8);
            to[bytes.clone()].copy_from_slice(&masks[place].bytes()[bytes]);
            Ok(())
        };
        let scores: Vec<f32> = fresh.instances().iter().map(|instance| instance.score).collect();
        let ranked = Ranked {
            classes: 1,
            scores: &scores,
            pairs: &[0, 1],
            places: &[0, 1],
            boxes: &[],
            copy_mask: &copy_mask,
            extent: &|place| (fresh.instances()[place].area, fresh.instances()[place].bbox),
        };
        assembled.assemble(&ranked, original).unwrap();
        assert_eq!(fresh, assembled, "frame {frame}");
    }
}

#[test]
fn outputs_that_do_not_fit_are_refused() {
    let geometry = Geometry { original: (64, 64), resized: (64, 64), padded: (64, 64) };
    let (class_logits, mask_logits) = (vec![0.0; 6], vec![0.0; 2 * 64]);
    let head = HeadOutput {
        objects: 2,
        classes: 3,
        class_logits: &class_logits,
        mask_size: (8, 8),
        mask_logits: &mask_logits,
    };
    let mut post = InstancePostprocessor::new(InstanceConfig::default());
    let mut result = InstanceResult::default();
    post.run(&head, &geometry, &mut result).unwrap();
    for (bad, says) in [
        (HeadOutput { objects: 3, ..head }, "cls_score"),
        (HeadOutput { mask_size: (8, 9), ..head }, "mask_preds"),
        (HeadOutput { mask_size: (4, 16), ..head }, "stride"),
    ] {
        let error = post.run(&bad, &geometry, &mut result).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Graph);
        assert!(error.to_string().contains(says), "{error}");
    }
    let mut panoptic = PanopticPostprocessor::new(PanopticConfig::default());
    let error = panoptic.run(&head, &geometry, &mut PanopticResult::default()).unwrap_err();
    assert!(error.to_string().contains("100 proposals"), "{error}");
}

/// As many masks as a hostile file may ask for, of the largest photo: refused, not taken until the system
/// ends the process.
#[test]
fn masks_larger_than_the_memory_are_refused() {
    let objects = 1 << 16;
    let geometry = Geometry { original: (16_384, 6100), resized: (32, 12), padded: (32, 32) };
    let (class_logits, mask_logits) = (vec![0.0; objects], vec![0.0; 16 * objects]);
    let head = HeadOutput {
        objects,
        classes: 1,
        class_logits: &class_logits,
        mask_size: (4, 4),
        mask_logits: &mask_logits,
    };
    let config = InstanceConfig { max_per_image: objects, ..InstanceConfig::default() };
    let mut result = InstanceResult::default();
    let error = InstancePostprocessor::new(config).run(&head, &geometry, &mut result).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Memory, "{error}");
    assert!(
        error.to_string().starts_with("a result with masks at the size of the photo needs 762.5 GiB"),
        "{error}"
    );
}
