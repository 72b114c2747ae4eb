//! Which model a run trains: one that has a name, with changes.

use std::fmt;
use std::path::Path;

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, Visitor};
use serde::{Deserialize, Serialize};

use super::config::RunConfig;
use crate::checkpoint::Checkpoint;
use crate::engine::source::CONFIG_KEY;
use crate::error::{Error, Result};
use crate::model::{Classes, Config, Task};
use crate::train::data::Mix;

/// A model: one that has a name, with changes. Classes and task follow from the data.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct ModelConfig {
    /// Name of the trained model; `base` too if that is absent.
    pub name: String,
    /// One of [`MODEL_NAMES`](crate::model::config::MODEL_NAMES), which gives all fields that are absent here
    /// and that the model of `start.weights` does not give.
    pub base: Option<String>,
    /// Values of other fields of a [`Config`], by [`Config::settings`].
    #[serde(flatten)]
    pub changes: toml::Table,
}

/// Reads each value of [`ModelConfig::changes`] where it stands, so that messages name its line.
impl<'de> Deserialize<'de> for ModelConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Fields)
    }
}

struct Fields;

impl<'de> Visitor<'de> for Fields {
    type Value = ModelConfig;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the fields of a model")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<ModelConfig, A::Error> {
        let (mut name, mut model) = (None, ModelConfig::default());
        while let Some(field) = fields.next_key_seed(FieldName)? {
            match field.as_str() {
                "name" => name = Some(fields.next_value()?),
                "base" => model.base = fields.next_value()?,
                setting => {
                    // What is null in what an older program wrote was absent.
                    if let Some(value) = fields.next_value_seed(Setting(setting))? {
                        model.changes.insert(field, value);
                    }
                }
            }
        }
        model.name = name.ok_or_else(|| A::Error::missing_field("name"))?;
        Ok(model)
    }
}

/// The name of a field that there is.
struct FieldName;

impl<'de> DeserializeSeed<'de> for FieldName {
    type Value = String;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<String, D::Error> {
        let name = String::deserialize(deserializer)?;
        let mut known = ["name", "base"].into_iter().chain(Config::settings());
        if known.any(|field| field == name) {
            return Ok(name);
        }
        let known: Vec<&str> = ["name", "base"].into_iter().chain(Config::settings()).collect();
        Err(D::Error::custom(format!("unknown field `{name}`, expected one of `{}`", known.join("`, `"))))
    }
}

/// The value of a field of this name.
struct Setting<'a>(&'a str);

impl<'de> DeserializeSeed<'de> for Setting<'_> {
    type Value = Option<toml::Value>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        let Some(value) = Option::<toml::Value>::deserialize(deserializer)? else { return Ok(None) };
        let json = serde_json::to_value(&value).map_err(D::Error::custom)?;
        Config::check_setting(self.0, json).map_err(D::Error::custom)?;
        Ok(Some(value))
    }
}

impl RunConfig {
    /// What the fields of the model are that the configuration does not give: those of the model in `before`,
    /// so that a run goes on with what it has learnt (its kernels, the size of its images), if that file
    /// holds a whole model with the network of `model.base`; else those of `model.base`.
    fn base(&self, before: Option<&Path>) -> Result<Config> {
        let m = &self.model;
        let named = Config::named(m.base.as_deref().unwrap_or(&m.name));
        let Some(started) = before.map(start_config).transpose()?.flatten() else {
            return named;
        };
        let same = |a: &Config, b: &Config| {
            (a.backbone, a.decode_head, a.neck) == (b.backbone, b.decode_head, b.neck)
                && a.head.same_network(&b.head)
        };
        match named {
            Ok(named) if !same(&named, &started) => Ok(named),
            Err(error) if m.base.is_some() => Err(error),
            _ => Ok(started),
        }
    }

    /// The model for the classes of `mix`. What the configuration does not say of it is as in `before`, the
    /// checkpoint or state that training goes on from, or as in `model.base`.
    ///
    /// # Errors
    /// As [`Config::named`] and [`Config::validate`]; [`Error::Usage`] for a semantic model and data that do
    /// not say the class of each pixel; and whatever opening the file says.
    pub fn model(&self, mix: &Mix, before: Option<&Path>) -> Result<Config> {
        let refuse = |reason: String| Error::usage(format!("model.{reason}"));
        let mut changes = Vec::new();
        for (field, value) in &self.model.changes {
            let value = serde_json::to_value(value).map_err(|e| refuse(format!("{field}: {e}")))?;
            changes.push((field.clone(), value));
        }
        let mut config = self.base(before)?.with(changes).map_err(refuse)?;
        config.name = self.model.name.clone();
        config.check_trainable()?;
        let semantic = config.decode_head.is_some();
        if let Some(set) = mix.sets().iter().find(|set| semantic && !set.labels_pixels()) {
            return Err(Error::usage(format!(
                "model `{}` is semantic: it learns from the class of each pixel, and {} has masks of objects alone",
                config.name,
                set.source().display()
            )));
        }
        let things = if semantic { 0 } else { mix.things() };
        config.classes = Classes {
            names: mix.classes().iter().map(|class| class.name.to_string()).collect(),
            ids: mix.classes().iter().map(|class| class.id).collect(),
            ..Classes::new(things, mix.classes().len() - things)
        };
        config.task = if semantic { Task::Semantic } else { Task::of(&config.classes) };
        config.validate()?;
        Ok(config)
    }
}

