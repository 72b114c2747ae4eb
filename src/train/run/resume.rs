//! Going on: what of a configuration may change, and what the step gets back.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::config::RunConfig;
use super::state::Moments;
use crate::error::{Error, Result};
use crate::graph::VariableId;
use crate::model::Config;
use crate::tensor::Tensor;
use crate::train::data::{Loader, Mix};
use crate::train::optimizer::OptimizerSlot;
use crate::train::step::TrainStep;

/// Fields that may change, with what lies below them: length and rate of the run, how it computes and what it
/// writes. The settings of the model that only inference reads may, too.
const FREE: [&str; 21] = [
    "threads",
    "recompute",
    ARITHMETIC[0],
    ARITHMETIC[1],
    "data.val",
    "data.batch",
    "data.accumulate",
    "data.max_objects",
    "data.loader_threads",
    "data.prefetch",
    "data.cache_mib",
    "data.verify",
    "data.verify_whole",
    "augment",
    "dropout",
    "optimizer",
    "schedule",
    "loss",
    "run",
    "model.name",
    // Where the data lie; the number of images is compared besides.
    "data.train",
];
/// Fields after whose change a run goes on with other bits than it would have had: the order of sums is a
/// device's own.
const ARITHMETIC: [&str; 2] = ["device", "precision"];
/// Fields that say nothing of a run that has begun, or nothing of its numbers.
const IDLE: [&str; 2] = ["start", "run.out"];

/// What a run was started with, as its state keeps it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Origin {
    /// The configuration.
    config: Value,
    /// Images to train on.
    images: usize,
}

impl Origin {
    /// Every setting by its dotted name, as text.
    pub fn settings(&self) -> BTreeMap<String, String> {
        flat(&self.config).into_iter().map(|(key, value)| (key, value.to_string())).collect()
    }

    /// Images of a step.
    pub fn batch(&self) -> Option<usize> {
        self.config.pointer("/data/batch").and_then(Value::as_u64).map(|images| images as usize)
    }

    /// Of a run of this configuration on these images.
    pub fn of(config: &RunConfig, mix: &Mix) -> Origin {
        let config = serde_json::to_value(config).unwrap_or_default();
        Origin { config, images: mix.len() }
    }

    /// The configuration.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn config(&self) -> Result<RunConfig, serde_json::Error> {
        serde_json::from_value(self.config.clone())
    }

    /// What differs between a run and how it is to go on, for people.
    ///
    /// # Errors
    /// [`Error::Usage`] naming the fields that must not differ, with both values.
    pub fn changes(&self, now: &Origin) -> Result<Vec<String>> {
        // Fields that a newer program knows have their defaults in what an older one wrote.
        let complete = |origin: &Origin| match origin.config() {
            Ok(known) => serde_json::to_value(known).unwrap_or_default(),
            Err(_) => origin.config.clone(),
        };
        let (before, after) = (flat(&complete(self)), flat(&complete(now)));
        let below = |key: &str, fields: &[&str]| {
            fields
                .iter()
                .any(|f| key.strip_prefix(f).is_some_and(|rest| rest.is_empty() || rest.starts_with('.')))
        };
        let (mut free, mut refused) = (Vec::new(), Vec::new());
        if self.images != now.images {
            refused.push(format!("images to train on: {} -> {}", self.images, now.images));
        }
        let keys: std::collections::BTreeSet<&String> = before.keys().chain(after.keys()).collect();
        for key in keys {
            let (old, new) = (before.get(key), after.get(key));
            if old == new || below(key, &IDLE) {
                continue;
            }
            let shown = |value: Option<&Value>| value.map_or("absent".to_string(), Value::to_string);
            // What `auto` trains on.
            let on =
                |value: Option<&Value>| value.map(|v| if v == "auto" { "cpu".into() } else { v.clone() });
            let bits = match below(key, &ARITHMETIC) && on(old) != on(new) {
                true => " (sums round otherwise: from here on not the bits that the run would have had)",
                false => "",
            };
            let line = format!("{key}: {} -> {}{bits}", shown(old), shown(new));
            let setting = |name: &str| below(key, &[&format!("model.{name}")]);
            if below(key, &FREE) || Config::inference_settings().any(setting) {
                free.push(line)
            } else {
                refused.push(line)
            }
        }
        if refused.is_empty() {
            return Ok(free);
        }
        Err(Error::usage(format!(
            "the run cannot go on with another configuration: {}; begin a new one from its weights by start.weights and --out",
            refused.join("; ")
        )))
    }
}

