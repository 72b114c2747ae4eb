//! Streams' queues, and when what is queued runs: not before somebody waits for it.

use std::collections::VecDeque;
use std::sync::{Arc, OnceLock};
use std::thread::ThreadId;
use std::time::Instant;
use std::{cell::Cell, ffi::c_void};

use crate::copy::{Copy, Fill};
use crate::driver::Driver;
use crate::error::{CUresult, Outcome};
use crate::ffi::{Handle, HostPtr, host_function};
use crate::graph::Node;
use crate::launch::Launch;
use crate::log;

/// A function of the caller's that a stream runs.
pub type HostFn = extern "C" fn(*mut c_void);

/// A piece of asynchronous work, of a stream or of a graph's node.
#[derive(Clone)]
pub enum Work {
    /// A kernel.
    Kernel(Arc<Launch>),
    /// A copy between host and device, or on either.
    Copy(Copy),
    /// A memset.
    Fill(Fill),
    /// Frees an allocation.
    Free(u64),
    /// Calls the caller.
    HostFunction(HostFn, HostPtr),
    /// Runs a graph; markers of the events that its nodes record.
    Graph(Arc<Vec<Node>>, Vec<(Handle, Arc<Marker>)>),
    /// Records an event, as a graph's node.
    Record(Handle),
}

/// A point in a stream, passed or not.
pub struct Marker {
    /// The stream in which it lies.
    pub stream: Handle,
    passed: OnceLock<Instant>,
}

impl Marker {
    /// A point in `stream` that is not passed yet.
    pub fn new(stream: Handle) -> Arc<Marker> {
        Arc::new(Marker { stream, passed: OnceLock::new() })
    }

    /// When it was passed, if it was.
    pub fn passed(&self) -> Option<Instant> {
        self.passed.get().copied()
    }

    fn pass(&self) {
        self.passed.get_or_init(Instant::now);
    }
}

/// An entry of a queue.
enum Entry {
    Work(Work),
    /// Passes a marker.
    Mark(Arc<Marker>),
    /// Waits for another stream's marker.
    Wait(Arc<Marker>),
}

/// A stream.
pub struct Stream {
    queue: VecDeque<Entry>,
    /// Whether it orders against the legacy default stream.
    pub blocking: bool,
    /// Kept, without effect.
    pub priority: i32,
    /// The context that it was made in; default streams are of whatever is current.
    pub context: Option<Handle>,
    /// The capture that it takes part in.
    pub capture: Option<Handle>,
    /// Destroyed with work left: it runs still, but no handle names it.
    pub destroyed: bool,
}

thread_local! {
    /// The thread's own default stream, once it was used.
    static OWN_STREAM: Cell<Handle> = const { Cell::new(0) };
}

impl Stream {
    /// The legacy default stream, which null also names.
    pub const LEGACY: Handle = 1;
    /// Names each thread's own default stream.
    pub const PER_THREAD: Handle = 2;

    /// An empty stream.
    pub fn new(blocking: bool, priority: i32) -> Stream {
        Stream { queue: VecDeque::new(), blocking, priority, context: None, capture: None, destroyed: false }
    }

    /// Whether nothing is left to run.
    pub fn is_dry(&self) -> bool {
        self.queue.is_empty()
    }
}

impl Driver {
    /// The stream that a caller's handle names.
    pub fn resolve(&mut self, stream: Handle) -> Outcome<Handle> {
        match stream {
            0 | Stream::LEGACY => Ok(Stream::LEGACY),
            Stream::PER_THREAD => {
                if !self.streams.holds(OWN_STREAM.get()) {
                    OWN_STREAM.set(self.streams.add(Stream::new(true, 0)));
                }
                Ok(OWN_STREAM.get())
            }
            other if self.streams.get(other)?.destroyed => Err(CUresult::INVALID_HANDLE),
            other => Ok(other),
        }
    }

    /// Queues work on a stream, or records it if the stream is capturing.
    pub fn enqueue(&mut self, stream: Handle, mut work: Work) -> Outcome {
        let stream = self.resolve(stream)?;
        if self.streams.get(stream)?.capture.is_some() {
            return self.capture_work(stream, work).map(|_| ());
        }
        self.order_with_default(stream)?;
        if let Work::Graph(nodes, markers) = &mut work {
            *markers = self.mark_graph_events(stream, nodes);
        }
        self.streams.get_mut(stream)?.queue.push_back(Entry::Work(work));
        Ok(())
    }

