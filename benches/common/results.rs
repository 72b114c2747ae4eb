//! Tables of results: what a bench writes when it is asked for its table alone.

use crate::common;
use serde_json::{Value, json};
use std::process::Command;

/// The median of an odd number of times, or the higher of the two in the middle.
pub fn median(seconds: &[f64]) -> f64 {
    let mut sorted = seconds.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

/// Whether the command line asks for the table and nothing else: `cargo bench --bench NAME -- table`.
pub fn table_alone() -> bool {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let mut named = arguments.iter().filter(|argument| !argument.starts_with('-'));
    named.next().is_some_and(|name| name == "table") && named.next().is_none()
}

/// Writes a result to `target/NAME`, with machine, command, commit and date.
pub fn write(name: &str, command: &str, mut result: Value) {
    let cpu = said("sh", &["-c", "grep -m1 'model name' /proc/cpuinfo | cut -d: -f2"]);
    let file = result.as_object_mut().expect("a result is an object");
    file.insert("machine".into(), json!({"device": cpu, "threads": common::threads()}));
    file.insert("command".into(), command.into());
    file.insert("commit".into(), said("git", &["rev-parse", "--short", "HEAD"]).into());
    file.insert("date".into(), said("date", &["+%F"]).into());
    let path = format!("target/{name}");
    std::fs::write(&path, format!("{result:#}\n")).unwrap_or_else(|error| panic!("{path}: {error}"));
    println!("wrote {path}");
}

/// What a command prints, without the end of the line.
fn said(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    output.map_or(String::new(), |output| String::from_utf8_lossy(&output.stdout).trim().to_string())
}
