//! Checkpoints that must be read and written exactly: safetensors round trips, files of real PyTorch, and
//! seeded weights against the reference's own numbers.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use testkit::shared;

use knet::checkpoint::{
    Checkpoint, StorageType, TensorData, TensorOut, first_non_finite, pth, seeded, write_safetensors,
};
use knet::error::ErrorKind;
use proptest::prelude::*;

fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/pth").join(name)
}

fn f32_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// Another program copies over weights that are in use: a file mapped into memory would end the process here.
#[test]
fn a_file_cut_short_under_an_open_checkpoint_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.safetensors");
    let values: Vec<f32> = (0..100_000).map(|i| i as f32).collect();
    let tensor = TensorOut { name: "w", shape: &[100_000], data: TensorData::F32(&values) };
    write_safetensors(&path, [tensor], &BTreeMap::new()).unwrap();
    let open = Checkpoint::open(&path).unwrap();
    std::fs::write(&path, b"other").unwrap();
    assert_eq!(open.load_f32("w").unwrap().data(), values);
    assert_eq!(Checkpoint::open(&path).unwrap_err().kind(), ErrorKind::Checkpoint);
}

#[test]
fn writes_what_the_reference_implementation_reads() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.safetensors");
    let metadata = BTreeMap::from([("format".into(), "pt".into()), ("knet".into(), "{\"ä\":1}".into())]);
    let tensors = [
        TensorOut { name: "flag", shape: &[3], data: TensorData::Raw(StorageType::Bool, &[1, 0, 1]) },
        TensorOut { name: "half", shape: &[3], data: TensorData::F16(&[1.0, 0.333_333_34, -65504.0]) },
        TensorOut { name: "w", shape: &[2, 2], data: TensorData::F32(&[1.5, -0.0, f32::MIN_POSITIVE, 3.0]) },
        TensorOut { name: "none", shape: &[0, 7], data: TensorData::F32(&[]) },
        TensorOut { name: "count", shape: &[], data: TensorData::Raw(StorageType::I64, &9i64.to_le_bytes()) },
    ];
    write_safetensors(&path, tensors, &metadata).unwrap();

    let bytes = std::fs::read(&path).unwrap();
    let theirs = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(theirs.tensor("w").unwrap().data(), f32_bytes(&[1.5, -0.0, f32::MIN_POSITIVE, 3.0]));
    assert_eq!(theirs.tensor("half").unwrap().dtype(), safetensors::Dtype::F16);
    assert_eq!(theirs.tensor("flag").unwrap().data(), [1, 0, 1]);
    assert_eq!(theirs.len(), 5);

    let ours = Checkpoint::open(&path).unwrap();
    assert_eq!(ours.metadata(), &metadata);
    assert_eq!(ours.names().collect::<Vec<_>>(), ["count", "w", "none", "half", "flag"]);
    assert_eq!(ours.load_f32("half").unwrap().data(), [1.0, 0.333_251_95, -65504.0]);
    assert_eq!(ours.load_f32("count").unwrap().shape().rank(), 0);
    assert_eq!(ours.load_f32("count").unwrap().data(), [9.0]);
    assert_eq!(ours.shape("none"), Some(&[0, 7][..]));
    assert!(ours.load_f32("none").unwrap().data().is_empty());
    let info = ours.info("w").unwrap();
    assert_eq!((info.dtype, info.bytes, info.offset % 8), (StorageType::F32, 16, 0));
    let missing = ours.load_f32("absent").unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::Checkpoint);
    assert!(missing.to_string().contains("`absent`"), "{missing}");
    for info in ours.tensors() {
        assert_eq!(info.offset as usize % info.dtype.size(), 0, "{} is not aligned", info.name);
    }
}

#[test]
fn reads_unaligned_data() {
    // A header of 61 bytes puts the data at byte 69.
    let mut header = br#"{"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#.to_vec();
    header.resize(61, b' ');
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(&header);
    file.extend(f32_bytes(&[0.1, f32::NAN]));
    let values = Checkpoint::from_bytes("unaligned", file).unwrap().load_f32("x").unwrap();
    assert_eq!(values.data()[0], 0.1);
    assert_eq!(first_non_finite(values.data()), Some(1));
}

