//! Batches made ahead by worker threads, handed out in an order that depends on nothing but seed and
//! position.
//!
//! A worker takes an empty buffer, then a ticket: the number of a batch and the samples in it. The consumer
//! waits for the lowest ticket it has not seen. There are only so many buffers, so nothing runs far ahead;
//! the lowest ticket always has a buffer, so nothing waits for ever.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;

use super::augment::{Augment, Workspace};
use super::batch::{Batch, Labelling, Normalise, Targets};
use super::dataset::Sample;
use super::mix::Mix;
use super::random::{Draw, Purpose};
use super::sampler::{Cursor, Position, Sampler, Sampling};
use crate::dist::Share;
use crate::error::{Error, Result};
use crate::image::preprocess::PreprocessConfig;
use crate::memory;

/// Largest sizes that are plausible; beyond them a configuration is a slip of the keyboard.
const MAX_THREADS: usize = 256;
const MAX_BATCH_ELEMENTS: usize = 1 << 32;

/// How batches are made.
#[derive(Clone, Debug, PartialEq)]
pub struct LoaderConfig {
    /// Images of a batch (B).
    pub batch: usize,
    /// Of batches in turn, each rank makes one: all walk the same stream of samples.
    pub share: Share,
    /// What an image is labelled with.
    pub targets: Targets,
    /// Worker threads.
    pub threads: usize,
    /// Batches made ahead.
    pub prefetch: usize,
    /// Seed of everything random.
    pub seed: u64,
    /// Where to begin: the default, or what [`Loader::position`] said.
    pub start: Position,
    /// Augmentation and image size.
    pub augment: Augment,
    /// Which images are seen how often.
    pub sampling: Sampling,
    /// Decoded images are kept in memory up to this many bytes.
    pub cache_bytes: usize,
    /// Mean of each channel, R G B, on the scale 0..255.
    pub mean: [f32; 3],
    /// Standard deviation of each channel.
    pub std: [f32; 3],
}

impl Default for LoaderConfig {
    /// Batches of 2 with 100 slots, one thread, 1 GiB of cache, ImageNet statistics.
    fn default() -> Self {
        let PreprocessConfig { mean, std, .. } = PreprocessConfig::default();
        LoaderConfig {
            batch: 2,
            share: Share::ALONE,
            targets: Targets::Objects(100),
            threads: 1,
            prefetch: 2,
            seed: 0,
            start: Position::default(),
            augment: Augment::default(),
            sampling: Sampling::default(),
            cache_bytes: 1 << 30,
            mean,
            std,
        }
    }
}

impl LoaderConfig {
    fn validate(&self) -> Result<()> {
        let positive = [("batch", self.batch), ("threads", self.threads), ("prefetch", self.prefetch)];
        if let Some((name, _)) = positive.iter().find(|(_, v)| *v == 0) {
            return Err(Error::usage(format!("loader: {name} must be at least 1")));
        }
        let slots = match self.targets {
            Targets::Objects(0) => return Err(Error::usage("loader: max_objects must be at least 1")),
            Targets::Objects(slots) => slots,
            Targets::Pixels => 1,
        };
        self.augment.validate()?;
        let [height, width] = self.augment.padded();
        let elements =
            (height * width).checked_mul(self.batch).and_then(|p| p.checked_mul(slots.saturating_add(3)));
        if self.threads > MAX_THREADS
            || self.prefetch > 4096
            || elements.is_none_or(|e| e > MAX_BATCH_ELEMENTS)
        {
            return Err(Error::usage(format!(
                "loader: {} threads, {} batches ahead of {} images of {height} x {width} pixels with {} objects is too much",
                self.threads, self.prefetch, self.batch, slots
            )));
        }
        memory::check("making batches ahead (data.batch, data.prefetch, data.loader_threads)", self.bytes())
    }

    /// Bytes of the batches in memory at once.
    pub fn bytes(&self) -> usize {
        Batch::bytes(self.batch, self.targets, self.augment.padded()).saturating_mul(self.buffers())
    }

    /// Batches in memory at once: those made ahead, or one a thread, and the one that is learnt from.
    fn buffers(&self) -> usize {
        self.prefetch.max(self.threads) + 1
    }
}

