//! The network at one input size, bound to memory: on the CPU, or on a GPU with pre- and post-processing
//! around it.

use super::backend::Backend;
use super::deadline::Frame;
#[cfg(feature = "cuda")]
use super::gpu::Gpu;
use super::session::Adapter;
use crate::cpu::{self, Pool};
#[cfg(feature = "cuda")]
use crate::cuda::Told;
use crate::error::{Error, Result};
use crate::graph::Graph;
use crate::image::preprocess::Geometry;
use crate::image::view::ImageView;
use crate::model::is_stage_output;
use crate::model::rcnn::IMAGE_INFO;
use crate::plan::Plan;
#[cfg(not(feature = "cuda"))]
use crate::task::Postprocess as Finish;
#[cfg(feature = "cuda")]
use crate::task::PostprocessOnGpu as Finish;
use std::time::{Duration, Instant};

/// A network of one input size on its device.
pub(super) enum Network {
    Cpu(Box<cpu::Executor>),
    #[cfg(feature = "cuda")]
    Cuda(Box<Gpu>),
}

impl Network {
    /// Plans `graph` and binds the plan to memory and constants.
    pub(super) fn new(backend: &Backend, graph: &Graph, pool: &Pool) -> Result<Network> {
        match backend {
            Backend::Cpu { selection, weights } => {
                let plan = cpu::plan(graph, *selection)?;
                let executor = pool.run(|| cpu::Executor::new(plan, weights))?;
                weights.trim();
                Ok(Network::Cpu(Box::new(executor)))
            }
            #[cfg(feature = "cuda")]
            Backend::Cuda(runtime) => Ok(Network::Cuda(Box::new(Gpu::new(runtime, graph, pool)?))),
        }
    }

    /// The plan, for people.
    pub(super) fn plan(&self) -> Plan {
        match self {
            Network::Cpu(executor) => executor.plan().described(),
            #[cfg(feature = "cuda")]
            Network::Cuda(gpu) => gpu.executor.plan().described(),
        }
    }

    /// Brings a photo to where [`Network::run`] finds it.
    pub(super) fn prepare<P: Finish>(
        &mut self,
        adapter: &mut Adapter<P>,
        image: &ImageView<'_>,
    ) -> Result<()> {
        match self {
            Network::Cpu(executor) => {
                adapter.preprocessor.run(*image, executor.input_mut(0))?;
                inform(executor, &adapter.geometry);
                Ok(())
            }
            #[cfg(feature = "cuda")]
            Network::Cuda(gpu) => gpu.prepare(adapter, image),
        }
    }

    /// Runs the network, on a GPU with what comes before and after it: segment by segment as far as the frame
    /// has time, and gives how many were run. On a GPU there is one.
    pub(super) fn run(&mut self, frame: &mut Frame<'_>) -> Result<usize> {
        match self {
            Network::Cpu(executor) => {
                let segments = executor.plan().segments.len();
                let done = (0..segments).take_while(|&segment| {
                    let begun = frame.has_time_for(segment);
                    if begun {
                        executor.run_one(segment);
                        frame.ran(segment);
                    }
                    begun
                });
                Ok(done.count())
            }
            #[cfg(feature = "cuda")]
            Network::Cuda(gpu) => {
                gpu.run()?;
                frame.ran(0);
                Ok(1)
            }
        }
    }

    /// Makes the result of the last run, or, on the CPU, of its first `stages`.
    pub(super) fn finish<P: Finish>(
        &mut self,
        adapter: &mut Adapter<P>,
        found: &mut P::Found,
        stages: Option<usize>,
    ) -> Result<()> {
        let Adapter { task, geometry, .. } = adapter;
        match self {
            Network::Cpu(executor) => {
                let executor = &**executor;
                let output = |name: &str| {
                    let missing = || Error::Graph(format!("the network has no output `{name}`"));
                    let mut outputs = executor.plan().outputs.iter().map(|(output, _)| output);
                    let index = match stages {
                        None => executor.output_index(name),
                        Some(count) => outputs.position(|output| is_stage_output(output, count - 1, name)),
                    };
                    let index = index.ok_or_else(missing)?;
                    Ok((executor.output_type(index).shape, executor.output(index)))
                };
                task.on_host(&output, geometry, found)
            }
            #[cfg(feature = "cuda")]
            Network::Cuda(gpu) => task.collect(gpu.latest()?, geometry, found),
        }
    }

