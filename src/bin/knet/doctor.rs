//! `knet doctor`

use crate::print;
use clap::Args;
use knet::cuda::cache::Cache;
use knet::cuda::gpu::Precision;
use knet::cuda::nvrtc::{Code, Job, Nvrtc};
use knet::cuda::probe::Probe;
use knet::cuda::{self, Runtime};
use knet::engine::Device;
use knet::error::ErrorKind;
use knet::isa::{Dot, Int8, Isa};
use knet::{Error, Result};
use serde_json::{Value, json};
use std::process::ExitCode;

/// Look at all that a run needs, and say what would stop it and what to do
///
/// One line each: the processor; the driver, the GPU, the compiler of its kernels (NVRTC) and their cache;
/// then what every run asks of a GPU: a compile, a launch, a kernel's write to the host's memory, a captured
/// graph. The exit code is 0 if `--device` would compute where it says: with auto also where there is no GPU,
/// but not where there is one that cannot be used.
#[derive(Args)]
pub struct Arguments {
    /// What to look at: auto (a GPU if there is one, and the CPU), cpu, cuda or cuda:N
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    device: Device,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What was found of one thing.
struct Line {
    name: &'static str,
    state: State,
    found: String,
}

#[derive(Clone, Copy, PartialEq)]
enum State {
    Ok,
    /// Not there, or not as it could be; what was asked for works without it.
    Note,
    /// It stops a run.
    Fault,
}

impl State {
    fn name(self) -> &'static str {
        match self {
            State::Ok => "ok",
            State::Note => "note",
            State::Fault => "fault",
        }
    }
}

#[derive(Default)]
struct Report {
    lines: Vec<Line>,
}

impl Report {
    fn add(&mut self, name: &'static str, state: State, found: impl Into<String>) {
        // Errors list what was tried on lines of their own.
        let found = found.into().lines().map(str::trim).collect::<Vec<_>>().join("; ").replace(":; ", ": ");
        self.lines.push(Line { name, state, found });
    }

    /// Notes an outcome, and gives what came of it.
    fn outcome<T>(
        &mut self,
        name: &'static str,
        outcome: Result<T>,
        found: impl Fn(&T) -> String,
    ) -> Option<T> {
        match outcome {
            Ok(value) => {
                self.add(name, State::Ok, found(&value));
                Some(value)
            }
            Err(error) => {
                self.add(name, State::Fault, error.to_string());
                None
            }
        }
    }

    fn works(&self) -> bool {
        self.lines.iter().all(|line| line.state != State::Fault)
    }
}

pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let mut report = Report::default();
    cpu(&mut report);
    match arguments.device {
        Device::Cpu => {}
        Device::Auto if !gpu_here(&mut report)? => {}
        Device::Auto => gpu(&mut report, 0),
        Device::Cuda(ordinal) => gpu(&mut report, ordinal),
    }
    let works = report.works();
    let text = match arguments.json {
        true => format!("{:#}\n", json(&report, arguments.device)),
        false => {
            let line = |line: &Line| format!("{:<6}{:<14} {}\n", line.state.name(), line.name, line.found);
            let verdict = if works { "works" } else { "does not work: see above" };
            report.lines.iter().map(line).collect::<String>()
                + &format!("--device {} {verdict}\n", arguments.device)
        }
    };
    print(&text)?;
    Ok(ExitCode::from(if works { 0 } else { ErrorKind::NoDevice.exit_code() }))
}

fn json(report: &Report, device: Device) -> Value {
    let line = |line: &Line| json!({"name": line.name, "state": line.state.name(), "found": line.found});
    let checks: Vec<Value> = report.lines.iter().map(line).collect();
    json!({"device": device.to_string(), "works": report.works(), "checks": checks})
}

fn cpu(report: &mut Report) {
    let (best, used) = (Isa::available().into_iter().max(), Isa::detect());
    let found = match best {
        Some(best) if best != used => format!("{used} of {best}: KNET_ISA lowers it"),
        _ => used.to_string(),
    };
    let found = match Dot::detect() {
        Some(dot) => format!("{found}; bf16 by {dot}"),
        None => found,
    };
    let found = match Int8::detect() {
        Some(int8) => format!("{found}; int8 by {int8}"),
        None => found,
    };
    let slow = used == Isa::Portable && cfg!(any(target_arch = "x86_64", target_arch = "aarch64"));
    report.add("instructions", if slow { State::Note } else { State::Ok }, found);
    match std::thread::available_parallelism() {
        Ok(threads) => {
            report.add("threads", State::Ok, format!("{threads} by default; --threads sets another number"))
        }
        Err(error) => {
            report.add("threads", State::Note, format!("1 by default: their number is not known ({error})"))
        }
    }
}

