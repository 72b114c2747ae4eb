//! What varies between models, part by part. Small enough to sit in a checkpoint's metadata, so that a file
//! describes itself.
//!
//! In files the fields of all parts but the backbone lie side by side: `{"name": .., "task": .., "backbone":
//! {"type": ..}, "channels": .., "proposals": ..}`.

mod classes;
mod fields;
mod input;
mod test;

pub use classes::Classes;
pub use input::{Input, Normalization};
pub use test::Test;

use super::backbone::{Backbone, EfficientNetLite, ResNet, Stem};
use super::condinst::CondInst;
use super::decode_head::{self, DecodeHead, Generator};
use super::evidence::Evidence;
use super::head::Head;
use super::neck::Fpn;
use super::rcnn::Rcnn;
use super::solov2::Solov2;
use super::{SIZE_DIVISOR, decode_head::Recognised};
use crate::error::{Error, Result};
use crate::graph::passes::Part;
use fields::{Fields, names};
use serde::{Deserialize, Deserializer, Serialize, de};
use serde_json::{Map, Value};

/// What a model predicts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Task {
    /// One mask per object, objects may overlap.
    Instance,
    /// Every pixel belongs to one segment: an object ("thing") or a region ("stuff").
    Panoptic,
    /// Every pixel belongs to one class.
    Semantic,
}

impl Task {
    /// Lower-case name.
    pub fn name(self) -> &'static str {
        match self {
            Task::Instance => "instance",
            Task::Panoptic => "panoptic",
            Task::Semantic => "semantic",
        }
    }

    /// What a detector of these classes does if nothing else is said.
    pub fn of(classes: &Classes) -> Task {
        if classes.stuff > 0 { Task::Panoptic } else { Task::Instance }
    }
}

/// A model: a K-Net, or one that it is compared with.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Config {
    /// Name of the model.
    pub name: String,
    /// What it predicts.
    pub task: Task,
    /// The network under the pyramid.
    pub backbone: Backbone,
    /// What a semantic model has in place of a detector's pyramid and kernel head; it then has no instance
    /// kernels, and `neck` and `head` say nothing but how wide its features are and what its stages are like.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decode_head: Option<DecodeHead>,
    /// What a two-stage detector has in place of kernels and their rounds; `head` then says nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rcnn: Option<Rcnn>,
    /// What a SOLOv2 has in their place.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub solov2: Option<Solov2>,
    /// What a CondInst has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub condinst: Option<CondInst>,
    /// The pyramid.
    #[serde(flatten)]
    pub neck: Fpn,
    /// The kernels and their rounds.
    #[serde(flatten)]
    pub head: Head,
    /// What becomes of a photo before the network.
    #[serde(flatten)]
    pub input: Input,
    /// What becomes of the network's results.
    #[serde(flatten)]
    pub test: Test,
    /// What it knows.
    #[serde(flatten)]
    pub classes: Classes,
}

