//! The network at one input size on a GPU, with the pre- and post-processing of the last few photo sizes.

use super::MAX_PLANS;
use crate::cuda::pipeline::{Ends, Results};
use crate::cuda::post::Extent;
use crate::cuda::pre::{PixelFormat, Preprocess};
use crate::cuda::{Executor, Pipeline, Runtime};
use crate::error::{Error, Result};
use crate::image::bitmask::PixelBox;
use crate::image::instance::{InstancePostprocessor, InstanceResult, PackedMasks};
use crate::image::panoptic::{Assigned, PanopticPostprocessor, PanopticResult};
use crate::image::preprocess::{Geometry, PreprocessConfig};
use ::image::RgbImage;

/// An executor and the pipelines around it, most recently used last. They are dropped first: they work in its arena.
pub(super) struct Gpu {
    pipelines: Vec<(Site, Pipeline)>,
    executor: Executor,
}

/// What a pipeline is made for.
#[derive(Clone, Copy, PartialEq)]
struct Site {
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

    /// Copies `image` to where the GPU fetches it from. The pipeline of its size is made if there is none; it becomes the
    /// most recent.
    pub(super) fn prepare(
        &mut self,
        setting: &Setting<'_>,
        image: &RgbImage,
        geometry: &Geometry,
    ) -> Result<()> {
        let source = (image.height() as usize, image.width() as usize);
        let site = Site { source, geometry: *geometry };
        if let Some(found) = self.pipelines.iter().position(|(known, _)| *known == site) {
            self.pipelines[found..].rotate_left(1);
        } else {
            let PreprocessConfig { mean, std, .. } = *setting.preprocess;
            let preprocess = Preprocess {
                format: PixelFormat::Rgb8,
                source,
                pitch: 3 * source.1,
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
        self.latest()?.image_mut().copy_from_slice(image.as_raw());
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
        postprocessor: &mut InstancePostprocessor,
        geometry: &Geometry,
        result: &mut InstanceResult,
    ) -> Result<()> {
        let pipeline = self.latest()?;
        let (objects, bits, stride) = pipeline.masks();
        let extents = pipeline.extents();
        let bands = extents.len() / objects.max(1);
        let extent = |object: usize| {
            let parts = &extents[object * bands..][..bands];
            let part = parts.iter().fold(Extent::NOTHING, |all, &part| all.join(part));
            let side = |first: u32, last: u32| (last + 1).saturating_sub(first) as usize;
            let bbox = match part.area {
                0 => PixelBox::default(),
                _ => PixelBox {
                    x: part.left as usize,
                    y: part.top as usize,
                    width: side(part.left, part.right),
                    height: side(part.top, part.bottom),
                },
            };
            (part.area as usize, bbox)
        };
        let masks = PackedMasks { objects, bits, stride, extent: &extent };
        postprocessor.run_packed(pipeline.class_logits(), &masks, geometry, result)
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
