//! Syntax to executable form: [`program`] decodes an entry and every function it calls.

mod arith;
mod build;
mod cfg;
mod compare;
mod control;
mod convert;
mod definedness;
mod float;
mod layout;
mod memory;
mod registers;
mod tensor;

use crate::exec::special::{Sreg, read_special};
use crate::fault::ParseError;
use crate::ir::{Class, Const, Exec, Mem};
use crate::text::ast::{Base, Class as RegClass, Func, Operand, Reg, Stmt, Symbol, Tree, Ty};
use layout::Layout;

pub(crate) use build::{constants, program};

/// A source operand before slots are assigned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Src {
    Reg(Reg),
    /// Index into the constants.
    Const(u32),
}

/// What an instruction does to the flow of control.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Control {
    Next,
    /// Jumps to a statement, unless its guard is false.
    Branch(usize),
    /// Jumps to one of several statements.
    Table(Vec<usize>),
    /// Ends the path, unless its guard is false.
    End,
    /// Calls function number `callee` of the layout.
    Call {
        callee: usize,
        arguments: Vec<(u32, u32, u32)>,
        results: Vec<(u32, u32, u32)>,
    },
}

/// The part that the predicate operands `Pre::p` play.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Predicates {
    None,
    /// 0 and 1 are written, 2 is read.
    Compare,
    /// 0 is written, 1 and 2 are read.
    Logic,
    /// 0 chooses between the first two sources.
    Select,
    /// This one is written, by something that is not lane-wise.
    Result(usize),
}

/// An instruction over virtual registers.
#[derive(Clone, Debug)]
pub(crate) struct Pre {
    pub exec: Exec,
    pub d: Option<Reg>,
    pub s: [Option<Src>; 3],
    /// Operand list: raw words, then these destinations, then these sources.
    pub raw: Vec<u32>,
    pub list_d: Vec<Reg>,
    pub list_s: Vec<Src>,
    /// Destinations are written before all sources are read.
    pub early: bool,
    pub imm: i64,
    pub y: u32,
    pub p: [u16; 3],
    pub predicates: Predicates,
    pub guard: u32,
    pub control: Control,
    pub class: Class,
    pub macs: u32,
    pub stmt: u32,
}

/// A statement's opcode with its modifiers, which the lowering functions take away one by one.
pub(crate) struct Op<'f> {
    pub name: &'f str,
    pub mods: Vec<&'f str>,
    pub types: Vec<Ty>,
    pub args: &'f [Operand],
}

impl<'f> Op<'f> {
    fn new(stmt: &'f Stmt) -> Op<'f> {
        let mut op = Op { name: &stmt.words[0], mods: Vec::new(), types: Vec::new(), args: &stmt.args };
        for word in &stmt.words[1..] {
            match Ty::parse(word) {
                Some(ty) => op.types.push(ty),
                None => op.mods.push(word),
            }
        }
        op
    }

    /// Takes a modifier if it is there.
    pub fn take(&mut self, word: &str) -> bool {
        match self.mods.iter().position(|m| *m == word) {
            Some(at) => {
                self.mods.remove(at);
                true
            }
            None => false,
        }
    }

    /// Takes the first modifier that `find` accepts.
    pub fn pick<T>(&mut self, find: impl Fn(&str) -> Option<T>) -> Option<T> {
        let (at, found) = self.mods.iter().enumerate().find_map(|(at, m)| Some((at, find(m)?)))?;
        self.mods.remove(at);
        Some(found)
    }
}

/// Result of a lowering step; the message gets its position from the statement.
pub(crate) type Lowered<T> = Result<T, String>;

/// The state of lowering one function.
pub(crate) struct Lower<'t> {
    pub tree: &'t Tree,
    pub func: &'t Func,
    pub layout: &'t Layout,
    /// This function's number in the layout.
    pub number: usize,
    /// Register classes, with temporaries.
    pub regs: Vec<RegClass>,
    /// Predicate number of each predicate register, from 1.
    pub predicates: Vec<u16>,
    pub constants: &'t mut Vec<Const>,
    pub mems: &'t mut Vec<Mem>,
    pub plans: &'t mut u32,
    pub pre: Vec<Pre>,
    pub guard: u32,
    pub stmt: u32,
}

