//! Runs PTX on the CPU, with every access checked.

mod exec;
mod fault;
mod ir;
mod launch;
mod lower;
mod memory;
mod module;
mod report;
mod text;

pub use fault::{Fault, FaultKind, ParseError, SourceLine};
pub use launch::{Config, Launch, launch};
pub use memory::{Allocation, BASE, Memory, Options};
pub use module::{Entry, Global, Instance, Module, Param};
pub use report::{Report, Traffic};
