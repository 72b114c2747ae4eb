//! Which model a `state_dict` belongs to: what its tensors show, what its training configuration says, and
//! what is left to assume. Every assumption becomes a note.

use super::python::values;
use super::{Contents, ConvertOptions};
use crate::checkpoint::pth::PthFile;
use crate::engine::classes::counts_as_ade20k;
use crate::error::{Error, Result};
use crate::image::classes::{self, named};
use crate::model::evidence::Evidence;
use crate::model::{Backbone, Classes, Config, Normalization, Task};
use serde_json::Value;
use std::path::Path;

/// A classifier that serves as a backbone, else a K-Net. What was assumed is added to `notes`.
///
/// # Errors
/// [`Error::Usage`] if the tensors a K-Net must have are not there, or the file contradicts itself.
pub(super) fn contents(
    path: &Path,
    file: &PthFile,
    options: &ConvertOptions,
    notes: &mut Vec<String>,
) -> Result<Contents> {
    let text = config_text(file);
    let shape = |name: &str| file.tensors.iter().find(|t| t.name == name).map(|t| t.shape.as_slice());
    let values = |names: &[&str]| values(text, names);
    let found = Evidence::new(&shape, &values);
    if let (None, Some((backbone, classes))) = (&options.model, Backbone::recognise_classifier(&found)) {
        return Ok(Contents::Classifier { backbone, classes });
    }
    let asked = Asked { path, text };
    let mut config = match &options.model {
        Some(config) => config.clone(),
        None => of_tensors(file, &found, &asked, options, notes)?,
    };
    asked.settings(&mut config, options, notes)?;
    name_classes(&mut config, file, options, notes);
    let config = options.apply(config)?;
    config.validate()?;
    Ok(Contents::Model(Box::new(config)))
}

/// The training configuration, which mmdetection 2 keeps under `config` and 3 under `cfg`.
fn config_text(file: &PthFile) -> &str {
    let text = |key: &str| file.meta.get(key).and_then(Value::as_str);
    text("config").or_else(|| text("cfg")).unwrap_or_default()
}

/// The K-Net of these shapes. Things and stuff leave no trace in them.
fn of_tensors(
    file: &PthFile,
    found: &Evidence<'_>,
    asked: &Asked,
    options: &ConvertOptions,
    notes: &mut Vec<String>,
) -> Result<Config> {
    let mut config = Config::recognise(found, notes).map_err(|reason| {
        let first = file.tensors.first().map_or("none", |t| t.name.as_str());
        asked.refuse(&format!("{reason} ({} tensors, first `{first}`)", file.tensors.len()))
    })?;
    if config.decode_head.is_some() || config.other_detector().is_some() {
        return Ok(config);
    }
    let classes = config.classes.count();
    let stuff = match options.number("stuff_classes")? {
        Some(stuff) => stuff,
        None => asked.stuff(classes, notes)?,
    };
    config.classes = Classes::new(classes.saturating_sub(stuff), stuff);
    config.task = Task::of(&config.classes);
    config.name_by_parts();
    Ok(config)
}

/// The training configuration of a file.
struct Asked<'a> {
    path: &'a Path,
    text: &'a str,
}

