//! What a builder gives to reach values of a graph when it runs.
//!
//! A handle is a position: among the inputs in order of definition, the results in order of declaration, and
//! so on. Passes keep these orders and drop nothing that has a handle, so the handles of a graph are those of
//! its plan and of any executor of that.

use serde::{Deserialize, Serialize};

macro_rules! handles {
    ($($(#[$doc:meta])* $name:ident)*) => {
        $(
            $(#[$doc])*
            #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
            pub struct $name(pub(crate) u32);

            impl $name {
                /// Position among its kind, in the graph and in its plan.
                pub fn index(self) -> usize {
                    self.0 as usize
                }
            }
        )*
    };
}

handles! {
    /// An input: the caller writes it before the segment that first reads it runs.
    InputId
    /// A result: the caller reads it once the segment that makes it has run.
    OutputId
    /// A variable: it keeps its value between runs.
    VariableId
    /// A segment of a run.
    SegmentId
}
