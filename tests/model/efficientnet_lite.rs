//! EfficientNet-Lite against PyTorch: all levels and the logits with seeded weights
//! (`tests/goldens/efficientnet_lite`, made by `tools/goldens/efficientnet_lite.py`), and the ImageNet
//! classifiers on photos where their weights are at hand.

use knet::Engine;
use knet::checkpoint::{Checkpoint, StorageType, seeded};
use knet::cpu::Weights;
use knet::engine::{EngineBuilder, Segmentation};
use knet::graph::{Graph, passes::optimize};
use knet::image::decode::{Limits, decode};
use knet::isa::Isa;
use knet::model::{Config, EfficientNetLite, Input, Normalization, Test};
use knet::ops::case::relative_l2;
use knet::tensor::Tensor;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use testkit::run::Machine;
use testkit::{model, run};

/// Error allowed, in units of the error PyTorch itself makes in float32 (relative L2 against the float64
/// goldens: 4e-7 at C2 to 2.4e-5 at C5 of Lite2, whose random weights amplify rounding from block to block).
/// Two float32 evaluations that round in another order are equally good, and scatter by less than a factor of
/// two.
const TIMES_PYTORCHS: f64 = 2.0;

fn folder(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Outputs of a classifier for one image of pixel values `[H, W, 3]`.
fn classify(graph: &Graph, weights: &Weights, isa: Isa, pixels: &Tensor) -> Vec<(String, Vec<f64>)> {
    let Normalization { mean, std } = Normalization::SYMMETRIC;
    let [h, w] = [pixels.shape()[0], pixels.shape()[1]];
    let image = Tensor::from_fn([1, h, w, 3], |i| (pixels.at(&i[1..4]) - mean[i[3]]) / std[i[3]]);
    let outputs = Machine::new(graph, weights, isa, 2).unwrap().run(&[image]);
    graph
        .outputs()
        .iter()
        .map(|(name, _)| name.clone())
        .zip(outputs.iter().map(run::Output::to_f64))
        .collect()
}

/// The photo of the goldens, and the larger image that is made of it: mirrored downwards, cut on the right.
fn inputs() -> [Tensor; 2] {
    let photo = decode(folder("tests/goldens/efficientnet_lite/input.png"), &Limits::default()).unwrap();
    [[64, 96], [75, 90]].map(|[h, w]| {
        Tensor::from_fn([h, w, 3], |i| {
            let y = if i[0] < 64 { i[0] } else { 126 - i[0] };
            f32::from(photo.get_pixel(i[1] as u32, y as u32).0[i[2]])
        })
    })
}

#[test]
fn levels_and_logits_are_pytorchs() {
    for variant in [0, 2] {
        let golden = folder(&format!("tests/goldens/efficientnet_lite/lite{variant}.safetensors"));
        let golden = Checkpoint::open(golden).unwrap();
        let bounds: HashMap<String, f64> = serde_json::from_str(&golden.metadata()["fp32_error"]).unwrap();
        for pixels in inputs() {
            let [h, w] = [pixels.shape()[0], pixels.shape()[1]];
            let graph =
                optimize(EfficientNetLite::new(variant).classifier(1, [h, w], 1000).unwrap()).unwrap();
            for isa in Isa::available() {
                let weights =
                    Weights::new(Box::new(|param| seeded::tensor(&param.key, &param.upstream_shape, 0)));
                for (name, found) in classify(&graph, &weights, isa, &pixels) {
                    let name = format!("{h}x{w}.{name}");
                    let wanted = golden.load_f32(&name).unwrap().to_f64();
                    let error = relative_l2(&found, wanted.data());
                    let bound = TIMES_PYTORCHS * bounds[&name];
                    println!("lite{variant} {name:<12} {isa:<8} {error:.2e} of {bound:.2e}");
                    assert!(error < bound, "lite{variant} {name} on {isa}: {error:e} above {bound:e}");
                }
            }
        }
    }
}

/// A checkpoint with the configuration in its metadata opens without a name and gives what the seeded weights
/// give; the options of the configuration take effect.
#[test]
fn checkpoints_describe_themselves() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("lite.safetensors");
    let photo = model::photo(120, 160);
    for name in ["knet_s3_lite0_fpn", "knet_s3_lite2_fpn"] {
        let named = Config::named(name).unwrap();
        let entries = model::seeded_entries(&named, 0);
        let segment =
            |builder: EngineBuilder| builder.size(Some((96, 160))).build().unwrap().segment(&photo).unwrap();
        let of_file = |config: &Config| {
            model::write_entries(&file, &entries, Some(&config.to_json()), StorageType::F32);
            segment(Engine::builder().weights(file.as_path()))
        };
        let plain = of_file(&named);
        assert!(plain == segment(Engine::builder().model(name)), "{name}: not the masks of seeded:0");
        assert_eq!(plain.instances().len(), 100);

        let scored = of_file(&Config { test: Test { mask_score: true, ..named.test }, ..named.clone() });
        let best = |s: &Segmentation| s.instances()[0].score;
        assert!(
            best(&scored) > 0.0 && best(&scored) < best(&plain),
            "{name}: scores as without mask quality"
        );
        let input = Input { normalization: Normalization::IMAGENET, ..named.input };
        let other = of_file(&Config { input, ..named });
        assert!(other != plain, "{name}: the normalisation changes nothing");
    }
}

/// Prints the rows of the table in `weights/backbones.md`, which says how to make the files.
#[test]
#[ignore = "needs the ImageNet weights and PyTorch's logits in target/backbones: see weights/backbones.md"]
fn imagenet_classifiers_on_photos() {
    let reference = Checkpoint::open(folder("target/backbones/reference.safetensors")).unwrap();
    let classes = reference.metadata().get("classes");
    let classes: Option<Vec<String>> = classes.map(|text| serde_json::from_str(text).unwrap());
    for variant in [0, 2] {
        let file = folder(&format!("target/backbones/efficientnet_lite{variant}.safetensors"));
        let file = Checkpoint::open(file).unwrap();
        let weights = Weights::new(Box::new(move |param| file.load_f32(&param.key)));
        let photos = reference.names().filter_map(|name| {
            name.strip_prefix(&format!("{variant}/"))?.strip_suffix("/image").map(str::to_string)
        });
        for photo in photos {
            let load = |what: &str| reference.load_f32(&format!("{variant}/{photo}/{what}")).unwrap();
            let (pixels, wanted) = (load("image"), load("logits").to_f64());
            let size = [pixels.shape()[0], pixels.shape()[1]];
            let graph = optimize(EfficientNetLite::new(variant).classifier(1, size, 1000).unwrap()).unwrap();
            let (_, logits) = classify(&graph, &weights, Isa::detect(), &pixels).swap_remove(0);
            let difference = logits.iter().zip(wanted.data()).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            let best = top_five(&logits);
            let label = |&i: &usize| classes.as_ref().map_or_else(|| i.to_string(), |names| names[i].clone());
            let total: f64 = logits.iter().map(|v| v.exp()).sum();
            let shown: Vec<String> =
                best.iter().map(|i| format!("{} {:.2}", label(i), logits[*i].exp() / total)).collect();
            println!("| {photo} | Lite{variant} | {} | {difference:.1e} |", shown.join(", "));
            assert_eq!(best, top_five(wanted.data()), "{photo}");
            // Logits of up to 15 in f32 on both sides: 2e-6 of each.
            assert!(difference < 3e-5, "{photo}: logits differ by {difference:e}");
        }
    }
}

fn top_five(logits: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
    order.truncate(5);
    order
}
