//! The counts of everything that ran (`PTXEMU_REPORT`), and what is said at exit.

use std::collections::BTreeMap;
use std::time::Duration;

use ptxemu::Report;
use serde_json::{Value, json};

use crate::driver::Driver;
use crate::launch::Shape;
use crate::log;

/// Counts by kernel and shape of launch.
#[derive(Default)]
pub struct Totals(BTreeMap<(String, Shape), Total>);

#[derive(Default)]
struct Total {
    report: Report,
    time: Duration,
}

impl Totals {
    /// Adds a launch's counts, and how long the emulator took.
    pub fn add(&mut self, kernel: &str, shape: Shape, report: &Report, time: Duration) {
        let total = self.0.entry((kernel.to_owned(), shape)).or_default();
        total.report.merge(report);
        total.time += time;
    }

    /// One object for each kernel and shape: the launch, and [`Report::counts`].
    fn to_json(&self) -> Value {
        let total = |((kernel, shape), Total { report, time }): (&(String, Shape), &Total)| {
            let mut object = json!({
                "kernel": kernel,
                "grid": shape.grid,
                "block": shape.block,
                "dynamic_shared": shape.shared,
                "emulation_seconds": time.as_secs_f64(),
            });
            report.counts().for_each(|(name, count)| object[name] = count.into());
            object
        };
        self.0.iter().map(total).collect()
    }
}

/// Writes the report, and says in the log what nobody waited for.
pub fn at_exit(driver: &mut Driver) {
    let left = driver.streams.values().filter(|stream| !stream.is_dry()).count();
    if left > 0 {
        log::line(format_args!("# exit with work that nobody waited for on {left} streams"));
    }
    let Some(path) = &driver.settings.report else { return };
    if let Err(error) = std::fs::write(path, format!("{:#}\n", driver.totals.to_json())) {
        eprintln!("ptxemu: cannot write PTXEMU_REPORT={}: {error}", path.display());
    }
}
