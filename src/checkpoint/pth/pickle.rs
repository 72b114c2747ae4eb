//! An unpickler that executes nothing.
//!
//! Pickle is a stack language: opcodes push values, `MARK` opens a group, `REDUCE` calls a function that a
//! `GLOBAL` opcode named. Here a global resolves to one of the few inert constructors of [`Global`] or the
//! whole file is refused by the global's name; nothing is ever imported or called. Protocols 1 to 5 are
//! understood; protocol 0 writes storage references as Python expressions, which PyTorch cannot read either.
//!
//! Work and memory are bounded by the length of the input: values live in one arena, an opcode adds at most
//! one, and operations that copy are charged against the same limit.

use std::collections::HashMap;

use super::call;
use super::value::{Global, Id, Value};

/// Most values (and copied elements) that one pickle may create. A K-Net checkpoint with its optimizer
/// needs about 25 thousand.
const MAX_VALUES: usize = 4_000_000;

/// What is wrong with a pickle, and where.
#[derive(Debug)]
pub(super) struct Fault {
    /// Offset of the opcode in the pickle.
    pub offset: u64,
    pub reason: String,
}

/// A decoded pickle.
pub(super) struct Unpickled {
    pub values: Vec<Value>,
    pub root: Id,
    /// Bytes of the input up to and with `STOP`.
    pub consumed: usize,
}

impl Unpickled {
    pub fn get(&self, id: Id) -> &Value {
        &self.values[id as usize]
    }

    /// The text of a `Str`.
    pub fn str(&self, id: Id) -> Option<&str> {
        match self.get(id) {
            Value::Str(text) => Some(text),
            _ => None,
        }
    }

    /// A non-negative `Int` that fits.
    pub fn u64(&self, id: Id) -> Option<u64> {
        match self.get(id) {
            Value::Int(value) => u64::try_from(*value).ok(),
            _ => None,
        }
    }

    /// The elements of a tuple or list.
    pub fn items(&self, id: Id) -> Option<&[Id]> {
        match self.get(id) {
            Value::Tuple(items) => Some(items),
            Value::List(items) => Some(items),
            _ => None,
        }
    }

    /// The value under a string key of a dict; the last one if the key is repeated.
    pub fn lookup(&self, dict: Id, key: &str) -> Option<Id> {
        let Value::Dict(pairs) = self.get(dict) else { return None };
        pairs.iter().rev().find(|(k, _)| self.str(*k) == Some(key)).map(|&(_, value)| value)
    }
}

/// Decodes the pickle at the start of `input`; what follows its `STOP` is left alone.
pub(super) fn unpickle(input: &[u8]) -> Result<Unpickled, Fault> {
    let mut machine = Machine {
        input,
        at: 0,
        values: Vec::new(),
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
        charged: 0,
    };
    loop {
        let start = machine.at;
        match machine.step() {
            Ok(None) => {}
            Ok(Some(root)) => return Ok(Unpickled { values: machine.values, root, consumed: machine.at }),
            Err(reason) => return Err(Fault { offset: start as u64, reason }),
        }
    }
}

type Step<T = ()> = Result<T, String>;

pub(super) struct Machine<'a> {
    input: &'a [u8],
    at: usize,
    pub values: Vec<Value>,
    stack: Vec<Id>,
    /// Heights of the stack at open marks.
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
    charged: usize,
}

