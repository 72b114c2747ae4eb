//! The counts of everything that ran (`PTXEMU_REPORT`), and what is said at exit.

use std::collections::BTreeMap;

use ptxemu::Report;

use crate::driver::Driver;
use crate::log;

/// Counts by kernel.
#[derive(Default)]
pub struct Totals(BTreeMap<String, Report>);

impl Totals {
    /// Adds a launch's counts.
    pub fn add(&mut self, kernel: &str, report: &Report) {
        self.0.entry(kernel.to_owned()).or_default().merge(report);
    }
}

/// Writes the report, and says in the log what nobody waited for.
pub fn at_exit(driver: &mut Driver) {
    let left = driver.streams.values().filter(|stream| !stream.is_dry()).count();
    if left > 0 {
        log::line(format_args!("# exit with work that nobody waited for on {left} streams"));
    }
    let Some(path) = &driver.settings.report else { return };
    let text: String =
        driver.totals.0.iter().map(|(kernel, report)| format!("{kernel}\n{report}\n")).collect();
    if let Err(error) = std::fs::write(path, text) {
        eprintln!("ptxemu: cannot write PTXEMU_REPORT={}: {error}", path.display());
    }
}
