//! The call log (`PTXEMU_LOG`): one line for each driver call, written at once so that a crash loses none.

use std::fmt::Arguments;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::sync::{LazyLock, Mutex, PoisonError};

static LOG: LazyLock<Option<Mutex<File>>> = LazyLock::new(|| {
    let path = std::env::var_os("PTXEMU_LOG").filter(|path| !path.is_empty())?;
    match OpenOptions::new().create(true).append(true).open(&path) {
        Ok(file) => Some(Mutex::new(file)),
        Err(error) => {
            eprintln!("ptxemu: cannot write PTXEMU_LOG={}: {error}", path.display());
            None
        }
    }
});

/// Whether calls are logged.
pub fn enabled() -> bool {
    LOG.is_some()
}

/// Writes one line.
pub fn line(text: Arguments) {
    if let Some(log) = &*LOG {
        let mut file = log.lock().unwrap_or_else(PoisonError::into_inner);
        // A log that cannot be written (a full disk) must not change what the program under test sees.
        let _ = file.write_all(format!("{text}\n").as_bytes());
    }
}
