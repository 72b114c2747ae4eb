//! Single fields of a configuration from the command line.

use super::config::RunConfig;
use crate::error::{Error, Result};

/// Most parts of a key of `--set`: no field lies deeper.
const MAX_DEPTH: usize = 16;

/// The configuration in `table` with `overrides`: `key=value` with dotted keys and TOML values (bare words
/// are text).
///
/// # Errors
/// [`Error::Usage`] naming the override, or the field that is wrong with them.
pub(super) fn overridden(mut table: toml::Table, overrides: &[String]) -> Result<RunConfig> {
    for item in overrides {
        set(&mut table, item)?;
    }
    let refuse = |e: toml::de::Error| Error::usage(format!("--set {}: {}", overrides.join(" "), e.message()));
    table.try_into().map_err(refuse)
}

/// Sets one `key=value`.
fn set(table: &mut toml::Table, item: &str) -> Result<()> {
    let shown: String = item.chars().take(80).collect();
    let refuse = |why: &str| Error::usage(format!("--set {shown}: {why}"));
    let (key, value) = item.split_once('=').ok_or_else(|| refuse("is not KEY=VALUE"))?;
    let value = value.trim();
    let parsed = toml::from_str::<toml::Table>(&format!("value = {value}"));
    let value = parsed.ok().and_then(|mut t| t.remove("value")).unwrap_or_else(|| value.into());
    if key.split('.').count() > MAX_DEPTH {
        return Err(refuse(&format!("the key has more than {MAX_DEPTH} parts")));
    }
    let mut table = table;
    let mut parts = key.trim().split('.').peekable();
    while let Some(part) = parts.next() {
        if part.is_empty() {
            return Err(refuse("a part of the key is empty"));
        }
        if parts.peek().is_none() {
            table.insert(part.to_string(), value);
            return Ok(());
        }
        let entry = table.entry(part).or_insert_with(|| toml::Table::new().into());
        table = entry.as_table_mut().ok_or_else(|| refuse("a part of the key is not a table"))?;
    }
    Err(refuse("the key is empty"))
}
