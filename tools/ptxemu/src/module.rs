//! A parsed PTX module and its instance in a device's memory.

use std::sync::Arc;

use crate::exec::Incident;
use crate::fault::{Fault, ParseError, SourceLine};
use crate::ir::{Lanes, Program};
use crate::lower;
use crate::memory::Memory;
use crate::text::ast::{Func, Init, Loc, Space, Tree, Var};

/// A kernel parameter's place in the parameter buffer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Param {
    /// The PTX name.
    pub name: String,
    /// Byte offset in the buffer.
    pub offset: u32,
    /// Size in bytes.
    pub size: u32,
    /// Alignment in bytes.
    pub align: u32,
}

/// A kernel of a module.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Its name in the PTX.
    pub name: String,
    /// Parameters in order.
    pub params: Vec<Param>,
    /// Size of the parameter buffer.
    pub param_bytes: u32,
    /// Bytes of static shared memory.
    pub static_shared: u32,
    /// `.reqntid`: the block size the kernel demands.
    pub reqntid: Option<[u32; 3]>,
    /// `.maxntid`: the largest block it permits, by product.
    pub maxntid: Option<[u32; 3]>,
    /// Bytes of local memory a thread has.
    pub local_bytes: u32,
}

/// A parsed module.
#[derive(Debug)]
pub struct Module {
    source: String,
    tree: Tree,
    entries: Vec<Entry>,
    programs: Vec<Program>,
}

impl Module {
    /// Parses PTX text and prepares every entry for execution.
    ///
    /// # Errors
    /// [`ParseError`] for malformed text and for any instruction this emulator does not know, with line and
    /// text.
    pub fn parse(ptx: &str) -> Result<Module, ParseError> {
        let tree = crate::text::parse(ptx)?;
        let (mut entries, mut programs) = (Vec::new(), Vec::new());
        for (index, func) in tree.functions.iter().enumerate().filter(|(_, f)| f.entry && !f.external) {
            let program = lower::program(&tree, index)?;
            entries.push(entry(func, &program));
            programs.push(program);
        }
        for var in &tree.vars {
            if var.external && var.space != Space::Shared {
                return Err(ParseError {
                    line: 1,
                    column: 1,
                    text: var.name.clone(),
                    message: "external variables cannot be linked".to_owned(),
                });
            }
        }
        Ok(Module { source: ptx.to_owned(), tree, entries, programs })
    }

    /// The kernels in the order of the text.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter()
    }

    /// The kernel of that name.
    pub fn entry(&self, name: &str) -> Option<&Entry> {
        self.entries.iter().find(|e| e.name == name)
    }

    pub(crate) fn entry_at(&self, number: usize) -> &Entry {
        &self.entries[number]
    }

    pub(crate) fn number(&self, name: &str) -> Option<usize> {
        self.entries.iter().position(|e| e.name == name)
    }

    pub(crate) fn program(&self, number: usize) -> &Program {
        &self.programs[number]
    }

    /// Gives an incident its place in the source.
    pub(crate) fn fault(&self, number: usize, incident: Incident, block_dims: [u32; 3]) -> Fault {
        let program = &self.programs[number];
        let mut fault = Fault::host(incident.trouble.kind, incident.trouble.message);
        fault.kernel = Some(self.entries[number].name.clone());
        fault.block = Some(incident.block);
        fault.warp = Some(incident.warp);
        fault.lane = incident.trouble.lane;
        if let Some(lane) = incident.trouble.lane {
            let [x, y, _] = block_dims;
            let t = incident.warp * 32 + lane;
            fault.thread = Some([t % x, t / x % y, t / (x * y)]);
        }
        let origin = program.origins.get(incident.pc as usize);
        let stmt = origin.and_then(|o| program.function(&self.tree.functions, o).body.get(o.stmt as usize));
        if let Some(stmt) = stmt {
            fault.ptx_line = Some(stmt.line);
            let text = self.source.get(stmt.text.0..stmt.text.1).unwrap_or_default();
            fault.instruction = Some(text.split_whitespace().collect::<Vec<_>>().join(" "));
            let mut next = stmt.loc;
            let mut places = Vec::new();
            while let Some(loc) = next.and_then(|l| self.tree.locs.get(l as usize)) {
                places.push(self.place(loc));
                // A chain that loops would be the compiler's fault; it must not hang us.
                next = loc.inlined.filter(|_| places.len() < 64);
            }
            let mut places = places.into_iter();
            if let Some(first) = places.next() {
                fault.file = Some(first.file);
                fault.line = Some(first.line);
            }
            fault.inlined_at = places.collect();
        }
        fault
    }

    fn place(&self, loc: &Loc) -> SourceLine {
        let file = self.tree.files.iter().find(|f| f.0 == loc.file).map(|f| f.1.clone());
        SourceLine { file: file.unwrap_or_else(|| format!("file {}", loc.file)), line: loc.line }
    }
}

