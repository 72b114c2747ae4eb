//! `knet segment`

mod manifest;
mod plan;

use crate::guard;
use crate::size::{self, Size};
use crate::voice::{Level, detail, level, note, tell};
use crate::{ModelArguments, StageArguments, parse_share, picture};
use clap::{Args, ValueEnum};
use image::RgbImage;
use indicatif::{ProgressBar, ProgressStyle};
use knet::engine::{Segmentation, WeightSource};
use knet::error::say;
use knet::fsio::atomic_write;
use knet::image::classes::Class;
use knet::image::instance::InstanceFilter;
use knet::image::legend::beside;
use knet::image::output::{
    CocoResult, ImageRef, class_areas, coco_instances, coco_panoptic, coco_results, instance_numbers,
};
use knet::image::overlay::{draw, flat, instance_layers, panoptic_layers, semantic_layers};
use knet::image::picture::{write_indexed, write_numbers, write_rgb};
use knet::model::Task;
use knet::task::Found;
use knet::train::data::Catalogue;
use knet::{Engine, Error, Result};
use manifest::{Manifest, Status, Times};
use plan::{Item, Shard};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

/// Find objects (and regions) in photos
///
/// For each photo these files are written: NAME.overlay.png (the photo with coloured masks and labels),
/// NAME.json (COCO results: instances with RLE masks, or panoptic segments) and, of panoptic results,
/// NAME.panoptic.png (COCO's, whose colours are numbers and mostly black to the eye) with its twin for the
/// eye, NAME.panoptic.colour.png. Of semantic models NAME.semantic.png holds the class index of each pixel,
/// with a palette, NAME.json the classes with their areas, and the overlay has a legend. Instances without a
/// pixel are left out. The `bbox` of an instance in NAME.json leaves out specks: parts of its mask with less
/// than 1 % of the pixels of its largest part, which stay in the mask. A photo that cannot be read is
/// reported at the end; the others are done all the same. Photos and files that this command did not make are
/// never replaced.
#[derive(Args)]
pub struct Arguments {
    /// Photos, or folders of photos (not searched deeper unless --recursive); - for one photo on standard
    /// input
    #[arg(required = true, value_name = "IMAGE|DIR|-")]
    inputs: Vec<PathBuf>,

    /// Take the photos below folders too; results lie in the same folders below --out
    #[arg(long)]
    recursive: bool,

    #[command(flatten)]
    model: ModelArguments,

    #[command(flatten)]
    stages: StageArguments,

    /// Kind of result
    #[arg(long, value_enum, default_value = "auto")]
    task: TaskArgument,

    /// Size that photos are resized to fit into, whichever way they lie [default: the model's own, 800x1333
    /// for COCO]
    #[arg(long, value_name = "HxW|SHORT,LONG", value_parser = size::parse)]
    size: Option<Size>,

    /// Leave out instances, and things of a panoptic map, that score lower
    #[arg(long, value_name = "SCORE", default_value_t = 0.3, value_parser = parse_share)]
    score: f64,

    /// Leave out instances of fewer pixels [default: 1]
    #[arg(long, value_name = "PIXELS", value_parser = clap::value_parser!(u64).range(1..))]
    min_area: Option<u64>,

    /// Keep of each instance only the largest connected part of its mask
    #[arg(long)]
    largest_part: bool,

    /// Leave out an instance, whatever its class, whose mask and that of a better one have a larger IoU (0.9:
    /// duplicates) [default: none is left out]
    #[arg(long, value_name = "IOU", value_parser = parse_share)]
    max_overlap: Option<f64>,

    /// Folder to write to; made if it is not there
    #[arg(long, value_name = "DIR", default_value = "knet-out")]
    out: PathBuf,

    /// What to write: `png` is the panoptic or semantic map, or for instances NAME.instances.png (16-bit
    /// grey: 0 nothing, n the n-th entry of `annotations` in NAME.json, the better one on top); `colour` is
    /// the same for the eye [default: overlay,json, and png,colour for panoptic, png for semantic results]
    #[arg(long, value_enum, value_delimiter = ',')]
    format: Vec<Format>,

    /// Draw no labels on overlays
    #[arg(long)]
    no_labels: bool,

    /// Write the instances of all photos to this file as one list that COCO's tools take, with the image and
    /// category ids of --annotations
    #[arg(long, value_name = "FILE", requires = "annotations")]
    coco: Option<PathBuf>,

    /// COCO file whose `images` and `categories` give the ids for --coco: photos by file name, classes by
    /// name
    #[arg(long, value_name = "JSON", requires = "coco")]
    annotations: Option<PathBuf>,

