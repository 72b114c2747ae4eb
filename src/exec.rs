//! The one contract of what runs a plan, on either back end, for inference and training.
//!
//! Values are reached by the handles that building gave ([`InputId`], [`OutputId`], [`VariableId`]) and a run
//! goes segment by segment, so that whoever runs a graph names neither a back end nor a value's name.

use crate::error::{Error, Result};
use crate::graph::{InputId, OutputId, Param, SegmentId, VariableId};
use crate::ops::ValueType;
use crate::plan::{Operand, Plan, Segment, Variable};
use crate::tensor::{DType, Tensor};
use std::ops::RangeInclusive;
use std::time::Duration;

/// A value on the host. Floats are f32 here, however a back end stores them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Host<'a> {
    /// Floats.
    F32(&'a [f32]),
    /// Indices.
    I32(&'a [i32]),
}

/// The host's memory of an input.
#[derive(Debug, PartialEq)]
pub enum HostMut<'a> {
    /// Floats.
    F32(&'a mut [f32]),
    /// Indices.
    I32(&'a mut [i32]),
}

impl<'a> Host<'a> {
    /// Four-byte elements of a value that the graph knows as `dtype`.
    pub(crate) fn of(dtype: DType, elements: &'a [f32]) -> Self {
        match dtype {
            DType::I32 => Host::I32(bytemuck::cast_slice(elements)),
            _ => Host::F32(elements),
        }
    }

    /// The floats; nothing if it holds indices.
    pub fn floats(self) -> &'a [f32] {
        match self {
            Host::F32(floats) => floats,
            Host::I32(_) => &[],
        }
    }
}

impl<'a> HostMut<'a> {
    /// As [`Host::of`].
    pub(crate) fn of(dtype: DType, elements: &'a mut [f32]) -> Self {
        match dtype {
            DType::I32 => HostMut::I32(bytemuck::cast_slice_mut(elements)),
            _ => HostMut::F32(elements),
        }
    }

    /// The floats; nothing if it holds indices.
    pub fn floats(self) -> &'a mut [f32] {
        match self {
            HostMut::F32(floats) => floats,
            HostMut::I32(_) => &mut [],
        }
    }

    /// The indices; nothing if it holds floats.
    pub fn indices(self) -> &'a mut [i32] {
        match self {
            HostMut::F32(_) => &mut [],
            HostMut::I32(indices) => indices,
        }
    }
}

/// Floats in the memory of a GPU, for what works on them beside a plan.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceFloats {
    /// Address and number of floats of each place. No two overlap.
    pub places: Vec<(u64, usize)>,
    /// The driver's handle of the stream whose work makes them, and uses them later.
    pub stream: usize,
}

/// Takes the number of a step and its time.
pub type Report<'a> = dyn FnMut(usize, Duration) + Send + 'a;

/// A plan bound to memory. Handles are those of the graph it was made of.
pub trait Executor: Send {
    /// The plan, for people.
    fn described(&self) -> Plan;

    /// Inputs with their types in memory.
    fn inputs(&self) -> &[(String, Operand)];

    /// Results with their types in memory.
    fn outputs(&self) -> &[(String, Operand)];

    /// Variables.
    fn variables(&self) -> &[Variable];

    /// The division of a run.
    fn segments(&self) -> &[Segment];

    /// The host's memory of an input, to be filled before every run of the segment that first reads it. Not
    /// to be touched from when that is started until it was waited for.
    fn input(&mut self, input: InputId) -> HostMut<'_>;

    /// A result, once the segment that makes it has run and until it, or one before it, runs again.
    fn read(&self, output: OutputId) -> Host<'_>;

    /// Copies a result of floats, wherever it lies, under the same condition. `values` has its length.
    ///
    /// # Errors
    /// [`Error::Shape`] for another length; [`Error::Graph`] for a result that stays on a GPU and is not
    /// stored there as f32; [`Error::Cuda`] as the driver says.
    fn fetch(&self, output: OutputId, values: &mut [f32]) -> Result<()>;

    /// Where results of floats lie on a GPU, in the order of `results` and each place once, for whoever
    /// changes them there between two segments; `None` if they lie on the host.
    ///
    /// # Errors
    /// [`Error::Graph`] for results that are no floats of the arena, or overlap; [`Error::Cuda`] as the
    /// driver says.
    fn on_device(&mut self, _results: &[OutputId]) -> Result<Option<DeviceFloats>> {
        Ok(None)
    }