#[test]
fn writing_refuses_nonsense_before_touching_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.safetensors");
    let ok = TensorOut { name: "a", shape: &[1], data: TensorData::F32(&[1.0]) };
    let cases: [(&str, Vec<TensorOut>); 5] = [
        ("two tensors", vec![ok, ok]),
        ("reserved", vec![TensorOut { name: "__metadata__", ..ok }]),
        ("does not fit", vec![TensorOut { shape: &[2], ..ok }]),
        ("does not fit", vec![TensorOut { shape: &[usize::MAX, 2], ..ok }]),
        ("70000 is beyond", vec![TensorOut { data: TensorData::F16(&[70000.0]), ..ok }]),
    ];
    for (reason, tensors) in cases {
        let error = write_safetensors(&path, tensors, &BTreeMap::new()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Checkpoint);
        assert!(error.to_string().contains(reason), "{error}");
        assert!(!path.exists());
    }
    // f16 keeps what was infinite or NaN from the start: it is reported where weights are loaded.
    let infinite = TensorOut { data: TensorData::F16(&[f32::INFINITY]), ..ok };
    write_safetensors(&path, [infinite], &BTreeMap::new()).unwrap();
    let missing = write_safetensors(folder.path().join("no/such/a"), [ok], &BTreeMap::new()).unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::Io);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(64) })]
    #[test]
    fn round_trip(
        tensors in proptest::collection::btree_map(
            "\\PC{1,12}",
            proptest::collection::vec(0usize..4, 0..4).prop_flat_map(|shape| {
                let count: usize = shape.iter().product();
                (Just(shape), proptest::collection::vec(any::<u32>(), count))
            }),
            0..6,
        ),
        metadata in proptest::collection::btree_map("\\PC*", "\\PC*", 0..3),
    ) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.safetensors");
        let values: BTreeMap<&String, Vec<f32>> = tensors
            .iter()
            .map(|(name, (_, bits))| (name, bits.iter().map(|&b| f32::from_bits(b)).collect()))
            .collect();
        let out = tensors.iter().map(|(name, (shape, _))| TensorOut {
            name, shape, data: TensorData::F32(&values[name]),
        });
        write_safetensors(&path, out, &metadata).unwrap();
        let read = Checkpoint::open(&path).unwrap();
        prop_assert_eq!(read.metadata(), &metadata);
        prop_assert_eq!(read.tensors().len(), tensors.len());
        for (name, (shape, bits)) in &tensors {
            let tensor = read.load_f32(name).unwrap();
            prop_assert_eq!(tensor.shape(), knet::tensor::Shape::new(shape));
            let read: Vec<u32> = tensor.data().iter().map(|v| v.to_bits()).collect();
            prop_assert_eq!(&read, bits);
        }
    }
}

/// Name, type, shape and f32 values of `tools/make_pth.py --fixture`.
fn fixture() -> Vec<(&'static str, StorageType, Vec<usize>, Vec<f32>)> {
    use StorageType::*;
    let base: Vec<f32> = (0..24).map(|i| i as f32 / 4.0).collect();
    let transposed = (0..24).map(|i| base[i % 4 * 6 + i / 4]).collect();
    vec![
        ("backbone.conv1.weight", F32, vec![2, 3, 2, 2], base.clone()),
        ("backbone.bn1.running_var", F32, vec![3], vec![1.0, 0.5, 0.25]),
        ("backbone.bn1.num_batches_tracked", I64, vec![], vec![1_234_567.0]),
        ("half", F16, vec![3], vec![1.0, -0.5, 65504.0]),
        ("bfloat", BF16, vec![3], vec![1.0, -3.0, f32::from_bits(0x714a_0000)]),
        ("double", F64, vec![2, 1], vec![0.1, -2.5]),
        ("ints", I32, vec![3], vec![-1.0, 0.0, 7.0]),
        ("bytes", U8, vec![2], vec![0.0, 255.0]),
        ("flags", Bool, vec![2], vec![1.0, 0.0]),
        ("transposed", F32, vec![6, 4], transposed),
        ("window", F32, vec![4], base[5..9].to_vec()),
        ("every_third", F32, vec![8], base.iter().skip(1).step_by(3).copied().collect()),
        ("expanded", F32, vec![2, 3], vec![1.5, 1.5, 1.5, 2.5, 2.5, 2.5]),
        ("empty", F32, vec![0, 4], vec![]),
    ]
}

