//! A look at the data of a run, without training: what it holds, how long it takes to open, how fast samples
//! are made.

use std::sync::Arc;
use std::time::Instant;

use super::Observer;
use super::config::RunConfig;
use super::describe;
use crate::error::Result;
use crate::train::data::{DataConfig, Loader, Mix};

/// Opens the data sets of a run and tells `observer` what they hold. With `samples`, the loader's threads
/// make so many besides (at least two batches), and the speed is told: that of an epoch in which no photo is
/// in memory yet, if the set is larger than `samples`.
///
/// # Errors
/// What is wrong with the configuration, the data sets or, with `samples`, the model and a sample.
pub fn check(config: &RunConfig, samples: u64, observer: &mut dyn Observer) -> Result<()> {
    config.validate()?;
    if !config.data.val.is_empty() {
        open(config, &config.data.val, "val", observer)?;
    }
    let mix = Arc::new(open(config, &config.data.train, "train", observer)?);
    if samples == 0 {
        return Ok(());
    }
    let model = config.model(&mix, config.start.weights.as_deref())?;
    // How fast samples are made does not hang on how many make a batch.
    let batch = config.data.batch.images().unwrap_or(2);
    let mut loader = Loader::new(mix, config.loader(&model, batch))?;
    let begun = Instant::now();
    // What the threads have made ahead when the clock stops is not counted, as the clock ran when they began.
    let mut made = 0;
    while made < samples.max(2 * batch as u64) {
        made += loader.next_batch()?.len() as u64;
    }
    let seconds = begun.elapsed().as_secs_f64();
    let (threads, [height, width]) = (config.data.loader_threads, config.augment.size);
    observer.note(&format!(
        "loader: {made} samples of {height} x {width} pixels in {seconds:.1} s, {:.1} a second ({threads} threads)",
        made as f64 / seconds
    ));
    Ok(())
}

fn open(config: &RunConfig, sets: &[DataConfig], what: &str, observer: &mut dyn Observer) -> Result<Mix> {
    let begun = Instant::now();
    let mix = Mix::open(sets, &config.reading())?;
    let seconds = begun.elapsed().as_secs_f64();
    describe::data(&mix, what, observer);
    observer.note(&format!("{what}: opened in {seconds:.1} s"));
    Ok(mix)
}
