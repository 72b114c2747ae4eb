//! What a step of a run takes, before anything of it is there: for `knet-train --plan`, for a batch that is
//! to be as large as memory allows, and for what is made again where memory is short.

use std::path::PathBuf;

use super::Observer;
use super::config::{Recompute, RunConfig};
use super::state::origin;
use crate::checkpoint::Checkpoint;
use crate::dist::Share;
use crate::engine::Compute;
use crate::engine::forecast::{Forecast, TrainingDevice};
use crate::error::{Error, Result};
use crate::graph::passes::Stretch;
use crate::model::{Config, Task};
use crate::train::data::{Mix, Reading};
use crate::train::network::{self, TrainNetwork};

/// Most images that are chosen for a step: more are for those who ask for them.
const MOST_IMAGES: usize = 32;

/// Images that are chosen where nobody knows how much memory there is.
const FEW_IMAGES: usize = 2;

/// Percentage of the free memory that a chosen step takes: the rest is for validation and for others.
const SHARE: u64 = 85;

/// A step that is cut to the memory of its device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fit {
    /// Images.
    pub images: usize,
    /// [`TrainSpec::recompute`](network::TrainSpec::recompute).
    pub recompute: usize,
}

/// [`Fit::recompute`] of all stretches.
pub const ALL: usize = usize::MAX;

impl Fit {
    /// Says of an error of memory what recomputation has done, or would do, about it.
    pub fn explain(self, error: Error) -> Error {
        let Error::Memory { what, needed, available } = error else { return error };
        let remark = match self.recompute {
            ALL => "with recompute = \"on\"",
            _ => "recompute = \"on\" takes less",
        };
        Error::Memory { what: format!("{what} ({remark})"), needed, available }
    }
}

/// The step of a run on a device, in every form that it may have.
struct Plans<'a> {
    config: &'a RunConfig,
    model: &'a Config,
    share: Share,
    device: &'a TrainingDevice,
}

impl Plans<'_> {
    fn network(&self, fit: Fit) -> Result<TrainNetwork> {
        let on_gpus = self.share.ranks > 1 && !self.device.is_host();
        network::build(&self.config.step(self.model, fit, self.share), on_gpus)
    }

    fn forecast(&self, fit: Fit) -> Result<Forecast> {
        self.device.forecast(&self.network(fit)?.graph)
    }

    /// Bytes of the step and, where it learns in the memory that photos are decoded into, of those.
    fn bytes(&self, fit: Fit) -> Result<u64> {
        let step = self.forecast(fit)?.bytes();
        let loader = self.config.loader(self.model, fit.images);
        let photos =
            if self.device.is_host() { loader.bytes().saturating_add(loader.cache_bytes) } else { 0 };
        Ok(step.saturating_add(photos) as u64)
    }

    /// Bytes that a step may take, if the system says how many are free.
    fn limit(&self) -> Option<u64> {
        let sharing = if self.device.is_host() { self.share.ranks as u64 } else { 1 };
        self.device.available().map(|available| available / sharing / 100 * SHARE)
    }

    /// A step of so many images, with values made again if it does not fit otherwise and the configuration
    /// lets them be.
    fn fit(&self, images: usize) -> Result<Fit> {
        let kept = Fit { images, recompute: 0 };
        match (self.config.recompute, self.limit()) {
            (Recompute::Auto, Some(limit)) if self.bytes(kept)? > limit => self.fewest(images, limit),
            (Recompute::On, _) => Ok(Fit { recompute: ALL, ..kept }),
            _ => Ok(kept),
        }
    }

    /// A step of so many images that does not fit into `limit`, with the fewest stretches made again with
    /// which it does, in their order; with all if it never does.
    fn fewest(&self, images: usize, limit: u64) -> Result<Fit> {
        let with = |recompute| Fit { images, recompute };
        let all = self.network(with(0))?.stretches.len();
        if self.bytes(with(ALL))? > limit {
            return Ok(with(ALL));
        }
        let (mut short, mut enough) = (0, all);
        while enough > short + 1 {
            let middle = short.midpoint(enough);
            match self.bytes(with(middle))? > limit {
                true => short = middle,
                false => enough = middle,
            }
        }
        Ok(with(if enough == all { ALL } else { enough }))
    }

    /// As [`largest_batch`].
    fn largest(&self) -> Result<Fit> {
        let Some(limit) = self.limit() else { return self.fit(FEW_IMAGES) };
        // A batch norm in training needs two values.
        let mut least = self.fit(if self.model.task == Task::Semantic { 2 } else { 1 })?;
        let is_short = least.recompute > 0;
        if is_short {
            least.recompute = ALL;
        }
        let with = |images: usize| Fit { images, ..least };
        let (of_least, of_next) = (self.bytes(least)?, self.bytes(with(least.images + 1))?);
        if of_least > limit {
            let ([height, width], images) = (self.config.augment.padded(), least.images);
            return Err(least.explain(Error::Memory {
                what: format!("a training step of {images} images of {height}x{width}"),
                needed: of_least,
                available: self.device.available(),
            }));
        }
        // All but the weights grows by the image; kernels that are chosen by size may need a little more.
        let each = of_next.saturating_sub(of_least).max(1);
        let guess = least.images as u64 + (limit - of_least) / each;
        let mut fit = with(guess.min(MOST_IMAGES as u64) as usize);
        while fit.images > least.images && self.bytes(fit)? > limit {
            fit.images -= 1;
        }
        match self.config.recompute {
            Recompute::Auto if is_short => self.fewest(fit.images, limit),
            _ => Ok(fit),
        }
    }
}

