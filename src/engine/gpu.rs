//! The network at one input size on a GPU, with the pre- and post-processing of the last few photo sizes.

use super::MAX_PLANS;
use crate::cuda::on_device::{DeviceImage, DeviceResults, ExternalStream};
use crate::cuda::pipeline::{Ends, Results, copy_photo};
use crate::cuda::pre::{PixelFormat, Preprocess};
use crate::cuda::{Executor, Pipeline, Runtime};
use crate::error::{Error, Result};
use crate::image::bitmask::PixelBox;
use crate::image::instance::{InstanceResult, Ranked};
use crate::image::panoptic::{Assigned, PanopticPostprocessor, PanopticResult};
use crate::image::preprocess::{Geometry, PreprocessConfig};
use ::image::RgbImage;
use std::ops::Range;

/// An executor and the pipelines around it, most recently used last. They are dropped first: they work in its
/// arena.
pub(super) struct Gpu {
    pipelines: Vec<(Site, Pipeline)>,
    executor: Executor,
}

/// What a pipeline is made for.
#[derive(Clone, Copy, PartialEq)]
struct Site {
    format: PixelFormat,
    /// Height and width of the image.
    source: (usize, usize),
    geometry: Geometry,
}

/// How pipelines are made.
pub(super) struct Setting<'a> {
    pub runtime: &'a Runtime,
    pub preprocess: &'a PreprocessConfig,
    pub results: Results,
    /// Positions of class logits and mask logits among the executor's results.
    pub outputs: [usize; 2],
}

impl Gpu {
    pub(super) fn new(executor: Executor) -> Self {
        Gpu { pipelines: Vec::new(), executor }
    }

    pub(super) fn executor(&self) -> &Executor {
        &self.executor
    }

    pub(super) fn executor_mut(&mut self) -> &mut Executor {
        &mut self.executor
    }

    /// Copies `image` to where the GPU fetches it from. The pipeline of its size is made if there is none; it
    /// becomes the most recent.
    pub(super) fn prepare(
        &mut self,
        setting: &Setting<'_>,
        image: &RgbImage,
        geometry: &Geometry,
    ) -> Result<()> {
        let source = (image.height() as usize, image.width() as usize);
        self.find(setting, Site { format: PixelFormat::Rgb8, source, geometry: *geometry })?;
        copy_photo(image.as_raw(), self.latest()?.image_mut());
        Ok(())
    }

    /// Enqueues a run over an image in device memory on the caller's stream. The pipeline of its size and
    /// format is made if there is none; it becomes the most recent.
    ///
    /// # Safety
    /// As [`Pipeline::enqueue`].
    pub(super) unsafe fn enqueue(
        &mut self,
        setting: &Setting<'_>,
        image: &DeviceImage,
        geometry: &Geometry,
        stream: ExternalStream,
    ) -> Result<DeviceResults> {
        self.find(setting, Site { format: image.format, source: image.size, geometry: *geometry })?;
        let Gpu { pipelines, executor } = self;
        let (_, pipeline) = pipelines.last_mut().ok_or_else(unprepared)?;
        // SAFETY: the caller vouches for image and stream.
        unsafe { pipeline.enqueue(executor, image, stream) }
    }

    /// Makes the pipeline of `site` the most recent, and makes it if there is none.
    fn find(&mut self, setting: &Setting<'_>, site: Site) -> Result<()> {
        if let Some(found) = self.pipelines.iter().position(|(known, _)| *known == site) {
            self.pipelines[found..].rotate_left(1);
        } else {
            let PreprocessConfig { mean, std, .. } = *setting.preprocess;
            let Site { format, source, geometry } = site;
            let bytes = if matches!(format, PixelFormat::Nv12(_)) { 1 } else { 3 };
            let preprocess = Preprocess {
                format,
                source,
                pitch: bytes * source.1,
                resized: geometry.resized,
                padded: geometry.padded,
                mean,
                std,
            };
            let ends = Ends { preprocess, original: geometry.original, results: setting.results };
            if self.pipelines.len() == MAX_PLANS {
                self.pipelines.remove(0);
            }
            let pipeline = Pipeline::new(&self.executor, setting.runtime, &ends, setting.outputs)?;
            self.pipelines.push((site, pipeline));
        }
        Ok(())
    }

    /// Runs the pipeline of the last [`Gpu::prepare`].
    pub(super) fn run(&mut self) -> Result<()> {
        let Gpu { pipelines, executor } = self;
        let (_, pipeline) = pipelines.last_mut().ok_or_else(unprepared)?;
        pipeline.run(executor)
    }

    /// Instances of the last run.
    pub(super) fn instances(
        &mut self,
        classes: usize,
        geometry: &Geometry,
        result: &mut InstanceResult,
    ) -> Result<()> {
        let pipeline = self.latest()?;
        let (scores, pairs, places) = pipeline.ranking();
        let masks = pipeline.masks();
        let extent = |place: usize| {
            let all = masks.extent(place);
            let [x, y, width, height] = all.rectangle();
            (all.area as usize, PixelBox { x, y, width, height })
        };
        let copy_mask = |place: usize, stale: Range<usize>, mask: &mut [u8]| masks.copy(place, stale, mask);
        let ranked = Ranked { classes, scores, pairs, places, copy_mask: &copy_mask, extent: &extent };
        result.assemble(&ranked, geometry.original)
    }

    /// The panoptic map of the last run.
    pub(super) fn panoptic(
        &mut self,
        postprocessor: &mut PanopticPostprocessor,
        geometry: &Geometry,
        result: &mut PanopticResult,
    ) -> Result<()> {
        let pipeline = self.latest()?;
        let ((won, own), (scores, labels)) = (pipeline.areas(), pipeline.classified());
        let assigned = Assigned { ids: pipeline.assignment(), won, own, scores, labels };
        postprocessor.run_assigned(&assigned, geometry, result)
    }

    fn latest(&mut self) -> Result<&mut Pipeline> {
        self.pipelines.last_mut().map(|(_, pipeline)| pipeline).ok_or_else(unprepared)
    }
}

fn unprepared() -> Error {
    Error::Graph("a GPU run before an image was prepared".into())
}
