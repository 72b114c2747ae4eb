//! Writes PyTorch checkpoints without PyTorch: a pickle assembler, each function of which gives the opcodes
//! that leave one value on the stack, and the zip container. (`tools/make_pth.py` writes them with the real
//! one.)

use std::fs::File;
use std::io::{BufWriter, Cursor, Seek, Write};
use std::path::Path;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

/// Opcodes one after the other.
pub fn cat(parts: &[Vec<u8>]) -> Vec<u8> {
    parts.concat()
}

/// A string.
pub fn text(s: &str) -> Vec<u8> {
    [b"X", &(s.len() as u32).to_le_bytes()[..], s.as_bytes()].concat()
}

/// A whole number.
pub fn int(value: i64) -> Vec<u8> {
    [&[0x8a, 8], &value.to_le_bytes()[..]].concat()
}

/// A float.
pub fn float(value: f64) -> Vec<u8> {
    [b"G", &value.to_be_bytes()[..]].concat()
}

/// A class or function of a module.
pub fn global(module: &str, name: &str) -> Vec<u8> {
    format!("c{module}\n{name}\n").into_bytes()
}

/// A tuple.
pub fn tuple(items: &[Vec<u8>]) -> Vec<u8> {
    cat(&[b"(".to_vec(), items.concat(), b"t".to_vec()])
}

/// A list.
pub fn list(items: &[Vec<u8>]) -> Vec<u8> {
    cat(&[b"](".to_vec(), items.concat(), b"e".to_vec()])
}

fn pairs(items: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let pairs: Vec<Vec<u8>> = items.iter().map(|(k, v)| cat(&[text(k), v.clone()])).collect();
    cat(&[b"(".to_vec(), pairs.concat(), b"u".to_vec()])
}

/// A dictionary with strings as keys.
pub fn dict(items: &[(&str, Vec<u8>)]) -> Vec<u8> {
    cat(&[b"}".to_vec(), pairs(items)])
}

/// A `collections.OrderedDict`.
pub fn ordered_dict(items: &[(&str, Vec<u8>)]) -> Vec<u8> {
    cat(&[call("collections", "OrderedDict", &[]), pairs(items)])
}

/// What a class or function of a module makes of arguments.
pub fn call(module: &str, name: &str, args: &[Vec<u8>]) -> Vec<u8> {
    cat(&[global(module, name), tuple(args), b"R".to_vec()])
}

fn ints(values: &[i64]) -> Vec<u8> {
    tuple(&values.iter().map(|&v| int(v)).collect::<Vec<_>>())
}

/// A float tensor over storage `key` of `numel` elements.
pub fn tensor(key: &str, numel: i64, offset: i64, shape: &[i64], strides: &[i64]) -> Vec<u8> {
    tensor_of("FloatStorage", key, numel, offset, shape, strides)
}

/// A tensor over a storage of some class.
pub fn tensor_of(class: &str, key: &str, numel: i64, offset: i64, shape: &[i64], strides: &[i64]) -> Vec<u8> {
    let storage = cat(&[
        tuple(&[text("storage"), global("torch", class), text(key), text("cpu"), int(numel)]),
        b"Q".to_vec(),
    ]);
    let hooks = call("collections", "OrderedDict", &[]);
    let args = [storage, int(offset), ints(shape), ints(strides), vec![0x89], hooks];
    call("torch._utils", "_rebuild_tensor_v2", &args)
}

/// A whole pickle, of protocol 2.
pub fn pickle(value: Vec<u8>) -> Vec<u8> {
    cat(&[vec![0x80, 2], value, b".".to_vec()])
}

/// A zip archive of these members.
pub fn zip_of(entries: &[(&str, &[u8])], method: CompressionMethod) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    write_zip(&mut bytes, entries, method);
    bytes.into_inner()
}

fn write_zip(out: &mut (impl Write + Seek), entries: &[(&str, &[u8])], method: CompressionMethod) {
    let mut zip = ZipWriter::new(out);
    for (name, data) in entries {
        zip.start_file(*name, SimpleFileOptions::default().compression_method(method)).unwrap();
        zip.write_all(data).unwrap();
    }
    zip.finish().unwrap();
}

