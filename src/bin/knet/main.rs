//! The `knet` command.

mod allocations;
mod bench;
mod cache;
mod compile;
mod convert;
mod doctor;
mod dump;
mod eval;
mod guard;
mod inspect;
mod models;
#[cfg(test)]
mod pages;
mod quantize;
mod segment;
mod size;
mod training;
mod tune;
mod voice;

use clap::{Args, Parser, Subcommand, ValueEnum};
use knet::cpu::Arithmetic;
use knet::engine::{Device, EngineBuilder, WeightSource};
use knet::error::{escaped, say};
use knet::image::RgbImage;
use knet::image::decode::Decoded;
use knet::tensor::Precision;
use knet::{Engine, Error};
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;
use voice::{Level, detail, note};

const AFTER_HELP: &str = "\
Exit codes:
  0  everything worked
  1  some images failed, the others are written (segment); something was allocated (bench --check-allocations)
  2  wrong usage: unknown option or model, bad configuration
  3  a file cannot be read or written
  4  an image is damaged or unacceptable
  5  a checkpoint is damaged or of an unknown format
  6  a checkpoint does not fit the model
  7  internal: a graph breaks a rule
  8  a data set is damaged or does not fit the model
  10 a GPU, its driver or the kernel compiler is missing or failed
  11 more memory is needed than there is

KNET_ISA=portable|avx2|avx512 (on AArch64: portable|neon) lowers the instruction set the CPU kernels use.
KNET_NVRTC names the file (an absolute path) of NVIDIA's kernel compiler, which is looked for beside the
program, in a CUDA toolkit, in the active Python environment and on the loader's path otherwise. KNET_CACHE
names the folder for compiled CUDA kernels (empty: none), KNET_TUNED the table of measured kernels to follow
(empty: none) in place of what `knet tune` left beside that cache. Another variable that begins with KNET_ is
an error.";

/// Segments images with K-Net: instances, panoptic and semantic maps, without boxes or NMS.
#[derive(Parser)]
#[command(name = "knet", version, about, after_help = AFTER_HELP, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,

    /// Say nothing but results, warnings and errors: no notes, no bar, no line a photo
    #[arg(short, long, global = true, display_order = 900, conflicts_with = "verbose")]
    quiet: bool,

    /// Say more: model and device, and what the parts of a photo's time were
    #[arg(short, long, global = true, display_order = 901)]
    verbose: bool,
}

#[derive(Subcommand)]
enum Command {
    Segment(segment::Arguments),
    Eval(eval::Arguments),
    Inspect(inspect::Arguments),
    Models(models::Arguments),
    Bench(bench::Arguments),
    Tune(tune::Arguments),
    Cache(cache::Arguments),
    Doctor(doctor::Arguments),
    Dump(dump::Arguments),
    Convert(convert::Arguments),
    Compile(compile::Arguments),
    Quantize(quantize::Arguments),
}

#[global_allocator]
static ALLOCATOR: allocations::Counting = allocations::Counting;

/// The model that segments when nothing else is asked for, so that the program works from the first command;
/// see `weights/README.md`.
static PERSON: &[u8] = include_bytes!("../../../weights/knet_s3_lite0_person.safetensors");

/// Where weights come from, shared by the commands that run a model.
#[derive(Args, Clone)]
struct ModelArguments {
    /// Checkpoint (.safetensors made by `knet convert` or `knet-train`), bundle (.knet made by `knet
    /// compile`), or `seeded:N` for reproducible random weights [default: the person model that comes with
    /// the program; seeded:0 for a model named by --model]
    #[arg(long, value_name = "FILE")]
    weights: Option<WeightSource>,

    /// Model name, e.g. knet_s3_r50_fpn_panoptic [default: what the checkpoint says; knet_s3_r50_fpn for
    /// seeded weights]
    #[arg(long, value_name = "NAME")]
    model: Option<String>,

    /// Worker threads [default: one per core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,

    /// Where to compute: auto (a GPU if there is one), cpu, cuda or cuda:N [default: auto]
    #[arg(long, value_name = "DEVICE")]
    device: Option<Device>,

