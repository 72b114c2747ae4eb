//! Static gates on the CUDA kernels, which need no GPU. Every variant that a model asks for is assembled by
//! ptxas for every architecture we support, and those that only operator cases ask for, odd shapes, for
//! H100's; spills and stack frames are errors. Registers, shared memory and occupancy are held to
//! the table `kernels/resources.tsv`; the kernels that matter use tensor cores and asynchronous copies.
//!
//! ptxas makes the same of the same: what gives the PTX that the table was made from, by `kernels/ptx.tsv`,
//! is not assembled again.

use knet::cuda::nvrtc::{Code, Job, Nvrtc};
use knet::cuda::sources::SOURCES;
use rayon::prelude::*;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use testkit::emulate;
use testkit::emulate::Variant;
use testkit::occupancy::{ARCHITECTURES, Architecture, H100};

/// What variants take.
const TABLE: &str = "kernels/resources.tsv";

/// Where fingerprints are kept.
const FINGERPRINTS: &str = "kernels/ptx.tsv";

/// Architectures that are not assembled for, and whose registers they are held to have: 8.7 and 8.9 had those
/// of 8.6 in all of 266 variants but one. Every run of ptxas costs a clean clone half a second.
const LIKE: [(usize, usize); 2] = [(2, 1), (3, 1)];

/// What a variant takes on an architecture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Usage {
    registers: u32,
    /// Static and dynamic shared memory of a block, in bytes.
    shared: u32,
    /// Threads that a multiprocessor can hold, in percent of its limit; 0: a block does not fit.
    occupancy: u32,
}

