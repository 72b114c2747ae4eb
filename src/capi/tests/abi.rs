//! What programs were compiled against stays: sizes and offsets of every public struct, every value and every
//! function, as a C compiler sees them, against `abi/table.txt` and against the headers of `abi/`, whose
//! programs have to run with this library.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(output.status.success(), "{command:?}\n{}", text(&output));
    text(&output)
}

/// A header without comments and without what the preprocessor is told, and its constants.
fn read(folder: &Path) -> (String, Vec<String>) {
    let header = std::fs::read_to_string(folder.join("knet.h")).unwrap();
    let mut rest = &*header;
    let mut bare = String::new();
    while let Some((before, comment)) = rest.split_once("/*") {
        bare.push_str(before);
        rest = comment.split_once("*/").expect("a comment ends").1;
    }
    bare.push_str(rest);
    let is_constant = |line: &str| line.starts_with("#define") && line.split_whitespace().count() == 3;
    let constants = bare.lines().filter(|line| is_constant(line));
    let constants = constants.map(|line| line.split_whitespace().nth(1).unwrap().to_string()).collect();
    let code: Vec<&str> = bare.lines().filter(|line| !line.starts_with('#')).collect();
    (code.join("\n").replace("extern \"C\" {", "").replace("}  // extern \"C\"", ""), constants)
}

/// The public things of a header.
#[derive(Default)]
struct Things {
    /// Constants and values of enums.
    values: Vec<String>,
    /// Structs with their fields.
    structs: Vec<(String, Vec<String>)>,
    /// Functions and types of functions, in one line each.
    functions: Vec<String>,
}

fn things(folder: &Path) -> Things {
    let (code, constants) = read(folder);
    let mut found = Things { values: constants, ..Things::default() };
    let name = |field: &str| {
        let last = field.rsplit([' ', '*']).next().unwrap_or_default();
        last.split('[').next().unwrap_or_default().to_string()
    };
    let mut rest = &*code;
    while let Some(end) = rest.find([';', '{']) {
        let head = rest[..end].split_whitespace().collect::<Vec<_>>().join(" ");
        if rest[end..].starts_with(';') {
            rest = &rest[end + 1..];
            if head.contains('(') {
                found.functions.push(head);
            }
            continue;
        }
        let (body, after) = rest[end + 1..].split_once('}').expect("a body ends");
        let (_, after) = after.split_once(';').expect("a type has a name");
        rest = after;
        let what = head.rsplit(' ').next().unwrap_or_default().to_string();
        if head.starts_with("typedef enum") {
            let values = body.split(',').filter_map(|value| value.split_whitespace().next());
            found.values.extend(values.map(String::from));
        } else {
            let fields = body.split(';').map(str::trim).filter(|field| !field.is_empty());
            found.structs.push((what, fields.map(name).collect()));
        }
    }
    found
}

/// The table of a header: one line for each thing, with the numbers that a compiler gives it.
fn table(folder: &Path) -> BTreeMap<String, String> {
    let things = things(folder);
    let mut program = "#include <knet.h>\n#include <stdio.h>\nint main(void) {\n".to_string();
    for value in &things.values {
        writeln!(program, "  printf(\"value {value}\\t%lld\\n\", (long long){value});").unwrap();
    }
    for (name, fields) in &things.structs {
        writeln!(program, "  printf(\"struct {name}\\t%zu\\n\", sizeof({name}));").unwrap();
        for field in fields {
            let (offset, size) =
                (format!("offsetof({name}, {field})"), format!("sizeof((({name} *)0)->{field})"));
            writeln!(program, "  printf(\"field {name}.{field}\\t%zu %zu\\n\", {offset}, {size});").unwrap();
        }
    }
    program.push_str("  return 0;\n}\n");
    let place = tempfile::tempdir().unwrap();
    let (source, built) = (place.path().join("table.c"), place.path().join("table"));
    std::fs::write(&source, program).unwrap();
    run(Command::new("cc").arg("-I").arg(folder).arg(&source).arg("-o").arg(&built));
    let numbers = run(&mut Command::new(built));
    let mut lines: BTreeMap<String, String> = numbers
        .lines()
        .map(|line| line.split_once('\t').expect("two columns"))
        .map(|(thing, numbers)| (thing.into(), numbers.into()))
        .collect();
    for function in things.functions {
        let before = function.strip_prefix("typedef void (*").unwrap_or(&function).split(['(', ')']).next();
        let name = before.and_then(|before| before.rsplit([' ', '*']).next()).unwrap_or_default().to_string();
        lines.insert(format!("function {name}"), function);
    }
    lines
}

/// What a program that was compiled against `old` would miss in `new`.
fn broken(old: &BTreeMap<String, String>, new: &BTreeMap<String, String>) -> Vec<String> {
    let holds = |thing: &str, old: &str| match new.get(thing) {
        // Programs say the size that they know.
        Some(new) if thing.starts_with("struct ") => {
            let size = |text: &str| text.parse::<usize>().expect("a size");
            size(new) >= size(old)
        }
        Some(new) => new == old,
        None => false,
    };
    // What was kept free may become something: another field at the same place, of the same size.
    let is_taken = |thing: &str, old: &str| {
        let owner = thing.strip_suffix("reserved").filter(|_| thing.starts_with("field "));
        owner.is_some_and(|owner| new.iter().any(|(field, place)| field.starts_with(owner) && place == old))
    };
    let lost = old.iter().filter(|(thing, old)| !holds(thing, old) && !is_taken(thing, old));
    lost.map(|(thing, old)| format!("{thing}: {old}, now {:?}", new.get(thing))).collect()
}

