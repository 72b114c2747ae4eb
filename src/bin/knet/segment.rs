//! `knet segment`

use crate::{ModelArguments, parse_score, parse_sides, print};
use clap::{Args, ValueEnum};
use image::{ImageFormat, RgbImage};
use indicatif::{ProgressBar, ProgressStyle};
use knet::engine::{Segmentation, WeightSource};
use knet::fsio::atomic_write;
use knet::image::classes::Class;
use knet::image::decode::{Limits, decode};
use knet::image::output::{ImageRef, coco_instances, coco_panoptic};
use knet::image::overlay::{draw, instance_layers, panoptic_layers};
use knet::model::Task;
use knet::{Engine, Error, Result};
use serde_json::{Value, json};
use std::collections::HashSet;
use std::io::{Cursor, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Endings of the files that are taken from a folder.
const ENDINGS: [&str; 7] = ["jpg", "jpeg", "png", "bmp", "webp", "tif", "tiff"];

/// Find objects (and regions) in photos
///
/// For each photo up to three files are written: NAME.overlay.png (the photo with coloured masks and labels),
/// NAME.json (COCO results: instances with RLE masks, or panoptic segments) and NAME.panoptic.png (COCO
/// panoptic colours, panoptic results only). A photo that cannot be read is reported at the end; the others
/// are done all the same.
#[derive(Args)]
pub struct Arguments {
    /// Photos, or folders of photos (not searched deeper)
    #[arg(required = true, value_name = "IMAGE|DIR")]
    inputs: Vec<PathBuf>,

    #[command(flatten)]
    model: ModelArguments,

    /// Kind of result
    #[arg(long, value_enum, default_value = "auto")]
    task: TaskArgument,

    /// Photos are resized to fit into these sides, in pixels [default: the model's own, 800,1333 for COCO]
    #[arg(long, value_name = "SHORT,LONG", value_parser = parse_sides)]
    size: Option<(usize, usize)>,

    /// Leave out instances, and things of a panoptic map, that score lower
    #[arg(long, value_name = "SCORE", default_value_t = 0.3, value_parser = parse_score)]
    score: f64,

    /// Folder to write to; made if it is not there
    #[arg(long, value_name = "DIR", default_value = "knet-out")]
    out: PathBuf,

    /// What to write; `png` is the panoptic map
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["overlay", "json", "png"])]
    format: Vec<Format>,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum TaskArgument {
    /// What the model was made for
    Auto,
    /// Objects with their own masks, which may overlap
    Instance,
    /// Every pixel to one object or region
    Panoptic,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Format {
    Overlay,
    Json,
    Png,
}

pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let photos = collect(&arguments.inputs)?;
    let mut builder = arguments.model.engine().min_score(arguments.score);
    if let Some(size) = arguments.size {
        builder = builder.size(Some(size));
    }
    builder = match arguments.task {
        TaskArgument::Auto => builder,
        TaskArgument::Instance => builder.task(Task::Instance),
        TaskArgument::Panoptic => builder.task(Task::Panoptic),
    };
    let engine = arguments.model.build(builder)?;
    if let source @ WeightSource::Seeded(_) = arguments.model.source() {
        eprintln!("note: {source} are random weights: the masks show that the engine runs, not what it sees");
    }
    std::fs::create_dir_all(&arguments.out).map_err(|e| Error::io(&arguments.out, e))?;
    let mut job = Job {
        classes: engine.classes(),
        engine,
        arguments,
        result: Segmentation::default(),
        names: HashSet::new(),
    };
    let progress = progress_bar(photos.len());
    let mut failures = Vec::new();
    for (index, photo) in photos.iter().enumerate() {
        progress.set_message(photo.file_name().unwrap_or_default().to_string_lossy().into_owned());
        match job.segment(index as u64 + 1, photo) {
            Ok(line) => progress.suspend(|| print(&format!("{line}\n")))?,
            Err(error) => failures.push(error),
        }
        progress.inc(1);
    }
    progress.finish_and_clear();
    let Some(first) = failures.first() else { return Ok(ExitCode::SUCCESS) };
    for failure in &failures {
        eprintln!("error: {failure}");
    }
    if photos.len() == 1 {
        return Ok(ExitCode::from(first.kind().exit_code()));
    }
    eprintln!("{} of {} images failed", failures.len(), photos.len());
    Ok(ExitCode::from(1))
}

