//! Every kind of checkpoint that was ever released, as upstream's `torch.save` writes it: recognised, converted
//! and run. The files themselves are hundreds of megabytes, so these are of fewer channels and classes; that
//! the released sizes are told from their shapes is tested without any values.

use knet::Engine;
use knet::engine::convert::{Contents, ConvertOptions, convert};
use knet::engine::source::parameters;
use knet::model::config::MODEL_NAMES;
use knet::model::evidence::Evidence;
use knet::model::{
    Backbone, Classes, CondInst, Config, DecodeHead, Fpn, Generator, Head, Rcnn, ResNet, Solov2, Stem, Swin,
    Task,
};
use std::collections::BTreeMap;
use testkit::model::{Entry, photo, seeded_entries};
use testkit::pth_writer::{Named, dict, text, write_checkpoint_with};

/// What the tensors of this model, and this training configuration, are taken for.
fn recognised(config: &Config, said: &str) -> Config {
    let shapes: BTreeMap<String, Vec<usize>> =
        parameters(config).unwrap().into_iter().map(|param| (param.key, param.upstream_shape)).collect();
    let shape = |name: &str| shapes.get(name).map(Vec::as_slice);
    let values = |names: &[&str]| match (names, said) {
        (["strides"], "d8") => vec![serde_json::json!([1, 2, 1, 1])],
        (["dilations"], "d8") => vec![serde_json::json!([1, 1, 2, 4])],
        _ => Vec::new(),
    };
    Config::recognise(&Evidence::new(&shape, &values), &mut Vec::new()).unwrap()
}

#[test]
fn models_are_told_from_their_shapes() {
    for name in MODEL_NAMES {
        let config = Config::named(name).unwrap();
        for said in ["", "d8"] {
            if said == "d8" && !name.contains("-d8") {
                continue;
            }
            let found = recognised(&config, said);
            assert_eq!(found.backbone, config.backbone, "{name}");
            assert_eq!((found.decode_head, found.rcnn), (config.decode_head, config.rcnn), "{name}");
            assert_eq!((found.solov2, found.condinst), (config.solov2, config.condinst), "{name}");
            assert_eq!((found.neck, found.head), (config.neck, config.head), "{name}");
            assert_eq!(found.classes.count(), config.classes.count(), "{name}");
            if config.decode_head.is_some() {
                assert_eq!((found.task, &found.name), (Task::Semantic, &config.name));
            }
        }
    }
}

/// A small model of each released kind.
fn kinds() -> Vec<Config> {
    let swin = Swin { channels: 16, depths: [1, 2, 1, 1], heads: [1, 2, 4, 8], window: 7 };
    let head = Head { stages: 2, feedforward_channels: 48, ..Head::default() };
    let detector = |backbone: Backbone, stuff: usize| {
        let mut config = Config {
            neck: Fpn { channels: 32 },
            head: Head { proposals: 6, ..head },
            ..Config::of(backbone, Classes::new(3, stuff))
        };
        config.name_by_parts();
        config
    };
    let semantic = |backbone: Backbone, generator, [channels, updator]: [usize; 2], stages| {
        let mut config = Config::semantic(backbone, generator, 5);
        let widths = DecodeHead { updator_channels: updator, auxiliary_channels: 24, generator };
        config.decode_head = Some(widths);
        (config.neck.channels, config.head) = (channels, Head { proposals: 0, stages, ..head });
        if stages == 0 {
            // Nothing of a stage is in the file.
            config.head.feedforward_channels = Head::default().feedforward_channels;
        }
        config.name_by_parts();
        config
    };
    let two_stage = |stages: usize| {
        let rcnn = Rcnn { stages, hidden_channels: 24, score_threshold: 0.1, ..Rcnn::default() };
        let mut config = Config::two_stage(ResNet::new(50).into(), rcnn, 3);
        (config.neck.channels, config.test.max_per_image) = (32, 40);
        config
    };
    let solov2 = || {
        let solov2 =
            Solov2 { hidden_channels: 32, feature_channels: 64, mask_channels: 96, ..Solov2::default() };
        let mut config = Config::solov2(ResNet::new(50).into(), solov2, 3);
        (config.neck.channels, config.test.max_per_image) = (32, 40);
        config
    };
    let condinst = || {
        let condinst = CondInst { branch_channels: 16, ..CondInst::default() };
        let mut config = Config::condinst(ResNet::new(50).into(), condinst, 3);
        (config.neck.channels, config.test.max_per_image) = (32, 40);
        config
    };
    let plain: Backbone = ResNet { stem: Stem::Deep, ..ResNet::new(50) }.into();
    let d8: Backbone =
        ResNet { stem: Stem::Deep, strides: [1, 2, 1, 1], dilations: [1, 1, 2, 4], ..ResNet::new(50) }.into();
    vec![
        detector(ResNet::new(50).into(), 0),
        detector(ResNet::new(101).into(), 2),
        detector(swin.into(), 2),
        semantic(d8, Generator::Fcn, [32, 16], 2),
        semantic(d8, Generator::Psp, [32, 16], 2),
        semantic(d8, Generator::Aspp, [32, 16], 2),
        semantic(plain, Generator::Uper, [32, 16], 2),
        semantic(plain, Generator::Uper, [32, 32], 2),
        semantic(swin.into(), Generator::Uper, [32, 16], 2),
        // Plain heads have no updator, and leave its width as it is.
        semantic(d8, Generator::Fcn, [32, 256], 0),
        semantic(plain, Generator::Uper, [32, 256], 0),
        two_stage(1),
        two_stage(3),
        solov2(),
        condinst(),
    ]
}

