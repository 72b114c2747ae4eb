//! Batches: what is in them, in which order they come, and that nothing but seed and position decides.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use knet::ErrorKind;
use knet::image::preprocess::{PreprocessConfig, Preprocessor};
use knet::train::data::{
    Augment, Batch, DataConfig, Loader, LoaderConfig, Mix, Position, Reading, Sampling, Targets,
    colour::Colour,
};
use serde_json::json;

use testkit::data;

/// A set of `count` photos 48 x 32; photo i has i % 3 objects (a square each).
fn small(root: &Path, count: usize) -> DataConfig {
    let names: Vec<String> = (0..count).map(|i| format!("{i}.png")).collect();
    data::photos(root, &names.iter().map(String::as_str).collect::<Vec<_>>());
    let images: Vec<_> = (0..count)
        .map(|i| json!({"id": 100 + i, "file_name": names[i], "width": 48, "height": 32}))
        .collect();
    let objects = (0..count).flat_map(|i| (0..i % 3).map(move |k| (i, k)));
    let annotations: Vec<_> =
        objects.map(|(i, k)| data::square(10 * i + k, 100 + i as u64, [3, 9][k])).collect();
    let text = json!({"images": images, "annotations": annotations,
                      "categories": [{"id": 3, "name": "cat"}, {"id": 9, "name": "dog"}]});
    data::coco_text(root, &text.to_string())
}

fn mix(configs: &[DataConfig]) -> Arc<Mix> {
    Arc::new(Mix::open(configs, &Reading::default()).unwrap())
}

fn config(size: [usize; 2]) -> LoaderConfig {
    LoaderConfig {
        targets: Targets::Objects(4),
        augment: Augment { size, copy_paste: 0.5, ..Augment::default() },
        ..LoaderConfig::default()
    }
}

fn take(mix: &Arc<Mix>, config: LoaderConfig, count: usize) -> (Vec<Batch>, Position) {
    let mut loader = Loader::new(Arc::clone(mix), config).unwrap();
    let batches = (0..count).map(|_| loader.next_batch().unwrap().clone()).collect();
    (batches, loader.position())
}

#[test]
fn without_augmentation_a_batch_is_what_the_engine_would_see() {
    let folder = tempfile::tempdir().unwrap();
    let mix = mix(&[small(folder.path(), 3)]);
    let augment = Augment::off([64, 80]);
    let config = LoaderConfig { batch: 3, augment, targets: Targets::Objects(3), ..LoaderConfig::default() };
    let (batches, position) = take(&mix, config, 1);
    let batch = &batches[0];
    assert_eq!(position, Position { epoch: 1, index: 0 });
    assert_eq!((batch.size, batch.len(), batch.slots()), ([64, 96], 3, 3));
    // 48 x 32 fits 80 x 53.
    let mut engine =
        Preprocessor::new(PreprocessConfig { size: Some((64, 80)), ..PreprocessConfig::default() }).unwrap();
    let mut wanted = vec![0.0; 64 * 96 * 3];
    engine.run(&data::ramp(48, 32), &mut wanted).unwrap();
    for (slot, image) in batch.images.chunks_exact(64 * 96 * 3).enumerate() {
        // The resampler differs from OpenCV's fixed point by rounding: one step of 255 is 1 / 57 after
        // normalisation.
        let worst = image.iter().zip(&wanted).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst <= 1.01 / 57.12, "{worst}");
        let count = (batch.ids[slot] - 100) as usize % 3;
        assert_eq!((batch.things[slot], batch.objects[slot]), (count, count));
        let labels = &batch.labels[slot * 3..][..3];
        assert_eq!(labels, &[[-1, -1, -1], [0, -1, -1], [0, 1, -1]][count]);
        for k in 0..3 {
            let mask = &batch.masks[(slot * 3 + k) * 16 * 24..][..16 * 24];
            // Columns 8 to 15 become 13 to 26 (x 5 / 3), which hold the middle pixels of the target cells 3
            // to 6.
            let row = &mask[5 * 24..][..9];
            let wanted = if k < count { [0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0] } else { [0.0; 9] };
            assert_eq!(row, wanted, "slot {k} of {count}");
            assert!(mask.iter().all(|v| [0.0, 0.25, 0.5, 0.75, 1.0].contains(v)));
        }
    }
}

