//! From a `.pth` file as upstream saves it to masks, without PyTorch.

use knet::checkpoint::Checkpoint;
use knet::checkpoint::StorageType;
use knet::engine::convert::{Contents, ConvertOptions, Converted, StoredPrecision, convert};
use knet::engine::source::BACKBONE_KEY;
use knet::engine::{Segmentation, WeightSource};
use knet::image::classes::coco;
use knet::model::{Backbone, Classes, Config, EfficientNetLite, Head, Input, Normalization, Task, Test};
use knet::tensor::Precision;
use knet::{Engine, Error, ErrorKind};
use serde_json::json;
use std::path::Path;
use testkit::model;
use testkit::model::{Entry, photo, seeded_entries, small_config};
use testkit::pth_writer::{Named, dict, text, tuple, write_checkpoint, write_checkpoint_with};

fn write_pth(path: &Path, prefix: &str, classes: &[&str], entries: &[Entry]) {
    let tensors: Vec<Named> =
        entries.iter().map(|e| (e.name.as_str(), e.shape.as_slice(), e.values.as_slice())).collect();
    write_checkpoint(path, prefix, classes, &tensors);
}

/// In f32: bounds are those of what weights are rounded to.
fn segment(source: impl Into<WeightSource>) -> Segmentation {
    let builder = Engine::builder().weights(source).precision(Precision::F32);
    let mut engine = builder.size(Some((96, 160))).build().unwrap();
    engine.segment(&photo(110, 140)).unwrap()
}

/// As [`segment`], of a named model over the weights `seeded:0`.
fn segment_model(name: &str) -> Segmentation {
    let builder = Engine::builder().model(name).precision(Precision::F32);
    let mut engine = builder.size(Some((96, 160))).build().unwrap();
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

    let converted = convert(&pth, &f32_file, &ConvertOptions::default()).unwrap();
    assert_eq!(converted.tensors, entries.len());
    assert_eq!(converted.values, entries.iter().map(|e| e.values.len()).sum::<usize>());
    assert_eq!(
        converted.contents,
        Contents::Model(Box::new(Config {
            classes: Classes { names: coco_names().iter().map(|s| s.to_string()).collect(), ..named.classes },
            ..named
        }))
    );
    let wanted = segment(WeightSource::Seeded(0));
    assert_eq!(wanted.instances().len(), 100);
    assert!(segment(f32_file.as_path()) == wanted, "not the masks of seeded:0");

    convert(
        &pth,
        &f16_file,
        &ConvertOptions { precision: StoredPrecision::F16, ..ConvertOptions::default() },
    )
    .unwrap();
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
    // Weights are off by up to 2^-11 each, but the stages pool features over the pixels whose mask exceeds
    // 0.5, and random weights put many pixels near it: one that crosses over moves a kernel, and so all
    // scores of its object, by percents.
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
    let small = small_config();
    let config = Config { head: Head { heads: 8, norm_groups: 32, ..small.head }, ..small };
    let entries = seeded_entries(&config, 3);
    let names: Vec<&str> = config.classes.names.iter().map(String::as_str).collect();
    write_pth(&pth, "module.", &names, &entries);

    let converted = convert(&pth, &converted_file, &ConvertOptions::default()).unwrap();
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
    let error =
        convert(&pth, &refused, &ConvertOptions { model: Some(official), ..ConvertOptions::default() })
            .unwrap_err();
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
    let error = convert(&pth, &out, &ConvertOptions::default()).unwrap_err();
    let Error::Weights { report, .. } = &error else { panic!("{error}") };
    assert_eq!(report.missing, [lost]);
    assert_eq!(report.non_finite, [entries[7].name.clone()]);
    assert_eq!(report.unexpected, ["roi_head.extra.weight"]);
    assert!(report.misshapen.is_empty());
    assert!(!out.exists());
}

#[test]
fn other_backbones_are_recognised_by_their_tensors() {
    let folder = tempfile::tempdir().unwrap();
    let (pth, out) = (folder.path().join("lite.pth"), folder.path().join("lite.safetensors"));
    let small = small_config();
    let lite = Config::of(EfficientNetLite::new(0).into(), small.classes.clone());
    let head = Head { heads: 8, norm_groups: 32, ..small.head };
    let config = Config { name: "knet_s2_lite0_fpn".into(), neck: small.neck, head, ..lite };
    let entries = seeded_entries(&config, 3);
    let names: Vec<&str> = config.classes.names.iter().map(String::as_str).collect();
    write_pth(&pth, "", &names, &entries);
    let converted = convert(&pth, &out, &ConvertOptions::default()).unwrap();
    // The size of photos leaves no trace.
    let input = Input { size: [320, 320], normalization: Normalization::SYMMETRIC };
    assert_eq!(*model_of(&converted), Config { input, ..config });
}

