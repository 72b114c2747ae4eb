//! PTX text to syntax tree.

pub(crate) mod ast;
mod function;
mod instr;
mod lex;
mod parse;
mod scope;

pub(crate) use parse::parse;
