//! A stand-in `libnccl.so` for ranks on emulated GPUs: processes of one machine, connected by TCP.
//!
//! It has what knet calls and no more, and promises NCCL's *contract* at its least generous: a collective is
//! enqueued on its stream and does nothing before the stream comes to it (what it sends is what lies there
//! then, what it gets is there afterwards), those of a group are enqueued when the group ends, and a rank
//! that is gone shows in `ncclCommGetAsyncError` alone. Unlike NCCL, whose kernels spin until they are
//! aborted, the stream then goes on, with rubbish in place of results.
//!
//! Every collective goes through rank 0, which adds up in the order of ranks: the sums depend on nothing
//! else. Device memory is reached by the stand-in driver's copies to and from page-locked memory, with a
//! host function in between.

mod communicator;
mod driver;
mod peers;

use communicator::{Communicator, Kind, Operation};
use driver::Stream;
use peers::Peers;
use std::cell::RefCell;
use std::ffi::{c_char, c_int, c_void};
use std::net::TcpListener;
use std::sync::Mutex;

/// `ncclUniqueId`: where rank 0 listens, as text.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct UniqueId([u8; 128]);

/// `ncclResult_t`.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Code(c_int);

impl Code {
    const SUCCESS: Code = Code(0);
    const SYSTEM_ERROR: Code = Code(2);
    const INVALID_ARGUMENT: Code = Code(4);
    const INVALID_USAGE: Code = Code(5);
    const REMOTE_ERROR: Code = Code(6);

    fn of<E>(outcome: Result<(), E>, code: Code) -> Code {
        outcome.map_or(code, |()| Code::SUCCESS)
    }
}

/// A version of NCCL that has all functions here: 2.27.3.
const VERSION: c_int = 22703;
/// Element types in use: `ncclUint8`, `ncclFloat32`.
const BYTES: c_int = 1;
const FLOATS: c_int = 7;
/// `ncclSum`.
const SUM: c_int = 0;

/// Listeners of the ids that this process made, until rank 0 takes them.
static LISTENERS: Mutex<Vec<(UniqueId, TcpListener)>> = Mutex::new(Vec::new());

thread_local! {
    /// Depth of open groups, and what they hold.
    static GROUP: RefCell<(usize, Vec<Operation>)> = const { RefCell::new((0, Vec::new())) };
}

/// The version.
///
/// # Safety
/// A place for it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclGetVersion(version: *mut c_int) -> Code {
    // SAFETY: as the caller promises.
    unsafe { version.write(VERSION) };
    Code::SUCCESS
}

/// Opens a port for rank 0, which must be this process.
///
/// # Safety
/// A place for the id.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclGetUniqueId(id: *mut UniqueId) -> Code {
    let Ok(listener) = TcpListener::bind("127.0.0.1:0") else { return Code::SYSTEM_ERROR };
    let Ok(address) = listener.local_addr() else { return Code::SYSTEM_ERROR };
    let mut made = UniqueId([0; 128]);
    let text = address.to_string();
    made.0[..text.len()].copy_from_slice(text.as_bytes());
    // SAFETY: as the caller promises.
    unsafe { id.write(made) };
    peers::lock(&LISTENERS).push((made, listener));
    Code::SUCCESS
}

/// Waits for all ranks.
///
/// # Safety
/// A place for the communicator.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclCommInitRank(
    place: *mut *mut Communicator,
    ranks: c_int,
    id: UniqueId,
    rank: c_int,
) -> Code {
    let (Ok(ranks), Ok(rank)) = (usize::try_from(ranks), usize::try_from(rank)) else {
        return Code::INVALID_ARGUMENT;
    };
    if rank >= ranks {
        return Code::INVALID_ARGUMENT;
    }
    let own = {
        let mut listeners = peers::lock(&LISTENERS);
        let own = listeners.iter().position(|(made, _)| made.0 == id.0);
        own.map(|at| listeners.swap_remove(at).1)
    };
    let peers = match (rank, own) {
        (0, Some(listener)) => Peers::gather(&listener, ranks),
        (0, None) => return Code::INVALID_USAGE,
        _ => Peers::join(String::from_utf8_lossy(&id.0).trim_end_matches('\0'), rank),
    };
    let made = peers
        .map_err(|error| eprintln!("ptxemu-nccl: {error}"))
        .and_then(|peers| Communicator::new(peers, ranks).map_err(|error| eprintln!("ptxemu-nccl: {error}")));
    let Ok(communicator) = made else { return Code::SYSTEM_ERROR };
    // SAFETY: as the caller promises; `ncclCommDestroy` or `ncclCommAbort` takes the box back.
    unsafe { place.write(Box::into_raw(Box::new(communicator))) };
    Code::SUCCESS
}

