//! A loaded model.

#[cfg(feature = "cuda")]
use super::Tuning;
use super::backend::{Backend, Device, Notes};
use super::bundle::Manifest;
use super::quantized::Quantized;
use super::source::Opened;
use super::{WeightSource, bundle, class_list, source};
use crate::cpu::Arithmetic;
#[cfg(feature = "cuda")]
use crate::cuda::{self, Runtime, gpu::Target};
use crate::error::{Error, Result};
use crate::graph::Graph;
use crate::graph::passes::optimize;
use crate::graph::passes::quantize::quantize;
use crate::image::classes::Class;
use crate::model::{Config, Tap, TapMode, build};
use crate::tensor::Precision;
use std::path::PathBuf;
use std::sync::Arc;

/// Where a model comes from and where it computes.
#[derive(Clone, Debug)]
pub struct ModelOptions {
    /// Weights. The default is `seeded:0`.
    pub weights: WeightSource,
    /// Name of the model, for weights that do not say it.
    pub name: Option<String>,
    /// Computes here. The default is [`Device::Auto`].
    pub device: Device,
    /// Stores and multiplies maps in this precision. By default a GPU takes f16, and a CPU bf16 if it has AMX
    /// and `arithmetic` is not exact, else f32. With AVX-512 BF16 alone it takes bf16 if that is named: maps
    /// are half as large, but not sure to be faster. A CPU takes f32 for the precisions that GPUs alone have.
    pub precision: Option<Precision>,
    /// Whether a CPU multiplies the filters of [quantized](super::quantized) weights as the integers that
    /// they are. By default it does if it has instructions for that, unless a precision is named or
    /// `arithmetic` is exact. Named, it must; what is not quantized is computed in `precision`. Else, and on
    /// a GPU, such filters are numbers as any.
    pub int8: Option<bool>,
    /// How coarsely kernels on the CPU may round. The default, [`Arithmetic::Fast`], is about a fifth faster;
    /// with [`Arithmetic::Exact`], as in training, masks agree with PyTorch's also where a logit lies close
    /// to the threshold. A GPU rounds by its precision.
    pub arithmetic: Arithmetic,
    /// Chooses a GPU's kernels by this table where it knows them. The default is [`Tuning::User`].
    #[cfg(feature = "cuda")]
    pub tuning: Tuning,
}

impl Default for ModelOptions {
    fn default() -> Self {
        ModelOptions {
            weights: WeightSource::Seeded(0),
            name: None,
            device: Device::default(),
            precision: None,
            int8: None,
            arithmetic: Arithmetic::default(),
            #[cfg(feature = "cuda")]
            tuning: Tuning::default(),
        }
    }
}

/// Why some detectors are not for a GPU.
const CPU_ALONE: &str = "has operators without CUDA kernels and runs on the CPU alone";

/// A model in memory: what it is, and its weights as kernels read them.
///
/// It never changes. Any number of [`Session`](super::Session)s, each in a thread of its own, work with one
/// model and share its weights: what one session has packed, or brought to the GPU, the next one finds.
pub struct Model {
    config: Config,
    pub(super) backend: Backend,
    device_note: Option<String>,
    tuning_note: Option<String>,
    precision_note: Option<String>,
    /// The layers that are computed in int8, if some are.
    quantized: Option<Quantized>,
    /// The bundle that it comes of.
    bundle: Option<(PathBuf, Manifest)>,
}

impl Model {
    /// Loads a model.
    ///
    /// # Errors
    /// [`Error::NoDevice`] if a GPU was named and cannot be used, or a bundle is for other devices; as
    /// [`source::open`], or for bundles as [`bundle::read`]; [`Error::Usage`] for a damaged tuning table that
    /// was named, and if a GPU was named for a model that runs on the CPU alone
    /// ([`Config::is_for_cpu_inference`]); [`Error::Io`] for a table that cannot be read.
    pub fn load(options: &ModelOptions) -> Result<Arc<Model>> {
        let mut made_for = None;
        let (config, backend, notes, quantized) = match &options.weights {
            WeightSource::File(path) if bundle::is_bundle(path) => {
                let bundle::Opened { config, manifest, backend, notes, quantized } =
                    bundle::open(path, options)?;
                made_for = Some((path.clone(), manifest));
                (config, backend, notes, quantized)
            }
            weights => open(weights, options)?,
        };
        let Notes { device: device_note, tuning: tuning_note, precision: precision_note } = notes;
        log::info!("{} on {}", config.name, backend.name());
        if let Some(reason) = &device_note {
            log::warn!("the CPU computes, no GPU: {reason}");
        }
        if let Some(reason) = &tuning_note {
            log::warn!("the tuning table is not followed: {reason}");
        }
        if let Some(reason) = &precision_note {
            log::warn!("{reason}");
        }
        let bundle = made_for;
        Ok(Arc::new(Model { config, backend, device_note, tuning_note, precision_note, quantized, bundle }))
    }