fn progress_bar(images: usize) -> ProgressBar {
    if images < 2 {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len}  {per_sec}  {eta} left  {wide_msg}");
    ProgressBar::new(images as u64).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

/// All photos: files as named, folders by their files of known endings, in order of name.
fn collect(inputs: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut photos = Vec::new();
    for input in inputs {
        if !input.is_dir() {
            photos.push(input.clone());
            continue;
        }
        let mut found = Vec::new();
        for entry in std::fs::read_dir(input).map_err(|e| Error::io(input, e))? {
            let path = entry.map_err(|e| Error::io(input, e))?.path();
            let ending = path.extension().map(|e| e.to_string_lossy().to_lowercase());
            if ending.is_some_and(|e| ENDINGS.contains(&e.as_str())) && path.is_file() {
                found.push(path);
            }
        }
        if found.is_empty() {
            let endings = ENDINGS.join(", ");
            return Err(Error::usage(format!("{}: no photos in this folder ({endings})", input.display())));
        }
        found.sort();
        photos.extend(found);
    }
    Ok(photos)
}

struct Job<'a> {
    engine: Engine,
    classes: Vec<Class>,
    arguments: &'a Arguments,
    result: Segmentation,
    names: HashSet<String>,
}

impl Job<'_> {
    /// Segments one photo, writes its files and gives a line for people.
    fn segment(&mut self, id: u64, path: &Path) -> Result<String> {
        let photo = decode(path, &Limits::default())?;
        self.engine.segment_into(&photo, &mut self.result)?;
        let name = self.unique_name(path);
        let file_name = path.file_name().unwrap_or_default().to_string_lossy();
        let image = ImageRef { id, file_name: &file_name };
        let wants = |format| self.arguments.format.contains(&format);
        let png_name = format!("{name}.panoptic.png");
        let (report, map) = self.report(image, &png_name)?;
        if wants(Format::Overlay) {
            let layers = match self.result.panoptic() {
                Some(panoptic) => panoptic_layers(panoptic, &self.classes),
                None => instance_layers(self.result.instance_result(), &self.classes, 0.0),
            };
            self.write_png(&format!("{name}.overlay.png"), &draw(&photo, &layers)?)?;
        }
        if let Some(map) = map.filter(|_| wants(Format::Png)) {
            self.write_png(&png_name, &map)?;
        }
        if wants(Format::Json) {
            let path = self.arguments.out.join(format!("{name}.json"));
            atomic_write(&path, |out| Ok(serde_json::to_writer(out, &report)?))?;
        }
        let found = match self.result.panoptic() {
            Some(panoptic) => format!("{} segments", panoptic.segments.len()),
            None => format!("{} instances", self.result.instances().len()),
        };
        let time = self.engine.timings().total();
        Ok(format!("{}: {found} in {:.0} ms", path.display(), time.as_secs_f64() * 1e3))
    }

    /// The result as JSON, and the map of a panoptic result.
    fn report(&self, image: ImageRef, png_name: &str) -> Result<(Value, Option<RgbImage>)> {
        let encode = |value: serde_json::Result<Value>| {
            value.map_err(|e| Error::usage(format!("{}: cannot be written as JSON: {e}", image.file_name)))
        };
        match self.result.panoptic() {
            Some(panoptic) => {
                let (annotation, map) = coco_panoptic(panoptic, image, png_name, &self.classes)?;
                Ok((encode(serde_json::to_value(annotation))?, Some(map)))
            }
            None => {
                let instances = coco_instances(self.result.instance_result(), image, &self.classes, 0.0)?;
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

    /// The photo's stem, with a number if another photo of this run has the same.
    fn unique_name(&mut self, path: &Path) -> String {
        let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let candidates = std::iter::once(stem.clone()).chain((2..).map(|n| format!("{stem}-{n}")));
        let free = candidates.into_iter().find(|name| !self.names.contains(name)).unwrap_or(stem);
        self.names.insert(free.clone());
        free
    }

    fn write_png(&self, name: &str, picture: &RgbImage) -> Result<()> {
        let path = self.arguments.out.join(name);
        let mut bytes = Cursor::new(Vec::new());
        picture
            .write_to(&mut bytes, ImageFormat::Png)
            .map_err(|e| Error::image(&path, format!("cannot be encoded: {e}")))?;
        atomic_write(&path, |out| out.write_all(bytes.get_ref()))
    }
}
