//! The network at one input size on a GPU, with pre- and post-processing of the last few photo sizes around
//! it.

use super::recent::Recent;
use super::session::{Adapter, MAX_PLANS};
use crate::cpu::Pool;
use crate::cuda::on_device::ExternalStream;
use crate::cuda::pre::Preprocess;
use crate::cuda::{self, Pipeline, Runtime, Told};
use crate::error::{Error, Result};
use crate::graph::Graph;
use crate::image::preprocess::Geometry;
use crate::image::view::{ImageView, PixelFormat};
use crate::model::rcnn::IMAGE_INFO;
use crate::task::PostprocessOnGpu;
use std::sync::Arc;

/// An executor and the pipelines around it. They are dropped first: they work in its arena.
pub(super) struct Gpu {
    pipelines: Recent<Ends, Pipeline>,
    runtime: Arc<Runtime>,
    pub(super) executor: cuda::Executor,
}

/// What a pipeline is made for.
#[derive(Clone, Copy, PartialEq)]
struct Ends {
    format: PixelFormat,
    /// Height and width of the image.
    source: (usize, usize),
    geometry: Geometry,
}

impl Ends {
    fn of<P>(adapter: &Adapter<P>, image: &ImageView<'_>) -> Ends {
        Ends { format: image.format(), source: image.size(), geometry: adapter.geometry }
    }
}

impl Gpu {
    /// Plans `graph` and binds the plan to memory and constants.
    pub(super) fn new(runtime: &Arc<Runtime>, graph: &Graph, pool: &Pool) -> Result<Gpu> {
        let plan = cuda::plan(graph, runtime.selection().clone())?;
        let executor = pool.run(|| cuda::Executor::new(plan, runtime))?;
        runtime.trim();
        Ok(Gpu { pipelines: Recent::new(MAX_PLANS), runtime: runtime.clone(), executor })
    }

    /// Runs the pipeline of the last photo.
    pub(super) fn run(&mut self) -> Result<()> {
        let Gpu { pipelines, executor, .. } = self;
        pipelines.latest().ok_or_else(unprepared)?.run(executor)
    }

    /// The pipeline of the last photo.
    pub(super) fn latest(&mut self) -> Result<&Pipeline> {
        Ok(self.pipelines.latest().ok_or_else(unprepared)?)
    }

    /// Brings a photo, of the host or of the device, to where the next run finds it.
    pub(super) fn prepare<P: PostprocessOnGpu>(
        &mut self,
        adapter: &Adapter<P>,
        image: &ImageView<'_>,
    ) -> Result<()> {
        self.pipeline(adapter, image)?;
        let Gpu { pipelines, executor, .. } = self;
        let pipeline = pipelines.latest().ok_or_else(unprepared)?;
        if image.is_on_device() { pipeline.fetch(executor, image) } else { pipeline.write(image) }
    }

    /// Enqueues a run over an image in device memory on the caller's stream, and says where its results will
    /// lie.
    ///
    /// # Safety
    /// As [`Pipeline::enqueue`].
    pub(super) unsafe fn enqueue<P: PostprocessOnGpu>(
        &mut self,
        adapter: &Adapter<P>,
        image: &ImageView<'_>,
        stream: ExternalStream,
    ) -> Result<P::OnDevice> {
        self.pipeline(adapter, image)?;
        let Gpu { pipelines, executor, .. } = self;
        let pipeline = pipelines.latest().ok_or_else(unprepared)?;
        // SAFETY: the caller vouches for image and stream.
        unsafe { pipeline.enqueue(executor, image, stream) }?;
        Ok(adapter.task.on_device(pipeline, &adapter.geometry))
    }

    /// Whether there is a pipeline for photos like this one.
    pub(super) fn has_pipeline<P>(&self, adapter: &Adapter<P>, image: &ImageView<'_>) -> bool {
        self.pipelines.has(&Ends::of(adapter, image))
    }

    /// The pipeline for photos like this one, made if there is none. It becomes the most recent.
    pub(super) fn pipeline<P: PostprocessOnGpu>(
        &mut self,
        adapter: &Adapter<P>,
        image: &ImageView<'_>,
    ) -> Result<&mut Pipeline> {
        let Adapter { geometry, preprocessor, task } = adapter;
        let ends = Ends::of(adapter, image);
        let Gpu { pipelines, runtime, executor } = self;
        pipelines.get(ends, || {
            let preprocess = Preprocess::new(ends.format, ends.source, geometry, preprocessor.config());
            let post = task.launches(executor.plan(), geometry, &runtime.target())?;
            let info = geometry.info();
            let told = Told(&[(IMAGE_INFO, &info)]);
            Pipeline::new(executor, runtime, &preprocess, told, &post, task.reads())
        })
    }
}

fn unprepared() -> Error {
    Error::State("a GPU run before an image was prepared".into())
}
