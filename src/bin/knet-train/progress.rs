//! What a person sees of a run: a bar on a terminal, now and then a line elsewhere.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use knet::error::say;
use knet::train::run::{Observer, RunReport};

/// Seconds between two lines where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(30);
/// Time between two texts of the bar.
const TEXT_EVERY: Duration = Duration::from_millis(500);

/// How much a run says.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Lines {
    /// Nothing.
    None,
    /// Notes; updates by a bar, or now and then by a line.
    Some,
    /// Notes, and a line for every update.
    Every,
}

/// The console.
pub struct Console {
    lines: Lines,
    /// Whether a bar is shown.
    terminal: bool,
    bar: Option<ProgressBar>,
    shown: Option<Instant>,
    begun: Option<(Instant, u64)>,
}

impl Console {
    /// Finds out whether standard error is a terminal.
    pub fn new(lines: Lines) -> Self {
        let terminal = lines == Lines::Some && std::io::stderr().is_terminal();
        Console { lines, terminal, bar: None, shown: None, begun: None }
    }

    /// Removes the bar.
    pub fn finish(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }

    /// How long it will take, by the mean speed since this process began to train.
    fn left(&mut self, report: &RunReport<'_>) -> String {
        let (begun, from) = *self.begun.get_or_insert_with(|| (Instant::now(), report.iteration));
        let done = report.iteration.saturating_sub(from);
        let left = report.total.saturating_sub(report.iteration) as f64;
        match done {
            0 => String::new(),
            _ => format!(", {} left", duration(left * begun.elapsed().as_secs_f64() / done as f64)),
        }
    }
}

impl Observer for Console {
    fn note(&mut self, text: &str) {
        match &self.bar {
            _ if self.lines == Lines::None => {}
            Some(bar) => bar.suspend(|| say(format_args!("{text}"))),
            None => say(format_args!("{text}")),
        }
    }

    fn step(&mut self, report: &RunReport<'_>) {
        let left = self.left(report);
        let every = match (self.lines, self.terminal) {
            (Lines::None, _) => return,
            (Lines::Every, _) => Duration::ZERO,
            (Lines::Some, true) => TEXT_EVERY,
            (Lines::Some, false) => LINE_EVERY,
        };
        let due = self.shown.is_none_or(|at| at.elapsed() >= every);
        if self.terminal {
            let bar = self.bar.get_or_insert_with(|| new_bar(report.total));
            bar.set_position(report.iteration);
            if due {
                bar.set_message(format!("{}{left}", text(report)));
            }
        } else if due || report.iteration == report.total {
            let RunReport { iteration, total, epoch, lr, .. } = report;
            let text = text(report);
            say(format_args!("{iteration}/{total} epoch {epoch} lr {lr:.2e}  {text}{left}"));
        }
        if due {
            self.shown = Some(Instant::now());
        }
    }
}

fn new_bar(total: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("{bar:24} {pos}/{len}  {wide_msg}");
    ProgressBar::new(total).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

/// Loss, the terms of the last stage, and speed.
fn text(report: &RunReport<'_>) -> String {
    let meter = report.meter;
    let last = meter.terms().filter(|(name, _)| name.starts_with('s')).map(|(name, _)| name);
    let stage = last.filter_map(|name| name.split_once('_')).map(|(stage, _)| stage).max().unwrap_or("s0");
    let mut text = format!("loss {:.3}", meter.total());
    for what in ["cls", "mask", "dice"] {
        let name = format!("{stage}_loss_{what}");
        if let Some((_, value)) = meter.terms().find(|(term, _)| *term == name) {
            text += &format!(" {what} {value:.3}");
        }
    }
    text += &format!("  {:.1} images/s", meter.rate());
    let wait = meter.wait_share();
    if wait >= 0.05 {
        text += &format!(" (data {:.0} %)", 100.0 * wait);
    }
    text
}

fn duration(seconds: f64) -> String {
    let minutes = (seconds / 60.0).round() as u64;
    match minutes {
        0 => format!("{seconds:.0} s"),
        1..120 => format!("{minutes} min"),
        _ => format!("{} h {:02} min", minutes / 60, minutes % 60),
    }
}
