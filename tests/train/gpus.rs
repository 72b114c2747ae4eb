//! Several ranks on GPUs: on the stand-ins of `tools/ptxemu`, a process and an emulated GPU each, connected
//! by the stand-in NCCL. What one GPU learns with accumulation two learn to the bit, as a sum of two terms
//! has no order; and an end that all see.

use crate::ranks::mpiexec;
use crate::{Scene, stderr};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Output};
use std::sync::OnceLock;
use std::time::{Duration, Instant};
use testkit::emulate;

/// The folder of the stand-ins, built once.
fn stand_ins() -> &'static str {
    static FOLDER: OnceLock<String> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let tool = Path::new(env!("CARGO_MANIFEST_DIR")).join("tools/with-ptxemu");
        let output = Command::new(tool).arg("--path").output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        String::from_utf8(output.stdout).unwrap().trim().to_string()
    })
}

/// Lets a program find the stand-ins, on a machine with so many GPUs. Kernels are those of all suites.
pub fn on_gpus(command: &mut Command, devices: usize) -> &mut Command {
    let nvrtc = emulate::nvrtc().unwrap();
    command.env("LD_LIBRARY_PATH", stand_ins()).env("KNET_CUDA_CODE", "ptx");
    command.env("KNET_NVRTC", nvrtc.path()).env("KNET_CACHE", emulate::cache(nvrtc).folder().unwrap());
    // One thread each, without the checks that the operators' own tests make.
    command.env("PTXEMU_DEVICES", devices.to_string()).env("PTXEMU_THREADS", "1").env("PTXEMU_CHECKS", "off")
}

pub const ON_GPU: [&str; 2] = ["--device", "cuda"];

/// Two ports after each other, the first of which is MASTER_PORT: that a launcher listens there is no matter.
struct Ports {
    master: u16,
    _launcher: TcpListener,
}

impl Ports {
    fn new() -> Ports {
        loop {
            let launcher = TcpListener::bind("127.0.0.1:0").unwrap();
            let master = launcher.local_addr().unwrap().port();
            if master < u16::MAX && TcpListener::bind(("0.0.0.0", master + 1)).is_ok() {
                return Ports { master, _launcher: launcher };
            }
        }
    }
}

impl Scene {
    /// What `torchrun` would start as rank `rank` of two.
    fn torchrun(&self, rank: usize, ports: &Ports, out: &str, arguments: &[&str]) -> Command {
        let mut command = self.command(out, arguments);
        command.env("RANK", rank.to_string()).env("LOCAL_RANK", rank.to_string());
        command.env("WORLD_SIZE", "2").env("LOCAL_WORLD_SIZE", "2");
        command.env("MASTER_ADDR", "127.0.0.1").env("MASTER_PORT", ports.master.to_string());
        command
    }
}

fn finish(children: impl IntoIterator<Item = Child>) -> Vec<Output> {
    let outputs = children.into_iter().map(|child| child.wait_with_output().unwrap());
    let outputs: Vec<Output> = outputs.collect();
    for output in &outputs {
        assert!(output.status.success(), "{}", stderr(output));
    }
    outputs
}

/// With MPI, where the number on the machine chooses among its GPUs, and without, where each sees its own
/// alone. A rank whose weights differed would give other gradients in the second update.
#[test]
fn two_gpus_learn_what_one_learns_from_two_batches() {
    let scene = Scene::new(&["red", "blue"]);
    let settings = [&ON_GPU[..], &["--set", "schedule.iterations=2"]].concat();
    let mut command = scene.command("one", &settings);
    finish([on_gpus(&mut command, 1).args(["--set", "data.accumulate=2"]).spawn().unwrap()]);

    let mut command = mpiexec();
    on_gpus(&mut command, 2).args(["-n", "2"]);
    scene.program(&mut command, "mpi", &settings);
    let output = &finish([command.spawn().unwrap()])[0];
    let text = stderr(output);
    for part in ["2 ranks, connected by MPI (", " and NCCL 2.", "NCCL_ALGO=Ring NCCL_PROTO=Simple"] {
        assert!(text.contains(part), "{text}");
    }
    scene.check_same("one", "mpi");

    let ports = Ports::new();
    let start = |rank: usize| {
        let mut command = scene.torchrun(rank, &ports, "alone", &settings);
        on_gpus(&mut command, 1).env("CUDA_VISIBLE_DEVICES", rank.to_string()).spawn().unwrap()
    };
    let outputs = finish([start(0), start(1)]);
    let text = stderr(&outputs[0]);
    assert!(text.contains("2 ranks, connected by NCCL 2."), "{text}");
    scene.check_same("one", "alone");
}