/// What all workers share.
struct Shared {
    mix: Arc<Mix>,
    config: LoaderConfig,
    normalise: Normalise,
    labelling: Labelling,
    /// Images with countable objects, to copy from.
    donors: Vec<u32>,
    cache: Box<[OnceLock<Arc<Sample>>]>,
    cached_bytes: AtomicUsize,
    tickets: Mutex<Tickets>,
    /// Buffers that wait to be filled.
    empty: Mutex<Receiver<Batch>>,
    stop: AtomicBool,
}

struct Tickets {
    next: u64,
    cursor: Cursor,
}

impl Tickets {
    /// The samples of this rank's batch; those of the other ranks are passed over.
    fn samples(&mut self, batch: usize, Share { rank, ranks }: Share) -> Vec<(Position, u32)> {
        let mut samples = Vec::with_capacity(batch);
        for turn in 0..ranks {
            for _ in 0..batch {
                let sample = self.cursor.advance();
                if turn == rank {
                    samples.push(sample);
                }
            }
        }
        samples
    }
}

/// A batch on its way to the consumer.
struct Made {
    ticket: u64,
    batch: Batch,
    fault: Option<Error>,
    /// Where the batch after it, and after those of the other ranks, begins.
    after: Position,
}

/// Makes batches of a [`Mix`]. Dropping it ends its threads after at most one image each.
pub struct Loader {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// `None` only while being dropped.
    refill: Option<Sender<Batch>>,
    made: Receiver<Made>,
    /// Batches that came before their turn.
    early: Vec<Made>,
    current: Option<Batch>,
    next: u64,
    position: Position,
    sampler: Sampler,
}

impl Loader {
    /// Starts the threads.
    ///
    /// # Errors
    /// [`Error::Usage`] if a setting is out of range or the start lies beyond its epoch; [`Error::Memory`]
    /// for batches larger than the memory there is; [`Error::Io`] if the system gives no thread.
    pub fn new(mix: Arc<Mix>, config: LoaderConfig) -> Result<Loader> {
        config.validate()?;
        let cursor = Cursor::new(Sampler::new(&mix, &config.sampling, config.seed)?, config.start)?;
        let sampler = cursor.sampler().clone();
        let donors = sampler.images().filter(|&i| mix.countable(i as usize) > 0).collect();
        let (refill, empty) = channel();
        for _ in 0..config.buffers() {
            let batch = Batch::new(config.batch, config.targets, config.augment.padded());
            refill.send(batch).expect("the receiver is a line above");
        }
        let shared = Arc::new(Shared {
            normalise: Normalise::new(config.mean, config.std)?,
            labelling: Labelling {
                things: mix.things(),
                classes: mix.classes().len(),
                min_area: config.augment.min_area,
            },
            donors,
            cache: (0..mix.len()).map(|_| OnceLock::new()).collect(),
            cached_bytes: AtomicUsize::new(0),
            tickets: Mutex::new(Tickets { next: 0, cursor }),
            empty: Mutex::new(empty),
            stop: AtomicBool::new(false),
            mix,
            config,
        });
        let (done, made) = channel();
        let position = shared.config.start;
        let mut loader = Loader {
            workers: Vec::new(),
            refill: Some(refill),
            made,
            early: Vec::new(),
            current: None,
            next: 0,
            position,
            sampler,
            shared,
        };
        for i in 0..loader.shared.config.threads {
            let (shared, done) = (Arc::clone(&loader.shared), done.clone());
            let worker = std::thread::Builder::new()
                .name(format!("loader {i}"))
                .spawn(move || work(&shared, &done))
                .map_err(|e| Error::io("loader thread", e))?;
            loader.workers.push(worker);
        }
        Ok(loader)
    }

    /// The next batch. It stays valid until the next call, which takes its buffers back.
    ///
    /// # Errors
    /// What went wrong with an image of the batch, naming file and record. [`Loader::position`] then still
    /// points to this batch; another call goes on with the batch after it.
    pub fn next_batch(&mut self) -> Result<&Batch> {
        self.recycle_current();
        let made = match self.early.iter().position(|m| m.ticket == self.next) {
            Some(at) => self.early.swap_remove(at),
            None => loop {
                match self.made.recv() {
                    Ok(made) if made.ticket == self.next => break made,
                    Ok(made) => self.early.push(made),
                    Err(_) => return Err(Error::usage("the loader has no thread left")),
                }
            },
        };
        self.next += 1;
        let batch = self.current.insert(made.batch);
        if let Some(fault) = made.fault {
            return Err(fault);
        }
        self.position = made.after;
        Ok(batch)
    }