#[test]
fn reads_files_of_real_pytorch() {
    // Both were written by tools/make_pth.py (PyTorch 2.15); the legacy one with `--module`.
    for (name, format) in [("zip.pth", pth::PthFormat::Zip), ("legacy.pth", pth::PthFormat::Legacy)] {
        let file = pth::read(golden(name)).unwrap();
        assert_eq!(file.format, format);
        let expected = fixture();
        assert_eq!(file.tensors.len(), expected.len());
        for (tensor, (key, dtype, shape, values)) in file.tensors.iter().zip(expected) {
            assert_eq!((tensor.name.as_str(), tensor.dtype, &tensor.shape), (key, dtype, &shape), "{name}");
            assert_eq!(tensor.to_f32().data(), values, "{name}: {key}");
        }
        let meta = serde_json::to_value(&file.meta).unwrap();
        assert_eq!(
            meta,
            serde_json::json!({
                "mmdet_version": "2.17.0",
                "CLASSES": ["person", "bicycle", "Käse"],
                "PALETTE": [[220, 20, 60], [119, 11, 32], [0, 0, 142]],
                "config": "model = dict(type='KNet')\n",
                "epoch": 12,
                "seed": null,
                "best_score": 0.371,
                "iter": 87960,
            }),
            "{name}"
        );
    }
}

#[test]
fn seeded_test_vectors() {
    // From WEIGHTS.md and WEIGHTS_SEG.md: name, shape, rule, seed, first four values as bits.
    type Vector = (&'static str, &'static [usize], &'static str, u64, [u32; 4]);
    let vectors: [Vector; 12] = [
        ("backbone.conv1.weight", &[64, 3, 7, 7], "R28", 0, [0x3cb3908c, 0x3def43ac, 0x3d408c99, 0x3defda0c]),
        ("backbone.conv1.weight", &[64, 3, 7, 7], "R28", 1, [0x3a11d999, 0xbdd20df9, 0xbe22bd93, 0x3e37e63f]),
        ("backbone.layer1.0.bn3.weight", &[256], "R05", 0, [0x3e35dd07, 0x3e160e22, 0x3e1cdcc7, 0x3e7843c2]),
        ("rpn_head.conv_seg.bias", &[80], "R31", 0, [0xc0844935, 0xc06d1c03, 0xc085e03d, 0xc0882558]),
        (
            "roi_head.mask_head.0.attention.attn.in_proj_weight",
            &[768, 256],
            "R18",
            0,
            [0x3e368720, 0xbe59cdaa, 0xbe015eff, 0x3dc0941f],
        ),
        (
            "backbone.stem.0.weight",
            &[32, 3, 3, 3],
            "R28",
            0,
            [0x3eba2486, 0xbec12f40, 0xbea4f468, 0x3d92277f],
        ),
        (
            "decode_head.kernel_generate_head.conv_seg.weight",
            &[150, 256, 1, 1],
            "S11",
            0,
            [0x38d64295, 0xbe05288a, 0xbdfbf10f, 0xbdb038e1],
        ),
        (
            "decode_head.kernel_generate_head.fpn_bottleneck.conv.weight",
            &[256, 1024, 3, 3],
            "S12",
            0,
            [0xbc4bedac, 0xbbcbe5e0, 0xbcd15373, 0x3cdbde11],
        ),
        (
            "decode_head.kernel_update_head.0.fc_mask.weight",
            &[256, 256],
            "S09",
            0,
            [0x3cb8c0f4, 0x3c73cbb7, 0x3c9adbcd, 0xbcbc5155],
        ),
        (
            "decode_head.kernel_update_head.2.kernel_update_conv.fc_norm.bias",
            &[256],
            "S06",
            0,
            [0xbf9cb729, 0xbfa6046a, 0xbf9e8598, 0xbf8e023f],
        ),
        (
            "backbone.stages.0.blocks.0.attn.w_msa.relative_position_bias_table",
            &[169, 3],
            "R04",
            0,
            [0xbd1e2970, 0xbdcaf660, 0xbe9a18cc, 0xbeb96246],
        ),
        (
            "auxiliary_head.convs.0.conv.weight",
            &[256, 1024, 3, 3],
            "S15",
            0,
            [0xba1089a1, 0xbb72bbbf, 0xbb8fa061, 0xb7c65591],
        ),
    ];
    for (name, shape, rule, seed, bits) in vectors {
        assert_eq!(seeded::rule_for(name, shape.len()).unwrap().id, rule, "{name}");
        let tensor = seeded::tensor(name, shape, seed).unwrap();
        assert_eq!(tensor.shape().dims(), shape);
        let first: Vec<u32> = tensor.data()[..4].iter().map(|v| v.to_bits()).collect();
        assert_eq!(first, bits, "{name}, seed {seed}");
    }
    let counter = seeded::tensor("backbone.bn1.num_batches_tracked", &[], 0).unwrap();
    assert_eq!(counter.data(), [0.0]);
    for (name, shape) in [
        ("a.relative_position_index", &[49, 49][..]),
        ("level_embed", &[4]),
        ("scale", &[]),
        ("a.weight", &[2; 7]),
        ("a.weight", &[usize::MAX, usize::MAX]),
    ] {
        let error = seeded::tensor(name, shape, 0).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Usage);
        assert!(error.to_string().contains(name), "{error}");
    }
}