    /// Do the I-th of N parts of the photos alone, I from 1: for N processes, on one machine or many
    ///
    /// A photo's name below the folder that was named decides, so that it stays in its part when photos are
    /// added. The parts together write what one process would.
    #[arg(long, value_name = "I/N", value_parser = Shard::parse)]
    shard: Option<Shard>,

    /// Pass over photos whose results are there already, whatever options they were made with
    #[arg(long, conflicts_with = "coco")]
    skip_existing: bool,

    /// Write to this file what became of each photo as it is done: a line of JSON with `status` (done,
    /// skipped, failed), the number of objects and the milliseconds of each part, or the error
    #[arg(long, value_name = "FILE")]
    manifest: Option<PathBuf>,

    /// Replace files that this command did not make (photos never)
    #[arg(long)]
    overwrite: bool,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum TaskArgument {
    /// What the model was made for
    Auto,
    /// Objects with their own masks, which may overlap
    Instance,
    /// Every pixel to one object or region
    Panoptic,
    /// Every pixel to one class
    Semantic,
}

#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
enum Format {
    Overlay,
    Json,
    Png,
    #[value(alias = "color")]
    Colour,
}

/// Share of the pixels of a mask's largest part below which another part is a speck, and in no box.
const SPECK: f32 = 0.01;

pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let (items, inputs) = plan::items(arguments)?;
    if let Some(path) = &arguments.manifest {
        guard::check(path, &inputs, manifest::is_own, arguments.overwrite)?;
    }
    if let (Some(shard), true) = (arguments.shard, items.is_empty()) {
        std::fs::create_dir_all(&arguments.out).map_err(|e| Error::io(&arguments.out, e))?;
        arguments.manifest.as_deref().map(Manifest::begin).transpose()?;
        return tell(format_args!("shard {shard} has none of the {} photos", inputs.len()))
            .map(|()| ExitCode::SUCCESS);
    }
    let filter = InstanceFilter {
        largest_part: arguments.largest_part,
        min_area: arguments.min_area.map_or(1, |pixels| usize::try_from(pixels).unwrap_or(usize::MAX)),
        max_overlap: arguments.max_overlap.unwrap_or(1.0),
        box_parts: SPECK,
    };
    let mut builder =
        arguments.stages.apply(arguments.model.engine()).min_score(arguments.score).filter(filter);
    if let Some(size) = arguments.size {
        builder = builder.size(Some(size.sides()));
    }
    builder = match arguments.task {
        TaskArgument::Auto => builder,
        TaskArgument::Instance => builder.task(Task::Instance),
        TaskArgument::Panoptic => builder.task(Task::Panoptic),
        TaskArgument::Semantic => builder.task(Task::Semantic),
    };
    let engine = arguments.model.build(builder)?;
    if let source @ WeightSource::Seeded(_) = arguments.model.source() {
        note(format_args!(
            "{source} are random weights: the masks show that the engine runs, not what it sees"
        ));
    }
    let task = engine.task();
    let unfiltered = InstanceFilter { min_area: 1, box_parts: SPECK, ..InstanceFilter::default() };
    if task != Task::Instance && filter != unfiltered {
        let options = "--min-area, --largest-part and --max-overlap are of instances";
        let way = if task == Task::Panoptic { ": with a panoptic model add --task instance" } else { "" };
        return Err(Error::usage(format!("{options}{way}")));
    }
    let formats = match (arguments.format.as_slice(), task) {
        ([], Task::Panoptic) => vec![Format::Overlay, Format::Json, Format::Png, Format::Colour],
        ([], Task::Semantic) => vec![Format::Overlay, Format::Json, Format::Png],
        ([], Task::Instance) => vec![Format::Overlay, Format::Json],
        (asked, _) => asked.to_vec(),
    };
    plan::check(&items, &inputs, &formats, task, arguments.overwrite)?;
    let list = List::open(arguments, &engine, &items)?;
    std::fs::create_dir_all(&arguments.out).map_err(|e| Error::io(&arguments.out, e))?;
    if arguments.skip_existing {
        plan::sweep(&items, &formats, task)?;
    }
    let mut manifest = arguments.manifest.as_deref().map(Manifest::begin).transpose()?;
    let mut record = |item: &Item, status: Status| {
        manifest.as_mut().map_or(Ok(()), |manifest| manifest.add(item, &status))
    };
    let (classes, labels) = (engine.classes(), !arguments.no_labels);
    let mut job = Job { classes, engine, formats, labels, list, result: Segmentation::default() };
    let progress = progress_bar(items.len());
    let mut failures = Vec::new();
    let mut skipped = 0;
    for item in &items {
        progress.set_message(item.photo.file_name().unwrap_or_default().to_string_lossy().into_owned());
        if arguments.skip_existing && item.is_done(&job.formats, task) {
            record(item, Status::Skipped)?;
            skipped += 1;
            progress.inc(1);
            continue;
        }
        let start = Instant::now();
        let outcome = item.decode().and_then(|photo| {
            let decode = start.elapsed();
            let photo = progress.suspend(|| picture(&item.name, photo));
            let found = job.segment(item, &photo)?;
            let engine = job.engine.timings();
            Ok((found, Times { decode, engine, write: start.elapsed() - decode - engine.total() }))
        });
        match outcome {
            Ok((found, times)) => {
                let (photo, ms) = (item.photo.display(), times.engine.total().as_secs_f64() * 1e3);
                let (noun, stages) = (job.noun(), job.result.stages());
                progress.suspend(|| {
                    tell(format_args!("{photo}: {found} {noun} in {ms:.0} ms"))?;
                    job.detail();
                    record(item, Status::Done { found, stages, times })
                })?;
            }
            Err(error) => {
                record(item, Status::Failed(&error))?;
                failures.push(error);
            }
        }
        progress.inc(1);
    }
    progress.finish_and_clear();
    let endings = job.formats.iter().map(|format| plan::ending(*format, task));
    if skipped > 0 {
        tell(format_args!("passed over {skipped} of {} photos, whose results are there", items.len()))?;
    }
    match (items.as_slice(), items.len() - failures.len() - skipped) {
        (_, 0) => {}
        ([item], _) => {
            let files = job.formats.iter().map(|format| item.target(*format, task).display().to_string());
            tell(format_args!("wrote {}", files.collect::<Vec<_>>().join(", ")))?;
        }
        (_, done) => {
            let names: Vec<String> = endings.map(|ending| format!("NAME.{ending}")).collect();
            let out = arguments.out.display();
            tell(format_args!("wrote {} of {done} photos to {out}", names.join(", ")))?;
        }
    }
    if let Some(list) = &job.list {
        list.write()?;
    }
    let Some(first) = failures.first() else { return Ok(ExitCode::SUCCESS) };
    for failure in &failures {
        say(format_args!("error: {failure}"));
    }
    if items.len() == 1 && arguments.shard.is_none() {
        return Ok(ExitCode::from(first.kind().exit_code()));
    }
    say(format_args!("{} of {} images failed", failures.len(), items.len()));
    Ok(ExitCode::from(1))
}

