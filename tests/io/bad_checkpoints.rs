//! Damaged and hostile checkpoints: each is refused with an error of the right class that names the fault,
//! and no mutation of a sound file makes a reader panic.

use std::path::PathBuf;

use knet::checkpoint::{Checkpoint, pth};
use knet::error::{Error, ErrorKind};
use proptest::prelude::*;
use testkit::pth_writer::{call, cat, dict, global, int, pickle, tensor, text, tuple, zip_of};
use zip::CompressionMethod;

/// Asserts class, file name and every fragment of the message.
#[track_caller]
fn assert_refused<T>(what: &str, outcome: Result<T, Error>, fragments: &[&str]) {
    let Err(error) = outcome else { panic!("{what}: was accepted") };
    let message = error.to_string();
    assert_eq!(error.kind(), ErrorKind::Checkpoint, "{what}: {message}");
    assert!(message.starts_with("bad.file: "), "{what}: {message}");
    for fragment in fragments {
        assert!(message.contains(fragment), "{what}: `{fragment}` is not in: {message}");
    }
}

fn safetensors_file(header: &str, data: usize) -> Vec<u8> {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.resize(file.len() + data, 0);
    file
}

#[test]
fn safetensors() {
    let sound = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F16","shape":[4],"data_offsets":[8,16]}}"#;
    assert!(Checkpoint::from_bytes("bad.file", safetensors_file(sound, 16)).is_ok());
    let swap = |from: &str, to: &str| safetensors_file(&sound.replace(from, to), 16);
    let mut not_utf8 = safetensors_file(sound, 16);
    not_utf8[10] = 0xff;
    let mut lengthy = safetensors_file(sound, 16);
    lengthy[..8].copy_from_slice(&1000u64.to_le_bytes());
    let mut oversized = lengthy.clone();
    oversized[..8].copy_from_slice(&(u64::MAX / 2).to_le_bytes());
    let cases: Vec<(&str, Vec<u8>, &[&str])> = vec![
        ("empty file", vec![], &["empty file"]),
        ("half a length", vec![1, 0, 0], &["truncated", "at byte 3"]),
        ("length beyond the file", lengthy, &["truncated", "header of 1000 bytes", "at byte 0"]),
        ("oversized header", oversized, &["limit of 100000000"]),
        ("not UTF-8", not_utf8, &["not UTF-8", "at byte 10"]),
        ("an array", safetensors_file("[]", 0), &["not a JSON object", "at byte 8"]),
        ("leading space", safetensors_file(" {}", 0), &["not a JSON object"]),
        ("broken JSON", safetensors_file("{\"a\": nope}", 0), &["header", "at byte 15"]),
        ("text after the header", safetensors_file("{} x", 0), &["header", "trailing"]),
        ("truncated data", safetensors_file(sound, 15), &["tensor `b`", "truncated"]),
        ("data after the last", safetensors_file(sound, 17), &["1 bytes after the last tensor"]),
        ("overlap", swap("[8,16]", "[4,12]"), &["tensor `b`", "overlaps tensor `a`"]),
        ("the same bytes twice", swap("[8,16]", "[0,8]"), &["overlaps tensor"]),
        ("hole", swap("[0,8]", "[4,12]").clone(), &["tensor `a`", "hole of 4 bytes", "at byte"]),
        ("backwards", swap("[8,16]", "[16,8]"), &["tensor `b`", "run backwards"]),
        ("shape and bytes", swap("[2]", "[3]"), &["tensor `a`", "needs 12 bytes", "hold 8"]),
        ("overflow", swap("[2]", "[4611686018427387904,2]"), &["tensor `a`", "overflows"]),
        ("negative", swap("[2]", "[-2]"), &["header: tensor `a`", "-2"]),
        ("fraction", swap("[2]", "[2.5]"), &["header: tensor `a`", "2.5"]),
        ("element type", swap("F16", "F8_E4M3"), &["tensor `b`", "`F8_E4M3` is not supported"]),
        ("repeated name", swap("\"b\"", "\"a\""), &["`a` occurs twice"]),
        (
            "repeated field",
            swap("\"shape\":[4]", "\"shape\":[4],\"shape\":[4]"),
            &["tensor `b`", "duplicate"],
        ),
        (
            "unknown field",
            swap("\"shape\":[4]", "\"shape\":[4],\"x\":1"),
            &["tensor `b`", "unknown field `x`"],
        ),
        ("missing field", swap("\"shape\":[4],", ""), &["tensor `b`", "missing field `shape`"]),
        ("metadata", safetensors_file(r#"{"__metadata__":{"a":1}}"#, 0), &["header", "expected a string"]),
        (
            "repeated metadata",
            safetensors_file(r#"{"__metadata__":{"a":"1","a":"2"}}"#, 0),
            &["metadata key `a` occurs twice"],
        ),
        ("text", b"This is a shopping list and no checkpoint at all".to_vec(), &["limit of 100000000"]),
    ];
    for (what, file, fragments) in cases {
        assert_refused(what, Checkpoint::from_bytes("bad.file", file), fragments);
    }
    let many = r#"{"a":{"dtype":"U8","shape":[1,1,1,1,1,1,1],"data_offsets":[0,1]}}"#;
    let opened = Checkpoint::from_bytes("bad.file", safetensors_file(many, 1)).unwrap();
    assert_refused("seven dimensions", opened.load_f32("a"), &["tensor `a`", "7 dimensions"]);
}

#[test]
fn files_that_cannot_be_opened() {
    let folder = tempfile::tempdir().unwrap();
    let empty = folder.path().join("empty");
    std::fs::write(&empty, b"").unwrap();
    assert_eq!(Checkpoint::open(&empty).unwrap_err().kind(), ErrorKind::Checkpoint);
    assert_eq!(pth::read(&empty).unwrap_err().kind(), ErrorKind::Checkpoint);
    for path in [folder.path().to_path_buf(), folder.path().join("missing")] {
        for error in [Checkpoint::open(&path).unwrap_err(), pth::read(&path).unwrap_err()] {
            assert_eq!(error.kind(), ErrorKind::Io);
            assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
        }
    }
}

/// A zip checkpoint with the object `root` and one storage of four floats.
fn zip_pth(root: Vec<u8>) -> Vec<u8> {
    let storage = [0u8; 16];
    zip_of(&[("a/data.pkl", &pickle(root)), ("a/data/0", &storage)], CompressionMethod::Stored)
}

/// A zip checkpoint whose state_dict holds one value.
fn zip_with(value: Vec<u8>) -> Vec<u8> {
    zip_pth(dict(&[("state_dict", dict(&[("w", value)]))]))
}

fn legacy_pth(little_endian: bool, keys: &[&str], storages: &[u8]) -> Vec<u8> {
    let magic = [&[0x80, 2, 0x8a, 10], &0x1950_a86a_20f9_469c_fc6c_u128.to_le_bytes()[..10], b"."].concat();
    let flag = vec![if little_endian { 0x88 } else { 0x89 }];
    let list: Vec<Vec<u8>> = keys.iter().map(|k| text(k)).collect();
    cat(&[
        magic,
        pickle(int(1001)),
        pickle(dict(&[("little_endian", flag)])),
        pickle(dict(&[("w", tensor("0", 2, 0, &[2], &[1]))])),
        pickle(cat(&[b"](".to_vec(), list.concat(), b"e".to_vec()])),
        storages.to_vec(),
    ])
}

#[test]
fn pth_containers() {
    let good = tensor("0", 4, 0, &[2, 2], &[2, 1]);
    assert!(pth::read_bytes("bad.file", &zip_with(good.clone())).is_ok());
    let state = pickle(dict(&[("w", good)]));
    let stored = |entries: &[(&str, &[u8])]| zip_of(entries, CompressionMethod::Stored);
    let complete: &[(&str, &[u8])] = &[("a/data.pkl", &state), ("a/data/0", &[0; 16])];
    let zip = stored(complete);
    let mut corrupt = zip.clone();
    let at = zip.windows(8).position(|w| w == b"a/data/0").unwrap() + 8;
    corrupt[at] = 1;
    let zeros = vec![0u8; 8 << 20];
    let bomb = zip_of(&[("a/data.pkl", &state), ("a/data/0", &zeros)], CompressionMethod::Deflated);
    let big_pickle = stored(&[("a/data.pkl", &vec![b'('; (64 << 20) + 1])]);
    let two: Vec<u8> = [&2u64.to_le_bytes()[..], &[0; 8]].concat();
    assert!(pth::read_bytes("bad.file", &legacy_pth(true, &["0"], &two)).is_ok());
    let three: Vec<u8> = [&3u64.to_le_bytes()[..], &[0; 12]].concat();
    let cases: Vec<(&str, Vec<u8>, &[&str])> = vec![
        ("empty file", vec![], &["empty file"]),
        ("text", b"hello".to_vec(), &["neither the zip nor the legacy format"]),
        ("a bare pickle", state.clone(), &["neither the zip nor the legacy format"]),
        ("zip cut short", zip[..zip.len() - 30].to_vec(), &["truncated zip"]),
        ("zip of something else", stored(&[("readme.txt", b"hello")]), &["without a `data.pkl`"]),
        ("two objects", stored(&[("a/data.pkl", &state), ("b/data.pkl", &state)]), &["several `data.pkl`"]),
        ("missing storage", stored(&complete[..1]), &["tensor `w`", "entry `a/data/0`", "not found"]),
        (
            "short storage",
            stored(&[complete[0], ("a/data/0", &[0; 15])]),
            &["tensor `w`", "`a/data/0` has 15 bytes", "need 16"],
        ),
        ("bit rot", corrupt, &["tensor `w`", "entry `a/data/0`", "checksum"]),
        ("zip bomb", bomb, &["entry `a/data/0`", "8388608 bytes", "zip bomb"]),
        ("big pickle", big_pickle, &["entry `a/data.pkl`", "over the limit"]),
        (
            "byte order",
            stored(&[complete[0], complete[1], ("a/byteorder", b"big")]),
            &["entry `a/byteorder`", "\"big\" is not supported"],
        ),
        ("legacy big-endian", legacy_pth(false, &["0"], &two), &["big-endian"]),
        (
            "legacy cut in a storage",
            legacy_pth(true, &["0"], &two[..15]),
            &["truncated", "storage `0`", "at byte"],
        ),
        ("legacy cut in a count", legacy_pth(true, &["0"], &two[..5]), &["truncated", "storage `0`"]),
        ("legacy count", legacy_pth(true, &["0"], &three), &["holds 3 elements, the pickle says 2"]),
        ("legacy unknown storage", legacy_pth(true, &["9"], &two), &["storage `9` is used by no tensor"]),
        ("legacy missing storage", legacy_pth(true, &[], &[]), &["tensor `w`", "storage `0` is missing"]),
        ("legacy twice", legacy_pth(true, &["0", "0"], &[&two[..], &two].concat()), &["listed twice"]),
        (
            "legacy tail",
            legacy_pth(true, &["0"], &[&two[..], b"!"].concat()),
            &["1 bytes after the last storage"],
        ),
        (
            "legacy cut in a pickle",
            legacy_pth(true, &["0"], &two)[..60].to_vec(),
            &["truncated pickle", "at byte"],
        ),
    ];
    for (what, file, fragments) in cases {
        assert_refused(what, pth::read_bytes("bad.file", &file), fragments);
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cut.pth");
    std::fs::write(&path, &zip[..20]).unwrap();
    assert!(pth::read(&path).unwrap_err().to_string().contains("cut.pth"));
}

#[test]
fn pth_pickles() {
    let attack = |global: Vec<u8>| zip_with(cat(&[global, tuple(&[text("echo owned")]), b"R".to_vec()]));
    let stack_global = cat(&[text("os"), text("system"), vec![0x93]]);
    let instance = b"(X\x04\x00\x00\x00echoiposix\nsystem\n".to_vec();
    let good = tensor("0", 4, 0, &[4], &[1]);
    let cases: Vec<(&str, Vec<u8>, &[&str])> = vec![
        (
            "GLOBAL",
            attack(global("posix", "system")),
            &["global `posix.system` is not allowed", "a/data.pkl", "at byte"],
        ),
        ("builtin", attack(global("builtins", "eval")), &["global `builtins.eval` is not allowed"]),
        ("STACK_GLOBAL", attack(stack_global), &["global `os.system` is not allowed"]),
        ("INST", zip_with(instance), &["global `posix.system` is not allowed"]),
        (
            "torch.load",
            attack(global("torch.storage", "_load_from_bytes")),
            &["`torch.storage._load_from_bytes`"],
        ),
        ("hidden characters", attack(global("a\u{1b}[2J", "b")), &["global `a\\u{1b}[2J.b`"]),
        (
            "in the optimizer",
            zip_pth(dict(&[("w", good.clone()), ("optimizer", global("os", "system"))])),
            &["`os.system`"],
        ),
        ("EXT1", zip_with(vec![0x82, 1]), &["opcode 0x82 is not allowed"]),
        ("NEXT_BUFFER", zip_with(vec![0x97]), &["opcode 0x97 is not allowed"]),
        ("protocol 0", zip_pth(b"(dp0\n".to_vec()), &["protocol 0"]),
        ("protocol 0 text", zip_pth(b"Vmeta\n".to_vec()), &["protocol 0, which cannot hold tensors"]),
        ("protocol", zip_pth(vec![0x80, 6]), &["protocol 6"]),
        (
            "truncated",
            zip_of(&[("a/data.pkl", &pickle(good.clone())[..30])], CompressionMethod::Stored),
            &["truncated pickle"],
        ),
        ("truncated string", zip_with(vec![b'X', 255, 255, 255, 255]), &["truncated pickle"]),
        ("nothing", zip_pth(vec![]), &["stack is empty"]),
        ("memo", zip_with(vec![b'h', 7]), &["memo entry 7 was never stored"]),
        ("no mark", zip_with(b"t".to_vec()), &["at byte"]),
        ("odd dict", zip_with(b"}(Nu".to_vec()), &["lacks its value"]),
        ("append to a dict", zip_with(b"}Na".to_vec()), &["no matching container"]),
        ("call of a string", zip_with(cat(&[text("f"), b")R".to_vec()])), &["not an allowed function"]),
        (
            "tensor of nothing",
            zip_with(call("torch._utils", "_rebuild_tensor_v2", &[])),
            &["arguments it does not take"],
        ),
        (
            "storage",
            zip_with(cat(&[tuple(&[text("storage")]), b"Q".to_vec()])),
            &["malformed storage reference"],
        ),
        ("state of a list", zip_with(b"]}b".to_vec()), &["attributes are set"]),
        ("not a dict", zip_pth(b"]".to_vec()), &["`state_dict` is not a dict"]),
        ("empty", zip_pth(b"}".to_vec()), &["holds no tensor"]),
        (
            "a key that is no string",
            zip_pth(cat(&[b"}".to_vec(), int(1), good.clone(), b"s".to_vec()])),
            &["not a string"],
        ),
        ("no tensor", zip_with(int(3)), &["tensor `w`", "is not a tensor"]),
        (
            "the same name twice",
            zip_pth(dict(&[("w", good.clone()), ("module.w", good.clone())])),
            &["tensor `w`", "two tensors of this name"],
        ),
        (
            "negative shape",
            zip_with(tensor("0", 4, 0, &[-4], &[1])),
            &["tensor `w`", "at byte", "shape has a negative"],
        ),
        (
            "negative stride",
            zip_with(tensor("0", 4, 3, &[4], &[-1])),
            &["tensor `w`", "strides has a negative"],
        ),
        ("negative offset", zip_with(tensor("0", 4, -1, &[4], &[1])), &["tensor `w`", "storage offset"]),
        ("negative storage", zip_with(tensor("0", -4, 0, &[4], &[1])), &["malformed storage reference"]),
        ("overflow", zip_with(tensor("0", 4, 0, &[1 << 40, 1 << 40], &[0, 0])), &["tensor `w`", "overflows"]),
        (
            "overflow beside zero",
            zip_with(tensor("0", 4, 0, &[i64::MAX, i64::MAX, 0], &[0, 0, 0])),
            &["overflows"],
        ),
        ("rank", zip_with(tensor("0", 4, 0, &[1; 7], &[1; 7])), &["tensor `w`", "7 dimensions"]),
        ("strides", zip_with(tensor("0", 4, 0, &[4], &[])), &["tensor `w`", "differ in length"]),
        (
            "past the end",
            zip_with(tensor("0", 4, 1, &[4], &[1])),
            &["tensor `w`", "reaches outside", "at byte"],
        ),
        (
            "far past the end",
            zip_with(tensor("0", 4, 0, &[2], &[i64::MAX])),
            &["tensor `w`", "reaches outside"],
        ),
        (
            "a repeating giant",
            zip_with(tensor("0", 4, 0, &[1 << 30, 4], &[0, 1])),
            &["tensor `w`", "far more than the file"],
        ),
        ("storage of lies", zip_with(tensor("0", 1 << 40, 0, &[4], &[1])), &["tensor `w`", "has 16 bytes"]),
    ];
    for (what, file, fragments) in cases {
        assert_refused(what, pth::read_bytes("bad.file", &file), fragments);
    }
}

/// Neither deep nesting nor cycles nor shared subtrees may cost more than their few bytes.
#[test]
fn pth_structures_that_exhaust_naive_readers() {
    let good = tensor("0", 4, 0, &[4], &[1]);
    // A million tuples within each other.
    let mut deep = b"N".to_vec();
    deep.resize(1_000_000, 0x85);
    // A list that holds itself.
    let cycle = vec![b']', b'q', 0, b'h', 0, b'a'];
    // Each list holds the one before twice: 2^60 leaves.
    let mut shared = b"]q\x00".to_vec();
    for i in 0..60u8 {
        shared.extend([b']', b'q', i + 1, b'h', i, b'a', b'h', i, b'a']);
    }
    let wide = cat(&[b"](".to_vec(), shared, b"e".to_vec()]);
    for value in [deep, cycle, wide] {
        let root = dict(&[("state_dict", dict(&[("w", good.clone())])), ("meta", dict(&[("x", value)]))]);
        let file = pth::read_bytes("sound", &zip_pth(root)).unwrap();
        assert_eq!(file.tensors.len(), 1);
        assert!(file.meta.is_empty());
    }
    // A long list copied over and over.
    let long: Vec<u8> = vec![b'N'; 100_000];
    let mut copies = cat(&[b"](".to_vec(), long, b"eq\x00".to_vec()]);
    for _ in 0..1000 {
        copies.extend(cat(&[global("builtins", "list"), b"h\x00\x85R".to_vec()]));
    }
    assert_refused("copies", pth::read_bytes("bad.file", &zip_pth(copies)), &["more than 4000000 values"]);
}

fn golden(name: &str) -> Vec<u8> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/pth");
    std::fs::read(folder.join(name)).unwrap()
}

fn load_everything(file: Vec<u8>) {
    if let Ok(opened) = Checkpoint::from_bytes("mutant", file) {
        for name in opened.names() {
            let _ = opened.load_f32(name);
        }
    }
}

/// Overwrites, then cuts.
fn mutate(mut file: Vec<u8>, edits: &[(usize, u8)], cut: Option<usize>) -> Vec<u8> {
    let length = file.len();
    edits.iter().for_each(|&(at, byte)| file[at % length] = byte);
    file.truncate(cut.map_or(length, |c| c % (length + 1)));
    file
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(3000) })]

    #[test]
    fn mutated_safetensors_never_panic(
        edits in proptest::collection::vec((any::<usize>(), prop_oneof![any::<u8>(), Just(b'9'), Just(b'"')]), 0..4),
        cut in proptest::option::weighted(0.2, any::<usize>()),
    ) {
        let header = r#"{"a":{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]},"b":{"dtype":"F16","shape":[4],"data_offsets":[8,16]}}"#;
        load_everything(mutate(safetensors_file(header, 16), &edits, cut));
    }

    #[test]
    fn mutated_pth_never_panics(
        legacy in any::<bool>(),
        edits in proptest::collection::vec((any::<usize>(), any::<u8>()), 1..4),
        cut in proptest::option::weighted(0.2, any::<usize>()),
    ) {
        let file = mutate(golden(if legacy { "legacy.pth" } else { "zip.pth" }), &edits, cut);
        if let Ok(read) = pth::read_bytes("mutant", &file) {
            read.tensors.iter().for_each(|t| drop(t.to_f32()));
        }
    }
}
