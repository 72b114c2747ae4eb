//! GPUs of several processes, connected by NCCL: sums of floats where they lie, and bytes of the host.

mod library;

pub use library::{Nccl, UniqueId};

use super::device::{Device, fault};
use super::memory::{self, DeviceBuffer};
use crate::error::{Error, ErrorKind, Result, say};
use crate::exec::DeviceFloats;
use cudarc::driver::CudaEvent;
use cudarc::driver::sys::{self, CUresult, CUstream};
use library::Handle;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

/// Bytes of each rank that the host exchanges at once.
const MESSAGE: usize = 1 << 16;

/// How long ranks may take to connect. On many machines NCCL itself takes a minute.
const CONNECTING: Duration = Duration::from_secs(300);

/// How long a rank that has noticed the end of another one goes on: that rank may have been through.
const GRACE: Duration = Duration::from_secs(3);

/// How long leaving a broken communicator may take, and saving what is to be saved.
const LEAVING: Duration = Duration::from_secs(60);

/// How long a rank asks again and again whether the GPU is through, before it sleeps in between: see what MPI
/// does.
const PATIENCE: Duration = Duration::from_millis(2);
const NAP: Duration = Duration::from_micros(200);

/// Says which other rank is gone, if one is.
pub type Watch = dyn Fn() -> Option<usize> + Send + Sync;

/// One rank's end of the connection of all. What it sends goes to a stream of its own, in order.
pub struct Communicator {
    nccl: Nccl,
    /// Null once it has failed.
    handle: AtomicPtr<std::ffi::c_void>,
    ranks: usize,
    watch: Box<Watch>,
    device: Arc<Device>,
    /// Where another stream was when it was last recorded.
    reached: CudaEvent,
    own: DeviceBuffer,
    all: DeviceBuffer,
}

impl Communicator {
    /// Connects this process's GPU with those of the others, which have the same id, and waits for them.
    ///
    /// # Errors
    /// [`Error::Ranks`] as NCCL says; [`Error::Memory`] if there is no memory for messages.
    pub fn connect(
        nccl: Nccl,
        device: Device,
        id: UniqueId,
        (rank, ranks): (usize, usize),
        watch: Box<Watch>,
    ) -> Result<Communicator> {
        let device = Arc::new(device.with_new_stream()?);
        device.bind()?;
        let event = device.stream().context().new_event(None);
        let reached = event.map_err(|e| fault("cannot make an event", e))?;
        let own = DeviceBuffer::new(&device, MESSAGE, "messages between ranks")?;
        let all = DeviceBuffer::new(&device, ranks * MESSAGE, "messages between ranks")?;
        let alarm = Alarm::set(CONNECTING, format!("rank {rank}: NCCL does not connect the {ranks} ranks"));
        let handle = AtomicPtr::new(nccl.init(id, rank, ranks)?);
        drop(alarm);
        Ok(Communicator { nccl, handle, ranks, watch, device, reached, own, all })
    }

    /// The library, for people.
    pub fn name(&self) -> String {
        self.nccl.name()
    }

    /// Fills `all` with what every rank gave as `own`, in the order of ranks.
    ///
    /// # Errors
    /// [`Error::Ranks`] if another rank is gone.
    pub fn gather(&self, own: &[u8], all: &mut [u8]) -> Result<()> {
        assert_eq!(all.len(), own.len() * self.ranks, "as much of each rank");
        let handle = self.handle()?;
        let stream = self.device.stream().cu_stream();
        let mut got = vec![0; self.ranks * MESSAGE];
        for (turn, part) in own.chunks(MESSAGE).enumerate() {
            memory::write(&self.device, self.own.pointer(), part)?;
            let (from, to) = (self.own.pointer(), self.all.pointer());
            // SAFETY: both buffers hold as much, and this call waits for the work.
            let sent = unsafe { self.nccl.all_gather(handle, from, to, part.len(), stream) };
            sent.and_then(|()| self.wait(handle, stream)).map_err(|error| self.fail(error))?;
            let got = &mut got[..self.ranks * part.len()];
            memory::read(&self.device, to, got)?;
            for (of_rank, got) in all.chunks_exact_mut(own.len()).zip(got.chunks_exact(part.len())) {
                of_rank[turn * MESSAGE..][..part.len()].copy_from_slice(got);
            }
        }
        Ok(())
    }