fn progress_bar(images: usize) -> ProgressBar {
    if images < 2 || level() == Level::Quiet {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len}  {per_sec}  {eta} left  {wide_msg}");
    ProgressBar::new(images as u64).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

/// The results of all photos in the terms of a data set.
struct List {
    path: PathBuf,
    /// Of each photo, by its number.
    image_ids: HashMap<u64, Value>,
    /// Of each class of the model.
    category_of: Vec<Option<u32>>,
    results: Vec<CocoResult>,
}

impl List {
    /// Finds every photo and the classes in --annotations, if a list is asked for.
    fn open(arguments: &Arguments, engine: &Engine, items: &[Item]) -> Result<Option<List>> {
        let (Some(path), Some(annotations)) = (&arguments.coco, &arguments.annotations) else {
            return Ok(None);
        };
        match engine.task() {
            Task::Instance => {}
            Task::Panoptic => {
                let way = "--coco lists instances: with a panoptic model add --task instance";
                return Err(Error::usage(way));
            }
            Task::Semantic => return Err(Error::usage("--coco lists instances, a semantic model has none")),
        }
        let photos = items.iter().map(|item| item.photo.clone());
        let inputs: guard::Inputs = photos.chain([annotations.clone()]).collect();
        guard::check(path, &inputs, |_| false, arguments.overwrite)?;
        let catalogue = Catalogue::read(annotations)?;
        let id = |item: &Item| Ok((item.id, catalogue.image(&item.photo)?.json_id()));
        let image_ids = items.iter().map(id).collect::<Result<_>>()?;
        let classes = engine.classes();
        let category_of = catalogue.categories(classes.iter().map(|class| &*class.name))?;
        let left: Vec<&str> = classes
            .iter()
            .zip(&category_of)
            .filter(|(_, id)| id.is_none())
            .map(|(class, _)| &*class.name)
            .collect();
        if let Some(first) = left.first() {
            let (count, file) = (left.len(), annotations.display());
            note(format_args!(
                "{count} classes are no category of {file} and left out of the list (first: {first})"
            ));
        }
        Ok(Some(List { path: path.clone(), image_ids, category_of, results: Vec::new() }))
    }

    fn write(&self) -> Result<()> {
        atomic_write(&self.path, |out| Ok(serde_json::to_writer(out, &self.results)?))?;
        tell(format_args!("wrote {} results to {}", self.results.len(), self.path.display()))
    }
}

struct Job {
    engine: Engine,
    classes: Vec<Class>,
    formats: Vec<Format>,
    /// Whether overlays have labels.
    labels: bool,
    list: Option<List>,
    result: Segmentation,
}

impl Job {
    /// Segments one photo, writes its files and gives the number of what was found, see [`Job::noun`].
    fn segment(&mut self, item: &Item, photo: &RgbImage) -> Result<usize> {
        self.engine.segment_into(photo, &mut self.result)?;
        let image = ImageRef { id: item.id, file_name: &item.name };
        let task = self.result.task();
        let wants = |format| self.formats.contains(&format).then(|| item.target(format, task));
        let map = item.target(Format::Png, task);
        let map_name = map.file_name().unwrap_or_default().to_string_lossy();
        let (report, map) = self.report(image, &map_name)?;
        if let Some(folder) = item.target(Format::Json, task).parent() {
            std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
        }
        let (overlay, colours) = (wants(Format::Overlay), wants(Format::Colour));
        if overlay.is_some() || colours.is_some() {
            let mut layers = match self.result.found() {
                Found::Panoptic(map) => panoptic_layers(map, &self.classes),
                Found::Semantic(map) => semantic_layers(map, &self.classes),
                Found::Instance(instances) => instance_layers(instances, &self.classes, 0.0),
            };
            // Names in a legend leave the regions free.
            let named = task == Task::Semantic && self.labels;
            let legend = if named { layers.clone() } else { Vec::new() };
            if named || !self.labels {
                layers.iter_mut().for_each(|layer| layer.label.clear());
            }
            if let Some(path) = overlay {
                let drawn = draw(photo, &layers)?;
                write_rgb(&path, &if named { beside(&drawn, &legend) } else { drawn })?;
            }
            if let Some(path) = colours {
                write_rgb(&path, &flat(&layers, self.result.size()))?;
            }
        }
        if let Some(path) = wants(Format::Png) {
            if let Some(map) = map {
                write_rgb(&path, &map)?;
            } else if let Found::Semantic(map) = self.result.found() {
                let palette: Vec<[u8; 3]> = self.classes.iter().map(|class| class.colour).collect();
                write_indexed(&path, photo.dimensions(), &map.map, &palette)?;
            } else if let Found::Instance(instances) = self.result.found() {
                let numbers = instance_numbers(instances, self.result.size());
                write_numbers(&path, photo.dimensions(), &numbers)?;
            }
        }
        if let Some(path) = wants(Format::Json) {
            atomic_write(&path, |out| Ok(serde_json::to_writer(out, &report)?))?;
        }
        if let (Some(list), Found::Instance(instances)) = (&mut self.list, self.result.found()) {
            let image_id = &list.image_ids[&item.id];
            list.results.extend(coco_results(instances, image_id, &list.category_of));
        }
        Ok(self.result.found().count())
    }

    /// What results of the task consist of.
    fn noun(&self) -> &'static str {
        match self.result.task() {
            Task::Panoptic => "segments",
            Task::Semantic => "classes",
            Task::Instance => "instances",
        }
    }

    /// Says what the parts of the last photo's time were.
    fn detail(&self) {
        let times = self.engine.timings();
        let [pre, network, post] =
            [times.pre, times.network, times.post].map(|part| part.as_secs_f64() * 1e3);
        let (height, width) = self.result.size();
        detail(format_args!(
            "  {height}x{width}: resize {pre:.1} ms, network {network:.1} ms, masks {post:.1} ms, {} stages",
            self.result.stages()
        ));
    }

    /// The result as JSON, and the map of a panoptic result.
    fn report(&self, image: ImageRef, png_name: &str) -> Result<(Value, Option<RgbImage>)> {
        let encode = |value: serde_json::Result<Value>| {
            value.map_err(|e| Error::usage(format!("{}: cannot be written as JSON: {e}", image.file_name)))
        };
        match self.result.found() {
            Found::Panoptic(map) => {
                let (annotation, map) = coco_panoptic(map, image, png_name, &self.classes)?;
                Ok((encode(serde_json::to_value(annotation))?, Some(map)))
            }
            Found::Semantic(map) => {
                let classes = encode(serde_json::to_value(class_areas(map, &self.classes)?))?;
                let report = json!({
                    "model": self.engine.config().name,
                    "image": {
                        "id": image.id, "file_name": image.file_name, "height": map.height, "width": map.width,
                    },
                    "file_name": png_name,
                    "classes": classes,
                });
                Ok((report, None))
            }
            Found::Instance(instances) => {
                let instances = coco_instances(instances, image, &self.classes, 0.0)?;
                let (height, width) = self.result.size();
                let model = &self.engine.config().name;
                let instances = encode(serde_json::to_value(instances))?;
                let report = json!({
                    "model": model,
                    "image": {"id": image.id, "file_name": image.file_name, "height": height, "width": width},
                    "annotations": instances,
                });
                Ok((report, None))
            }
        }
    }
}
