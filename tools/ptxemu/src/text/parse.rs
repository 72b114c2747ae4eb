//! Module-level PTX: directives, variables, function headers, and the statements of a body.

use super::ast::{Class, Formal, Func, Init, Loc, Space, Tree, Ty, Var};
use super::instr::{number, operand, signed};
use super::lex::{Kind, Token, lex};
use super::scope::{Named, Scopes};
use crate::fault::ParseError;

/// Parses a whole module.
pub(crate) fn parse(source: &str) -> Result<Tree, ParseError> {
    let tokens = lex(source)?;
    let lines = source.lines().count() as u32;
    let end = Token {
        kind: Kind::Punct('\0'),
        text: "end of text",
        line: lines.max(1),
        column: 1,
        start: source.len(),
    };
    let mut parser = Parser { tokens, at: 0, end, tree: Tree::default(), loc: None };
    while !parser.done() {
        parser.top_level()?;
    }
    Ok(parser.tree)
}

/// Cursor over the tokens, and the tree so far.
pub(super) struct Parser<'t> {
    tokens: Vec<Token<'t>>,
    at: usize,
    end: Token<'t>,
    pub tree: Tree,
    /// The `.loc` in force.
    pub loc: Option<u32>,
}

/// Linkage and alignment words before a declaration.
#[derive(Default)]
struct Prefix {
    external: bool,
}

impl<'t> Parser<'t> {
    pub fn done(&self) -> bool {
        self.at >= self.tokens.len()
    }

