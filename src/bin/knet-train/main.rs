//! The `knet-train` command.

mod arguments;
mod progress;

use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arguments::Arguments;
use clap::Parser;
use knet::dist::Ranks;
use knet::engine::Device;
use knet::engine::forecast::TrainingDevice;
use knet::error::{escaped, say};
use knet::train::run::forecast::describe;
use knet::train::run::{Outcome, RunConfig, Trainer, check, kept};
use knet::{Error, Result};
use progress::{Console, Lines};

impl Arguments {
    fn config(&self) -> Result<RunConfig> {
        let mut config = match (self.config.is_dir(), self.resume, &self.out) {
            (false, ..) => RunConfig::load(&self.config, &self.set)?,
            (true, true, None) => kept::read(&self.config, &self.set)?,
            (true, true, Some(_)) => {
                return Err(self.refuse("is the folder of the run itself: leave out --out"));
            }
            (true, false, _) => {
                return Err(self.refuse("is a folder: add --resume to go on with the run in it"));
            }
        };
        if let Some(out) = &self.out {
            config.run.out.clone_from(out);
        }
        if let Some(count) = self.overfit {
            config.overfit(count);
        }
        if let Some(minutes) = self.time_limit {
            config.run.time_limit_minutes = minutes;
        }
        if let Some(threads) = self.threads {
            config.threads = threads;
        }
        if let Some(device) = self.device {
            config.device = device;
        }
        if let Some(precision) = self.precision {
            config.precision = precision;
        }
        if self.gpu.is_some() {
            config.device = Device::Cuda(0);
        }
        Ok(config)
    }

    fn refuse(&self, reason: &str) -> Error {
        Error::usage(format!("{} {reason}", self.config.display()))
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let fail = |error: &Error, who: &str| {
        say(format_args!("{who}error: {error}"));
        error.kind().exit_code()
    };
    if arguments.plan || arguments.check.is_some() {
        return match look(&arguments) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => ExitCode::from(fail(&error, "")),
        };
    }
    let begin = || {
        knet::variables::check()?;
        let config = arguments.config()?;
        let gpu = match config.device {
            Device::Cuda(ordinal) => Some(ordinal),
            Device::Auto | Device::Cpu => None,
        };
        Ok((config, Ranks::open(gpu)?.map(Arc::new)))
    };
    let (config, ranks) = match begin() {
        Ok(begun) => begun,
        Err(error) => return ExitCode::from(fail(&error, "")),
    };
    let first = ranks.as_ref().is_none_or(|ranks| ranks.is_first());
    let mut console = Console::new(match (arguments.quiet || !first, arguments.verbose) {
        (true, _) => Lines::None,
        (_, true) => Lines::Every,
        _ => Lines::Some,
    });
    let error = match run(config, arguments.resume, ranks.clone(), &mut console) {
        Ok(code) => return code,
        Err(error) => error,
    };
    console.finish();
    let who = ranks.as_ref().map_or(String::new(), |ranks| format!("rank {}: ", ranks.share().rank));
    let code = fail(&error, &who);
    if let Some(ranks) = ranks {
        ranks.end(code);
    }
    ExitCode::from(code)
}

/// Says what data sets hold or what a step takes, and trains nothing.
fn look(arguments: &Arguments) -> Result<()> {
    knet::variables::check()?;
    let config = arguments.config()?;
    if let Some(samples) = arguments.check {
        let lines = if arguments.quiet { Lines::None } else { Lines::Some };
        return check(&config, samples, &mut Console::new(lines));
    }
    let device = match arguments.gpu {
        Some(gpu) => TrainingDevice::published(gpu, config.precision),
        None => TrainingDevice::of(config.compute())?,
    };
    print(describe(&config, &device)?.trim_end());
    Ok(())
}

fn run(
    config: RunConfig,
    resume: bool,
    ranks: Option<Arc<Ranks>>,
    console: &mut Console,
) -> Result<ExitCode> {
    let out = config.run.out.clone();
    let stop = Arc::new(AtomicBool::new(false));
    let asked = Arc::clone(&stop);
    let handler = move || {
        if asked.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
        say(format_args!("stopping after this step (once more: at once, without saving)"));
    };
    let ignored = ignored_signals();
    ctrlc::set_handler(handler).map_err(|e| Error::usage(format!("Ctrl-C cannot be handled: {e}")))?;
    ignore(&ignored);
    let mut trainer = Trainer::new(config, resume, ranks, console)?;
    let outcome = trainer.run(&stop, console)?;
    console.finish();
    let (done, total) = (trainer.iteration(), trainer.total());
    let place = out.display();
    match outcome {
        Outcome::Finished => print(&format!("done: {done} iterations; weights in {place}/last.safetensors")),
        Outcome::TimeLimit | Outcome::Interrupted => {
            print(&format!(
                "stopped after iteration {done} of {total}, saved; go on with knet-train --resume {place}"
            ));
        }
    }
    Ok(if outcome == Outcome::Interrupted { ExitCode::from(130) } else { ExitCode::SUCCESS })
}

/// Prints a line. The run is over and saved: who does not read it misses nothing else.
fn print(line: &str) {
    let _ = writeln!(std::io::stdout(), "{}", escaped(line));
}

/// Of the signals that ask a run to stop, those that whoever started this program wants it to ignore: `nohup`
/// the end of the terminal, a shell Ctrl-C for what runs in the background.
#[cfg(unix)]
fn ignored_signals() -> Vec<libc::c_int> {
    let is_ignored = |signal: &libc::c_int| {
        // SAFETY: asks for the disposition alone; all zeros is a valid `sigaction`.
        unsafe {
            let mut now: libc::sigaction = std::mem::zeroed();
            libc::sigaction(*signal, std::ptr::null(), &mut now) == 0 && now.sa_sigaction == libc::SIG_IGN
        }
    };
    [libc::SIGHUP, libc::SIGINT, libc::SIGTERM].into_iter().filter(is_ignored).collect()
}

/// Ignores signals.
#[cfg(unix)]
fn ignore(signals: &[libc::c_int]) {
    for &signal in signals {
        // SAFETY: no handler is installed, only the default of the parent restored.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
}

#[cfg(not(unix))]
fn ignored_signals() {}

#[cfg(not(unix))]
fn ignore((): &()) {}