    /// The legacy default stream and the blocking streams wait for each other.
    fn order_with_default(&mut self, stream: Handle) -> Outcome {
        if stream == Stream::LEGACY {
            self.refuse_implicit_dependency()?;
            for other in self.streams.handles() {
                if other != stream && self.streams.get(other)?.blocking {
                    self.follow(stream, other)?;
                }
            }
            Ok(())
        } else if self.streams.get(stream)?.blocking {
            self.follow(stream, Stream::LEGACY)
        } else {
            Ok(())
        }
    }

    /// Makes what comes next on `stream` wait for all that is queued on `other`.
    fn follow(&mut self, stream: Handle, other: Handle) -> Outcome {
        if !self.streams.get(other)?.is_dry() {
            let marker = self.mark(other)?;
            self.wait_for(stream, marker)?;
        }
        Ok(())
    }

    /// Queues a marker on a stream that is not capturing; on a dry stream it is passed at once.
    pub fn mark(&mut self, stream: Handle) -> Outcome<Arc<Marker>> {
        let queue = &mut self.streams.get_mut(stream)?.queue;
        if let Some(Entry::Mark(last)) = queue.back() {
            return Ok(last.clone());
        }
        let marker = Marker::new(stream);
        if queue.is_empty() {
            marker.pass();
        } else {
            queue.push_back(Entry::Mark(marker.clone()));
        }
        Ok(marker)
    }

    /// Queues a marker of its own, for an event: its time counts. It is passed when the stream is waited for,
    /// even if dry now.
    pub fn mark_event(&mut self, stream: Handle) -> Outcome<Arc<Marker>> {
        self.order_with_default(stream)?;
        let marker = Marker::new(stream);
        self.streams.get_mut(stream)?.queue.push_back(Entry::Mark(marker.clone()));
        Ok(marker)
    }

    /// Makes what comes next on a stream wait for a marker.
    pub fn wait_for(&mut self, stream: Handle, marker: Arc<Marker>) -> Outcome {
        if marker.passed().is_none() && marker.stream != stream {
            self.streams.get_mut(stream)?.queue.push_back(Entry::Wait(marker));
        }
        Ok(())
    }

    /// Runs what is queued on a stream, and what that waits for.
    pub fn synchronise(&mut self, stream: Handle) -> Outcome {
        self.run_ahead()?;
        while !self.streams.get(stream)?.is_dry() {
            let marker = self.mark(stream)?;
            self.run_until(&marker)?;
        }
        Ok(())
    }

    /// Runs everything that is queued.
    pub fn run_everything(&mut self) -> Outcome {
        self.run_ahead()?;
        for stream in self.streams.handles() {
            while self.streams.get(stream).is_ok_and(|stream| !stream.is_dry()) {
                let marker = self.mark(stream)?;
                self.run_until(&marker)?;
            }
        }
        Ok(())
    }

    /// Runs what a marker stands for.
    pub fn wait_until(&mut self, marker: &Arc<Marker>) -> Outcome {
        self.run_ahead()?;
        self.run_until(marker)
    }

    /// With a seed: runs a random, legal part of what is queued, as a device may at any time.
    fn run_ahead(&mut self) -> Outcome {
        if !self.shuffle.active() {
            return Ok(());
        }
        let busy: Vec<Handle> = self.streams.handles();
        for _ in 0..2 * busy.len() {
            let stream = busy[self.shuffle.below(busy.len())];
            let most = self.streams.get(stream).map_or(0, |stream| stream.queue.len());
            for _ in 0..self.shuffle.below(most + 1) {
                if !self.step(stream)? {
                    break;
                }
            }
        }
        Ok(())
    }

    /// Runs work until a marker is passed.
    fn run_until(&mut self, marker: &Arc<Marker>) -> Outcome {
        let mut goals = vec![marker.clone()];
        while let Some(goal) = goals.last() {
            if goal.passed().is_some() {
                goals.pop();
            } else if !self.step(goal.stream)? {
                match self.streams.get(goal.stream)?.queue.front() {
                    Some(Entry::Wait(other)) => goals.push(other.clone()),
                    // The marker's queue is gone: the context has failed or was reset.
                    _ => return Err(self.failure.unwrap_or(CUresult::INVALID_HANDLE)),
                }
            }
        }
        Ok(())
    }

