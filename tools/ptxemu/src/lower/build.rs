//! Puts an entry's functions together: slots, predicates, branch targets, reconvergence points.

use super::cfg::Graph;
use super::definedness::instrument;
use super::layout::Layout;
use super::registers::{Slots, assign};
use super::{Control, Lower, Pre, Src};
use crate::exec::control::{exit, join, ret};
use crate::fault::ParseError;
use crate::ir::{CONSTANT, Call, Class, Const, Ins, NEVER, Origin, Program};
use crate::text::ast::{Class as RegClass, Tree};

/// One function, decoded.
struct Piece {
    pre: Vec<Pre>,
    starts: Vec<usize>,
    graph: Graph,
    slots: Slots,
    predicates: u32,
}

/// Decodes entry number `entry` of the tree.
pub(crate) fn program(tree: &Tree, entry: usize) -> Result<Program, ParseError> {
    let layout = Layout::new(tree, entry)?;
    let mut program = Program {
        local_bytes: layout.local_bytes,
        static_shared: layout.static_shared,
        dynamic_align: layout.dynamic_align,
        functions: layout.functions.clone(),
        ..Program::default()
    };
    let mut pieces = Vec::new();
    for number in 0..layout.functions.len() {
        pieces.push(decode(tree, &layout, number, &mut program)?);
    }
    // Frames of registers and predicates lie behind the callers', as local memory does. Recursion was refused
    // before.
    let of = |f: &dyn Fn(&Piece) -> u32| {
        let sizes: Vec<u32> = pieces.iter().map(f).collect();
        let bases = layout.stack(&sizes).unwrap_or_default();
        let top = bases.iter().zip(&sizes).map(|(b, s)| b + s).max().unwrap_or(0);
        (bases, top)
    };
    let (slot_bases, slots) = of(&|p| p.slots.count);
    let (predicate_bases, predicates) = of(&|p| p.predicates);
    // Predicate 0 is the one that is always true; the functions' own start at 1.
    (program.slots, program.predicates) = (slots, predicates + 1);
    let mut constant_slots = Vec::new();
    let mut top = 0;
    for constant in &program.constants {
        constant_slots.push(CONSTANT | top);
        top += constant.slots();
    }
    let mut entries = Vec::new();
    let mut fixes = Vec::new();
    for (number, piece) in pieces.iter().enumerate() {
        let emit = Emit {
            piece,
            slot_base: slot_bases[number],
            predicate_base: predicate_bases[number] as u16,
            constant_slots: &constant_slots,
            number: number as u32,
        };
        entries.push(program.code.len() as u32);
        emit.run(&mut program, &mut fixes);
    }
    for (at, callee) in fixes {
        program.calls[at].entry = entries[callee];
    }
    Ok(program)
}

fn decode(tree: &Tree, layout: &Layout, number: usize, program: &mut Program) -> Result<Piece, ParseError> {
    let func = &tree.functions[layout.functions[number]];
    let mut next = 0_u32;
    let mut numbers = Vec::new();
    for class in &func.regs {
        next += u32::from(*class == RegClass::Pred);
        numbers.push(if *class == RegClass::Pred { next.min(u32::from(u16::MAX)) as u16 } else { 0 });
    }
    let mut lower = Lower {
        tree,
        func,
        layout,
        number,
        regs: func.regs.clone(),
        predicates: numbers,
        constants: &mut program.constants,
        mems: &mut program.mems,
        plans: &mut program.plans,
        pre: Vec::new(),
        guard: 0,
        stmt: 0,
    };
    let mut starts = lower.run()?;
    // Falling off the end returns.
    lower.guard = 0;
    lower.stmt = (func.body.len() as u32).saturating_sub(1);
    let mut end = lower.blank(if func.entry { exit } else { ret }, Class::Internal);
    end.control = Control::End;
    lower.pre.push(end);
    let mut graph = Graph::new(&lower.pre, &starts);
    if func.entry {
        starts = instrument(&mut lower, starts, &graph, &mut program.names)
            .map_err(|message| ParseError { line: func.line, column: 1, text: func.name.clone(), message })?;
        graph = Graph::new(&lower.pre, &starts);
    }
    let slots = assign(&lower.pre, &graph, &lower.regs);
    let predicates = lower.predicates.iter().copied().max().unwrap_or(0);
    Ok(Piece { pre: lower.pre, starts, graph, slots, predicates: u32::from(predicates) })
}

/// Emits one function's code.
struct Emit<'p> {
    piece: &'p Piece,
    slot_base: u32,
    predicate_base: u16,
    constant_slots: &'p [u32],
    number: u32,
}

