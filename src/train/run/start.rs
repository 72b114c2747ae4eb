//! Initial weights: from a checkpoint, and for what that lacks, drawn as upstream does.
//!
//! Every parameter has its own random stream, keyed by seed and name, so that the value of one does not
//! depend on which others are drawn. Rows of class heads belong to classes, and follow their names.

use std::collections::{BTreeMap, BTreeSet};

use super::config::StartConfig;
use crate::checkpoint::seeded::fnv1a;
use crate::checkpoint::{Checkpoint, first_non_finite};
use crate::engine::known_names;
use crate::engine::source::{CONFIG_KEY, is_bookkeeping, parameters};
use crate::error::{Error, Result, ShapeMismatch, WeightReport};
use crate::graph::Param;
use crate::memory;
use crate::model::Config;
use crate::model::backbone::classifier_prefixes;
use crate::tensor::{Shape, Tensor};
use crate::train::data::random::{Draw, Purpose};

/// Probability of an object that a fresh class head gives everywhere.
const PRIOR: f64 = 0.01;

/// All parameters of a model in the checkpoint's layout, by key.
pub type Values = BTreeMap<String, Tensor>;

/// Where the values of a run came from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StartReport {
    /// Parameters taken from the file.
    pub loaded: usize,
    /// Modules (first part of the key) that the file lacks as a whole; their parameters were drawn.
    pub drawn: Vec<String>,
    /// Parameters drawn because their shape depends on a number of kernels that differs.
    pub resized: Vec<ShapeMismatch>,
    /// Parameters drawn because the configuration asks for it.
    pub reset: Vec<String>,
    /// Classes whose rows of the class heads were taken from the file.
    pub kept_classes: Vec<String>,
    /// Classes whose rows were drawn, as the file does not have them.
    pub new_classes: Vec<String>,
    /// Classes of the file that the model does not have.
    pub left_classes: Vec<String>,
    /// The file does not say what its classes are called, so that its class heads were drawn.
    pub unnamed: bool,
}

/// The values that a run of `model` starts from.
///
/// # Errors
/// [`Error::Io`] or [`Error::Checkpoint`] if the file cannot be read; [`Error::Weights`] listing every tensor
/// that does not fit for another reason than the number of classes or kernels; [`Error::Memory`] for a model
/// larger than the memory there is.
pub fn initial_values(model: &Config, start: &StartConfig, seed: u64) -> Result<(Values, StartReport)> {
    let params = parameters(model)?;
    let elements = params.iter().map(|p| p.upstream_shape.iter().product::<usize>());
    let floats = elements.fold(0usize, usize::saturating_add);
    memory::check("the model with all its parameters", floats.saturating_mul(size_of::<f32>()))?;
    let shapes: BTreeMap<&str, &[usize]> =
        params.iter().map(|p| (p.key.as_str(), p.upstream_shape.as_slice())).collect();
    let draw = |param: &Param| Recipe::of(&param.key, &shapes, start.kernel_init_std).tensor(param, seed);
    let mut report = StartReport::default();
    let Some(path) = &start.weights else {
        report.drawn = modules(params.iter().map(|p| p.key.as_str()));
        return Ok((params.iter().map(|p| (p.key.clone(), draw(p))).collect(), report));
    };
    let file = Checkpoint::open(path)?;
    let heads = Heads::new(&file, start, &model.classes.names);
    let present = modules(file.names());
    let mut faults = WeightReport::default();
    let known = |name: &str| {
        shapes.contains_key(name)
            || is_bookkeeping(name)
            || classifier_prefixes().any(|c| name.starts_with(c))
    };
    faults.unexpected = file.names().filter(|name| !known(name)).map(str::to_string).collect();
    let mut values = Values::new();
    for param in &params {
        let key = &param.key;
        let value = match file.shape(key) {
            _ if start.reset.iter().any(|prefix| key.starts_with(prefix.as_str())) => {
                report.reset.push(key.clone());
                draw(param)
            }
            None if present.iter().any(|module| module == module_of(key)) => {
                faults.missing.push(key.clone());
                continue;
            }
            None => draw(param),
            Some(shape) if has_class_rows(key) && shape.get(1..) == param.upstream_shape.get(1..) => {
                let tensor = file.load_f32(key)?;
                if first_non_finite(tensor.data()).is_some() {
                    faults.non_finite.push(key.clone());
                }
                report.loaded += usize::from(heads.rows(shape).is_some());
                heads.fill(draw(param), &tensor)
            }
            Some(shape) if shape != param.upstream_shape => {
                let mismatch = ShapeMismatch {
                    name: key.clone(),
                    expected: param.upstream_shape.clone(),
                    found: shape.to_vec(),
                };
                if !key.contains(".init_kernels.") || shape.get(1..) != param.upstream_shape.get(1..) {
                    faults.misshapen.push(mismatch);
                    continue;
                }
                report.resized.push(mismatch);
                draw(param)
            }
            Some(_) => {
                let tensor = file.load_f32(key)?;
                if first_non_finite(tensor.data()).is_some() {
                    faults.non_finite.push(key.clone());
                }
                report.loaded += 1;
                tensor
            }
        };
        values.insert(key.clone(), value);
    }
    if !faults.is_clean() {
        let (path, model) = (path.clone(), model.name.clone());
        return Err(Error::Weights { path, model, report: Box::new(faults) });
    }
    if report.loaded == 0 {
        return Err(Error::checkpoint(path, format!("holds no tensor of model `{}`", model.name)));
    }
    let wanted = modules(params.iter().map(|p| p.key.as_str()));
    report.drawn = wanted.into_iter().filter(|module| !present.contains(module)).collect();
    // A backbone alone has no classes to speak of.
    if let Some(shape) = params.iter().filter(|p| has_class_rows(&p.key)).find_map(|p| file.shape(&p.key)) {
        heads.tell(shape, &model.classes.names, &mut report);
    }
    Ok((values, report))
}

