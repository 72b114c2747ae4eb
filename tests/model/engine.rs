//! The engine as a library: what loads, what is refused and how, and that results depend on neither the
//! number of threads nor on anything but the picture.

use knet::checkpoint::StorageType;
use knet::engine::{
    Device, EngineBuilder, InputSize, MaskSize, Model, ModelOptions, Segmentation, SessionOptions,
    WeightSource,
};
use knet::image::instance::{Instance, InstanceFilter};
use knet::image::resize::resize;
use knet::model::{TapMode, Task};
use knet::plan::Place;
use knet::{Engine, Error, ErrorKind, Session};
use std::path::PathBuf;
use std::sync::OnceLock;
use testkit::model::{Entry, photo, seeded_entries, small_config, write_entries};

const PANOPTIC: &str = "knet_s3_r50_fpn_panoptic";

/// The small model as a file, written once.
fn small_file() -> &'static PathBuf {
    static FILE: OnceLock<PathBuf> = OnceLock::new();
    FILE.get_or_init(|| {
        let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("engine-small.safetensors");
        let config = small_config();
        write_entries(&path, &seeded_entries(&config, 7), Some(&config.to_json()), StorageType::F32);
        path
    })
}

fn small_engine() -> EngineBuilder {
    Engine::builder().weights(small_file().as_path()).size(Some((64, 96)))
}

fn refused(builder: EngineBuilder) -> Error {
    match builder.build() {
        Ok(_) => panic!("was accepted"),
        Err(error) => error,
    }
}

#[test]
fn engines_move_between_threads() {
    fn is_send<T: Send>() {}
    is_send::<Engine>();
    is_send::<Segmentation>();
    let mut engine = small_engine().threads(2).build().unwrap();
    let here = engine.segment(&photo(60, 90)).unwrap();
    let there = std::thread::spawn(move || engine.segment(&photo(60, 90)).unwrap()).join().unwrap();
    assert!(here == there);
}

#[test]
fn the_number_of_threads_does_not_change_a_bit() {
    for model in ["knet_s3_r50_fpn", PANOPTIC] {
        let run = |threads| {
            let builder = Engine::builder().model(model).threads(threads).size(Some((96, 128)));
            let mut engine = builder.build().unwrap();
            assert_eq!(engine.threads(), threads);
            engine.segment(&photo(90, 133)).unwrap()
        };
        let wanted = run(1);
        for threads in [2, 3] {
            assert!(run(threads) == wanted, "{model}: {threads} threads give other bits than one");
        }
    }
}

#[test]
fn masks_of_the_networks_size_are_those_of_a_photo_of_that_size() {
    // Both have one size in the network.
    let photos = [photo(90, 135), photo(180, 270)];
    for name in ["knet_s3_lite0_fpn", PANOPTIC, "fcn_r50-d8"] {
        let options =
            ModelOptions { name: Some(name.into()), device: Device::Cpu, ..ModelOptions::default() };
        let model = Model::load(&options).unwrap();
        let options = SessionOptions { threads: 2, size: InputSize::Within(64, 96), ..Default::default() };
        let session =
            |masks| Session::new(model.clone(), &SessionOptions { masks, ..options.clone() }).unwrap();
        let (mut of_network, mut of_photo) = (session(MaskSize::OfNetwork), session(MaskSize::OfPhoto));
        for _ in 0..2 {
            for photo in &photos {
                let found = of_network.segment(photo).unwrap();
                assert_eq!(found.size(), (64, 96));
                assert!(found == of_photo.segment(&resize(photo, (64, 96))).unwrap(), "{name}");
            }
        }
    }
}

