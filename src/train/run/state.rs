//! Checkpoints of a run: the weights for use (`last.safetensors`), and all that resuming needs
//! (`last.state`).
//!
//! A state is a safetensors file with the tensors `param.KEY` (every parameter), `first.KEY` and `second.KEY`
//! (moments) and `average.KEY` (moving average), all in the checkpoint's layout, and the metadata below.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::resume::Origin;
use super::start::Values;
use crate::checkpoint::{Checkpoint, TensorData, TensorOut, first_non_finite, write_safetensors};
use crate::engine::source::{CONFIG_KEY, parameters};
use crate::error::{Error, Result, ShapeMismatch, WeightReport};
use crate::model::Config;
use crate::tensor::{Shape, Tensor};
use crate::train::data::Position;
use crate::train::loss_scale::LossScale;

/// Metadata key of [`Progress`].
const PROGRESS_KEY: &str = "knet.progress";
/// Metadata key of the [`Origin`].
const ORIGIN_KEY: &str = "knet.run";
/// Metadata key of the iteration in a checkpoint for use.
const ITERATION_KEY: &str = "knet.iteration";
/// Counters beyond this are damage: no run gets so far, and what is added to them must not wrap.
const MOST_COUNTED: u64 = 1 << 40;
/// Version of the format, raised when an older reader would go wrong.
const VERSION: u32 = 1;

/// How far a run has come.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Progress {
    /// Format of the file.
    pub version: u32,
    /// Updates done.
    pub iteration: u64,
    /// Where the loader goes on.
    pub position: Position,
    /// Seed of the run.
    pub seed: u64,
    /// Time spent training, seconds.
    pub seconds: f64,
    /// Best validation so far.
    pub best: Option<f64>,
    /// Epoch and seconds spent training at the last validation, so that when the next is due does not hang on
    /// restarts.
    #[serde(default)]
    pub validated: (u64, f64),
    /// Of a run in f16, the factor on losses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss_scale: Option<LossScale>,
}

impl Progress {
    /// A run that has not begun.
    pub fn new(seed: u64) -> Self {
        Progress {
            version: VERSION,
            iteration: 0,
            position: Position::default(),
            seed,
            seconds: 0.0,
            best: None,
            validated: (0, 0.0),
            loss_scale: None,
        }
    }
}

impl Progress {
    /// Updates that moved the weights.
    pub fn updates(&self) -> u64 {
        self.iteration - self.loss_scale.map_or(0, |scale| scale.left_out)
    }

    /// What is wrong with it, if anything.
    fn check(&self) -> std::result::Result<(), String> {
        let Position { epoch, index } = self.position;
        let counters = [
            ("iteration", self.iteration),
            ("position.epoch", epoch),
            ("position.index", index),
            ("validated", self.validated.0),
        ];
        if let Some((name, value)) = counters.into_iter().find(|&(_, value)| value > MOST_COUNTED) {
            return Err(format!("{name} is {value}, more than any run can reach"));
        }
        let times = [("seconds", self.seconds), ("validated", self.validated.1)];
        if let Some((name, value)) = times.into_iter().find(|(_, value)| !(0.0..1e12).contains(value)) {
            return Err(format!("{name} is {value}: a time in seconds is expected"));
        }
        if let Some(scale) = &self.loss_scale {
            scale.check()?;
            if scale.left_out > self.iteration {
                return Err(format!("{} updates left out of {}", scale.left_out, self.iteration));
            }
        }
        match self.best.filter(|best| !(-1.0..=1.0).contains(best)) {
            Some(best) => Err(format!("best is {best}: a number from -1 to 1 is expected")),
            None => Ok(()),
        }
    }
}

/// What the optimizer keeps of a parameter.
#[derive(Clone, Debug)]
pub struct Moments {
    /// First moment.
    pub first: Tensor,
    /// Second moment.
    pub second: Tensor,
    /// Moving average, if one is kept.
    pub average: Option<Tensor>,
}