impl<'t> Lower<'t> {
    /// Lowers every statement; returns, per statement, the index of its first instruction.
    pub fn run(&mut self) -> Result<Vec<usize>, ParseError> {
        let func = self.func;
        let mut starts = Vec::with_capacity(func.body.len() + 1);
        for (index, stmt) in func.body.iter().enumerate() {
            starts.push(self.pre.len());
            self.stmt = index as u32;
            let error = |message: String| ParseError {
                line: stmt.line,
                column: stmt.column,
                text: stmt.words.join("."),
                message,
            };
            self.guard = match stmt.guard {
                Some((reg, negated)) => {
                    u32::from(self.predicate(reg).map_err(error)?) << 1 | u32::from(negated)
                }
                None => 0,
            };
            let mut op = Op::new(stmt);
            self.statement(&mut op, stmt).map_err(error)?;
            if !op.mods.is_empty() {
                return Err(error(format!("modifier `.{}` is not supported here", op.mods.join("."))));
            }
        }
        starts.push(self.pre.len());
        Ok(starts)
    }

    fn statement(&mut self, op: &mut Op<'t>, stmt: &'t Stmt) -> Lowered<()> {
        let done = self.control(op, stmt)?
            || self.memory(op)?
            || self.tensor(op)?
            || self.convert(op)?
            || self.float(op)?
            || self.arith(op)?;
        if done { Ok(()) } else { Err("instruction unknown to this emulator".to_owned()) }
    }

    /// A plain instruction with nothing filled in.
    pub fn blank(&self, exec: Exec, class: Class) -> Pre {
        Pre {
            exec,
            d: None,
            s: [None; 3],
            raw: Vec::new(),
            list_d: Vec::new(),
            list_s: Vec::new(),
            early: false,
            imm: 0,
            y: 0,
            p: [0; 3],
            predicates: Predicates::None,
            guard: self.guard,
            control: Control::Next,
            class,
            macs: 0,
            stmt: self.stmt,
        }
    }

    /// Emits `d = exec(sources, imm)`.
    pub fn emit(&mut self, exec: Exec, class: Class, d: Reg, sources: &[Src], imm: i64) {
        let mut pre = self.blank(exec, class);
        pre.d = Some(d);
        pre.imm = imm;
        for (to, from) in pre.s.iter_mut().zip(sources) {
            *to = Some(*from);
        }
        self.pre.push(pre);
    }

    /// A new register.
    pub fn temporary(&mut self, class: RegClass) -> Reg {
        self.regs.push(class);
        self.predicates.push(0);
        (self.regs.len() - 1) as Reg
    }

    /// A new predicate's number.
    pub fn new_predicate(&mut self) -> Lowered<u16> {
        let next = self.predicates.iter().copied().max().unwrap_or(0).checked_add(1);
        let number = next.ok_or("more than 65535 predicates")?;
        let reg = self.temporary(RegClass::Pred);
        self.predicates[reg as usize] = number;
        Ok(number)
    }

    /// Number of a predicate register.
    pub fn predicate(&mut self, reg: Reg) -> Lowered<u16> {
        match self.predicates[reg as usize] {
            0 => Err(format!("{} is no predicate", self.name(reg))),
            number => Ok(number),
        }
    }

    fn name(&self, reg: Reg) -> String {
        self.func.reg_names.get(reg as usize).cloned().unwrap_or_else(|| "a temporary".to_owned())
    }

    pub fn constant(&mut self, value: Const) -> Src {
        let at = self.constants.iter().position(|c| *c == value).unwrap_or_else(|| {
            self.constants.push(value);
            self.constants.len() - 1
        });
        Src::Const(at as u32)
    }

    pub fn word(&mut self, value: u32) -> Src {
        self.constant(Const::Word(value))
    }

