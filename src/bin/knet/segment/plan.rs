//! Which photos are segmented, and where their results go: settled before anything is written.

use super::{Arguments, Format};
use crate::guard;
use knet::error::say;
use knet::image::listing::{ENDINGS, Listing};
use knet::image::picture::is_own;
use knet::{Error, Result};
use std::collections::HashSet;
use std::path::{Path, PathBuf};

/// One photo, and what its results are called.
pub struct Item {
    pub photo: PathBuf,
    /// Path of the results without their endings.
    base: PathBuf,
}

impl Item {
    /// The file of a result.
    pub fn target(&self, format: Format, panoptic: bool) -> PathBuf {
        let ending = match format {
            Format::Overlay => "overlay.png",
            Format::Json => "json",
            Format::Png if panoptic => "panoptic.png",
            Format::Png => "instances.png",
        };
        let mut path = self.base.clone().into_os_string();
        path.push(".");
        path.push(ending);
        path.into()
    }
}

/// Endings of the pictures that [`Item::target`] names.
const OWN_ENDINGS: [&str; 3] = [".overlay.png", ".panoptic.png", ".instances.png"];

/// All photos with their results in the order of the command line, folders by name. No two share a result.
pub fn items(arguments: &Arguments) -> Result<Vec<Item>> {
    let mut names = HashSet::new();
    let photos = photos(&arguments.inputs)?;
    let item = |photo: PathBuf| Item { base: arguments.out.join(unique(&mut names, &photo)), photo };
    Ok(photos.into_iter().map(item).collect())
}

/// Refuses results that would replace a photo, or a file that `knet segment` did not write.
pub fn check(items: &[Item], formats: &[Format], panoptic: bool, overwrite: bool) -> Result<()> {
    let inputs: Vec<PathBuf> = items.iter().map(|item| item.photo.clone()).collect();
    for item in items {
        for &format in formats {
            let own = |path: &Path| match format {
                Format::Json => {
                    guard::is_json_with(path, &["model", "image", "annotations"])
                        || guard::is_json_with(path, &["image_file_name", "segments_info"])
                }
                Format::Overlay | Format::Png => is_own(path),
            };
            let target = item.target(format, panoptic);
            guard::check(&target, &inputs, own, overwrite)?;
        }
    }
    Ok(())
}

/// Files as named, folders by their pictures. Results of earlier runs are no photos.
fn photos(inputs: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut photos = Vec::new();
    for input in inputs {
        if !input.is_dir() {
            photos.push(input.clone());
            continue;
        }
        let mut listing = Listing::of(input)?;
        let before = listing.pictures.len();
        listing.pictures.retain(|path| !is_result(path));
        let own = before - listing.pictures.len();
        let own = (own > 0).then(|| format!("{own} results of knet segment"));
        let passed_over: Vec<String> = listing.passed_over().into_iter().chain(own).collect();
        if !passed_over.is_empty() {
            say(format_args!("note: {}: passed over {}", input.display(), passed_over.join(", ")));
        }
        if listing.pictures.is_empty() {
            let endings = ENDINGS.join(", ");
            return Err(Error::usage(format!("{}: no photos in this folder ({endings})", input.display())));
        }
        photos.extend(listing.pictures);
    }
    Ok(photos)
}

fn is_result(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    OWN_ENDINGS.iter().any(|ending| name.ends_with(ending)) && is_own(path)
}

/// The photo's stem, with a number if another photo of this run has the same.
fn unique(names: &mut HashSet<String>, photo: &Path) -> String {
    let stem = photo.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let candidates = std::iter::once(stem.clone()).chain((2..).map(|n| format!("{stem}-{n}")));
    let free = candidates.into_iter().find(|name| !names.contains(name)).unwrap_or(stem);
    names.insert(free.clone());
    free
}