    /// Begins to replace floats in this GPU's memory by their sums over ranks, as one operation of NCCL, once
    /// their stream has come so far; what is sent to that stream later runs beside it.
    ///
    /// # Errors
    /// As [`Communicator::gather`]; the floats are then of no use.
    pub fn begin_sum(&self, floats: &DeviceFloats) -> Result<()> {
        let handle = self.handle()?;
        self.device.bind()?;
        let stream = self.device.stream().cu_stream();
        let begin = || {
            // SAFETY: a live event and two live streams of one context.
            unsafe {
                let recorded = sys::cuEventRecord(self.reached.cu_event(), floats.stream as CUstream);
                recorded.result().map_err(|e| fault("cannot record an event", e))?;
                let waited = sys::cuStreamWaitEvent(stream, self.reached.cu_event(), 0);
                waited.result().map_err(|e| fault("cannot wait for an event", e))?;
            }
            // SAFETY: whoever gives the places vouches for them until the sums are finished.
            unsafe { self.nccl.all_reduce(handle, &floats.places, stream) }
        };
        begin().map_err(|error| self.fail(error))
    }

    /// Waits for all that has begun.
    ///
    /// # Errors
    /// As [`Communicator::begin_sum`].
    pub fn finish_sums(&self) -> Result<()> {
        let handle = self.handle()?;
        self.device.bind()?;
        self.wait(handle, self.device.stream().cu_stream()).map_err(|error| self.fail(error))
    }

    fn handle(&self) -> Result<Handle> {
        let handle = self.handle.load(Ordering::Acquire);
        let left = || Error::Ranks("the connection to the other ranks was left".into());
        (!handle.is_null()).then_some(handle).ok_or_else(left)
    }

    /// Waits for a stream's work. A kernel of NCCL's waits without end for a rank that is gone.
    fn wait(&self, handle: Handle, stream: CUstream) -> Result<()> {
        let begun = Instant::now();
        let mut gone: Option<(usize, Instant)> = None;
        loop {
            // SAFETY: a live stream of the device, whose context is current.
            match unsafe { sys::cuStreamQuery(stream) } {
                CUresult::CUDA_SUCCESS => return self.nccl.async_error(handle),
                CUresult::CUDA_ERROR_NOT_READY => {}
                code => return code.result().map_err(|e| fault("a sum over ranks failed", e)),
            }
            self.nccl.async_error(handle)?;
            if gone.is_none() {
                gone = (self.watch)().map(|rank| (rank, Instant::now()));
            }
            if gone.is_some_and(|(_, noticed)| noticed.elapsed() > GRACE) {
                return Err(Error::Ranks("it ended its connection".into()));
            }
            if begun.elapsed() < PATIENCE {
                std::hint::spin_loop();
            } else {
                std::thread::sleep(NAP);
            }
        }
    }

    /// Leaves the others after a fault, so that what waits for them on the GPU ends; says who is gone.
    fn fail(&self, error: Error) -> Error {
        let begun = Instant::now();
        let mut gone = (self.watch)();
        while gone.is_none() && begun.elapsed() < GRACE {
            std::thread::sleep(NAP);
            gone = (self.watch)();
        }
        let error = match (gone, error) {
            (Some(rank), Error::Ranks(text)) => Error::Ranks(format!("rank {rank} is gone: {text}")),
            (_, error) => error,
        };
        let handle = self.handle.swap(std::ptr::null_mut(), Ordering::AcqRel);
        if !handle.is_null() {
            // Nothing disarms it: the process is about to end, and NCCL may hold it up.
            std::mem::forget(Alarm::set(LEAVING, error.to_string()));
            self.nccl.abort(handle);
        }
        error
    }
}

impl Drop for Communicator {
    fn drop(&mut self) {
        let handle = *self.handle.get_mut();
        // After a panic the others are in the middle of something, and would be waited for.
        if !handle.is_null() && !std::thread::panicking() && self.device.bind().is_ok() {
            self.nccl.destroy(handle);
        }
    }
}

/// Ends the process with a message unless it is dropped in time.
struct Alarm {
    /// Closed by dropping it.
    _armed: mpsc::Sender<()>,
}

impl Alarm {
    fn set(after: Duration, text: String) -> Alarm {
        let (armed, disarmed) = mpsc::channel::<()>();
        std::thread::spawn(move || {
            if disarmed.recv_timeout(after) == Err(mpsc::RecvTimeoutError::Timeout) {
                say(format_args!("error: {text}; not over after {} s", after.as_secs()));
                exit(ErrorKind::Ranks.exit_code());
            }
        });
        Alarm { _armed: armed }
    }
}

/// Ends the process without what libraries do at exit: it might wait for the GPU.
pub fn exit(code: u8) -> ! {
    #[cfg(unix)]
    // SAFETY: ends the process at once.
    unsafe {
        libc::_exit(i32::from(code))
    };
    #[cfg(not(unix))]
    std::process::exit(i32::from(code))
}
