//! The one error type of the crate.
//!
//! Every variant names what a person needs to find the fault: the file, the tensor or value, the
//! operator, and both shapes where two shapes disagree. [`Error::kind`] sorts errors into the few
//! classes that callers act upon; the command line turns the class into its exit code.

use std::borrow::Cow;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// Shorthand for results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The class of an [`Error`], for callers that react rather than report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// A request that cannot be served as worded: unknown model, bad option, wrong configuration.
    Usage,
    /// The operating system refused to read or write a file.
    Io,
    /// An image that is damaged, of an unsupported kind or of an unacceptable size.
    Image,
    /// A checkpoint file that is damaged, hostile or not of a known format.
    Checkpoint,
    /// A sound checkpoint that does not fit the model (missing, extra, misshapen or NaN tensors).
    Weights,
    /// A graph or plan that breaks a rule: shapes that do not fit, values used before defined.
    Graph,
    /// A training data set that is damaged, inconsistent or incomplete.
    Data,
    /// A training run whose numbers are no longer finite.
    Diverged,
    /// No GPU that can be used, or none of that number: no driver or an old one, no device, no compiler for
    /// its kernels. The CPU can do the work.
    NoDevice,
    /// The GPU's context is of no further use: a fault while running, or the device is gone. Drop everything
    /// that uses it; whether it can be opened again, only trying tells.
    DeviceLost,
    /// Another fault of the driver, of the compiler or of a kernel.
    Cuda,
    /// A call that does not fit what was called before. The program is at fault; nothing is lost.
    State,
    /// More memory is needed than there is.
    Memory,
    /// Another rank of a run failed or is gone, or what connects ranks is missing.
    Ranks,
}

impl ErrorKind {
    /// Process exit code of the class. 1 is left to partial failures and 2 to argument parsing.
    pub fn exit_code(self) -> u8 {
        match self {
            ErrorKind::Usage => 2,
            ErrorKind::Io => 3,
            ErrorKind::Image => 4,
            ErrorKind::Checkpoint => 5,
            ErrorKind::Weights => 6,
            ErrorKind::Graph | ErrorKind::State => 7,
            ErrorKind::Data => 8,
            ErrorKind::Diverged => 9,
            ErrorKind::NoDevice | ErrorKind::DeviceLost | ErrorKind::Cuda => 10,
            ErrorKind::Memory => 11,
            ErrorKind::Ranks => 12,
        }
    }
}

/// A tensor whose shape in the checkpoint is not the shape the model wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShapeMismatch {
    /// Name of the tensor.
    pub name: String,
    /// Shape the model wants.
    pub expected: Vec<usize>,
    /// Shape found in the file.
    pub found: Vec<usize>,
}

/// All disagreements between a checkpoint and a model, gathered so that one run shows them all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WeightReport {
    /// Tensors the model needs and the file lacks.
    pub missing: Vec<String>,
    /// Tensors in the file that the model does not know.
    pub unexpected: Vec<String>,
    /// Tensors of the wrong shape.
    pub misshapen: Vec<ShapeMismatch>,
    /// Tensors that hold a NaN or an infinity.
    pub non_finite: Vec<String>,
}

impl WeightReport {
    /// True if nothing disagrees.
    pub fn is_clean(&self) -> bool {
        *self == WeightReport::default()
    }
}

/// Most names of one kind that a message lists.
const MOST_LISTED: usize = 40;

/// Text that may hold what a file said, for a terminal: control characters other than the ends of lines and
/// tabs are written as `\u{..}`, so that no name in a file moves the cursor, changes colours or hides what is
/// printed.
pub fn escaped(text: &str) -> Cow<'_, str> {
    let harmless = |c: char| !c.is_control() || c == '\n' || c == '\t';
    if text.chars().all(harmless) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match harmless(c) {
            true => escaped.push(c),
            false => escaped.extend(c.escape_unicode()),
        }
    }
    Cow::Owned(escaped)
}