impl Emit<'_> {
    fn slot(&self, src: Src) -> u32 {
        match src {
            Src::Reg(r) => self.slot_base + self.piece.slots.slot[r as usize],
            Src::Const(c) => self.constant_slots[c as usize],
        }
    }

    fn predicate(&self, p: u16) -> u16 {
        if p == 0 { 0 } else { p + self.predicate_base }
    }

    fn run(&self, program: &mut Program, fixes: &mut Vec<(usize, usize)>) {
        let (pre, graph) = (&self.piece.pre, &self.piece.graph);
        let mut meets = vec![false; graph.blocks.len()];
        for (b, block) in graph.blocks.iter().enumerate() {
            if block.successors.len() > 1
                && let Some(post) = graph.post[b]
            {
                meets[post] = true;
            }
        }
        // Where each block will start.
        let mut at = program.code.len() as u32;
        let mut entry = Vec::new();
        for (b, block) in graph.blocks.iter().enumerate() {
            entry.push(at);
            at += (block.end - block.start) as u32 + u32::from(meets[b]);
        }
        let target = |stmt: usize| graph.block_at[self.piece.starts[stmt]].map_or(0, |b| entry[b]);
        for (b, block) in graph.blocks.iter().enumerate() {
            if meets[b] {
                let ins = Ins { exec: join, d: 0, a: 0, b: 0, c: 0, imm: 0, guard: 0, x: 0, y: 0, p: [0; 3] };
                let origin = Origin {
                    function: self.number,
                    stmt: pre[block.start].stmt,
                    class: Class::Internal,
                    macs: 0,
                };
                program.code.push(ins);
                program.origins.push(origin);
                program.reconverge.push(NEVER);
            }
            for ins in &pre[block.start..block.end] {
                let mut y = ins.y;
                let mut reconverge = NEVER;
                match &ins.control {
                    Control::Branch(stmt) => {
                        y = target(*stmt);
                        let here = program.code.len() as u32;
                        if y <= here {
                            program.back_edges.push((y, here));
                        }
                        reconverge = graph.post[b].map_or(NEVER, |p| entry[p]);
                    }
                    Control::Table(stmts) => {
                        y = program.tables.len() as u32;
                        program.tables.push(stmts.iter().map(|s| target(*s)).collect());
                        reconverge = graph.post[b].map_or(NEVER, |p| entry[p]);
                    }
                    Control::Call { callee, arguments, results } => {
                        y = program.calls.len() as u32;
                        fixes.push((program.calls.len(), *callee));
                        program.calls.push(Call {
                            entry: 0,
                            arguments: arguments.clone(),
                            results: results.clone(),
                        });
                    }
                    Control::Next | Control::End => {}
                }
                let x = program.lists.len() as u32;
                program.lists.extend(&ins.raw);
                program.lists.extend(ins.list_d.iter().map(|r| self.slot(Src::Reg(*r))));
                program.lists.extend(ins.list_s.iter().map(|s| self.slot(*s)));
                let source = |s: Option<Src>| s.map_or(0, |s| self.slot(s));
                program.code.push(Ins {
                    exec: ins.exec,
                    d: ins.d.map_or(0, |r| self.slot(Src::Reg(r))),
                    a: source(ins.s[0]),
                    b: source(ins.s[1]),
                    c: source(ins.s[2]),
                    imm: ins.imm,
                    guard: u32::from(self.predicate((ins.guard >> 1) as u16)) << 1 | ins.guard & 1,
                    x,
                    y,
                    p: ins.p.map(|p| self.predicate(p)),
                });
                program.origins.push(Origin {
                    function: self.number,
                    stmt: ins.stmt,
                    class: ins.class,
                    macs: ins.macs,
                });
                program.reconverge.push(reconverge);
            }
        }
    }
}

/// Fills the constant pool, given the addresses of module variables.
pub(crate) fn constants(program: &Program, address: impl Fn(&str) -> u64) -> Vec<crate::ir::Lanes> {
    let mut pool = Vec::new();
    for constant in &program.constants {
        let long = |value: u64| {
            let mut lanes = [crate::ir::Lanes([0; 32]); 2];
            for l in 0..32 {
                lanes[l / 16].0[l % 16 * 2] = value as u32;
                lanes[l / 16].0[l % 16 * 2 + 1] = (value >> 32) as u32;
            }
            lanes
        };
        match constant {
            Const::Word(value) => pool.push(crate::ir::Lanes([*value; 32])),
            Const::Long(value) => pool.extend(long(*value)),
            Const::Global(name, offset) => pool.extend(long(address(name).wrapping_add_signed(*offset))),
            Const::GlobalWord(name, offset) => {
                pool.push(crate::ir::Lanes([address(name).wrapping_add_signed(*offset) as u32; 32]));
            }
        }
    }
    if pool.is_empty() {
        pool.push(crate::ir::Lanes([0; 32]));
    }
    pool
}