    /// What it is.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The classes, in the order of the class indices in results; see [`class_list`].
    pub fn classes(&self) -> Vec<Class> {
        class_list(&self.config)
    }

    /// Where it computes, for people: the GPU's name and the precision, or the CPU's instruction set.
    pub fn device(&self) -> String {
        self.backend.name()
    }

    /// Why [`Device::Auto`] took the CPU; `None` if it did not, or if a device was named.
    pub fn device_note(&self) -> Option<&str> {
        self.device_note.as_deref()
    }

    /// Whether it computes on the PTX emulator's stand-in for a driver, where no time means anything.
    #[cfg(feature = "cuda")]
    pub fn is_emulated(&self) -> bool {
        self.backend.runtime().is_some_and(|runtime| runtime.device().is_emulated())
    }

    /// What its kernels are chosen for, if it computes on a GPU.
    #[cfg(feature = "cuda")]
    pub fn target(&self) -> Option<Target> {
        self.backend.runtime().map(Runtime::target)
    }

    /// How the kernels of the GPU that it computes on are chosen; `None` on the CPU.
    #[cfg(feature = "cuda")]
    pub fn selection(&self) -> Option<&cuda::Selection> {
        self.backend.runtime().map(Runtime::selection)
    }

    /// Why a tuning table that is there is not followed; `None` if it is, or if there is none.
    pub fn tuning_note(&self) -> Option<&str> {
        self.tuning_note.as_deref()
    }

    /// Why quantized weights are not computed in int8, where nothing was said of it; `None` if they are, or
    /// if they are not quantized.
    pub fn precision_note(&self) -> Option<&str> {
        self.precision_note.as_deref()
    }

    /// The layers that are computed in int8; `None` if none is.
    pub fn quantized(&self) -> Option<&Quantized> {
        self.quantized.as_ref()
    }

    /// Bytes of the weights that sessions have loaded so far, as kernels read them, on the device that
    /// computes. They are there once, however many sessions use them.
    pub fn weight_bytes(&self) -> usize {
        self.backend.constant_bytes()
    }

    /// Refuses a size of the network's input that a bundle was not made for.
    ///
    /// # Errors
    /// [`Error::Usage`] naming the bundle, its sizes and this one.
    pub(super) fn check_size(&self, (height, width): (usize, usize)) -> Result<()> {
        let Some((path, manifest)) = &self.bundle else { return Ok(()) };
        if manifest.sizes.contains(&[height, width]) {
            return Ok(());
        }
        let (path, sizes) = (path.display(), manifest.sizes());
        Err(Error::usage(format!(
            "{path}: the bundle is for {sizes}, and this image is {height}x{width} in the network: add it to --size of `knet compile`, or use the checkpoint"
        )))
    }

    /// The network at one input size with so many of its stages, ready to be planned.
    pub(super) fn graph(
        &self,
        size: (usize, usize),
        taps: TapMode,
        stages: usize,
    ) -> Result<(Graph, Vec<Tap>)> {
        let mut config = self.config.clone();
        config.head.stages = stages;
        let network = build(&config, 1, [size.0, size.1], taps)?;
        let mut graph = optimize(network.graph)?;
        if let Some(quantized) = &self.quantized {
            quantize(&mut graph, &quantized.layers);
        }
        Ok((graph, network.taps))
    }
}

/// The model of a checkpoint, or of seeded weights, where the options ask for it, and the layers that are
/// computed in int8.
fn open(
    weights: &WeightSource,
    options: &ModelOptions,
) -> Result<(Config, Backend, Notes, Option<Quantized>)> {
    let Opened { config, load, quantized, .. } = source::open(weights, options.name.as_deref())?;
    if options.int8 == Some(true) && quantized.is_none() {
        return Err(Error::usage(format!("{weights}: is not quantized, for int8: see `knet quantize`")));
    }
    let (backend, mut notes) = if !config.is_for_cpu_inference() {
        Backend::new(options, load)?
    } else if let Device::Cuda(_) = options.device {
        return Err(Error::usage(format!("{} {CPU_ALONE}: --device cpu", config.name)));
    } else {
        let on_cpu = ModelOptions { device: Device::Cpu, ..options.clone() };
        let (backend, notes) = Backend::new(&on_cpu, load)?;
        let device = (options.device == Device::Auto).then(|| format!("{} {CPU_ALONE}", config.name));
        (backend, Notes { device, ..notes })
    };
    let Some(quantized) = quantized else { return Ok((config, backend, notes, None)) };
    match backend.takes_int8(options) {
        Ok(true) => Ok((config, backend, notes, Some(quantized))),
        Ok(false) => Ok((config, backend, notes, None)),
        Err(reason) if options.int8.is_some() => Err(Error::usage(format!("--precision int8: {reason}"))),
        Err(reason) => {
            notes.precision = Some(format!("the quantized layers are not computed in int8: {reason}"));
            Ok((config, backend, notes, None))
        }
    }
}
