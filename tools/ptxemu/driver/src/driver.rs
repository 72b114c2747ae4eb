//! The driver's state: one device, everything that lives on it, behind one lock.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::capture::Capture;
use crate::context::Contexts;
use crate::device::Model;
use crate::error::{CUresult, Outcome};
use crate::event::Event;
use crate::ffi::Handle;
use crate::function::Function;
use crate::graph::{Exec, Graph};
use crate::memory::DeviceMemory;
use crate::module::Module;
use crate::pinned::PinnedMemory;
use crate::queue::Stream;
use crate::report::Totals;
use crate::settings::Settings;

static DRIVER: Mutex<Option<Driver>> = Mutex::new(None);

/// Locks the driver; `None` before `cuInit`. A panic under the lock has been reported as an unknown error by
/// then.
pub fn driver() -> MutexGuard<'static, Option<Driver>> {
    DRIVER.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Locks the driver if nobody holds it, for the process's exit, which must not wait.
pub fn idle_driver() -> Option<MutexGuard<'static, Option<Driver>>> {
    DRIVER.try_lock().ok()
}

/// Everything the driver knows.
pub struct Driver {
    /// The environment's settings.
    pub settings: Settings,
    /// The device's limits.
    pub device: Model,
    /// Contexts of the device.
    pub contexts: Contexts,
    /// What lives in the contexts.
    pub memory: DeviceMemory,
    /// Page-locked host memory.
    pub pinned: PinnedMemory,
    /// Loaded modules.
    pub modules: Table<Module>,
    /// Kernels that were looked up.
    pub functions: Table<Function>,
    /// Streams with their queues; destroyed ones stay until they have run dry.
    pub streams: Table<Stream>,
    /// Events.
    pub events: Table<Event>,
    /// Captures in progress.
    pub captures: Table<Capture>,
    /// Graphs.
    pub graphs: Table<Graph>,
    /// Instantiated graphs.
    pub execs: Table<Exec>,
    /// What failed on the device: from then on every call in a context fails with it.
    pub failure: Option<CUresult>,
    /// Counts per kernel.
    pub totals: Totals,
    /// Draws the orders that the API leaves open.
    pub shuffle: Shuffle,
}

impl Driver {
    /// A device as the settings want it, with nothing on it.
    pub fn new(settings: Settings) -> Driver {
        let mut driver = Driver {
            device: Model::new(settings.capability, settings.size),
            contexts: Contexts::default(),
            memory: DeviceMemory::new(settings.memory),
            pinned: PinnedMemory::default(),
            modules: Table::default(),
            functions: Table::default(),
            streams: Table::default(),
            events: Table::default(),
            captures: Table::default(),
            graphs: Table::default(),
            execs: Table::default(),
            failure: None,
            totals: Totals::default(),
            shuffle: Shuffle(settings.seed),
            settings,
        };
        driver.streams.put(Stream::LEGACY, Stream::new(true, 0));
        driver
    }

    /// Removes everything that lived in the contexts, as destroying the last one does. The counts stay.
    pub fn reset(&mut self) {
        let fresh = Driver::new(self.settings.clone());
        let totals = std::mem::take(&mut self.totals);
        let contexts = std::mem::take(&mut self.contexts);
        // Host memory is the process's: page-locked ranges that are still in use stay readable.
        let pinned = std::mem::take(&mut self.pinned);
        *self = Driver { totals, contexts, pinned, ..fresh };
    }
}

/// Objects by handle. No handle is ever used twice, of whatever kind, so that stale ones are seen.
pub struct Table<T>(HashMap<Handle, T>);

impl<T> Default for Table<T> {
    fn default() -> Self {
        Table(HashMap::new())
    }
}

/// A handle that no object has had.
pub fn fresh_handle() -> Handle {
    use std::sync::atomic::{AtomicUsize, Ordering};
    // Far from null and from the API's special stream handles, and aligned like a pointer.
    static NEXT: AtomicUsize = AtomicUsize::new(0x1000);
    NEXT.fetch_add(16, Ordering::Relaxed)
}

impl<T> Table<T> {
    /// Adds an object and gives its handle.
    pub fn add(&mut self, object: T) -> Handle {
        let handle = fresh_handle();
        self.0.insert(handle, object);
        handle
    }

    /// Puts an object at a handle.
    pub fn put(&mut self, handle: Handle, object: T) {
        self.0.insert(handle, object);
    }

    /// The object, or an invalid handle.
    pub fn get(&self, handle: Handle) -> Outcome<&T> {
        self.0.get(&handle).ok_or(CUresult::INVALID_HANDLE)
    }

    /// The object, or an invalid handle.
    pub fn get_mut(&mut self, handle: Handle) -> Outcome<&mut T> {
        self.0.get_mut(&handle).ok_or(CUresult::INVALID_HANDLE)
    }

    /// Takes the object out.
    pub fn remove(&mut self, handle: Handle) -> Outcome<T> {
        self.0.remove(&handle).ok_or(CUresult::INVALID_HANDLE)
    }

    /// Whether there is such an object.
    pub fn holds(&self, handle: Handle) -> bool {
        self.0.contains_key(&handle)
    }

    /// Handles in the order of their making, which keeps every walk over them deterministic.
    pub fn handles(&self) -> Vec<Handle> {
        let mut handles: Vec<Handle> = self.0.keys().copied().collect();
        handles.sort_unstable();
        handles
    }

    /// The objects, in no order.
    pub fn values(&self) -> impl Iterator<Item = &T> {
        self.0.values()
    }
}

/// SplitMix64; a state of 0 means "do not shuffle".
pub struct Shuffle(u64);

impl Shuffle {
    /// Whether anything is drawn at all.
    pub fn active(&self) -> bool {
        self.0 != 0
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15).max(1);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % bound as u64) as usize
    }
}