#[test]
fn tasks() {
    let mut engine =
        Engine::builder().model(PANOPTIC).task(Task::Instance).size(Some((64, 96))).build().unwrap();
    assert_eq!(engine.task(), Task::Instance);
    let result = engine.segment(&photo(70, 100)).unwrap();
    assert!(result.panoptic().is_none());
    assert_eq!(result.instances().len(), 100);
    for instance in result.instances() {
        assert!(instance.label < 80 && instance.mask_index < 100, "stuff among the instances: {instance:?}");
    }

    let mut engine = Engine::builder().model(PANOPTIC).size(Some((64, 96))).build().unwrap();
    assert_eq!(engine.task(), Task::Panoptic);
    let result = engine.segment(&photo(70, 100)).unwrap();
    assert!(result.instances().is_empty());
    let panoptic = result.panoptic().unwrap();
    assert_eq!((panoptic.height, panoptic.width, panoptic.map.len()), (70, 100, 7000));
    for segment in &panoptic.segments {
        assert_eq!(panoptic.map.iter().filter(|&&v| v == segment.id).count(), segment.area);
    }

    let error = refused(Engine::builder().task(Task::Panoptic));
    assert_eq!(error.kind(), ErrorKind::Usage);
    assert!(
        error.to_string().contains("knet_s3_r50_fpn") && error.to_string().contains("instances only"),
        "{error}"
    );
}

#[test]
fn masks_have_the_size_of_the_photo() {
    let mut engine = small_engine().build().unwrap();
    for (height, width) in [(75, 131), (64, 96), (300, 200), (31, 17)] {
        let result = engine.segment(&photo(height, width)).unwrap();
        let size = (height as usize, width as usize);
        assert_eq!(result.size(), size);
        assert!(!result.instances().is_empty());
        for instance in result.instances() {
            let mask = result.mask(instance);
            assert_eq!((mask.height(), mask.width()), size);
            assert_eq!(mask.area(), instance.area);
        }
    }
}

#[test]
fn results_do_not_depend_on_earlier_photos() {
    let mut engine = small_engine().build().unwrap();
    // More sizes than an engine keeps plans and tables for.
    let photos: Vec<_> =
        [(64, 96), (96, 64), (64, 64), (20, 90), (30, 120), (75, 131)].map(|(h, w)| photo(h, w)).into();
    let mut result = Segmentation::default();
    let first: Vec<Segmentation> = photos.iter().map(|p| engine.segment(p).unwrap()).collect();
    for _ in 0..2 {
        for (photo, first) in photos.iter().zip(&first) {
            engine.segment_into(photo, &mut result).unwrap();
            assert_eq!(result.instances(), first.instances());
            assert_eq!(result.size(), first.size());
            for (a, b) in result.instances().iter().zip(first.instances()) {
                assert!(result.mask(a) == first.mask(b), "another mask at {:?}", first.size());
            }
        }
    }
}

#[test]
fn extreme_shapes() {
    for task in [Task::Instance, Task::Panoptic] {
        let model = if task == Task::Panoptic { PANOPTIC } else { "knet_s3_r50_fpn" };
        let mut engine = Engine::builder().model(model).size(Some((64, 64))).build().unwrap();
        for (height, width) in [(1, 1), (1, 5000), (5000, 1), (2, 3)] {
            let result = engine.segment(&photo(height, width)).unwrap();
            assert_eq!(result.size(), (height as usize, width as usize));
            if let Some(panoptic) = result.panoptic() {
                assert_eq!(panoptic.map.len(), (height * width) as usize);
            }
        }
    }
    let mut engine = small_engine().size(None).build().unwrap();
    for (height, width) in [(1, 1), (1, 700), (700, 1)] {
        assert_eq!(engine.segment(&photo(height, width)).unwrap().size(), (height as usize, width as usize));
    }
    for (height, width) in [(0, 0), (0, 9), (9, 0)] {
        assert_eq!(engine.segment(&photo(height, width)).unwrap_err().kind(), ErrorKind::Usage);
    }
    assert_eq!(refused(Engine::builder().size(Some((0, 64)))).kind(), ErrorKind::Usage);
}