/// Prints a line on standard error, escaped. That it is closed or full is no reason to stop, nor to end with
/// another exit code.
pub fn say(line: fmt::Arguments<'_>) {
    let line = format!("{}\n", escaped(&line.to_string()));
    let _ = io::Write::write_all(&mut io::stderr(), line.as_bytes());
}

impl fmt::Display for WeightReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut list = |what: &str, names: &[String]| -> fmt::Result {
            if !names.is_empty() {
                let more = names.len().saturating_sub(MOST_LISTED);
                let shown = names[..names.len() - more].join(", ");
                write!(f, "\n  {} {what}: {shown}", names.len())?;
                if more > 0 {
                    write!(f, " and {more} more")?;
                }
            }
            Ok(())
        };
        list("missing", &self.missing)?;
        list("unexpected", &self.unexpected)?;
        let shapes: Vec<String> = self
            .misshapen
            .iter()
            .map(|m| format!("{} (expected {:?}, found {:?})", m.name, m.expected, m.found))
            .collect();
        list("of the wrong shape", &shapes)?;
        list("with NaN or infinite values", &self.non_finite)
    }
}

/// Anything that can go wrong in this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An operating-system error on a file.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// An image that cannot be used.
    #[error("{}: {reason}", path.display())]
    Image {
        /// The image file.
        path: PathBuf,
        /// Why it was refused.
        reason: String,
    },
    /// A checkpoint that cannot be read.
    #[error("{}: {}{}{reason}", path.display(), key.as_ref().map(|k| format!("tensor `{k}`: ")).unwrap_or_default(), offset.map(|o| format!("at byte {o}: ")).unwrap_or_default())]
    Checkpoint {
        /// The checkpoint file.
        path: PathBuf,
        /// The tensor or entry in question, if one is.
        key: Option<String>,
        /// Byte offset of the fault in the file (or in the named entry), if known.
        offset: Option<u64>,
        /// What is wrong.
        reason: String,
    },
    /// A checkpoint that does not fit the model.
    #[error("{}: the tensors do not fit model `{model}`:{report}", path.display())]
    Weights {
        /// The checkpoint file (or `seeded:N`).
        path: PathBuf,
        /// The model they were to be loaded into.
        model: String,
        /// Everything that disagrees.
        report: Box<WeightReport>,
    },
    /// Operands that an operator cannot take.
    #[error("{op} `{value}`: {reason}")]
    Shape {
        /// Operator name.
        op: &'static str,
        /// Name of the value the operator was to produce.
        value: String,
        /// What is wrong, naming both shapes.
        reason: String,
    },
    /// A graph that breaks an invariant.
    #[error("graph: {0}")]
    Graph(String),
    /// A record of a data set that cannot be used.
    #[error("{}: {}{reason}", path.display(), record.as_ref().map(|r| format!("{r}: ")).unwrap_or_default())]
    Data {
        /// The annotation file, mask file or folder.
        path: PathBuf,
        /// The record in it, such as `annotation 17 (image 42)`; none if the file as a whole is meant.
        record: Option<String>,
        /// What is wrong.
        reason: String,
    },
    /// Training produced a number that is not finite.
    #[error("{what} is NaN or infinite; images of the batch: {ids:?}")]
    Diverged {
        /// The loss term, or what else it was.
        what: String,
        /// Ids of the images in the batch.
        ids: Vec<u64>,
    },
    /// CUDA: no driver, no device or no compiler.
    #[error("cuda: {0}")]
    NoDevice(String),
    /// CUDA: a fault after which nothing that was on the device can be used.
    #[error("cuda: {0}; everything on the device is lost")]
    DeviceLost(String),
    /// CUDA: a kernel that does not compile, or what else the driver refuses.
    #[error("cuda: {0}")]
    Cuda(String),
    /// A call out of order.
    #[error("{0}")]
    State(String),
    /// Memory that is not there.
    #[error("{what} needs {} of memory, {}: choose a smaller size of images, batch or model", size(*needed), available.map_or("which the system does not give".into(), |bytes| format!("{} are available", size(bytes))))]
    Memory {
        /// What it is for.
        what: String,
        /// Bytes needed.
        needed: u64,
        /// Bytes that there are, if the system says.
        available: Option<u64>,
    },
    /// What ranks of a run say of each other, or that nothing connects them.
    #[error("{0}")]
    Ranks(String),
    /// A configuration or argument that cannot be served.
    #[error("{0}")]
    Usage(String),
}