/// The model in a checkpoint, if it holds a whole one that says which it is.
fn start_config(path: &Path) -> Result<Option<Config>> {
    let file = Checkpoint::open(path)?;
    let text = file.metadata().get(CONFIG_KEY);
    text.map(|text| Config::from_json(text).map_err(|e| Error::checkpoint(path, e.to_string()))).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Backbone, ResNet};

    const REST: &str = "[[data.train]]\nformat = \"coco_instance\"\nannotations = \"a\"\nimages = \"b\"\n\
                        [schedule]\niterations = 1\n";

    fn load(model: &str) -> Result<RunConfig> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run.toml");
        std::fs::write(&path, format!("[model]\n{model}\n{REST}")).unwrap();
        RunConfig::load(&path, &[])
    }

    #[test]
    fn faults_are_told_with_their_line() {
        let fault = |model: &str| load(model).unwrap_err().to_string();
        let error = fault("name = \"x\"\nheads = 4\nhats = 1");
        assert!(error.contains("line 4: unknown field `hats`, expected one of `name`, `base`"), "{error}");
        let error = fault("name = \"x\"\nstages = 2\nheads = \"four\"\nproposals = 3");
        assert!(error.contains("line 4: heads: invalid type: string \"four\""), "{error}");
        let error = fault("name = \"x\"\n\n[model.backbone]\ntype = \"resnet\"\ndepth = 50\nstam = 1");
        assert!(error.contains("backbone: unknown field `stam`"), "{error}");
        // Classes follow from the data.
        for field in ["thing_classes = 3", "task = \"instance\""] {
            let error = fault(&format!("name = \"x\"\n{field}"));
            assert!(error.contains("line 3: unknown field"), "{error}");
        }
        let error = fault("heads = 4");
        assert!(error.contains("missing field `name`"), "{error}");
    }

    #[test]
    fn changes_win_over_the_base() {
        let text = "name = \"x\"\nbase = \"knet_s3_lite0_fpn\"\nproposals = 7\nsize = [64, 96]\n\
                    overlap_threshold = 0.25\nbackbone = { type = \"resnet\", depth = 101 }";
        let config = load(text).unwrap();
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("images")).unwrap();
        image::RgbImage::new(8, 8).save(folder.path().join("images/a.png")).unwrap();
        let annotations = folder.path().join("a.json");
        let data = r#"{"images": [{"id": 1, "file_name": "a.png", "width": 8, "height": 8}],
            "annotations": [{"id": 1, "image_id": 1, "category_id": 9, "segmentation": [[0, 0, 8, 0, 8, 8, 0, 8]]}],
            "categories": [{"id": 4, "name": "ant"}, {"id": 9, "name": "bee"}]}"#;
        std::fs::write(&annotations, data).unwrap();
        let images = folder.path().join("images");
        let set =
            crate::train::data::DataConfig::CocoInstance { annotations, images, classes: None, repeat: 1.0 };
        let mix = Mix::open(&[set], &crate::train::data::Reading::default()).unwrap();
        let model = config.model(&mix, None).unwrap();
        let mut wanted = Config::named("knet_s3_lite0_fpn").unwrap();
        wanted.name = "x".into();
        wanted.backbone = Backbone::from(ResNet::new(101));
        (wanted.head.proposals, wanted.input.size, wanted.test.overlap_threshold) = (7, [64, 96], 0.25);
        let names = ["ant", "bee"].map(String::from).to_vec();
        wanted.classes = Classes { names, ids: vec![4, 9], ..Classes::new(2, 0) };
        assert_eq!(model, wanted);
    }

    #[test]
    fn what_older_programs_wrote_is_read() {
        let text = r#"{"name": "x", "base": null, "backbone": null, "heads": 4, "normalization": null}"#;
        let found: ModelConfig = serde_json::from_str(text).unwrap();
        let changes = toml::Table::from_iter([("heads".to_string(), toml::Value::Integer(4))]);
        assert_eq!(found, ModelConfig { name: "x".into(), base: None, changes });
        assert_eq!(toml::to_string(&found).unwrap(), "name = \"x\"\nheads = 4\n");
        let json = serde_json::to_string(&found).unwrap();
        assert_eq!(serde_json::from_str::<ModelConfig>(&json).unwrap(), found);
    }
}
