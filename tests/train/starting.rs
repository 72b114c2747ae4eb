//! What a run starts from, and what it says of it.

use crate::{Scene, stderr};
use knet::checkpoint::Checkpoint;
use knet::cuda::gpu::{Gpu, find};
use knet::dist::Share;
use knet::engine::forecast::TrainingDevice;
use knet::engine::{Engine, TrainingPrecision, WeightSource, class_list};
use knet::train::data::{Mix, Reading};
use knet::train::network::build_training;
use knet::train::run::RunConfig;
use knet::train::run::batch_size::BatchSize;
use knet::train::run::config::Recompute;
use knet::train::run::forecast::{ALL, Fit, describe, largest_batch};
use knet::train::run::start::{StartReport, Values, initial_values};

/// The values that `scene` starts from with `settings`.
fn values(scene: &Scene, settings: &[String]) -> (Values, StartReport) {
    let config = RunConfig::load(&scene.config(), settings).unwrap();
    let mix = Mix::open(&config.data.train, &Reading::default()).unwrap();
    let model = config.model(&mix, config.start.weights.as_deref()).unwrap();
    initial_values(&model, &config.start, 7).unwrap()
}

#[test]
fn rows_of_class_heads_follow_the_names() {
    let two = Scene::numbered(&[(4, "red"), (9, "blue")]);
    two.train("run", &[]);
    let weights = two.path("run/last.safetensors");
    let file = Checkpoint::open(&weights).unwrap();
    let start = format!("start.weights={weights:?}");
    let heads = ["rpn_head.conv_seg", "roi_head.mask_head.0.fc_cls", "roi_head.mask_head.1.fc_cls"];
    let row = |values: &Values, key: &str, row: usize| {
        let tensor = &values[key];
        let width = tensor.data().len() / tensor.shape().dims()[0];
        tensor.data()[row * width..][..width].to_vec()
    };
    let of_file: Values = file.names().map(|name| (name.to_string(), file.load_f32(name).unwrap())).collect();

    // The data number the classes the other way round: class 0 is blue.
    let swapped = Scene::numbered(&[(9, "red"), (4, "blue")]);
    let (values_swapped, report) = values(&swapped, std::slice::from_ref(&start));
    assert_eq!(report.kept_classes, ["blue", "red"]);
    assert!(report.new_classes.is_empty() && report.left_classes.is_empty());
    for key in heads.iter().flat_map(|head| [format!("{head}.weight"), format!("{head}.bias")]) {
        assert_eq!(row(&values_swapped, &key, 0), row(&of_file, &key, 1), "{key}");
        assert_eq!(row(&values_swapped, &key, 1), row(&of_file, &key, 0), "{key}");
    }
    // As many classes, one of them another; and fewer.
    for (scene, kept, new, left) in [
        (Scene::new(&["green", "blue"]), "blue", &["green"][..], "red"),
        (Scene::new(&["blue"]), "blue", &[], "red"),
    ] {
        let (found, report) = values(&scene, std::slice::from_ref(&start));
        assert_eq!(report.kept_classes, [kept]);
        assert_eq!(report.new_classes, new);
        assert_eq!(report.left_classes, [left]);
        for head in heads {
            let key = format!("{head}.weight");
            let place = found[&key].shape().dims()[0] - 1;
            assert_eq!(row(&found, &key, place), row(&of_file, &key, 1), "{key}");
            assert!(new.is_empty() || row(&found, &key, 0) != row(&of_file, &key, 0), "{key}");
        }
        // All other values are those of the file, bit by bit.
        let same = found.iter().filter(|(key, value)| {
            of_file.get(*key).is_some_and(|kept| kept.shape() == value.shape() && kept.data() == value.data())
        });
        let classes_differ = 2 * heads.len();
        assert_eq!(same.count() + classes_differ, found.len());
    }
    let output = swapped.train("run", &["--set", &start]);
    assert!(stderr(&output).contains("class heads: rows taken by name: blue, red"), "{}", stderr(&output));

    // The ids of the data set travel with the weights.
    let engine = Engine::builder().weights(WeightSource::File(weights.clone())).build().unwrap();
    let ids: Vec<(u32, String)> =
        class_list(engine.config()).iter().map(|c| (c.id, c.name.to_string())).collect();
    assert_eq!(ids, [(4, "red".to_string()), (9, "blue".to_string())]);

    // A file that does not name its classes is not guessed at.
    let bare = two.path("bare.safetensors");
    let tensors: Vec<_> = of_file.iter().map(|(key, t)| (key, t.shape(), t)).collect();
    let tensors = tensors.iter().map(|(key, shape, tensor)| knet::checkpoint::TensorOut {
        name: key,
        shape: shape.dims(),
        data: knet::checkpoint::TensorData::F32(tensor.data()),
    });
    knet::checkpoint::write_safetensors(&bare, tensors, &Default::default()).unwrap();
    let bare = format!("start.weights={bare:?}");
    let (found, report) = values(&two, std::slice::from_ref(&bare));
    assert!(report.unnamed);
    assert_ne!(row(&found, "rpn_head.conv_seg.weight", 0), row(&of_file, "rpn_head.conv_seg.weight", 0));
    let named = "start.classes=[\"red\", \"blue\"]".to_string();
    let (found, report) = values(&two, &[bare, named]);
    assert!(!report.unnamed && report.new_classes.is_empty());
    assert_eq!(found["rpn_head.conv_seg.weight"].data(), of_file["rpn_head.conv_seg.weight"].data());
}

