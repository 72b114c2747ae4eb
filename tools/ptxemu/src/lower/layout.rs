//! Which functions an entry runs, and where their shared, local and parameter variables lie.
//!
//! Recursion is refused, so every function's frame has one place: behind the frames of all its callers.

use crate::fault::ParseError;
use crate::text::ast::{Base, Formal, Func, Operand, Space, Symbol, Tree};

/// Local memory a thread may have: the hardware's limit.
const MAX_LOCAL: u32 = 512 << 10;

/// Where a symbol lies, in its own space.
pub(crate) enum Place {
    /// A module variable in device memory.
    Global(String),
    Shared(u32),
    /// Local memory of a thread, which parameters of functions share.
    Local(u32),
    /// Kernel parameters.
    Param(u32),
}

/// Addresses of an entry's variables.
#[derive(Default)]
pub(crate) struct Layout {
    /// Indices into the tree's functions; the entry is number 0.
    pub functions: Vec<usize>,
    /// Calls: caller and callee by number.
    calls: Vec<(usize, usize)>,
    /// Per function: offsets of formal parameters, of returns, and of body variables.
    params: Vec<Vec<u32>>,
    returns: Vec<Vec<u32>>,
    vars: Vec<Vec<u32>>,
    /// Module-scope shared variables used, with offsets.
    shared: Vec<(String, u32)>,
    pub local_bytes: u32,
    pub static_shared: u32,
    pub dynamic_align: u32,
}

/// External functions that the emulator provides.
pub(crate) fn builtin(name: &str) -> bool {
    matches!(name, "__assertfail" | "__assert_fail" | "vprintf")
}

/// Function a call statement names: the first plain symbol that is not a list.
pub(crate) fn callee(args: &[Operand]) -> Option<&str> {
    args.iter().find_map(|a| match a {
        Operand::Symbol(Symbol::Name(name), 0) => Some(name.as_str()),
        _ => None,
    })
}

impl Layout {
    pub fn new(tree: &Tree, entry: usize) -> Result<Layout, ParseError> {
        let mut layout = Layout { functions: vec![entry], dynamic_align: 16, ..Layout::default() };
        let mut at = 0;
        while at < layout.functions.len() {
            let func = &tree.functions[layout.functions[at]];
            for stmt in func.body.iter().filter(|s| s.words[0] == "call") {
                let name = callee(&stmt.args).filter(|n| !builtin(n));
                let Some(name) = name else { continue };
                let target = tree.functions.iter().position(|f| f.name == name && !f.external);
                let target = target.ok_or_else(|| ParseError {
                    line: stmt.line,
                    column: stmt.column,
                    text: name.to_owned(),
                    message: "the function called has no body".to_owned(),
                })?;
                let number = layout.functions.iter().position(|f| *f == target).unwrap_or_else(|| {
                    layout.functions.push(target);
                    layout.functions.len() - 1
                });
                layout.calls.push((at, number));
            }
            at += 1;
        }
        let sizes = layout.frames(tree);
        let bases = layout.stack(&sizes).map_err(|number| {
            let func = &tree.functions[layout.functions[number]];
            ParseError {
                line: func.line,
                column: 1,
                text: func.name.clone(),
                message: "recursive functions are not supported".to_owned(),
            }
        })?;
        for (number, base) in bases.iter().enumerate() {
            let func = &tree.functions[layout.functions[number]];
            let shift = |offsets: &mut Vec<u32>| offsets.iter_mut().for_each(|o| *o += base);
            if !func.entry {
                shift(&mut layout.params[number]);
                shift(&mut layout.returns[number]);
            }
            for (var, offset) in func.vars.iter().zip(&mut layout.vars[number]) {
                *offset += if matches!(var.space, Space::Local | Space::Param) { *base } else { 0 };
            }
            layout.local_bytes = layout.local_bytes.max(base + sizes[number]);
        }
        if layout.local_bytes > MAX_LOCAL {
            let func = &tree.functions[entry];
            return Err(ParseError {
                line: func.line,
                column: 1,
                text: func.name.clone(),
                message: format!(
                    "{} bytes of local memory a thread; {MAX_LOCAL} are there",
                    layout.local_bytes
                ),
            });
        }
        layout.local_bytes = layout.local_bytes.next_multiple_of(16);
        layout.place_shared(tree);
        Ok(layout)
    }

    /// Lays out each function's own frame; returns the frames' sizes.
    fn frames(&mut self, tree: &Tree) -> Vec<u32> {
        let mut sizes = Vec::new();
        for &index in &self.functions {
            let func = &tree.functions[index];
            let mut top = 0_u32;
            let mut place = |size: u64, align: u32| {
                let at = top.next_multiple_of(align.clamp(1, 4096));
                top = at.saturating_add(size.min(1 << 24) as u32);
                at
            };
            let mut formals = |list: &[Formal]| -> Vec<u32> {
                list.iter().map(|f| place(u64::from(f.size), f.align)).collect()
            };
            let params = formals(&func.params);
            let returns = formals(&func.returns);
            if func.entry {
                top = 0;
            }
            let mut place = |size: u64, align: u32| {
                let at = top.next_multiple_of(align.clamp(1, 4096));
                top = at.saturating_add(size.min(1 << 24) as u32);
                at
            };
            let vars = func.vars.iter().map(|v| match v.space {
                Space::Local | Space::Param => place(v.size, v.align),
                _ => 0,
            });
            self.vars.push(vars.collect());
            self.params.push(params);
            self.returns.push(returns);
            sizes.push(top.next_multiple_of(16));
        }
        sizes
    }