    /// The time of the network alone in each of `runs` runs, over whatever its inputs hold: on a GPU by the
    /// device's own clock, as one graph without copies; on the CPU by the wall's.
    pub(super) fn time(&mut self, runs: usize) -> Result<Vec<Duration>> {
        match self {
            Network::Cpu(executor) => Ok((0..runs)
                .map(|_| {
                    inform_of_whole(executor);
                    let start = Instant::now();
                    executor.run();
                    start.elapsed()
                })
                .collect()),
            #[cfg(feature = "cuda")]
            Network::Cuda(gpu) => {
                let info = whole(gpu.executor.plan()).info();
                gpu.executor.time_network(runs, Told(&[(IMAGE_INFO, &info)]))
            }
        }
    }

    /// The time of each step in each of `runs` runs: on the CPU in runs of the network, on a GPU as
    /// `cuda::Executor::time_steps` takes it.
    pub(super) fn time_steps(&mut self, runs: usize, mut report: impl FnMut(usize, Duration)) -> Result<()> {
        match self {
            Network::Cpu(executor) => (0..runs).for_each(|_| {
                inform_of_whole(executor);
                executor.run_timed(&mut report);
            }),
            #[cfg(feature = "cuda")]
            Network::Cuda(gpu) => {
                let info = whole(gpu.executor.plan()).info();
                gpu.executor.time_steps(runs, Told(&[(IMAGE_INFO, &info)]), report)?
            }
        }
        Ok(())
    }
}

/// The input of a network that takes more than pixels, which says where the photo is in them.
pub(super) fn info_input<P>(plan: &Plan<P>) -> Option<usize> {
    plan.inputs.iter().position(|(name, _)| name == IMAGE_INFO)
}

/// Tells a network that takes more than pixels where the photo is in them.
pub(super) fn inform(executor: &mut cpu::Executor, geometry: &Geometry) {
    if let Some(input) = info_input(executor.plan()) {
        executor.input_mut(input).copy_from_slice(&geometry.info());
    }
}

/// As [`inform`], of a photo that fills the input. What an earlier run was told may lie under other values.
fn inform_of_whole(executor: &mut cpu::Executor) {
    let geometry = whole(executor.plan());
    inform(executor, &geometry);
}

/// A photo that fills the input.
fn whole<P>(plan: &Plan<P>) -> Geometry {
    let shape = plan.inputs[0].1.ty.shape;
    let padded = (shape[1], shape[2]);
    Geometry { original: padded, resized: padded, padded }
}

#[cfg(all(test, feature = "cuda"))]
mod tests {
    //! A third task, as whoever adds one would write it: the class of every pixel at the size of the mask
    //! logits. Here it has no line in the list of `src/task`, so nothing but this test knows it.

    use super::*;
    use crate::cuda::launch::{Arg, Launch, Program};
    use crate::cuda::post::{Buffer, MaskLogits, PostProcess, Residence};
    use crate::cuda::{self, Pipeline, gpu::Target};
    use crate::engine::{Device, Model, ModelOptions};
    use crate::image::RgbImage;
    use crate::image::preprocess::{PreprocessConfig, Preprocessor};
    use crate::model::{Config, MASK_PREDS, SIZE_DIVISOR, TapMode};
    use crate::task::{HostOutputs, Postprocess, PostprocessOnGpu, PostprocessOptions};

    /// The object with the largest logit of each pixel.
    struct Winners;

    #[derive(Clone, Copy)]
    enum WinnersBuffer {
        Map,
    }

    impl Postprocess for Winners {
        type Found = Vec<u16>;

        fn new(_: &Config, _: &PostprocessOptions) -> Result<Self> {
            Ok(Winners)
        }

        fn reads(&self) -> &'static [&'static str] {
            &[MASK_PREDS]
        }

