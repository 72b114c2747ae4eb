//! `knet quantize`, and what runs the file that it makes.

use crate::{Outcome, folder_with_photo, knet, listing, succeed};
use knet::checkpoint::{Checkpoint, StorageType, TensorData, TensorOut, write_safetensors};
use knet::engine::quantized::QUANTIZATION_KEY;
use serde_json::Value;
use std::path::Path;
use std::process::Command;

/// Makes `model.safetensors` of the program's own model in a small size.
fn quantized(folder: &Path, more: &[&str]) -> Outcome {
    let arguments = ["quantize", "--images", ".", "--size", "96x128", "--out", "model.safetensors"];
    succeed(folder, &[&arguments[..], more].concat())
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// Writes `changed.safetensors`: the model with other metadata, or without a tensor.
fn changed(folder: &Path, edit: impl Fn(&str) -> String, without: &str) {
    let file = Checkpoint::open(folder.join("model.safetensors")).unwrap();
    let mut metadata = file.metadata().clone();
    let said = metadata.get_mut(QUANTIZATION_KEY).unwrap();
    *said = edit(said);
    let kept = file.tensors().iter().filter(|tensor| tensor.name != without);
    let tensors = kept.map(|tensor| TensorOut {
        name: &tensor.name,
        shape: &tensor.shape,
        data: TensorData::Raw(tensor.dtype, file.bytes(&tensor.name).unwrap()),
    });
    write_safetensors(folder.join("changed.safetensors"), tensors, &metadata).unwrap();
}

#[test]
fn a_quantized_file_describes_itself_and_runs_in_every_precision() {
    let folder = folder_with_photo();
    let path = folder.path();
    let made = quantized(path, &["--report", "report.json", "--keep", "neck."]);
    assert!(made.stderr.contains("1 photo(s)"), "{}", made.stderr);
    for said in ["layers of int8", "levels by least squares on 1 photo", "farthest from f32", "MiB (before"] {
        assert!(made.stdout.contains(said), "{}", made.stdout);
    }
    let file = Checkpoint::open(path.join("model.safetensors")).unwrap();
    let integers = file.tensors().iter().filter(|tensor| tensor.dtype == StorageType::I8);
    let integers: Vec<&str> = integers.map(|tensor| tensor.name.as_str()).collect();
    assert!(integers.len() > 20 && !integers.iter().any(|name| name.starts_with("neck.")), "{integers:?}");
    let report = json(&path.join("report.json"));
    let layers = report["layers"].as_object().unwrap();
    assert_eq!(layers.len(), integers.len());
    for name in integers {
        let layer = &layers[name];
        assert!(layer["step"].as_f64().unwrap() > 0.0, "{name}: {layer}");
        assert!(layer["relative_error"].as_f64().unwrap() < 1.0, "{name}: {layer}");
    }
    let inspected = succeed(path, &["inspect", "model.safetensors"]);
    assert!(inspected.stdout.contains("layers of int8"), "{}", inspected.stdout);
    for precision in ["f32", "f16"] {
        let segment =
            ["segment", "a.png", "--weights", "model.safetensors", "--size", "96x128", "--precision"];
        let arguments = [&segment[..], &[precision, "--device", "cpu", "--out", precision, "-v"]].concat();
        let found = succeed(path, &arguments);
        assert!(!found.stderr.contains("int8"), "{}", found.stderr);
    }
    // Where the processor has nothing for it, that is said once, and numbers are multiplied.
    let mut command = Command::new(env!("CARGO_BIN_EXE_knet"));
    command.args([
        "segment",
        "a.png",
        "--weights",
        "model.safetensors",
        "--size",
        "96x128",
        "--out",
        "plain",
    ]);
    let output = command.env("KNET_ISA", "portable").current_dir(path).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    assert!(stderr.contains("the quantized layers are not computed in int8"), "{stderr}");
    // Named, that is an error.
    let mut command = Command::new(env!("CARGO_BIN_EXE_knet"));
    command.args([
        "segment",
        "a.png",
        "--weights",
        "model.safetensors",
        "--precision",
        "int8",
        "--out",
        "none",
    ]);
    let output = command.env("KNET_ISA", "portable").current_dir(path).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(stderr.contains("no instructions that multiply 8-bit integers"), "{stderr}");
    assert!(!path.join("none").exists());
}

#[test]
fn what_cannot_be_quantized_is_refused_by_name() {
    let folder = folder_with_photo();
    let path = folder.path();
    std::fs::create_dir(path.join("empty")).unwrap();
    std::fs::write(path.join("notes.txt"), "mine").unwrap();
    let before = listing(path);
    let cases: [(&[&str], i32, &str); 6] = [
        (&["quantize", "--images", "empty", "--out", "x.safetensors"], 2, "empty: no photos in this folder"),
        (&["quantize", "--images", "missing", "--out", "x.safetensors"], 3, "missing"),
        (&["quantize", "--images", ".", "--percentile", "0", "--out", "x.safetensors"], 2, "above 0"),
        (&["quantize", "--images", ".", "--out", "notes.txt"], 2, "notes.txt: is there already"),
        (
            &["quantize", "--images", ".", "--keep", "", "--out", "x.safetensors"],
            2,
            "no layer that could be quantized",
        ),
        (
            &["segment", "a.png", "--precision", "int8", "--device", "cpu", "--out", "x"],
            2,
            "is not quantized",
        ),
    ];
    for (arguments, code, said) in cases {
        let found = knet(path, arguments);
        assert!(found.code == code && found.stderr.contains(said), "{arguments:?}: {}", found.stderr);
    }
    assert_eq!(listing(path), before);
    quantized(path, &[]);
    let again = ["quantize", "--images", ".", "--weights", "model.safetensors", "--out", "twice.safetensors"];
    let found = knet(path, &again);
    assert!(found.code == 2 && found.stderr.contains("is quantized already"), "{}", found.stderr);
}

#[test]
fn a_map_that_is_not_finite_is_told_by_photo_and_layer() {
    let folder = folder_with_photo();
    let path = folder.path();
    let weights = Path::new(env!("CARGO_MANIFEST_DIR")).join("weights/knet_s3_lite0_person.safetensors");
    let file = Checkpoint::open(weights).unwrap();
    // No ReLU comes behind it.
    let large = "backbone._blocks.3._project_conv.weight";
    let filters = file.load_f32(large).unwrap();
    let most = filters.data().iter().fold(0.0f32, |most, v| most.max(v.abs()));
    let filters: Vec<f32> = filters.data().iter().map(|v| v / most * 3e38).collect();
    let tensors = file.tensors().iter().map(|tensor| {
        let data = match tensor.name == large {
            true => TensorData::F32(&filters),
            false => TensorData::Raw(tensor.dtype, file.bytes(&tensor.name).unwrap()),
        };
        TensorOut { name: &tensor.name, shape: &tensor.shape, data }
    });
    write_safetensors(path.join("large.safetensors"), tensors, file.metadata()).unwrap();
    let arguments = ["quantize", "--weights", "large.safetensors", "--images", ".", "--size", "96x128"];
    let found = knet(path, &arguments);
    let said = ["a.png: ", "the map that `backbone._blocks.4._expand_conv.weight` reads is not finite"];
    assert!(found.code == 2 && said.iter().all(|said| found.stderr.contains(said)), "{}", found.stderr);
    assert!(!path.join("large.int8.safetensors").exists());
}

#[test]
fn a_damaged_quantized_file_is_refused_by_name() {
    let folder = folder_with_photo();
    let path = folder.path();
    quantized(path, &[]);
    let file = Checkpoint::open(path.join("model.safetensors")).unwrap();
    let layer = file.tensors().iter().find(|tensor| tensor.dtype == StorageType::I8).unwrap().name.clone();
    let scale = format!("{layer}_scale");
    let step = |said: &str, to: &str| {
        let mut value: Value = serde_json::from_str(said).unwrap();
        value["layers"][&layer]["step"] = serde_json::from_str(to).unwrap();
        value.to_string()
    };
    type Edit<'a> = Box<dyn Fn(&str) -> String + 'a>;
    let cases: [(Edit<'_>, &str, &str); 5] = [
        (Box::new(|said| said.replace("\"format\":1", "\"format\":2")), "", "format 2, this knet reads 1"),
        (Box::new(|_| "{".into()), "", "knet.quantization"),
        (Box::new(|said| step(said, "0.0")), "", "levels are 0 apart"),
        (Box::new(str::to_string), &scale, "_scale` is missing"),
        (Box::new(|said| said.replacen("backbone", "backbane", 1)), "", "no tensor of this name"),
    ];
    for (edit, without, said) in cases {
        changed(path, edit, without);
        let arguments = ["segment", "a.png", "--weights", "changed.safetensors", "--out", "out"];
        let found = knet(path, &arguments);
        assert!(matches!(found.code, 5 | 6) && found.stderr.contains(said), "{said}: {}", found.stderr);
    }
    assert!(!path.join("out").exists());
}

#[test]
fn a_bundle_of_a_quantized_file_gives_the_same_bits() {
    let folder = folder_with_photo();
    let path = folder.path();
    quantized(path, &[]);
    let compile = ["compile", "--weights", "model.safetensors", "--size", "96x128", "--out", "model.knet"];
    let made = succeed(path, &compile);
    for weights in ["model.safetensors", "model.knet"] {
        let out = weights.replace('.', "_");
        let arguments =
            ["segment", "a.png", "--weights", weights, "--size", "96x128", "--format", "json,png"];
        succeed(path, &[&arguments[..], &["--device", "cpu", "--out", &out]].concat());
    }
    let results = listing(&path.join("model_knet"));
    assert!(results.len() >= 2, "{results:?}: {}", made.stdout);
    for result in results {
        let [a, b] =
            ["model_safetensors", "model_knet"].map(|from| std::fs::read(path.join(from).join(&result)));
        assert_eq!(a.unwrap(), b.unwrap(), "{result}");
    }
}