impl<'de> Deserialize<'de> for Config {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Config::from_fields(Map::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}

/// What the names of models start with that mmsegmentation published with wider kernels than the official
/// configurations have.
const PUBLISHED: &str = "mmseg_";

/// What the names of values in the pyramids of a detector start with: the one over its backbone, and the one
/// that joins all levels at stride 8.
const PYRAMIDS: [&str; 2] = ["neck.", "rpn_head.localization_fpn."];

/// Classes of ADE20K.
const ADE20K_CLASSES: usize = 150;

/// Names [`Config::named`] knows.
pub const MODEL_NAMES: &[&str] = &[
    "knet_s3_r50_fpn",
    "knet_s3_r101_fpn",
    "knet_s3_r50_fpn_panoptic",
    "knet_s3_r101_fpn_panoptic",
    "knet_s3_r101_dcn_panoptic",
    "knet_s3_swin_l_panoptic",
    "knet_s3_lite0_fpn",
    "knet_s3_lite2_fpn",
    "knet_s3_fcn_r50-d8",
    "knet_s3_pspnet_r50-d8",
    "knet_s3_deeplabv3_r50-d8",
    "knet_s3_upernet_r50",
    "knet_s3_upernet_swin-t",
    "knet_s3_upernet_swin-l",
    "mmseg_knet_s3_upernet_r50",
    "mmseg_knet_s3_upernet_swin-t",
    "mmseg_knet_s3_upernet_swin-l",
    "fcn_r50-d8",
    "pspnet_r50-d8",
    "deeplabv3_r50-d8",
    "upernet_r50",
    "mask_rcnn_r50_fpn",
    "mask_rcnn_r101_fpn",
    "cascade_mask_rcnn_r50_fpn",
    "cascade_mask_rcnn_r101_fpn",
    "solov2_r50_fpn",
    "condinst_r50_fpn",
];

impl Config {
    /// The model of this name: an official one, of COCO or, semantic, of ADE20K, or (`lite` in its name) one
    /// of ours, smaller and for smaller images.
    ///
    /// # Errors
    /// [`Error::Usage`] for any other name, suggesting the nearest.
    pub fn named(name: &str) -> Result<Config> {
        let config = MODEL_NAMES.contains(&name).then(|| Config::of_parts(name)).flatten();
        config.ok_or_else(|| {
            let nearest = MODEL_NAMES
                .iter()
                .max_by(|a, b| strsim::jaro_winkler(a, name).total_cmp(&strsim::jaro_winkler(b, name)));
            let hint = nearest.map(|n| format!("; did you mean `{n}`?")).unwrap_or_default();
            Error::usage(format!("unknown model `{name}`{hint} (known: {})", MODEL_NAMES.join(", ")))
        })
    }