/// Refuses patterns of the field `field` that fit no parameter's name: as they stand they would do nothing.
///
/// # Errors
/// [`Error::Usage`] with the nearest name that would do something.
pub(super) fn check_patterns<'a>(
    field: &str,
    patterns: impl Iterator<Item = &'a String>,
    fits: fn(&str, &str) -> bool,
    values: &Values,
) -> Result<()> {
    for pattern in patterns {
        if values.keys().any(|key| fits(key, pattern)) {
            continue;
        }
        // Of every name the parts up to each dot, and the name itself.
        let beginnings = values.keys().flat_map(|key| {
            key.match_indices('.').map(|(dot, _)| &key[..=dot]).chain(std::iter::once(key.as_str()))
        });
        let likeness = |name: &str| strsim::normalized_levenshtein(name, pattern);
        let nearest = beginnings.max_by(|a, b| likeness(a).total_cmp(&likeness(b)));
        let hint = nearest.map(|name| format!("; did you mean `{name}`?")).unwrap_or_default();
        return Err(Error::usage(format!("{field}: `{pattern}` fits no parameter of the model{hint}")));
    }
    Ok(())
}

/// Which rows of a file's class heads belong to which class of the model.
struct Heads {
    /// Names of the file's classes, if known.
    names: Option<Vec<String>>,
    /// For each class of the model its row in the file.
    row_of: Vec<Option<usize>>,
}

impl Heads {
    /// The names come from `start.classes`, else from the file's own configuration.
    fn new(file: &Checkpoint, start: &StartConfig, model: &[String]) -> Heads {
        let own = || {
            let config = Config::from_json(file.metadata().get(CONFIG_KEY)?).ok()?;
            known_names(&config)
        };
        let names = start.classes.clone().or_else(own);
        let row = |name: &String| names.as_ref()?.iter().position(|other| other == name);
        Heads { row_of: model.iter().map(row).collect(), names }
    }

    /// The names, if they are those of a head of this shape in the file.
    fn rows(&self, shape: &[usize]) -> Option<&[String]> {
        self.names.as_deref().filter(|names| shape.first() == Some(&names.len()))
    }

    /// `drawn` with the rows of the file's classes.
    fn fill(&self, mut drawn: Tensor, file: &Tensor) -> Tensor {
        if self.rows(file.shape().dims()).is_none() {
            return drawn;
        }
        let width = file.shape().dims()[1..].iter().product::<usize>();
        for (row, from) in self.row_of.iter().enumerate() {
            if let Some(from) = from {
                drawn.data_mut()[row * width..][..width]
                    .copy_from_slice(&file.data()[from * width..][..width]);
            }
        }
        drawn
    }