#[test]
fn other_widths() {
    let mut engine = small_engine().build().unwrap();
    assert_eq!(engine.config(), &small_config());
    let names: Vec<String> = engine.classes().iter().map(|class| class.name.to_string()).collect();
    assert_eq!(names, ["ant", "bee", "cow", "dog", "eel"]);
    let result = engine.segment(&photo(64, 96)).unwrap();
    // 12 objects of 5 classes, fewer than the limit of 100: every pair.
    assert_eq!(result.instances().len(), 60);
    assert_eq!(result.instance_result().unwrap().masks().len(), 12);
    let scores: Vec<f32> = result.instances().iter().map(|i| i.score).collect();
    assert!(
        scores.is_sorted_by(|a, b| a >= b) && scores.iter().all(|s| (0.0..=1.0).contains(s)),
        "{scores:?}"
    );
    let mut few = small_engine().min_score(f64::from(scores[20])).build().unwrap();
    let kept = few.segment(&photo(64, 96)).unwrap().instances().len();
    assert_eq!(kept, scores.iter().filter(|&&s| s >= scores[20]).count());
}

#[test]
fn half_precision_files() {
    let config = small_config();
    let entries = seeded_entries(&config, 7);
    let folder = tempfile::tempdir().unwrap();
    let segment = |name: &str, entries: &[Entry], dtype| {
        let path = folder.path().join(name);
        write_entries(&path, entries, Some(&config.to_json()), dtype);
        let mut engine = Engine::builder().weights(path.as_path()).size(Some((64, 96))).build().unwrap();
        engine.segment(&photo(64, 96)).unwrap()
    };
    let round = |v: f32, dtype| match dtype {
        StorageType::F16 => half::f16::from_f32(v).to_f32(),
        _ => half::bf16::from_f32(v).to_f32(),
    };
    for dtype in [StorageType::F16, StorageType::BF16] {
        let mut rounded = seeded_entries(&config, 7);
        rounded
            .iter_mut()
            .flat_map(|entry| &mut entry.values)
            .for_each(|value| *value = round(*value, dtype));
        // Loading widens exactly: the rounded tensors in full precision give the same bits.
        let (found, wanted) = (segment("half", &entries, dtype), segment("full", &rounded, StorageType::F32));
        assert_eq!(found.instances().len(), 60);
        assert!(found == wanted, "{dtype}");
    }
}

