//! One training step: forward, losses and gradients, and the update.
//!
//! The plan is one list of steps over one arena, in segments. Between forward pass and losses of a detector
//! the host has its say: it takes the cost matrices, assigns proposals to objects, and uploads what the
//! losses compare with. All that follows, to the update, runs in one go, as the whole step of a semantic
//! model does; whether losses and gradients are finite is known where they are made, and stops what would
//! follow. A GPU goes on with the forward pass of the next batch, which changes nothing that stays, so that
//! the host waits once for the end of a step and for the costs of the next. Nothing is allocated after the
//! first step.

mod dropout;
mod objects;
mod pixels;
mod sums;

use super::data::Batch;
use super::loss_scale::LossScale;
use super::network::{self, Segments, Statistic, TargetInputs, Term, TrainNetwork, TrainSpec, Trained};
use super::optimizer::Optimizer;
use crate::dist::Ranks;
use crate::engine::{Compute, TrainingPrecision, training_executor};
use crate::error::{Error, Result};
use crate::exec::{Executor, Host, Report};
use crate::graph::{InputId, OutputId, Param, SegmentId, VariableId};
use crate::plan::constants::ParamLoader;
use crate::tensor::Tensor;
use dropout::Dropouts;
use objects::Objects;
use pixels::Pixels;
use serde::{Deserialize, Serialize};
use std::ops::RangeInclusive;
use std::time::Duration;
use sums::Sums;

/// The losses of a step, weighted and normalised as upstream reports them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Losses {
    /// Every term by its upstream name.
    pub terms: Vec<(String, f32)>,
    /// Their sum.
    pub total: f32,
}

impl Losses {
    /// A term by name.
    pub fn term(&self, name: &str) -> Option<f32> {
        self.terms.iter().find(|(term, _)| term == name).map(|&(_, value)| value)
    }
}

/// What [`TrainStep::learn`] gives.
#[derive(Clone, Copy, Debug)]
pub struct Learnt<'a> {
    /// Of the batch.
    pub losses: &'a Losses,
    /// Global norm of the mean gradient before clipping, if an update was due: if it is not finite, there was
    /// none.
    pub norm: Option<f64>,
}

/// A planned training step, bound to memory.
pub struct TrainStep {
    executor: Box<dyn Executor>,
    segments: Segments,
    image: InputId,
    comparison: Comparison,
    dropouts: Dropouts,
    terms: Vec<TermSlot>,
    trained: Vec<Trained>,
    statistics: Vec<Statistic>,
    optimizer: Option<Optimizer>,
    /// Whether there are no other ranks.
    alone: bool,
    sums: Sums,
    losses: Losses,
    /// Of the batch that has begun last: its images, and whether it ends with an update.
    ids: Vec<u64>,
    updates: bool,
    next: Next,
}

/// How far the next batch has come while the device works on the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// It is not there.
    Unknown,
    /// The host has put it where its step reads it.
    Loaded,
    /// Its forward pass has been started.
    Begun,
    /// Its costs are there.
    Waited,
}

/// What the predictions of a step are compared with.
enum Comparison {
    Objects(Box<Objects>),
    Pixels(Pixels),
}

struct TermSlot {
    term: Term,
    /// Weight over normalisation in the current step.
    factor: f32,
    /// What the loss is multiplied by where it is differentiated, for gradients in f16.
    scale: f32,
}

impl TermSlot {
    /// Says how many the sum of losses is divided by in the current step; of none, nothing is learnt.
    fn divide_by(&mut self, executor: &mut dyn Executor, count: usize) {
        self.factor = if count == 0 { 0.0 } else { self.term.weight / count as f32 };
        executor.input(self.term.seed).floats().fill(self.factor * self.scale);
    }
}

