//! `knet eval`

use crate::{ModelArguments, parse_score, parse_sides, print};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use knet::Result;
use knet::engine::WeightSource;
use knet::fsio::atomic_write;
use knet::train::evaluate::class_match::ClassPolicy;
use knet::train::evaluate::{EvalSpec, SemanticSpec, evaluate};
use std::path::PathBuf;

/// Measure how good a model is on annotated photos
///
/// A COCO instance file gives mask AP. A COCO panoptic file with --panoptic-dir gives PQ, SQ, RQ and mIoU. Masks of
/// class indices with their class list give mIoU, alone or with a panoptic file. Classes are matched by name.
#[derive(Args)]
pub struct Arguments {
    #[command(flatten)]
    model: ModelArguments,

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

    /// Photos are resized to fit into these sides, in pixels [default: the model's own, 800,1333 for COCO]
    #[arg(long, value_name = "SHORT,LONG", value_parser = parse_sides)]
    size: Option<(usize, usize)>,

    /// Leave out instances, and things of a panoptic map, that score lower [default: 0 for instances, the model's own
    /// threshold, 0.3 for COCO, for things of a panoptic map]
    #[arg(long, visible_alias = "min-score", value_name = "SCORE", value_parser = parse_score)]
    score: Option<f64>,

    /// Write all numbers to this file, with all digits
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

pub fn run(arguments: &Arguments) -> Result<()> {
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
    };
    let mut builder = arguments.model.engine().task(spec.task()?);
    if let Some(size) = arguments.size {
        builder = builder.size(Some(size));
    }
    if let Some(score) = arguments.score {
        builder = builder.min_score(score);
    }
    let mut engine = arguments.model.build(builder)?;
    if let source @ WeightSource::Seeded(_) = arguments.model.source() {
        eprintln!("note: {source} are random weights: the scores say nothing");
    }
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len}  {per_sec}  {eta} left");
    let bar = ProgressBar::new(0).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    let report = evaluate(&mut engine, &spec, |done, all| {
        bar.set_length(all as u64);
        bar.set_position(done as u64);
    });
    bar.finish_and_clear();
    let report = report?;
    if let Some(path) = &arguments.json {
        atomic_write(path, |out| Ok(serde_json::to_writer_pretty(out, &report)?))?;
    }
    print(&report.to_string())
}
