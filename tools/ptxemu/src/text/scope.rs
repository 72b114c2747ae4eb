//! Names of a function body while it is parsed: registers and variables by brace scope.

use std::collections::HashMap;

use super::ast::{Class, Func, Reg, Symbol};

#[derive(Default)]
struct Frame {
    id: usize,
    /// `%r<26>`: prefix to (class, count).
    ranges: HashMap<String, (Class, u32)>,
    names: HashMap<String, Named>,
}

#[derive(Clone)]
pub(super) enum Named {
    Reg(Reg),
    Var(usize),
}

/// The scopes around the statement being parsed, and the function they add to.
pub(super) struct Scopes {
    pub func: Func,
    frames: Vec<Frame>,
}

impl Scopes {
    pub fn new(mut func: Func) -> Scopes {
        func.scopes.push(0);
        Scopes { func, frames: vec![Frame::default()] }
    }

    /// Enters a brace scope.
    pub fn open(&mut self) {
        let id = self.func.scopes.len();
        self.func.scopes.push(self.current());
        self.frames.push(Frame { id, ..Frame::default() });
    }

    /// Leaves a brace scope; `false` if it was the body itself.
    pub fn close(&mut self) -> bool {
        self.frames.pop();
        !self.frames.is_empty()
    }

    /// Number of the innermost scope.
    pub fn current(&self) -> usize {
        self.frames.last().map_or(0, |f| f.id)
    }

    pub fn declare_range(&mut self, prefix: &str, class: Class, count: u32) {
        if let Some(frame) = self.frames.last_mut() {
            frame.ranges.insert(prefix.to_owned(), (class, count));
        }
    }

    pub fn declare(&mut self, name: &str, what: Named) {
        if let Some(frame) = self.frames.last_mut() {
            frame.names.insert(name.to_owned(), what);
        }
    }

    pub fn new_reg(&mut self, name: &str, class: Class) -> Reg {
        self.func.regs.push(class);
        self.func.reg_names.push(name.to_owned());
        (self.func.regs.len() - 1) as Reg
    }

    /// The register or variable `name` means here.
    pub fn lookup(&mut self, name: &str) -> Option<Named> {
        let digits = name.len() - name.bytes().rev().take_while(u8::is_ascii_digit).count();
        let (prefix, number) = name.split_at(digits);
        let number: Option<u32> = number.parse().ok();
        for at in (0..self.frames.len()).rev() {
            if let Some(found) = self.frames[at].names.get(name) {
                return Some(found.clone());
            }
            if let (Some(number), Some(&(class, count))) = (number, self.frames[at].ranges.get(prefix))
                && number < count
            {
                let reg = self.new_reg(name, class);
                self.frames[at].names.insert(name.to_owned(), Named::Reg(reg));
                return Some(Named::Reg(reg));
            }
        }
        None
    }

    /// What a non-register name refers to.
    pub fn symbol(&mut self, name: &str) -> Symbol {
        match self.lookup(name) {
            Some(Named::Var(var)) => Symbol::Local(var),
            _ => Symbol::Name(name.to_owned()),
        }
    }
}
