//! How much a command says besides its result, warnings and errors.

use knet::error::say;
use std::fmt::Arguments;
use std::sync::OnceLock;

/// What `-q` and `-v` ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Warnings and errors alone.
    Quiet,
    Usual,
    Verbose,
}

static LEVEL: OnceLock<Level> = OnceLock::new();

/// Sets the level of this process, once.
pub fn set(level: Level) {
    LEVEL.get_or_init(|| level);
}

/// The level of this process.
pub fn level() -> Level {
    LEVEL.get().copied().unwrap_or(Level::Usual)
}

/// What was assumed or left out, on standard error.
pub fn note(text: Arguments<'_>) {
    if level() > Level::Quiet {
        say(format_args!("note: {text}"));
    }
}

/// What a person wants to know who looks for a fault, on standard error.
pub fn detail(text: Arguments<'_>) {
    if level() == Level::Verbose {
        say(text);
    }
}

/// What was done, a line on standard output; that of commands whose result is a file.
pub fn tell(text: Arguments<'_>) -> knet::Result<()> {
    if level() > Level::Quiet { crate::print(&format!("{text}\n")) } else { Ok(()) }
}