    fn tell(&self, shape: &[usize], model: &[String], report: &mut StartReport) {
        let Some(names) = self.rows(shape) else {
            report.unnamed = true;
            report.new_classes = model.to_vec();
            return;
        };
        let of = |kept: bool| {
            let with = model.iter().zip(&self.row_of).filter(move |(_, row)| row.is_some() == kept);
            with.map(|(name, _)| name.clone()).collect()
        };
        report.kept_classes = of(true);
        report.new_classes = of(false);
        report.left_classes = names.iter().filter(|name| !model.contains(name)).cloned().collect();
    }
}

fn module_of(key: &str) -> &str {
    key.split('.').next().unwrap_or(key)
}

/// First parts of keys, each once.
fn modules<'a>(keys: impl Iterator<Item = &'a str>) -> Vec<String> {
    let found: BTreeSet<&str> = keys.map(module_of).collect();
    found.into_iter().map(str::to_string).collect()
}

/// Parameters with a row for each class.
fn has_class_rows(key: &str) -> bool {
    [".fc_cls.", ".conv_seg."].iter().any(|part| key.contains(part))
}

/// How values are drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Recipe {
    Constant(f64),
    /// Mean 0.
    Normal {
        std: f64,
    },
    /// Between plus and minus this.
    Uniform {
        bound: f64,
    },
}

impl Recipe {
    fn of(key: &str, shapes: &BTreeMap<&str, &[usize]>, kernel_std: f64) -> Recipe {
        let shape = shapes.get(key).copied().unwrap_or_default();
        let (module, field) = (module_of(key), key.rsplit(['.', '_']).next().unwrap_or(key));
        // A convolution begins undeformed.
        if key.contains(".conv_offset.") {
            return Recipe::Constant(0.0);
        }
        if key.ends_with(".running_mean") {
            return Recipe::Constant(0.0);
        }
        if key.ends_with(".running_var") {
            return Recipe::Constant(1.0);
        }
        if shape.len() < 2 {
            return match field {
                // One dimension: the scale of a norm.
                "weight" => Recipe::Constant(1.0),
                _ => Recipe::of_bias(key, module, shapes),
            };
        }
        let taps: usize = shape[2..].iter().product();
        let (fan_in, fan_out) = ((shape[1] * taps) as f64, (shape[0] * taps) as f64);
        // A filter with one input channel is depthwise: its outputs go separate ways.
        let fan_out = if shape[1] == 1 { taps as f64 } else { fan_out };
        if key.contains(".init_kernels.") {
            Recipe::Normal { std: kernel_std }
        } else if key.contains(".conv_seg.") {
            Recipe::Normal { std: 0.01 }
        } else if module == "roi_head" || module == "neck" || key.ends_with(".in_proj_weight") {
            Recipe::Uniform { bound: (6.0 / (fan_in + fan_out)).sqrt() }
        } else if shape.len() == 2 && module == "backbone" {
            // Swin's layers and tables.
            Recipe::Normal { std: 0.02 }
        } else if shape.len() == 2 {
            // Upstream leaves the stages of semantic models as PyTorch draws them.
            Recipe::Uniform { bound: 1.0 / fan_in.sqrt() }
        } else {
            Recipe::Normal { std: (2.0 / fan_out).sqrt() }
        }
    }

    fn of_bias(key: &str, module: &str, shapes: &BTreeMap<&str, &[usize]>) -> Recipe {
        let detector = !matches!(module, "decode_head" | "auxiliary_head");
        if key.contains(".fc_cls.") || (key.contains(".conv_seg.") && detector) {
            return Recipe::Constant(-((1.0 - PRIOR) / PRIOR).ln());
        }
        let sibling = shapes.get(format!("{}weight", key.trim_end_matches("bias")).as_str());
        match sibling {
            // PyTorch's own for a linear layer; convolutions and attention start without.
            Some(&[_, fan_in]) if module != "backbone" && !key.contains(".attn.") => {
                Recipe::Uniform { bound: 1.0 / (*fan_in as f64).sqrt() }
            }
            _ => Recipe::Constant(0.0),
        }
    }

    fn tensor(self, param: &Param, seed: u64) -> Tensor {
        let shape = Shape::new(&param.upstream_shape);
        let mut draw = Draw::new(Purpose::Weights, seed, fnv1a(param.key.as_bytes()), 0);
        let values = (0..shape.len()).map(|_| match self {
            Recipe::Constant(value) => value as f32,
            Recipe::Normal { std } => (std * draw.normal()) as f32,
            Recipe::Uniform { bound } => draw.uniform(-bound, bound) as f32,
        });
        Tensor::new(shape, values.collect::<Vec<f32>>())
    }
}