#[test]
fn everything_that_does_not_fit_is_reported_at_once() {
    let config = small_config();
    let mut entries = seeded_entries(&config, 7);
    let at =
        |entries: &[Entry], name: &str| entries.iter().position(|e| e.name == name).expect("a known tensor");
    let missing = ["backbone.layer2.0.conv1.weight", "roi_head.mask_head.1.fc_cls.bias"];
    for name in missing {
        let index = at(&entries, name);
        entries.remove(index);
    }
    let misshapen = at(&entries, "rpn_head.init_kernels.weight");
    entries[misshapen].shape = vec![64, 12];
    entries[misshapen].values.truncate(64 * 12);
    let (nan, infinite) = (at(&entries, "backbone.conv1.weight"), at(&entries, "backbone.bn1.running_var"));
    entries[nan].values[100] = f32::NAN;
    entries[infinite].values[63] = f32::NEG_INFINITY;
    for name in ["roi_head.extra", "backbone.bn1.num_batches_tracked"] {
        entries.push(Entry { name: name.into(), shape: vec![1], values: vec![3.0] });
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("damaged.safetensors");
    write_entries(&path, &entries, Some(&config.to_json()), StorageType::F32);

    let error = refused(Engine::builder().weights(path.as_path()));
    assert_eq!(error.kind(), ErrorKind::Weights);
    let message = error.to_string();
    let Error::Weights { report, model, .. } = error else { panic!("{message}") };
    assert_eq!(model, "tiny");
    let sorted = |mut names: Vec<String>| {
        names.sort();
        names
    };
    assert_eq!(sorted(report.missing), missing);
    assert_eq!(report.unexpected, ["roi_head.extra"]);
    assert_eq!(report.misshapen.len(), 1);
    assert_eq!(
        (&report.misshapen[0].expected[..2], &report.misshapen[0].found),
        (&[12, 64][..], &vec![64, 12])
    );
    assert_eq!(sorted(report.non_finite), ["backbone.bn1.running_var", "backbone.conv1.weight"]);
    for fragment in
        ["damaged.safetensors", "tiny", "roi_head.extra", "rpn_head.init_kernels.weight", "[64, 12]"]
            .iter()
            .chain(&missing)
    {
        assert!(message.contains(fragment), "`{fragment}` is not in: {message}");
    }
}

#[test]
fn files_that_do_not_say_what_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("odd.safetensors");
    let entries = [Entry { name: "x".into(), shape: vec![1], values: vec![1.0] }];
    let build = |text: Option<&str>, name: Option<&str>| {
        write_entries(&path, &entries, text, StorageType::F32);
        let builder = Engine::builder().weights(path.as_path());
        refused(name.map_or(builder.clone(), |name| builder.model(name)))
    };
    let small = small_config();
    let change = |from: &str, to: &str| {
        let text = small.to_json().replace(from, to);
        assert_ne!(text, small.to_json(), "`{from}` is not in the configuration");
        text
    };
    let cases: Vec<(String, &str)> = vec![
        ("".into(), "EOF"),
        ("{}".into(), "missing field"),
        ("[1, 2]".into(), "model configuration"),
        ("{\"name\": \"tiny\"".into(), "EOF"),
        (change("\"channels\":64", "\"channels\":\"many\""), "many"),
        (change("\"channels\":64", "\"channels\":-64"), "-64"),
        (change("\"channels\":64", "\"channels\":0"), "channels is 0"),
        (change("\"channels\":64", "\"channels\":18446744073709551615"), "channels"),
        (change("\"channels\":64", "\"chanels\":64"), "chanels"),
        (change("\"depth\":50", "\"depth\":34"), "depth 34"),
        (change("\"type\":\"resnet\"", "\"type\":\"vit\""), "vit"),
        (change("\"type\":\"resnet\"", "\"type\":\"swin\""), "unknown field `depth`"),
        (change("\"heads\":4", "\"heads\":5"), "heads"),
        (change("\"task\":\"instance\"", "\"task\":\"panoptic\""), "0 stuff classes"),
        (change("\"task\":\"instance\"", "\"task\":\"semantic\""), "no decode head"),
        (change("\"eel\"", "\"eel\",\"fox\""), "6 class names for 5 classes"),
        (change("\"overlap_threshold\":0.6", "\"overlap_threshold\":60"), "between 0 and 1"),
    ];
    for (text, fragment) in cases {
        let error = build(Some(&text), None);
        assert_eq!(error.kind(), ErrorKind::Checkpoint, "{text}: {error}");
        let message = error.to_string();
        assert!(message.contains("odd.safetensors") && message.contains(fragment), "{text}: {message}");
    }
    let error = build(None, None);
    assert_eq!(error.kind(), ErrorKind::Usage);
    assert!(error.to_string().contains("does not say which model"), "{error}");
    let error = build(Some(&small.to_json()), Some("knet_s3_r50_fpn"));
    assert_eq!(error.kind(), ErrorKind::Usage);
    assert!(error.to_string().contains("holds model `tiny`"), "{error}");
    let error = build(None, Some("knet_s3_r50_fpn"));
    assert_eq!(error.kind(), ErrorKind::Weights);
    let Error::Weights { report, .. } = error else { unreachable!() };
    assert_eq!(report.unexpected, ["x"]);
    assert!(report.missing.len() > 300, "{} missing", report.missing.len());
}

#[test]
fn an_unknown_model_is_met_with_a_suggestion() {
    let error = refused(Engine::builder().model("knet_s3_r50_fpn_panoptc"));
    assert_eq!(error.kind(), ErrorKind::Usage);
    assert!(error.to_string().contains("did you mean `knet_s3_r50_fpn_panoptic`?"), "{error}");
    let error = refused(Engine::builder().weights(WeightSource::File("/nowhere/x.safetensors".into())));
    assert_eq!(error.kind(), ErrorKind::Io);
    assert!(error.to_string().contains("/nowhere/x.safetensors"), "{error}");
}