impl Asked<'_> {
    /// Number of stuff classes among `classes`.
    fn stuff(&self, classes: usize, notes: &mut Vec<String>) -> Result<usize> {
        let counts = |names: &[&str]| -> Vec<usize> {
            values(self.text, names).iter().filter_map(Value::as_u64).map(|v| v as usize).collect()
        };
        let things = counts(&["num_things_classes", "num_thing_classes"]);
        let stuff = counts(&["num_stuff_classes"]);
        let mut fitting: Vec<usize> = match (things.as_slice(), stuff.as_slice()) {
            ([], []) => {
                let panoptic = classes == 133;
                notes.push(format!(
                    "assumed: {}, as the file does not say which of its {classes} classes are things (--set stuff_classes=N)",
                    if panoptic { "COCO panoptic, 80 things and 53 stuff" } else { "an instance model, all classes are things" }
                ));
                return Ok(if panoptic { 53 } else { 0 });
            }
            (things, []) => things.iter().filter_map(|t| classes.checked_sub(*t)).collect(),
            ([], stuff) => stuff.iter().copied().filter(|s| *s <= classes).collect(),
            (things, stuff) => {
                let fits = |s: &usize| things.iter().any(|t| t + s == classes);
                stuff.iter().copied().filter(fits).collect()
            }
        };
        fitting.sort_unstable();
        fitting.dedup();
        match fitting.as_slice() {
            [stuff] => {
                notes.push(format!("read: {} things and {stuff} stuff classes", classes - stuff));
                Ok(*stuff)
            }
            _ => Err(self.refuse(&format!(
                "its configuration says {things:?} things and {stuff:?} stuff classes, its heads have {classes} rows: say \
                 which by --set stuff_classes=N (0 for an instance model)"
            ))),
        }
    }

    /// What else the configuration says. Where it says nothing, the official models' settings stay, with a
    /// note.
    fn settings(&self, config: &mut Config, options: &ConvertOptions, notes: &mut Vec<String>) -> Result<()> {
        let mut assumed = Vec::new();
        let mut whole = |names: &[&str], field: &str, value: &mut usize| -> Result<()> {
            if options.sets(field) {
                return Ok(());
            }
            let found: Vec<u64> = values(self.text, names).iter().filter_map(Value::as_u64).collect();
            match found.as_slice() {
                [] => assumed.push(format!("{field} {value}")),
                [one] => {
                    *value = *one as usize;
                    notes.push(format!("read: {field} {one}"));
                }
                several => {
                    let reason = format!(
                        "its configuration says {} {several:?}: say which by --set {field}=N",
                        names[0]
                    );
                    return Err(self.refuse(&reason));
                }
            }
            Ok(())
        };
        let semantic = config.decode_head.is_some();
        // Windows have heads of their own, a list of them.
        if config.head.stages > 0 {
            whole(&["num_heads"], "heads", &mut config.head.heads)?;
        }
        if let Some(rcnn) = &mut config.rcnn {
            // The region proposal network has a `max_per_img` of its own, written before.
            let heads = self.text.rfind("score_thr").map_or("", |at| &self.text[at..]);
            match (values(heads, &["score_thr"]).as_slice(), values(heads, &["max_per_img"]).as_slice()) {
                ([score], [most]) if score.is_number() && most.is_u64() => {
                    rcnn.score_threshold = score.as_f64().unwrap_or_default() as f32;
                    config.test.max_per_image = most.as_u64().unwrap_or_default() as usize;
                    notes.push(format!("read: score_threshold {score}, max_per_image {most}"));
                }
                _ => assumed.push(format!(
                    "score_threshold {}, max_per_image {}",
                    rcnn.score_threshold, config.test.max_per_image
                )),
            }
        } else if config.other_detector().is_some() {
            whole(&["max_per_img"], "max_per_image", &mut config.test.max_per_image)?;
            assumed.push("thresholds of scores as in the official model".into());
        } else if !semantic {
            whole(&["num_groups"], "norm_groups", &mut config.head.norm_groups)?;
            whole(&["max_per_img"], "max_per_image", &mut config.test.max_per_image)?;
        }
        if config.task == Task::Panoptic {
            for (name, field, value) in [
                ("instance_score_thr", "instance_score_threshold", &mut config.test.instance_score_threshold),
                ("overlap_thr", "overlap_threshold", &mut config.test.overlap_threshold),
            ] {
                match values(self.text, &[name]).as_slice() {
                    [one] if one.is_number() => *value = one.as_f64().unwrap_or(*value),
                    _ => assumed.push(format!("{field} {value}")),
                }
            }
        }
        if !options.sets("normalization") {
            match self.normalization()? {
                Some(normalization) => {
                    let Normalization { mean, std } = normalization;
                    notes.push(format!("read: normalization by mean {mean:?}, std {std:?}"));
                    config.input.normalization = normalization;
                }
                None => assumed.push("normalization as of the backbone's ImageNet weights".into()),
            }
        }
        if !options.sets("size") {
            match self.size() {
                Some(size) => {
                    notes.push(format!("read: size {},{}", size[0], size[1]));
                    config.input.size = size;
                }
                None => assumed.push(format!("size {},{}", config.input.size[0], config.input.size[1])),
            }
        }
        if !assumed.is_empty() {
            notes.push(format!(
                "assumed, as the file does not say: {} (--set FIELD=VALUE)",
                assumed.join(", ")
            ));
        }
        if values(self.text, &["style"]).contains(&"caffe".into()) {
            return Err(self.refuse("its backbone is of style 'caffe' (stride in the first 1x1 convolution), which is not known here"));
        }
        if values(self.text, &["to_rgb", "bgr_to_rgb"]).contains(&false.into()) && !options.bgr {
            notes.push(
                "assumed: R, G, B in the order of the file's mean and std, though its configuration says to_rgb=False; if the \
                 network was trained on B, G, R, convert with --bgr"
                    .into(),
            );
        }
        Ok(())
    }

    fn normalization(&self) -> Result<Option<Normalization>> {
        let triple = |name: &str| -> Vec<[f32; 3]> {
            let lists = values(self.text, &[name]);
            let mut found: Vec<[f32; 3]> =
                lists.iter().filter_map(|list| serde_json::from_value(list.clone()).ok()).collect();
            found.dedup();
            found
        };
        match (triple("mean").as_slice(), triple("std").as_slice()) {
            ([], []) => Ok(None),
            ([mean], [std]) => Ok(Some(Normalization { mean: *mean, std: *std })),
            (means, stds) => Err(self.refuse(&format!(
                "its configuration says mean {means:?} and std {stds:?}: say which by --set \
                 'normalization={{\"mean\":[..],\"std\":[..]}}'"
            ))),
        }
    }

    /// Short and long side of images in the test pipeline; of the whole configuration if it names just one.
    fn size(&self) -> Option<[usize; 2]> {
        let pairs = |text: &str| -> Vec<[usize; 2]> {
            let pair = |value: &Value| serde_json::from_value::<[usize; 2]>(value.clone()).ok();
            let mut found: Vec<_> = values(text, &["img_scale", "scale"]).iter().filter_map(pair).collect();
            found.iter_mut().for_each(|pair| pair.sort_unstable());
            found.dedup();
            found
        };
        let test = self.text.find("test_pipeline").map_or("", |at| &self.text[at..]);
        match (pairs(test).as_slice(), pairs(self.text).as_slice()) {
            ([first, ..], _) | ([], [first]) => Some(*first),
            _ => None,
        }
    }

    fn refuse(&self, reason: &str) -> Error {
        Error::usage(format!("{}: {reason}", self.path.display()))
    }
}