#[test]
fn stuff_masks_follow_the_things() {
    let folder = tempfile::tempdir().unwrap();
    let (file, _) = data::panoptic(folder.path());
    let config = LoaderConfig {
        batch: 1,
        targets: Targets::Objects(5),
        augment: Augment::off([32, 48]),
        ..LoaderConfig::default()
    };
    let (batches, _) = take(&mix(&[file]), config, 1);
    let batch = &batches[0];
    assert_eq!((batch.size, &batch.things[..], &batch.objects[..]), ([32, 64], &[1][..], &[2][..]));
    assert_eq!(batch.labels, [1, 2, -1, -1, -1]);
    let mask = |k: usize, y: usize, x: usize| batch.masks[(k * 8 + y) * 16 + x];
    // The dog covers columns 4 to 13 and rows 10 to 19, the sky rows 0 to 9.
    assert_eq!([0, 1, 2, 3, 4].map(|x| mask(0, 3, x)), [0.0, 1.0, 1.0, 0.5, 0.0]);
    assert_eq!([1, 2, 3, 4, 5].map(|y| mask(0, y, 1)), [0.0, 0.5, 1.0, 1.0, 0.0]);
    assert_eq!([0, 1, 2, 3].map(|y| mask(1, y, 11)), [1.0, 1.0, 0.5, 0.0]);
    assert_eq!(mask(1, 0, 12), 0.0, "padding has no class");
}

#[test]
fn semantic_batches_have_the_class_of_each_pixel() {
    let folder = tempfile::tempdir().unwrap();
    let settings = LoaderConfig {
        batch: 2,
        targets: Targets::Pixels,
        augment: Augment::off([32, 48]),
        ..LoaderConfig::default()
    };
    let mix_of = mix(&[data::semantic(folder.path())]);
    let (batches, _) = take(&mix_of, settings.clone(), 1);
    let batch = &batches[0];
    assert_eq!((batch.size, batch.slots(), batch.masks.len(), batch.labels.len()), ([32, 64], 0, 0, 0));
    // Columns are 0, 1, 2, ignored, in turn; what is padded has no class.
    let wanted = |at: usize| if at % 64 < 48 { [0, 1, 2, -1][at % 64 % 4] } else { -1 };
    assert_eq!(batch.classes, (0..2 * 32 * 64).map(wanted).collect::<Vec<i32>>());

    // Pixels and classes move together: red grows with x, and tells the column.
    let augment = Augment { size: [32, 48], scale: [1.0, 1.0], flip: 1.0, ..Augment::off([32, 48]) };
    let augment = Augment {
        enabled: true,
        colour: Colour { probability: 0.0, blur: 0.0, ..Colour::default() },
        ..augment
    };
    let (batches, _) = take(&mix_of, LoaderConfig { augment, ..settings }, 1);
    assert!((0..48).all(|x| batches[0].classes[x] == [0, 1, 2, -1][(47 - x) % 4]));
    // Of a panoptic set things have their class, too.
    let folder = tempfile::tempdir().unwrap();
    let (file, _) = data::panoptic(folder.path());
    let settings = LoaderConfig {
        batch: 1,
        targets: Targets::Pixels,
        augment: Augment::off([32, 48]),
        ..LoaderConfig::default()
    };
    let (batches, _) = take(&mix(&[file]), settings, 1);
    let class = |x: usize, y: usize| batches[0].classes[y * 64 + x];
    assert_eq!([class(5, 5), class(5, 15), class(20, 15), class(40, 20)], [2, 1, -1, -1]);
}

#[test]
fn too_many_objects_are_thinned_out_and_counted() {
    let folder = tempfile::tempdir().unwrap();
    let mut settings = config([32, 64]);
    settings.augment = Augment::off([32, 64]);
    settings.targets = Targets::Objects(1);
    settings.sampling.overfit = Some(2);
    let (batches, _) = take(&mix(&[small(folder.path(), 3)]), settings, 20);
    assert!(batches.iter().all(|b| b.left_out == 1 && b.objects == [1, 1]));
    let kept: HashMap<_, usize> = batches.iter().flat_map(|b| b.ids.iter().zip(&b.labels)).fold(
        HashMap::new(),
        |mut seen, (&id, &label)| {
            *seen.entry((id, label)).or_default() += 1;
            seen
        },
    );
    assert_eq!(kept.len(), 3, "both objects of the second image get their turn: {kept:?}");
}

#[test]
fn threads_do_not_change_the_batches() {
    let folder = tempfile::tempdir().unwrap();
    let mix = mix(&[small(folder.path(), 7)]);
    let (wanted, end) = take(&mix, config([64, 64]), 12);
    for (threads, prefetch, cache_bytes) in [(1, 1, 0), (3, 1, 1 << 30), (4, 6, 20_000)] {
        let settings = LoaderConfig { threads, prefetch, cache_bytes, ..config([64, 64]) };
        assert_eq!(take(&mix, settings, 12), (wanted.clone(), end), "{threads} threads");
    }
    let other = LoaderConfig { seed: 1, ..config([64, 64]) };
    assert_ne!(take(&mix, other, 12).0, wanted);
    // An image looks different each time.
    assert!(wanted.iter().enumerate().all(|(i, b)| wanted[..i].iter().all(|a| a.images != b.images)));
}

