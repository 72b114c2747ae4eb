//! Static gates on the CUDA kernels, which need no GPU: every variant that any operator case asks for is compiled for
//! every architecture we support and assembled by ptxas with spills as errors.

#[path = "common/emulate.rs"]
#[expect(dead_code, reason = "the emulated suites use the rest")]
mod emulate;

use knet::cuda::nvrtc::{Code, Job, Nvrtc};
use rayon::prelude::*;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Architectures that kernels are built for: A100, A10 and RTX 30, Orin, L4 and RTX 40, H100, B200, Thor, RTX 50.
const ARCHITECTURES: [(u32, u32); 8] = [(8, 0), (8, 6), (8, 7), (8, 9), (9, 0), (10, 0), (11, 0), (12, 0)];

fn tool(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/cuda/nvidia/cu13/bin").join(name);
    assert!(path.exists(), "{}: run tools/setup-cuda", path.display());
    path
}

#[test]
fn no_variant_spills_on_any_architecture() {
    let nvrtc = Nvrtc::get().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let variants = emulate::variants();
    assert!(!variants.is_empty());
    let jobs: Vec<Job> = variants
        .iter()
        .flat_map(|variant| {
            ARCHITECTURES.map(|compute| Job {
                source: variant.0,
                defines: variant.1.clone(),
                compute,
                code: Code::Ptx,
            })
        })
        .collect();
    let faults: Vec<String> = jobs
        .par_iter()
        .enumerate()
        .filter_map(|(index, job)| {
            let (major, minor) = job.compute;
            let ptx = match nvrtc.compile(job) {
                Ok(ptx) => ptx,
                Err(e) => return Some(e.to_string()),
            };
            let path = folder.path().join(format!("{index}.ptx"));
            std::fs::write(&path, ptx.strip_suffix(b"\0").unwrap_or(&ptx)).unwrap();
            let output = Command::new(tool("ptxas"))
                .args(["--warn-on-spills", "--warning-as-error", "-o", "/dev/null"])
                .arg(format!("--gpu-name=sm_{major}{minor}"))
                .arg(&path)
                .output()
                .unwrap();
            std::fs::remove_file(&path).unwrap();
            let log = String::from_utf8_lossy(&output.stderr).into_owned();
            (!output.status.success()).then(|| format!("{job:?}: {log}"))
        })
        .collect();
    assert!(faults.is_empty(), "{} of {} do not pass:\n{}", faults.len(), jobs.len(), faults.join("\n"));
}