#[test]
fn deformable_convolutions_are_recognised_by_their_offsets() {
    let folder = tempfile::tempdir().unwrap();
    let (pth, out) = (folder.path().join("dcn.pth"), folder.path().join("dcn.safetensors"));
    let named = Config::named("knet_s3_r101_dcn_panoptic").unwrap();
    let names: Vec<&str> = coco().iter().map(|class| class.name.as_ref()).collect();
    let mut entries = seeded_entries(&named, 0);
    write_pth(&pth, "", &names, &entries);
    let converted = convert(&pth, &out, &ConvertOptions::default()).unwrap();
    let classes = Classes { names: names.iter().map(|s| s.to_string()).collect(), ..named.classes };
    assert_eq!(converted.contents, Contents::Model(Box::new(Config { classes, ..named })));
    assert!(segment(out.as_path()) == segment_model("knet_s3_r101_dcn_panoptic"), "not the map of seeded:0");

    // Those of DCNv2 have a weight a tap as well.
    let key = "backbone.layer2.0.conv2.conv_offset.weight";
    let offsets = entries.iter_mut().find(|entry| entry.name == key).unwrap();
    offsets.shape[0] = 27;
    offsets.values.resize(27 * 128 * 9, 0.0);
    write_pth(&pth, "", &names, &entries);
    let error = convert(&pth, &out, &ConvertOptions::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Usage);
    let message = error.to_string();
    assert!(message.contains("dcn.pth") && message.contains(key) && message.contains("27"), "{message}");
}

#[test]
fn other_networks_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (pth, out) = (folder.path().join("resnet.pth"), folder.path().join("out.safetensors"));
    write_checkpoint(&pth, "", &["cat"], &[("conv1.weight", &[2, 3], &[0.5; 6]), ("fc.bias", &[1], &[0.0])]);
    let error = convert(&pth, &out, &ConvertOptions::default()).unwrap_err();
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
        let graph = EfficientNetLite::new(variant).classifier(1, [32, 32], 10).unwrap();
        let entry = |key: &str, shape: &[usize]| {
            let values = knet::checkpoint::seeded::tensor(key, shape, 3).unwrap().into_data();
            Entry { name: key.strip_prefix("backbone.").unwrap().into(), shape: shape.to_vec(), values }
        };
        let mut entries: Vec<Entry> = graph.params().map(|p| entry(&p.key, &p.upstream_shape)).collect();
        write_pth(&pth, "", &[], &entries);
        let converted = convert(&pth, &out, &ConvertOptions::default()).unwrap();
        let backbone = Backbone::from(EfficientNetLite::new(variant));
        assert_eq!(converted.contents, Contents::Classifier { backbone, classes: 10 });
        assert_eq!(converted.tensors, entries.len());
        let file = Checkpoint::open(&out).unwrap();
        assert_eq!(serde_json::from_str::<Backbone>(&file.metadata()[BACKBONE_KEY]).unwrap(), backbone);
        let wanted = &entries[5];
        assert_eq!(file.load_f32(&format!("backbone.{}", wanted.name)).unwrap().data(), wanted.values);

        // Such a file is no model, and says so.
        let error = Engine::builder().weights(out.as_path()).build().err().expect("no model");
        assert_eq!(error.kind(), ErrorKind::Usage);
        assert!(error.to_string().contains("a backbone alone"), "{error}");

        let lost = entries.remove(3).name;
        write_pth(&pth, "", &[], &entries);
        let error = convert(&pth, &out, &ConvertOptions::default()).unwrap_err();
        let Error::Weights { report, model, .. } = &error else { panic!("{error}") };
        assert_eq!(report.missing, [format!("backbone.{lost}")]);
        assert_eq!(*model, format!("efficientnet_lite{variant}"));
    }
}

fn named(entries: &[Entry]) -> Vec<Named<'_>> {
    entries.iter().map(|e| (e.name.as_str(), e.shape.as_slice(), e.values.as_slice())).collect()
}

/// A small panoptic K-Net: one thing and two stuff classes.
fn small_panoptic() -> Config {
    Config {
        task: Task::Panoptic,
        classes: Classes { names: ["box", "sky", "ground"].map(String::from).to_vec(), ..Classes::new(1, 2) },
        ..small_config()
    }
}

