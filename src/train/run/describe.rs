//! What a run says of itself before it begins.

use super::Observer;
use super::config::RunConfig;
use super::start::StartReport;
use crate::model::{Config, Task};
use crate::train::data::Mix;
use crate::train::data::warning::list;

/// The images, objects and classes of `mix`, and what was odd about them. `what` names its part in the run.
pub fn data(mix: &Mix, what: &str, observer: &mut dyn Observer) {
    let objects: usize = (0..mix.len()).map(|i| mix.objects(i)).sum();
    let names: Vec<&str> = mix.classes().iter().map(|class| &*class.name).collect();
    observer.note(&format!(
        "{what}: {} images, {objects} objects; {} classes: {}",
        mix.len(),
        names.len(),
        list(&names)
    ));
    for warning in mix.sets().iter().flat_map(|set| set.warnings()) {
        observer.note(&format!("{what}: warning: {warning}"));
    }
    let ids = |at: usize| mix.sets()[at].classes().iter().map(|class| class.id).collect::<Vec<_>>();
    if (1..mix.sets().len()).any(|at| ids(at) != ids(0)) {
        observer.note(&format!(
            "{what}: warning: the sets number their categories differently; results carry the ids of the first"
        ));
    }
}

/// Where the weights came from.
pub fn start(config: &RunConfig, model: &Config, report: &StartReport, observer: &mut dyn Observer) {
    if let Some(path) = &config.start.weights {
        observer.note(&format!("{}: {} tensors taken", path.display(), report.loaded));
        let (proposals, [short, long], mask_score) =
            (model.head.proposals, model.input.size, model.test.mask_score);
        let kernels = match model.task {
            Task::Semantic => format!("a kernel for each of {} classes", model.classes.count()),
            Task::Instance | Task::Panoptic => format!("{proposals} kernels, mask_score {mask_score}"),
        };
        observer.note(&format!("model: {kernels}, photos segmented at {short}, {long}"));
    }
    if !report.drawn.is_empty() {
        observer.note(&format!("drawn from seed {}: {}", config.seed, report.drawn.join(", ")));
    }
    for m in &report.resized {
        let (name, found, expected) = (&m.name, &m.found, &m.expected);
        observer.note(&format!("{name}: {found:?} in the file, {expected:?} here: drawn anew"));
    }
    if !report.reset.is_empty() {
        observer.note(&format!("drawn anew as asked: {}", report.reset.join(", ")));
    }
    if report.unnamed {
        observer.note(
            "class heads: drawn anew, as the file does not say which class each row is (start.classes names them)",
        );
        return;
    }
    for (what, names) in [
        ("rows taken by name", &report.kept_classes),
        ("drawn anew, as the file has no class of the name", &report.new_classes),
        ("left in the file, as the data have no class of the name", &report.left_classes),
    ] {
        if !names.is_empty() {
            observer.note(&format!("class heads: {what}: {}", list(names)));
        }
    }
}

/// Settings that do not go together, one a line: none is wrong, all are seldom meant.
pub fn mismatches(config: &RunConfig, model: &Config, mix: &Mix, total: u64, observer: &mut dyn Observer) {
    let mut warn = |text: String| observer.note(&format!("warning: {text}"));
    let most = (0..mix.len()).map(|i| mix.countable(i)).max().unwrap_or(0);
    let limits = [
        (model.head.proposals, "model.proposals kernels: the others cannot be learnt or found"),
        (config.data.max_objects, "data.max_objects: of more, a random choice is learnt"),
        (model.test.max_per_image, "model.max_per_image: results are capped"),
    ];
    for (limit, what) in limits.into_iter().filter(|_| model.task != Task::Semantic) {
        let over = (0..mix.len()).filter(|&i| mix.countable(i) > limit).count();
        if over > 0 {
            warn(format!("{over} images have more objects (up to {most}) than {limit} = {what}"));
        }
    }
    // At inference the longer side fits the longer, but for semantic models, whose shorter one does in all
    // but very long photos; training pads to the size it is given.
    let side = |size: [usize; 2]| match model.task {
        Task::Semantic => size[0].min(size[1]) as f64,
        Task::Instance | Task::Panoptic => size[0].max(size[1]) as f64,
    };
    let (training, inference) = (side(config.augment.size), side(model.input.size));
    if training.max(inference) > 1.5 * training.min(inference) {
        let ([h, w], [short, long]) = (config.augment.size, model.input.size);
        warn(format!(
            "augment.size is {h} x {w}, but photos are segmented at model.size {short}, {long}: objects are of another size there"
        ));
    }
    let warmup = config.schedule.schedule(total).warmup;
    if let Some(asked) = config.schedule.warmup.filter(|&asked| asked > warmup) {
        warn(format!(
            "schedule.warmup of {asked} iterations is more than a third of the run's {total}: it warms up for {warmup}"
        ));
    }
}
