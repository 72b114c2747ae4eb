//! What a model's classes are called, and their numbers in result files.

use crate::image::classes::{self, Class, named};
use crate::model::Config;

/// The classes of a model in the order of its class indices: names and category ids as the configuration has
/// them. A model that names none and counts as COCO's has COCO's, a semantic one that counts as ADE20K's has
/// those; whatever is left is numbered from 0 (`class 0`, ...).
pub fn class_list(config: &Config) -> Vec<Class> {
    let (count, things) = (config.classes.count(), config.classes.things);
    let names = &config.classes.names;
    let coco = classes::coco();
    let of_coco = things == 80
        && (count == 80 || count == coco.len())
        && names.iter().zip(coco).all(|(name, class)| *name == class.name);
    let mut classes = match (of_coco, names.is_empty() && counts_as_ade20k(config)) {
        (true, _) => coco[..count].to_vec(),
        (_, true) => classes::ade20k(),
        _ => classes::numbered(count, things),
    };
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
    let known = !config.classes.names.is_empty() || knows_ids(config) || counts_as_ade20k(config);
    known.then(|| classes.into_iter().map(|class| class.name.into_owned()).collect())
}

/// Whether a model is semantic and has as many classes as ADE20K: all official ones are of that set.
pub(super) fn counts_as_ade20k(config: &Config) -> bool {
    config.decode_head.is_some() && config.classes.count() == named::ADE20K.len()
}

/// Whether the ids of [`class_list`] are those of a data set, not the class indices for want of better.
pub fn knows_ids(config: &Config) -> bool {
    let numbered = class_list(config).iter().enumerate().all(|(i, class)| class.id == i as u32);
    !config.classes.ids.is_empty() || !numbered
}
