//! Which program a site gets: the cost models' choice, or what was measured to be faster. A pure function of
//! site, target and table.

use super::ops;
use super::tune::Table;
use crate::cuda::gpu::Target;
use crate::cuda::launch::Program;
use crate::plan::{Choice, Site};
use std::sync::Arc;

/// How programs are chosen.
#[derive(Clone, Debug)]
pub struct Selection {
    target: Target,
    tuned: Option<Arc<Table>>,
}

impl From<Target> for Selection {
    /// By the cost models alone.
    fn from(target: Target) -> Self {
        Selection { target, tuned: None }
    }
}

impl Selection {
    /// By a table where it knows the site, else by the cost models.
    pub fn tuned(target: Target, table: Arc<Table>) -> Self {
        Selection { target, tuned: Some(table) }
    }

    /// What programs are chosen for.
    pub fn target(&self) -> Target {
        self.target
    }

    /// The table, if there is one.
    pub fn table(&self) -> Option<&Table> {
        self.tuned.as_deref()
    }

    /// The program of a site. What the table says counts only if it is one of the site's candidates, each of
    /// which the device can run; else the cost models choose.
    ///
    /// # Errors
    /// A sentence if there is no kernel for the site or the device cannot run it.
    pub fn program(&self, site: &Site<'_>) -> Result<Program, String> {
        let measured = self.tuned.as_ref().and_then(|table| table.kernel(&site.to_string()));
        if let Some(kernel) = measured {
            let mut candidates = ops::candidates(site, &self.target)?;
            if let Some(found) = candidates.iter().position(|program| program.kernel == kernel) {
                return Ok(candidates.swap_remove(found));
            }
        }
        let program = ops::program(site, &self.target)?;
        program.check(&self.target.caps)?;
        Ok(program)
    }

    /// As [`Selection::program`], in the words of a plan.
    ///
    /// # Errors
    /// As [`Selection::program`].
    pub fn choose(&self, site: &Site<'_>) -> Result<Choice<Program>, String> {
        let program = self.program(site)?;
        Ok(Choice { kernel: program.kernel.clone(), workspace: program.workspace, program })
    }
}
