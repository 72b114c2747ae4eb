//! Kernels chosen by measuring: which table an engine follows, and how one is made.

use super::{Model, Session};
use crate::cuda::Runtime;
use crate::cuda::tune::{self, Table, Timer, TuningOutcome};
use crate::error::{Error, ErrorKind, Result};
use crate::model::TapMode;
use std::path::PathBuf;

/// Which table of measured kernels a model on a GPU follows. Sites that the table does not know get what
/// the cost models choose. A table that was measured on another device, in another precision or with other
/// kernels is not followed, and [`Model::tuning_note`] says so.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Tuning {
    /// The file that `KNET_TUNED` names (empty: none), else the user's, where `knet tune` writes: beside the
    /// kernel cache, one a device and precision. A damaged file is an error if it was named, else as if it
    /// were not there.
    #[default]
    User,
    /// None.
    Off,
    /// This file.
    File(PathBuf),
}

impl Tuning {
    /// Makes `runtime` follow the table; a note if there is one that it cannot follow.
    pub(super) fn apply(&self, runtime: &mut Runtime) -> Result<Option<String>> {
        let named = match self {
            Tuning::Off => return Ok(None),
            Tuning::File(path) => Some(path.clone()),
            Tuning::User => match std::env::var_os("KNET_TUNED") {
                Some(path) if path.is_empty() => return Ok(None),
                path => path.map(PathBuf::from),
            },
        };
        let Some(path) = named.clone().or_else(|| runtime.scope().user_file()) else { return Ok(None) };
        let table = match Table::read(&path) {
            Ok(table) => table,
            Err(error) if named.is_some() => return Err(error),
            Err(error) if error.kind() == ErrorKind::Io => return Ok(None),
            Err(error) => return Ok(Some(error.to_string())),
        };
        Ok(runtime.adopt(table).err().map(|reason| format!("{}: {reason}", path.display())))
    }
}

impl Model {
    /// The tuning table that kernels are chosen by.
    pub fn tuning(&self) -> Option<&Table> {
        self.selection()?.table()
    }

    /// The file of the table that a model on this device in this precision follows unless told otherwise:
    /// beside the kernel cache.
    ///
    /// # Errors
    /// [`Error::Usage`] on the CPU, and if there is no cache.
    pub fn user_tuning_file(&self) -> Result<PathBuf> {
        let none = || Error::usage("there is no kernel cache to keep a tuning table beside");
        self.tunable()?.scope().user_file().ok_or_else(none)
    }

    /// The runtime of a GPU.
    fn tunable(&self) -> Result<&Runtime> {
        let why = self.device_note().map_or(String::new(), |note| format!(" ({note})"));
        let device = self.device();
        let cpu = || Error::usage(format!("{device}: only a GPU's kernels are chosen by measuring{why}"));
        self.backend.runtime().ok_or_else(cpu)
    }

    /// Refuses the PTX emulator, on which no time means anything.
    ///
    /// # Errors
    /// [`Error::Usage`].
    pub fn check_clock(&self) -> Result<()> {
        if self.is_emulated() {
            let device = self.device();
            return Err(Error::usage(format!("{device} is an emulator: no time it takes means anything")));
        }
        Ok(())
    }
}

impl Session {
    /// Times the `candidates` best kernels, by the cost models, of every distinct step that has a choice, at
    /// one input size (both sides multiples of
    /// [`Config::size_divisor`](crate::model::Config::size_divisor)), and gives the table that the model
    /// follows with what was measured in it. `report` gets each step's outcome as it comes, its number from
    /// 1, and how many there are. The session goes on as it is: the table is for the next model.
    ///
    /// # Errors
    /// [`Error::Usage`] on the CPU and on the emulator; as [`Session::plan`]; [`Error::Cuda`] as the driver
    /// says.
    pub fn tune(
        &self,
        size: (usize, usize),
        candidates: usize,
        mut report: impl FnMut(&TuningOutcome, usize, usize) -> Result<()>,
    ) -> Result<Table> {
        let model = self.model();
        model.check_clock()?;
        let runtime = model.tunable()?;
        let (plan, _) = self.plan(size, TapMode::Off)?;
        let tasks = tune::tasks(&plan, &runtime.target(), candidates)?;
        let mut timer = self.pool.run(|| Timer::new(runtime, &tasks, tune::REPEATS))?;
        let mut table = model.tuning().cloned().unwrap_or_else(|| Table::new(runtime.scope()));
        for (index, task) in tasks.iter().enumerate() {
            let outcome = tune::run(task, |task, candidate| timer.measure(task, candidate))?;
            report(&outcome, index + 1, tasks.len())?;
            table.insert(outcome.site.clone(), outcome.measured());
        }
        Ok(table)
    }
}