impl TrainStep {
    /// Plans a step and loads the parameters, which `load` gives in the checkpoint's layout.
    ///
    /// # Errors
    /// As [`network::build_training`] and [`training_executor`].
    pub fn new(spec: &TrainSpec<'_>, load: Box<ParamLoader>, compute: Compute) -> Result<Self> {
        let on_device = spec.share.ranks > 1 && compute.is_gpu();
        let network = network::build(spec, on_device)?;
        // What the host wants of each step are losses and costs; of several ranks, statistics.
        let gradients = network.trained.iter().map(|trained| trained.gradient);
        let alone = network.statistics.iter().filter(|_| spec.share.ranks == 1);
        let resident: Vec<OutputId> = gradients.chain(alone.map(|statistic| statistic.batch)).collect();
        let executor = training_executor(compute, &network.graph, load, &resident)?;
        let mut step = TrainStep::bind(spec, network, executor)?;
        if compute.precision == TrainingPrecision::F16 {
            step.set_loss_scale(LossScale::default());
        }
        Ok(step)
    }

    fn bind(spec: &TrainSpec<'_>, network: TrainNetwork, mut executor: Box<dyn Executor>) -> Result<Self> {
        let named = |term: &Term| (term.name.clone(), 0.0);
        let comparison = match network.targets {
            TargetInputs::Objects(targets) => Comparison::Objects(Box::new(Objects::new(spec, targets))),
            TargetInputs::Pixels(targets) => Comparison::Pixels(Pixels::new(spec, targets)),
        };
        Ok(TrainStep {
            sums: Sums::new(&mut *executor, &network.buckets, &network.trained)?,
            losses: Losses { terms: network.terms.iter().map(named).collect(), total: 0.0 },
            terms: network.terms.into_iter().map(|term| TermSlot { term, factor: 0.0, scale: 1.0 }).collect(),
            dropouts: Dropouts::new(spec.seed, network.dropouts),
            alone: spec.share.ranks == 1,
            segments: network.segments,
            image: network.image,
            comparison,
            trained: network.trained,
            statistics: network.statistics,
            optimizer: network.optimizer,
            executor,
            ids: Vec::new(),
            updates: false,
            next: Next::Unknown,
        })
    }

    /// What runs it.
    pub fn executor(&self) -> &dyn Executor {
        &*self.executor
    }

    /// The optimizer, if the step has one.
    pub fn optimizer(&self) -> Option<&Optimizer> {
        self.optimizer.as_ref()
    }

    /// The parameters with a gradient.
    pub fn trained(&self) -> &[Trained] {
        &self.trained
    }

    /// Every parameter that changes, running statistics among them.
    pub fn changing(&self) -> impl Iterator<Item = (&Param, VariableId)> {
        let trained = self.trained.iter().map(|trained| (&trained.param, trained.variable));
        trained.chain(self.statistics.iter().map(|statistic| (&statistic.param, statistic.variable)))
    }

    /// The values of [`TrainStep::changing`], in the checkpoint's layout.
    ///
    /// # Errors
    /// As [`TrainStep::read`].
    pub fn parameters(&self) -> Result<Vec<(&Param, Tensor)>> {
        self.changing().map(|(param, variable)| Ok((param, self.read(param, variable)?))).collect()
    }

    /// A variable of the shape of `param`, in the checkpoint's layout.
    ///
    /// # Errors
    /// As [`Executor::read_variable`].
    pub fn read(&self, param: &Param, variable: VariableId) -> Result<Tensor> {
        let mut tensor = Tensor::zeros(self.executor.variables()[variable.index()].operand.ty.shape);
        self.executor.read_variable(variable, tensor.data_mut())?;
        Ok(param.layout.invert(tensor, &param.upstream_shape))
    }

    /// Gives a variable of the shape of `param` a value in the checkpoint's layout.
    ///
    /// # Errors
    /// As [`Executor::write_variable`].
    pub fn write(&mut self, param: &Param, variable: VariableId, tensor: &Tensor) -> Result<()> {
        self.forget_next()?;
        self.executor.write_variable(variable, param.layout.apply(tensor.clone()).data())
    }

