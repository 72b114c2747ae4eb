//! From a frame to results on the bus.

use crate::bus::Outputs;
use crate::frame;
use crate::logging::Throttle;
use crate::maps::{Depth, Objects, label_info, overlay};
use crate::messages::Image;
use knet::engine::{Model, SessionOptions};
use knet::image::classes::Class;
use knet::{Segmentation, Session};
use ros2_client::MessageInfo;
use ros2_client::gid::Gid;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often the log says how fast it goes.
const REPORT: Duration = Duration::from_secs(10);

/// A session with what it needs to answer.
pub struct Segmenter {
    session: Session,
    found: Segmentation,
    classes: Vec<Class>,
    depth: Depth,
    /// Overlays are drawn for nobody, too.
    always_overlay: bool,
    refused: Throttle,
    failed: Throttle,
    pace: Pace,
}

impl Segmenter {
    /// A session of `model`.
    ///
    /// # Errors
    /// As [`Session::new`].
    pub fn new(model: Arc<Model>, options: &SessionOptions, always_overlay: bool) -> knet::Result<Segmenter> {
        let classes = model.classes();
        Ok(Segmenter {
            session: Session::new(model, options)?,
            found: Segmentation::default(),
            depth: Depth::of(classes.len()),
            classes,
            always_overlay,
            refused: Throttle::default(),
            failed: Throttle::default(),
            pace: Pace::default(),
        })
    }

    /// Publishes what the values of maps mean.
    pub fn announce(&self, threshold: f32, outputs: &mut Outputs) {
        outputs.label_info.send(label_info(&self.classes, self.depth, threshold));
    }

    /// Segments a frame and publishes the results under its header. A frame that is none, and one that cannot
    /// be segmented, costs a warning.
    pub fn handle(&mut self, image: &Image, info: &MessageInfo, outputs: &mut Outputs) {
        let start = Instant::now();
        let view = match frame::view(image) {
            Ok(view) => view,
            Err(reason) => return self.refused.warn(format_args!("a frame is refused: {reason}")),
        };
        if let Err(error) = self.session.segment_into(view, &mut self.found) {
            return self.failed.warn(format_args!("a frame is lost: {error}"));
        }
        let (header, objects) = (&image.header, Objects::new(&self.found));
        outputs.instances.send(objects.instance_map(header));
        outputs.classes.send(objects.class_map(header, self.depth));
        let total = start.elapsed();
        self.pace.add(
            info,
            &Frame {
                total,
                network: self.session.timings().network,
                age: header.stamp.age(),
                stages: self.found.stages(),
            },
        );
        if self.pace.frames == 1 && self.pace.is_first {
            let Image { width, height, encoding, .. } = image;
            let count = self.found.found().count();
            log::info!(
                "first frame, {height}x{width} {encoding}: {count} objects in {total:.1?}, planned on the way"
            );
        }
        self.pace.report();
        let wanted = |output| self.always_overlay || outputs.is_wanted(output);
        if outputs.overlay.as_ref().is_some_and(wanted) {
            match overlay(header, &view, &self.found, &self.classes) {
                Ok(drawn) => {
                    if let Some(output) = &mut outputs.overlay {
                        output.send(drawn);
                    }
                }
                Err(error) => self.failed.warn(format_args!("an overlay is lost: {error}")),
            }
        }
    }

    /// What it has done, for the last line of the log.
    pub fn frames(&self) -> u64 {
        self.pace.all
    }
}

/// The numbers of a frame.
struct Frame {
    /// From the image to maps on their way.
    total: Duration,
    network: Duration,
    /// Of the stamp, when the maps left.
    age: Duration,
    stages: usize,
}

/// Numbers since the last report.
#[derive(Default)]
struct Pace {
    since: Option<Instant>,
    frames: u32,
    total: Duration,
    network: Duration,
    worst: Duration,
    age: Duration,
    stages: usize,
    /// Frames of the publisher that were never seen.
    missed: i64,
    last: Option<(Gid, i64)>,
    is_first: bool,
    /// Frames of all times.
    all: u64,
}

impl Pace {
    fn add(&mut self, info: &MessageInfo, frame: &Frame) {
        self.since.get_or_insert_with(Instant::now);
        self.is_first = self.all == 0;
        self.all += 1;
        self.frames += 1;
        self.total += frame.total;
        self.network += frame.network;
        self.worst = self.worst.max(frame.total);
        self.age += frame.age;
        self.stages += frame.stages;
        let here = (info.publisher_gid(), info.sequence_number());
        if let Some((gid, number)) = self.last.replace(here)
            && gid == here.0
        {
            self.missed += (here.1 - number - 1).max(0);
        }
    }

    /// Says how fast it goes, now and then.
    fn report(&mut self) {
        let Some(since) = self.since.filter(|since| since.elapsed() >= REPORT) else { return };
        let n = self.frames;
        log::info!(
            "{n} frames in {:.1} s: {:.1} ms each (network {:.1}, at most {:.1}), {:.1} stages; results left {:.1} ms \
             after the stamp; {} frames missed",
            since.elapsed().as_secs_f64(),
            ms(self.total) / f64::from(n),
            ms(self.network) / f64::from(n),
            ms(self.worst),
            self.stages as f64 / f64::from(n),
            ms(self.age) / f64::from(n),
            self.missed
        );
        *self = Pace { last: self.last, all: self.all, ..Pace::default() };
    }
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
