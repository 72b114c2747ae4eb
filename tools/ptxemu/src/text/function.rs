//! Function headers: parameters and performance directives.

use super::ast::{Formal, Func, Ty};
use super::parse::Parser;
use super::scope::Scopes;
use crate::fault::ParseError;

impl Parser<'_> {
    fn formals(&mut self) -> Result<Vec<Formal>, ParseError> {
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
            if space.text != ".param" {
                return Err(space.error("expected .param (register parameters are not supported)"));
            }
            formals.push(Formal {
                name: name.text.to_owned(),
                size,
                align: align.unwrap_or(ty.bytes()).max(1),
            });
            if !self.accept(',') {
                self.expect(')')?;
                break;
            }
        }
        Ok(formals)
    }

    /// A function or entry, from its return parameters on.
    pub fn function(&mut self, entry: bool, external: bool) -> Result<(), ParseError> {
        let line = self.peek().line;
        let mut scopes = Scopes::new(Func { entry, external, line, ..Func::default() });
        if !entry && self.peek().is('(') {
            scopes.func.returns = self.formals()?;
        }
        scopes.func.name = self.word("a function name")?.text.to_owned();
        if self.peek().is('(') {
            scopes.func.params = self.formals()?;
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
}
