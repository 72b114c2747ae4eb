//! What a kernel's text and the Rust text that launches it both say must be the same: the fields of
//! parameter structs. Both are read as text, for no compiler sees the two sides together.
//!
//! *Which struct mirrors which.* Every `#[repr(C)]` struct under `src` mirrors, field by field, a struct
//! among the parameters of an entry (by value or pointed to) of a kernel that its own file launches, one
//! whose name it has as a string (`"conv/direct.cu"`); or else it is a field of one that does. And every
//! struct that an entry takes by value is mirrored in a file that launches the kernel.
//!
//! *What is the same.* Flattened to numbers, both have the same types in the same order, and each number's
//! path has the same words (`by_tiles[1][0]` has `by`, `tiles`, `1`, `0`), where an index 0 may stand for one
//! of `h`, `height`, `p` and `multiplier`, an index 1 for one of `w`, `width`, `q` and `shift`.

use crate::constants::stated_numbers;
use std::collections::BTreeMap;
use testkit::texts::texts;

/// One number of a struct: its type, as Rust calls it, and the words of its path.
#[derive(Clone, Debug, PartialEq)]
struct Number {
    ty: String,
    path: Vec<String>,
}

/// Text without `//` comments.
fn code(text: &str) -> String {
    let lines = text.lines().map(|line| line.split_once("//").map_or(line, |(code, _)| code));
    lines.collect::<Vec<_>>().join("\n")
}

/// What stands between the bracket that `text` begins with and its partner, and what follows.
fn bracketed(text: &str) -> (&str, &str) {
    let mut depth = 0;
    for (at, c) in text.char_indices() {
        match c {
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return (&text[1..at], &text[at + 1..]);
        }
    }
    panic!("a bracket without partner: {text}")
}

/// Words of a name.
fn words(name: &str) -> impl Iterator<Item = String> {
    name.split('_').filter(|word| !word.is_empty()).map(str::to_string)
}

fn is_name(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_alphanumeric() || c == '_')
}

/// Appends the numbers of a field: one for each index if it is an array, each of them what `element` says.
fn push_field(path: &[String], extents: &[usize], element: &dyn Fn(&[String]) -> Vec<Number>) -> Vec<Number> {
    let Some((&extent, rest)) = extents.split_first() else { return element(path) };
    let indexed = |index: usize| [path, &[index.to_string()]].concat();
    (0..extent).flat_map(|index| push_field(&indexed(index), rest, element)).collect()
}

/// A kernel's text with everything it includes, without comments.
fn with_includes(name: &str, kernels: &BTreeMap<String, String>) -> String {
    fn add(name: &str, kernels: &BTreeMap<String, String>, seen: &mut Vec<String>, out: &mut String) {
        if seen.iter().any(|known| known == name) {
            return;
        }
        seen.push(name.to_string());
        let text = kernels.get(name).unwrap_or_else(|| panic!("no kernel source {name}"));
        for line in code(text).lines() {
            match line.strip_prefix("#include \"") {
                Some(rest) => add(rest.trim_end().trim_end_matches('"'), kernels, seen, out),
                None => *out += &format!("{line}\n"),
            }
        }
    }
    let mut out = String::new();
    add(name, kernels, &mut Vec::new(), &mut out);
    out
}

/// Value of an integer constant of a kernel, or of a literal.
fn kernel_constant(text: &str, name: &str) -> Option<usize> {
    let known = || stated_numbers(text).get(name).and_then(|&value| usize::try_from(value).ok());
    name.parse().ok().or_else(known)
}

/// The numbers of struct `name` of a kernel, with the struct's own field names; `None` if there is no such
/// struct.
fn kernel_numbers(text: &str, name: &str, path: &[String]) -> Option<Vec<Number>> {
    let ty = match name {
        "u32" | "i32" | "u64" | "u16" | "u8" => name,
        "float" => "f32",
        "double" => "f64",
        _ => "",
    };
    if !ty.is_empty() {
        return Some(vec![Number { ty: ty.into(), path: path.to_vec() }]);
    }
    let defined = |keyword: &str| text.find(&format!("{keyword} {name} {{")).map(|at| &text[at..]);
    let found = ["struct", "struct alignas(8)", "struct alignas(16)"].into_iter().find_map(defined)?;
    let (body, _) = bracketed(&found[found.find('{').unwrap()..]);
    let mut numbers = Vec::new();
    for line in body.split(';').map(str::trim).filter(|line| !line.is_empty()) {
        let (ty, names) = line.split_once(char::is_whitespace)?;
        for declared in names.split(',').map(str::trim) {
            let (field, mut dims) = declared.split_at(declared.find('[').unwrap_or(declared.len()));
            if !is_name(field) {
                return None; // A struct with functions, or with pointers, is no parameter.
            }
            let mut extents = Vec::new();
            while !dims.is_empty() {
                let (extent, rest) = bracketed(dims);
                let value = kernel_constant(text, extent);
                extents.push(value.unwrap_or_else(|| panic!("{name}.{declared}: no constant {extent}")));
                dims = rest;
            }
            kernel_numbers(text, ty, &[])?;
            let path: Vec<String> = path.iter().cloned().chain(words(field)).collect();
            numbers.extend(push_field(&path, &extents, &|path| kernel_numbers(text, ty, path).unwrap()));
        }
    }
    Some(numbers)
}

