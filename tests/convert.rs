//! From a `.pth` file as upstream saves it to masks, without PyTorch.

#[path = "common/model.rs"]
mod model;
#[path = "common/pth_writer.rs"]
#[expect(dead_code, reason = "other suites damage checkpoints")]
mod pth_writer;

use knet::checkpoint::Checkpoint;
use knet::checkpoint::StorageType;
use knet::engine::convert::{Contents, Converted, Precision, convert};
use knet::engine::source::BACKBONE_KEY;
use knet::engine::{Segmentation, WeightSource};
use knet::image::classes::coco;
use knet::model::{BackboneConfig, Config, Task, efficientnet_lite};
use knet::{Engine, Error, ErrorKind};
use model::{Entry, photo, seeded_entries, small_config};
use pth_writer::{Named, write_checkpoint};
use std::path::Path;

fn write_pth(path: &Path, prefix: &str, classes: &[&str], entries: &[Entry]) {
    let tensors: Vec<Named> =
        entries.iter().map(|e| (e.name.as_str(), e.shape.as_slice(), e.values.as_slice())).collect();
    write_checkpoint(path, prefix, classes, &tensors);
}

fn segment(source: impl Into<WeightSource>) -> Segmentation {
    let mut engine = Engine::builder().weights(source).size(Some((96, 160))).build().unwrap();
    engine.segment(&photo(110, 140)).unwrap()
}

fn model_of(converted: &Converted) -> &Config {
    let Contents::Model(config) = &converted.contents else { panic!("{:?}", converted.contents) };
    config
}

fn coco_names() -> Vec<&'static str> {
    coco()[..80].iter().map(|class| class.name.as_ref()).collect()
}

#[test]
fn an_official_model_gives_the_bits_of_its_tensors() {
    let folder = tempfile::tempdir().unwrap();
    let pth = folder.path().join("knet.pth");
    let (f32_file, f16_file) = (folder.path().join("f32.safetensors"), folder.path().join("f16.safetensors"));
    let named = Config::named("knet_s3_r50_fpn").unwrap();
    let entries = seeded_entries(&named, 0);
    write_pth(&pth, "", &coco_names(), &entries);

    let converted = convert(&pth, &f32_file, None, Precision::F32).unwrap();
    assert_eq!(converted.tensors, entries.len());
    assert_eq!(converted.values, entries.iter().map(|e| e.values.len()).sum::<usize>());
    assert_eq!(
        converted.contents,
        Contents::Model(Config {
            class_names: coco_names().iter().map(|s| s.to_string()).collect(),
            ..named
        })
    );
    let wanted = segment(WeightSource::Seeded(0));
    assert_eq!(wanted.instances().len(), 100);
    assert!(segment(f32_file.as_path()) == wanted, "not the masks of seeded:0");

    convert(&pth, &f16_file, None, Precision::F16).unwrap();
    let (full, half) =
        (std::fs::metadata(&f32_file).unwrap().len(), std::fs::metadata(&f16_file).unwrap().len());
    assert!(half * 2 < full + full / 50, "{half} bytes of f16, {full} of f32");
    let found = segment(f16_file.as_path());
    let mut rounded = entries;
    for value in rounded.iter_mut().flat_map(|entry| &mut entry.values) {
        *value = half::f16::from_f32(*value).to_f32();
    }
    let rounded_file = folder.path().join("rounded.safetensors");
    model::write_entries(&rounded_file, &rounded, Some(&model_of(&converted).to_json()), StorageType::F32);
    assert!(found == segment(rounded_file.as_path()), "not the masks of the rounded tensors");
    // Weights are off by up to 2^-11 each, but the stages pool features over the pixels whose mask exceeds 0.5, and random
    // weights put many pixels near it: one that crosses over moves a kernel, and so all scores of its object, by percents.
    let scores = |s: &Segmentation| s.instances().iter().map(|i| f64::from(i.score)).collect::<Vec<f64>>();
    let error = knet::ops::case::relative_l2(&scores(&found), &scores(&wanted));
    assert!(error < 5e-2, "scores are off by {error:.2e} relative L2");
    println!("f16: scores off by {error:.2e} relative L2");
}