impl<'a> Machine<'a> {
    /// Runs one opcode; the root if it was `STOP`.
    fn step(&mut self) -> Step<Option<Id>> {
        let op = self.take(1)?[0];
        match op {
            b'.' => return self.pop().map(Some),
            0x80 => {
                let version = self.take(1)?[0];
                if version > 5 {
                    return Err(format!("pickle protocol {version} is not supported"));
                }
            }
            // FRAME: a hint for buffered readers.
            0x95 => {
                self.take(8)?;
            }
            b'(' => self.marks.push(self.stack.len()),
            b'0' => {
                // POP also closes a mark that has nothing above it.
                if self.marks.last() == Some(&self.stack.len()) {
                    self.marks.pop();
                } else {
                    self.pop()?;
                }
            }
            b'1' => {
                self.pop_mark()?;
            }
            b'2' => {
                let top = self.top()?;
                self.stack.push(top);
            }
            b'q' | b'r' | b'h' | b'j' | 0x94 => self.memo_op(op)?,
            b'N' => self.push(Value::None)?,
            0x88 => self.push(Value::Bool(true))?,
            0x89 => self.push(Value::Bool(false))?,
            b'I' | b'L' | b'J' | b'K' | b'M' | 0x8a | 0x8b => {
                let value = self.integer(op)?;
                self.push(value)?;
            }
            b'G' => {
                let value = f64::from_be_bytes(self.array()?);
                self.push(Value::Float(value))?;
            }
            b'X' | 0x8c | 0x8d | b'T' | b'U' => {
                let value = self.text(op)?;
                self.push(value)?;
            }
            b'B' | b'C' | 0x8e | 0x96 => {
                let n = match op {
                    b'B' => self.u32()? as u64,
                    b'C' => u64::from(self.take(1)?[0]),
                    _ => self.u64()?,
                };
                let bytes = self.take(n)?.into();
                self.push(Value::Bytes(bytes))?;
            }
            b')' | 0x85 | 0x86 | 0x87 | b't' | b']' | b'}' | 0x8f | 0x91 => self.build(op)?,
            b'a' | b'e' | b's' | b'u' | 0x90 => self.extend(op)?,
            b'c' => {
                let module = self.line()?;
                let name = self.line()?;
                self.global(module, name)?;
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                let (Value::Str(module), Value::Str(name)) = (self.value(module), self.value(name)) else {
                    return Err("STACK_GLOBAL without a module and a name".into());
                };
                let (module, name) = (module.clone(), name.clone());
                self.global(&module, &name)?;
            }
            // REDUCE and NEWOBJ differ only for classes with a __new__ of their own, of which none is
            // allowed.
            b'R' | 0x81 => {
                let (args, callable) = (self.pop()?, self.pop()?);
                let at = self.at as u64 - 1;
                let result = call::reduce(self, callable, args, at)?;
                self.stack.push(result);
            }
            b'b' => {
                let (state, target) = (self.pop()?, self.top()?);
                call::set_state(self, target, state)?;
            }
            b'Q' => {
                let id = self.pop()?;
                let storage = call::persistent(self, id)?;
                self.push(storage)?;
            }
            b'i' => {
                let (module, name) = (self.line()?, self.line()?);
                return Err(refusal(module, name));
            }
            b'd' | b'l' | b'p' | b'V' | b'F' | b'P' => {
                return Err("pickle protocol 0, which cannot hold tensors".into());
            }
            _ => return Err(format!("opcode 0x{op:02x} is not allowed")),
        }
        Ok(None)
    }

    fn memo_op(&mut self, op: u8) -> Step {
        let (store, index) = match op {
            b'q' | b'h' => (op == b'q', u32::from(self.take(1)?[0])),
            b'r' | b'j' => (op == b'r', self.u32()?),
            // MEMOIZE; the memo has at most as many entries as the limit on copies.
            _ => (true, self.memo.len() as u32),
        };
        if store {
            let top = self.top()?;
            self.charge(1)?;
            self.memo.insert(index, top);
        } else {
            let id = *self.memo.get(&index).ok_or_else(|| format!("memo entry {index} was never stored"))?;
            self.stack.push(id);
        }
        Ok(())
    }

    fn integer(&mut self, op: u8) -> Step<Value> {
        let long = |bytes: &[u8]| {
            if bytes.len() > 16 {
                return Value::Opaque;
            }
            // Two's complement: extend the sign.
            let fill = if bytes.last().is_some_and(|b| b & 0x80 != 0) { 0xff } else { 0 };
            let mut wide = [fill; 16];
            wide[..bytes.len()].copy_from_slice(bytes);
            Value::Int(i128::from_le_bytes(wide))
        };
        Ok(match op {
            b'J' => Value::Int(i128::from(i32::from_le_bytes(self.array()?))),
            b'K' => Value::Int(i128::from(self.take(1)?[0])),
            b'M' => Value::Int(i128::from(u16::from_le_bytes(self.array()?))),
            0x8a => {
                let n = self.take(1)?[0];
                long(self.take(u64::from(n))?)
            }
            0x8b => {
                let n = self.u32()?;
                long(self.take(u64::from(n))?)
            }
            _ => match self.line()? {
                // Protocol 1 writes booleans this way.
                "00" => Value::Bool(false),
                "01" => Value::Bool(true),
                text => Value::Int(text.trim_end_matches('L').parse().map_err(|_| "malformed integer")?),
            },
        })
    }

    fn text(&mut self, op: u8) -> Step<Value> {
        let bytes = match op {
            b'X' | b'T' => {
                let n = self.u32()?;
                self.take(u64::from(n))?
            }
            0x8d => {
                let n = self.u64()?;
                self.take(n)?
            }
            _ => {
                let n = self.take(1)?[0];
                self.take(u64::from(n))?
            }
        };
        // The byte strings of Python 2 ('T', 'U') are text too wherever checkpoints hold them.
        std::str::from_utf8(bytes).map(|s| Value::Str(s.into())).map_err(|_| "string is not UTF-8".into())
    }

