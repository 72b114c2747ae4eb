//! Stream capture: work becomes nodes of a graph instead of running, and what would break that is refused.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread::ThreadId;

use crate::driver::{Driver, fresh_handle};
use crate::error::{CUresult, Outcome};
use crate::ffi::{Call, Handle, Out, entry_points};
use crate::graph::{Graph, Node};
use crate::queue::{Stream, Work, this_thread};

/// Which threads' unsafe calls a capture refuses.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Global,
    ThreadLocal,
    Relaxed,
}

/// A capture in progress.
pub struct Capture {
    origin: Handle,
    thread: ThreadId,
    mode: Mode,
    nodes: Vec<Node>,
    /// The nodes that the next one of each stream follows.
    tails: BTreeMap<Handle, Vec<usize>>,
    invalid: bool,
}

impl Capture {
    /// Whether every node of other streams is followed by the origin's last ones.
    fn is_joined(&self) -> bool {
        let mut joined = vec![false; self.nodes.len()];
        let mut open: Vec<usize> = self.tails.get(&self.origin).cloned().unwrap_or_default();
        while let Some(node) = open.pop() {
            if !std::mem::replace(&mut joined[node], true) {
                open.extend(&self.nodes[node].after);
            }
        }
        self.tails.values().flatten().all(|node| joined[*node])
    }
}

impl Driver {
    /// The capture that a stream takes part in; `None` while it is not capturing.
    fn capture_of(&mut self, stream: Handle) -> Outcome<Option<(Handle, &mut Capture)>> {
        match self.streams.get(stream)?.capture {
            None => Ok(None),
            Some(capture) => Ok(Some((capture, self.captures.get_mut(capture)?))),
        }
    }

    /// Adds a node to the capture of `stream`, and gives its handle.
    pub fn capture_work(&mut self, stream: Handle, work: Work) -> Outcome<Handle> {
        let (_, capture) = self.capture_of(stream)?.ok_or(CUresult::ILLEGAL_STATE)?;
        if capture.invalid {
            return Err(CUresult::STREAM_CAPTURE_INVALIDATED);
        }
        let handle = fresh_handle();
        let after = capture.tails.insert(stream, vec![capture.nodes.len()]).unwrap_or_default();
        capture.nodes.push(Node { handle, work, after });
        Ok(handle)
    }

    /// The nodes that what comes next on a capturing stream follows.
    pub fn capture_tail(&mut self, stream: Handle) -> Outcome<Vec<usize>> {
        let (_, capture) = self.capture_of(stream)?.ok_or(CUresult::ILLEGAL_STATE)?;
        if capture.invalid {
            return Err(CUresult::STREAM_CAPTURE_INVALIDATED);
        }
        Ok(capture.tails.get(&stream).cloned().unwrap_or_default())
    }

    /// Makes what comes next on `stream` follow nodes of a capture, which the stream joins if it is in none.
    pub fn capture_wait(&mut self, stream: Handle, capture: Handle, nodes: &[usize]) -> Outcome {
        if !self.captures.holds(capture) {
            return Err(CUresult::CAPTURED_EVENT);
        }
        match self.streams.get(stream)?.capture {
            Some(own) if own != capture => {
                self.invalidate(own);
                self.invalidate(capture);
                return Err(CUresult::STREAM_CAPTURE_MERGE);
            }
            None if stream == Stream::LEGACY => return Err(CUresult::STREAM_CAPTURE_IMPLICIT),
            _ => {}
        }
        self.streams.get_mut(stream)?.capture = Some(capture);
        let tail = self.captures.get_mut(capture)?.tails.entry(stream).or_default();
        for node in nodes {
            if !tail.contains(node) {
                tail.push(*node);
            }
        }
        Ok(())
    }

    /// Makes a capture fail when it is ended.
    pub fn invalidate(&mut self, capture: Handle) {
        if let Ok(capture) = self.captures.get_mut(capture) {
            capture.invalid = true;
        }
    }

    /// Refuses to wait for a stream that records instead of running.
    pub fn refuse_if_capturing(&mut self, stream: Handle) -> Outcome {
        match self.streams.get(stream)?.capture {
            None => Ok(()),
            Some(capture) => {
                self.invalidate(capture);
                Err(CUresult::STREAM_CAPTURE_UNSUPPORTED)
            }
        }
    }

    /// Refuses what a capture cannot hold, if `stream` is capturing.
    pub fn refuse_in_capture(&mut self, call: &Call, stream: Handle, what: &str) -> Outcome {
        let stream = self.resolve(stream)?;
        self.refuse_if_capturing(stream)
            .map_err(|code| call.refuse(code, format_args!("{what} cannot be captured by this stand-in")))
    }

    /// Refuses to wait for everything while anything is captured.
    pub fn refuse_while_capturing(&mut self) -> Outcome {
        let captures = self.captures.handles();
        captures.iter().for_each(|capture| self.invalidate(*capture));
        if captures.is_empty() { Ok(()) } else { Err(CUresult::STREAM_CAPTURE_UNSUPPORTED) }
    }