#[test]
fn settings_that_do_not_go_together_are_said() {
    let scene = Scene::new(&["red", "blue"]);
    let arguments = [
        "--set",
        "model.proposals=1",
        "--set",
        "model.size=[320, 320]",
        "--set",
        "schedule.iterations=3",
        "--set",
        "data.max_objects=1",
        "--set",
        "model.max_per_image=1",
    ];
    let notes = stderr(&scene.train("run", &arguments));
    for part in [
        "2 images have more objects (up to 2) than 1 = model.proposals",
        "than 1 = data.max_objects",
        "than 1 = model.max_per_image",
        "augment.size is 64 x 64, but photos are segmented at model.size 320, 320",
        "schedule.warmup of 3 iterations is more than a third of the run's 3",
    ] {
        assert!(notes.contains(part), "no `{part}` in: {notes}");
    }
}

#[test]
fn a_plan_is_printed_and_nothing_written() {
    let scene = Scene::new(&["red", "blue"]);
    let here = scene.train("run", &["--plan"]);
    let text = String::from_utf8(here.stdout).unwrap();
    let lines = [
        "step        tiny: 2 images of 64x64 with up to 4 objects each\n",
        "device      CPU, ",
        "data.batch = \"auto\" takes 32 images\n",
        "recompute   off; on takes ",
    ];
    for line in lines {
        assert!(text.contains(line), "{text}");
    }
    let there =
        scene.train("run", &["--plan", "--gpu", "l4", "--precision", "bf16", "--set", "data.batch=auto"]);
    let text = String::from_utf8(there.stdout).unwrap();
    for line in [
        "tiny: 32 images",
        "device      L4 in bf16\n",
        "of 22.35 GiB free\n",
        "roofline    ",
        "\nconv2d_filter_grad ",
    ] {
        assert!(text.contains(line), "{line}: {text}");
    }
    assert!(!scene.path("run").exists());
    let unknown = stderr(&scene.run("run", &["--plan", "--gpu", "h900"]));
    assert!(unknown.contains("`h900` is none of h100, h200"), "{unknown}");
}

#[test]
fn the_largest_batch_is_chosen_once() {
    let scene = Scene::new(&["red", "blue"]);
    let auto = ["--set", "data.batch=auto", "--set", "schedule.iterations=1"];
    let notes = stderr(&scene.train("run", &auto));
    assert!(notes.contains("data.batch: 32 images, on CPU"), "{notes}");
    let kept = RunConfig::load(&scene.path("run/config.toml"), &[]).unwrap();
    assert_eq!(kept.data.batch.images(), Some(32));
    let more = ["--resume", "--set", "data.batch=auto", "--set", "schedule.iterations=2"];
    let notes = stderr(&scene.train("run", &more));
    assert!(!notes.contains("data.batch"), "{notes}");
    let wrong = stderr(&scene.run("other", &["--set", "data.batch=large"]));
    assert!(wrong.contains("expected a number of images or \"auto\""), "{wrong}");
}

#[test]
fn the_largest_batch_fits_and_one_more_does_not() {
    let scene = Scene::new(&["red", "blue"]);
    let settings = ["data.max_objects=20", "augment.size=[512, 512]", "data.batch=auto", "frozen=[]"];
    let mut config = RunConfig::load(&scene.config(), &settings.map(String::from)).unwrap();
    let mix = Mix::open(&config.data.train, &Reading::default()).unwrap();
    let model = config.model(&mix, None).unwrap();
    let device = |memory_gb| {
        TrainingDevice::published(&Gpu { memory_gb, ..*find("l4").unwrap() }, TrainingPrecision::F32)
    };
    let largest =
        |config: &RunConfig, device: &TrainingDevice| largest_batch(config, &model, Share::ALONE, device);
    let small = device(1);
    let at_once = config.clone();
    let bytes = |fit: Fit| {
        let network = build_training(&at_once.step(&model, fit, Share::ALONE)).unwrap();
        small.forecast(&network.graph).unwrap().bytes()
    };
    // 85 % of it.
    let check = |fit: Fit| {
        let next = Fit { images: fit.images + 1, ..fit };
        assert!((2..32).contains(&fit.images), "{fit:?}");
        assert!(bytes(fit) <= 850_000_000 && bytes(next) > 850_000_000, "{fit:?}");
    };
    let kept = largest(&config, &small).unwrap();
    check(kept);
    assert_eq!(largest(&config, &device(1000)).unwrap(), Fit { images: 32, recompute: 0 });
    let error = largest(&config, &device(0)).unwrap_err().to_string();
    let start = "a training step of 1 images of 512x512 (with recompute = \"on\") needs ";
    assert!(error.starts_with(start), "{error}");
    let made_again = RunConfig { recompute: Recompute::On, ..config.clone() };
    let made_again = largest(&made_again, &small).unwrap();
    check(made_again);
    assert!(made_again.recompute == ALL && made_again.images > kept.images, "{made_again:?} and {kept:?}");

    // More images than fit otherwise: as few stretches are made again as that takes.
    config.data.batch = BatchSize::Images(kept.images + 1);
    let text = describe(&config, &small).unwrap();
    assert!(text.contains("\n  on takes  ") && text.contains(" more operations\n"), "{text}");
    let (_, line) = text.split_once("\nrecompute   ").unwrap();
    let (few, all) = line.split_once(" stretches: ").unwrap().0.split_once(" of ").unwrap();
    let [few, all] = [few, all].map(|count| count.parse::<usize>().unwrap());
    assert!((1..all).contains(&few), "{text}");
    assert_eq!(text.matches("\n  again     ").count(), few, "{text}");
    let with = |recompute| bytes(Fit { images: kept.images + 1, recompute });
    assert!(with(few) <= 850_000_000 && with(few - 1) > 850_000_000, "{text}");
    assert_eq!(with(all), with(ALL));
    config.recompute = Recompute::Off;
    let text = describe(&config, &small).unwrap();
    assert!(text.contains("\nrecompute   off; on takes "), "{text}");
}