/// A state in memory.
#[derive(Debug)]
pub struct State {
    /// How far the run had come.
    pub progress: Progress,
    /// Every parameter.
    pub values: Values,
    /// Moments of the trained parameters.
    pub moments: BTreeMap<String, Moments>,
    /// What the run was started with; older states do not say.
    pub origin: Option<Origin>,
}

impl State {
    /// The first tensor that holds a NaN or an infinity: such a state is of no use, and replaces no other.
    pub fn non_finite(&self) -> Option<String> {
        let bad = |tensor: &Tensor| first_non_finite(tensor.data()).is_some();
        let of_moments = |moments: &Moments| {
            bad(&moments.first) || bad(&moments.second) || moments.average.as_ref().is_some_and(bad)
        };
        let value = self.values.iter().find(|(_, tensor)| bad(tensor)).map(|(key, _)| key);
        let moment = || self.moments.iter().find(|(_, moments)| of_moments(moments)).map(|(key, _)| key);
        value.or_else(moment).cloned()
    }

    /// Writes it, all or nothing.
    ///
    /// # Errors
    /// As [`write_safetensors`].
    pub fn write(&self, path: &Path, model: &Config) -> Result<()> {
        let mut tensors: Vec<(String, &Tensor)> = Vec::new();
        tensors.extend(self.values.iter().map(|(key, tensor)| (format!("param.{key}"), tensor)));
        for (key, moments) in &self.moments {
            tensors.push((format!("first.{key}"), &moments.first));
            tensors.push((format!("second.{key}"), &moments.second));
            tensors.extend(moments.average.iter().map(|average| (format!("average.{key}"), average)));
        }
        let progress = serde_json::to_string(&self.progress)
            .map_err(|e| Error::usage(format!("{}: cannot be written: {e}", path.display())))?;
        let mut metadata: BTreeMap<String, String> =
            [(CONFIG_KEY.to_string(), model.to_json()), (PROGRESS_KEY.to_string(), progress)].into();
        if let Some(text) = self.origin.as_ref().and_then(|origin| serde_json::to_string(origin).ok()) {
            metadata.insert(ORIGIN_KEY.to_string(), text);
        }
        write(path, &tensors, false, &metadata)
    }

    /// Reads a state of a run of `model`.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::Checkpoint`] if the file cannot be read or is no state; [`Error::Weights`]
    /// listing what does not fit the model; [`Error::Usage`] if it was trained on other classes;
    /// [`Error::Checkpoint`] for values that are not finite.
    pub fn read(path: &Path, model: &Config) -> Result<State> {
        let file = Checkpoint::open(path)?;
        let metadata = |key: &str| {
            let value = file.metadata().get(key);
            value.ok_or_else(|| Error::checkpoint(path, format!("no `{key}`: not a state of knet-train")))
        };
        let progress: Progress = serde_json::from_str(metadata(PROGRESS_KEY)?)
            .map_err(|e| Error::checkpoint(path, format!("`{PROGRESS_KEY}`: {e}")))?;
        if progress.version != VERSION {
            let reason = format!("format {}, this program reads {VERSION}", progress.version);
            return Err(Error::checkpoint(path, reason));
        }
        progress.check().map_err(|reason| Error::checkpoint(path, format!("`{PROGRESS_KEY}`: {reason}")))?;
        let saved = Config::from_json(metadata(CONFIG_KEY)?);
        let saved = saved.map_err(|e| Error::checkpoint(path, e.to_string()))?;
        let values = read_values(&file, model)?;
        if saved.classes.names != model.classes.names {
            let (found, wanted) = (saved.classes.names.join(", "), model.classes.names.join(", "));
            return Err(Error::usage(format!(
                "{}: trained on the classes {found}, the data have {wanted}",
                path.display()
            )));
        }
        let mut moments = BTreeMap::new();
        for key in file.names().filter_map(|name| name.strip_prefix("first.")) {
            let average = format!("average.{key}");
            let average = file.shape(&average).map(|_| file.load_f32(&average)).transpose()?;
            let [first, second] = [format!("first.{key}"), format!("second.{key}")];
            let (first, second) = (file.load_f32(&first)?, file.load_f32(&second)?);
            moments.insert(key.to_string(), Moments { first, second, average });
        }
        let origin = origin(&file)?;
        let state = State { progress, values, moments, origin };
        match state.non_finite() {
            None => Ok(state),
            Some(key) => Err(Error::Checkpoint {
                path: path.to_path_buf(),
                key: Some(key),
                offset: None,
                reason: "holds a NaN or an infinity: nothing can go on from it".into(),
            }),
        }
    }

