//! What can go wrong: [`Fault`] (while running, or in a host access) and [`ParseError`] (in the PTX text).

use std::fmt;
use std::ops::{Deref, DerefMut};

/// The kind of a [`Fault`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FaultKind {
    /// An access outside any allocation, in a red zone, or past a shared, local or parameter space.
    OutOfBounds,
    /// An access to an allocation that was freed.
    UseAfterFree,
    /// A second `free` of the same address.
    DoubleFree,
    /// A `free` of an address that `alloc` never returned.
    InvalidFree,
    /// A store to constant memory or another read-only allocation.
    ReadOnly,
    /// An address that is not a multiple of the access's size.
    Misaligned,
    /// A read of bytes nobody has written.
    UninitialisedRead,
    /// A read of a register no path has written.
    UninitialisedRegister,
    /// Two warps of a block use one shared word, one of them writing, with no barrier between.
    SharedRace,
    /// Two lanes of one warp use one shared word, one of them writing, with no `__syncwarp` between.
    WarpRace,
    /// Two blocks of one launch use one global word, one of them writing, without atomics.
    GlobalRace,
    /// A barrier reached by some lanes of a warp only.
    DivergentBarrier,
    /// All warps of a block wait: no barrier can complete.
    Deadlock,
    /// A barrier whose thread count is impossible, or differs between its participants.
    BarrierCount,
    /// A read or write of shared bytes that an asynchronous copy still owns.
    PendingAsyncCopy,
    /// A shuffle, vote or match whose mask names inactive lanes or leaves out the executing one.
    InvalidMask,
    /// A warp-wide instruction (`mma`, `ldmatrix`) executed by part of a warp.
    InactiveLanes,
    /// A launch that the module, the device limits or the arguments do not permit.
    InvalidLaunch,
    /// `trap`, `brkpt` or a failed device-side assertion.
    Trap,
    /// More instructions than `Config::max_instructions`.
    InstructionLimit,
    /// The simulated device is full.
    OutOfMemory,
    /// Something this emulator knows but does not execute in this form.
    Unsupported,
}

/// A `.cu` position that a function was inlined at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceLine {
    /// File name as the PTX's `.file` directive gives it.
    pub file: String,
    /// Line, from 1.
    pub line: u32,
}

impl fmt::Display for SourceLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.line)
    }
}

/// A finding. `Display` is one readable line; the fields of [`Details`] are reached directly.
#[derive(Clone, Debug, PartialEq)]
pub struct Fault(Box<Details>);

impl Deref for Fault {
    type Target = Details;

    fn deref(&self) -> &Details {
        &self.0
    }
}

impl DerefMut for Fault {
    fn deref_mut(&mut self) -> &mut Details {
        &mut self.0
    }
}

/// What a [`Fault`] says: what happened, where in the source, and to which thread.
#[derive(Clone, Debug, PartialEq)]
pub struct Details {
    /// What kind of finding.
    pub kind: FaultKind,
    /// The `.cu` (or header) file by `.loc`; `None` without line information and for host accesses.
    pub file: Option<String>,
    /// The line in `file`, from 1.
    pub line: Option<u32>,
    /// Where the code at `file:line` was inlined, innermost first.
    pub inlined_at: Vec<SourceLine>,
    /// Line of the instruction in the PTX text, from 1.
    pub ptx_line: Option<u32>,
    /// The instruction's text.
    pub instruction: Option<String>,
    /// The entry that ran.
    pub kernel: Option<String>,
    /// `blockIdx`.
    pub block: Option<[u32; 3]>,
    /// Warp within the block.
    pub warp: Option<u32>,
    /// Lane within the warp, when one lane is to blame.
    pub lane: Option<u32>,
    /// `threadIdx` of that lane.
    pub thread: Option<[u32; 3]>,
    /// What happened, with addresses, sizes and the other party.
    pub message: String,
}

impl Fault {
    /// A fault of the host side: no kernel, no thread.
    pub fn host(kind: FaultKind, message: impl Into<String>) -> Fault {
        Fault(Box::new(Details {
            kind,
            file: None,
            line: None,
            inlined_at: Vec::new(),
            ptx_line: None,
            instruction: None,
            kernel: None,
            block: None,
            warp: None,
            lane: None,
            thread: None,
            message: message.into(),
        }))
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.kind)?;
        if let Some(kernel) = &self.kernel {
            write!(f, " in {kernel}")?;
        }
        if let (Some(file), Some(line)) = (&self.file, self.line) {
            write!(f, " at {file}:{line}")?;
        }
        for site in &self.inlined_at {
            write!(f, " <- {site}")?;
        }
        if let Some(line) = self.ptx_line {
            write!(f, " (PTX line {line}")?;
            if let Some(text) = &self.instruction {
                write!(f, ": {text}")?;
            }
            write!(f, ")")?;
        }
        if let Some([x, y, z]) = self.block {
            write!(f, ", block ({x},{y},{z})")?;
        }
        if let Some(warp) = self.warp {
            write!(f, " warp {warp}")?;
        }
        if let Some(lane) = self.lane {
            write!(f, " lane {lane}")?;
        }
        if let Some([x, y, z]) = self.thread {
            write!(f, " thread ({x},{y},{z})")?;
        }
        write!(f, ": {}", self.message)
    }
}

impl std::error::Error for Fault {}

/// PTX that is malformed, or uses an instruction this emulator does not know.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("PTX line {line}, column {column}: {message}; at `{text}`")]
pub struct ParseError {
    /// Line, from 1.
    pub line: u32,
    /// Column in characters, from 1.
    pub column: u32,
    /// The offending text.
    pub text: String,
    /// What was expected, or what is not supported.
    pub message: String,
}