/// The structs among the parameters of the entries of a kernel: name, and whether one takes it by value.
fn entry_structs(text: &str) -> BTreeMap<String, bool> {
    let mut found = BTreeMap::new();
    for entry in text.split("extern \"C\" __global__").skip(1) {
        let mut rest = &entry[entry.find('(').unwrap()..];
        let (mut parameters, after) = bracketed(rest);
        if entry[..entry.len() - rest.len()].contains("__launch_bounds__") {
            rest = &after[after.find('(').unwrap()..];
            parameters = bracketed(rest).0;
        }
        // Some are there under a condition.
        let conditional = |line: &&str| !line.trim_start().starts_with('#');
        let parameters: Vec<&str> = parameters.lines().filter(conditional).collect();
        for parameter in parameters.join("\n").split(',') {
            let by_value = !parameter.contains('*');
            let ty = parameter.split(['*', ' ', '\n']).find(|word| !matches!(*word, "" | "const")).unwrap();
            let numbers = kernel_numbers(text, ty, &[]);
            if by_value {
                assert!(numbers.is_some(), "cannot read `{ty}`, a parameter of{entry}");
            }
            // A pointer's elements are a struct of the kernel's own, or plain numbers.
            let is_struct = numbers.is_some_and(|numbers| !numbers[0].path.is_empty());
            if is_struct {
                *found.entry(ty.to_string()).or_default() |= by_value;
            }
        }
    }
    found
}

/// Bodies of the `#[repr(C)]` structs of a Rust text, by name.
fn rust_structs(text: &str) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for part in text.split("#[repr(C)]").skip(1) {
        let part = &part[part.find("struct ").expect("repr(C) of a struct") + 7..];
        let (name, body) = part.split_at(part.find(" {").expect("a struct with named fields"));
        let twice = found.insert(name.to_string(), bracketed(&body[1..]).0.to_string());
        assert!(twice.is_none(), "two structs {name} in one file");
    }
    found
}

/// All Rust texts that may hold mirrors, by path.
struct Rust {
    texts: BTreeMap<String, String>,
}

impl Rust {
    fn new(texts: &[(&str, &str)]) -> Self {
        Rust { texts: texts.iter().map(|(name, text)| (name.to_string(), code(text))).collect() }
    }

    /// Value of an integer constant, by the last word of its path: of this file, or the only one of the name.
    fn constant(&self, file: &str, name: &str) -> usize {
        if let Ok(number) = name.parse() {
            return number;
        }
        let name = name.rsplit("::").next().unwrap();
        let of = |text: &String| {
            let at = text.find(&format!("const {name}: usize = "))?;
            text[at..].split_once("= ")?.1.split_once(';')?.0.parse().ok()
        };
        let mut all: Vec<usize> = self.texts.values().filter_map(of).collect();
        all.dedup();
        let own = of(&self.texts[file]);
        own.or(if all.len() == 1 { Some(all[0]) } else { None })
            .unwrap_or_else(|| panic!("{file}: no one constant {name}: {all:?}"))
    }

    /// The file that defines struct `name` as `file` sees it.
    fn home<'a>(&'a self, file: &'a str, name: &str) -> Option<&'a str> {
        let defines = |text: &String| rust_structs(text).contains_key(name);
        if defines(&self.texts[file]) {
            return Some(file);
        }
        let mut others = self.texts.iter().filter(|(_, text)| defines(text)).map(|(name, _)| name.as_str());
        others.next().filter(|_| others.next().is_none())
    }