fn lines(table: &BTreeMap<String, String>) -> String {
    table.iter().map(|(thing, value)| format!("{thing}\t{value}\n")).collect()
}

#[test]
fn nothing_that_a_program_was_compiled_against_has_moved() {
    let new = table(&root().join("include"));
    assert!(new.contains_key("struct knet_frame") && new.contains_key("function knet_segment"), "{new:?}");
    assert_eq!(new["value KNET_ERROR_STATE"], "12");
    assert_eq!(new["field knet_frame.timestamp_ns"], "64 8");
    let path = root().join("abi/table.txt");
    let recorded = std::fs::read_to_string(&path).unwrap_or_default();
    let old = recorded.lines().filter_map(|line| line.split_once('\t'));
    let old: BTreeMap<String, String> = old.map(|(a, b)| (a.into(), b.into())).collect();
    let lost = broken(&old, &new);
    assert!(lost.is_empty(), "no longer what programs expect: raise KNET_ABI_VERSION\n{}", lost.join("\n"));
    if std::env::var_os("KNET_UPDATE").is_some() {
        std::fs::write(&path, lines(&new)).unwrap();
    } else {
        let hint = "KNET_UPDATE=1 cargo test -p knet-capi --test abi";
        assert!(recorded == lines(&new), "{} lacks what is new: {hint}", path.display());
    }
    for older in older() {
        let lost = broken(&table(&older), &new);
        assert!(lost.is_empty(), "{}:\n{}", older.display(), lost.join("\n"));
    }
}

/// Folders with the headers that programs may have been built against.
fn older() -> Vec<PathBuf> {
    let folders = std::fs::read_dir(root().join("abi")).unwrap().map(|entry| entry.unwrap().path());
    let folders: Vec<PathBuf> = folders.filter(|path| path.is_dir()).collect();
    assert!(!folders.is_empty());
    folders
}

#[test]
fn what_breaks_is_seen() {
    let new = table(&root().join("include"));
    let changed = |thing: &str, value: Option<&str>| {
        let mut other = new.clone();
        match value {
            Some(value) => other.insert(thing.into(), value.into()),
            None => other.remove(thing),
        };
        broken(&new, &other)
    };
    assert!(changed("struct knet_frame", Some("400")).is_empty());
    assert!(changed("field knet_frame.later", Some("80 4")).is_empty());
    let mut taken = new.clone();
    let place = taken.remove("field knet_frame.reserved").unwrap();
    assert!(!broken(&new, &taken).is_empty());
    taken.insert("field knet_frame.exposure".into(), place);
    assert!(broken(&new, &taken).is_empty());
    for (thing, value) in [
        ("struct knet_frame", Some("64")),
        ("field knet_frame.timestamp_ns", Some("72 8")),
        ("value KNET_ERROR_BUSY", Some("14")),
        ("function knet_segment", None),
        ("function knet_version", Some("char *knet_version(void)")),
    ] {
        let lost = changed(thing, value);
        assert!(lost.len() == 1 && lost[0].starts_with(thing), "{lost:?}");
    }
}

/// A library of the header's functions, which do nothing, with what a debugger is told of their types.
fn stub(folder: &Path, place: &Path, name: &str) -> PathBuf {
    let mut source = "#include <knet.h>\n".to_string();
    for function in things(folder).functions.iter().filter(|function| !function.starts_with("typedef")) {
        writeln!(source, "{function} {{ __builtin_trap(); }}").unwrap();
    }
    let (path, built) = (place.join(name).with_extension("c"), place.join(name).with_extension("so"));
    std::fs::write(&path, source).unwrap();
    run(Command::new("cc")
        .args(["-g", "-shared", "-fPIC", "-I"])
        .arg(folder)
        .arg(&path)
        .arg("-o")
        .arg(&built));
    built
}

/// An opinion that is not ours, where Debian's `abigail-tools` are installed.
#[test]
fn abidiff_finds_nothing_that_breaks() {
    if Command::new("abidiff").arg("--version").output().is_err() {
        eprintln!("abidiff is not installed (apt-get install abigail-tools): its opinion is not asked");
        return;
    }
    let place = tempfile::tempdir().unwrap();
    let new = stub(&root().join("include"), place.path(), "new");
    for older in older() {
        let output =
            Command::new("abidiff").arg(stub(&older, place.path(), "old")).arg(&new).output().unwrap();
        let (code, said) = (output.status.code().unwrap_or(-1), text(&output));
        // 1 and 2: it could not look; 8: a change that breaks. 4 alone: something came to it. A field that
        // moved behind a pointer it tells without judging.
        let broken = code & !4 != 0 || said.contains("offset changed");
        assert!(!broken, "{}: abidiff ends with {code}\n{said}", older.display());
    }
}