    /// How feature maps are stored and multiplied [default: f16 on a GPU, bf16 of training steps; on a CPU
    /// int8 for weights of `knet quantize`, bf16 if it has AMX, else f32]
    #[arg(long, value_enum)]
    precision: Option<PrecisionArgument>,

    /// Round as little as PyTorch does, for results that agree with it to the last mask: direct convolution
    /// or F(2x2) on the CPU (about a fifth slower), f32 on a GPU
    #[arg(long, conflicts_with = "precision")]
    precise: bool,
}

/// How much of a model is run.
#[derive(Args, Clone, Copy)]
struct StageArguments {
    /// Run so many stages of the network instead of all: every stage gives finished masks, the next one
    /// better ones
    #[arg(long, value_name = "K", value_parser = clap::value_parser!(u16).range(1..))]
    stages: Option<u16>,

    /// Run as many stages as there is time for, so that masks are there so many milliseconds after decoding
    #[arg(long, value_name = "MS", value_parser = parse_ms)]
    deadline: Option<Duration>,
}

impl StageArguments {
    fn apply(self, mut builder: EngineBuilder) -> EngineBuilder {
        if let Some(stages) = self.stages {
            builder = builder.stages(stages.into());
        }
        match self.deadline {
            Some(deadline) => builder.deadline(deadline),
            None => builder,
        }
    }
}

/// Milliseconds.
fn parse_ms(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok().filter(|ms| (0.0..=1e9).contains(ms)).map(|ms: f64| ms / 1e3);
    seconds.map(Duration::from_secs_f64).ok_or_else(|| format!("`{text}` is no number of milliseconds"))
}

/// The weights that were named, else those of the program, else, for a model that was named, random ones.
fn source(weights: Option<&WeightSource>, model: Option<&str>) -> WeightSource {
    match (weights, model) {
        (Some(source), _) => source.clone(),
        (None, Some(_)) => WeightSource::Seeded(0),
        (None, None) => WeightSource::Embedded { name: "knet_s3_lite0_person (built in)", bytes: PERSON },
    }
}

#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
enum PrecisionArgument {
    /// f32 throughout, for parity with reference data
    F32,
    /// f32, with convolutions on tensor cores by three TF32 products each; f32 on a CPU
    #[value(name = "tf32x3")]
    Tf32x3,
    /// f16 on tensor cores; f32 on a CPU
    F16,
    /// bf16 on tensor cores, or by AVX-512 BF16 or AMX of a CPU
    Bf16,
    /// the integers of weights that `knet quantize` made, by AVX-VNNI, AVX-512 VNNI or AMX of a CPU; the rest
    /// as without a word
    Int8,
}

impl PrecisionArgument {
    /// How maps are stored, if that is what it says.
    fn of_maps(self) -> Option<Precision> {
        match self {
            PrecisionArgument::F32 => Some(Precision::F32),
            PrecisionArgument::Tf32x3 => Some(Precision::Tf32x3),
            PrecisionArgument::F16 => Some(Precision::F16),
            PrecisionArgument::Bf16 => Some(Precision::Bf16),
            PrecisionArgument::Int8 => None,
        }
    }

    /// How maps are stored on a GPU.
    fn of_gpu(self) -> Result<Precision, Error> {
        self.of_maps()
            .ok_or_else(|| Error::usage("--precision int8 is for CPUs: a GPU takes f32, tf32x3, f16 or bf16"))
    }

    /// Whether integers have to be multiplied, if it says so.
    fn int8(self) -> Option<bool> {
        (self == PrecisionArgument::Int8).then_some(true)
    }
}

impl ModelArguments {
    /// How a GPU stores and multiplies feature maps for inference.
    fn precision(&self) -> Result<Precision, Error> {
        self.precision.map_or(Ok(Precision::F16), PrecisionArgument::of_gpu)
    }

