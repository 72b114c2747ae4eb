//! A communicator, and the collectives that it sends to streams.

use crate::driver::{Driver, Stream};
use crate::peers::{Peers, lock};
use std::ffi::c_void;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

/// Bytes that go at once.
const PART: usize = 1 << 20;

/// One rank's end of a communicator. Its operations are all on one stream at a time, as whoever uses it
/// waits before going on to another: they share the page-locked memory.
pub struct Communicator {
    shared: Arc<Shared>,
    ranks: usize,
}

/// What host functions reach: a stream may call them after the communicator was ended.
struct Shared {
    driver: Driver,
    peers: Mutex<Option<Peers>>,
    failed: AtomicBool,
    /// What a part is copied to, and after it the results.
    own: *mut u8,
    all: *mut u8,
}

// SAFETY: the memory is page-locked memory of this value, used in the order of one stream.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Drop for Shared {
    fn drop(&mut self) {
        self.driver.free(self.own);
        self.driver.free(self.all);
    }
}

/// Which collective.
#[derive(Clone, Copy)]
pub enum Kind {
    /// Of floats, over ranks.
    Sum,
    /// Of bytes.
    Gather,
}

/// A collective that was asked for.
pub struct Operation {
    /// Which.
    pub kind: Kind,
    /// What this rank gives.
    pub from: u64,
    /// Where the result goes.
    pub to: u64,
    /// That this rank gives.
    pub bytes: usize,
    /// Between whom.
    pub communicator: *const Communicator,
    /// When.
    pub stream: Stream,
}

/// A part of an operation, for the host function that does it.
struct Part {
    kind: Kind,
    bytes: usize,
    ranks: usize,
    shared: Arc<Shared>,
}

impl Communicator {
    /// Between these.
    pub fn new(peers: Peers, ranks: usize) -> Result<Communicator, String> {
        let driver = Driver::open()?;
        let (own, all) = (driver.allocate(PART)?, driver.allocate(ranks * PART)?);
        let (peers, failed) = (Mutex::new(Some(peers)), AtomicBool::new(false));
        Ok(Communicator { shared: Arc::new(Shared { driver, peers, failed, own, all }), ranks })
    }

    /// Whether a rank is gone.
    pub fn has_failed(&self) -> bool {
        self.shared.failed.load(Ordering::Acquire)
    }
}

impl Drop for Communicator {
    fn drop(&mut self) {
        // The connections end now, whatever still waits in a stream.
        lock(&self.shared.peers).take();
    }
}

impl Operation {
    /// Sends it to its stream, part by part.
    pub fn enqueue(&self) -> Result<(), String> {
        self.send().inspect_err(|error| eprintln!("ptxemu-nccl: {error}"))
    }

    fn send(&self) -> Result<(), String> {
        // SAFETY: the caller of NCCL's function vouches for a live communicator.
        let Communicator { shared, ranks } = unsafe { &*self.communicator };
        let Shared { driver, own, all, .. } = &**shared;
        for start in (0..self.bytes).step_by(PART) {
            let bytes = PART.min(self.bytes - start);
            driver.to_host(*own, self.from + start as u64, bytes, self.stream)?;
            let part = Part { kind: self.kind, bytes, ranks: *ranks, shared: shared.clone() };
            driver.call(self.stream, run, Box::into_raw(Box::new(part)).cast())?;
            match self.kind {
                Kind::Sum => driver.to_device(self.to + start as u64, *own, bytes, self.stream)?,
                Kind::Gather => {
                    for rank in 0..*ranks {
                        let to = self.to + (rank * self.bytes + start) as u64;
                        driver.to_device(to, all.wrapping_add(rank * bytes), bytes, self.stream)?;
                    }
                }
            }
        }
        Ok(())
    }
}

/// Does a part, between the two copies.
extern "C" fn run(data: *mut c_void) {
    // SAFETY: the box that was made for this call.
    let Part { kind, bytes, ranks, shared } = *unsafe { Box::from_raw(data.cast::<Part>()) };
    // SAFETY: memory of the communicator, which no other work uses before the stream goes on.
    let (own, all) = unsafe {
        (
            std::slice::from_raw_parts_mut(shared.own, bytes),
            std::slice::from_raw_parts_mut(shared.all, ranks * bytes),
        )
    };
    let mut peers = lock(&shared.peers);
    let done = match (&mut *peers, kind) {
        (None, _) => return,
        (Some(peers), Kind::Sum) => peers.sum(own),
        (Some(peers), Kind::Gather) => peers.gather_bytes(own, all),
    };
    if let Err(error) = done {
        eprintln!("ptxemu-nccl: a rank is gone: {error}");
        // Closed connections tell the others.
        peers.take();
        shared.failed.store(true, Ordering::Release);
    }
}