/// Values by dotted keys. Nulls stand for absent fields.
fn flat(value: &Value) -> BTreeMap<String, Value> {
    fn walk(value: &Value, at: String, out: &mut BTreeMap<String, Value>) {
        match value {
            Value::Null => {}
            Value::Object(fields) => {
                for (key, value) in fields {
                    walk(value, if at.is_empty() { key.clone() } else { format!("{at}.{key}") }, out);
                }
            }
            value => {
                out.insert(at, value.clone());
            }
        }
    }
    let mut out = BTreeMap::new();
    walk(value, String::new(), &mut out);
    out
}

/// Updates of the whole run with so many ranks, `done` of which lie behind: a length in epochs counts epochs,
/// whatever the batch was before.
///
/// # Errors
/// [`Error::Usage`] for a length that no run can have.
pub fn total_iterations(config: &RunConfig, loader: &Loader, ranks: usize, done: u64) -> Result<u64> {
    if let Some(iterations) = config.schedule.iterations {
        return Ok(iterations);
    }
    let left = loader.left(config.schedule.epochs.unwrap_or(1))?;
    let update = loader.config().batch.saturating_mul(config.data.accumulate).saturating_mul(ranks) as u64;
    Ok(done + left.div_ceil(update.max(1)))
}

/// Gives the optimizer back what it knew.
pub(super) fn restore(
    step: &mut TrainStep,
    moments: &BTreeMap<String, Moments>,
    updates: u64,
    path: &Path,
) -> Result<()> {
    step.set_updates(updates);
    let slots: Vec<OptimizerSlot> =
        step.optimizer().map(|optimizer| optimizer.slots().to_vec()).unwrap_or_default();
    for OptimizerSlot { param, first, second, average, .. } in slots {
        let refuse = |reason: &str| Error::Checkpoint {
            path: path.to_path_buf(),
            key: Some(param.key.clone()),
            offset: None,
            reason: reason.to_string(),
        };
        let Some(kept) = moments.get(&param.key) else {
            return Err(refuse("has no moments in the state: was it frozen before?"));
        };
        // Without an average in the state, a new one begins at the weights.
        let average = average.and_then(|variable| Some((variable, kept.average.as_ref()?)));
        let known: [Option<(VariableId, &Tensor)>; 3] =
            [Some((first, &kept.first)), Some((second, &kept.second)), average];
        for (variable, tensor) in known.into_iter().flatten() {
            if tensor.shape().dims() != param.upstream_shape {
                return Err(refuse("its moments have another shape than the parameter"));
            }
            step.write(&param, variable, tensor)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_may_change_is_listed_and_the_rest_refused_with_both_values() {
        let origin = |config: Value, images| Origin { config, images };
        let before = json!({"seed": 0, "data": {"batch": 1, "strict": false}, "run": {"out": "a", "f16": false},
                            "start": {"weights": "x"}, "schedule": {"epochs": 2}});
        let mut after = before.clone();
        assert_eq!(origin(before.clone(), 3).changes(&origin(after.clone(), 3)).unwrap(), [""; 0]);
        after["data"]["batch"] = 2.into();
        after["schedule"] = json!({"iterations": 9, "epochs": null});
        after["run"] = json!({"out": "b", "f16": false});
        after["start"] = json!({});
        let changes = origin(before.clone(), 3).changes(&origin(after.clone(), 3)).unwrap();
        assert_eq!(
            changes,
            ["data.batch: 1 -> 2", "schedule.epochs: 2 -> absent", "schedule.iterations: absent -> 9"]
        );
        let on = |device: &str| {
            let mut config = before.clone();
            config["device"] = device.into();
            origin(config, 3)
        };
        let said = "sums round otherwise: from here on not the bits that the run would have had";
        let changes = on("cpu").changes(&on("cuda:1")).unwrap();
        assert_eq!(changes, [format!("device: \"cpu\" -> \"cuda:1\" ({said})")]);
        assert_eq!(on("auto").changes(&on("cpu")).unwrap(), ["device: \"auto\" -> \"cpu\""]);
        after["data"]["strict"] = true.into();
        after["seed"] = 5.into();
        let error = origin(before, 3).changes(&origin(after, 4)).unwrap_err().to_string();
        for part in ["images to train on: 3 -> 4", "data.strict: false -> true", "seed: 0 -> 5"] {
            assert!(error.contains(part), "{error}");
        }
    }
}
