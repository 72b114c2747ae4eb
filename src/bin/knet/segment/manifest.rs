//! `--manifest`: what became of each photo, a line of JSON each.

use super::plan::Item;
use knet::engine::Timings;
use knet::{Error, Result};
use serde_json::{Value, json};
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What every line has.
const FIELDS: [&str; 3] = ["photo", "name", "status"];

/// What became of a photo.
pub enum Status<'a> {
    Done {
        found: usize,
        stages: usize,
        times: Times,
    },
    /// Its results were there.
    Skipped,
    Failed(&'a Error),
}

/// Where the time of a photo went.
pub struct Times {
    /// Reading the file and decoding it.
    pub decode: Duration,
    pub engine: Timings,
    /// Drawing, encoding and writing the results.
    pub write: Duration,
}

/// A file that grows by a whole line for each photo: a reader, and who looks at it after the process was
/// killed, finds those that are finished.
pub struct Manifest {
    path: PathBuf,
    file: File,
}

impl Manifest {
    /// Begins a new one in place of an old one.
    pub fn begin(path: &Path) -> Result<Manifest> {
        let file = File::create(path).map_err(|e| Error::io(path, e))?;
        Ok(Manifest { path: path.to_path_buf(), file })
    }

    /// Adds the line of a photo.
    pub fn add(&mut self, item: &Item, status: &Status) -> Result<()> {
        let mut line = json!({"photo": item.photo.to_string_lossy(), "name": item.name});
        status.fill(&mut line);
        self.file.write_all(format!("{line}\n").as_bytes()).map_err(|e| Error::io(&self.path, e))
    }
}

impl Status<'_> {
    fn fill(&self, line: &mut Value) {
        let ms = |time: Duration| (time.as_secs_f64() * 1e6).round() / 1e3;
        match self {
            Status::Done { found, stages, times: Times { decode, engine, write } } => {
                line["status"] = "done".into();
                line["found"] = (*found).into();
                line["stages"] = (*stages).into();
                let parts = ["decode", "pre", "network", "post", "write"];
                let times = [*decode, engine.pre, engine.network, engine.post, *write];
                line["ms"] =
                    parts.iter().zip(times).map(|(part, time)| (part.to_string(), ms(time))).collect();
            }
            Status::Skipped => line["status"] = "skipped".into(),
            Status::Failed(error) => {
                line["status"] = "failed".into();
                line["exit_code"] = error.kind().exit_code().into();
                line["error"] = error.to_string().into();
            }
        }
    }
}

/// Whether this is a manifest; a file without a line is the one of an empty shard.
pub fn is_own(path: &Path) -> bool {
    let mut first = String::new();
    let read = File::open(path).and_then(|file| BufReader::new(file).read_line(&mut first));
    let value = serde_json::from_str::<Value>(&first).unwrap_or_default();
    read.is_ok_and(|bytes| bytes == 0 || FIELDS.iter().all(|field| value.get(field).is_some()))
}