    /// The weights for use: the moving average where there is one.
    pub fn averaged(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.values.iter().map(|(key, value)| {
            let average = self.moments.get(key).and_then(|moments| moments.average.as_ref());
            (key.as_str(), average.unwrap_or(value))
        })
    }

    /// Writes the weights for use, all or nothing.
    ///
    /// # Errors
    /// As [`write_safetensors`].
    pub fn export(&self, path: &Path, model: &Config, f16: bool) -> Result<()> {
        let metadata = [
            (CONFIG_KEY.to_string(), model.to_json()),
            (ITERATION_KEY.to_string(), self.progress.iteration.to_string()),
        ]
        .into();
        let tensors: Vec<(String, &Tensor)> =
            self.averaged().map(|(key, tensor)| (key.to_string(), tensor)).collect();
        write(path, &tensors, f16, &metadata)
    }
}

fn write(
    path: &Path,
    tensors: &[(String, &Tensor)],
    f16: bool,
    metadata: &BTreeMap<String, String>,
) -> Result<()> {
    let shapes: Vec<Shape> = tensors.iter().map(|(_, tensor)| tensor.shape()).collect();
    let out = tensors.iter().zip(&shapes).map(|((name, tensor), shape)| TensorOut {
        name,
        shape: shape.dims(),
        data: if f16 { TensorData::F16(tensor.data()) } else { TensorData::F32(tensor.data()) },
    });
    write_safetensors(path, out, metadata)
}

/// What the run in a state was started with; older states do not say.
///
/// # Errors
/// [`Error::Checkpoint`] if it cannot be read.
pub(super) fn origin(state: &Checkpoint) -> Result<Option<Origin>> {
    let text = state.metadata().get(ORIGIN_KEY);
    let refuse = |e| Error::checkpoint(state.path(), format!("`{ORIGIN_KEY}`: {e}"));
    text.map(|text| serde_json::from_str(text)).transpose().map_err(refuse)
}

fn read_values(file: &Checkpoint, model: &Config) -> Result<Values> {
    let params = parameters(model)?;
    let mut values = Values::new();
    let mut report = WeightReport::default();
    for param in &params {
        let name = format!("param.{}", param.key);
        match file.shape(&name) {
            None => report.missing.push(param.key.clone()),
            Some(shape) if shape != param.upstream_shape => report.misshapen.push(ShapeMismatch {
                name: param.key.clone(),
                expected: param.upstream_shape.clone(),
                found: shape.to_vec(),
            }),
            Some(_) => {
                values.insert(param.key.clone(), file.load_f32(&name)?);
            }
        }
    }
    let saved = file.names().filter_map(|name| name.strip_prefix("param."));
    let known: std::collections::BTreeSet<&str> = params.iter().map(|p| p.key.as_str()).collect();
    report.unexpected = saved.filter(|key| !known.contains(key)).map(str::to_string).collect();
    if report.is_clean() {
        return Ok(values);
    }
    Err(Error::Weights {
        path: file.path().to_path_buf(),
        model: model.name.clone(),
        report: Box::new(report),
    })
}
