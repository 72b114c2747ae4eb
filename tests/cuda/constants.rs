//! Numbers that a kernel and the Rust text that launches it both state must be the same. Both are read as
//! text, for no compiler sees the two sides together.
//!
//! *What is stated twice.* A Rust constant whose documentation says `` `NAME` of `kernels/file` `` is the
//! kernel's `NAME`, a `#define` or a `constexpr` of a number; several names are those of a tuple or an array,
//! in order. And every such number of a kernel is claimed so, but for those in [`ITS_OWN`], with which Rust
//! has nothing to do, and enumerations, which `tests/cuda` runs in every value.

use std::collections::BTreeMap;
use testkit::texts::texts;

/// Numbers that a kernel has for itself alone, and enumerations.
const ITS_OWN: &[(&str, &[&str])] = &[
    ("binary.cu", &["ADD", "MUL"]),
    (
        "common/activation.cuh",
        &["ACTIVATION_NONE", "ACTIVATION_RELU", "ACTIVATION_RELU6", "ACTIVATION_SIGMOID", "ACTIVATION_GELU"],
    ),
    ("common/column_sums.cuh", &["RUN"]),
    ("common/reduce.cuh", &["WARP"]),
    ("common/resize_taps.cuh", &["NEAREST", "BILINEAR"]),
    ("common/storage.cuh", &["F32", "F16", "BF16"]),
    (
        "conv/implicit_gemm.cu",
        &["POINTWISE", "TAPS", "ELEMENTS", "DEFORMED", "DEFORMED_ELEMENTS", "FMA", "TENSOR", "TF32X3"],
    ),
    ("mask/pool_grad.cu", &["OBJECTS"]),
    ("conv/filter_grad_any.cu", &["RUN"]),
    ("postprocess_panoptic.cu", &["PEEK"]),
    ("preprocess.cu", &["RGB8", "BGR8", "NV12", "I420", "RGBA8", "BGRA8", "GRAY8"]),
    ("rows/tile.cuh", &["ROW_BIAS"]),
];

/// The numbers that a kernel's text names, by name.
pub fn stated_numbers(text: &str) -> BTreeMap<String, i64> {
    let mut found = BTreeMap::new();
    let mut note = |name: &str, value: &str| {
        if let Ok(value) = value.trim().parse() {
            found.insert(name.trim().to_string(), value);
        }
    };
    for line in text.lines() {
        let line = line.split("//").next().unwrap();
        if let Some((name, value)) = line.strip_prefix("#define ").and_then(|rest| rest.split_once(' ')) {
            note(name, value);
        }
        let constant = line.strip_prefix("constexpr ").and_then(|rest| rest.split_once(' '));
        for part in constant.map_or("", |(_, rest)| rest).trim_end_matches(';').split(',') {
            if let Some((name, value)) = part.split_once('=') {
                note(name, value);
            }
        }
    }
    found
}

/// What a constant's documentation claims: names, and the kernel's path.
fn claim(documentation: &str) -> Option<(Vec<String>, String)> {
    let (names, rest) = documentation.split_once(" of `kernels/")?;
    let path = rest.split('`').next()?.to_string();
    let quoted =
        |text: &str| -> Vec<String> { text.split('`').skip(1).step_by(2).map(str::to_string).collect() };
    let names = quoted(names.rsplit(". ").next()?);
    (!names.is_empty()).then_some((names, path))
}

/// The numbers of a constant's value, such as `[8, 32, 1]`, `(64, 16)` or `256`.
fn values(value: &str) -> Vec<i64> {
    let value = value.trim().trim_matches(|c| "[]()".contains(c));
    value.split(',').map(|number| number.trim().replace('_', "").parse().expect("a number")).collect()
}

/// Claims of a Rust text: constant, names, kernel, values.
fn claims(text: &str) -> Vec<(String, Vec<String>, String, Vec<i64>)> {
    let mut found = Vec::new();
    let mut documentation = String::new();
    for line in text.lines().map(str::trim) {
        if let Some(more) = line.strip_prefix("///") {
            documentation += more;
            continue;
        }
        if let (Some(at), Some((names, kernel))) = (line.find("const "), claim(&documentation)) {
            let (name, rest) = line[at + 6..].split_once(':').unwrap();
            let value = rest.rsplit_once('=').unwrap().1.trim_end_matches(';');
            found.push((name.to_string(), names, kernel, values(value)));
        }
        documentation.clear();
    }
    found
}

/// What is wrong, a line each.
fn faults(rust: &BTreeMap<String, String>, kernels: &BTreeMap<String, String>) -> Vec<String> {
    let numbers: BTreeMap<_, _> = kernels.iter().map(|(path, text)| (path, stated_numbers(text))).collect();
    let mut faults = Vec::new();
    let mut claimed = Vec::new();
    for (file, text) in rust {
        for (constant, names, kernel, values) in claims(text) {
            for (i, name) in names.iter().enumerate() {
                claimed.push((kernel.clone(), name.clone()));
                let theirs = numbers.get(&kernel).and_then(|numbers| numbers.get(name));
                if theirs != values.get(i) || theirs.is_none() {
                    let ours = values.get(i);
                    faults
                        .push(format!("{file}: {constant} is {ours:?}, `{name}` of {kernel} is {theirs:?}"));
                }
            }
        }
    }
    for (kernel, numbers) in numbers {
        let own = ITS_OWN.iter().find(|(path, _)| path == kernel).map_or(&[][..], |(_, names)| names);
        for name in numbers.keys().filter(|name| !own.contains(&name.as_str())) {
            if !claimed.contains(&(kernel.clone(), name.clone())) {
                faults.push(format!("`{name}` of kernels/{kernel}: no constant of Rust claims it"));
            }
        }
    }
    faults
}

#[test]
fn numbers_that_both_sides_state_are_the_same() {
    let faults = faults(&texts("src", &["rs"]), &texts("kernels", &["cu", "cuh"]));
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn numbers_that_differ_or_are_not_claimed_are_found() {
    let text = |text: &str, name: &str| BTreeMap::from([(name.to_string(), text.to_string())]);
    let kernel = text("#define TILE 64 // pixels\nconstexpr u32 A = 2, B = A * 2, C = 3;\n", "x.cu");
    let rust = "/// A block's pixels: `TILE` of `kernels/x.cu`.\nconst PIXELS: usize = 64;\n\
                /// `A` and `C` of `kernels/x.cu`.\nconst SIZES: [u32; 2] = [2, 3];\n";
    assert_eq!(faults(&text(rust, "x.rs"), &kernel), [""; 0]);
    let other = rust.replace("= 64", "= 32").replace("`A` and `C`", "`A`");
    assert_eq!(
        faults(&text(&other, "x.rs"), &kernel),
        [
            "x.rs: PIXELS is Some(32), `TILE` of x.cu is Some(64)",
            "`C` of kernels/x.cu: no constant of Rust claims it",
        ]
    );
}