fn entry(func: &Func, program: &Program) -> Entry {
    let mut top = 0_u32;
    let mut params = Vec::new();
    for formal in &func.params {
        let offset = top.next_multiple_of(formal.align.clamp(1, 4096));
        top = offset + formal.size;
        params.push(Param { name: formal.name.clone(), offset, size: formal.size, align: formal.align });
    }
    Entry {
        name: func.name.clone(),
        params,
        param_bytes: top,
        static_shared: program.static_shared,
        reqntid: func.reqntid,
        maxntid: func.maxntid,
        local_bytes: program.local_bytes,
    }
}

/// A module variable in device memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Global {
    /// Its name in the PTX.
    pub name: String,
    /// Device address.
    pub address: u64,
    /// Size in bytes.
    pub bytes: u64,
    /// Whether it is `.const`.
    pub constant: bool,
}

/// A module whose variables have addresses in one [`Memory`].
#[derive(Debug)]
pub struct Instance {
    module: Arc<Module>,
    globals: Vec<Global>,
    /// Constant pool of each entry.
    constants: Vec<Vec<Lanes>>,
}

impl Instance {
    /// Allocates and initialises the module's `.global` and `.const` variables in `memory`.
    ///
    /// # Errors
    /// [`crate::FaultKind::OutOfMemory`].
    pub fn new(module: Arc<Module>, memory: &Memory) -> Result<Instance, Fault> {
        let mut globals = Vec::new();
        let vars = || module.tree.vars.iter().filter(|v| matches!(v.space, Space::Global | Space::Const));
        for var in vars() {
            let address = memory.alloc(var.size, &var.name)?;
            globals.push(Global {
                name: var.name.clone(),
                address,
                bytes: var.size,
                constant: var.space == Space::Const,
            });
        }
        for (var, global) in vars().zip(&globals) {
            memory.write(global.address, &initial(var, &globals))?;
            if global.constant {
                memory.protect(global.address)?;
            }
        }
        let address = |name: &str| globals.iter().find(|g| g.name == name).map_or(0, |g| g.address);
        let constants = module.programs.iter().map(|p| lower::constants(p, address)).collect();
        Ok(Instance { module, globals, constants })
    }

    /// The module.
    pub fn module(&self) -> &Module {
        &self.module
    }

    /// The module's variables with their addresses.
    pub fn globals(&self) -> &[Global] {
        &self.globals
    }

    /// The variable of that name.
    pub fn global(&self, name: &str) -> Option<&Global> {
        self.globals.iter().find(|g| g.name == name)
    }

    /// Frees the variables.
    ///
    /// # Errors
    /// As [`Memory::free`], if `memory` is not the one the instance was made in.
    pub fn unload(self, memory: &Memory) -> Result<(), Fault> {
        self.globals.iter().try_for_each(|g| memory.free(g.address))
    }

    pub(crate) fn constants(&self, number: usize) -> &[Lanes] {
        &self.constants[number]
    }
}

/// A variable's initial bytes: zeros where nothing is given, as CUDA has it.
fn initial(var: &Var, globals: &[Global]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(var.size as usize);
    for part in &var.init {
        match part {
            Init::Bytes(value) => bytes.extend(value),
            Init::Address(name, offset) => {
                let base = globals.iter().find(|g| g.name == *name).map_or(0, |g| g.address);
                bytes.extend(base.wrapping_add_signed(*offset).to_le_bytes());
            }
        }
    }
    bytes.resize(var.size as usize, 0);
    bytes
}
