//! What a launch did: instruction, memory and bank-conflict counts.

use std::fmt;

/// Counts of one launch, or of several merged ones.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// Launches merged into this report.
    pub launches: u64,
    /// Blocks executed.
    pub blocks: u64,
    /// Warp instructions executed.
    pub instructions: u64,
}

impl Report {
    /// Adds another report's counts to this one.
    pub fn merge(&mut self, other: &Report) {
        self.launches += other.launches;
        self.blocks += other.blocks;
        self.instructions += other.instructions;
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:<40}{:>16}", "blocks", self.blocks)?;
        writeln!(f, "{:<40}{:>16}", "warp instructions", self.instructions)
    }
}
