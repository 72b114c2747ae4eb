//! Runs PTX on the CPU, with every access checked.

mod fault;
mod launch;
mod memory;
mod module;
mod report;

pub use fault::{Fault, FaultKind, ParseError, SourceLine};
pub use launch::{Config, Launch, launch};
pub use memory::{Allocation, BASE, Memory, Options};
pub use module::{Entry, Global, Instance, Module, Param};
pub use report::Report;