#[test]
fn plans_are_reproducible_and_keep_to_the_arena() {
    for model in ["knet_s3_r50_fpn", "knet_s3_r101_fpn_panoptic", "knet_s3_lite2_fpn"] {
        let engine = Engine::builder().model(model).threads(2).build().unwrap();
        let (plan, taps) = engine.session().plan((128, 192), TapMode::Off).unwrap();
        assert!(taps.is_empty());
        let text = plan.to_string();
        assert_eq!(text, engine.session().plan((128, 192), TapMode::Off).unwrap().0.to_string());
        assert_eq!(text.lines().count(), plan.steps.len() + 2, "a header, a line a step, a total");
        assert!(text.lines().last().unwrap().contains("GFLOP"), "{text}");
        for (line, step) in text.lines().skip(1).zip(&plan.steps) {
            let words: Vec<&str> = line.split_whitespace().collect();
            assert!(line.contains(&step.name) && line.contains(&step.kernel), "{line}");
            let [.., offset, scratch] = words[..] else { panic!("{line}") };
            assert!(offset.parse::<usize>().unwrap() < plan.arena_bytes, "{line}");
            assert_eq!(scratch.parse::<usize>().unwrap(), step.workspace.bytes, "{line}");
        }
        for step in &plan.steps {
            let operands = step.inputs.iter().chain(&step.outputs).filter_map(|o| match o.place {
                Place::Arena(slot) => Some((slot, o.ty.bytes())),
                Place::Const(_) => None,
            });
            for (slot, bytes) in operands {
                assert_eq!(slot.offset % 64, 0, "{}", step.name);
                assert!(slot.bytes >= bytes, "{}: {bytes} bytes in a slot of {}", step.name, slot.bytes);
                assert!(slot.offset + slot.bytes <= plan.arena_bytes, "{}", step.name);
            }
            assert!(step.workspace.offset + step.workspace.bytes <= plan.arena_bytes, "{}", step.name);
        }
        let error = engine.session().plan((100, 192), TapMode::Off).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Usage);
        assert!(error.to_string().contains("100x192"), "{error}");
    }
}

#[test]
fn a_filter_leaves_what_was_asked_for() {
    let photo = photo(70, 100);
    let segment = |filter| small_engine().filter(filter).build().unwrap().segment(&photo).unwrap();
    let all = segment(InstanceFilter::default());
    assert_eq!(all.instances().len(), 60, "by default all that K-Net gives");
    let rule = InstanceFilter { min_area: 1, max_overlap: 0.5, ..InstanceFilter::default() };
    let some = segment(rule);
    // The same by the book: pixel by pixel.
    let mut kept: Vec<&Instance> = Vec::new();
    for instance in all.instances().iter().filter(|instance| instance.area > 0) {
        let overlap = |other: &&Instance| {
            let (a, b) = (all.mask(instance), all.mask(other));
            let both = a.pixels().filter(|&(y, x)| b.get(y, x)).count();
            both as f64 / (a.area() + b.area() - both) as f64
        };
        if kept.iter().all(|other| overlap(other) <= 0.5) {
            kept.push(instance);
        }
    }
    assert!(!kept.is_empty() && kept.len() < 60);
    let described = |i: &Instance| (i.mask_index, i.label, i.score, i.area, i.bbox);
    let expected: Vec<_> = kept.iter().map(|instance| described(instance)).collect();
    assert_eq!(some.instances().iter().map(described).collect::<Vec<_>>(), expected);
    assert!(some.instances().iter().zip(kept).all(|(found, wanted)| some.mask(found) == all.mask(wanted)));
    let error = refused(small_engine().filter(InstanceFilter { max_overlap: 2.0, ..rule }));
    assert!(error.kind() == ErrorKind::Usage && error.to_string().contains("max_overlap"), "{error}");
}