    /// The argument at `at`.
    pub fn arg<'o>(&self, op: &Op<'o>, at: usize) -> Lowered<&'o Operand> {
        op.args
            .get(at)
            .ok_or_else(|| format!("expected at least {} operands, found {}", at + 1, op.args.len()))
    }

    /// Fails unless there are exactly `n` operands.
    pub fn arity(&self, op: &Op, n: usize) -> Lowered<()> {
        if op.args.len() == n {
            Ok(())
        } else {
            Err(format!("expected {n} operands, found {}", op.args.len()))
        }
    }

    /// Destination register of the class `ty` needs; the sink gets a temporary.
    pub fn dest(&mut self, operand: &Operand, ty: Ty) -> Lowered<Reg> {
        let class = class_for(ty);
        match operand {
            Operand::Reg(reg) if self.regs[*reg as usize] == class => Ok(*reg),
            Operand::Reg(reg) => Err(format!("{} does not fit type {ty:?}", self.name(*reg))),
            Operand::Sink => Ok(self.temporary(class)),
            _ => Err("the destination must be a register".to_owned()),
        }
    }

    /// A source of type `ty`: register, immediate, special register or address of a symbol.
    pub fn source(&mut self, operand: &Operand, ty: Ty) -> Lowered<Src> {
        let long = ty.bytes() == 8;
        match operand {
            Operand::Reg(reg) if self.regs[*reg as usize] == class_for(ty) => Ok(Src::Reg(*reg)),
            Operand::Reg(reg) if self.regs[*reg as usize] == RegClass::Long && ty.bytes() < 8 => {
                // A wider register where a narrow value is wanted: its low bits.
                let low = self.temporary(RegClass::Word);
                let exec = crate::exec::lanes::lane1::<crate::exec::int::Low>();
                self.emit(exec, Class::Internal, low, &[Src::Reg(*reg)], 0);
                Ok(Src::Reg(low))
            }
            Operand::Reg(reg) => Err(format!("{} does not fit type {ty:?}", self.name(*reg))),
            Operand::Int(value) if long => Ok(self.constant(Const::Long(*value))),
            Operand::Int(value) => Ok(self.word(*value as u32)),
            Operand::F32(bits) if ty == Ty::F64 => {
                Ok(self.constant(Const::Long(f64::from(f32::from_bits(*bits)).to_bits())))
            }
            Operand::F32(bits) if !long => Ok(self.word(*bits)),
            Operand::F64(bits) if long => Ok(self.constant(Const::Long(*bits))),
            Operand::F64(bits) => Ok(self.word((f64::from_bits(*bits) as f32).to_bits())),
            Operand::Special(name) => {
                let sreg =
                    Sreg::parse(name).ok_or_else(|| format!("special register %{name} is not supported"))?;
                let reg = self.temporary(class_for(ty));
                self.special(sreg, reg, long);
                Ok(Src::Reg(reg))
            }
            Operand::Symbol(symbol, offset) => self.symbol(symbol, *offset, long),
            _ => Err(format!("operand of another kind where a value of type {ty:?} is expected")),
        }
    }

    pub fn special(&mut self, sreg: Sreg, d: Reg, long: bool) {
        let mut pre = self.blank(read_special, Class::Move);
        pre.d = Some(d);
        pre.imm = sreg as i64;
        pre.y = u32::from(long);
        self.pre.push(pre);
    }

    /// The address of a symbol in its own space.
    pub fn symbol(&mut self, symbol: &Symbol, offset: i64, long: bool) -> Lowered<Src> {
        let at = match self.layout.place(self.tree, self.number, symbol)? {
            layout::Place::Global(name) => {
                let value = if long { Const::Global(name, offset) } else { Const::GlobalWord(name, offset) };
                return Ok(self.constant(value));
            }
            layout::Place::Shared(at) | layout::Place::Local(at) | layout::Place::Param(at) => {
                i64::from(at).wrapping_add(offset) as u64
            }
        };
        Ok(self.constant(if long { Const::Long(at) } else { Const::Word(at as u32) }))
    }

    /// The address of a memory operand: base, added offset, whether the base has 64 bits.
    pub fn address(&mut self, operand: &Operand) -> Lowered<(Src, i64, bool)> {
        match operand {
            Operand::Address(Base::Reg(reg), offset) => match self.regs[*reg as usize] {
                RegClass::Pred => Err("a predicate is no address".to_owned()),
                class => Ok((Src::Reg(*reg), *offset, class == RegClass::Long)),
            },
            Operand::Address(Base::Symbol(symbol), offset) => {
                Ok((self.symbol(symbol, *offset, true)?, 0, true))
            }
            Operand::Address(Base::Absolute, offset) => {
                Ok((self.constant(Const::Long(*offset as u64)), 0, true))
            }
            _ => Err("expected an address in brackets".to_owned()),
        }
    }

    /// A predicate operand: number and negation.
    pub fn predicate_source(&mut self, operand: &Operand) -> Lowered<(u16, bool)> {
        match operand {
            Operand::Reg(reg) => Ok((self.predicate(*reg)?, false)),
            Operand::Not(reg) => Ok((self.predicate(*reg)?, true)),
            // Number 0 is always true.
            Operand::Int(value) => Ok((0, *value == 0)),
            _ => Err("expected a predicate".to_owned()),
        }
    }

    /// A predicate destination; the sink is number 0.
    pub fn predicate_dest(&mut self, operand: &Operand) -> Lowered<u16> {
        match operand {
            Operand::Reg(reg) => self.predicate(*reg),
            Operand::Sink => Ok(0),
            _ => Err("expected a predicate".to_owned()),
        }
    }
}

/// Register class that holds a value of the type.
pub(crate) fn class_for(ty: Ty) -> RegClass {
    match ty {
        Ty::Pred => RegClass::Pred,
        _ if ty.bytes() == 8 => RegClass::Long,
        _ => RegClass::Word,
    }
}
