//! `knet` for GPUs where there is none: plans printed for a GPU by name, the cache of kernels, and what
//! `knet tune` says on a CPU.

use serde_json::Value;
use std::collections::HashSet;
use std::process::Command;

/// Exit code, standard output, standard error.
#[track_caller]
fn knet(arguments: &[&str]) -> (i32, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_knet")).args(arguments).output().unwrap();
    let [stdout, stderr] = [output.stdout, output.stderr].map(|b| String::from_utf8_lossy(&b).into_owned());
    assert!(!stderr.contains("panicked"), "{arguments:?}: {stderr}");
    (output.status.code().expect("an exit code"), stdout, stderr)
}

#[track_caller]
fn succeed(arguments: &[&str]) -> String {
    let (code, stdout, stderr) = knet(arguments);
    assert_eq!(code, 0, "{arguments:?}: {stderr}");
    stdout
}

fn inspect(more: &[&str]) -> String {
    succeed(&[&["inspect", "seeded:0", "--size", "96x128"], more].concat())
}

fn report(more: &[&str]) -> Value {
    serde_json::from_str(&inspect(&[more, &["--json"]].concat())).unwrap()
}

#[test]
fn a_plan_for_a_gpu_shows_every_launch() {
    let table = inspect(&["--gpu", "h100"]);
    for fragment in [
        "H100 SXM (9.0), 132 multiprocessors",
        "roofline",
        "few channels 8x32x64",
        "conv/implicit_gemm.cu:implicit_gemm<STORAGE=1,",
        "mask/pool.cu:mask_pool<",
        "blocks of 256x1x1",
    ] {
        assert!(table.contains(fragment), "no `{fragment}` in: {table}");
    }
    let report = report(&["--gpu", "H100"]);
    assert_eq!((&report["gpu"]["gpu"], &report["gpu"]["precision"]), (&"h100".into(), &"f16".into()));
    let steps = report["steps"].as_array().unwrap();
    let launches: Vec<&Value> =
        steps.iter().flat_map(|step| step["gpu"]["launches"].as_array().unwrap()).collect();
    assert_eq!(report["gpu"]["launches"], launches.len());
    assert!(launches.len() >= steps.len(), "{} of {}", launches.len(), steps.len());
    // Each has its line below its step.
    assert_eq!(table.lines().filter(|line| line.contains(" B shared")).count(), launches.len());
    for launch in launches {
        let extents =
            |key: &str| launch[key].as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).product();
        let (blocks, threads): (u64, u64) = (extents("grid"), extents("block"));
        assert!(blocks > 0 && (1..=1024).contains(&threads), "{launch}");
        assert!(launch["shared"].as_u64().unwrap() <= 232_448, "{launch}");
    }
    let sum: f64 = steps.iter().map(|step| step["gpu"]["roofline_us"].as_f64().unwrap()).sum();
    let total = report["gpu"]["roofline_us"].as_f64().unwrap();
    assert!((sum / total - 1.0).abs() < 1e-3, "{sum} {total}");
    let estimated = steps.iter().filter(|step| step["gpu"]["model_us"].is_f64());
    assert!(estimated.clone().count() > 50);
    assert!(estimated.into_iter().all(|step| step["op"].as_str().unwrap().ends_with("conv2d")
        && step["kernel"].as_str().unwrap().starts_with("gemm")));
}

