//! The executable form of an entry: decoded instructions over register slots, shared by all warps of a
//! launch.
//!
//! A *slot* holds one value per lane: 32 x 32 bits, 128-byte aligned; 64-bit values take two consecutive
//! slots. Slot numbers with [`CONSTANT`] set lie in the program's constant pool. Predicates are 32-bit lane
//! masks, numbered separately; number 0 is always true.

use crate::exec::Machine;
use crate::text::ast::Func;

/// One value per lane.
#[derive(Clone, Copy, Debug)]
#[repr(align(128))]
pub(crate) struct Lanes(pub [u32; 32]);

/// Bit of a slot number: the constant pool instead of the warp's registers.
pub(crate) const CONSTANT: u32 = 1 << 31;

/// No reconvergence point.
pub(crate) const NEVER: u32 = u32::MAX;

/// What the dispatch loop does after an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flow {
    /// Go on with the next one.
    Next,
    /// `Machine::pc` was set.
    Jump,
    /// The warp waits or ended; `Machine::pc` says where it resumes.
    Stop,
    /// `Machine::trouble` says why.
    Fault,
}

/// Executes one instruction for the lanes in `Machine::mask` (never empty).
///
/// # Safety
/// The instruction must come from the program the machine was built for: its slot, predicate and table
/// indices are in bounds.
pub(crate) type Exec = for<'a, 'b> unsafe fn(&'b mut Machine<'a>, &'b Ins) -> Flow;

/// A decoded instruction. The meaning of the operands is `exec`'s.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ins {
    pub exec: Exec,
    /// Destination slot.
    pub d: u32,
    /// Source slots.
    pub a: u32,
    pub b: u32,
    pub c: u32,
    pub imm: i64,
    /// Guard predicate: number * 2 + negated; 0 for none.
    pub guard: u32,
    /// Start of this instruction's operand list in [`Program::lists`].
    pub x: u32,
    /// Index into [`Program::mems`], or a jump target.
    pub y: u32,
    /// Predicate operands.
    pub p: [u16; 3],
}

/// What an instruction counts as in a [`crate::Report`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Class {
    Integer,
    Float32,
    Float16,
    Float64,
    Special,
    Convert,
    Move,
    Predicate,
    GlobalLoad,
    GlobalStore,
    SharedLoad,
    SharedStore,
    LocalMemory,
    Constant,
    Atomic,
    AsyncCopy,
    MatrixLoad,
    Mma,
    Barrier,
    Exchange,
    Control,
    /// Emulator-made; not counted.
    Internal,
}

/// Address space of a memory instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MemSpace {
    Generic,
    Global,
    Const,
    Shared,
    Local,
    Param,
}

/// Memory ordering of an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Strength {
    /// A plain access: races are looked for.
    Weak,
    /// `.volatile`, `.relaxed`: atomic, orders nothing by itself.
    Relaxed,
    Acquire,
    Release,
    /// `.acq_rel`.
    Both,
}

/// A memory instruction's shape.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mem {
    pub space: MemSpace,
    /// Bytes of one element: 1, 2, 4, 8 or 16.
    pub element: u32,
    /// Elements per lane.
    pub count: u32,
    pub strength: Strength,
    /// Sign-extend narrow loads.
    pub signed: bool,
    /// Whether the address register is 64 bits wide.
    pub long_address: bool,
    /// Bit i: register i of the list is 64 bits wide.
    pub long_regs: u32,
    /// Number of this instruction's access-pattern cache.
    pub plan: u32,
}

/// Where an instruction came from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Origin {
    /// Index into [`Program::functions`].
    pub function: u32,
    /// Statement of that function.
    pub stmt: u32,
    pub class: Class,
    /// Operations of one lane that count as arithmetic: multiply-accumulates of an `mma` warp-wide, 1 or 2
    /// for scalar FMA forms.
    pub macs: u32,
}

/// A constant of the pool.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Const {
    Word(u32),
    Long(u64),
    /// Address of a module variable, plus an offset; known once instantiated.
    Global(String, i64),
    /// The low half of such an address.
    GlobalWord(String, i64),
}

impl Const {
    pub fn slots(&self) -> u32 {
        if matches!(self, Const::Word(_) | Const::GlobalWord(..)) { 1 } else { 2 }
    }
}

/// A call's argument copies and target.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    /// First instruction of the callee.
    pub entry: u32,
    /// Copies between parameter areas, (from, to, bytes), in local memory, before the call.
    pub arguments: Vec<(u32, u32, u32)>,
    /// The same after the return.
    pub results: Vec<(u32, u32, u32)>,
}

/// An entry ready to run.
#[derive(Debug, Default)]
pub(crate) struct Program {
    pub code: Vec<Ins>,
    pub origins: Vec<Origin>,
    pub lists: Vec<u32>,
    pub mems: Vec<Mem>,
    pub calls: Vec<Call>,
    /// Jump tables of `brx.idx`.
    pub tables: Vec<Vec<u32>>,
    pub constants: Vec<Const>,
    /// Access-pattern caches needed.
    pub plans: u32,
    /// Register slots of a warp.
    pub slots: u32,
    /// Predicates of a warp.
    pub predicates: u32,
    /// Local memory of a thread in bytes: parameter areas and `.local` variables of all functions.
    pub local_bytes: u32,
    pub static_shared: u32,
    /// Alignment of dynamic shared memory, which follows the static part.
    pub dynamic_align: u32,
    /// Indices into the module's functions, the entry first.
    pub functions: Vec<usize>,
    /// Names of the registers that some path may leave unwritten, for messages.
    pub names: Vec<String>,
    /// Reconvergence point of each branch, by instruction.
    pub reconverge: Vec<u32>,
    /// Branches to themselves or earlier instructions: target, branch.
    pub back_edges: Vec<(u32, u32)>,
}

impl Program {
    /// Which instructions belong to a loop of matrix products: for each `mma`, the shortest stretch between a
    /// branch back and its target that holds it. Compilers lay the blocks of a loop out side by side.
    pub fn product_loops(&self) -> Vec<bool> {
        let mut inside = vec![false; self.code.len()];
        for (at, _) in self.origins.iter().enumerate().filter(|(_, origin)| origin.class == Class::Mma) {
            let holds = |&&(from, to): &&(u32, u32)| (from..=to).contains(&(at as u32));
            if let Some(&(from, to)) = self.back_edges.iter().filter(holds).min_by_key(|(from, to)| to - from)
            {
                inside[from as usize..=to as usize].fill(true);
            }
        }
        inside
    }

    /// The syntax function an origin refers to.
    pub fn function<'t>(&self, functions: &'t [Func], origin: &Origin) -> &'t Func {
        &functions[self.functions[origin.function as usize]]
    }
}
