//! The small data sets beside the repository, and hand-made ones in temporary folders.

use std::io::Write;
use std::path::{Path, PathBuf};

use image::{GrayImage, Luma, Rgb, RgbImage};

/// A folder of `$KNET_SHARED/data` (else `../shared/data`), or `None` and a line on standard error that says what
/// was not tested.
pub fn shared(test: &str, folder: &str) -> Option<PathBuf> {
    let shared = std::env::var_os("KNET_SHARED")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared"), PathBuf::from);
    let wanted = shared.join("data").join(folder);
    if wanted.exists() {
        return Some(wanted);
    }
    let line = format!("SKIPPED: {test}: {} is not there (set KNET_SHARED)\n", wanted.display());
    std::io::stderr().write_all(line.as_bytes()).expect("standard error is open");
    None
}

/// A photo of which every pixel says where it is: red grows with x, green with y.
pub fn ramp(width: u32, height: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| Rgb([(x * 4) as u8, (y * 4) as u8, 128]))
}

/// Writes a folder `images` with `names`, 48 wide and 32 high.
pub fn photos(root: &Path, names: &[&str]) {
    std::fs::create_dir_all(root.join("images")).unwrap();
    for name in names {
        ramp(48, 32).save(root.join("images").join(name)).unwrap();
    }
}

/// Writes an index or grey PNG.
pub fn grey(path: &Path, width: u32, height: u32, value: impl Fn(u32, u32) -> u8) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    GrayImage::from_fn(width, height, |x, y| Luma([value(x, y)])).save(path).unwrap();
}
