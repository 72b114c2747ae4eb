//! Events: markers in streams, with the time at which they were passed.

use std::sync::Arc;

use crate::driver::Driver;
use crate::error::{CUresult, Outcome};
use crate::ffi::{Handle, Out, entry_points};
use crate::queue::{Marker, Work};

const DISABLE_TIMING: u32 = 2;
const INTERPROCESS: u32 = 4;
const RECORD_EXTERNAL: u32 = 1;

/// An event.
pub struct Event {
    timed: bool,
    last: Recording,
}

/// What an event last stood for.
enum Recording {
    Never,
    /// A point in a stream.
    Stream(Arc<Marker>),
    /// Nodes of a capture.
    Capture {
        capture: Handle,
        nodes: Vec<usize>,
    },
}

impl Event {
    /// Makes the event stand for a point in a stream.
    pub fn recorded(&mut self, marker: Arc<Marker>) {
        self.last = Recording::Stream(marker);
    }

    fn marker(&self) -> Outcome<Option<Arc<Marker>>> {
        match &self.last {
            Recording::Never => Ok(None),
            Recording::Stream(marker) => Ok(Some(marker.clone())),
            Recording::Capture { .. } => Err(CUresult::CAPTURED_EVENT),
        }
    }
}

impl Driver {
    fn record(&mut self, event: Handle, stream: Handle, external: bool) -> Outcome {
        self.events.get(event)?;
        let stream = self.resolve(stream)?;
        let last = match self.streams.get(stream)?.capture {
            Some(_) if external => return self.capture_work(stream, Work::Record(event)).map(|_| ()),
            Some(capture) => Recording::Capture { capture, nodes: self.capture_tail(stream)? },
            None => Recording::Stream(self.mark_event(stream)?),
        };
        self.events.get_mut(event)?.last = last;
        Ok(())
    }

    /// Makes what comes next on a stream, or in its capture, wait for the event's last recording.
    pub fn wait_event(&mut self, stream: Handle, event: Handle) -> Outcome {
        match &self.events.get(event)?.last {
            Recording::Capture { capture, nodes } => {
                let (capture, nodes) = (*capture, nodes.clone());
                self.capture_wait(stream, capture, &nodes)
            }
            Recording::Stream(marker) => {
                let marker = marker.clone();
                if let Some(capture) = self.streams.get(stream)?.capture {
                    self.invalidate(capture);
                    return Err(CUresult::STREAM_CAPTURE_ISOLATION);
                }
                self.wait_for(stream, marker)
            }
            Recording::Never => Ok(()),
        }
    }

    /// Lets one piece of work run that a question after a marker or a stream may be about.
    pub fn advance(&mut self, stream: Handle) -> Outcome {
        if !self.step(stream)? {
            // The stream waits for another: let everything move on by one piece.
            for other in self.streams.handles() {
                self.step(other)?;
            }
        }
        Ok(())
    }
}

fn elapsed(driver: &mut Driver, milliseconds: Out<f32>, start: Handle, end: Handle) -> Outcome {
    let mut times = [None; 2];
    for (time, event) in times.iter_mut().zip([start, end]) {
        let event = driver.events.get(event)?;
        if !event.timed {
            return Err(CUresult::INVALID_HANDLE);
        }
        let marker = event.marker()?.ok_or(CUresult::INVALID_HANDLE)?;
        *time = Some(marker.passed().ok_or(CUresult::NOT_READY)?);
    }
    let [Some(start), Some(end)] = times else { return Err(CUresult::UNKNOWN) };
    let forth = end.saturating_duration_since(start).as_secs_f32();
    let back = start.saturating_duration_since(end).as_secs_f32();
    milliseconds.set((forth - back) * 1e3)
}

entry_points! {
    /// Makes an event.
    healthy fn cuEventCreate(event: Out<Handle>, flags: u32) |call, driver| {
        call.note(format_args!("flags={flags}"));
        if flags >= 2 * INTERPROCESS || event.is_null() || (flags & INTERPROCESS != 0 && flags & DISABLE_TIMING == 0) {
            return Err(CUresult::INVALID_VALUE);
        }
        if flags & INTERPROCESS != 0 {
            return Err(call.refuse(CUresult::NOT_SUPPORTED, format_args!("events between processes are not supported")));
        }
        event.set(driver.events.add(Event { timed: flags & DISABLE_TIMING == 0, last: Recording::Never }))
    }

    /// Forgets an event; waits that it is part of stay.
    healthy fn cuEventDestroy_v2(event: Handle) |call, driver| {
        call.note(format_args!("event={event:#x}"));
        driver.events.remove(event).map(|_| ())
    }

    /// Makes the event stand for all that is queued on the stream.
    healthy fn cuEventRecord(event: Handle, stream: Handle) |call, driver| {
        call.note(format_args!("event={event:#x} stream={stream:#x}"));
        driver.record(event, stream, false)
    }

    /// As `cuEventRecord`; an external record becomes a node of the graph that is captured.
    healthy fn cuEventRecordWithFlags(event: Handle, stream: Handle, flags: u32) |call, driver| {
        call.note(format_args!("event={event:#x} stream={stream:#x} flags={flags}"));
        if flags > RECORD_EXTERNAL {
            return Err(CUresult::INVALID_VALUE);
        }
        driver.record(event, stream, flags == RECORD_EXTERNAL)
    }

    /// Whether the event has been passed. Each question lets one piece of work run, so that asking in a loop
    /// ends.
    healthy fn cuEventQuery(event: Handle) |call, driver| {
        call.note(format_args!("event={event:#x}"));
        match driver.events.get(event)?.marker()? {
            Some(marker) if marker.passed().is_none() => {
                driver.advance(marker.stream)?;
                Err(CUresult::NOT_READY)
            }
            _ => Ok(()),
        }
    }

    /// Runs what the event stands for.
    healthy fn cuEventSynchronize(event: Handle) |call, driver| {
        call.note(format_args!("event={event:#x}"));
        match driver.events.get(event)?.marker()? {
            Some(marker) => driver.wait_until(&marker),
            None => Ok(()),
        }
    }

    /// Time between two events: the emulator's, which says nothing about a GPU's.
    healthy fn cuEventElapsedTime(milliseconds: Out<f32>, start: Handle, end: Handle) |_, driver| {
        elapsed(driver, milliseconds, start, end)
    }

    /// Time between two events: the emulator's, which says nothing about a GPU's.
    healthy fn cuEventElapsedTime_v2(milliseconds: Out<f32>, start: Handle, end: Handle) |_, driver| {
        elapsed(driver, milliseconds, start, end)
    }
}
