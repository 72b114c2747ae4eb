//! Which photos are segmented, and where their results go: settled before anything is written.

use super::{Arguments, Format};
use crate::guard;
use crate::voice::note;
use knet::image::decode::{Decoded, Limits, decode_bytes_checked, decode_checked};
use knet::image::listing::{ENDINGS, Listing};
use knet::image::picture::is_own;
use knet::model::Task;
use knet::task::TASKS;
use knet::{Error, Result};
use std::collections::HashSet;
use std::io::Read;
use std::path::{Path, PathBuf};

/// What stands for standard input on the command line.
const STDIN: &str = "-";

/// One photo, and what its results are called.
pub struct Item {
    /// Its path, or [`STDIN`].
    pub photo: PathBuf,
    /// What it is called in results: its path below the folder that was named.
    pub name: String,
    /// Path of the results without their endings.
    base: PathBuf,
}

impl Item {
    /// Reads the photo.
    pub fn decode(&self) -> Result<Decoded> {
        let limits = Limits::default();
        if self.photo.as_os_str() != STDIN {
            return decode_checked(&self.photo, &limits);
        }
        let mut bytes = Vec::new();
        let read = std::io::stdin().lock().take(limits.max_file_bytes + 1).read_to_end(&mut bytes);
        read.map_err(|e| Error::io("standard input", e))?;
        if bytes.len() as u64 > limits.max_file_bytes {
            let reason = format!("more than the limit of {} bytes", limits.max_file_bytes);
            return Err(Error::image("standard input", reason));
        }
        decode_bytes_checked("standard input", &bytes, &limits)
    }

    /// The file of a result.
    pub fn target(&self, format: Format, task: Task) -> PathBuf {
        let mut path = self.base.clone().into_os_string();
        path.push(".");
        path.push(ending(format, task));
        path.into()
    }
}

/// What a result's name ends with, after that of the photo and a dot.
pub fn ending(format: Format, task: Task) -> &'static str {
    match (format, task) {
        (Format::Overlay, _) => "overlay.png",
        (Format::Json, _) => "json",
        (Format::Png, Task::Panoptic) => "panoptic.png",
        (Format::Png, Task::Instance) => "instances.png",
        (Format::Png, Task::Semantic) => "semantic.png",
        (Format::Colour, Task::Panoptic) => "panoptic.colour.png",
        (Format::Colour, Task::Instance) => "instances.colour.png",
        (Format::Colour, Task::Semantic) => "semantic.colour.png",
    }
}

/// All photos with their results in the order of the command line, folders by name. No two share a result.
pub fn items(arguments: &Arguments) -> Result<Vec<Item>> {
    let mut names = HashSet::new();
    let mut items = Vec::new();
    for (photo, below) in photos(arguments)? {
        let (stem, name) = if photo.as_os_str() == STDIN {
            ("stdin".into(), "stdin".into())
        } else {
            let [stem, name] = [photo.file_stem(), photo.file_name()].map(Option::unwrap_or_default);
            (stem.to_string_lossy().into_owned(), below.join(name).to_string_lossy().into_owned())
        };
        let base = arguments.out.join(unique(&mut names, &below, &stem));
        items.push(Item { photo, name, base });
    }
    Ok(items)
}

/// Refuses results that would replace a photo, or a file that `knet segment` did not write.
pub fn check(items: &[Item], formats: &[Format], task: Task, overwrite: bool) -> Result<()> {
    let inputs: Vec<PathBuf> = items.iter().map(|item| item.photo.clone()).collect();
    for item in items {
        for &format in formats {
            let own = |path: &Path| match format {
                Format::Json => {
                    guard::is_json_with(path, &["model", "image", "annotations"])
                        || guard::is_json_with(path, &["image_file_name", "segments_info"])
                        || guard::is_json_with(path, &["model", "image", "classes"])
                }
                Format::Overlay | Format::Png | Format::Colour => is_own(path),
            };
            let target = item.target(format, task);
            guard::check(&target, &inputs, own, overwrite)?;
        }
    }
    Ok(())
}

/// Files as named, folders by their pictures, and for each the folder below the named one that it lies in.
/// Results of earlier runs are no photos.
fn photos(arguments: &Arguments) -> Result<Vec<(PathBuf, PathBuf)>> {
    let mut photos = Vec::new();
    for input in &arguments.inputs {
        if !input.is_dir() {
            if input.as_os_str() == STDIN && photos.iter().any(|(photo, _)| photo == input) {
                return Err(Error::usage("- stands for standard input, which holds one photo: name it once"));
            }
            photos.push((input.clone(), PathBuf::new()));
            continue;
        }
        let mut listing = if arguments.recursive { Listing::below(input)? } else { Listing::of(input)? };
        let before = listing.pictures.len();
        listing.pictures.retain(|path| !is_result(path));
        let own = before - listing.pictures.len();
        let own = (own > 0).then(|| format!("{own} results of knet segment"));
        let passed_over: Vec<String> = listing.passed_over().into_iter().chain(own).collect();
        if !passed_over.is_empty() {
            note(format_args!("{}: passed over {}", input.display(), passed_over.join(", ")));
        }
        if listing.pictures.is_empty() {
            let (endings, what) = (ENDINGS.join(", "), "no photos in this folder");
            let deeper = if arguments.recursive { "" } else { "; --recursive looks below it too" };
            return Err(Error::usage(format!("{}: {what} ({endings}){deeper}", input.display())));
        }
        let below = |photo: &Path| {
            let folder = photo.parent().and_then(|folder| folder.strip_prefix(input).ok());
            folder.unwrap_or(Path::new("")).to_path_buf()
        };
        photos.extend(listing.pictures.into_iter().map(|photo| (photo.clone(), below(&photo))));
    }
    Ok(photos)
}

fn is_result(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let pictures = [Format::Overlay, Format::Png, Format::Colour];
    let mut endings =
        pictures.into_iter().flat_map(|format| TASKS.iter().map(move |&task| ending(format, task)));
    let named = endings.any(|ending| name.strip_suffix(ending).is_some_and(|stem| stem.ends_with('.')));
    named && is_own(path)
}

/// The stem in its folder, with a number if another photo of this run has the same.
fn unique(names: &mut HashSet<PathBuf>, below: &Path, stem: &str) -> PathBuf {
    let numbered = (2..).map(|n| format!("{stem}-{n}"));
    let candidates = std::iter::once(stem.to_string()).chain(numbered).map(|name| below.join(name));
    let free = candidates.into_iter().find(|name| !names.contains(name)).unwrap_or_default();
    names.insert(free.clone());
    free
}