/// The largest number of images a step on one of several ranks can have, up to 32, without values that are
/// made again if the smallest step fits without; else with as few as that number allows. Memory is planned,
/// not tried: a step always has the largest photos and the most objects that the configuration allows.
///
/// # Errors
/// [`Error::Memory`] if there is not enough for one image; as [`network::build_training`] and
/// [`TrainingDevice::forecast`].
pub fn largest_batch(
    config: &RunConfig,
    model: &Config,
    share: Share,
    device: &TrainingDevice,
) -> Result<Fit> {
    Plans { config, model, share, device }.largest()
}

/// The step of a run on the device of `compute`: of as many images as the configuration says, or a run that
/// goes on from `state` had, or there is memory for. Ranks that find different numbers are refused when they
/// compare settings; that some make values again and others do not changes no bit.
pub(super) fn fit(
    config: &RunConfig,
    model: &Config,
    compute: Compute,
    state: Option<&PathBuf>,
    share: Share,
    observer: &mut dyn Observer,
) -> Result<Fit> {
    let before = || {
        let origin = state.map(|path| origin(&Checkpoint::open(path)?)).transpose()?.flatten();
        Ok::<_, Error>(origin.and_then(|origin| origin.batch()))
    };
    let images = match config.data.batch.images() {
        Some(images) => Some(images),
        None => before()?,
    };
    if let (Some(images), Recompute::On | Recompute::Off) = (images, config.recompute) {
        return Ok(Fit { images, recompute: if config.recompute == Recompute::On { ALL } else { 0 } });
    }
    let device = TrainingDevice::of(compute)?;
    let plans = Plans { config, model, share, device: &device };
    let fit = match images {
        Some(images) => plans.fit(images)?,
        None => plans.largest()?,
    };
    if images.is_none() {
        observer.note(&format!("data.batch: {} images, on {}", fit.images, device.title()));
    }
    if fit.recompute > 0 && config.recompute == Recompute::Auto {
        let stretches = plans.network(fit)?.stretches;
        let (count, names) = again(&stretches, fit);
        observer.note(&format!(
            "recompute: {count}, for the memory of {}: {}",
            device.title(),
            names.join(", ")
        ));
    }
    Ok(fit)
}

