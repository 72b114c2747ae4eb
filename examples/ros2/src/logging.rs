//! Messages on standard error, in the form of ROS's console, and how often they come.

use log::{Level, LevelFilter, Log, Metadata, Record};
use std::fmt::Display;
use std::io::Write;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Writes `[WARN] [1700000000.123456789] [node]: ...` lines.
struct Console {
    node: String,
    level: LevelFilter,
}

impl Log for Console {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        let of = |name| metadata.target().starts_with(name);
        let most = match self.level {
            level @ (LevelFilter::Debug | LevelFilter::Trace) => level,
            // To leave a multicast group that an interface without multicast never joined is no error.
            _ if of("rustdds::network") => LevelFilter::Off,
            // The bus speaks of its inner life at every level: unasked, its errors alone are of use.
            _ if of("rustdds") || of("ros2_client") => LevelFilter::Error,
            level => level,
        };
        metadata.level() <= most
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let level = match record.level() {
            Level::Error => "ERROR",
            Level::Warn => "WARN",
            Level::Info => "INFO",
            Level::Debug | Level::Trace => "DEBUG",
        };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let time = format_args!("{}.{:09}", now.as_secs(), now.subsec_nanos());
        // Nobody may be there to read.
        let _ = writeln!(std::io::stderr().lock(), "[{level}] [{time}] [{}]: {}", self.node, record.args());
    }

    fn flush(&self) {}
}

/// Sends messages to standard error from now on, under the node's name.
pub fn start(node: &str, level: LevelFilter) {
    let console = Console { node: node.to_string(), level };
    // A second start has nothing to add.
    if log::set_boxed_logger(Box::new(console)).is_ok() {
        log::set_max_level(level);
    }
}

/// Lets a warning through once a second; whoever sends thirty bad frames a second is told once of thirty.
#[derive(Debug, Default)]
pub struct Throttle {
    last: Option<Instant>,
    held_back: usize,
}

impl Throttle {
    const PERIOD: Duration = Duration::from_secs(1);

    /// Warns, or counts.
    pub fn warn(&mut self, message: impl Display) {
        if self.last.is_some_and(|last| last.elapsed() < Self::PERIOD) {
            self.held_back += 1;
            return;
        }
        match std::mem::take(&mut self.held_back) {
            0 => log::warn!("{message}"),
            more => log::warn!("{message} (and {more} more warnings of the kind since the last line)"),
        }
        self.last = Some(Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warnings_that_come_fast_are_counted() {
        let mut throttle = Throttle::default();
        (0..30).for_each(|_| throttle.warn("no"));
        assert_eq!(throttle.held_back, 29);
        throttle.last = throttle.last.and_then(|last| last.checked_sub(Throttle::PERIOD));
        throttle.warn("no");
        assert_eq!(throttle.held_back, 0);
    }

    #[test]
    fn the_bus_is_heard_when_it_is_asked_for() {
        let shows = |level, target, of| {
            let metadata = Metadata::builder().target(target).level(of).build();
            Console { node: String::new(), level }.enabled(&metadata)
        };
        assert!(shows(LevelFilter::Info, "knet::engine", Level::Info));
        assert!(!shows(LevelFilter::Info, "rustdds::rtps", Level::Warn));
        assert!(shows(LevelFilter::Info, "rustdds::rtps", Level::Error));
        assert!(!shows(LevelFilter::Info, "rustdds::network::udp_listener", Level::Error));
        assert!(shows(LevelFilter::Debug, "ros2_client", Level::Warn));
    }
}
