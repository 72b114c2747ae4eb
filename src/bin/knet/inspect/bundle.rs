//! What a bundle holds, wherever it would run.

use crate::print;
use knet::Result;
use knet::engine::bundle;
use serde_json::json;
use std::collections::BTreeMap;
use std::path::Path;

/// Kinds of entries: how their names begin, and what they are.
const KINDS: [(&str, &str); 3] =
    [("cpu", "constants of the CPU"), ("cuda", "constants of GPUs"), ("code", "kernels")];

/// Prints a bundle, which is checked in full for it.
pub fn show(path: &Path, name: Option<&str>, json: bool) -> Result<()> {
    let (config, manifest, bundle) = bundle::read(path, name)?;
    let mut kinds: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    for info in bundle.file().tensors() {
        if let Some((kind, _)) = info.name.split_once(' ') {
            let (count, bytes) = kinds.entry(kind).or_default();
            (*count, *bytes) = (*count + 1, *bytes + info.bytes);
        }
    }
    let held = KINDS.iter().filter_map(|(kind, words)| Some((*kind, *words, *kinds.get(kind)?)));
    if json {
        let entries: BTreeMap<_, _> =
            held.map(|(kind, _, (count, bytes))| (kind, json!({"entries": count, "bytes": bytes}))).collect();
        let report = json!({
            "bundle": path.display().to_string(),
            "config": config,
            "manifest": manifest,
            "entries": entries,
            "bytes": bundle.file().contents().len(),
        });
        return print(&format!("{report:#}\n"));
    }
    let mib = |bytes: usize| bytes as f64 / f64::from(1 << 20);
    let mut rows = vec![
        ("bundle", path.display().to_string()),
        ("model", format!("{} ({})", config.name, config.task.name())),
        ("made by", format!("knet {}", manifest.knet)),
        ("input", manifest.sizes()),
        ("for", manifest.devices()),
    ];
    rows.extend(
        held.map(|(kind, words, (count, bytes))| (kind, format!("{count} {words}, {:.1} MiB", mib(bytes)))),
    );
    rows.push(("checksum", format!("right over {:.1} MiB", mib(bundle.file().contents().len()))));
    print(&rows.iter().map(|(name, value)| format!("{name:<12} {value}\n")).collect::<String>())
}