#[test]
fn a_position_resumes_bit_for_bit() {
    let folder = tempfile::tempdir().unwrap();
    let mix = mix(&[small(folder.path(), 5)]);
    let (all, _) = take(&mix, config([64, 64]), 10);
    for stop in [1, 2, 3, 5, 7] {
        let (_, start) = take(&mix, config([64, 64]), stop);
        let resumed = take(&mix, LoaderConfig { start, threads: 2, ..config([64, 64]) }, 10 - stop).0;
        assert_eq!(resumed, all[stop..], "resumed after {stop} batches at {start:?}");
    }
    let lost = LoaderConfig { start: Position { epoch: 0, index: 5 }, ..config([64, 64]) };
    let error = Loader::new(Arc::clone(&mix), lost).err().unwrap();
    assert!(error.to_string().contains("sample 5 of epoch 0: it has 5 samples"), "{error}");
}

fn seen(mix: &Arc<Mix>, sampling: Sampling, epochs: u64) -> HashMap<u64, usize> {
    let settings =
        LoaderConfig { batch: 1, sampling, augment: Augment::off([32, 64]), ..LoaderConfig::default() };
    let mut loader = Loader::new(Arc::clone(mix), settings).unwrap();
    let mut seen = HashMap::new();
    let mut in_epochs = 0;
    while loader.position().epoch < epochs {
        *seen.entry(loader.next_batch().unwrap().ids[0]).or_default() += 1;
        in_epochs += 1;
    }
    assert_eq!(in_epochs, (0..epochs).map(|e| loader.epoch_len(e)).sum::<u64>());
    seen
}

#[test]
fn weights_repeat_and_overfit() {
    let folder = tempfile::tempdir().unwrap();
    let config = small(folder.path(), 6);
    let mix = mix(std::slice::from_ref(&config));
    let plain = seen(&mix, Sampling::default(), 4);
    assert!(plain.len() == 6 && plain.values().all(|&n| n == 4), "{plain:?}");
    let weighted = seen(&mix, Sampling { negative_weight: 0.5, several_weight: 2.0, overfit: None }, 40);
    assert_eq!([101, 102, 104, 105].map(|id| weighted[&id]), [40, 80, 40, 80]);
    assert!((26..=54).contains(&(weighted[&100] + weighted[&103])), "{weighted:?}");
    let two = seen(&mix, Sampling { overfit: Some(2), ..Sampling::default() }, 3);
    assert_eq!(two, HashMap::from([(101, 3), (102, 3)]), "the first two that have objects");
    let none = Sampling { negative_weight: -1.0, ..Sampling::default() };
    let settings = LoaderConfig { sampling: none, ..LoaderConfig::default() };
    assert_eq!(Loader::new(mix, settings).err().unwrap().kind(), ErrorKind::Usage);

    let DataConfig::CocoInstance { annotations, images, classes, .. } = config else { unreachable!() };
    let thrice = DataConfig::CocoInstance { annotations, images, classes, repeat: 3.0 };
    let mix = Arc::new(Mix::open(&[thrice], &Reading::default()).unwrap());
    assert!(seen(&mix, Sampling::default(), 2).values().all(|&n| n == 6));
}

#[test]
fn one_image_fills_a_batch() {
    let folder = tempfile::tempdir().unwrap();
    data::photos(folder.path(), &["a.png"]);
    let file = data::coco_file(folder.path(), &[data::square(1, 7, 9)]);
    let settings = LoaderConfig { batch: 4, ..config([64, 64]) };
    let (batches, position) = take(&mix(&[file]), settings, 2);
    assert_eq!(batches[1].ids, [7; 4]);
    assert_eq!(position, Position { epoch: 8, index: 0 });
}