/// How many of the stretches of a step are made again, and which, for people.
fn again(stretches: &[Stretch], fit: Fit) -> (String, Vec<&str>) {
    let again = &stretches[..fit.recompute.min(stretches.len())];
    let count = match stretches.len() {
        all if again.len() == all => "on".to_string(),
        all => format!("{} of {all} stretches", again.len()),
    };
    (count, again.iter().map(|stretch| stretch.name.as_str()).collect())
}

/// What a step of a run takes on a device that need not be here, for people. Of the data, annotations alone
/// are read.
///
/// # Errors
/// What data and model say; as [`largest_batch`].
pub fn describe(config: &RunConfig, device: &TrainingDevice) -> Result<String> {
    config.validate()?;
    let mix =
        Mix::open(&config.data.train, &Reading { verify: false, skip_damaged: false, ..config.reading() })?;
    let model = config.model(&mix, config.start.weights.as_deref())?;
    let plans = Plans { config, model: &model, share: Share::ALONE, device };
    let largest = plans.largest();
    let fit = match (config.data.batch.images(), &largest) {
        (Some(images), _) => plans.fit(images)?,
        (None, Ok(fit)) => *fit,
        (None, Err(_)) => return largest.map(|fit| fit.images.to_string()),
    };
    let batch = fit.images;
    let without = plans.forecast(Fit { recompute: 0, ..fit })?;
    let all = plans.forecast(Fit { recompute: ALL, ..fit })?;
    let network = plans.network(fit)?;
    let forecast = device.forecast(&network.graph)?;
    let Forecast { kept, passing, constants, flops, .. } = forecast;
    let [height, width] = config.augment.padded();
    let objects = match model.task {
        Task::Semantic => String::new(),
        Task::Instance | Task::Panoptic => format!(" with up to {} objects each", config.data.max_objects),
    };
    let updates = match config.data.accumulate {
        1 => String::new(),
        count => format!(", {count} steps an update"),
    };
    let gib = |bytes: usize| format!("{:.2} GiB", bytes as f64 / f64::from(1 << 30));
    let free = device.available().map_or(String::new(), |free| format!(", of {} free", gib(free as usize)));
    let mut text = format!(
        "step        {}: {batch} images of {height}x{width}{objects}{updates}\n\
         device      {}\n\
         memory      {}{free}\n  \
           kept      {}: weights in training, with moments, sums and averages\n  \
           passing   {}: feature maps, gradients, workspace\n  \
           frozen    {}\n",
        model.name,
        device.title(),
        gib(forecast.bytes()),
        gib(kept),
        gib(passing),
        gib(constants),
    );
    text += &match largest {
        Ok(fit) => format!("batch       data.batch = \"auto\" takes {} images\n", fit.images),
        Err(error) => format!("batch       too large: {error}\n"),
    };
    let (count, names) = again(&network.stretches, fit);
    let costs = |with: &Forecast| {
        let more = 100.0 * (with.flops as f64 / without.flops.max(1) as f64 - 1.0);
        let (with, without) = (gib(with.bytes()), gib(without.bytes()));
        format!("{with} instead of {without}, and {more:.1} % more operations\n")
    };
    text += &match names.len() {
        0 => format!("recompute   off; on takes {}", costs(&all)),
        _ => format!("recompute   {count}: {}", costs(&forecast)),
    };
    if !names.is_empty() && names.len() < network.stretches.len() {
        text += &format!("  on takes  {}", costs(&all));
    }
    for stretch in &network.stretches[..names.len()] {
        text += &format!("  again     {stretch}\n");
    }
    text += &format!("operations  {:.1} GFLOP a step\n", flops as f64 / 1e9);
    if let Some((least, table)) = &forecast.roofline {
        text += &format!(
            "roofline    {:.2} ms a step at least, {:.1} images/s at most\n\n{table}",
            least.as_secs_f64() * 1e3,
            batch as f64 / least.as_secs_f64()
        );
    }
    Ok(text)
}
