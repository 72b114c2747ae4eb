//! What a step of a run takes, before anything of it is there: for `knet-train --plan`, and for a batch that
//! is to be as large as memory allows.

use std::path::PathBuf;

use super::Observer;
use super::config::RunConfig;
use super::state::origin;
use crate::checkpoint::Checkpoint;
use crate::dist::Share;
use crate::engine::forecast::{Forecast, TrainingDevice};
use crate::error::{Error, Result};
use crate::model::{Config, Task};
use crate::train::data::{Mix, Reading};
use crate::train::network;

/// Most images that are chosen for a step: more are for those who ask for them.
const MOST_IMAGES: usize = 32;

/// Percentage of the free memory that a chosen batch takes: the rest is for validation and for others.
const SHARE: u64 = 85;

/// The largest number of images a step on one of several ranks can have, up to 32. Memory is planned, not
/// tried: a step always has the largest photos and the most objects that the configuration allows.
///
/// # Errors
/// [`Error::Memory`] if there is not enough for one image; as [`network::build_training`] and
/// [`TrainingDevice::forecast`].
pub fn largest_batch(
    config: &RunConfig,
    model: &Config,
    share: Share,
    device: &TrainingDevice,
) -> Result<usize> {
    let Some(available) = device.available() else { return Ok(2) };
    let sharing = if device.is_host() { share.ranks as u64 } else { 1 };
    let limit = available / sharing / 100 * SHARE;
    // A batch norm in training needs two values.
    let least = if model.task == Task::Semantic { 2 } else { 1 };
    let needed = |batch: usize| -> Result<u64> {
        let step = plan(config, model, batch, share, device)?.bytes() as u64;
        let loader = config.loader(model, batch);
        // The CPU learns in the memory that photos are decoded into.
        let photos = if device.is_host() { loader.bytes().saturating_add(loader.cache_bytes) } else { 0 };
        Ok(step + photos as u64)
    };
    let (of_least, of_next) = (needed(least)?, needed(least + 1)?);
    if of_least > limit {
        let [height, width] = config.augment.padded();
        return Err(Error::Memory {
            what: format!("a training step of {least} images of {height}x{width}"),
            needed: of_least,
            available: Some(available),
        });
    }
    // All but the weights grows by the image; kernels that are chosen by size may need a little more.
    let each = of_next.saturating_sub(of_least).max(1);
    let guess = least as u64 + (limit - of_least) / each;
    let mut batch = guess.min(MOST_IMAGES as u64) as usize;
    while batch > least && needed(batch)? > limit {
        batch -= 1;
    }
    Ok(batch)
}

/// Images of a step of a run: what the configuration says, or what a run that goes on from `state` had, or as
/// many as there is memory for. Ranks that find different numbers are refused when they compare settings.
pub(super) fn images(
    config: &RunConfig,
    model: &Config,
    state: Option<&PathBuf>,
    share: Share,
    observer: &mut dyn Observer,
) -> Result<usize> {
    if let Some(images) = config.data.batch.images() {
        return Ok(images);
    }
    let before = state.map(|path| origin(&Checkpoint::open(path)?)).transpose()?.flatten();
    if let Some(images) = before.and_then(|origin| origin.batch()) {
        return Ok(images);
    }
    let device = TrainingDevice::of(config.compute())?;
    let images = largest_batch(config, model, share, &device)?;
    observer.note(&format!("data.batch: {images} images, on {}", device.title()));
    Ok(images)
}

fn plan(
    config: &RunConfig,
    model: &Config,
    batch: usize,
    share: Share,
    device: &TrainingDevice,
) -> Result<Forecast> {
    let on_gpus = share.ranks > 1 && !device.is_host();
    device.forecast(&network::build(&config.step(model, batch, share), on_gpus)?.graph)
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
    let largest = largest_batch(config, &model, Share::ALONE, device);
    let batch = match (config.data.batch.images(), &largest) {
        (Some(images), _) => images,
        (None, Ok(images)) => *images,
        (None, Err(_)) => return largest.map(|images| images.to_string()),
    };
    let forecast = plan(config, &model, batch, Share::ALONE, device)?;
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
        Ok(images) => format!("batch       data.batch = \"auto\" takes {images} images\n"),
        Err(error) => format!("batch       too large: {error}\n"),
    };
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
