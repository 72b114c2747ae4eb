//! The configuration in the folder of a run: in its state, for going on, and as a file, for people.

use std::path::Path;

use super::config::RunConfig;
use super::overrides::overridden;
use super::state::origin;
use super::trainer::STATE_FILE;
use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};
use crate::fsio::{atomic_write, read_text};

/// The configuration for people.
pub const CONFIG_FILE: &str = "config.toml";

/// First line of [`CONFIG_FILE`], by which it is known as a file of this program.
const MARK: &str = "# The configuration of this run, written by knet-train.";

/// Writes the configuration into the folder of its run. Another program's or a person's file of this name
/// stays.
///
/// # Errors
/// [`Error::Io`].
pub(super) fn write(config: &RunConfig) -> Result<()> {
    let path = config.run.out.join(CONFIG_FILE);
    if path.exists() && !read_text(&path).is_ok_and(|text| text.starts_with(MARK)) {
        return Ok(());
    }
    let text = toml::to_string(config)
        .map_err(|e| Error::usage(format!("{}: cannot be written: {e}", path.display())))?;
    let note = "# A run goes on with what its state holds: `knet-train --resume FOLDER`, with --set for what shall change.";
    atomic_write(&path, |file| {
        std::io::Write::write_all(file, format!("{MARK}\n{note}\n\n{text}").as_bytes())
    })
}

/// The configuration of the run in `folder`, with `overrides` as [`RunConfig::load`] takes them: what its
/// state holds, else (before the first save) what [`CONFIG_FILE`] says.
///
/// # Errors
/// [`Error::Usage`] if there is neither, or a field is wrong; as [`Checkpoint::open`] and
/// [`RunConfig::load`].
pub fn read(folder: &Path, overrides: &[String]) -> Result<RunConfig> {
    let (state, file) = (folder.join(STATE_FILE), folder.join(CONFIG_FILE));
    let origin = if state.exists() { origin(&Checkpoint::open(&state)?)? } else { None };
    let mut config = match origin {
        Some(origin) => {
            let refuse =
                |e: &dyn std::fmt::Display| Error::checkpoint(&state, format!("its configuration: {e}"));
            let config = origin.config().map_err(|e| refuse(&e))?;
            overridden(toml::Table::try_from(config).map_err(|e| refuse(&e))?, overrides)?
        }
        None if file.exists() => RunConfig::load(&file, overrides)?,
        None => {
            return Err(Error::usage(format!(
                "{}: neither {STATE_FILE} nor {CONFIG_FILE} says how the run was configured: give its configuration, and the \
                 folder by --out",
                folder.display()
            )));
        }
    };
    config.run.out = folder.to_path_buf();
    config.validate()?;
    Ok(config)
}