#[test]
fn plans_differ_by_gpu_and_precision_and_by_nothing_else() {
    let plans: Vec<String> = ["h100", "a100", "a10", "l4", "l40s", "rtx4090", "orin"]
        .iter()
        .flat_map(|gpu| [inspect(&["--gpu", gpu]), inspect(&["--gpu", gpu, "--precision", "f32"])])
        .collect();
    assert_eq!(plans.iter().collect::<HashSet<_>>().len(), plans.len());
    assert_eq!(inspect(&["--gpu", "h100", "--threads", "1"]), plans[0]);
    let kernels = |report: &Value| -> Vec<String> {
        report["steps"].as_array().unwrap().iter().map(|step| step["kernel"].to_string()).collect()
    };
    let (large, small) = (report(&["--gpu", "h100"]), report(&["--gpu", "orin"]));
    assert_ne!(kernels(&large), kernels(&small), "132 multiprocessors and 16");
    let f32 = inspect(&["--gpu", "h100", "--precision", "f32"]);
    assert!(
        f32.contains("<STORAGE=0,") && !f32.contains("STORAGE=1") && !f32.contains("few channels"),
        "{f32}"
    );
}

#[test]
fn what_cannot_be_planned_tuned_or_cached_is_said() {
    let cases: [(&[&str], &[&str]); 8] = [
        (
            &["inspect", "seeded:0", "--gpu", "tpu"],
            &["`tpu`", "h100, h200, a100, a10, l4, l40s, rtx4090, orin"],
        ),
        (&["inspect", "seeded:0", "--precision", "f16"], &["--gpu"]),
        (&["tune", "--device", "cpu"], &["cpu", "only a GPU's kernels are chosen by measuring"]),
        (&["tune", "--candidates", "1"], &["--candidates"]),
        (&["tune", "--size", "0x5"], &["0x5"]),
        (&["cache", "fill", "--gpu", "tpu"], &["`tpu`", "orin"]),
        (&["cache", "fill", "--gpu", "l4", "--device", "cuda"], &["--gpu", "--device"]),
        (&["cache", "fill", "--device", "cpu"], &["cpu", "--gpu"]),
    ];
    for (arguments, fragments) in cases {
        let (code, stdout, stderr) = knet(arguments);
        assert_eq!(code, 2, "{arguments:?}: {stderr}");
        assert!(stdout.is_empty(), "{stdout}");
        for fragment in fragments {
            assert!(stderr.contains(fragment), "no `{fragment}` in: {stderr}");
        }
    }
}

/// An empty cache is shown and cleared; where there is none, and where there can be none, that is said.
#[test]
fn a_cache_is_where_the_variables_say() {
    let folder = tempfile::tempdir().unwrap();
    let cache = |variables: &[(&str, &str)], action: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_knet"));
        command.arg("cache").args(action).current_dir(folder.path());
        for name in ["KNET_CACHE", "XDG_CACHE_HOME", "HOME"] {
            command.env_remove(name);
        }
        let output = command.envs(variables.iter().copied()).output().unwrap();
        let [stdout, stderr] =
            [output.stdout, output.stderr].map(|b| String::from_utf8_lossy(&b).into_owned());
        (output.status.code().unwrap(), stdout, stderr)
    };
    let home = folder.path().to_str().unwrap();
    let (code, stdout, stderr) = cache(&[("HOME", home), ("XDG_CACHE_HOME", "relative")], &["--json"]);
    assert_eq!(code, 0, "{stderr}");
    let shown: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(
        (&shown["folder"], &shown["entries"]),
        (&format!("{home}/.cache/knet/kernels").into(), &0.into())
    );
    let (code, stdout, _) = cache(&[("KNET_CACHE", "kernels")], &["clear"]);
    assert!(code == 0 && stdout.contains("kernels: 0 files removed"), "{stdout}");
    for variables in [&[("KNET_CACHE", "")][..], &[("HOME", ""), ("XDG_CACHE_HOME", "")], &[("HOME", ".")]] {
        let (code, _, stderr) = cache(variables, &[]);
        assert!(code == 2 && stderr.contains("no kernel cache"), "{variables:?}: {stderr}");
    }
    std::fs::write(folder.path().join("file"), "no folder").unwrap();
    let (code, _, stderr) = cache(&[("KNET_CACHE", "file")], &[]);
    assert!(code == 10 && stderr.contains("file: no folder in the place of the kernel cache"), "{stderr}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "nothing was made");
}