    /// Starts segments that follow one another, and every update that is made in them: on a GPU one launch,
    /// which is captured when it is first asked for. What is started before it was waited for runs after it:
    /// the segments that come next, or, once all have been started, the first ones again where
    /// [`Executor::write_ahead`] wrote all that they read. Results of the run before are then read as if it
    /// had not begun; only [`Executor::fetch`] finds what stays on the device overwritten.
    ///
    /// # Errors
    /// [`Error::Cuda`] on a GPU, as the driver says.
    fn start(&mut self, segments: RangeInclusive<SegmentId>) -> Result<()>;

    /// Waits for all that was started.
    ///
    /// # Errors
    /// As [`Executor::start`].
    fn wait(&mut self) -> Result<()>;

    /// As [`Executor::write`], for the next run, while another is started: into memory that what was started
    /// does not read. Gives whether there is such; else nothing is done.
    ///
    /// # Errors
    /// As [`Executor::write`].
    fn write_ahead(&mut self, _input: InputId, _values: Host<'_>) -> Result<bool> {
        Ok(false)
    }

    /// Runs a segment.
    ///
    /// # Errors
    /// As [`Executor::start`].
    fn run(&mut self, segment: SegmentId) -> Result<()> {
        self.start(segment..=segment)?;
        self.wait()
    }

    /// As [`Executor::run`], and gives the time of each step to `report`. Steps on a GPU are launched one by
    /// one for it.
    ///
    /// # Errors
    /// As [`Executor::run`].
    fn run_timed(&mut self, segment: SegmentId, report: &mut Report<'_>) -> Result<()>;

    /// Copies a variable of floats to the host, in the graph's layout. `values` has its length.
    ///
    /// # Errors
    /// [`Error::Shape`] for another length; [`Error::Cuda`] as the driver says.
    fn read_variable(&self, variable: VariableId, values: &mut [f32]) -> Result<()>;

    /// Gives a variable of floats a value, in the graph's layout.
    ///
    /// # Errors
    /// As [`Executor::read_variable`].
    fn write_variable(&mut self, variable: VariableId, values: &[f32]) -> Result<()>;

    /// Gives every variable that begins as a parameter its value, which `source` gives in the checkpoint's
    /// layout. The others hold zeros from the start.
    ///
    /// # Errors
    /// What `source` says; [`Error::Shape`] if a tensor is not of the parameter's shape; as
    /// [`Executor::write_variable`].
    fn load(&mut self, source: &dyn Fn(&Param) -> Result<Tensor>) -> Result<()> {
        for index in 0..self.variables().len() {
            let Some(param) = self.variables()[index].initial.clone() else { continue };
            let tensor = param.layout.apply(source(&param)?);
            self.write_variable(VariableId(index as u32), tensor.data())?;
        }
        Ok(())
    }

    /// Fills an input.
    ///
    /// # Errors
    /// [`Error::Shape`] if the values have another type or number than the input.
    fn write(&mut self, input: InputId, values: Host<'_>) -> Result<()> {
        let given = match (self.input(input), values) {
            (HostMut::F32(to), Host::F32(from)) if to.len() == from.len() => {
                to.copy_from_slice(from);
                return Ok(());
            }
            (HostMut::I32(to), Host::I32(from)) if to.len() == from.len() => {
                to.copy_from_slice(from);
                return Ok(());
            }
            (_, Host::F32(from)) => format!("{} floats", from.len()),
            (_, Host::I32(from)) => format!("{} indices", from.len()),
        };
        let (name, operand) = &self.inputs()[input.index()];
        Err(misfit("input", name.clone(), operand.ty, &given))
    }

    /// Runs all segments, in order.
    ///
    /// # Errors
    /// As [`Executor::start`].
    fn run_all(&mut self) -> Result<()> {
        (0..self.segments().len() as u32).try_for_each(|segment| self.run(SegmentId(segment)))
    }
}

/// Refuses values for a variable that do not fit it.
///
/// # Errors
/// [`Error::Shape`] with what it is and what was given.
pub(crate) fn check_variable(variable: &Variable, len: usize) -> Result<()> {
    let ty = variable.operand.ty;
    if ty.dtype == DType::F32 && ty.shape.len() == len {
        return Ok(());
    }
    Err(misfit("variable", variable.name.clone(), ty, &format!("{len} floats")))
}

/// Refuses a place for a result of floats that does not fit it.
///
/// # Errors
/// [`Error::Shape`] with what it is and what was given.
pub(crate) fn check_fetch((name, operand): &(String, Operand), len: usize) -> Result<()> {
    if operand.ty.dtype != DType::I32 && operand.ty.shape.len() == len {
        return Ok(());
    }
    Err(misfit("result", name.clone(), operand.ty, &format!("a place of {len} floats")))
}

fn misfit(op: &'static str, value: String, ty: ValueType, given: &str) -> Error {
    Error::Shape { op, value, reason: format!("it is {ty}, and was given {given}") }
}
