//! What a model's classes are called, and their numbers in result files.

use crate::image::classes::{self, Class};
use crate::model::Config;

/// The classes of a model in the order of its class indices: names and category ids as the configuration has
/// them. A model that names none and counts as COCO's has COCO's; whatever is left is numbered from 0
/// (`class 0`, ...).
pub fn class_list(config: &Config) -> Vec<Class> {
    let (count, things) = (config.classes.count(), config.classes.things);
    let names = &config.classes.names;
    let coco = classes::coco();
    let of_coco = things == 80
        && (count == 80 || count == coco.len())
        && names.iter().zip(coco).all(|(name, class)| *name == class.name);
    let mut classes = if of_coco { coco[..count].to_vec() } else { classes::numbered(count, things) };
    for (class, name) in classes.iter_mut().zip(names) {
        class.name = name.clone().into();
    }
    for (class, id) in classes.iter_mut().zip(&config.classes.ids) {
        class.id = *id;
    }
    classes
}

/// The names of a model's classes, if its configuration says them; see [`class_list`] for models of COCO.
pub fn known_names(config: &Config) -> Option<Vec<String>> {
    let classes = class_list(config);
    let known = !config.classes.names.is_empty() || knows_ids(config);
    known.then(|| classes.into_iter().map(|class| class.name.into_owned()).collect())
}

/// Whether the ids of [`class_list`] are those of a data set, not the class indices for want of better.
pub fn knows_ids(config: &Config) -> bool {
    let numbered = class_list(config).iter().enumerate().all(|(i, class)| class.id == i as u32);
    !config.classes.ids.is_empty() || !numbered
}