/// Names the classes: by the option, else by the file, else `class 0`, ... COCO's names are taken for a model
/// that was named.
fn name_classes(config: &mut Config, file: &PthFile, options: &ConvertOptions, notes: &mut Vec<String>) {
    let found = file_names(file);
    let count = config.classes.count();
    if let Some(classes) = &options.classes {
        config.classes.names = classes.iter().map(|(_, name)| name.clone()).collect();
        config.classes.ids = classes.iter().filter_map(|(id, _)| *id).collect();
    } else if found.len() == count {
        config.classes.names = found;
    } else if counts_as_ade20k(config) && (options.model.is_some() || config_text(file).contains("ADE20K")) {
        notes.push("assumed: ADE20K's class names".to_string());
        config.classes.names = named::ADE20K.map(String::from).to_vec();
    } else if options.model.is_some() && config.classes.names.is_empty() && super::knows_ids(config) {
        notes.push(format!("assumed: COCO's class names, as of {}", config.name));
    } else {
        let reason = match found.len() {
            0 => "the file has none".to_string(),
            names => format!("the file has {names} names for {count} classes"),
        };
        let numbered = classes::numbered(count, config.classes.things);
        config.classes.names = numbered.into_iter().map(|class| class.name.into_owned()).collect();
        notes.push(format!(
            "class names: {reason}; they are `class 0`, `class 1`, ... (--classes FILE names them)"
        ));
    }
    if !super::knows_ids(config) {
        notes.push(
            "category ids: the file has none; results carry the class index, from 0 (--classes with a COCO file gives them)".into(),
        );
    }
}

/// The class names of a file in whichever place its writer kept them; one name may be a text by itself.
fn file_names(file: &PthFile) -> Vec<String> {
    let dataset = file.meta.get("dataset_meta");
    let places = [
        file.meta.get("CLASSES"),
        dataset.and_then(|meta| meta.get("classes")),
        dataset.and_then(|meta| meta.get("CLASSES")),
        file.meta.get("classes"),
    ];
    let names = |value: &Value| match value {
        Value::String(name) => vec![name.clone()],
        Value::Array(names) => names.iter().filter_map(|v| v.as_str().map(str::to_string)).collect(),
        _ => Vec::new(),
    };
    places.into_iter().flatten().map(names).find(|names| !names.is_empty()).unwrap_or_default()
}