    /// Places frames behind their callers'; the number of a recursive function on failure.
    pub fn stack(&self, sizes: &[u32]) -> Result<Vec<u32>, usize> {
        let mut bases = vec![0; sizes.len()];
        for round in 0..=sizes.len() {
            let mut changed = None;
            for &(caller, callee) in &self.calls {
                let base = bases[caller] + sizes[caller].max(1);
                if bases[callee] < base {
                    bases[callee] = base.next_multiple_of(16);
                    changed = Some(callee);
                }
            }
            match changed {
                None => return Ok(bases),
                Some(number) if round == sizes.len() => return Err(number),
                Some(_) => {}
            }
        }
        Ok(bases)
    }

    /// Shared variables: static ones in order of appearance, then the dynamic array.
    fn place_shared(&mut self, tree: &Tree) {
        let mut top = 0_u32;
        let mut dynamic = Vec::new();
        for (number, &index) in self.functions.iter().enumerate() {
            let func = &tree.functions[index];
            for (var, offset) in func.vars.iter().zip(&mut self.vars[number]) {
                if var.space == Space::Shared {
                    *offset = top.next_multiple_of(var.align);
                    top = offset.saturating_add(var.size.min(1 << 24) as u32);
                }
            }
            for var in tree.vars.iter().filter(|v| v.space == Space::Shared && uses(func, &v.name)) {
                if self.shared.iter().any(|s| s.0 == var.name) || dynamic.contains(&&var.name) {
                    continue;
                }
                if var.external && var.size == 0 {
                    self.dynamic_align = self.dynamic_align.max(var.align);
                    dynamic.push(&var.name);
                } else {
                    let at = top.next_multiple_of(var.align);
                    top = at.saturating_add(var.size.min(1 << 24) as u32);
                    self.shared.push((var.name.clone(), at));
                }
            }
        }
        self.static_shared = top;
        let base = top.next_multiple_of(self.dynamic_align);
        self.shared.extend(dynamic.into_iter().map(|name| (name.clone(), base)));
    }

    /// Where a symbol lies, seen from function `number`.
    pub fn place(&self, tree: &Tree, number: usize, symbol: &Symbol) -> Result<Place, String> {
        let func = &tree.functions[self.functions[number]];
        match symbol {
            Symbol::Local(var) => {
                let at = self.vars[number][*var];
                match func.vars[*var].space {
                    Space::Shared => Ok(Place::Shared(at)),
                    _ => Ok(Place::Local(at)),
                }
            }
            Symbol::Name(name) => {
                let formal = func.params.iter().zip(&self.params[number]);
                let formal = formal.chain(func.returns.iter().zip(&self.returns[number]));
                for (formal, at) in formal {
                    if formal.name == *name {
                        return Ok(if func.entry { Place::Param(*at) } else { Place::Local(*at) });
                    }
                }
                if let Some((_, at)) = self.shared.iter().find(|s| s.0 == *name) {
                    return Ok(Place::Shared(*at));
                }
                match tree.vars.iter().find(|v| v.name == *name) {
                    Some(var) if matches!(var.space, Space::Global | Space::Const) => {
                        Ok(Place::Global(name.clone()))
                    }
                    _ => Err(format!("`{name}` is not defined (addresses of functions are not supported)")),
                }
            }
        }
    }

    /// Number of a function by name.
    pub fn number(&self, tree: &Tree, name: &str) -> Option<usize> {
        self.functions.iter().position(|f| tree.functions[*f].name == name)
    }

    /// Offsets and sizes of a function's formal parameters and returns.
    pub fn formals(&self, tree: &Tree, number: usize) -> (Vec<(u32, u32)>, Vec<(u32, u32)>) {
        let func = &tree.functions[self.functions[number]];
        let pair = |formals: &[Formal], offsets: &[u32]| -> Vec<(u32, u32)> {
            formals.iter().zip(offsets).map(|(f, o)| (*o, f.size)).collect()
        };
        (pair(&func.params, &self.params[number]), pair(&func.returns, &self.returns[number]))
    }
}

/// Whether a function mentions a module variable.
fn uses(func: &Func, name: &str) -> bool {
    fn mentions(operand: &Operand, name: &str) -> bool {
        match operand {
            Operand::Symbol(Symbol::Name(n), _) | Operand::Address(Base::Symbol(Symbol::Name(n)), _) => {
                n == name
            }
            Operand::Vector(items) | Operand::List(items) => items.iter().any(|i| mentions(i, name)),
            _ => false,
        }
    }
    func.body.iter().any(|s| s.args.iter().any(|a| mentions(a, name)))
}
