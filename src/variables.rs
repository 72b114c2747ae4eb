//! The environment variables of this project: all that begin with `KNET_`.

use crate::error::{Error, Result};

/// Those of other architectures lower nothing here.
const ISA: &[&str] = if cfg!(target_arch = "aarch64") {
    &["", "portable", "neon"]
} else {
    &["", "portable", "avx2", "avx512"]
};

/// Every name, in order, with the values it takes if they are a few words. Those of tests, benches and tools
/// are among them, so that a shell set up for those runs the programs too.
pub const KNOWN: [(&str, &[&str]); 16] = [
    // Print where the test of allocations sees one.
    ("KNET_ALLOC_TRACE", &[]),
    // Folder of compiled CUDA kernels; empty: none.
    ("KNET_CACHE", &[]),
    // Folder of NVIDIA's compiler for the emulator's tests.
    ("KNET_CUDA", &[]),
    // Form of compiled CUDA kernels.
    ("KNET_CUDA_CODE", &["", "cubin", "ptx"]),
    // Instruction set of the CPU kernels, at most.
    ("KNET_ISA", ISA),
    // Library with the standard ABI of MPI, between ranks.
    ("KNET_MPI", &[]),
    // NVIDIA's library between GPUs.
    ("KNET_NCCL", &[]),
    // NVIDIA's kernel compiler.
    ("KNET_NVRTC", &[]),
    // Where ranks meet that no MPI connects: host and port of rank 0.
    ("KNET_RENDEZVOUS", &[]),
    // Repository that packed tests belong to.
    ("KNET_ROOT", &[]),
    // Data that tests need beside the repository.
    ("KNET_SHARED", &[]),
    // Device of the tests of whole models.
    ("KNET_TEST_DEVICE", &[]),
    // Operations that a test on a device may take.
    ("KNET_TEST_FLOPS", &[]),
    // Threads of the benches.
    ("KNET_THREADS", &[]),
    // Table of measured kernels; empty: none.
    ("KNET_TUNED", &[]),
    // Record what tests compare with.
    ("KNET_UPDATE", &[]),
];

/// Looks at the environment: a variable that is misspelt would change nothing, without a word.
///
/// # Errors
/// [`Error::Usage`] for a variable that begins with `KNET_` and is none of [`KNOWN`], naming the nearest of
/// those, and for a value that one of them does not take.
pub fn check() -> Result<()> {
    std::env::vars_os()
        .try_for_each(|(name, value)| check_one(&name.to_string_lossy(), &value.to_string_lossy()))
}

fn check_one(name: &str, value: &str) -> Result<()> {
    if !name.starts_with("KNET_") || is_service(name) {
        return Ok(());
    }
    let Some((_, values)) = KNOWN.iter().find(|(known, _)| *known == name) else {
        let likeness = |known: &str| strsim::jaro_winkler(known, name);
        let nearest =
            KNOWN.iter().map(|(known, _)| *known).max_by(|a, b| likeness(a).total_cmp(&likeness(b)));
        let hint = nearest.map(|nearest| format!("did you mean {nearest}? ")).unwrap_or_default();
        return Err(Error::usage(format!(
            "unknown environment variable {name}: {hint}Names that begin with KNET_ are this program's; unset it"
        )));
    };
    if values.is_empty() || values.contains(&value) {
        return Ok(());
    }
    let known: Vec<&str> = values.iter().copied().filter(|value| !value.is_empty()).collect();
    Err(Error::usage(format!("{name}={value}: takes {}", known.join(", "))))
}

/// Whether Kubernetes made this variable: every container beside a service called `knet` or `knet-...` has
/// some of these.
fn is_service(name: &str) -> bool {
    ["_SERVICE_HOST", "_SERVICE_PORT"].iter().any(|part| name.contains(part))
        || name.split('_').any(|word| word == "PORT")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn misspelt_names_and_values_are_errors() {
        let (isa, elsewhere, takes) = if cfg!(target_arch = "aarch64") {
            ("neon", "avx2", "KNET_ISA=avx2: takes portable, neon")
        } else {
            ("avx2", "neon", "KNET_ISA=neon: takes portable, avx2, avx512")
        };
        for (name, value) in [
            ("KNET_ISA", isa),
            ("KNET_ISA", ""),
            ("KNET_CACHE", "/anywhere"),
            ("KNET_CUDA_CODE", "ptx"),
            ("KNETS", "x"),
            ("KNET_SERVICE_HOST", "10.0.0.1"),
            ("KNET_API_SERVICE_PORT_HTTP", "80"),
            ("KNET_PORT_80_TCP_ADDR", "10.0.0.1"),
            ("PATH", "/bin"),
        ] {
            check_one(name, value).unwrap();
        }
        for (name, value, fragment) in [
            ("KNET_CASHE", "/tmp", "did you mean KNET_CACHE?"),
            ("KNET_TUNE", "t.json", "did you mean KNET_TUNED?"),
            ("KNET_ISa", "avx2", "did you mean KNET_ISA?"),
            ("KNET_ISA", elsewhere, takes),
            ("KNET_ISA", "avx", "KNET_ISA=avx: takes portable, "),
            ("KNET_CUDA_CODE", "sass", "takes cubin, ptx"),
        ] {
            let error = check_one(name, value).unwrap_err();
            assert!(matches!(error, Error::Usage(_)) && error.to_string().contains(fragment), "{error}");
        }
    }
}