/// Bytes for people.
fn size(bytes: u64) -> String {
    const GIB: u64 = 1 << 30;
    let (unit, name) = if bytes < GIB { (GIB >> 10, "MiB") } else { (GIB, "GiB") };
    format!("{:.1} {name}", bytes as f64 / unit as f64)
}

impl Error {
    /// The class of this error.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Error::Io { .. } => ErrorKind::Io,
            Error::Image { .. } => ErrorKind::Image,
            Error::Checkpoint { .. } => ErrorKind::Checkpoint,
            Error::Weights { .. } => ErrorKind::Weights,
            Error::Shape { .. } | Error::Graph(_) => ErrorKind::Graph,
            Error::Data { .. } => ErrorKind::Data,
            Error::Diverged { .. } => ErrorKind::Diverged,
            Error::NoDevice(_) => ErrorKind::NoDevice,
            Error::DeviceLost(_) => ErrorKind::DeviceLost,
            Error::Cuda(_) => ErrorKind::Cuda,
            Error::State(_) => ErrorKind::State,
            Error::Memory { .. } => ErrorKind::Memory,
            Error::Ranks(_) => ErrorKind::Ranks,
            Error::Usage(_) => ErrorKind::Usage,
        }
    }

    /// An [`Error::Io`] on `path`.
    pub fn io(path: impl AsRef<Path>, source: std::io::Error) -> Self {
        Error::Io { path: path.as_ref().to_path_buf(), source }
    }

    /// An [`Error::Image`] on `path`.
    pub fn image(path: impl AsRef<Path>, reason: impl Into<String>) -> Self {
        Error::Image { path: path.as_ref().to_path_buf(), reason: reason.into() }
    }

    /// An [`Error::Checkpoint`] about the file as a whole.
    pub fn checkpoint(path: impl AsRef<Path>, reason: impl Into<String>) -> Self {
        Error::Checkpoint {
            path: path.as_ref().to_path_buf(),
            key: None,
            offset: None,
            reason: reason.into(),
        }
    }

    /// An [`Error::Data`] about the file as a whole.
    pub fn data(path: impl AsRef<Path>, reason: impl Into<String>) -> Self {
        Error::Data { path: path.as_ref().to_path_buf(), record: None, reason: reason.into() }
    }

    /// An [`Error::Data`] about one record of a file.
    pub fn record(path: impl AsRef<Path>, record: impl Into<String>, reason: impl Into<String>) -> Self {
        Error::Data { path: path.as_ref().to_path_buf(), record: Some(record.into()), reason: reason.into() }
    }

    /// An [`Error::Usage`].
    pub fn usage(reason: impl Into<String>) -> Self {
        Error::Usage(reason.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_files_say_reaches_a_terminal_as_text() {
        assert!(matches!(escaped("a plain line\n\tand another: Ä"), Cow::Borrowed(_)));
        assert_eq!(escaped("a\u{1b}[2Jb\r\u{7}\u{9b}"), "a\\u{1b}[2Jb\\u{d}\\u{7}\\u{9b}");
    }

    #[test]
    fn long_lists_are_cut() {
        let missing = (0..100_000).map(|i| format!("stage.{i}")).collect();
        let text = WeightReport { missing, ..WeightReport::default() }.to_string();
        assert!(
            text.starts_with("\n  100000 missing: stage.0, ") && text.ends_with("stage.39 and 99960 more"),
            "{text}"
        );
    }
}