    pub fn peek(&self) -> Token<'t> {
        self.peek_at(0)
    }

    pub fn peek_at(&self, ahead: usize) -> Token<'t> {
        self.tokens.get(self.at + ahead).copied().unwrap_or(self.end)
    }

    pub fn next(&mut self) -> Token<'t> {
        let token = self.peek();
        self.at += 1;
        token
    }

    /// Takes `c` if it is next.
    pub fn accept(&mut self, c: char) -> bool {
        let found = self.peek().is(c);
        self.at += usize::from(found);
        found
    }

    pub fn expect(&mut self, c: char) -> Result<Token<'t>, ParseError> {
        let token = self.next();
        if token.is(c) { Ok(token) } else { Err(token.error(format!("expected `{c}`"))) }
    }

    pub fn word(&mut self, what: &str) -> Result<Token<'t>, ParseError> {
        let token = self.next();
        if token.kind == Kind::Word { Ok(token) } else { Err(token.error(format!("expected {what}"))) }
    }

    pub fn int(&mut self) -> Result<u64, ParseError> {
        let minus = self.accept('-');
        let token = self.word("a number")?;
        let value = number(token.text).ok_or_else(|| token.error("expected a number"))?;
        Ok(if minus { value.wrapping_neg() } else { value })
    }

    fn top_level(&mut self) -> Result<(), ParseError> {
        let token = self.next();
        match token.text {
            ".version" | ".address_size" => {
                let value = self.word("a version")?;
                if token.text == ".address_size" && value.text != "64" {
                    return Err(value.error("only 64-bit addresses are supported"));
                }
            }
            ".target" => {
                self.word("a target")?;
                while self.accept(',') {
                    self.word("a target option")?;
                }
            }
            ".file" => self.file()?,
            ".section" => {
                self.word("a section name")?;
                self.skip_braces()?;
            }
            ".pragma" | ".alias" => while !self.next().is(';') && !self.done() {},
            ".visible" | ".weak" | ".common" => self.declaration(Prefix::default())?,
            ".extern" => self.declaration(Prefix { external: true })?,
            ".entry" | ".func" | ".global" | ".const" | ".shared" => {
                self.at -= 1;
                self.declaration(Prefix::default())?;
            }
            ";" => {}
            _ => return Err(token.error("expected a module-level directive")),
        }
        Ok(())
    }

    fn declaration(&mut self, prefix: Prefix) -> Result<(), ParseError> {
        let token = self.next();
        match token.text {
            ".entry" | ".func" => self.function(token.text == ".entry", prefix.external),
            ".global" | ".const" | ".shared" => {
                let space = match token.text {
                    ".global" => Space::Global,
                    ".const" => Space::Const,
                    _ => Space::Shared,
                };
                let vars = self.variables(space, prefix.external)?;
                self.tree.vars.extend(vars);
                Ok(())
            }
            _ => Err(token.error("expected .entry, .func, .global, .const or .shared")),
        }
    }

    fn file(&mut self) -> Result<(), ParseError> {
        let index = self.int()? as u32;
        let name = self.next();
        if name.kind != Kind::Text {
            return Err(name.error("expected a file name"));
        }
        self.tree.files.push((index, name.text.to_owned()));
        while self.accept(',') {
            self.int()?;
        }
        Ok(())
    }

    fn skip_braces(&mut self) -> Result<(), ParseError> {
        let open = self.expect('{')?;
        let mut depth = 1;
        while depth > 0 {
            if self.done() {
                return Err(open.error("the brace is never closed"));
            }
            let token = self.next();
            depth += i32::from(token.is('{')) - i32::from(token.is('}'));
        }
        Ok(())
    }

    /// `[.align n] .type name[dims] [= init] {, name...} ;`, the space already read.
    fn variables(&mut self, space: Space, external: bool) -> Result<Vec<Var>, ParseError> {
        let mut align = None;
        let ty = loop {
            let token = self.word("a type")?;
            match token.text {
                ".align" => align = Some(self.int()? as u32),
                ".ptr" | ".attribute" => return Err(token.error("not supported on variables")),
                text => match text.strip_prefix('.').and_then(Ty::parse) {
                    Some(ty) => break ty,
                    None => return Err(token.error("expected a type")),
                },
            }
        };
        let mut vars = Vec::new();
        loop {
            let name = self.word("a variable name")?;
            let mut count = Some(1_u64);
            while self.accept('[') {
                if self.accept(']') {
                    count = None;
                } else {
                    let dim = self.int()?;
                    count = count.and_then(|c| c.checked_mul(dim));
                    self.expect(']')?;
                }
            }
            let init = if self.accept('=') { self.initialiser(ty)? } else { Vec::new() };
            let given: u64 =
                init.iter().map(|i| if let Init::Bytes(b) = i { b.len() as u64 } else { 8 }).sum();
            let size = count.map_or(given, |c| c.saturating_mul(u64::from(ty.bytes())));
            if given > size {
                return Err(name.error("the initial value is larger than the variable"));
            }
            let align = align.unwrap_or(ty.bytes()).max(1);
            if !align.is_power_of_two() || size > 1 << 36 {
                return Err(name.error("the alignment is no power of two, or the variable is too large"));
            }
            vars.push(Var { name: name.text.to_owned(), space, align, size, external, init });
            if !self.accept(',') {
                break;
            }
        }
        self.expect(';')?;
        Ok(vars)
    }

    fn initialiser(&mut self, ty: Ty) -> Result<Vec<Init>, ParseError> {
        let mut parts = Vec::new();
        if self.accept('{') {
            while !self.accept('}') {
                parts.extend(self.initialiser(ty)?);
                if !self.accept(',') {
                    self.expect('}')?;
                    break;
                }
            }
            return Ok(parts);
        }
        let minus = self.accept('-');
        let token = self.word("an initial value")?;
        if let Some(value) = number(token.text) {
            let value = if minus { value.wrapping_neg() } else { value };
            let bits = match (token.text.get(..2), ty) {
                (Some("0d" | "0D"), Ty::F32) => u64::from((f64::from_bits(value) as f32).to_bits()),
                _ => value,
            };
            return Ok(vec![Init::Bytes(bits.to_le_bytes()[..ty.bytes().min(8) as usize].to_vec())]);
        }
        let (name, wrapped) = match token.text {
            "generic" => {
                self.expect('(')?;
                (self.word("a symbol")?, true)
            }
            _ => (token, false),
        };
        let plus = if wrapped {
            self.expect(')')?;
            signed(self)?
        } else {
            signed(self)?
        };
        Ok(vec![Init::Address(name.text.to_owned(), plus)])
    }

    fn formals(&mut self, scopes: &mut Scopes) -> Result<Vec<Formal>, ParseError> {
        let mut formals = Vec::new();
        self.expect('(')?;
        while !self.accept(')') {
            let space = self.word("a parameter")?;
            let (mut align, mut ty, mut pointer) = (None, None, false);
            while self.peek().text.starts_with('.') {
                let word = self.next();
                match &word.text[1..] {
                    "align" => {
                        let value = self.int()? as u32;
                        // `.ptr .align n` speaks of what the pointer points to.
                        align = if pointer { align } else { Some(value) };
                    }
                    "ptr" => pointer = true,
                    "global" | "const" | "shared" | "local" if pointer => {}
                    text => ty = Some(Ty::parse(text).ok_or_else(|| word.error("expected a type"))?),
                }
            }
            let ty = ty.ok_or_else(|| self.peek().error("expected a type"))?;
            let name = self.word("a parameter name")?;
            let mut size = ty.bytes();
            if self.accept('[') {
                size = size.saturating_mul(self.int()?.min(1 << 20) as u32);
                self.expect(']')?;
            }
            let reg = match space.text {
                ".reg" => {
                    let reg = scopes.new_reg(name.text, class_of(ty));
                    scopes.declare(name.text, Named::Reg(reg));
                    Some(reg)
                }
                ".param" => None,
                _ => return Err(space.error("expected .param or .reg")),
            };
            formals.push(Formal {
                name: name.text.to_owned(),
                size,
                align: align.unwrap_or(ty.bytes()).max(1),
                reg,
            });
            if !self.accept(',') {
                self.expect(')')?;
                break;
            }
        }
        Ok(formals)
    }

    fn function(&mut self, entry: bool, external: bool) -> Result<(), ParseError> {
        let line = self.peek().line;
        let mut scopes = Scopes::new(Func { entry, external, line, ..Func::default() });
        if !entry && self.peek().is('(') {
            scopes.func.returns = self.formals(&mut scopes)?;
        }
        scopes.func.name = self.word("a function name")?.text.to_owned();
        if self.peek().is('(') {
            scopes.func.params = self.formals(&mut scopes)?;
        }
        loop {
            let token = self.peek();
            match token.text {
                ";" => {
                    self.next();
                    scopes.func.external = true;
                    break;
                }
                "{" => {
                    self.next();
                    self.body(&mut scopes)?;
                    scopes.func.external = false;
                    break;
                }
                ".maxntid" | ".reqntid" => {
                    self.next();
                    let mut dims = [self.int()? as u32, 1, 1];
                    for dim in &mut dims[1..] {
                        if self.accept(',') {
                            *dim = self.int()? as u32;
                        }
                    }
                    let slot = if token.text == ".reqntid" {
                        &mut scopes.func.reqntid
                    } else {
                        &mut scopes.func.maxntid
                    };
                    *slot = Some(dims);
                }
                ".minnctapersm" | ".maxnreg" | ".maxnctapersm" | ".maxclusterrank" => {
                    self.next();
                    self.int()?;
                }
                ".noreturn" => {
                    self.next();
                }
                ".pragma" => while !self.next().is(';') && !self.done() {},
                _ => return Err(token.error("not supported on a function; expected `{` or `;`")),
            }
        }
        let func = scopes.func;
        match self.tree.functions.iter_mut().find(|f| f.name == func.name) {
            Some(declared) if declared.external => *declared = func,
            Some(_) if func.external => {}
            Some(_) => return Err(self.peek().error(format!("`{}` is defined twice", func.name))),
            None => self.tree.functions.push(func),
        }
        Ok(())
    }

    fn body(&mut self, scopes: &mut Scopes) -> Result<(), ParseError> {
        self.loc = None;
        loop {
            let token = self.peek();
            if self.done() {
                return Err(token.error("the function's body is never closed"));
            }
            match token.text {
                "{" => {
                    self.next();
                    scopes.open();
                }
                "}" => {
                    self.next();
                    if !scopes.close() {
                        return Ok(());
                    }
                }
                ";" => {
                    self.next();
                }
                ".loc" => self.line_info()?,
                ".reg" => self.registers(scopes)?,
                ".local" | ".shared" | ".param" => {
                    self.next();
                    let space = match token.text {
                        ".local" => Space::Local,
                        ".shared" => Space::Shared,
                        _ => Space::Param,
                    };
                    for var in self.variables(space, false)? {
                        scopes.declare(&var.name, Named::Var(scopes.func.vars.len()));
                        scopes.func.vars.push(var);
                    }
                }
                ".pragma" => while !self.next().is(';') && !self.done() {},
                ".file" => {
                    self.next();
                    self.file()?;
                }
                _ if token.kind == Kind::Word && self.peek_at(1).is(':') => self.label(scopes)?,
                _ => {
                    let stmt = self.statement(scopes)?;
                    scopes.func.body.push(stmt);
                }
            }
        }
    }

    /// `name:` and the tables `name: .branchtargets ...;` and `name: .callprototype ...;`.
    fn label(&mut self, scopes: &mut Scopes) -> Result<(), ParseError> {
        let name = self.next().text.to_owned();
        self.expect(':')?;
        match self.peek().text {
            ".branchtargets" => {
                self.next();
                let mut labels = Vec::new();
                loop {
                    labels.push(self.word("a label")?.text.to_owned());
                    if !self.accept(',') {
                        break;
                    }
                }
                self.expect(';')?;
                scopes.func.tables.push((scopes.current(), name, labels));
            }
            ".callprototype" | ".calltargets" => while !self.next().is(';') && !self.done() {},
            _ => scopes.func.labels.push((scopes.current(), name, scopes.func.body.len())),
        }
        Ok(())
    }

    fn line_info(&mut self) -> Result<(), ParseError> {
        self.next();
        let [file, line, column] = [self.int()? as u32, self.int()? as u32, self.int()? as u32];
        let mut inlined = None;
        while self.accept(',') {
            let word = self.word("function_name or inlined_at")?;
            if word.text == "inlined_at" {
                let site = [self.int()? as u32, self.int()? as u32, self.int()? as u32];
                let same = |l: &Loc| [l.file, l.line, l.column] == site;
                let known = self.tree.locs.iter().rposition(same);
                inlined = Some(known.unwrap_or_else(|| {
                    let [file, line, column] = site;
                    self.tree.locs.push(Loc { file, line, column, inlined: None });
                    self.tree.locs.len() - 1
                }) as u32);
            } else {
                self.word("a label")?;
                if self.accept('+') {
                    self.int()?;
                }
            }
        }
        // Line 0 means "no source": compiler-made code keeps the line before it.
        if line != 0 {
            self.tree.locs.push(Loc { file, line, column, inlined });
            self.loc = Some((self.tree.locs.len() - 1) as u32);
        }
        Ok(())
    }

    fn registers(&mut self, scopes: &mut Scopes) -> Result<(), ParseError> {
        self.next();
        let word = self.word("a register type")?;
        let ty = word.text.strip_prefix('.').and_then(Ty::parse).filter(|t| *t != Ty::B128);
        let class = class_of(ty.ok_or_else(|| word.error("no register type of this emulator"))?);
        loop {
            let name = self.word("a register name")?;
            if self.accept('<') {
                let count = self.int()? as u32;
                self.expect('>')?;
                scopes.declare_range(name.text, class, count);
            } else {
                let reg = scopes.new_reg(name.text, class);
                scopes.declare(name.text, Named::Reg(reg));
            }
            if !self.accept(',') {
                break;
            }
        }
        self.expect(';')?;
        Ok(())
    }

    fn statement(&mut self, scopes: &mut Scopes) -> Result<super::ast::Stmt, ParseError> {
        let first = self.peek();
        let mut guard = None;
        if self.accept('@') {
            let negated = self.accept('!');
            let name = self.word("a predicate")?;
            match scopes.lookup(name.text) {
                Some(Named::Reg(reg)) if scopes.func.regs[reg as usize] == Class::Pred => {
                    guard = Some((reg, negated))
                }
                _ => return Err(name.error("expected a predicate register")),
            }
        }
        let opcode = self.word("an instruction")?;
        let words = opcode.text.split('.').map(str::to_owned).collect();
        let mut args = Vec::new();
        while !self.peek().is(';') {
            args.push(operand(self, scopes)?);
            if !self.accept(',') {
                break;
            }
        }
        let end = self.peek();
        if !end.is(';') {
            return Err(end.error(format!("expected `,` or `;` in `{}`", opcode.text)));
        }
        self.next();
        Ok(super::ast::Stmt {
            words,
            guard,
            args,
            line: first.line,
            column: first.column,
            text: (first.start, end.start),
            loc: self.loc,
            scope: scopes.current(),
        })
    }
}

/// The storage class of a register of type `ty`.
pub(super) fn class_of(ty: Ty) -> Class {
    match ty {
        Ty::Pred => Class::Pred,
        _ if ty.bytes() == 8 => Class::Long,
        _ => Class::Word,
    }
}
