//! Source files as text, for rules that no compiler checks.

use crate::root;
use std::collections::BTreeMap;
use std::path::Path;

/// Texts of all files below a folder of the repository with one of these extensions, by their path in it.
///
/// # Panics
/// If one cannot be read, or there is none.
pub fn texts(folder: &str, extensions: &[&str]) -> BTreeMap<String, String> {
    fn walk(root: &Path, folder: &Path, extensions: &[&str], texts: &mut BTreeMap<String, String>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(root, &path, extensions, texts);
            } else if path.extension().is_some_and(|e| extensions.contains(&e.to_str().unwrap())) {
                let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_string();
                texts.insert(name, std::fs::read_to_string(&path).unwrap());
            }
        }
    }
    let folder = root().join(folder);
    let mut found = BTreeMap::new();
    walk(&folder, &folder, extensions, &mut found);
    assert!(!found.is_empty(), "no {extensions:?} in {}", folder.display());
    found
}