        fn on_host(&mut self, network: &HostOutputs<'_>, _: &Geometry, found: &mut Vec<u16>) -> Result<()> {
            let (shape, logits) = network(MASK_PREDS)?;
            let pixels = shape[2] * shape[3];
            let best = |pixel: usize| {
                let logit = |object: &usize| logits[object * pixels + pixel];
                let objects = (0..shape[1]).rev();
                objects.max_by(|a, b| logit(a).total_cmp(&logit(b))).unwrap_or_default() as u16
            };
            found.clear();
            found.extend((0..pixels).map(best));
            Ok(())
        }
    }

    impl PostprocessOnGpu for Winners {
        type OnDevice = cuda::on_device::DeviceSlice;

        fn launches(&self, plan: &cuda::Plan, geometry: &Geometry, _: &Target) -> Result<PostProcess> {
            let logits = MaskLogits::of(plan, MASK_PREDS, geometry)?;
            let pixels = logits.size.0 * logits.size.1;
            let launch = Launch {
                source: "winners.cu",
                entry: "winners",
                defines: Vec::new(),
                grid: [pixels.div_ceil(256) as u32, 1, 1],
                block: [256, 1, 1],
                shared: 0,
                args: vec![Arg::Input(0), Arg::Output(WinnersBuffer::Map as usize)],
            };
            Ok(PostProcess {
                program: Program { launches: vec![launch], ..Program::default() },
                buffers: vec![Buffer { bytes: 2 * pixels, residence: Residence::Copied }],
            })
        }

        fn collect(&mut self, run: &Pipeline, _: &Geometry, found: &mut Vec<u16>) -> Result<()> {
            *found = run.host(WinnersBuffer::Map as usize).to_vec();
            Ok(())
        }

        fn on_device(&self, run: &Pipeline, _: &Geometry) -> Self::OnDevice {
            run.device(WinnersBuffer::Map as usize)
        }
    }

    #[test]
    fn a_third_task_is_one_file() {
        let options = ModelOptions {
            name: Some("knet_s3_lite0_fpn".into()),
            device: Device::Cpu,
            ..ModelOptions::default()
        };
        let model = Model::load(&options).unwrap();
        let pool = Pool::new(1).unwrap();
        let backend = model.backend.fork(1).unwrap();
        let preprocess =
            PreprocessConfig { size: Some((64, 96)), divisor: SIZE_DIVISOR, ..Default::default() };
        let preprocessor = Preprocessor::new(preprocess).unwrap();
        let geometry = preprocessor.geometry(48, 72);
        let (graph, _) = model.graph(geometry.padded, TapMode::Off, 3).unwrap();
        let mut network = Network::new(&backend, &graph, &pool).unwrap();
        let task = Winners::new(model.config(), &PostprocessOptions::default()).unwrap();
        let mut adapter = Adapter { geometry, preprocessor, task };
        let photo = RgbImage::from_fn(72, 48, |x, y| ::image::Rgb([x as u8 * 3, y as u8 * 5, 90]));
        let mut found = Vec::new();
        pool.run(|| {
            network.prepare(&mut adapter, &ImageView::from(&photo)).unwrap();
            network.run(&mut Frame::begin(Instant::now(), None)).unwrap();
            network.finish(&mut adapter, &mut found, None).unwrap();
        });
        let (height, width) = (geometry.padded.0 / 4, geometry.padded.1 / 4);
        assert!(found.len() == height * width || 4 * found.len() == height * width, "{}", found.len());
        assert!(found.iter().any(|&object| object != found[0]), "one object has all pixels");

        // What a GPU would launch for it needs no GPU to be written down.
        let target = Target { caps: crate::cuda::gpu::Caps::H100, precision: Default::default() };
        let plan = cuda::plan(&graph, target).unwrap();
        let post = adapter.task.launches(&plan, &geometry, &target).unwrap();
        assert_eq!(post.buffers[WinnersBuffer::Map as usize].bytes, 2 * found.len());
        assert_eq!(post.program.launches[0].grid, [found.len().div_ceil(256) as u32, 1, 1]);
    }
}
