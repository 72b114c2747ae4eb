//! The syntax tree: functions with resolved registers and labels, instructions still in words.

/// An operand's or instruction's type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Ty {
    Pred,
    B8,
    B16,
    B32,
    B64,
    B128,
    U8,
    U16,
    U32,
    U64,
    S8,
    S16,
    S32,
    S64,
    F16,
    F16x2,
    Bf16,
    Bf16x2,
    Tf32,
    F32,
    F64,
    U16x2,
    S16x2,
}

impl Ty {
    /// Parses the modifier after the dot.
    pub fn parse(word: &str) -> Option<Ty> {
        Some(match word {
            "pred" => Ty::Pred,
            "b8" => Ty::B8,
            "b16" => Ty::B16,
            "b32" => Ty::B32,
            "b64" => Ty::B64,
            "b128" => Ty::B128,
            "u8" => Ty::U8,
            "u16" => Ty::U16,
            "u32" => Ty::U32,
            "u64" => Ty::U64,
            "s8" => Ty::S8,
            "s16" => Ty::S16,
            "s32" => Ty::S32,
            "s64" => Ty::S64,
            "f16" => Ty::F16,
            "f16x2" => Ty::F16x2,
            "bf16" => Ty::Bf16,
            "bf16x2" => Ty::Bf16x2,
            "tf32" => Ty::Tf32,
            "f32" => Ty::F32,
            "f64" => Ty::F64,
            "u16x2" => Ty::U16x2,
            "s16x2" => Ty::S16x2,
            _ => return None,
        })
    }

    /// Size in bytes; 0 for predicates.
    pub fn bytes(self) -> u32 {
        match self {
            Ty::Pred => 0,
            Ty::B8 | Ty::U8 | Ty::S8 => 1,
            Ty::B16 | Ty::U16 | Ty::S16 | Ty::F16 | Ty::Bf16 => 2,
            Ty::B64 | Ty::U64 | Ty::S64 | Ty::F64 => 8,
            Ty::B128 => 16,
            _ => 4,
        }
    }

    pub fn signed(self) -> bool {
        matches!(self, Ty::S8 | Ty::S16 | Ty::S32 | Ty::S64)
    }

    pub fn float(self) -> bool {
        matches!(self, Ty::F16 | Ty::Bf16 | Ty::F32 | Ty::F64 | Ty::F16x2 | Ty::Bf16x2 | Ty::Tf32)
    }
}

/// How a register is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// One bit a lane.
    Pred,
    /// One 32-bit slot; 16-bit registers live here too, zero-extended.
    Word,
    /// One 64-bit slot.
    Long,
}

/// A virtual register of a function: index into [`Func::regs`].
pub(crate) type Reg = u32;

/// A memory operand's base.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Base {
    Reg(Reg),
    Symbol(Symbol),
    Absolute,
}

/// What a name that is neither register nor label refers to.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Symbol {
    /// A variable of the function: index into [`Func::vars`].
    Local(usize),
    /// A module-scope variable, a function, or a formal parameter, by name.
    Name(String),
}

/// An operand.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Operand {
    Reg(Reg),
    /// `!p`.
    Not(Reg),
    /// `a|b`; the second may be the sink.
    Pair(Box<Operand>, Box<Operand>),
    Int(u64),
    F32(u32),
    F64(u64),
    Special(String),
    /// A name, with an added offset.
    Symbol(Symbol, i64),
    /// `[base+offset]`, and a second component for `[a, b]` forms.
    Address(Base, i64),
    Vector(Vec<Operand>),
    /// Parenthesised list of a call.
    List(Vec<Operand>),
    /// `_`.
    Sink,
}

/// A position in CUDA source, `inlined` pointing at the call that this code was inlined into.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Loc {
    pub file: u32,
    pub line: u32,
    pub column: u32,
    /// Index of the call site's own [`Loc`] in [`Tree::locs`].
    pub inlined: Option<u32>,
}

/// An instruction.
#[derive(Clone, Debug)]
pub(crate) struct Stmt {
    /// Opcode and modifiers, split at the dots.
    pub words: Vec<String>,
    /// Guard register, and whether it is negated.
    pub guard: Option<(Reg, bool)>,
    pub args: Vec<Operand>,
    pub line: u32,
    pub column: u32,
    /// Byte range of the text in the source.
    pub text: (usize, usize),
    /// Index into [`Tree::locs`].
    pub loc: Option<u32>,
    /// Scope in which labels are looked up.
    pub scope: usize,
}

/// State space of a variable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Space {
    Global,
    Const,
    Shared,
    Local,
    Param,
}

/// A piece of a variable's initial value.
#[derive(Clone, Debug)]
pub(crate) enum Init {
    Bytes(Vec<u8>),
    /// The 64-bit (generic) address of a symbol, plus an offset.
    Address(String, i64),
}

/// A variable.
#[derive(Clone, Debug)]
pub(crate) struct Var {
    pub name: String,
    pub space: Space,
    pub align: u32,
    /// Bytes; 0 for `.extern .shared x[]`.
    pub size: u64,
    pub external: bool,
    pub init: Vec<Init>,
}

/// A formal parameter.
#[derive(Clone, Debug)]
pub(crate) struct Formal {
    pub name: String,
    pub size: u32,
    pub align: u32,
    /// A `.reg` parameter instead of a `.param` one.
    pub reg: Option<Reg>,
}

/// A function or entry.
#[derive(Clone, Debug, Default)]
pub(crate) struct Func {
    pub name: String,
    pub entry: bool,
    /// Declared only.
    pub external: bool,
    pub params: Vec<Formal>,
    pub returns: Vec<Formal>,
    pub regs: Vec<Class>,
    pub reg_names: Vec<String>,
    pub vars: Vec<Var>,
    pub body: Vec<Stmt>,
    /// Labels: scope, name, index of the statement that follows.
    pub labels: Vec<(usize, String, usize)>,
    /// `.branchtargets`: scope, name, labels.
    pub tables: Vec<(usize, String, Vec<String>)>,
    /// Parent of each brace scope; scope 0 is the body's.
    pub scopes: Vec<usize>,
    pub reqntid: Option<[u32; 3]>,
    pub maxntid: Option<[u32; 3]>,
    pub line: u32,
}

impl Func {
    /// Looks a scoped name up, from `scope` outwards.
    fn scoped<T>(&self, mut scope: usize, find: impl Fn(usize) -> Option<T>) -> Option<T> {
        loop {
            if let Some(found) = find(scope) {
                return Some(found);
            }
            if scope == 0 {
                return None;
            }
            scope = self.scopes[scope];
        }
    }

    /// Statement index of a label seen from `scope`.
    pub fn label(&self, scope: usize, name: &str) -> Option<usize> {
        self.scoped(scope, |s| self.labels.iter().find(|l| l.0 == s && l.1 == name).map(|l| l.2))
    }

    /// Targets of a `.branchtargets` table seen from `scope`, as statement indices.
    pub fn table(&self, scope: usize, name: &str) -> Option<Vec<Option<usize>>> {
        let labels =
            self.scoped(scope, |s| self.tables.iter().find(|t| t.0 == s && t.1 == name).map(|t| &t.2))?;
        Some(labels.iter().map(|l| self.label(scope, l)).collect())
    }
}

/// A module.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tree {
    pub functions: Vec<Func>,
    pub vars: Vec<Var>,
    pub locs: Vec<Loc>,
    /// `.file` names by number.
    pub files: Vec<(u32, String)>,
}