#[test]
fn the_training_configuration_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let (pth, out) = (folder.path().join("mine.pth"), folder.path().join("out.safetensors"));
    let config = small_panoptic();
    let entries = seeded_entries(&config, 5);
    let convert_with = |text_of_config: &str, options: &ConvertOptions| {
        let names = tuple(&["box", "sky", "ground"].map(text));
        let meta = dict(&[("CLASSES", names), ("config", text(text_of_config))]);
        write_checkpoint_with(&pth, "", meta, &named(&entries));
        convert(&pth, &out, options)
    };
    let full = "num_things_classes = 1\nnum_stuff_classes = 2\nmodel = dict(mask_head=[dict(num_heads=4, \
                norm_cfg=dict(type='GN', num_groups=16)), dict(num_heads=4)], test_cfg=dict(rcnn=dict(max_per_img=50, \
                merge=dict(overlap_thr=0.5, instance_score_thr=0.25))))\n\
                img_norm_cfg = dict(mean=[103.53, 116.28, 123.675], std=[1., 1., 1.], to_rgb=False)\n\
                train_pipeline=[dict(img_scale=[(1333, 640), (1333, 800)])]\ntest_pipeline=[dict(img_scale=(128, 96))]";
    let converted = convert_with(full, &ConvertOptions::default()).unwrap();
    let wanted = Config {
        name: "knet_s2_r50_fpn_panoptic".into(),
        test: Test {
            max_per_image: 50,
            overlap_threshold: 0.5,
            instance_score_threshold: 0.25,
            ..Test::default()
        },
        input: Input {
            normalization: Normalization { mean: [103.53, 116.28, 123.675], std: [1.0; 3] },
            size: [96, 128],
        },
        ..config.clone()
    };
    assert_eq!(*model_of(&converted), wanted);
    let notes = converted.notes.join("\n");
    for part in [
        "read: 1 things and 2 stuff",
        "read: heads 4",
        "read: norm_groups 16",
        "read: size 96,128",
        "--bgr",
        "category ids",
    ] {
        assert!(notes.contains(part), "no `{part}` in: {notes}");
    }
    assert!(!notes.contains("assumed, as the file does not say"), "{notes}");

    // B, G, R: the first convolution's channels are reversed, with mean and std.
    let bgr = convert_with(full, &ConvertOptions { bgr: true, ..ConvertOptions::default() }).unwrap();
    assert_eq!(model_of(&bgr).input.normalization.mean, [123.675, 116.28, 103.53]);
    let stored = Checkpoint::open(&out).unwrap().load_f32("backbone.conv1.weight").unwrap();
    let source = &entries.iter().find(|e| e.name == "backbone.conv1.weight").unwrap().values;
    for (at, value) in stored.data().iter().enumerate() {
        let (filter, channel, tap) = (at / 147, at / 49 % 3, at % 49);
        assert_eq!(*value, source[filter * 147 + (2 - channel) * 49 + tap]);
    }

    // What it does not say is assumed aloud, what it contradicts is asked for, and what is set wins.
    let silent = convert_with("", &ConvertOptions::default()).unwrap();
    assert_eq!((model_of(&silent).task, model_of(&silent).classes.things), (Task::Instance, 3));
    let notes = silent.notes.join("\n");
    for part in ["an instance model", "--set stuff_classes=N", "heads 8, norm_groups 32", "size 800,1333"] {
        assert!(notes.contains(part), "no `{part}` in: {notes}");
    }
    for (text, part) in [
        ("num_things_classes=80\nnum_stuff_classes=53", "--set stuff_classes=N"),
        ("a=dict(num_heads=4)\nb=dict(num_heads=8)", "--set heads=N"),
        ("a=dict(mean=[1.,2.,3.], std=[1.,1.,1.])\nb=dict(mean=[0.,0.,0.])", "--set 'normalization="),
        ("backbone=dict(style='caffe')", "'caffe'"),
    ] {
        let error = convert_with(text, &ConvertOptions::default()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Usage);
        assert!(error.to_string().contains("mine.pth") && error.to_string().contains(part), "{error}");
    }
    let set = [("stuff_classes", json!(2)), ("heads", json!(2)), ("size", json!([64, 64]))];
    let set: Vec<_> = set.map(|(key, value)| (key.to_string(), value)).to_vec();
    let converted = convert_with(
        "num_things_classes=80\na=dict(num_heads=4)\nb=dict(num_heads=8)",
        &ConvertOptions { set, ..ConvertOptions::default() },
    );
    let model = model_of(&converted.unwrap()).clone();
    assert_eq!(model.classes, Classes { names: model.classes.names.clone(), ..Classes::new(1, 2) });
    assert_eq!((model.head.heads, model.input.size), (2, [64, 64]));
    let set = vec![("hats".to_string(), json!(1))];
    let error =
        convert_with("", &ConvertOptions { set, ..ConvertOptions::default() }).unwrap_err().to_string();
    assert!(error.contains("--set") && error.contains("hats"), "{error}");
}