    /// Refuses calls that may wait for the device (allocation, loading, synchronous copies) while this
    /// thread, or any in a global capture, is capturing.
    pub fn refuse_unsafe_while_capturing(&mut self) -> Outcome {
        let thread = this_thread();
        let mut refused = false;
        for handle in self.captures.handles() {
            let capture = self.captures.get(handle)?;
            let concerned = match capture.mode {
                Mode::Global => true,
                Mode::ThreadLocal => capture.thread == thread,
                Mode::Relaxed => false,
            };
            if concerned {
                self.invalidate(handle);
                refused = true;
            }
        }
        if refused { Err(CUresult::STREAM_CAPTURE_UNSUPPORTED) } else { Ok(()) }
    }

    /// Refuses to make the legacy default stream wait for a blocking stream that is capturing.
    pub fn refuse_implicit_dependency(&mut self) -> Outcome {
        let blocking = self.streams.values().filter(|stream| stream.blocking);
        let captures: Vec<Handle> = blocking.filter_map(|stream| stream.capture).collect();
        captures.iter().for_each(|capture| self.invalidate(*capture));
        if captures.is_empty() { Ok(()) } else { Err(CUresult::STREAM_CAPTURE_IMPLICIT) }
    }

    fn end_capture(&mut self, stream: Handle) -> Outcome<Handle> {
        let stream = self.resolve(stream)?;
        let Some((handle, capture)) = self.capture_of(stream)? else { return Err(CUresult::ILLEGAL_STATE) };
        let refusal = if capture.origin != stream {
            capture.invalid = true;
            return Err(CUresult::STREAM_CAPTURE_UNMATCHED);
        } else if capture.mode != Mode::Relaxed && capture.thread != this_thread() {
            capture.invalid = true;
            return Err(CUresult::STREAM_CAPTURE_WRONG_THREAD);
        } else if capture.invalid {
            Some(CUresult::STREAM_CAPTURE_INVALIDATED)
        } else if !capture.is_joined() {
            Some(CUresult::STREAM_CAPTURE_UNJOINED)
        } else {
            None
        };
        let capture = self.captures.remove(handle)?;
        for member in self.streams.handles() {
            let member = self.streams.get_mut(member)?;
            if member.capture == Some(handle) {
                member.capture = None;
            }
        }
        match refusal {
            Some(code) => Err(code),
            None => Ok(self.graphs.add(Graph { nodes: Arc::new(capture.nodes) })),
        }
    }

    /// 0: not capturing, 1: capturing, 2: the capture has failed.
    fn capture_status(&mut self, stream: Handle) -> Outcome<(u32, Handle)> {
        let stream = self.resolve(stream)?;
        Ok(match self.capture_of(stream)? {
            None => (0, 0),
            Some((handle, capture)) => (if capture.invalid { 2 } else { 1 }, handle),
        })
    }
}

entry_points! {
    /// Makes a stream record what it is given.
    healthy fn cuStreamBeginCapture_v2(stream: Handle, mode: u32) |call, driver| {
        call.note(format_args!("stream={stream:#x} mode={mode}"));
        let mode = *[Mode::Global, Mode::ThreadLocal, Mode::Relaxed].get(mode as usize).ok_or(CUresult::INVALID_VALUE)?;
        let stream = driver.resolve(stream)?;
        if stream == Stream::LEGACY {
            return Err(call.refuse(CUresult::STREAM_CAPTURE_UNSUPPORTED, format_args!("the default stream cannot capture")));
        }
        if driver.streams.get(stream)?.capture.is_some() {
            return Err(CUresult::ILLEGAL_STATE);
        }
        let capture = Capture {
            origin: stream,
            thread: this_thread(),
            mode,
            nodes: Vec::new(),
            tails: BTreeMap::from([(stream, Vec::new())]),
            invalid: false,
        };
        let handle = driver.captures.add(capture);
        driver.streams.get_mut(stream)?.capture = Some(handle);
        Ok(())
    }

    /// Ends the recording; null and an error if something was refused during it.
    healthy fn cuStreamEndCapture(stream: Handle, graph: Out<Handle>) |call, driver| {
        call.note(format_args!("stream={stream:#x}"));
        graph.set(0)?;
        let captured = driver.end_capture(stream)?;
        call.note(format_args!("graph={captured:#x} nodes={}", driver.graphs.get(captured)?.nodes.len()));
        graph.set(captured)
    }

    /// Whether the stream is recording.
    healthy fn cuStreamIsCapturing(stream: Handle, status: Out<u32>) |_, driver| {
        status.set(driver.capture_status(stream)?.0)
    }

    /// Whether the stream is recording, and which capture it takes part in; the graph is not shown before it
    /// is whole.
    healthy fn cuStreamGetCaptureInfo_v2(
        stream: Handle, status: Out<u32>, id: Out<u64>, graph: Out<Handle>, dependencies: Out<Handle>, count: Out<usize>,
    ) |_, driver| {
        let (value, capture) = driver.capture_status(stream)?;
        if !graph.is_null() || !dependencies.is_null() {
            return Err(CUresult::NOT_SUPPORTED);
        }
        id.offer(capture as u64);
        count.offer(0);
        status.set(value)
    }
}