/// Writes a checkpoint as mmcv does, with what it keeps beside weights.
fn write(path: &std::path::Path, config: &Config, prefix: &str, entries: &[Entry]) {
    let tensors: Vec<Named> =
        entries.iter().map(|e| (e.name.as_str(), &e.shape[..], &e.values[..])).collect();
    let stuff = config.classes.stuff;
    let said = match config.task {
        Task::Panoptic => format!("num_stuff_classes={stuff}\nnum_thing_classes=3"),
        Task::Instance if config.rcnn.is_some() => {
            "test_cfg=dict(rpn=dict(nms_pre=1000, max_per_img=1000, nms=dict(iou_threshold=0.7)),\n\
             rcnn=dict(score_thr=0.1, nms=dict(type='nms', iou_threshold=0.5), max_per_img=40, mask_thr_binary=0.5))"
                .into()
        }
        Task::Instance if config.other_detector().is_some() => {
            "test_cfg=dict(nms_pre=500, score_thr=0.1, max_per_img=40)".into()
        }
        Task::Instance => "num_stuff_classes=0".into(),
        Task::Semantic => {
            // As mmseg writes it; DeepLabV3's head has dilations of its own.
            let backbone = match config.backbone {
                Backbone::ResNet(ResNet { strides: [a, b, c, d], dilations: [e, f, g, h], .. }) => {
                    format!("strides=({a}, {b}, {c}, {d}), dilations=({e}, {f}, {g}, {h})")
                }
                _ => "num_heads=[1, 2, 4, 8]".into(),
            };
            format!(
                "model = dict(backbone=dict({backbone}), decode_head=dict(dilations=(1, 12, 24, 36), num_heads=8))\n\
                 test_pipeline = [dict(img_scale=(2048, 512), keep_ratio=True)]"
            )
        }
    };
    write_checkpoint_with(path, prefix, dict(&[("config", text(&said))]), &tensors);
}

#[test]
fn each_released_kind_converts_and_runs() {
    let folder = tempfile::tempdir().unwrap();
    let image = photo(70, 90);
    for (number, config) in kinds().into_iter().enumerate() {
        config.validate().unwrap();
        let entries = seeded_entries(&config, 5);
        let [pth, out] =
            ["pth", "safetensors"].map(|ending| folder.path().join(format!("{number}.{ending}")));
        write(&pth, &config, if number % 2 == 0 { "" } else { "module." }, &entries);
        let converted = convert(&pth, &out, &ConvertOptions::default()).unwrap();
        let Contents::Model(found) = &converted.contents else { panic!("{}", config.name) };
        let unnamed =
            Config { classes: Classes { names: Vec::new(), ..found.classes.clone() }, ..(**found).clone() };
        assert_eq!(unnamed, config, "{:?}", converted.notes);
        let size = Some((64, 96));
        let mut engine = Engine::builder().weights(out.as_path()).size(size).threads(2).build().unwrap();
        let result = engine.segment(&image).unwrap();
        assert_eq!((result.task(), result.size()), (config.task, (70, 90)), "{}", config.name);
        if let Some(map) = result.semantic() {
            assert_eq!(map.areas.iter().sum::<usize>(), 70 * 90);
        }
    }
}