    /// Runs one entry of a queue. False if there is none, or if it waits for something that has not run.
    pub fn step(&mut self, stream: Handle) -> Outcome<bool> {
        let Ok(state) = self.streams.get_mut(stream) else { return Ok(false) };
        match state.queue.front() {
            None => return Ok(false),
            Some(Entry::Wait(marker)) if marker.passed().is_none() => return Ok(false),
            Some(_) => {}
        }
        let entry = state.queue.pop_front();
        if state.destroyed && state.is_dry() {
            self.streams.remove(stream)?;
        }
        match entry {
            Some(Entry::Work(work)) => self.run(stream, &work)?,
            Some(Entry::Mark(marker)) => marker.pass(),
            Some(Entry::Wait(_)) | None => {}
        }
        Ok(true)
    }

    /// Runs a piece of work. A failure is the context's from then on, and nothing that is queued runs any
    /// more.
    fn run(&mut self, stream: Handle, work: &Work) -> Outcome {
        let outcome = match work {
            Work::Kernel(launch) => {
                log::line(format_args!("# run {launch} stream={stream:#x}"));
                self.run_kernel(launch)
            }
            Work::Copy(copy) => {
                log::line(format_args!("# run {copy} stream={stream:#x}"));
                self.run_copy(copy)
            }
            Work::Fill(fill) => {
                log::line(format_args!("# run {fill} stream={stream:#x}"));
                self.run_fill(fill)
            }
            Work::Free(address) => {
                log::line(format_args!("# run free {address:#x} stream={stream:#x}"));
                self.memory.release(*address)
            }
            Work::HostFunction(function, data) => {
                log::line(format_args!("# run host function stream={stream:#x}"));
                host_function(|| function(data.0));
                Ok(())
            }
            Work::Graph(nodes, markers) => self.run_graph(stream, nodes, markers),
            Work::Record(_) => Ok(()),
        };
        if let Err(failure) = outcome {
            self.failure.get_or_insert(failure);
            for stream in self.streams.handles() {
                self.streams.get_mut(stream)?.queue.clear();
            }
        }
        outcome
    }

    /// Runs a graph's nodes: in the order of their capture, or with a seed in a random order that their
    /// dependencies permit.
    fn run_graph(&mut self, stream: Handle, nodes: &[Node], markers: &[(Handle, Arc<Marker>)]) -> Outcome {
        let mut waiting: Vec<usize> = nodes.iter().map(|node| node.after.len()).collect();
        let mut ready: Vec<usize> = (0..nodes.len()).filter(|node| waiting[*node] == 0).collect();
        while !ready.is_empty() {
            let choice = match self.shuffle.active() {
                true => self.shuffle.below(ready.len()),
                false => (0..ready.len()).min_by_key(|choice| ready[*choice]).unwrap_or(0),
            };
            let node = ready.swap_remove(choice);
            self.run(stream, &nodes[node].work)?;
            if let Work::Record(event) = nodes[node].work {
                markers.iter().filter(|(owner, _)| *owner == event).for_each(|(_, marker)| marker.pass());
            }
            for (next, state) in nodes.iter().enumerate() {
                if state.after.contains(&node) {
                    waiting[next] -= 1;
                    if waiting[next] == 0 {
                        ready.push(next);
                    }
                }
            }
        }
        Ok(())
    }

    /// Gives each event that a graph records a new marker, to be passed when the graph runs on `stream`.
    fn mark_graph_events(&mut self, stream: Handle, nodes: &[Node]) -> Vec<(Handle, Arc<Marker>)> {
        let mut markers = Vec::new();
        for node in nodes {
            if let Work::Record(event) = node.work
                && let Ok(event_state) = self.events.get_mut(event)
            {
                let marker = Marker::new(stream);
                event_state.recorded(marker.clone());
                markers.push((event, marker));
            }
        }
        markers
    }
}

/// The calling thread, by which captures are told apart.
pub fn this_thread() -> ThreadId {
    std::thread::current().id()
}
