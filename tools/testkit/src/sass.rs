//! Machine code: what `cuobjdump -sass` lists of a cubin.

use crate::root;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A tool that `tools/setup-cuda` installs.
pub fn tool(name: &str) -> PathBuf {
    let path = root().join("target/cuda/nvidia/cu13/bin").join(name);
    assert!(path.exists(), "{}: run tools/setup-cuda", path.display());
    path
}

/// The listing of a cubin.
pub fn listing(cubin: &Path) -> String {
    let output = Command::new(tool("cuobjdump"))
        .arg("-sass")
        .arg(cubin)
        .env("PATH", tool("nvdisasm").parent().unwrap())
        .output()
        .unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Instructions in the loops of matrix products of a kernel, and the products among them. As in the
/// emulator's report, the shortest stretch between a branch back and its target counts; what a branch may
/// skip counts too.
pub fn product_loops(listing: &str, entry: &str) -> (usize, usize) {
    let mut code: Vec<(u32, &str)> = Vec::new();
    let mut inside = false;
    for line in listing.lines() {
        if let Some((_, name)) = line.split_once("Function : ") {
            inside = name.trim() == entry;
        }
        // Such as `/*0a30*/  @!P0 BRA 0x1230 ;  /* 0x... */`; the second word of the encoding has a line of
        // its own.
        let parts = line.trim().strip_prefix("/*").and_then(|rest| rest.split_once("*/"));
        if let Some((address, text)) = parts
            && let Ok(address) = u32::from_str_radix(address, 16)
            && inside
            && let Some((text, _)) = text.split_once(';')
        {
            code.push((address, text.trim()));
        }
    }
    let position = |address: u32| code.binary_search_by_key(&address, |&(at, _)| at).ok();
    let edges: Vec<(usize, usize)> = code
        .iter()
        .enumerate()
        .filter(|(_, (_, text))| text.split(' ').any(|word| word == "BRA" || word.starts_with("BRA.")))
        .filter_map(|(at, (_, text))| {
            let target = text.split("0x").nth(1)?;
            let target = position(u32::from_str_radix(target.trim(), 16).ok()?)?;
            (target < at).then_some((target, at))
        })
        .collect();
    let is_product = |text: &str| text.contains("HMMA");
    let mut counted = vec![false; code.len()];
    for (at, _) in code.iter().enumerate().filter(|(_, (_, text))| is_product(text)) {
        let around = edges.iter().filter(|(from, to)| (from..=to).contains(&&at));
        if let Some(&(from, to)) = around.min_by_key(|(from, to)| to - from) {
            counted[from..=to].fill(true);
        }
    }
    let all = || code.iter().zip(&counted).filter(|(_, counted)| **counted);
    (all().count(), all().filter(|((_, text), _)| is_product(text)).count())
}