#[test]
fn masks_move_with_the_pixels() {
    // One object that is the only bright part of a dark photo: wherever it goes, its target covers what is
    // bright.
    let folder = tempfile::tempdir().unwrap();
    data::photos(folder.path(), &["a.png"]);
    let bright = |x: u32, y: u32| (10..34).contains(&x) && (6..22).contains(&y);
    let photo = image::RgbImage::from_fn(48, 32, |x, y| image::Rgb([if bright(x, y) { 250 } else { 5 }; 3]));
    photo.save(folder.path().join("images/a.png")).unwrap();
    let mut object = data::square(1, 7, 9);
    object["segmentation"] = json!([[10, 6, 34, 6, 34, 22, 10, 22]]);
    let file = data::coco_file(folder.path(), &[object]);
    let colour = Colour { probability: 0.0, grey: 0.0, blur: 0.0, ..Colour::default() };
    let augment =
        Augment { size: [96, 128], scale: [0.5, 2.0], copy_paste: 0.7, colour, ..Augment::default() };
    let settings = LoaderConfig {
        batch: 1,
        targets: Targets::Objects(6),
        augment,
        mean: [0.0; 3],
        std: [1.0; 3],
        ..LoaderConfig::default()
    };
    let (batches, _) = take(&mix(&[file]), settings, 40);
    let mut pasted = 0;
    for batch in &batches {
        pasted += usize::from(batch.objects[0] > 1);
        for y in 0..24 {
            for x in 0..32 {
                let covered: f32 = (0..6).map(|k| batch.masks[(k * 24 + y) * 32 + x]).sum();
                let centre = [(1, 1), (1, 2), (2, 1), (2, 2)]
                    .map(|(dy, dx)| batch.images[((4 * y + dy) * 128 + 4 * x + dx) * 3]);
                // Bilinear blending leaves a pixel inside the edge at least half of the object's 250, at a
                // corner a quarter (66 with the 5 of the ground), and gives one outside at most half (128).
                if covered == 1.0 {
                    assert!(centre.iter().all(|&v| v > 60.0), "{centre:?} at {x}, {y}");
                } else if covered == 0.0 {
                    assert!(centre.iter().all(|&v| v < 135.0), "{centre:?} at {x}, {y}");
                }
                assert!(covered <= 1.0, "objects share a pixel");
            }
        }
    }
    assert!(pasted > 10, "{pasted} of 40 frames with pasted objects");
}

#[test]
fn an_error_names_the_file_and_the_next_call_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let mix = mix(&[small(folder.path(), 4)]);
    std::fs::write(folder.path().join("images/2.png"), b"rotten").unwrap();
    let settings =
        LoaderConfig { batch: 1, threads: 2, augment: Augment::off([32, 64]), ..LoaderConfig::default() };
    let mut loader = Loader::new(mix, settings).unwrap();
    let mut faults = 0;
    for _ in 0..8 {
        let before = loader.position();
        if let Err(error) = loader.next_batch() {
            faults += 1;
            assert_eq!(error.kind(), ErrorKind::Image);
            assert!(error.to_string().contains("2.png"), "{error}");
            assert_eq!(loader.position(), before);
        }
    }
    assert_eq!(faults, 2, "once an epoch");
}

#[test]
fn dropping_ends_the_threads_quickly() {
    let folder = tempfile::tempdir().unwrap();
    let mix = mix(&[small(folder.path(), 4)]);
    let settings = LoaderConfig { threads: 4, prefetch: 8, batch: 8, ..config([256, 256]) };
    for _ in 0..5 {
        let mut loader = Loader::new(Arc::clone(&mix), settings.clone()).unwrap();
        loader.next_batch().unwrap();
        let start = Instant::now();
        drop(loader);
        assert!(start.elapsed().as_millis() < 1000, "{:?}", start.elapsed());
    }
    // No thread holds on to the data.
    assert_eq!(Arc::strong_count(&mix), 1);
}

#[test]
fn settings_out_of_range_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let mix = mix(&[small(folder.path(), 3)]);
    let with = |change: &dyn Fn(&mut LoaderConfig)| {
        let mut settings = config([64, 64]);
        change(&mut settings);
        let error = Loader::new(Arc::clone(&mix), settings).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Usage);
        error.to_string()
    };
    assert!(with(&|c| c.batch = 0).contains("batch"));
    assert!(with(&|c| c.threads = 1_000_000).contains("1000000 threads"));
    assert!(with(&|c| c.augment.size = [0, 64]).contains("size = [0, 64]"));
    assert!(with(&|c| c.augment.scale = [1.0, f64::NAN]).contains("scale"));
    assert!(with(&|c| c.augment.flip = 1.5).contains("flip = 1.5"));
    assert!(with(&|c| c.augment.copy_paste_objects = [3, 1]).contains("copy_paste_objects"));
    assert!(with(&|c| c.augment.colour.hue = 2.0).contains("hue = 2"));
    assert!(with(&|c| c.std = [0.0; 3]).contains("standard deviations"));
}

#[test]
fn batches_larger_than_the_memory_are_refused_before_they_are_made() {
    let folder = tempfile::tempdir().unwrap();
    data::photos(folder.path(), &["a.png"]);
    let set = data::coco_file(folder.path(), &[data::square(1, 7, 9)]);
    let mix = Arc::new(Mix::open(&[set], &Reading::default()).unwrap());
    // 4097 batches of 620 MB.
    let settings = LoaderConfig { batch: 1, prefetch: 4096, ..config([4096, 4096]) };
    let error = Loader::new(mix, settings).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Memory);
    assert!(error.to_string().contains("data.batch") && error.to_string().contains("GiB"), "{error}");
}
