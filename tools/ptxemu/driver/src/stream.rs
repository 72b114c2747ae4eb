//! Stream entry points.

use std::ffi::c_void;

use crate::context;
use crate::driver::Driver;
use crate::error::{CUresult, Outcome};
use crate::ffi::{Handle, HostPtr, Out, entry_points};
use crate::queue::{HostFn, Stream, Work};

/// The greatest priority of a stream; the least is 0.
pub const GREATEST_PRIORITY: i32 = -5;

const NON_BLOCKING: u32 = 1;
const WAIT_EXTERNAL: u32 = 1;

type StreamCallback = extern "C" fn(Handle, CUresult, *mut c_void);

fn create(driver: &mut Driver, place: Out<Handle>, flags: u32, priority: i32) -> Outcome {
    if flags > NON_BLOCKING || place.is_null() {
        return Err(CUresult::INVALID_VALUE);
    }
    // A priority out of range is clamped, as the API says.
    let mut stream = Stream::new(flags & NON_BLOCKING == 0, priority.clamp(GREATEST_PRIORITY, 0));
    stream.context = Some(context::current(driver)?);
    place.set(driver.streams.add(stream))
}

entry_points! {
    /// Makes a stream.
    healthy fn cuStreamCreate(stream: Out<Handle>, flags: u32) |call, driver| {
        call.note(format_args!("flags={flags}"));
        create(driver, stream, flags, 0)
    }

    /// Makes a stream with a priority, which has no effect.
    healthy fn cuStreamCreateWithPriority(stream: Out<Handle>, flags: u32, priority: i32) |call, driver| {
        call.note(format_args!("flags={flags} priority={priority}"));
        create(driver, stream, flags, priority)
    }

    /// Takes the handle away; what is queued runs still when it is waited for.
    healthy fn cuStreamDestroy_v2(stream: Handle) |call, driver| {
        call.note(format_args!("stream={stream:#x}"));
        if stream <= Stream::PER_THREAD {
            return Err(CUresult::INVALID_HANDLE);
        }
        let stream = driver.resolve(stream)?;
        if let Some(capture) = driver.streams.get(stream)?.capture {
            driver.invalidate(capture);
        }
        if driver.streams.get(stream)?.is_dry() {
            driver.streams.remove(stream)?;
        } else {
            driver.streams.get_mut(stream)?.destroyed = true;
        }
        Ok(())
    }

    /// Whether the stream has run dry. Each question lets one piece of work run, so that asking in a loop
    /// ends.
    healthy fn cuStreamQuery(stream: Handle) |call, driver| {
        call.note(format_args!("stream={stream:#x}"));
        let stream = driver.resolve(stream)?;
        driver.refuse_if_capturing(stream)?;
        if driver.streams.get(stream)?.is_dry() {
            return Ok(());
        }
        driver.advance(stream)?;
        Err(CUresult::NOT_READY)
    }

    /// Runs what is queued on the stream, and what that waits for.
    healthy fn cuStreamSynchronize(stream: Handle) |call, driver| {
        call.note(format_args!("stream={stream:#x}"));
        let stream = driver.resolve(stream)?;
        driver.refuse_if_capturing(stream)?;
        driver.synchronise(stream)
    }

    /// Makes what comes next on the stream wait for the event's last recording.
    healthy fn cuStreamWaitEvent(stream: Handle, event: Handle, flags: u32) |call, driver| {
        call.note(format_args!("stream={stream:#x} event={event:#x}"));
        if flags == WAIT_EXTERNAL {
            return Err(call.refuse(CUresult::NOT_SUPPORTED, format_args!("external event waits are not supported")));
        }
        let stream = driver.resolve(stream)?;
        driver.wait_event(stream, event)
    }

    /// Calls the caller when the stream comes to it.
    healthy fn cuLaunchHostFunc(stream: Handle, function: Option<HostFn>, data: HostPtr) |call, driver| {
        call.note(format_args!("stream={stream:#x}"));
        driver.enqueue(stream, Work::HostFunction(function.ok_or(CUresult::INVALID_VALUE)?, data))
    }

    /// The old form of `cuLaunchHostFunc`, which no new program should use.
    healthy fn cuStreamAddCallback(
        _stream: Handle, _callback: Option<StreamCallback>, _data: HostPtr, _flags: u32,
    ) |call, _| {
        Err(call.refuse(CUresult::NOT_SUPPORTED, format_args!("use cuLaunchHostFunc")))
    }

    /// Whether the stream orders against the legacy default stream.
    healthy fn cuStreamGetFlags(stream: Handle, flags: Out<u32>) |_, driver| {
        let stream = driver.resolve(stream)?;
        flags.set(if driver.streams.get(stream)?.blocking { 0 } else { NON_BLOCKING })
    }

    /// The priority that the stream was made with.
    healthy fn cuStreamGetPriority(stream: Handle, priority: Out<i32>) |_, driver| {
        let stream = driver.resolve(stream)?;
        priority.set(driver.streams.get(stream)?.priority)
    }

    /// The context that the stream was made in; of a default stream, the current one.
    healthy fn cuStreamGetCtx(stream: Handle, context: Out<Handle>) |_, driver| {
        let stream = driver.resolve(stream)?;
        let made_in = driver.streams.get(stream)?.context;
        context.set(made_in.map_or_else(|| context::current(driver), Ok)?)
    }

    /// The stream's handle.
    healthy fn cuStreamGetId(stream: Handle, id: Out<u64>) |_, driver| {
        id.set(driver.resolve(stream)? as u64)
    }
}
