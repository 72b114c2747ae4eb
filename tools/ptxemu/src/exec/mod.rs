//! The interpreter: a [`Machine`] runs the blocks of a launch one after the other.
//!
//! A warp's 32 lanes run in lock-step under an active mask. Where a branch splits them, the sides run one
//! after the other up to the branch's immediate post-dominator ([`control`]). A warp runs until it waits at a
//! barrier, ends, or has used up its time slice; then another warp of the block is taken, in ascending order
//! or, with a seed, at random.

pub(crate) mod access;
pub(crate) mod async_copy;
pub(crate) mod atomic;
pub(crate) mod barrier;
pub(crate) mod control;
pub(crate) mod cvt;
pub(crate) mod exchange;
pub(crate) mod float;
pub(crate) mod global;
pub(crate) mod int;
pub(crate) mod lanes;
pub(crate) mod matrix;
pub(crate) mod memory_ops;
pub(crate) mod mma;
pub(crate) mod mma_sum;
pub(crate) mod number;
pub(crate) mod shared;
pub(crate) mod special;

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::fault::FaultKind;
use crate::ir::{Flow, Lanes, NEVER, Program};
use crate::launch::Config;
use crate::memory::Memory;
use crate::report::Counts;
use access::PlanSet;
use async_copy::Queue;
use barrier::Barrier;
use global::Order;
use shared::Shared;

/// What all blocks of a launch share.
pub(crate) struct Env<'a> {
    pub program: &'a Program,
    pub constants: &'a [Lanes],
    pub memory: &'a Memory,
    pub config: &'a Config,
    pub grid: [u32; 3],
    pub block: [u32; 3],
    pub threads: u32,
    pub warps: u32,
    pub params: &'a [u8],
    pub shared_bytes: u32,
    pub dynamic_shared: u32,
    pub epoch: u32,
    /// Instructions the launch may still execute.
    pub budget: AtomicU64,
    /// Order between blocks made by atomics.
    pub order: Order,
}

/// A finding before it gets its source position.
#[derive(Debug)]
pub(crate) struct Trouble {
    pub kind: FaultKind,
    pub lane: Option<u32>,
    pub message: String,
}

impl Trouble {
    pub fn new(kind: FaultKind, lane: Option<u32>, message: impl Into<String>) -> Trouble {
        Trouble { kind, lane, message: message.into() }
    }
}

/// Where a fault happened.
#[derive(Debug)]
pub(crate) struct Incident {
    pub trouble: Trouble,
    pub pc: u32,
    pub warp: u32,
    pub block: [u32; 3],
}

/// A set of lanes that waits for its turn: one side of a branch, or the reconvergence after it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Side {
    pub pc: u32,
    pub reconverge: u32,
    pub mask: u32,
}

/// A function call in progress.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Frame {
    pub call: u32,
    /// The caller's next instruction, mask and reconvergence point.
    pub resume: u32,
    pub mask: u32,
    pub reconverge: u32,
    /// Lanes that made the call.
    pub callers: u32,
    /// Lanes that have returned.
    pub returned: u32,
    /// Height of the side stack at the call.
    pub base: usize,
}

/// Whether a warp can run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Ready,
    /// Waits at this barrier.
    Waiting(u8),
    Done,
}

/// A warp between its turns.
pub(crate) struct Warp {
    pub registers: Vec<Lanes>,
    pub predicates: Vec<u32>,
    pub local: Vec<Lanes>,
    pub sides: Vec<Side>,
    pub frames: Vec<Frame>,
    pub state: State,
    pub pc: u32,
    pub active: u32,
    pub reconverge: u32,
    pub exited: u32,
    /// Carry flags of the extended-precision instructions.
    pub carry: u32,
    pub copies: Queue,
}

/// One host thread's interpreter.
pub(crate) struct Machine<'a> {
    /// Base of the current warp's registers, and of the constants.
    base: [*mut Lanes; 2],
    predicates: *mut u32,
    /// Lanes that execute the current instruction.
    pub mask: u32,
    /// Lanes on the current path.
    pub active: u32,
    pub pc: u32,
    /// Where the current path meets its siblings again.
    pub reconverge: u32,
    pub exited: u32,
    pub warp: usize,
    pub env: &'a Env<'a>,
    pub block: [u32; 3],
    /// Linear block number.
    pub block_id: u64,
    pub warps: Vec<Warp>,
    pub shared: Shared,
    pub barriers: Vec<Barrier>,
    pub plans: Vec<PlanSet>,
    pub counts: Counts,
    pub trouble: Option<Trouble>,
    pub random: Random,
    /// Whether this block's memory operations so far were fenced since its last store (`membar`), and what it
    /// has acquired.
    pub acquired: Vec<u64>,
    pub fenced: bool,
    /// Somewhere for inactive lanes to load from.
    pub scratch: Lanes,
}

