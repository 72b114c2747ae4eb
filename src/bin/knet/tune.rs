//! `knet tune`

use crate::size::{self, Size};
use crate::{ModelArguments, print};
use clap::Args;
use knet::Result;
use knet::cuda::tune::TuningOutcome;
use knet::engine::Tuning;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::time::Duration;

/// Choose a GPU's kernels by measuring, and keep the table that later runs follow
///
/// Every distinct step of the model that several kernels can run is timed on the device with each of them: 32
/// runs in a row in one CUDA graph, 7 times, the median. Another kernel replaces the cost model's choice if
/// it is more than 3 % faster. The table holds for this device, precision and version of the kernels; what an
/// earlier table knows of other sizes and models stays in it. Let nothing else run on the device meanwhile.
#[derive(Args)]
pub struct Arguments {
    #[command(flatten)]
    model: ModelArguments,

    /// Size of the resized photo [default: the model's own]
    #[arg(long, value_name = "HxW|SHORT,LONG", value_parser = size::parse)]
    size: Option<Size>,

    /// Kernels to time for a step, the best by the cost model
    #[arg(long, value_name = "N", default_value_t = 24, value_parser = clap::value_parser!(u16).range(2..=1000))]
    candidates: u16,

    /// Table to write [default: the file that KNET_TUNED names, else one beside the kernel cache]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub fn run(arguments: &Arguments) -> Result<()> {
    let variable = std::env::var_os("KNET_TUNED").filter(|path| !path.is_empty()).map(PathBuf::from);
    let named = arguments.out.clone().or(variable);
    let tuning = match &named {
        Some(path) if path.exists() => Tuning::File(path.clone()),
        Some(_) => Tuning::Off,
        None => Tuning::User,
    };
    let engine = arguments.model.build(arguments.model.engine().size(None).tuning(tuning))?;
    engine.model().check_clock()?;
    let path = match named {
        Some(path) => path,
        None => engine.model().user_tuning_file()?,
    };
    let [height, width] = arguments.size.unwrap_or(Size::of(engine.config())).padded(engine.config());
    let mut outcomes: Vec<TuningOutcome> = Vec::new();
    let header =
        format!("{:<52} {:<38} {:>9} {:<38} {:>9} {:>6}\n", "step", "model", "µs", "best", "µs", "ratio");
    let model = &engine.config().name;
    let title = format!("{model}, {height}x{width}, {}", engine.device());
    let mut started = false;
    let table =
        engine.session().tune((height, width), arguments.candidates.into(), |outcome, _, count| {
            outcomes.push(outcome.clone());
            if arguments.json {
                return Ok(());
            }
            if !started {
                started = true;
                print(&format!("{title}: {count} distinct steps have a choice\n\n{header}"))?;
            }
            print(&row(outcome))
        })?;
    table.write(&path)?;
    let (before, gain) = totals(&outcomes);
    if arguments.json {
        let report = json!({
            "model": model,
            "device": engine.device(),
            "size": [height, width],
            "table": path.display().to_string(),
            "model_us": microseconds(before),
            "gain_us": microseconds(gain),
            "choices": outcomes.iter().map(to_json).collect::<Vec<_>>(),
        });
        return print(&format!("{report:#}\n"));
    }
    let (before, after) = (microseconds(before), microseconds(before.saturating_sub(gain)));
    let changed = outcomes.iter().filter(|outcome| outcome.best > 0).count();
    print(&format!(
        "\n{changed} of {} choices changed: {before:.1} -> {after:.1} µs a run, by these times\n{}: {} sites\n",
        outcomes.len(),
        path.display(),
        table.len()
    ))
}

fn microseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

/// What all steps take by the model's choice, and what the best ones gain.
fn totals(outcomes: &[TuningOutcome]) -> (Duration, Duration) {
    let before = outcomes.iter().map(|outcome| outcome.model().1 * outcome.steps.len() as u32).sum();
    (before, outcomes.iter().map(TuningOutcome::gain).sum())
}

fn row(outcome: &TuningOutcome) -> String {
    let more = match outcome.steps.len() {
        0 | 1 => String::new(),
        count => format!(" (+{})", count - 1),
    };
    let ((model, before), (best, after)) = (outcome.model(), outcome.chosen());
    let ratio = before.as_secs_f64() / after.as_secs_f64().max(1e-9);
    let (before, after) = (microseconds(*before), microseconds(*after));
    let name = format!("{}{more}", outcome.steps[0]);
    format!("{name:<52} {model:<38} {before:>9.2} {best:<38} {after:>9.2} {ratio:>6.2}\n")
}

fn to_json(outcome: &TuningOutcome) -> Value {
    let times: serde_json::Map<String, Value> =
        outcome.times.iter().map(|(kernel, time)| (kernel.clone(), microseconds(*time).into())).collect();
    json!({
        "site": outcome.site,
        "steps": outcome.steps,
        "model": outcome.model().0,
        "best": outcome.chosen().0,
        "candidates_us": times,
    })
}
