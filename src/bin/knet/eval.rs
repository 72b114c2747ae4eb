//! `knet eval`

use crate::size::{self, Size};
use crate::voice::{Level, level, note};
use crate::{ModelArguments, StageArguments, guard, parse_share, print};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use knet::engine::WeightSource;
use knet::error::say;
use knet::fsio::atomic_write;
use knet::image::output::coco_results;
use knet::model::Task;
use knet::train::data::{Catalogue, Reading};
use knet::train::evaluate::class_match::ClassPolicy;
use knet::train::evaluate::{EvalSpec, Evaluation, SemanticSpec};
use knet::{Error, Result};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Measure how good a model is on annotated photos
///
/// A COCO instance file gives mask AP. A COCO panoptic file with --panoptic-dir gives PQ, SQ, RQ and mIoU.
/// Masks of class indices with their class list give mIoU, alone or with a panoptic file. Classes are matched
/// by name.
#[derive(Args)]
pub struct Arguments {
    #[command(flatten)]
    model: ModelArguments,

    #[command(flatten)]
    stages: StageArguments,

    /// Folder of the photos
    #[arg(long, value_name = "DIR")]
    images: PathBuf,

    /// COCO instance annotations, or panoptic ones with --panoptic-dir
    #[arg(long, value_name = "JSON", required_unless_present = "masks")]
    annotations: Option<PathBuf>,

    /// Folder of the PNGs of panoptic annotations
    #[arg(long, value_name = "DIR", requires = "annotations")]
    panoptic_dir: Option<PathBuf>,

    /// Folder of PNGs of class indices, named like the photos
    #[arg(long, value_name = "DIR", requires = "classes")]
    masks: Option<PathBuf>,

    /// Class list of the masks: {"ignore_index": 255, "classes": [{"index": 0, "name": "sky"}, ...]}
    #[arg(long, value_name = "JSON", requires = "masks")]
    classes: Option<PathBuf>,

    /// Field of the class list that holds the classes
    #[arg(long, value_name = "NAME", requires = "masks", default_value = "classes")]
    classes_field: String,

    /// Text file with the stems of the masks to use, one a line [default: all masks of the folder]
    #[arg(long, value_name = "FILE", requires = "masks")]
    list: Option<PathBuf>,

    /// Evaluate the classes that model and data set share, and leave out the others; all photos stay in
    #[arg(long)]
    common_classes: bool,

    /// Size that photos are resized to fit into, whichever way they lie [default: the model's own, 800x1333
    /// for COCO]
    #[arg(long, value_name = "HxW|SHORT,LONG", value_parser = size::parse)]
    size: Option<Size>,

    /// Leave out instances, and things of a panoptic map, that score lower [default: 0 for instances, the
    /// model's own threshold, 0.3 for COCO, for things of a panoptic map]
    #[arg(long, visible_alias = "min-score", value_name = "SCORE", value_parser = parse_share)]
    score: Option<f64>,

    /// Write all numbers to this file, with all digits
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,

    /// Write the instances to this file as one list that COCO's tools take, with the image and category ids
    /// of the annotations
    #[arg(long, value_name = "FILE", requires = "annotations", conflicts_with = "panoptic_dir")]
    coco: Option<PathBuf>,

    /// Leave out photos that cannot be decoded, and count them, instead of ending with an error
    #[arg(long)]
    skip_damaged: bool,

    /// Refuse polygons of one or two points instead of dropping and counting them
    #[arg(long)]
    strict: bool,

    /// Replace files that this command did not make (an input never)
    #[arg(long)]
    overwrite: bool,
}

pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let semantic = arguments.masks.clone().zip(arguments.classes.clone());
    let spec = EvalSpec {
        images: arguments.images.clone(),
        annotations: arguments.annotations.clone(),
        panoptic_dir: arguments.panoptic_dir.clone(),
        semantic: semantic.map(|(masks, classes)| SemanticSpec {
            masks,
            classes,
            field: arguments.classes_field.clone(),
            list: arguments.list.clone(),
        }),
        classes: if arguments.common_classes { ClassPolicy::Common } else { ClassPolicy::Same },
        reading: Reading {
            skip_damaged: arguments.skip_damaged,
            strict: arguments.strict,
            ..Reading::default()
        },
    };
    let task = spec.task()?;
    check_outputs(arguments)?;
    let mut builder = arguments.stages.apply(arguments.model.engine());
    if task == Task::Instance {
        // A panoptic model gives these, too.
        builder = builder.task(task);
    }
    if let Some(size) = arguments.size {
        builder = builder.size(Some(size.sides()));
    }
    if let Some(score) = arguments.score {
        builder = builder.min_score(score);
    }
    let mut engine = arguments.model.build(builder)?;
    if let source @ WeightSource::Seeded(_) = arguments.model.source() {
        note(format_args!("{source} are random weights: the scores say nothing"));
    }
    let mut evaluation = Evaluation::open(&spec, &engine)?;
    for warning in evaluation.warnings() {
        note(format_args!("{warning}"));
    }
    let category_of = match (&arguments.coco, &arguments.annotations) {
        (Some(_), Some(annotations)) => {
            Catalogue::read(annotations)?.categories(engine.classes().iter().map(|class| &*class.name))?
        }
        _ => Vec::new(),
    };
    let mut results = Vec::new();
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len}  {per_sec}  {eta} left");
    let images = evaluation.images() as u64;
    let bar = if level() > Level::Quiet { ProgressBar::new(images) } else { ProgressBar::hidden() };
    let bar = bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    let report = evaluation.run(&mut engine, |image| {
        bar.set_position(image.done as u64);
        let instances = arguments.coco.as_ref().and_then(|_| image.found.instance_result());
        if let (Some(instances), Some(record)) = (instances, image.image) {
            results.extend(coco_results(instances, &record.json_id(), &category_of));
        }
        ControlFlow::Continue(())
    });
    bar.finish_and_clear();
    let report = report?;
    // What took the time comes first: a file that cannot be written must not cost it.
    print(&report.to_string())?;
    if let Some(path) = &arguments.json {
        atomic_write(path, |out| Ok(serde_json::to_writer_pretty(out, &report)?))?;
    }
    if let Some(path) = &arguments.coco {
        atomic_write(path, |out| Ok(serde_json::to_writer(out, &results)?))?;
    }
    let Some(partial) = report.partial else { return Ok(ExitCode::SUCCESS) };
    say(format_args!(
        "error: {} (the numbers are of {} of {} images)",
        partial.reason, partial.images, partial.of
    ));
    Ok(ExitCode::from(partial.kind.map_or(1, |kind| kind.exit_code())))
}

/// Refuses outputs that would replace an input or a file of someone else, or each other.
fn check_outputs(arguments: &Arguments) -> Result<()> {
    let Arguments { annotations, classes, list, json, coco, .. } = arguments;
    let weights = arguments.model.weights_file();
    let inputs: guard::Inputs =
        [annotations.clone(), classes.clone(), list.clone(), weights].into_iter().flatten().collect();
    if json.is_some() && json == coco {
        return Err(Error::usage("--json and --coco name one file"));
    }
    if let Some(path) = json {
        let own = |path: &Path| guard::is_json_with(path, &["model", "images"]);
        guard::check(path, &inputs, own, arguments.overwrite)?;
    }
    match coco {
        // A list of results does not say who made it.
        Some(path) => guard::check(path, &inputs, |_| false, arguments.overwrite),
        None => Ok(()),
    }
}