/// The same backbone by the names of its authors' repository, in their order of a block's pixels.
#[test]
fn a_swin_by_its_authors_names_gives_the_same_tensors() {
    let folder = tempfile::tempdir().unwrap();
    let config = kinds().into_iter().find(|config| config.name.contains("swin")).unwrap();
    let mut entries = seeded_entries(&config, 5);
    let [pth, theirs] = ["mmdet", "theirs"].map(|name| folder.path().join(format!("{name}.pth")));
    write(&pth, &config, "", &entries);
    for entry in &mut entries {
        let Some(name) = entry.name.strip_prefix("backbone.") else { continue };
        if name.contains(".downsample.") {
            let width = *entry.shape.last().unwrap();
            for row in entry.values.chunks_exact_mut(width) {
                let mut old = vec![0.0; width];
                for (at, value) in row.iter().enumerate() {
                    let (channel, dy, dx) = (at / 4, at % 4 / 2, at % 2);
                    old[(dy + 2 * dx) * (width / 4) + channel] = *value;
                }
                row.copy_from_slice(&old);
            }
        }
        let renamed = name
            .replace("stages.", "layers.")
            .replace("attn.w_msa.", "attn.")
            .replace("ffn.layers.0.0.", "mlp.fc1.")
            .replace("ffn.layers.1.", "mlp.fc2.")
            .replace("patch_embed.projection.", "patch_embed.proj.");
        entry.name = format!("backbone.{renamed}");
    }
    write(&theirs, &config, "", &entries);
    let segment = |pth: &std::path::Path| {
        let out = pth.with_extension("safetensors");
        convert(pth, &out, &ConvertOptions::default()).unwrap();
        let mut engine = Engine::builder().weights(out.as_path()).size(Some((64, 96))).build().unwrap();
        engine.segment(&photo(70, 90)).unwrap()
    };
    assert!(segment(&pth) == segment(&theirs));
}

#[test]
fn semantic_files_that_contradict_themselves_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let config = kinds().into_iter().find(|config| config.name.contains("fcn")).unwrap();
    let refuse = |change: &dyn Fn(&mut Vec<Entry>)| {
        let mut entries = seeded_entries(&config, 5);
        change(&mut entries);
        let pth = folder.path().join("bad.pth");
        write(&pth, &config, "", &entries);
        convert(&pth, &folder.path().join("bad.safetensors"), &ConvertOptions::default())
            .unwrap_err()
            .to_string()
    };
    let unknown = refuse(&|entries| {
        entries.iter_mut().for_each(|entry| entry.name = entry.name.replace("conv_cat", "conv_dog"));
    });
    assert!(unknown.contains("fcn, pspnet, deeplabv3, upernet"), "{unknown}");
    let updator = refuse(&|entries| {
        let dynamic = |entry: &&mut Entry| entry.name.ends_with("0.kernel_update_conv.dynamic_layer.weight");
        let entry = entries.iter_mut().find(dynamic).unwrap();
        (entry.shape, entry.values) = (vec![20, 10], vec![0.0; 200]);
    });
    assert!(updator.contains("32 channels are not a multiple of updator_channels 10"), "{updator}");
    // Without its auxiliary head a model still segments.
    let mut entries = seeded_entries(&config, 5);
    entries.retain(|entry| !entry.name.starts_with("auxiliary_head."));
    let [pth, out] = ["whole.pth", "whole.safetensors"].map(|name| folder.path().join(name));
    write(&pth, &config, "", &entries);
    convert(&pth, &out, &ConvertOptions::default()).unwrap();
    let mut engine = Engine::builder().weights(out.as_path()).size(Some((64, 96))).build().unwrap();
    assert!(engine.segment(&photo(70, 90)).unwrap().semantic().is_some());
}