#[test]
fn other_sizes_are_recognised_from_shapes() {
    let folder = tempfile::tempdir().unwrap();
    let pth = folder.path().join("mine.pth");
    let (converted_file, direct_file) =
        (folder.path().join("a.safetensors"), folder.path().join("b.safetensors"));
    // Heads and groups leave no trace in the shapes: they are the official ones.
    let config = Config { heads: 8, norm_groups: 32, ..small_config() };
    let entries = seeded_entries(&config, 3);
    let names: Vec<&str> = config.class_names.iter().map(String::as_str).collect();
    write_pth(&pth, "module.", &names, &entries);

    let converted = convert(&pth, &converted_file, None, Precision::F32).unwrap();
    assert_eq!(*model_of(&converted), Config { name: "knet_s2_r50_fpn".into(), ..config.clone() });
    assert_eq!(model_of(&converted).task, Task::Instance);
    model::write_entries(&direct_file, &entries, Some(&config.to_json()), StorageType::F32);
    assert!(segment(converted_file.as_path()) == segment(direct_file.as_path()));
    let file = Checkpoint::open(&converted_file).unwrap();
    assert_eq!(file.metadata()["knet.source"], "mine.pth");
    assert!(file.names().all(|name| !name.starts_with("module.") && !name.ends_with("num_batches_tracked")));

    // As if it were the official model: everything that does not fit is listed.
    let official = Config::named("knet_s3_r50_fpn").unwrap();
    let refused = folder.path().join("refused.safetensors");
    let error = convert(&pth, &refused, Some(official), Precision::F32).unwrap_err();
    let Error::Weights { report, .. } = &error else { panic!("{error}") };
    assert!(report.missing.iter().any(|name| name.starts_with("roi_head.mask_head.2.")), "{error}");
    assert!(report.misshapen.iter().any(|m| m.name == "rpn_head.init_kernels.weight"), "{error}");
    assert!(!refused.exists());
}

#[test]
fn a_damaged_model_is_reported_in_full() {
    let folder = tempfile::tempdir().unwrap();
    let (pth, out) = (folder.path().join("damaged.pth"), folder.path().join("out.safetensors"));
    let mut entries = seeded_entries(&small_config(), 1);
    let lost = entries.remove(40).name;
    entries[7].values[3] = f32::NAN;
    entries.push(Entry { name: "roi_head.extra.weight".into(), shape: vec![1], values: vec![0.0] });
    write_pth(&pth, "", &[], &entries);
    let error = convert(&pth, &out, None, Precision::F32).unwrap_err();
    let Error::Weights { report, .. } = &error else { panic!("{error}") };
    assert_eq!(report.missing, [lost]);
    assert_eq!(report.non_finite, [entries[7].name.clone()]);
    assert_eq!(report.unexpected, ["roi_head.extra.weight"]);
    assert!(report.misshapen.is_empty());
    assert!(!out.exists());
}

#[test]
fn other_networks_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (pth, out) = (folder.path().join("resnet.pth"), folder.path().join("out.safetensors"));
    write_checkpoint(&pth, "", &["cat"], &[("conv1.weight", &[2, 3], &[0.5; 6]), ("fc.bias", &[1], &[0.0])]);
    let error = convert(&pth, &out, None, Precision::F32).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Usage);
    let message = error.to_string();
    for fragment in ["resnet.pth", "not a K-Net", "rpn_head.init_kernels.weight", "2 tensors", "conv1.weight"]
    {
        assert!(message.contains(fragment), "`{fragment}` is not in: {message}");
    }
    assert!(!out.exists());
}

#[test]
fn a_classifier_becomes_a_backbone() {
    let folder = tempfile::tempdir().unwrap();
    let (pth, out) = (folder.path().join("lite.pth"), folder.path().join("lite.safetensors"));
    for variant in [0, 2] {
        let graph = efficientnet_lite::classifier(variant, 1, [32, 32], 10).unwrap();
        let entry = |key: &str, shape: &[usize]| {
            let values = knet::checkpoint::seeded::tensor(key, shape, 3).unwrap().into_data();
            Entry { name: key.strip_prefix("backbone.").unwrap().into(), shape: shape.to_vec(), values }
        };
        let mut entries: Vec<Entry> = graph.params().map(|p| entry(&p.key, &p.upstream_shape)).collect();
        write_pth(&pth, "", &[], &entries);
        let converted = convert(&pth, &out, None, Precision::F32).unwrap();
        let backbone = BackboneConfig::EfficientNetLite { variant };
        assert_eq!(converted.contents, Contents::Classifier { backbone, classes: 10 });
        assert_eq!(converted.tensors, entries.len());
        let file = Checkpoint::open(&out).unwrap();
        assert_eq!(serde_json::from_str::<BackboneConfig>(&file.metadata()[BACKBONE_KEY]).unwrap(), backbone);
        let wanted = &entries[5];
        assert_eq!(file.load_f32(&format!("backbone.{}", wanted.name)).unwrap().data(), wanted.values);

        // Such a file is no model, and says so.
        let error = Engine::builder().weights(out.as_path()).build().err().expect("no model");
        assert_eq!(error.kind(), ErrorKind::Usage);
        assert!(error.to_string().contains("a backbone alone"), "{error}");

        let lost = entries.remove(3).name;
        write_pth(&pth, "", &[], &entries);
        let error = convert(&pth, &out, None, Precision::F32).unwrap_err();
        let Error::Weights { report, model, .. } = &error else { panic!("{error}") };
        assert_eq!(report.missing, [format!("backbone.{lost}")]);
        assert_eq!(*model, format!("efficientnet_lite{variant}"));
    }
}