/// Sums that stay on the GPUs over several batches, and a run that goes on with another number of ranks.
#[test]
fn gpus_that_accumulate_go_on_as_one() {
    let scene = Scene::new(&["red", "blue"]);
    let ports = Ports::new();
    let settings = |accumulate| {
        let settings = ["--set", "schedule.iterations=2", "--set", accumulate];
        [&ON_GPU[..], &settings].concat()
    };
    let start = |rank: usize, more: &[&str]| {
        let mut command = scene.torchrun(rank, &ports, "ranks", &settings("data.accumulate=2"));
        command.args(more);
        on_gpus(&mut command, 2).spawn().unwrap()
    };
    finish([start(0, &["--time-limit", "0.0001"]), start(1, &["--time-limit", "0.0001"])]);
    finish([start(0, &["--resume"]), start(1, &["--resume"])]);

    let mut command = scene.command("one", &settings("data.accumulate=4"));
    finish([on_gpus(&mut command, 1).spawn().unwrap()]);
    // Here ((a + b) + (c + d)), there (((a + b) + c) + d): sums of four that are off by three roundings each,
    // 2e-7 of the largest partial sum. AdamW's first steps divide a gradient by its own size, so that each
    // moves a weight by lr, 1e-3, times such an error, and rounds the weight itself, 6e-8 of it; only where a
    // gradient is nothing but rounding does its direction, and a step of lr, hang on it. Measured: 9e-8.
    let (one, ranks) = (scene.state("one"), scene.state("ranks"));
    let (mut off, mut size) = (0.0, 0.0);
    for name in one.names().filter(|name| !name.contains("second.") && !name.contains("first.")) {
        let (a, b) = (one.load_f32(name).unwrap(), ranks.load_f32(name).unwrap());
        for (a, b) in a.data().iter().zip(b.data()) {
            off += f64::from(a - b).powi(2);
            size += f64::from(*a).powi(2);
        }
    }
    assert!((off / size).sqrt() < 2e-6, "{}", (off / size).sqrt());
}

/// By the log of the stand-ins: between the graphs of the backward pass stands what begins the sums of a
/// quarter of the gradients, on a stream of its own that waits for an event, and nothing waits for it there.
#[test]
fn gradients_are_summed_beside_the_backward_pass() {
    let scene = Scene::new(&["red", "blue"]);
    let (ports, log) = (Ports::new(), scene.path("calls.log"));
    let settings = [&ON_GPU[..], &["--set", "schedule.iterations=3"]].concat();
    let start = |rank: usize| {
        let mut command = scene.torchrun(rank, &ports, "run", &settings);
        if rank == 0 {
            command.env("PTXEMU_LOG", &log);
        }
        on_gpus(&mut command, 2).spawn().unwrap()
    };
    finish([start(0), start(1)]);
    let log = std::fs::read_to_string(log).unwrap();
    // Of the calls only those that tell the order: G a graph, E an event to wait for, W a wait of the host.
    let letter = |call: &str| match call.split(['(', ' ']).next() {
        Some("cuGraphLaunch") => Some('G'),
        Some("cuStreamWaitEvent") => Some('E'),
        Some("cuStreamSynchronize" | "cuStreamQuery") => Some('W'),
        _ => None,
    };
    let order: String = log.lines().filter_map(letter).collect();
    // The first begins after the assignment; the host waits when all are under way. In the first step of the
    // three graphs are captured on the way.
    assert_eq!(order.matches("WGEGEGEGEW").count(), 2, "{order}");
}

/// The others see it, say which, and stop with all that was saved.
#[test]
fn a_killed_rank_is_named_and_the_last_state_is_whole() {
    let scene = Scene::new(&["red", "blue"]);
    let ports = Ports::new();
    let start = |rank: usize| {
        let mut command = scene.torchrun(
            rank,
            &ports,
            "run",
            &[&ON_GPU[..], &["--set", "schedule.iterations=100000"]].concat(),
        );
        on_gpus(&mut command, 2).spawn().unwrap()
    };
    let (first, mut second) = (start(0), start(1));
    let begun = Instant::now();
    while !scene.path("run/last.state").exists() {
        assert!(begun.elapsed() < Duration::from_secs(240), "no state");
        std::thread::sleep(Duration::from_millis(50));
    }
    let killed = Instant::now();
    second.kill().unwrap();
    second.wait().unwrap();
    let output = first.wait_with_output().unwrap();
    assert!(killed.elapsed() < Duration::from_secs(30), "{:?}", killed.elapsed());
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(12), "{text}");
    assert!(text.contains("rank 0: error: rank 1 is gone: "), "{text}");
    assert!(scene.state("run").names().count() > 10);
}

/// `mpiexec` ends the other rank, and the run goes on from what was saved.
#[test]
fn a_rank_killed_under_mpiexec_ends_the_run_and_the_last_state_is_whole() {
    let scene = Scene::new(&["red", "blue"]);
    let mut command = mpiexec();
    on_gpus(&mut command, 2);
    scene.kill_one_of_two(command, &ON_GPU);
    let more = format!("schedule.iterations={}", scene.losses("run").len() + 2);
    let mut resumed = scene.command("run", &[&ON_GPU[..], &["--resume", "--set", more.as_str()]].concat());
    finish([on_gpus(&mut resumed, 1).spawn().unwrap()]);
}

#[test]
fn what_cannot_be_connected_is_told_with_the_remedy() {
    let scene = Scene::new(&["red", "blue"]);
    let ports = Ports::new();
    let fail = |devices: usize, device: &str, nccl: &str, code: i32| {
        let mut command = scene.torchrun(0, &ports, "run", &["--device", device]);
        let output = on_gpus(&mut command, devices).env("KNET_NCCL", nccl).output().unwrap();
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(code), "{text}");
        assert!(!scene.path("run").exists(), "nothing has begun: {text}");
        text
    };
    let text = fail(1, "cuda", "", 2);
    let refusal = "torchrun started 2 ranks on this machine, which has 1 GPU: one rank trains on one GPU";
    assert!(text.contains(refusal), "{text}");
    let text = fail(2, "cuda:1", "", 2);
    assert!(text.contains("device cuda:1: 2 ranks on this machine would share one GPU"), "{text}");
    let text = fail(2, "cuda", "/nowhere/libnccl.so.2", 12);
    for part in
        ["no NCCL", "pip install nvidia-nccl-cu13", "libnccl2", "KNET_NCCL", "/nowhere/libnccl.so.2: "]
    {
        assert!(text.contains(part), "{text}");
    }
}