    /// Tuples, lists, dicts and sets from the stack.
    fn build(&mut self, op: u8) -> Step {
        let value = match op {
            b')' => Value::Tuple(Box::default()),
            0x85..=0x87 => {
                let n = usize::from(op - 0x84);
                let base = self.stack.len().checked_sub(n).filter(|&b| b >= self.floor());
                let base = base.ok_or("stack is empty")?;
                Value::Tuple(self.stack.split_off(base).into())
            }
            b't' => Value::Tuple(self.pop_mark()?.into()),
            b']' => Value::List(Vec::new()),
            b'}' => Value::Dict(Vec::new()),
            0x8f => Value::Set(Vec::new()),
            _ => Value::Set(self.pop_mark()?),
        };
        self.push(value)
    }

    /// Appends to the container below on the stack.
    fn extend(&mut self, op: u8) -> Step {
        let items = match op {
            b'a' => vec![self.pop()?],
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                vec![key, value]
            }
            _ => self.pop_mark()?,
        };
        let target = self.top()? as usize;
        match (op, &mut self.values[target]) {
            (b'a' | b'e', Value::List(list)) => list.extend(items),
            (b's' | b'u', Value::Dict(dict)) => dict.extend(pairs(&items)?),
            (0x90, Value::Set(set)) => set.extend(items),
            _ => return Err("items are added to something that is no matching container".into()),
        }
        Ok(())
    }

    fn global(&mut self, module: &str, name: &str) -> Step {
        let global = Global::resolve(module, name).ok_or_else(|| refusal(module, name))?;
        self.push(Value::Global(global))
    }

    /// Counts `n` copied elements against the limit.
    pub fn charge(&mut self, n: usize) -> Step {
        self.charged = self.charged.saturating_add(n);
        if self.charged > MAX_VALUES {
            return Err(format!("more than {MAX_VALUES} values: refused as hostile"));
        }
        Ok(())
    }

    pub fn value(&self, id: Id) -> &Value {
        &self.values[id as usize]
    }

    /// Adds a value to the arena.
    pub fn add(&mut self, value: Value) -> Step<Id> {
        self.charge(1)?;
        self.values.push(value);
        Ok((self.values.len() - 1) as Id)
    }

    fn push(&mut self, value: Value) -> Step {
        let id = self.add(value)?;
        self.stack.push(id);
        Ok(())
    }

    /// Height of the stack below which the open mark protects values.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn top(&self) -> Step<Id> {
        match self.stack.last() {
            Some(&id) if self.stack.len() > self.floor() => Ok(id),
            _ => Err("stack is empty".into()),
        }
    }

    fn pop(&mut self) -> Step<Id> {
        let id = self.top()?;
        self.stack.pop();
        Ok(id)
    }

    fn pop_mark(&mut self) -> Step<Vec<Id>> {
        let base = self.marks.pop().ok_or("no open mark")?;
        Ok(self.stack.split_off(base))
    }

    fn take(&mut self, n: u64) -> Step<&'a [u8]> {
        let rest = &self.input[self.at..];
        if n > rest.len() as u64 {
            return Err("truncated pickle".into());
        }
        self.at += n as usize;
        Ok(&rest[..n as usize])
    }

    fn array<const N: usize>(&mut self) -> Step<[u8; N]> {
        let bytes = self.take(N as u64)?;
        Ok(std::array::from_fn(|i| bytes[i]))
    }

    fn u32(&mut self) -> Step<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Step<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// A text argument up to the newline.
    fn line(&mut self) -> Step<&'a str> {
        let rest = &self.input[self.at..];
        let end = rest.iter().position(|&b| b == b'\n').ok_or("truncated pickle")?;
        self.at += end + 1;
        std::str::from_utf8(&rest[..end]).map_err(|_| "text argument is not UTF-8".into())
    }
}

fn refusal(module: &str, name: &str) -> String {
    // Both names are the file's: keep the message printable and short.
    let shown: String = format!("{module}.{name}").escape_debug().take(200).collect();
    format!("global `{shown}` is not allowed: a checkpoint needs tensors and plain values only")
}

fn pairs(items: &[Id]) -> Step<Vec<(Id, Id)>> {
    if !items.len().is_multiple_of(2) {
        return Err("a dict key lacks its value".into());
    }
    Ok(items.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect())
}