    /// The numbers of type `ty`; adds each struct inside it, with its file, to `inner`.
    fn numbers(
        &self,
        file: &str,
        ty: &str,
        path: &[String],
        inner: &mut Vec<(String, String)>,
    ) -> Vec<Number> {
        if matches!(ty, "u32" | "i32" | "u64" | "f32" | "f64") {
            return vec![Number { ty: ty.into(), path: path.to_vec() }];
        }
        if ty.starts_with('[') {
            let (element, extent) = bracketed(ty).0.rsplit_once(';').expect("an array");
            let extent = self.constant(file, extent.trim());
            let indexed = |index: usize| [path, &[index.to_string()]].concat();
            return (0..extent)
                .flat_map(|index| self.numbers(file, element.trim(), &indexed(index), inner))
                .collect();
        }
        let home = self.home(file, ty).unwrap_or_else(|| panic!("{file}: no one #[repr(C)] struct {ty}"));
        inner.push((home.to_string(), ty.to_string()));
        let body = rust_structs(&self.texts[home])[ty].clone();
        let mut numbers = Vec::new();
        for field in body.split(",\n").map(str::trim).filter(|field| !field.is_empty()) {
            let (name, ty) = field.trim_end_matches(',').split_once(": ").expect("a field");
            let name = name.rsplit(' ').next().unwrap();
            let path: Vec<String> = path.iter().cloned().chain(words(name)).collect();
            numbers.extend(self.numbers(home, ty.trim(), &path, inner));
        }
        numbers
    }
}

/// Whether a word of a Rust path may stand for one of a kernel's.
fn same_word(rust: &str, kernel: &str) -> bool {
    rust == kernel
        || (rust == "0" && ["h", "height", "p", "multiplier"].contains(&kernel))
        || (rust == "1" && ["w", "width", "q", "shift"].contains(&kernel))
}

/// The first number that differs, in words.
fn difference(rust: &[Number], kernel: &[Number]) -> Option<String> {
    let show = |number: Option<&Number>| {
        number.map_or("nothing".to_string(), |number| format!("{} {}", number.ty, number.path.join(" ")))
    };
    (0..rust.len().max(kernel.len())).find_map(|at| {
        let (left, right) = (rust.get(at), kernel.get(at));
        let same = left.zip(right).is_some_and(|(left, right)| {
            let mut pairs = left.path.iter().zip(&right.path);
            left.ty == right.ty
                && left.path.len() == right.path.len()
                && pairs.all(|(left, right)| same_word(left, right))
        });
        (!same).then(|| format!("number {at} is `{}` here and `{}` there", show(left), show(right)))
    })
}

/// Kernel sources that a Rust text names.
fn launched(text: &str) -> Vec<&str> {
    let mut names: Vec<&str> = text.split('"').filter(|piece| piece.ends_with(".cu")).collect();
    names.sort_unstable();
    names.dedup();
    names
}

/// What is wrong, a line each.
fn faults(rust: &Rust, kernels: &BTreeMap<String, String>) -> Vec<String> {
    let mut faults = Vec::new();
    let (mut inside, mut alone, mut taken) = (Vec::new(), Vec::new(), Vec::new());
    for (file, text) in &rust.texts {
        let structs = rust_structs(text);
        if structs.is_empty() {
            continue;
        }
        let mut partners = Vec::new();
        for source in launched(text) {
            let whole = with_includes(source, kernels);
            for (name, _) in entry_structs(&whole) {
                let numbers = kernel_numbers(&whole, &name, &[]).unwrap();
                partners.push((source, name, numbers));
            }
        }
        for name in structs.keys() {
            let mut inner = Vec::new();
            let numbers = rust.numbers(file, name, &[], &mut inner);
            let differ: Vec<_> = partners.iter().map(|(.., other)| difference(&numbers, other)).collect();
            if differ.iter().any(Option::is_none) {
                inside.extend(inner);
                let same = partners.iter().zip(&differ).filter(|(_, differ)| differ.is_none());
                taken.extend(same.map(|((source, name, _), _)| (source.to_string(), name.clone())));
            } else {
                let tried = partners.iter().zip(differ);
                let tried =
                    tried.map(|((source, name, _), why)| format!("\n  {name} of {source}: {}", why.unwrap()));
                alone.push((file.clone(), name.clone(), tried.collect::<String>()));
            }
        }
    }
    for (file, name, tried) in alone {
        if !inside.contains(&(file.clone(), name.clone())) {
            faults.push(format!("{name} of {file} mirrors no parameter of a kernel launched there{tried}"));
        }
    }
    for source in kernels.keys().filter(|source| source.ends_with(".cu")) {
        for (name, by_value) in entry_structs(&with_includes(source, kernels)) {
            if by_value && !taken.contains(&(source.clone(), name.clone())) {
                faults.push(format!("{name} of {source} has no mirror in a file that launches the kernel"));
            }
        }
    }
    faults
}