/// Whether there is a GPU to look at. That there is none is not a fault.
fn gpu_here(report: &mut Report) -> Result<bool> {
    let none = |report: &mut Report, why: &str| {
        report.add("gpu", State::Note, format!("none: {why}; --device auto computes on the CPU"));
        Ok(false)
    };
    match cuda::device::driver() {
        Ok(None) => none(report, "there is no NVIDIA driver (libcuda is not on the loader's path)"),
        Ok(Some(_)) if cuda::device::count().is_ok_and(|count| count == 0) => {
            none(report, "the driver has no device")
        }
        _ => Ok(true),
    }
}

fn gpu(report: &mut Report, ordinal: usize) {
    let driver = cuda::device::driver().and_then(|driver| {
        let missing = "there is no NVIDIA driver: install one, or make libcuda known to the loader";
        driver.ok_or_else(|| Error::NoDevice(missing.into()))
    });
    let version = |&(major, minor): &(u32, u32)| format!("for CUDA {major}.{minor}");
    if report.outcome("driver", driver, version).is_none() {
        return;
    }
    if report.outcome("devices", cuda::device::count(), usize::to_string).is_none() {
        return;
    }
    let Some(device) = report.outcome("gpu", cuda::Device::open(ordinal), |device| {
        let caps = device.caps();
        let (major, minor) = caps.compute;
        format!(
            "cuda:{ordinal}, {}, compute capability {major}.{minor}, {} multiprocessors",
            device.name(),
            caps.multiprocessors
        )
    }) else {
        return;
    };
    let mib = |bytes: usize| bytes >> 20;
    report.outcome("memory", device.memory(), |&(free, total)| {
        format!("{} MiB free of {} MiB", mib(free), mib(total))
    });
    cache(report);
    compiler(report, &device);
    let no_constants =
        Box::new(|param: &knet::graph::Param| Err(Error::Graph(format!("no constant `{}`", param.key))));
    let runtime = match Runtime::new(device, Precision::F32, no_constants) {
        Ok(runtime) => runtime,
        Err(error) => return report.add("launch", State::Fault, error.to_string()),
    };
    let probe = match Probe::new(&runtime) {
        Ok(probe) => probe,
        Err(error) => return report.add("launch", State::Fault, error.to_string()),
    };
    report.outcome("launch", probe.launch(), |()| "a kernel computes rightly".into());
    report.outcome("pinned memory", probe.pinned_write(), |()| "a kernel writes to the host's memory".into());
    report.outcome("graph", probe.graph(), |()| "captured, and run twice".into());
}

/// The folder of the cache, and whether code may be loaded from it and kept there.
fn cache(report: &mut Report) {
    let cache = Cache::user();
    let Some(folder) = cache.folder() else {
        let why = "none: every run compiles its kernels; KNET_CACHE names a folder";
        return report.add("kernel cache", State::Note, why);
    };
    let name = folder.display();
    let held = match cache.items() {
        Ok(items) => items.len(),
        Err(error) => return report.add("kernel cache", State::Fault, error.to_string()),
    };
    match cache.try_write() {
        Ok(()) => report.add("kernel cache", State::Ok, format!("{name}, {held} kernels")),
        Err(error) => {
            let found = format!("{name}, {held} kernels; what is missing is compiled every time: {error}");
            report.add("kernel cache", State::Note, found);
        }
    }
}

/// NVRTC, and what it makes of a kernel for the device. Where it is missing, a full cache serves.
fn compiler(report: &mut Report, device: &cuda::Device) {
    let compute = device.caps().compute;
    let code = match Code::wanted() {
        Ok(code) => code,
        Err(error) => return report.add("nvrtc", State::Fault, error.to_string()),
    };
    let nvrtc = match Nvrtc::get() {
        Ok(nvrtc) => nvrtc,
        Err(error) => {
            let served = Cache::user().serves(compute, code).unwrap_or(false);
            let (state, hint) = match served {
                true => (State::Note, "\nthen only models whose kernels are in the cache run (`knet cache`)"),
                false => (State::Fault, ""),
            };
            return report.add("nvrtc", state, format!("{error}{hint}"));
        }
    };
    let (major, minor) = nvrtc.version();
    let found = format!("{major}.{minor}, {}", nvrtc.path().display());
    if code.suits(device.driver(), (major, minor)) {
        report.add("nvrtc", State::Ok, found);
    } else {
        let hint = "newer than the driver: update that, or name an NVRTC no newer than it by KNET_NVRTC";
        report.add("nvrtc", State::Note, format!("{found}; {hint}"));
    }
    let job =
        Job { source: "activation.cu", defines: vec![("STORAGE", 1), ("ACTIVATION", 1)], compute, code };
    let found = |bytes: &Vec<u8>| format!("a kernel for {}.{}, {} bytes", compute.0, compute.1, bytes.len());
    report.outcome("compile", nvrtc.compile(&job), found);
}