#[test]
fn class_names_are_found_or_said_to_be_lost() {
    let folder = tempfile::tempdir().unwrap();
    let (pth, out) = (folder.path().join("mine.pth"), folder.path().join("out.safetensors"));
    let one = Config { classes: Classes::new(1, 0), ..small_config() };
    let entries = seeded_entries(&one, 1);
    let names = |meta: Vec<u8>, options: &ConvertOptions| {
        write_checkpoint_with(&pth, "", meta, &named(&entries));
        let converted = convert(&pth, &out, options).unwrap();
        let classes = knet::engine::class_list(model_of(&converted));
        (
            classes.into_iter().map(|c| (c.id, c.name.to_string())).collect::<Vec<_>>(),
            converted.notes.join("\n"),
        )
    };
    let default = ConvertOptions::default();
    let ant = vec![(0, "ant".to_string())];
    let in_dataset = |key: &str, value| dict(&[("dataset_meta", dict(&[(key, value)]))]);
    for meta in [
        dict(&[("CLASSES", text("ant"))]),
        dict(&[("CLASSES", tuple(&[text("ant")]))]),
        in_dataset("classes", tuple(&[text("ant")])),
        in_dataset("CLASSES", tuple(&[text("ant")])),
        in_dataset("classes", text("ant")),
    ] {
        let (classes, notes) = names(meta, &default);
        assert_eq!(classes, ant);
        assert!(!notes.contains("class names") && notes.contains("category ids"), "{notes}");
    }
    let two = dict(&[("CLASSES", tuple(&[text("ant"), text("bee")]))]);
    for (meta, why) in [(dict(&[]), "the file has none"), (two.clone(), "2 names for 1 classes")] {
        let (classes, notes) = names(meta, &default);
        assert_eq!(classes, [(0, "class 0".to_string())]);
        assert!(notes.contains(why) && notes.contains("--classes FILE"), "{notes}");
    }
    let (classes, notes) = names(
        two,
        &ConvertOptions { classes: Some(vec![(Some(17), "cat".into())]), ..ConvertOptions::default() },
    );
    assert_eq!((classes, notes.contains("category ids")), (vec![(17, "cat".to_string())], false));

    // As many classes as COCO has are not COCO's for that.
    let eighty = Config { classes: Classes::new(80, 0), ..small_config() };
    let entries = seeded_entries(&eighty, 1);
    let first = |meta: Vec<u8>, options: &ConvertOptions| {
        write_checkpoint_with(&pth, "", meta, &named(&entries));
        let classes = knet::engine::class_list(model_of(&convert(&pth, &out, options).unwrap()));
        (classes[79].id, classes[79].name.to_string())
    };
    let plants: Vec<Vec<u8>> = (0..80).map(|i| text(&format!("plant_{i}"))).collect();
    assert_eq!(first(in_dataset("classes", tuple(&plants)), &default), (79, "plant_79".into()));
    assert_eq!(first(dict(&[]), &default), (79, "class 79".into()));
    let model = Config { classes: Classes::new(80, 0), ..small_config() };
    assert_eq!(
        first(dict(&[]), &ConvertOptions { model: Some(model), ..ConvertOptions::default() }),
        (90, "toothbrush".into())
    );
}

#[test]
fn averages_of_ema_hooks_are_left_out_or_taken() {
    let folder = tempfile::tempdir().unwrap();
    let (pth, out) = (folder.path().join("mine.pth"), folder.path().join("out.safetensors"));
    let mut entries = seeded_entries(&small_config(), 1);
    let weights = entries.len();
    let averaged = |e: &Entry| Entry {
        name: format!("ema_{}", e.name.replace('.', "_")),
        shape: e.shape.clone(),
        values: e.values.iter().map(|v| v + 1.0).collect(),
    };
    let averages: Vec<Entry> = entries.iter().filter(|e| !e.name.contains("running")).map(averaged).collect();
    let count = averages.len();
    entries.extend(averages);
    write_pth(&pth, "", &[], &entries);
    let value = || Checkpoint::open(&out).unwrap().load_f32(&entries[0].name).unwrap().data().to_vec();
    let converted = convert(&pth, &out, &ConvertOptions::default()).unwrap();
    assert_eq!((converted.tensors, value()), (weights, entries[0].values.clone()));
    let notes = converted.notes.join("\n");
    assert!(notes.contains(&format!("left out: {count} averages `ema_*` (--ema")), "{notes}");
    let ema = ConvertOptions { ema: true, ..ConvertOptions::default() };
    let converted = convert(&pth, &out, &ema).unwrap();
    assert_eq!(converted.tensors, weights);
    assert_eq!(value(), entries[0].values.iter().map(|v| v + 1.0).collect::<Vec<f32>>());
    write_pth(&pth, "", &[], &entries[..weights]);
    let error = convert(&pth, &out, &ema).unwrap_err();
    assert!(error.to_string().contains("no averages `ema_*`"), "{error}");
}
