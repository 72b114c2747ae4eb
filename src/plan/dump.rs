//! A plan as text.

use super::{Place, Plan, Segment};
use std::fmt;

impl<P> fmt::Display for Plan<P> {
    /// One line a step: result, operator, kernel, result shape, MFLOP, KiB moved, arena offset, workspace.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:>4}  {:<44} {:<12} {:<28} {:<22} {:>10} {:>10} {:>12} {:>10}",
            "step", "value", "op", "kernel", "shape", "MFLOP", "KiB", "offset", "scratch"
        )?;
        for (index, step) in self.steps.iter().enumerate() {
            // A run in one piece needs no heading.
            let begun = |segment: &&Segment| self.segments.len() > 1 && segment.steps.start == index;
            for Segment { name, steps, .. } in self.segments.iter().filter(begun) {
                writeln!(f, "{name}: steps {} to {}", steps.start, steps.end)?;
            }
            let output = &step.outputs[0];
            let offset = match output.place {
                Place::Arena(slot) => slot.offset,
                Place::Const(_) => 0,
            };
            writeln!(
                f,
                "{index:>4}  {:<44} {:<12} {:<28} {:<22} {:>10.2} {:>10} {:>12} {:>10}",
                step.name,
                step.op.name(),
                step.kernel,
                output.ty.shape.to_string(),
                step.flops as f64 / 1e6,
                step.bytes() / 1024,
                offset,
                step.workspace.bytes
            )?;
        }
        writeln!(
            f,
            "total {:.2} GFLOP, arena {:.1} MiB, {} constants",
            self.flops() as f64 / 1e9,
            self.arena_bytes as f64 / f64::from(1 << 20),
            self.consts.len()
        )
    }
}