/// A small generator (xorshift64*), enough to shuffle with.
pub(crate) struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x2545_f491_4f6c_dd1d | 1)
    }

    pub fn below(&mut self, bound: u32) -> u32 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let high = (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) as u32;
        ((u64::from(high) * u64::from(bound.max(1))) >> 32) as u32
    }
}

impl<'a> Machine<'a> {
    pub fn new(env: &'a Env<'a>) -> Machine<'a> {
        let program = env.program;
        let warp = || Warp {
            registers: vec![Lanes([0; 32]); program.slots as usize],
            predicates: vec![0; program.predicates as usize],
            local: vec![Lanes([0; 32]); (program.local_bytes as usize * 32).div_ceil(128)],
            sides: Vec::new(),
            frames: Vec::new(),
            state: State::Ready,
            pc: 0,
            active: 0,
            reconverge: NEVER,
            exited: 0,
            carry: 0,
            copies: Queue::default(),
        };
        Machine {
            base: [std::ptr::null_mut(), env.constants.as_ptr().cast_mut()],
            predicates: std::ptr::null_mut(),
            mask: 0,
            active: 0,
            pc: 0,
            reconverge: NEVER,
            exited: 0,
            warp: 0,
            env,
            block: [0; 3],
            block_id: 0,
            warps: (0..env.warps).map(|_| warp()).collect(),
            shared: Shared::new(env.shared_bytes, env.warps as usize),
            barriers: vec![Barrier::default(); 16],
            plans: (0..program.plans).map(|_| PlanSet::default()).collect(),
            counts: Counts::new(program.code.len()),
            trouble: None,
            random: Random::new(env.config.seed),
            acquired: Vec::new(),
            fenced: false,
            scratch: Lanes([0; 32]),
        }
    }

    /// Runs one block to its end.
    pub fn run_block(&mut self, id: u64) -> Result<(), Incident> {
        let [x, y, _] = self.env.grid.map(u64::from);
        self.block = [(id % x) as u32, (id / x % y) as u32, (id / (x * y)) as u32];
        self.block_id = id;
        self.random = Random::new(self.env.config.seed ^ id.wrapping_mul(0xd134_2543_de82_ef95));
        self.shared.reset();
        self.barriers.fill(Barrier::default());
        self.acquired.clear();
        self.fenced = false;
        for (w, warp) in self.warps.iter_mut().enumerate() {
            let lanes = (self.env.threads - 32 * w as u32).min(32);
            let active = if lanes == 32 { u32::MAX } else { (1 << lanes) - 1 };
            warp.sides.clear();
            warp.frames.clear();
            warp.copies.clear();
            warp.predicates.fill(0);
            warp.predicates[0] = u32::MAX;
            (warp.state, warp.pc, warp.reconverge) = (State::Ready, 0, NEVER);
            (warp.active, warp.exited, warp.carry) = (active, !active, 0);
        }
        self.counts.blocks += 1;
        let mut last = self.warps.len() - 1;
        while let Some(next) = self.choose(last) {
            last = next;
            self.load(next);
            let flow = self.run_warp();
            if flow == Flow::Fault {
                return Err(self.incident());
            }
            self.save();
        }
        if let Some(stuck) = self.warps.iter().position(|w| w.state != State::Done) {
            self.load(stuck);
            self.trouble = Some(self.deadlock());
            return Err(self.incident());
        }
        Ok(())
    }

    fn incident(&mut self) -> Incident {
        let unknown = || Trouble::new(FaultKind::Unsupported, None, "stopped for no stated reason");
        let trouble = self.trouble.take().unwrap_or_else(unknown);
        Incident { trouble, pc: self.pc, warp: self.warp as u32, block: self.block }
    }

    /// The warp to run next: the one after `last` that is ready, or a random one with a seed.
    fn choose(&mut self, last: usize) -> Option<usize> {
        let n = self.warps.len();
        let start = match self.env.config.seed {
            0 => last + 1,
            _ => self.random.below(n as u32) as usize,
        };
        (0..n).map(|i| (start + i) % n).find(|w| self.warps[*w].state == State::Ready)
    }

    fn load(&mut self, w: usize) {
        let warp = &mut self.warps[w];
        self.base[0] = warp.registers.as_mut_ptr();
        self.predicates = warp.predicates.as_mut_ptr();
        (self.pc, self.active, self.reconverge, self.exited) =
            (warp.pc, warp.active, warp.reconverge, warp.exited);
        self.warp = w;
    }

    fn save(&mut self) {
        let warp = &mut self.warps[self.warp];
        (warp.pc, warp.active, warp.reconverge, warp.exited) =
            (self.pc, self.active, self.reconverge, self.exited);
    }

    fn run_warp(&mut self) -> Flow {
        let slice = match self.env.config.seed {
            0 => 1 << 16,
            _ => 100 + self.random.below(4000),
        };
        let code = self.env.program.code.as_ptr();
        let mut left = slice;
        let flow = loop {
            if left == 0 {
                break Flow::Next;
            }
            left -= 1;
            // SAFETY: `pc` always points at an instruction: control flow targets are instructions of this
            // program, and the last instruction of every function ends the path (checked when the program was
            // built).
            let ins = unsafe { &*code.add(self.pc as usize) };
            self.counts.tick(self.pc);
            let mask = if ins.guard == 0 {
                self.active
            } else {
                // SAFETY: the guard is one of the program's predicates.
                let p = unsafe { self.predicate((ins.guard >> 1) as u16) };
                self.active & if ins.guard & 1 != 0 { !p } else { p }
            };
            if mask == 0 {
                self.pc += 1;
                continue;
            }
            self.mask = mask;
            // SAFETY: the instruction belongs to this machine's program, and the mask is not empty.
            match unsafe { (ins.exec)(self, ins) } {
                Flow::Next => self.pc += 1,
                Flow::Jump => {}
                stop => break stop,
            }
        };
        if flow != Flow::Fault && self.env.config.max_instructions.is_some() {
            let used = u64::from(slice - left);
            let before = self.env.budget.fetch_sub(used, Relaxed);
            if before < used {
                self.env.budget.store(0, Relaxed);
                let message = "the launch's instruction limit is used up: an endless loop?";
                return self.fail(FaultKind::InstructionLimit, None, message);
            }
        }
        flow
    }

    /// Records what went wrong.
    #[cold]
    pub fn fail(&mut self, kind: FaultKind, lane: Option<u32>, message: impl Into<String>) -> Flow {
        self.trouble = Some(Trouble::new(kind, lane, message));
        Flow::Fault
    }

    /// As [`Machine::fail`], for checks that return the trouble.
    #[cold]
    pub fn stop(&mut self, trouble: Trouble) -> Flow {
        self.trouble = Some(trouble);
        Flow::Fault
    }

    /// A slot as 32 values of a 4- or 8-byte type.
    ///
    /// # Safety
    /// `slot` must be a slot of the machine's program wide enough for `T`; constants must not be written.
    #[inline(always)]
    pub unsafe fn slot<T>(&self, slot: u32) -> *mut [T; 32] {
        const { assert!(size_of::<T>() == 4 || size_of::<T>() == 8) };
        // SAFETY: by the caller's promise.
        unsafe { self.base[(slot >> 31) as usize].add((slot & 0x7fff_ffff) as usize).cast() }
    }

    /// # Safety
    /// `number` must be a predicate of the machine's program.
    #[inline(always)]
    pub unsafe fn predicate(&self, number: u16) -> u32 {
        // SAFETY: by the caller's promise.
        unsafe { *self.predicates.add(number as usize) }
    }

    /// Sets a predicate in the executing lanes; number 0 discards the value.
    ///
    /// # Safety
    /// `number` must be a predicate of the machine's program.
    #[inline(always)]
    pub unsafe fn set_predicate(&mut self, number: u16, bits: u32) {
        if number != 0 {
            // SAFETY: by the caller's promise.
            let p = unsafe { &mut *self.predicates.add(number as usize) };
            *p = *p & !self.mask | bits & self.mask;
        }
    }

    /// `threadIdx` of a lane of a warp.
    pub fn thread(&self, warp: u32, lane: u32) -> [u32; 3] {
        let [x, y, _] = self.env.block;
        let t = warp * 32 + lane;
        [t % x, t / x % y, t / (x * y)]
    }

    pub fn current(&mut self) -> &mut Warp {
        &mut self.warps[self.warp]
    }
}