#[derive(serde::Deserialize)]
struct Meta {
    state_dict: HashMap<String, MetaEntry>,
}

#[derive(serde::Deserialize)]
struct MetaEntry {
    shape: Vec<usize>,
    rule: String,
    l2: Option<f64>,
}

#[derive(serde::Deserialize)]
struct Check {
    seed: u64,
    /// First and last value, sum and L2 norm in f64.
    tensors: HashMap<String, [f64; 4]>,
}

/// Every tensor of every reference model: its rule, and first value, last value, sum and norm where recorded.
#[test]
fn seeded_weights_of_whole_models() {
    let Some(reference) = shared::reference("seeded_weights_of_whole_models", "") else { return };
    let mut checked = HashMap::new();
    for entry in std::fs::read_dir(reference).unwrap() {
        let folder = entry.unwrap().path();
        let Ok(text) = std::fs::read(folder.join("meta.json")) else { continue };
        let Ok(meta) = serde_json::from_slice::<Meta>(&text) else { continue };
        for (name, entry) in &meta.state_dict {
            let rule = seeded::rule_for(name, entry.shape.len()).unwrap();
            assert_eq!(rule.id, entry.rule, "{name} of {}", folder.display());
        }
        // 150M parameters of the large Swins would only repeat what the others show.
        let model = folder.file_name().unwrap().to_str().unwrap();
        if model.contains("swin_l") || model.contains("swin-l") {
            continue;
        }
        let started = std::time::Instant::now();
        let check = std::fs::read(folder.join("weights_check.json")).ok();
        let check: Option<Check> = check.map(|text| serde_json::from_slice(&text).unwrap());
        let seed = check.as_ref().map_or(0, |c| c.seed);
        let mut draws = 0;
        let mut generating = std::time::Duration::ZERO;
        for (name, entry) in &meta.state_dict {
            if entry.rule == "R00" {
                continue;
            }
            let clock = std::time::Instant::now();
            let tensor = seeded::tensor(name, &entry.shape, seed).unwrap();
            generating += clock.elapsed();
            draws += tensor.data().len();
            let values = tensor.data();
            let sum: f64 = values.iter().map(|&v| f64::from(v)).sum();
            let l2 = values.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt();
            // The sums are the reference's up to the order of additions in f64.
            let close = |a: f64, b: f64| (a - b).abs() <= 1e-9 * (1.0 + l2 * (values.len() as f64).sqrt());
            if let Some(l2_expected) = entry.l2 {
                assert!((l2 - l2_expected).abs() <= 1e-5 * (1.0 + l2), "{name}: {l2} {l2_expected}");
            }
            let Some(check) = check.as_ref().filter(|_| entry.rule != "R01") else { continue };
            let [first, last, sum_expected, l2_expected] = check.tensors[name];
            // In f32, where they are exact: serde_json may be one unit off in the last place of an f64.
            assert_eq!(values[0], first as f32, "{model}: first value of {name}");
            assert_eq!(values[values.len() - 1], last as f32, "{model}: last value of {name}");
            assert!(close(sum, sum_expected), "{model}: sum of {name} is {sum}, not {sum_expected}");
            assert!(close(l2, l2_expected), "{model}: norm of {name} is {l2}, not {l2_expected}");
        }
        println!("{model}: {draws} values in {generating:.1?}, {:.1?} with checks", started.elapsed());
        checked.insert(model.to_string(), check.is_some());
    }
    assert_eq!(checked.get("knet_s3_r50_fpn"), Some(&true));
    assert_eq!(checked.get("knet_s3_r50_fpn_panoptic"), Some(&true));
}
