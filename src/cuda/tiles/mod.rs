//! Choice of tiles: pure functions from shapes and capabilities, so that every choice is printed and tested
//! without a GPU.

pub mod conv;
mod conv_cost;
pub mod masks;
pub mod rows;
