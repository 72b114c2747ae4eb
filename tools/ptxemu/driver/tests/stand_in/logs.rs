//! The call log, the report, and the tool that sets programs on the stand-in.

use std::path::Path;
use std::process::Command;

use cudarc::driver::sys::{CUgraphInstantiate_flags as Flags, CUstreamCaptureMode as Mode};
use cudarc::driver::{LaunchConfig, Profiler, PushKernelArg};
use serde_json::json;

use crate::nvrtc::kernels;
use crate::process::{context, run};

#[test]
fn the_log_shows_what_a_run_calls() {
    let run = run("logs::the_log_shows_what_a_run_calls", &[], || {
        let context = context();
        let stream = context.new_stream().unwrap();
        let axpy = kernels(&context).load_function("axpy").unwrap();
        let x = stream.clone_htod(&[1.0_f32; 64]).unwrap();
        let mut y = stream.alloc_zeros::<f32>(64).unwrap();
        stream.synchronize().unwrap();
        stream.begin_capture(Mode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).unwrap();
        let mut launch = stream.launch_builder(&axpy);
        launch.arg(&1.0_f32).arg(&x).arg(&mut y).arg(&64_i32);
        // SAFETY: the kernel's parameters, and memory of 64 elements.
        unsafe { launch.launch(LaunchConfig::for_num_elems(64)) }.unwrap();
        let graph = stream.end_capture(Flags(0)).unwrap().unwrap();
        {
            let _mark = Profiler::new().unwrap();
            graph.launch().unwrap();
            stream.synchronize().unwrap();
        }
        assert_eq!(stream.clone_dtoh(&y).unwrap(), [1.0; 64]);
    });
    let Some(run) = run else { return };
    let names: Vec<&str> = run.marked_calls().iter().filter_map(|line| line.split(' ').next()).collect();
    let names: Vec<&str> = names.into_iter().filter(|name| *name != "cuCtxGetCurrent").collect();
    assert_eq!(names, ["cuGraphLaunch", "cuStreamSynchronize"], "{:#?}", run.log);
    let position = |start: &str| {
        run.log
            .iter()
            .position(|line| line.starts_with(start))
            .unwrap_or_else(|| panic!("{start}: {:#?}", run.log))
    };
    let captured = position("cuLaunchKernel kernel=axpy grid=1,1,1 block=1024,1,1 shared=0 stream=");
    let ran = position("# run kernel=axpy grid=1,1,1 block=1024,1,1 shared=0 stream=");
    assert!(captured < ran && position("cuGraphLaunch ") < ran && ran < position("cuProfilerStop "));
    // NVRTC, in the same process, asks for a table that is not there.
    let expected = |line: &&String| !line.starts_with(['#']) && !line.starts_with("cuGetExportTable ");
    let failed: Vec<&String> =
        run.log.iter().filter(expected).filter(|line| !line.ends_with("= CUDA_SUCCESS")).collect();
    assert!(failed.is_empty(), "{failed:?}");
}

#[test]
fn the_report_counts_by_kernel() {
    let path = std::env::temp_dir().join(format!("ptxemu-report-{}", std::process::id()));
    let environment = [("PTXEMU_REPORT", path.to_str().expect("a path in UTF-8"))];
    let run = run("logs::the_report_counts_by_kernel", &environment, || {
        let context = context();
        let stream = context.new_stream().unwrap();
        let narrow = kernels(&context).load_function("narrow").unwrap();
        let mut numbers = stream.alloc_zeros::<i32>(64).unwrap();
        for _ in 0..3 {
            let config = LaunchConfig { grid_dim: (1, 1, 1), block_dim: (64, 1, 1), shared_mem_bytes: 0 };
            // SAFETY: one block of 64 elements.
            unsafe { stream.launch_builder(&narrow).arg(&mut numbers).launch(config) }.unwrap();
        }
        stream.synchronize().unwrap();
    });
    if run.is_none() {
        return;
    }
    let report = std::fs::read_to_string(&path).expect("the report was written");
    // The file is scratch; one that stays does no harm.
    let _ = std::fs::remove_file(&path);
    let report: serde_json::Value = serde_json::from_str(&report).expect("the report is JSON");
    let only = &report[0];
    assert_eq!(report.as_array().map(Vec::len), Some(1), "{report:#}");
    assert_eq!((&only["kernel"], &only["block"]), (&json!("narrow"), &json!([64, 1, 1])));
    assert_eq!((&only["launches"], &only["blocks"]), (&json!(3), &json!(3)));
    // Two warps in each launch, each storing 128 bytes in 4 sectors.
    let stores =
        [&only["instructions_global_store"], &only["global_store_sectors"], &only["global_store_bytes"]];
    assert_eq!(stores, [&json!(6), &json!(24), &json!(768)]);
}

#[test]
fn the_tool_sets_a_program_on_the_stand_in() {
    let tool = concat!(env!("CARGO_MANIFEST_DIR"), "/../../with-ptxemu");
    let output = |arguments: &[&str]| {
        let output = Command::new(tool).args(arguments).output().expect("the tool runs");
        (output.status.success(), String::from_utf8(output.stdout).expect("UTF-8"))
    };
    let (ok, help) = output(&["--help"]);
    assert!(ok && help.contains("tools/with-ptxemu COMMAND") && help.contains("PTXEMU_SEED"), "{help}");
    assert!(!output(&[]).0, "no command is an error");
    let (ok, folder) = output(&["--path"]);
    let folder = folder.trim_end();
    assert!(
        ok && Path::new(folder).join("libcuda.so.1").is_file()
            && Path::new(folder).join("libcuda.so").is_file()
    );
    let (ok, environment) = output(&["env"]);
    assert!(ok && environment.lines().any(|line| line == "KNET_CUDA_CODE=ptx"), "{environment}");
    let path =
        environment.lines().find_map(|line| line.strip_prefix("LD_LIBRARY_PATH=")).expect("a loader path");
    assert_eq!(path.split(':').next(), Some(folder));
    assert!(!output(&["false"]).0, "the command's status is the tool's");
}
