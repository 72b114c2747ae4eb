use super::in_range;
use serde::{Deserialize, Serialize};
use std::collections::HashSet;

/// What a model knows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Classes {
    /// Number of countable classes, which come first; 0 for models of regions alone (semantic segmentation).
    #[serde(rename = "thing_classes")]
    pub things: usize,
    /// Number of region classes, which follow; 0 for instance models.
    #[serde(rename = "stuff_classes", default)]
    pub stuff: usize,
    /// Names of all classes, things first. Empty stands for COCO's names if the counts are COCO's.
    #[serde(rename = "class_names", default, skip_serializing_if = "Vec::is_empty")]
    pub names: Vec<String>,
    /// Category ids of all classes in the data set they were learnt from, things first; results carry them.
    /// Empty stands for COCO's if the names are COCO's, else for the class indices.
    #[serde(rename = "class_ids", default, skip_serializing_if = "Vec::is_empty")]
    pub ids: Vec<u32>,
}

impl Classes {
    /// So many of each, without names.
    pub fn new(things: usize, stuff: usize) -> Self {
        Classes { things, stuff, names: Vec::new(), ids: Vec::new() }
    }

    /// Things and stuff together.
    pub fn count(&self) -> usize {
        self.things + self.stuff
    }

    pub(super) fn validate(&self) -> Result<(), String> {
        // Each by itself first: their sum must not wrap.
        for (field, classes) in [("thing_classes", self.things), ("stuff_classes", self.stuff)] {
            if classes > 1 << 16 {
                return Err(format!("{field} is {classes}, at most 65536"));
            }
        }
        in_range([("classes", self.count())])?;
        let (names, count) = (self.names.len(), self.count());
        if names != 0 && names != count {
            return Err(format!("{names} class names for {count} classes"));
        }
        let (ids, distinct) = (self.ids.len(), self.ids.iter().collect::<HashSet<_>>().len());
        if ids != 0 && (ids != count || distinct != ids) {
            return Err(format!("{ids} class ids, {distinct} of them distinct, for {count} classes"));
        }
        Ok(())
    }
}
