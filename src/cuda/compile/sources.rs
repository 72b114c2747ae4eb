//! The CUDA C++ sources, part of the library.

use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

macro_rules! sources {
    ($($path:literal),* $(,)?) => {
        /// Every file under `kernels/`, by its path there.
        pub const SOURCES: &[(&str, &str)] = &[$(($path, include_str!(concat!("../../../kernels/", $path)))),*];
    };
}

sources! {
    "activation.cu",
    "activation_grad.cu",
    "adaptive_avg_pool2d.cu",
    "adaptive_avg_pool2d_grad.cu",
    "attention.cu",
    "attention/grad.cu",
    "attention/rows.cuh",
    "attention/window.cu",
    "attention/window.cuh",
    "attention/window_any.cu",
    "attention/window_grad.cu",
    "attention/window_grad_any.cu",
    "attention/window_rows.cuh",
    "attention/window_tiles.cuh",
    "batch_norm/batch_norm.cu",
    "batch_norm/fold.cu",
    "binary.cu",
    "boxes/box.cuh",
    "boxes/decode.cu",
    "boxes/paste.cu",
    "boxes/roi_align.cu",
    "boxes/suppress.cu",
    "cast.cu",
    "class_conv.cu",
    "common/activation.cuh",
    "common/async_copy.cuh",
    "common/bitonic.cuh",
    "common/blend.cuh",
    "common/block_total.cuh",
    "common/column_moments.cuh",
    "common/column_sums.cuh",
    "common/divisor.cuh",
    "common/elements.cuh",
    "common/epilogue.cuh",
    "common/exact_sigmoid.cuh",
    "common/fast_math.cuh",
    "common/half_chunk.cuh",
    "common/items.cuh",
    "common/logistic.cuh",
    "common/mask_band.cuh",
    "common/mask_sampler.cuh",
    "common/mma.cuh",
    "common/moments.cuh",
    "common/reduce.cuh",
    "common/resize_taps.cuh",
    "common/storage.cuh",
    "common/swizzle.cuh",
    "common/vector.cuh",
    "common/warp_tile.cuh",
    "conv/corner.cuh",
    "conv/deformed.cuh",
    "conv/deformed_grad.cu",
    "conv/depthwise.cu",
    "conv/depthwise_filter_grad.cu",
    "conv/direct.cu",
    "conv/few_channels.cu",
    "conv/filter_grad.cu",
    "conv/filter_grad_any.cu",
    "conv/filter_grad_f32.cu",
    "conv/gather.cuh",
    "conv/gather_grad.cu",
    "conv/implicit_gemm.cu",
    "conv/split_k.cu",
    "conv/tail.cuh",
    "conv/window.cuh",
    "conv/writer.cuh",
    "copy_ranges.cu",
    "cross_entropy_loss.cu",
    "dropout.cu",
    "focal_loss.cu",
    "global_avg_pool.cu",
    "gradient_norm.cu",
    "group_moments.cu",
    "group_norm.cu",
    "group_norm_any.cu",
    "group_norm_grad.cu",
    "instance_rank.cu",
    "layer_norm.cu",
    "layer_norm_grad.cu",
    "mask/above_zero.cuh",
    "mask/conv.cu",
    "mask/cost.cu",
    "mask/cost_f32.cu",
    "mask/pool.cu",
    "mask/pool_f32.cu",
    "mask/pool_grad.cu",
    "mask/pool_grad_f32.cu",
    "mask/soft_pool.cu",
    "mask/tile.cuh",
    "mask/tile_f32.cuh",
    "mask_loss.cu",
    "matching_cost.cu",
    "max_pool2d.cu",
    "max_pool2d_grad.cu",
    "mean.cu",
    "norm_sum.cu",
    "optimizer.cu",
    "pack.cu",
    "pack_filters.cu",
    "pixel_unshuffle.cu",
    "postprocess_instance.cu",
    "postprocess_panoptic.cu",
    "postprocess_semantic.cu",
    "preprocess.cu",
    "reduce_sum.cu",
    "resize.cu",
    "resize_grad.cu",
    "rows/fused.cu",
    "rows/linear.cu",
    "rows/matmul.cu",
    "rows/standardise.cuh",
    "rows/tile.cuh",
    "softmax.cu",
    "softmax_grad.cu",
    "sum_parts.cu",
    "sum_rows.cu",
    "top_k.cu",
}

/// The text of a source.
pub fn text(path: &str) -> Option<&'static str> {
    SOURCES.iter().find(|(name, _)| *name == path).map(|(_, text)| *text)
}

/// The path of a source, if there is one of this name.
pub fn file(path: &str) -> Option<&'static str> {
    SOURCES.iter().find(|(name, _)| *name == path).map(|(name, _)| *name)
}

/// A word of a source or of its headers: what names a kernel or a macro there.
pub fn word(path: &str, name: &str) -> Option<&'static str> {
    let part = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if name.is_empty() || !name.chars().all(part) {
        return None;
    }
    let mut texts = text(path).into_iter().chain(headers(path).into_values());
    texts.find_map(|text| {
        let found = text.match_indices(name).find(|&(at, _)| {
            let (before, after) = (text[..at].chars().next_back(), text[at + name.len()..].chars().next());
            !before.is_some_and(part) && !after.is_some_and(part)
        });
        found.map(|(_, word)| word)
    })
}

/// The headers that a source includes, directly or not, by path: with the source, what its code depends on.
pub fn headers(path: &str) -> BTreeMap<&'static str, &'static str> {
    let mut found = BTreeMap::new();
    let mut open = vec![path.to_string()];
    while let Some(path) = open.pop() {
        for line in text(&path).unwrap_or_default().lines() {
            let Some(rest) = line.trim_start().strip_prefix("#include \"") else { continue };
            let name = rest.split('"').next().unwrap_or_default();
            if let Some(&(name, text)) = SOURCES.iter().find(|(known, _)| *known == name)
                && found.insert(name, text).is_none()
            {
                open.push(name.to_string());
            }
        }
    }
    found
}

/// A hash over all sources.
pub fn fingerprint() -> String {
    digest(SOURCES.iter().flat_map(|(path, text)| [path.as_bytes(), text.as_bytes()]))
}

/// SHA-256 over a list, in lower-case hexadecimal. Every part is preceded by its length, so that no two lists
/// read alike.
pub(super) fn digest<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn words_are_whole() {
        assert_eq!(word("preprocess.cu", "preprocess"), Some("preprocess"));
        assert_eq!(word("preprocess.cu", "STORAGE"), Some("STORAGE"));
        for name in ["preproces", "", "no such", "../x"] {
            assert_eq!(word("preprocess.cu", name), None, "{name}");
        }
    }

    #[test]
    fn every_file_under_kernels_is_listed_and_every_include_is_known() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels");
        let mut folders = vec![root.clone()];
        let mut files = Vec::new();
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else if path.extension().is_some_and(|ending| ending == "cu" || ending == "cuh") {
                    files.push(path.strip_prefix(&root).unwrap().to_str().unwrap().replace('\\', "/"));
                }
            }
        }
        files.sort();
        let listed: Vec<&str> = SOURCES.iter().map(|(path, _)| *path).collect();
        assert_eq!(files, listed);
        for (path, text) in SOURCES {
            for line in text.lines().filter(|line| line.trim_start().starts_with("#include")) {
                let name = line.split('"').nth(1).expect("an include of ours");
                assert!(super::text(name).is_some(), "{path} includes {name}");
                assert!(headers(path).contains_key(name));
            }
        }
    }
}