    /// Restores the number of updates, which bias correction depends on.
    pub fn set_updates(&mut self, updates: u64) {
        self.optimizer.iter_mut().for_each(|optimizer| optimizer.set_updates(updates));
    }

    /// What losses are multiplied by before they are differentiated, if gradients are in f16.
    pub fn loss_scale(&self) -> Option<LossScale> {
        self.optimizer.as_ref().and_then(Optimizer::loss_scale)
    }

    /// Restores the factor on losses of a step in f16, or begins with another.
    pub fn set_loss_scale(&mut self, scale: LossScale) {
        self.optimizer.iter_mut().for_each(|optimizer| optimizer.set_loss_scale(Some(scale)));
    }

    /// The running statistics, for [`TrainStep::break_off`].
    ///
    /// # Errors
    /// As [`TrainStep::read`].
    pub fn statistics(&self) -> Result<Vec<Tensor>> {
        self.statistics.iter().map(|statistic| self.read(&statistic.param, statistic.variable)).collect()
    }

    /// Forgets the batches since the last update, when the running statistics were these.
    ///
    /// # Errors
    /// As [`TrainStep::write`].
    pub fn break_off(&mut self, statistics: &[Tensor]) -> Result<()> {
        self.forget_next()?;
        self.optimizer.iter_mut().for_each(Optimizer::break_off);
        for (statistic, tensor) in self.statistics.clone().iter().zip(statistics) {
            self.write(&statistic.param, statistic.variable, tensor)?;
        }
        Ok(())
    }

    /// Costs of matching a round, `[B, proposals, G]`, valid after [`TrainStep::run`]; none of a semantic
    /// model.
    pub fn costs(&self, round: usize) -> &[f32] {
        match &self.comparison {
            Comparison::Objects(objects) => objects.costs(&*self.executor, round),
            Comparison::Pixels(_) => &[],
        }
    }

    /// The gradient of a parameter in the graph's layout, times the [loss scale](TrainStep::loss_scale);
    /// valid after [`TrainStep::run`]. It is copied from where it lies.
    ///
    /// # Errors
    /// As [`Executor::fetch`].
    pub fn gradient(&self, trained: &Trained) -> Result<Vec<f32>> {
        let (_, operand) = &self.executor.outputs()[trained.gradient.index()];
        let mut gradient = vec![0.0; operand.ty.shape.len()];
        self.executor.fetch(trained.gradient, &mut gradient)?;
        Ok(gradient)
    }

    /// Slot that each object of a round was matched with in the last step, `[B, objects]`; none of a semantic
    /// model.
    pub fn matched(&self, round: usize) -> &[Option<usize>] {
        match &self.comparison {
            Comparison::Objects(objects) => objects.matched(round),
            Comparison::Pixels(_) => &[],
        }
    }

    /// One forward and backward pass over a batch of the planned shape.
    ///
    /// # Errors
    /// As [`TrainStep::begin`] and [`TrainStep::finish`].
    pub fn run(&mut self, batch: &Batch) -> Result<&Losses> {
        self.begin(batch, None, None)?;
        Ok(self.finish()?.losses)
    }