    /// Builds an engine. If `--device auto` was asked for and took the CPU, a line says why; another does if
    /// a tuning table is not followed.
    fn build(&self, builder: EngineBuilder) -> Result<Engine, Error> {
        let engine = builder.build()?;
        if let (Some(reason), Some(_)) = (engine.model().device_note(), self.device) {
            note(format_args!("computing on the CPU: {reason}"));
        }
        if let Some(reason) = engine.model().tuning_note() {
            note(format_args!("tuning table not followed: {reason}"));
        }
        if let Some(reason) = engine.model().precision_note() {
            note(format_args!("{reason}"));
        }
        let (config, source, device) = (engine.config(), self.source(), engine.device());
        detail(format_args!(
            "{} ({}) of {source}, on {device}, {} threads",
            config.name,
            engine.task().name(),
            engine.threads()
        ));
        Ok(engine)
    }

    fn source(&self) -> WeightSource {
        source(self.weights.as_ref(), self.model.as_deref())
    }

    /// The file that the weights are read from, if they are: an input, which no output replaces.
    fn weights_file(&self) -> Option<PathBuf> {
        match self.source() {
            WeightSource::File(path) => Some(path),
            WeightSource::Embedded { .. } | WeightSource::Seeded(_) => None,
        }
    }

    fn engine(&self) -> EngineBuilder {
        let mut builder = Engine::builder().weights(self.source());
        if let Some(name) = &self.model {
            builder = builder.model(name);
        }
        let builder = if self.precise {
            builder.arithmetic(Arithmetic::Exact).precision(Precision::F32)
        } else {
            let int8 = self.precision.and_then(PrecisionArgument::int8);
            builder.precision(self.precision.and_then(PrecisionArgument::of_maps)).int8(int8)
        };
        let builder = builder.device(self.device.unwrap_or_default());
        builder.threads(self.threads.map_or(0, usize::from))
    }
}

/// A number from 0 to 1.
fn parse_share(text: &str) -> Result<f64, String> {
    let share = text.parse().ok().filter(|s| (0.0..=1.0).contains(s));
    share.ok_or_else(|| format!("`{text}` is not a number from 0 to 1"))
}

/// The picture of a file; a line says what is wrong with it, if it could be decoded all the same.
fn picture(name: &str, decoded: Decoded) -> RgbImage {
    if let Some(fault) = decoded.fault {
        say(format_args!("warning: {name}: {fault}"));
    }
    decoded.picture
}

/// Prints text, escaped. A reader that stops reading (`knet inspect FILE | head`) is no error.
fn print(text: &str) -> Result<(), Error> {
    match io::stdout().write_all(escaped(text).as_bytes()).and_then(|()| io::stdout().flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Error::io("standard output", error)),
        _ => Ok(()),
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    voice::set(match (cli.quiet, cli.verbose) {
        (true, _) => Level::Quiet,
        (_, true) => Level::Verbose,
        _ => Level::Usual,
    });
    if let Err(error) = knet::variables::check() {
        return fail(&error);
    }
    let outcome = match cli.command {
        Command::Segment(arguments) => segment::run(&arguments),
        Command::Eval(arguments) => eval::run(&arguments),
        Command::Inspect(arguments) => inspect::run(&arguments).map(|()| ExitCode::SUCCESS),
        Command::Models(arguments) => models::run(&arguments).map(|()| ExitCode::SUCCESS),
        Command::Bench(arguments) => bench::run(&arguments),
        Command::Tune(arguments) => tune::run(&arguments).map(|()| ExitCode::SUCCESS),
        Command::Cache(arguments) => cache::run(&arguments).map(|()| ExitCode::SUCCESS),
        Command::Doctor(arguments) => doctor::run(&arguments),
        Command::Dump(arguments) => dump::run(&arguments).map(|()| ExitCode::SUCCESS),
        Command::Convert(arguments) => convert::run(&arguments).map(|()| ExitCode::SUCCESS),
        Command::Compile(arguments) => compile::run(&arguments).map(|()| ExitCode::SUCCESS),
        Command::Quantize(arguments) => quantize::run(&arguments).map(|()| ExitCode::SUCCESS),
    };
    outcome.unwrap_or_else(|error| fail(&error))
}

fn fail(error: &Error) -> ExitCode {
    say(format_args!("error: {error}"));
    ExitCode::from(error.kind().exit_code())
}