fn tool(name: &str) -> PathBuf {
    let path = root().join("target/cuda/nvidia/cu13/bin").join(name);
    assert!(path.exists(), "{}: run tools/setup-cuda", path.display());
    path
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The PTX of every source and set of defines. It serves all architectures, as no source asks for which it is
/// compiled.
fn compiled(variants: &[Variant]) -> BTreeMap<(&'static str, String), Vec<u8>> {
    assert!(
        SOURCES.iter().all(|(_, text)| !text.contains("__CUDA_ARCH__")),
        "compile for each architecture then"
    );
    let jobs: BTreeMap<_, _> = variants
        .iter()
        .map(|v| {
            let job = Job { source: v.source, defines: v.defines.clone(), compute: (8, 0), code: Code::Ptx };
            ((v.source, text(&v.defines)), job)
        })
        .collect();
    let jobs: Vec<_> = jobs.into_iter().collect();
    jobs.into_par_iter()
        .map(|(key, job)| (key, emulate::ptx(&job).unwrap_or_else(|e| panic!("{e}"))))
        .collect()
}

fn text(defines: &[(&str, i64)]) -> String {
    let each: Vec<String> = defines.iter().map(|(name, value)| format!("{name}={value}")).collect();
    each.join(" ")
}

/// The lines of PTX that make machine code. The names of files that its line numbers are of begin with the folder
/// that NVRTC ran in, which is another one in every clone.
fn code(ptx: &[u8]) -> impl Iterator<Item = &[u8]> {
    ptx.split_inclusive(|&byte| byte == b'\n').filter(|line| !line.trim_ascii_start().starts_with(b".file"))
}

/// Runs ptxas: its report for each entry (registers, static shared memory), or what it says. What it once
/// said of the same PTX is kept in `target/tmp`. A stack frame is a fault: an array that is indexed by a
/// variable then lies in local memory, spills or not.
fn assemble(ptx: &[u8], architecture: &Architecture) -> Result<BTreeMap<String, (u32, u32)>, String> {
    let mut hash = Sha256::new_with_prefix(version());
    hash.update(architecture.name());
    code(ptx).for_each(|line| hash.update(line));
    let name = hex(hash);
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("ptxas");
    let known = folder.join(name);
    let log = match std::fs::read_to_string(&known) {
        Ok(log) => log,
        Err(_) => {
            let log = run_ptxas(ptx, architecture, Path::new("/dev/null"))?;
            std::fs::create_dir_all(&folder).unwrap();
            knet::fsio::atomic_write(&known, |file| file.write_all(log.as_bytes())).unwrap();
            log
        }
    };
    let mut entries = BTreeMap::new();
    let mut entry = String::new();
    for line in log.lines() {
        if let Some(rest) = line.split("Compiling entry function '").nth(1) {
            entry = rest.split('\'').next().unwrap_or_default().to_string();
        } else if line.contains("bytes stack frame") && !line.trim().starts_with("0 bytes stack frame") {
            return Err(format!("{entry}: {}", line.trim()));
        } else if let Some(rest) = line.split("Used ").nth(1) {
            let number = |text: &str| text.split(' ').next().and_then(|n| n.parse().ok()).unwrap_or(0);
            let shared = rest.split(", ").find(|part| part.ends_with("bytes smem")).map_or(0, number);
            entries.insert(entry.clone(), (number(rest), shared));
        }
    }
    Ok(entries)
}

fn hex(hash: Sha256) -> String {
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// All that the table's rows of a source and its defines come of: the assembler, the PTX, and how it is
/// launched.
fn fingerprint(ptx: &[u8], variants: &[&Variant]) -> String {
    let mut hash = Sha256::new_with_prefix(version());
    code(ptx).for_each(|line| hash.update(line));
    for Variant { entry, threads, shared, of_model, .. } in variants {
        hash.update(format!("{entry} {threads} {shared} {of_model}\n"));
    }
    hex(hash)
}

/// Fingerprints of what the table was made from, by source and defines, of those that it has rows of.
fn recorded_fingerprints() -> BTreeMap<String, String> {
    let read = |name: &str| std::fs::read_to_string(root().join(name)).unwrap_or_default();
    let table = read(TABLE);
    let with_rows: BTreeSet<String> = table
        .lines()
        .filter_map(|row| {
            let mut fields = row.split('\t');
            Some(format!("{}\t{}", fields.next()?, fields.nth(1)?))
        })
        .collect();
    let split = |row: &str| row.rsplit_once('\t').map(|(key, hash)| (key.to_string(), hash.to_string()));
    read(FINGERPRINTS).lines().filter_map(split).filter(|(key, _)| with_rows.contains(key)).collect()
}

/// What ptxas prints of itself.
fn version() -> &'static [u8] {
    static VERSION: OnceLock<Vec<u8>> = OnceLock::new();
    VERSION.get_or_init(|| Command::new(tool("ptxas")).arg("--version").output().unwrap().stdout)
}

/// Assembles PTX into the file `out`: what ptxas says, as an error if it failed.
fn run_ptxas(ptx: &[u8], architecture: &Architecture, out: &Path) -> Result<String, String> {
    let mut child = Command::new(tool("ptxas"))
        .args(["-v", "--warn-on-spills", "--warning-as-error", "-o"])
        .arg(out)
        .arg(format!("--gpu-name={}", architecture.name()))
        .arg("-")
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(ptx.strip_suffix(b"\0").unwrap_or(ptx)).unwrap();
    let output = child.wait_with_output().unwrap();
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.success() { Ok(log) } else { Err(log) }
}

/// Instructions that kernels live by: tensor-core products, asynchronous copies, matrix loads.
const INSTRUCTIONS: [(&str, &[&str]); 6] = [
    ("attention/window.cu", &["HMMA", "LDGSTS", "LDSM"]),
    ("conv/implicit_gemm.cu", &["HMMA", "LDGSTS", "LDSM"]),
    ("mask/pool.cu", &["HMMA"]),
    ("mask/conv.cu", &["HMMA"]),
    ("mask/cost.cu", &["HMMA"]),
    ("mask/pool_grad.cu", &["HMMA"]),
];

#[test]
fn no_variant_spills_and_none_takes_more_than_the_table_says() {
    let variants = emulate::variants();
    let compiled = compiled(&variants);
    let sources: Vec<_> = compiled.iter().collect();
    let of_model = |(file, defines): &(&str, String)| {
        variants.iter().any(|v| v.of_model && v.source == *file && text(&v.defines) == *defines)
    };
    let all = 0..ARCHITECTURES.len();
    let of = |(file, defines): &(&'static str, String)| -> Vec<&Variant> {
        variants.iter().filter(|v| v.source == *file && text(&v.defines) == *defines).collect()
    };
    let fingerprints: BTreeMap<String, String> = sources
        .iter()
        .map(|(key, ptx)| (format!("{}\t{}", key.0, key.1), fingerprint(ptx, &of(key))))
        .collect();
    let recorded = if update() { BTreeMap::new() } else { recorded_fingerprints() };
    let is_known = |source: usize| {
        let (file, defines) = sources[source].0;
        let key = format!("{file}\t{defines}");
        recorded.get(&key) == fingerprints.get(&key)
    };
    let jobs: Vec<(usize, usize)> = (0..sources.len())
        .flat_map(|source| all.clone().map(move |architecture| (source, architecture)))
        .filter(|&(_, architecture)| LIKE.iter().all(|&(like, _)| like != architecture))
        .filter(|&(source, architecture)| architecture == H100 || of_model(sources[source].0))
        .filter(|&(source, _)| !is_known(source))
        .collect();
    println!("{} variants, {} sources, {} runs of ptxas", variants.len(), sources.len(), jobs.len());
    let assembled: Vec<(usize, usize, Result<_, String>)> = jobs
        .into_par_iter()
        .map(|(source, architecture)| {
            (source, architecture, assemble(sources[source].1, &ARCHITECTURES[architecture]))
        })
        .collect();
    let mut faults = Vec::new();
    let mut table = BTreeMap::new();
    for (source, architecture, outcome) in assembled {
        let (file, defines) = sources[source].0;
        let like = LIKE.iter().filter(|&&(_, assembled)| assembled == architecture).map(|&(like, _)| like);
        let held: Vec<usize> = std::iter::once(architecture).chain(like).collect();
        let entries = match outcome {
            Ok(entries) => entries,
            Err(log) => {
                faults.push(format!("{file} {defines} for {}: {log}", ARCHITECTURES[architecture].name()));
                continue;
            }
        };
        for variant in variants.iter().filter(|v| v.source == *file && text(&v.defines) == *defines) {
            let (registers, shared) = entries[variant.entry];
            let key = [variant.source, variant.entry, defines].join("\t");
            let shared = shared + variant.shared;
            let usages = table.entry(key).or_insert_with(BTreeMap::new);
            for architecture in held.iter().map(|&position| &ARCHITECTURES[position]) {
                let occupancy = architecture.occupancy(variant.threads, registers, shared);
                usages.insert(architecture.name(), Usage { registers, shared, occupancy });
            }
        }
    }
    assert!(faults.is_empty(), "{} do not pass:\n{}", faults.len(), faults.join("\n"));
    compare(&table);
    if update() {
        let rows: Vec<String> = fingerprints.iter().map(|(key, hash)| format!("{key}\t{hash}")).collect();
        let text = format!("source\tdefines\tsha256\n{}\n", rows.join("\n"));
        std::fs::write(root().join(FINGERPRINTS), text).unwrap();
    }
}

/// Whether tables are recorded, not compared with.
fn update() -> bool {
    std::env::var_os("KNET_UPDATE").is_some()
}

/// Defines that choose code. Others choose numbers.
const CODE: [&str; 9] =
    ["STORAGE", "MATH", "ADDRESSING", "WHOLE_CHUNKS", "UPSAMPLED", "MOMENTS", "SPLIT", "FORMAT", "PROLOGUE"];

/// Besides the NVRTC of the other gates: what PyTorch's CUDA 13.0 wheels bring, and the oldest one that is
/// promised. One variant of each code; what stores f16 is assembled, too, and the rest, which differs from
/// that in types, is compiled alone, in a quarter of the time.
#[test]
fn every_promised_nvrtc_compiles_what_models_run_on_an_h100() {
    let mut installed = vec![((13, 0), "nvrtc-13.0/nvidia/cu13/lib/libnvrtc.so.13")];
    // There is no wheel of it for AArch64.
    if cfg!(target_arch = "x86_64") {
        installed.push(((12, 0), "nvrtc-12.0/nvidia/cuda_nvrtc/lib/libnvrtc.so.12"));
    }
    let variants = emulate::variants();
    let job = |v: &Variant| {
        let compute = ARCHITECTURES[H100].compute;
        let code = if v.defines.contains(&("STORAGE", 1)) { Code::Cubin } else { Code::Ptx };
        Job { source: v.source, defines: v.defines.clone(), compute, code }
    };
    let code = |v: &Variant| {
        let chosen = v.defines.iter().filter(|(name, _)| CODE.contains(name)).copied();
        (v.source, chosen.collect::<Vec<_>>())
    };
    let kinds: BTreeMap<_, &Variant> = variants.iter().filter(|v| v.of_model).map(|v| (code(v), v)).collect();
    let jobs: Vec<Job> = kinds.into_values().map(job).collect();
    for (version, file) in installed {
        let path = root().join("target/cuda").join(file);
        let nvrtc = Nvrtc::open(&path).unwrap_or_else(|e| panic!("{e}: run tools/setup-cuda"));
        assert_eq!(nvrtc.version(), version, "{}", path.display());
        let cache = emulate::cache(&nvrtc);
        let faults: Vec<String> = jobs
            .par_iter()
            .filter_map(|job| cache.compile(job, || Ok(&nvrtc)).err())
            .map(|error| error.to_string())
            .collect();
        println!("NVRTC {version:?}: {} kernels", jobs.len());
        assert!(faults.is_empty(), "{} of {}:\n{}", faults.len(), jobs.len(), faults.join("\n"));
    }
}

/// Compares with the recorded table, or records it if `KNET_UPDATE` is set.
fn compare(table: &BTreeMap<String, BTreeMap<String, Usage>>) {
    let path = root().join(TABLE);
    let mut rows = vec!["source\tentry\tdefines\tarchitecture\tregisters\tshared\toccupancy".to_string()];
    for (key, usages) in table {
        for (architecture, u) in usages {
            rows.push(format!("{key}\t{architecture}\t{}\t{}\t{}", u.registers, u.shared, u.occupancy));
        }
    }
    if update() {
        std::fs::write(&path, rows.join("\n") + "\n").unwrap();
        return;
    }
    let recorded = std::fs::read_to_string(&path).unwrap();
    let split = |row: &str| {
        let (key, numbers) =
            row.match_indices('\t').nth(3).map(|(at, _)| row.split_at(at)).unwrap_or_default();
        let numbers: Vec<u32> = numbers.split('\t').filter_map(|n| n.parse().ok()).collect();
        (key.to_string(), numbers)
    };
    let known: BTreeMap<String, Vec<u32>> = recorded.lines().skip(1).map(split).collect();
    let mut worse = Vec::new();
    for row in &rows[1..] {
        let (key, now) = split(row);
        match known.get(&key) {
            Some(before) if now[0] <= before[0] && now[1] <= before[1] && now[2] >= before[2] => {}
            Some(before) => worse.push(format!("{key}: registers, shared, occupancy {before:?} -> {now:?}")),
            None => worse.push(format!("{key}: not in the table")),
        }
    }
    assert!(
        worse.is_empty(),
        "{}: {} worse or new; if that is meant, KNET_UPDATE=1 cargo test --test cuda gates:: records it:\n{}",
        path.display(),
        worse.len(),
        worse.join("\n")
    );
}

#[test]
fn the_machine_code_uses_tensor_cores_and_asynchronous_copies() {
    let folder = tempfile::tempdir().unwrap();
    // In bf16 they differ by the name of one type.
    let is_f16 = |v: &Variant| v.defines.contains(&("STORAGE", 1));
    let variants: Vec<Variant> = emulate::variants().into_iter().filter(is_f16).collect();
    for (file, wanted) in INSTRUCTIONS {
        // What no model runs yet is looked at as cases run it.
        let of_model = variants.iter().any(|v| v.source == file && v.of_model);
        let looked_at = |v: &&Variant| v.source == file && v.of_model == of_model;
        let variants: Vec<Variant> = variants.iter().filter(looked_at).cloned().collect();
        assert!(!variants.is_empty(), "nothing runs {file}");
        for (index, ((_, defines), ptx)) in compiled(&variants).iter().enumerate() {
            let cubin = folder.path().join(format!("{index}.cubin"));
            run_ptxas(ptx, &ARCHITECTURES[H100], &cubin).unwrap();
            let output = Command::new(tool("cuobjdump"))
                .arg("-sass")
                .arg(&cubin)
                .env("PATH", tool("nvdisasm").parent().unwrap())
                .output()
                .unwrap();
            let sass = String::from_utf8_lossy(&output.stdout);
            for instruction in wanted {
                assert!(sass.contains(instruction), "{file} {defines}: no {instruction}");
            }
        }
    }
}