    /// The batch that [`Loader::next_batch`] has handed out last.
    ///
    /// # Errors
    /// [`Error::Usage`] if it has handed out none yet.
    pub fn current(&self) -> Result<&Batch> {
        self.current.as_ref().ok_or_else(|| Error::usage("the loader has handed out no batch"))
    }

    /// Where the batch after the last one handed out, and after those of the other ranks, begins: what to
    /// store for resuming, with any number of ranks.
    pub fn position(&self) -> Position {
        self.position
    }

    /// Number of samples in an epoch; with fractional weights it varies from epoch to epoch.
    pub fn epoch_len(&self, epoch: u64) -> u64 {
        self.sampler.len(epoch)
    }

    /// Number of samples from [`Loader::position`] to the end of epoch `epochs - 1`.
    ///
    /// # Errors
    /// [`Error::Usage`] if that is more than any run can see.
    pub fn left(&self, epochs: u64) -> Result<u64> {
        self.sampler.left(self.position, epochs)
    }

    /// What it was started with.
    pub fn config(&self) -> &LoaderConfig {
        &self.shared.config
    }

    /// The data it reads.
    pub fn mix(&self) -> &Arc<Mix> {
        &self.shared.mix
    }

    fn recycle_current(&mut self) {
        if let (Some(batch), Some(refill)) = (self.current.take(), &self.refill) {
            // Fails only if every worker is gone, which the next receive reports.
            let _ = refill.send(batch);
        }
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        // Wakes workers that wait for a buffer.
        self.refill = None;
        for worker in self.workers.drain(..) {
            let _ = worker.join();
        }
    }
}

/// The life of a worker thread.
fn work(shared: &Shared, done: &Sender<Made>) {
    let mut workspace = Workspace::default();
    loop {
        let buffer = lock(&shared.empty).recv();
        let Ok(mut batch) = buffer else { return };
        let (ticket, samples, after) = {
            let mut tickets = lock(&shared.tickets);
            let ticket = tickets.next;
            tickets.next += 1;
            (ticket, tickets.samples(shared.config.batch, shared.config.share), tickets.cursor.position())
        };
        // A decoder that panics on a hostile file is an error like any other; the consumer must not wait for
        // ever.
        let fault = catch_unwind(AssertUnwindSafe(|| shared.fill(&mut batch, &samples, &mut workspace)))
            .unwrap_or_else(|_| {
                workspace = Workspace::default();
                let names: Vec<String> = samples.iter().map(|&(_, i)| shared.mix.name(i as usize)).collect();
                Err(Error::data(names.join(", "), "reading one of these images failed unexpectedly"))
            })
            .err();
        if shared.stop.load(Ordering::Relaxed) || done.send(Made { ticket, batch, fault, after }).is_err() {
            return;
        }
    }
}

impl Shared {
    fn fill(&self, batch: &mut Batch, samples: &[(Position, u32)], workspace: &mut Workspace) -> Result<()> {
        batch.left_out = 0;
        let Workspace { painter, frame } = workspace;
        for (slot, &(place, image)) in samples.iter().enumerate() {
            if self.stop.load(Ordering::Relaxed) {
                return Ok(());
            }
            let mut draw = Draw::new(Purpose::Sample, self.config.seed, place.epoch, place.index);
            let sample = self.sample(image)?;
            let donor = |draw: &mut Draw| match self.donors.len() {
                0 => Ok(Arc::clone(&sample)),
                count => self.sample(self.donors[draw.below(count)]),
            };
            self.config.augment.apply(&sample, &mut draw, donor, painter, frame)?;
            batch.ids[slot] = sample.id;
            batch.put(slot, frame, &self.normalise, &self.labelling, &mut draw);
        }
        Ok(())
    }

    /// An image with its masks, from memory if it is there.
    fn sample(&self, image: u32) -> Result<Arc<Sample>> {
        let kept = &self.cache[image as usize];
        if let Some(sample) = kept.get() {
            return Ok(Arc::clone(sample));
        }
        let sample = Arc::new(self.mix.load(image as usize)?);
        let bytes = sample.bytes();
        let before = self.cached_bytes.fetch_add(bytes, Ordering::Relaxed);
        if before + bytes > self.config.cache_bytes || kept.set(Arc::clone(&sample)).is_err() {
            self.cached_bytes.fetch_sub(bytes, Ordering::Relaxed);
        }
        Ok(sample)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