/// A tensor of a `state_dict`: name, shape, values.
pub type Named<'a> = (&'a str, &'a [usize], &'a [f32]);

/// Writes what mmcv's runner saves: `{'meta': ..., 'state_dict': OrderedDict, 'optimizer': ...}`, with the
/// counters that batch norms keep. `prefix` goes before every name, as `DataParallel` has it.
pub fn write_checkpoint(path: &Path, prefix: &str, classes: &[&str], tensors: &[Named]) {
    let names: Vec<Vec<u8>> = classes.iter().map(|name| text(name)).collect();
    let meta = dict(&[
        ("mmdet_version", text("2.17.0")),
        ("CLASSES", tuple(&names)),
        ("config", text("model = dict(type='KNet')\n")),
        ("epoch", int(12)),
        ("iter", int(87_960)),
    ]);
    write_checkpoint_with(path, prefix, meta, tensors);
}

/// As [`write_checkpoint`], with any `meta`.
pub fn write_checkpoint_with(path: &Path, prefix: &str, meta: Vec<u8>, tensors: &[Named]) {
    let mut storages: Vec<(String, Vec<u8>)> = Vec::new();
    let mut state: Vec<(String, Vec<u8>)> = Vec::new();
    for (name, shape, values) in tensors {
        let key = storages.len().to_string();
        let dims: Vec<i64> = shape.iter().map(|&d| d as i64).collect();
        let value = tensor(&key, values.len() as i64, 0, &dims, &row_major(&dims));
        storages.push((key, values.iter().flat_map(|v| v.to_le_bytes()).collect()));
        state.push((format!("{prefix}{name}"), value));
        if let Some(norm) = name.strip_suffix(".running_var") {
            let key = storages.len().to_string();
            let value = tensor_of("LongStorage", &key, 1, 0, &[], &[]);
            storages.push((key, 87_960i64.to_le_bytes().to_vec()));
            state.push((format!("{prefix}{norm}.num_batches_tracked"), value));
        }
    }
    let state: Vec<(&str, Vec<u8>)> =
        state.iter().map(|(name, value)| (name.as_str(), value.clone())).collect();
    let metadata = dict(&[("_metadata", ordered_dict(&[("", dict(&[("version", int(1))]))]))]);
    let state_dict = cat(&[ordered_dict(&state), metadata, b"b".to_vec()]);

    let momentum_key = storages.len().to_string();
    storages.push((momentum_key.clone(), vec![0; 16]));
    let momentum = tensor(&momentum_key, 4, 0, &[4], &[1]);
    let of_first = dict(&[("step", int(1000)), ("momentum_buffer", momentum)]);
    let group = dict(&[
        ("lr", float(1e-4)),
        ("betas", tuple(&[float(0.9), float(0.999)])),
        ("params", list(&[int(0)])),
    ]);
    let by_number = cat(&[b"}(".to_vec(), int(0), of_first, b"u".to_vec()]);
    let optimizer = dict(&[("state", by_number), ("param_groups", list(&[group]))]);

    let root = pickle(dict(&[("meta", meta), ("state_dict", state_dict), ("optimizer", optimizer)]));

    let names: Vec<String> = storages.iter().map(|(key, _)| format!("archive/data/{key}")).collect();
    let mut entries: Vec<(&str, &[u8])> = vec![("archive/data.pkl", &root)];
    entries.extend(names.iter().zip(&storages).map(|(name, (_, bytes))| (name.as_str(), bytes.as_slice())));
    entries.push(("archive/version", b"3\n"));
    let mut file = BufWriter::new(File::create(path).unwrap());
    write_zip(&mut file, &entries, CompressionMethod::Stored);
    file.flush().unwrap();
}

fn row_major(shape: &[i64]) -> Vec<i64> {
    let mut strides = vec![1; shape.len()];
    for axis in (1..shape.len()).rev() {
        strides[axis - 1] = strides[axis] * shape[axis];
    }
    strides
}