    /// The stretch of the network that a value of this name belongs to, if it has one whose values are rather
    /// made again than kept where memory is short.
    pub fn stretch<'n>(&self, name: &'n str) -> Option<Part<'n>> {
        let of_pyramid = || PYRAMIDS.into_iter().find(|prefix| name.starts_with(prefix));
        let whole = self.backbone.stretch(name).or_else(of_pyramid).map(Part::Whole);
        whole.or_else(|| decode_head::stretch(name))
    }

    /// The model that the parts of a name tell: what [`Config::name_by_parts`] makes.
    fn of_parts(name: &str) -> Option<Config> {
        if let Some((rcnn, rest)) = Rcnn::named(name) {
            let backbone = Backbone::named(rest.strip_suffix("_fpn")?)?;
            return Some(Config::two_stage(backbone, rcnn, 80));
        }
        let with = |kind: &str| name.strip_prefix(kind)?.strip_prefix('_')?.strip_suffix("_fpn");
        if let Some(backbone) = with(Solov2::NAME) {
            return Some(Config::solov2(Backbone::named(backbone)?, Solov2::default(), 80));
        }
        if let Some(backbone) = with(CondInst::NAME) {
            return Some(Config::condinst(Backbone::named(backbone)?, CondInst::default(), 80));
        }
        let (parts, published) = name.strip_prefix(PUBLISHED).map_or((name, false), |parts| (parts, true));
        let (parts, stages) = parts.strip_prefix("knet_s3_").map_or((parts, 0), |parts| (parts, 3));
        let generator = |generator: &Generator| parts.starts_with(&format!("{}_", generator.name()));
        if let Some(generator) = Generator::ALL.into_iter().find(generator) {
            // Their names have hyphens where those of detectors have underscores.
            let short = parts[generator.name().len() + 1..].replace("swin-", "swin_");
            let backbone = match Backbone::named(&short)? {
                Backbone::ResNet(resnet) => ResNet { stem: Stem::Deep, ..resnet }.into(),
                other => other,
            };
            let mut config = Config::semantic(backbone, generator, ADE20K_CLASSES);
            config.head.stages = stages;
            if published || (generator == Generator::Uper && stages == 0) {
                config.neck.channels = 2 * config.neck.channels.min(256);
            }
            // The one of the official configurations is for larger images.
            if name == "knet_s3_upernet_swin-l" {
                config.input.size = [640, 2048];
            }
            return Some(Config { name: name.to_string(), ..config });
        }
        let (parts, stuff) = parts.strip_suffix("_panoptic").map_or((parts, 0), |parts| (parts, 53));
        let backbone = Backbone::named(parts.strip_suffix("_fpn").unwrap_or(parts))?;
        Some(Config { name: name.to_string(), ..Config::of(backbone, Classes::new(80, stuff)) })
    }

    /// The model with this backbone for these classes: as the official ones, but for small backbones, and
    /// named as they are.
    pub fn of(backbone: Backbone, classes: Classes) -> Config {
        let task = Task::of(&classes);
        let small = backbone.is_small();
        let head = match small {
            true => Head { proposals: 16, feedforward_channels: 512, ..Head::default() },
            false => Head::default(),
        };
        let mut config = Config {
            name: String::new(),
            task,
            backbone,
            decode_head: None,
            rcnn: None,
            solov2: None,
            condinst: None,
            neck: if small { Fpn { channels: 96 } } else { Fpn::default() },
            head,
            input: Input {
                size: if small { [320; 2] } else { Input::default().size },
                normalization: backbone.normalization(),
            },
            test: Test::default(),
            classes,
        };
        config.name_by_parts();
        config
    }

    /// The semantic model with this backbone and generator for so many classes, with three stages: as the
    /// official ones.
    pub fn semantic(backbone: Backbone, generator: Generator, classes: usize) -> Config {
        let detector = Config::of(backbone, Classes::new(0, classes));
        let mut config = Config {
            task: Task::Semantic,
            decode_head: Some(DecodeHead::new(generator)),
            neck: Fpn { channels: if generator == Generator::Uper { 256 } else { 512 } },
            head: Head { proposals: 0, ..Head::default() },
            input: Input { size: [512, 2048], ..detector.input },
            ..detector
        };
        config.name_by_parts();
        config
    }

    /// The two-stage detector with this backbone for so many classes.
    pub fn two_stage(backbone: Backbone, rcnn: Rcnn, classes: usize) -> Config {
        Config::without_kernels(backbone, classes, |config| config.rcnn = Some(rcnn))
    }

    /// The SOLOv2 with this backbone for so many classes.
    pub fn solov2(backbone: Backbone, solov2: Solov2, classes: usize) -> Config {
        Config::without_kernels(backbone, classes, |config| config.solov2 = Some(solov2))
    }

    /// The CondInst with this backbone for so many classes.
    pub fn condinst(backbone: Backbone, condinst: CondInst, classes: usize) -> Config {
        Config::without_kernels(backbone, classes, |config| config.condinst = Some(condinst))
    }

    /// A detector of things that has something else in place of kernels and their rounds.
    fn without_kernels(backbone: Backbone, classes: usize, with: impl FnOnce(&mut Config)) -> Config {
        let mut config = Config {
            neck: Fpn::default(),
            head: Head { proposals: 0, stages: 0, ..Head::default() },
            ..Config::of(backbone, Classes::new(classes, 0))
        };
        with(&mut config);
        config.name_by_parts();
        config
    }

    /// Whether it runs on a CPU alone: some operators of one-stage detectors that K-Net is compared with have
    /// no CUDA kernels.
    pub fn is_for_cpu_inference(&self) -> bool {
        self.solov2.is_some() || self.condinst.is_some()
    }

    /// What a detector that K-Net is compared with is called; `None` of a K-Net, and of semantic models.
    pub fn other_detector(&self) -> Option<&'static str> {
        let kinds = [
            (self.rcnn.is_some(), "two-stage detector"),
            (self.solov2.is_some(), "SOLOv2"),
            (self.condinst.is_some(), "CondInst"),
        ];
        kinds.into_iter().find_map(|(is, kind)| is.then_some(kind))
    }

    /// Refuses a model that is not trained: operators of detectors that K-Net is compared with have no
    /// gradients.
    ///
    /// # Errors
    /// [`Error::Usage`] for a detector that K-Net is compared with.
    pub fn check_trainable(&self) -> Result<()> {
        match self.other_detector() {
            Some(kind) => {
                Err(Error::usage(format!("model `{}` is a {kind}, which is not trained here", self.name)))
            }
            None => Ok(()),
        }
    }

    /// Names the model as the official ones are, such as `knet_s3_r50_fpn_panoptic` or, where the backbone's
    /// own name has two words, `knet_s3_swin_l_panoptic`.
    pub fn name_by_parts(&mut self) {
        if let Some(head) = self.decode_head {
            let stages = match self.head.stages {
                0 => String::new(),
                stages => format!("knet_s{stages}_"),
            };
            let wide = head.generator == Generator::Uper && self.neck.channels > head.updator_channels;
            let published = if wide && self.head.stages > 0 { PUBLISHED } else { "" };
            let backbone = self.backbone.short_name().replace('_', "-");
            self.name = format!("{published}{stages}{}_{backbone}", head.generator.name());
            return;
        }
        let backbone = self.backbone.short_name();
        if let Some(rcnn) = &self.rcnn {
            self.name = format!("{}_{backbone}_fpn", rcnn.name());
            return;
        }
        let others = [(self.solov2.is_some(), Solov2::NAME), (self.condinst.is_some(), CondInst::NAME)];
        if let Some((_, kind)) = others.into_iter().find(|(is, _)| *is) {
            self.name = format!("{kind}_{backbone}_fpn");
            return;
        }
        let neck = if backbone.contains('_') { "" } else { "_fpn" };
        let suffix = if self.task == Task::Panoptic { "_panoptic" } else { "" };
        self.name = format!("knet_s{}_{backbone}{neck}{suffix}", self.head.stages);
    }

    /// The model that a file's tensors show, and their number of classes, all taken for things. What leaves
    /// no trace in them is as in the official models; notes say what of the backbone that is.
    ///
    /// # Errors
    /// What a model has that this file has not, or what contradicts itself: a sentence.
    pub fn recognise(found: &Evidence<'_>, notes: &mut Vec<String>) -> Result<Config, String> {
        if let Some(found_head) = DecodeHead::recognise(found)? {
            return Config::of_decode_head(found_head, found, notes);
        }
        let missing = |name: String| format!("not a K-Net checkpoint: no tensor `{name}`");
        if let Some((rcnn, channels, classes)) = Rcnn::recognise(found) {
            let backbone = Backbone::recognise(found, notes)?;
            let backbone = backbone.ok_or("a two-stage detector of an unknown backbone")?;
            let mut config = Config::two_stage(backbone, rcnn, classes);
            config.neck.channels = channels;
            return Ok(config);
        }
        if let Some((solov2, channels, classes)) = Solov2::recognise(found) {
            let backbone = Backbone::recognise(found, notes)?;
            let mut config =
                Config::solov2(backbone.ok_or("a SOLOv2 of an unknown backbone")?, solov2, classes);
            config.neck.channels = channels;
            return Ok(config);
        }
        if let Some((condinst, channels, classes)) = CondInst::recognise(found) {
            let backbone = Backbone::recognise(found, notes)?;
            let mut config =
                Config::condinst(backbone.ok_or("a CondInst of an unknown backbone")?, condinst, classes);
            config.neck.channels = channels;
            return Ok(config);
        }
        let (head, channels, classes) = Head::recognise(found).map_err(missing)?;
        let backbone = Backbone::recognise(found, notes)?;
        let backbone = backbone.ok_or_else(|| missing("backbone.layer1.0.conv1.weight".into()))?;
        let mut config = Config::of(backbone, Classes::new(classes, 0));
        (config.head, config.neck.channels) = (head, channels);
        Ok(config)
    }

    fn of_decode_head(
        semantic: Recognised,
        found: &Evidence<'_>,
        notes: &mut Vec<String>,
    ) -> Result<Config, String> {
        let Recognised { head, channels, stages, feedforward_channels, classes } = semantic;
        let backbone = Backbone::recognise(found, notes)?;
        let backbone = backbone.ok_or("a semantic model of an unknown backbone")?;
        let mut config = Config::semantic(backbone, head.generator, classes);
        config.decode_head = Some(head);
        config.neck.channels = channels;
        config.head.stages = stages;
        if let Some(width) = feedforward_channels {
            config.head.feedforward_channels = width;
        }
        config.name_by_parts();
        Ok(config)
    }

    /// The configuration in the metadata of a checkpoint.
    ///
    /// # Errors
    /// [`Error::Usage`] naming the field that is missing, unknown or of the wrong kind, or out of range.
    pub fn from_json(text: &str) -> Result<Config> {
        let config: Config =
            serde_json::from_str(text).map_err(|e| Error::usage(format!("model configuration: {e}")))?;
        config.validate()?;
        Ok(config)
    }

    /// The configuration as JSON, for the metadata of a checkpoint.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    /// The configuration with other values of some fields, as a file has them. It is not validated.
    ///
    /// # Errors
    /// A sentence naming the field that is unknown or of the wrong kind.
    pub fn with(&self, changes: impl IntoIterator<Item = (String, Value)>) -> Result<Config, String> {
        let Ok(Value::Object(mut fields)) = serde_json::to_value(self) else {
            return Err("the model has no fields".into());
        };
        fields.extend(changes);
        Config::from_fields(fields)
    }

    fn from_fields(fields: Map<String, Value>) -> Result<Config, String> {
        let mut fields = Fields::new(fields);
        let config = Config {
            name: fields.take("name")?,
            task: fields.take("task")?,
            backbone: fields.take("backbone")?,
            decode_head: fields.find("decode_head")?,
            rcnn: fields.find("rcnn")?,
            solov2: fields.find("solov2")?,
            condinst: fields.find("condinst")?,
            neck: fields.part()?,
            head: fields.part()?,
            input: fields.part()?,
            test: fields.part()?,
            classes: fields.part()?,
        };
        let known = ["name", "task"].into_iter().chain(Config::settings());
        fields.done(&known.chain(names::<Classes>().iter().copied()).collect::<Vec<_>>())?;
        Ok(config)
    }

    /// Names of the fields that make a network, whatever it is called and has learnt: all but name, task and
    /// classes.
    pub fn settings() -> impl Iterator<Item = &'static str> {
        let parts = [names::<Fpn>(), names::<Head>(), names::<Input>(), names::<Test>()];
        ["backbone", "decode_head", "rcnn", "solov2", "condinst"]
            .into_iter()
            .chain(parts.into_iter().flatten().copied())
    }

    /// Names of those of [`Config::settings`] that say what becomes of photos and results, not of tensors.
    pub fn inference_settings() -> impl Iterator<Item = &'static str> {
        names::<Test>().iter().copied().chain(["size"])
    }

    /// Checks a value of one of [`Config::settings`] by itself.
    ///
    /// # Errors
    /// A sentence on what kind of value the field has.
    pub fn check_setting(name: &str, value: Value) -> Result<(), String> {
        // Any model will do: only the kind of this field's value is asked for.
        let any = Config::of(Backbone::from(EfficientNetLite::new(0)), Classes::new(1, 0));
        any.with([(name.to_string(), value)]).map(|_| ())
    }

    /// Inputs of the network are padded to multiples of this many pixels. Semantic models take any size.
    pub fn size_divisor(&self) -> usize {
        if self.task == Task::Semantic { 1 } else { SIZE_DIVISOR }
    }

    /// Objects each stage refines: the instance kernels, and one per stuff class.
    pub fn objects(&self) -> usize {
        self.head.proposals + self.classes.stuff
    }

    /// First axes of tensors that the configuration claims: the tensor, what its rows are, and how many.
    pub fn rows(&self) -> Vec<(String, &'static str, usize)> {
        match (&self.rcnn, &self.solov2, &self.condinst) {
            (Some(rcnn), ..) => rcnn.rows(self),
            (_, Some(solov2), _) => solov2.rows(self),
            (.., Some(condinst)) => condinst.rows(self),
            (None, None, None) => Head::rows(self),
        }
    }

    /// Checks every field, so that building the graph cannot fail for a reason a user would not understand.
    ///
    /// # Errors
    /// [`Error::Usage`] naming the field.
    pub fn validate(&self) -> Result<()> {
        self.faults().map_err(|reason| Error::usage(format!("model `{}`: {reason}", self.name)))
    }

    fn faults(&self) -> Result<(), String> {
        self.classes.validate()?;
        self.backbone.validate()?;
        self.input.validate()?;
        self.test.validate()?;
        if (self.task == Task::Semantic) != self.decode_head.is_some() {
            let head = if self.decode_head.is_some() { "a" } else { "no" };
            return Err(format!("task {} with {head} decode head", self.task.name()));
        }
        if let Some(head) = &self.decode_head {
            in_range([("channels", self.neck.channels)])?;
            if let Some(kind) = self.other_detector() {
                return Err(format!("a semantic model that is a {kind}"));
            }
            let Classes { things, .. } = self.classes;
            if (things, self.head.proposals) != (0, 0) {
                let proposals = self.head.proposals;
                return Err(format!(
                    "a semantic model with {things} thing classes and {proposals} proposals"
                ));
            }
            if self.head.stages > 0 {
                head.validate(self.neck.channels)?;
            }
            return self.head.validate_stages(self.neck.channels);
        }
        self.neck.validate(self.backbone.strides())?;
        if let Some(kind) = self.other_detector() {
            self.other_detector_faults(kind)?;
            return match (&self.rcnn, &self.solov2, &self.condinst) {
                (Some(rcnn), None, None) => rcnn.validate(),
                (None, Some(solov2), None) => solov2.validate(),
                (None, None, Some(condinst)) => condinst.validate(self.neck.channels),
                _ => Err(format!("a {kind} that is another detector, too")),
            };
        }
        self.head.validate(self.neck.channels)?;
        if (self.task == Task::Panoptic) != (self.classes.stuff > 0) {
            return Err(format!("task {} with {} stuff classes", self.task.name(), self.classes.stuff));
        }
        Ok(())
    }

    /// What every detector that K-Net is compared with asks of the other fields.
    fn other_detector_faults(&self, kind: &str) -> Result<(), String> {
        if self.task != Task::Instance || self.classes.things == 0 || self.test.mask_score {
            let (task, things) = (self.task.name(), self.classes.things);
            return Err(format!(
                "a {kind} for task {task} of {things} thing classes, mask_score {}",
                self.test.mask_score
            ));
        }
        if (self.head.proposals, self.head.stages) != (0, 0) {
            let Head { proposals, stages, .. } = self.head;
            return Err(format!("a {kind} with {proposals} kernels and {stages} stages of theirs"));
        }
        Ok(())
    }
}

/// A sentence on a threshold that no share, and so no score, can be compared with.
pub(super) fn is_share(field: &str, value: f32) -> Result<(), String> {
    match (0.0..=1.0).contains(&value) {
        true => Ok(()),
        false => Err(format!("{field} {value} must be between 0 and 1")),
    }
}

/// A sentence on a count that is none, or more than any model has.
pub(super) fn in_range<const N: usize>(fields: [(&str, usize); N]) -> Result<(), String> {
    match fields.iter().find(|(_, value)| !(1..=1 << 16).contains(value)) {
        None => Ok(()),
        Some((field, value)) => Err(format!("{field} is {value}, must be 1 to 65536")),
    }
}

#[cfg(test)]
mod tests;
