//! Which photos are segmented, and where their results go: settled before anything is written.

use super::{Arguments, Format};
use crate::guard;
use crate::voice::note;
use knet::fsio;
use knet::image::decode::{Decoded, Limits, decode_bytes_checked, decode_checked};
use knet::image::listing::{ENDINGS, Listing};
use knet::image::picture::is_own;
use knet::model::Task;
use knet::task::TASKS;
use knet::{Error, Result};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};

/// What stands for standard input on the command line.
const STDIN: &str = "-";

/// One photo, and what its results are called.
pub struct Item {
    /// Its number among all photos of the command, from 1, whatever shard is done.
    pub id: u64,
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

    /// Whether all of its results are there. Each was written whole or not at all.
    pub fn is_done(&self, formats: &[Format], task: Task) -> bool {
        formats.iter().all(|&format| self.target(format, task).is_file())
    }

    /// The file of a result.
    pub fn target(&self, format: Format, task: Task) -> PathBuf {
        let mut path = self.base.clone().into_os_string();
        path.push(".");
        path.push(ending(format, task));
        path.into()
    }
}

/// One of several parts of the photos, for as many processes that know nothing of each other.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shard {
    /// From 0.
    index: u64,
    count: u64,
}

impl Shard {
    /// Reads `I/N`, I from 1.
    pub fn parse(text: &str) -> std::result::Result<Shard, String> {
        let numbers = text.split_once('/').map(|(index, count)| (index.trim().parse(), count.trim().parse()));
        let Some((Ok(index), Ok(count))) = numbers else {
            return Err("write it as I/N, as in 2/8: the second of eight shards".into());
        };
        if !(1..=count).contains(&index) {
            return Err("shards count from 1/N to N/N".into());
        }
        Ok(Shard { index: index - 1, count })
    }

    /// Whether a photo belongs to it. The name alone decides: a photo stays in its shard when others are
    /// added, so that a shard that runs again does all that is left of it.
    fn holds(self, name: &str) -> bool {
        let digest = Sha256::digest(name.as_bytes());
        let start = digest.iter().take(8).fold(0, |number, &byte| number << 8 | u64::from(byte));
        start % self.count == self.index
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.index + 1, self.count)
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

/// The photos of the shard with their results, in the order of the command line, folders by name, and those
/// of all shards, none of which a result replaces. No two of all share a result.
pub fn items(arguments: &Arguments) -> Result<(Vec<Item>, guard::Inputs)> {
    let mut names = HashSet::new();
    let mut items = Vec::new();
    for ((photo, below), id) in photos(arguments)?.into_iter().zip(1..) {
        let (stem, name) = if photo.as_os_str() == STDIN {
            ("stdin".into(), "stdin".into())
        } else {
            let [stem, name] = [photo.file_stem(), photo.file_name()].map(Option::unwrap_or_default);
            (stem.to_string_lossy().into_owned(), below.join(name).to_string_lossy().into_owned())
        };
        let base = arguments.out.join(unique(&mut names, &below, &stem));
        items.push(Item { id, photo, name, base });
    }
    let all = items.iter().map(|item| item.photo.clone()).collect();
    items.retain(|item| arguments.shard.is_none_or(|shard| shard.holds(&item.name)));
    Ok((items, all))
}

/// Removes what this command, killed while it wrote results of `items`, has left beside them.
pub fn sweep(items: &[Item], formats: &[Format], task: Task) -> Result<()> {
    let mut folders: BTreeMap<PathBuf, HashSet<OsString>> = BTreeMap::new();
    for target in items.iter().flat_map(|item| formats.iter().map(|&format| item.target(format, task))) {
        if let (Some(folder), Some(name)) = (target.parent(), target.file_name()) {
            folders.entry(folder.to_path_buf()).or_default().insert(name.to_os_string());
        }
    }
    let there = folders.iter().filter(|(folder, _)| folder.is_dir());
    there
        .into_iter()
        .try_for_each(|(folder, names)| fsio::sweep(folder, |name| names.contains(OsStr::new(name))))
}

/// Refuses results that would replace a photo, or a file that `knet segment` did not write.
pub fn check(
    items: &[Item],
    inputs: &guard::Inputs,
    formats: &[Format],
    task: Task,
    overwrite: bool,
) -> Result<()> {
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
            guard::check(&target, inputs, own, overwrite)?;
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