    /// As [`TrainStep::run`] and then [`TrainStep::update`], of a run without other ranks: in as few pieces
    /// as the host allows.
    ///
    /// # Errors
    /// As there.
    pub fn learn(&mut self, batch: &Batch, lr: f64) -> Result<Learnt<'_>> {
        self.begin(batch, Some(lr), None)?;
        self.finish()
    }

    /// As [`TrainStep::learn`], and gives the time of each step of the plan to `report`.
    ///
    /// # Errors
    /// As there.
    pub fn learn_timed(
        &mut self,
        batch: &Batch,
        lr: f64,
        mut report: impl FnMut(usize, Duration) + Send,
    ) -> Result<Learnt<'_>> {
        self.start(batch, Some(lr), None, Some(&mut report))?;
        self.finish()
    }

    /// Begins what [`TrainStep::finish`] ends: a batch, the one that was [loaded](TrainStep::load) if one
    /// was, with a learning rate up to the update, if one is due (among several `ranks` there is none; if
    /// they are on GPUs, gradients are summed as they get ready). When it returns a GPU is still at work.
    ///
    /// # Errors
    /// [`Error::Shape`] if the batch has another shape than was planned; [`Error::Diverged`] for matching
    /// costs that are not finite; [`Error::Cuda`] as the driver says.
    pub fn begin(&mut self, batch: &Batch, lr: Option<f64>, ranks: Option<&Ranks>) -> Result<()> {
        self.start(batch, lr, ranks, None)
    }

    /// Begins the sums over ranks on GPUs that were not begun with the last batch, because it went wrong: the
    /// others wait for this rank's part, whatever it is.
    ///
    /// # Errors
    /// [`Error::Ranks`] if another rank is gone.
    pub fn take_part(&mut self, ranks: &Ranks) -> Result<()> {
        self.sums.begin_all(ranks)
    }

    /// Loads the batch that the next [`TrainStep::begin`] is given while a GPU works on this one, if it can,
    /// and lets a detector's forward pass of it follow this batch, if the weights do not change in between.
    ///
    /// # Errors
    /// [`Error::Shape`] if the batch has another shape than was planned; [`Error::Cuda`] as the driver says.
    pub fn load(&mut self, next: &Batch) -> Result<()> {
        for (input, values) in self.of_batch(next).into_iter().flatten() {
            if !self.executor.write_ahead(input, values)? {
                return Ok(());
            }
        }
        self.next = Next::Loaded;
        let follows = self.alone && (self.updates || !self.optimizer.as_ref().is_some_and(Optimizer::is_due));
        if let (Comparison::Objects(objects), true) = (&self.comparison, follows) {
            let executor = &mut *self.executor;
            let place = self.optimizer.as_ref().map_or((0, 0), |optimizer| optimizer.place(self.updates));
            self.dropouts.draw(executor, place);
            objects.load(executor);
            executor.start(self.segments.forward..=self.segments.forward)?;
            self.next = Next::Begun;
        }
        Ok(())
    }

    /// Forgets the batch that was loaded: it begins anew.
    fn forget_next(&mut self) -> Result<()> {
        if std::mem::replace(&mut self.next, Next::Unknown) == Next::Begun {
            self.executor.wait()?;
        }
        Ok(())
    }

    /// Ends the batch that has begun.
    ///
    /// # Errors
    /// [`Error::Diverged`] naming the first term that is NaN or infinite, or their sum: the batch leaves no
    /// trace; [`Error::Cuda`] as the driver says.
    pub fn finish(&mut self) -> Result<Learnt<'_>> {
        self.executor.wait()?;
        if self.next == Next::Begun {
            self.next = Next::Waited;
        }
        if let Err(error) = self.collect() {
            self.optimizer.iter_mut().for_each(Optimizer::withdraw_batch);
            return Err(error);
        }
        let optimizer = self.optimizer.as_mut().filter(|_| self.updates);
        Ok(Learnt {
            norm: optimizer.map(|optimizer| optimizer.finish(&*self.executor)),
            losses: &self.losses,
        })
    }

    /// Adds to this rank's batch those of the others, in the order of ranks: gradients to the sums, and
    /// statistics to the running ones. All ranks then hold the same, to the bit. It follows every
    /// [`TrainStep::run`] that went well on all ranks.
    ///
    /// # Errors
    /// [`Error::Ranks`] if another rank is gone; as [`Executor::run`] and [`Executor::write_variable`].
    pub fn join(&mut self, ranks: &Ranks) -> Result<()> {
        self.sums.join(&mut *self.executor, ranks, &self.trained, self.optimizer.as_ref())?;
        if self.sums.are_on_device() {
            self.executor.run(self.segments.follow)?;
        }
        sums::follow(&mut *self.executor, ranks, &self.statistics)
    }

    /// As [`Optimizer::step`], for the batches that were run since the last update. Without an optimizer
    /// there is never an update.
    ///
    /// # Errors
    /// As there.
    pub fn update(&mut self, lr: f64) -> Result<Option<f64>> {
        let Some(optimizer) = &mut self.optimizer else { return Ok(None) };
        optimizer.step(&mut *self.executor, lr)
    }

    /// What a batch gives before the forward pass.
    fn of_batch<'a>(&self, batch: &'a Batch) -> [Option<(InputId, Host<'a>)>; 3] {
        let [first, second] = match &self.comparison {
            Comparison::Objects(objects) => objects.targets(batch).map(Some),
            Comparison::Pixels(pixels) => [Some(pixels.targets(batch)), None],
        };
        [Some((self.image, Host::F32(&batch.images))), first, second]
    }

    fn start(
        &mut self,
        batch: &Batch,
        lr: Option<f64>,
        ranks: Option<&Ranks>,
        mut report: Option<&mut Report<'_>>,
    ) -> Result<()> {
        let next = std::mem::replace(&mut self.next, Next::Unknown);
        if next == Next::Unknown {
            for (input, values) in self.of_batch(batch).into_iter().flatten() {
                self.executor.write(input, values)?;
            }
        }
        self.ids.clone_from(&batch.ids);
        self.sums.begin_batch();
        let executor = &mut *self.executor;
        let Segments { forward, backward, follow } = self.segments;
        let begins = matches!(next, Next::Unknown | Next::Loaded);
        if begins {
            let place = self.optimizer.as_ref().map_or((0, 0), |optimizer| optimizer.place(false));
            self.dropouts.draw(executor, place);
        }
        let scale = self.optimizer.as_ref().map_or(1.0, Optimizer::loss_factor);
        self.terms.iter_mut().for_each(|slot| slot.scale = scale);
        let mut first = match &mut self.comparison {
            Comparison::Pixels(pixels) => {
                pixels.load(executor, &mut self.terms);
                forward
            }
            Comparison::Objects(objects) => {
                if begins {
                    objects.load(executor);
                    start(executor, forward..=forward, &mut report)?;
                }
                if next != Next::Waited {
                    executor.wait()?;
                }
                objects.compare(executor, batch, &mut self.terms)?;
                backward
            }
        };
        let mut last = follow;
        self.updates = false;
        if let Some(optimizer) = &mut self.optimizer {
            optimizer.begin_batch(executor);
            if let Some(update) = lr.and_then(|lr| optimizer.prepare(executor, lr)) {
                (self.updates, last) = (true, update);
            }
        }
        if !self.sums.are_on_device() {
            return start(executor, first..=last, &mut report);
        }
        // The graph goes on when the sums are there.
        while let Some(segment) = self.sums.next_segment() {
            start(executor, first..=segment, &mut report)?;
            first = SegmentId(segment.0 + 1);
            self.sums.begin(ranks)?;
        }
        Ok(())
    }

    fn collect(&mut self) -> Result<()> {
        let diverged = |what: String| Error::Diverged { what, ids: self.ids.clone() };
        self.losses.total = 0.0;
        for (slot, (_, loss)) in self.terms.iter().zip(&mut self.losses.terms) {
            *loss = slot.factor * self.executor.read(slot.term.loss).floats()[0];
            if !loss.is_finite() {
                return Err(diverged(slot.term.name.clone()));
            }
            self.losses.total += *loss;
        }
        if !self.losses.total.is_finite() {
            return Err(diverged("the sum of the losses".into()));
        }
        Ok(())
    }
}

/// Starts segments that follow one another, or runs them timed if anyone wants to know.
fn start(
    executor: &mut dyn Executor,
    segments: RangeInclusive<SegmentId>,
    report: &mut Option<&mut Report<'_>>,
) -> Result<()> {
    match report {
        None => executor.start(segments),
        Some(report) => (segments.start().0..=segments.end().0)
            .try_for_each(|segment| executor.run_timed(SegmentId(segment), report)),
    }
}
