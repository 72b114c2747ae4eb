//! Which class of a model is which category of a data set: the one of the same name.

use crate::error::{Error, Result};
use std::collections::HashMap;
use std::path::Path;

/// Which classes an evaluation covers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClassPolicy {
    /// The model and the data set must have the same classes; anything else is an error that lists the names.
    #[default]
    Same,
    /// Only classes that both have. Annotations of other categories are left out, but all images stay in, so
    /// that a detection on a left-out object counts as false. What the model says of other classes is not
    /// looked at.
    Common,
}

/// A class that is evaluated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MatchedClass {
    /// Its name.
    pub name: String,
    /// Class index of the model.
    pub class: usize,
    /// Position in the data set's list of categories.
    pub category: usize,
}

/// The classes of an evaluation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClassMatch {
    /// Classes that are evaluated, in the order of the data set's categories.
    pub matched: Vec<MatchedClass>,
    /// Class names of the model that are not evaluated.
    pub only_in_model: Vec<String>,
    /// Category names of the data set that are not evaluated.
    pub only_in_data: Vec<String>,
    /// For each class of the model its position in `matched`.
    pub slot_of_class: Vec<Option<usize>>,
    /// For each category of the data set its position in `matched`.
    pub slot_of_category: Vec<Option<usize>>,
}

impl ClassMatch {
    /// Finds the classes of `model` among the categories of `data`, which the file at `path` lists.
    ///
    /// # Errors
    /// [`Error::Usage`] if two classes of the model have one name; [`Error::Data`] if names differ under
    /// [`ClassPolicy::Same`] or none is common.
    pub fn new(path: &Path, model: &[String], data: &[String], policy: ClassPolicy) -> Result<Self> {
        let mut class_of = HashMap::new();
        for (class, name) in model.iter().enumerate() {
            if class_of.insert(name.as_str(), class).is_some() {
                return Err(Error::usage(format!("the model has two classes named `{name}`")));
            }
        }
        let mut result = ClassMatch {
            matched: Vec::new(),
            only_in_model: Vec::new(),
            only_in_data: Vec::new(),
            slot_of_class: vec![None; model.len()],
            slot_of_category: vec![None; data.len()],
        };
        for (category, name) in data.iter().enumerate() {
            let Some(&class) = class_of.get(name.as_str()) else {
                result.only_in_data.push(name.to_string());
                continue;
            };
            result.slot_of_class[class] = Some(result.matched.len());
            result.slot_of_category[category] = Some(result.matched.len());
            result.matched.push(MatchedClass { name: name.to_string(), class, category });
        }
        let unmatched = model.iter().zip(&result.slot_of_class).filter(|(_, slot)| slot.is_none());
        result.only_in_model = unmatched.map(|(name, _)| name.to_string()).collect();
        let differ = !result.only_in_data.is_empty() || !result.only_in_model.is_empty();
        if result.matched.is_empty() || (policy == ClassPolicy::Same && differ) {
            return Err(result.refusal(path));
        }
        Ok(result)
    }

    /// Number of classes that are evaluated.
    pub fn len(&self) -> usize {
        self.matched.len()
    }

    /// True if no class is evaluated.
    pub fn is_empty(&self) -> bool {
        self.matched.is_empty()
    }

    fn refusal(&self, path: &Path) -> Error {
        let mut reason = match self.matched.len() {
            0 => "no category has the name of a class of the model".to_string(),
            n => format!("categories and the model's classes differ; {n} names agree"),
        };
        for (side, names) in [("data set", &self.only_in_data), ("model", &self.only_in_model)] {
            if !names.is_empty() {
                let first = names.iter().take(20).map(String::as_str).collect::<Vec<_>>().join(", ");
                let rest = names.len().saturating_sub(20);
                let more = if rest > 0 { format!(", and {rest} more") } else { String::new() };
                reason.push_str(&format!("\n  {} only in the {side}: {first}{more}", names.len()));
            }
        }
        if !self.matched.is_empty() {
            reason.push_str("\n  (--common-classes evaluates the names that agree)");
        }
        Error::data(path, reason)
    }
}