/// The Rust texts of the library. Structs of the C interface mirror its header, which is made from them; NCCL's
/// mirror NCCL's; what a CPU keeps in its arena no kernel reads.
fn repository() -> Rust {
    let others = ["capi/", "cpu/", "cuda/nccl/"];
    let texts = texts("src", &["rs"]).into_iter();
    let of_kernels = texts.filter(|(name, _)| !others.iter().any(|other| name.starts_with(other)));
    Rust { texts: of_kernels.map(|(name, text)| (name, code(&text))).collect() }
}

#[test]
fn parameter_structs_are_those_of_the_kernels_field_by_field() {
    let (rust, kernels) = (repository(), texts("kernels", &["cu", "cuh"]));
    let structs: usize = rust.texts.values().map(|text| rust_structs(text).len()).sum();
    assert!(structs > 30, "{structs} structs: the texts are not read as they are");
    let faults = faults(&rust, &kernels);
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

const KERNEL: &str = r#"
#include "half.cuh"
#define RANGES 2
struct Axis { u32 input; float step; };
struct Params {
    u32 rows, columns;  // of x
    u32 out_height, out_width;
    Axis axis[RANGES];
    Divisor by_rows;
};
extern "C" __global__ void __launch_bounds__(64, 1) f(const float* __restrict__ x, const Params p) {}
"#;

const MIRROR: &str = r#"
/// Of `f.cu`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Axis {
    input: u32,
    step: f32,
}
#[repr(C)]
pub(crate) struct Params {
    /// Of x.
    pub rows: u32,
    columns: u32,
    out: [u32; 2],
    axis: [Axis; MOST],
    by_rows: [u32; 2],
}
const MOST: usize = 2;
fn launch() -> &str { "f.cu" }
"#;

fn text_faults(kernel: &str, mirror: &str) -> Vec<String> {
    let half = "struct Divisor {\n    u32 multiplier, shift;\n};";
    let kernels = [("f.cu", kernel), ("half.cuh", half)].map(|(a, b)| (a.to_string(), b.to_string()));
    faults(&Rust::new(&[("f.rs", mirror)]), &kernels.into())
}

#[test]
fn fields_that_change_places_types_or_names_are_found() {
    assert_eq!(text_faults(KERNEL, MIRROR), [""; 0]);
    let changed = |text: &str, from: &str, to: &str| {
        assert!(text.contains(from), "{from}");
        text.replace(from, to)
    };
    for (from, to, said) in [
        ("u32 rows, columns;", "u32 columns, rows;", "number 0 is `u32 rows` here and `u32 columns` there"),
        ("out_height, out_width", "out_width, out_height", "number 2 is `u32 out 0` here"),
        ("float step", "i32 step", "number 5 is `f32 axis 0 step` here and `i32 axis 0 step` there"),
        ("#define RANGES 2", "#define RANGES 3", "number 8 is `u32 by rows 0` here"),
        ("Divisor by_rows;", "", "number 8 is `u32 by rows 0` here and `nothing` there"),
    ] {
        let found = text_faults(&changed(KERNEL, from, to), MIRROR);
        assert!(found.len() == 3 && found[1].contains(said), "{found:#?}");
        assert!(found[2].contains("Params of f.cu has no mirror"), "{found:#?}");
    }
    let swapped =
        changed(MIRROR, "    pub rows: u32,\n    columns: u32,\n", "    columns: u32,\n    pub rows: u32,\n");
    assert!(text_faults(KERNEL, &swapped)[1].contains("number 0"));
}

#[test]
fn structs_without_a_partner_are_found() {
    let forgotten = format!("{MIRROR}#[repr(C)]\nstruct Forgotten {{\n    count: u32,\n}}\n");
    let found = text_faults(KERNEL, &forgotten);
    assert!(found.len() == 1 && found[0].contains("Forgotten of f.rs mirrors no parameter"), "{found:#?}");
    let second = format!(
        "{KERNEL}struct Other {{ u32 count; }};\nextern \"C\" __global__ void g(const Other p) {{}}\n"
    );
    let found = text_faults(&second, MIRROR);
    assert!(found.len() == 1 && found[0].contains("Other of f.cu has no mirror"), "{found:#?}");
}