/// Ends a communicator.
///
/// # Safety
/// One that `ncclCommInitRank` made, and that is used no more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclCommDestroy(communicator: *mut Communicator) -> Code {
    // SAFETY: as the caller promises.
    drop(unsafe { Box::from_raw(communicator) });
    Code::SUCCESS
}

/// Ends a communicator whatever it does.
///
/// # Safety
/// As [`ncclCommDestroy`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclCommAbort(communicator: *mut Communicator) -> Code {
    // SAFETY: as the caller promises.
    unsafe { ncclCommDestroy(communicator) }
}

/// Whether a rank is gone.
///
/// # Safety
/// A live communicator and a place for the code.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclCommGetAsyncError(communicator: *const Communicator, code: *mut Code) -> Code {
    // SAFETY: as the caller promises.
    unsafe {
        code.write(if (*communicator).has_failed() { Code::REMOTE_ERROR } else { Code::SUCCESS });
    }
    Code::SUCCESS
}

/// Adds up floats of all ranks in the order of ranks.
///
/// # Safety
/// A live communicator and a stream, with as many floats at both places when the stream comes to it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclAllReduce(
    from: u64,
    to: u64,
    count: usize,
    ty: c_int,
    operation: c_int,
    communicator: *const Communicator,
    stream: Stream,
) -> Code {
    if (ty, operation) != (FLOATS, SUM) {
        return Code::INVALID_ARGUMENT;
    }
    enqueue(Operation { kind: Kind::Sum, from, to, bytes: 4 * count, communicator, stream })
}

/// Gives all ranks the bytes of each, in the order of ranks.
///
/// # Safety
/// As [`ncclAllReduce`], with room for the bytes of every rank at `to`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclAllGather(
    from: u64,
    to: u64,
    count: usize,
    ty: c_int,
    communicator: *const Communicator,
    stream: Stream,
) -> Code {
    if ty != BYTES {
        return Code::INVALID_ARGUMENT;
    }
    enqueue(Operation { kind: Kind::Gather, from, to, bytes: count, communicator, stream })
}

/// Sends an operation to its stream, or keeps it for the end of the group.
fn enqueue(operation: Operation) -> Code {
    GROUP.with_borrow_mut(|(depth, kept)| {
        if *depth == 0 {
            return Code::of(operation.enqueue(), Code::SYSTEM_ERROR);
        }
        kept.push(operation);
        Code::SUCCESS
    })
}

/// Begins a group.
#[unsafe(no_mangle)]
pub extern "C" fn ncclGroupStart() -> Code {
    GROUP.with_borrow_mut(|(depth, _)| *depth += 1);
    Code::SUCCESS
}

/// Ends a group: the outermost sends all that was kept.
#[unsafe(no_mangle)]
pub extern "C" fn ncclGroupEnd() -> Code {
    GROUP.with_borrow_mut(|(depth, kept)| {
        let Some(left) = depth.checked_sub(1) else { return Code::INVALID_USAGE };
        *depth = left;
        if left > 0 {
            return Code::SUCCESS;
        }
        Code::of(kept.drain(..).try_for_each(|operation| operation.enqueue()), Code::SYSTEM_ERROR)
    })
}

/// A code in words.
#[unsafe(no_mangle)]
pub extern "C" fn ncclGetErrorString(code: Code) -> *const c_char {
    let text = match code {
        Code::SUCCESS => c"no error",
        Code::SYSTEM_ERROR => c"unhandled system error (run with NCCL_DEBUG=INFO for details)",
        Code::INVALID_ARGUMENT => c"invalid argument (run with NCCL_DEBUG=WARN for details)",
        Code::INVALID_USAGE => c"invalid usage (run with NCCL_DEBUG=WARN for details)",
        Code::REMOTE_ERROR => c"remote process exited or there was a network error",
        _ => c"unknown result code",
    };
    text.as_ptr()
}

/// Nothing: what went wrong is printed.
#[unsafe(no_mangle)]
pub extern "C" fn ncclGetLastError(_communicator: *const c_void) -> *const c_char {
    c"".as_ptr()
}
