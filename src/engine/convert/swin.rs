//! Swin as its authors' repository names it, brought to the names and the order of mmdet and mmseg.
//!
//! Besides names the two differ in the merging of patches. The authors put the four pixels of a block one
//! after the other, (0, 0), (1, 0), (0, 1), (1, 1), all channels of one before the next; mmdet and mmseg put
//! the four values of a channel together, as an unfold does. The columns of the reduction and the norm's
//! weights follow.

use crate::checkpoint::pth::PthTensor;
use crate::tensor::Tensor;

/// The tensor that no other backbone has, by the authors' names.
const MARK: &str = "backbone.patch_embed.proj.weight";

/// Renames a backbone that has the authors' names; true if there was one.
pub(super) fn rename(tensors: &mut [PthTensor]) -> bool {
    if !tensors.iter().any(|tensor| tensor.name == MARK) {
        return false;
    }
    for tensor in tensors {
        if let Some(name) = tensor.name.strip_prefix("backbone.") {
            tensor.name = format!("backbone.{}", mmdet_name(name));
        }
    }
    true
}

/// A parameter's name in mmdet and mmseg, below the backbone's.
fn mmdet_name(name: &str) -> String {
    let Some(below) = name.strip_prefix("layers.") else {
        return name.replace("patch_embed.proj.", "patch_embed.projection.");
    };
    let parts =
        [(".attn.", ".attn.w_msa."), (".mlp.fc1.", ".ffn.layers.0.0."), (".mlp.fc2.", ".ffn.layers.1.")];
    let renamed = parts.iter().fold(below.to_string(), |name, (from, to)| name.replace(from, to));
    format!("stages.{renamed}")
}

/// Whether a parameter, by mmdet's name, is over the four pixels of a block.
pub(super) fn merges_patches(key: &str) -> bool {
    key.starts_with("backbone.stages.") && key.contains(".downsample.")
}

/// A parameter over the four pixels of a block, in its last axis, in mmdet's order: position `4 c + 2 i + j`
/// of a result takes position `(i + 2 j) C + c`.
pub(super) fn reorder(tensor: &Tensor) -> Tensor {
    let shape = tensor.shape();
    let width = shape.last();
    let channels = width / 4;
    let mut data = Vec::with_capacity(tensor.data().len());
    for row in tensor.data().chunks_exact(width.max(1)) {
        let source = |at: usize| (at % 4 / 2 + at % 2 * 2) * channels + at / 4;
        data.extend((0..width).map(|at| if width.is_multiple_of(4) { row[source(at)] } else { row[at] }));
    }
    Tensor::new(shape, data)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::Checkpoint;

    #[test]
    fn names_become_mmdets() {
        for (from, to) in [
            ("patch_embed.proj.bias", "patch_embed.projection.bias"),
            ("patch_embed.norm.weight", "patch_embed.norm.weight"),
            ("layers.2.blocks.11.attn.qkv.weight", "stages.2.blocks.11.attn.w_msa.qkv.weight"),
            (
                "layers.0.blocks.1.attn.relative_position_bias_table",
                "stages.0.blocks.1.attn.w_msa.relative_position_bias_table",
            ),
            ("layers.0.blocks.1.attn_mask", "stages.0.blocks.1.attn_mask"),
            ("layers.0.blocks.1.mlp.fc1.weight", "stages.0.blocks.1.ffn.layers.0.0.weight"),
            ("layers.0.blocks.1.mlp.fc2.bias", "stages.0.blocks.1.ffn.layers.1.bias"),
            ("layers.0.downsample.reduction.weight", "stages.0.downsample.reduction.weight"),
            ("norm3.weight", "norm3.weight"),
        ] {
            assert_eq!(mmdet_name(from), to);
        }
        assert!(merges_patches("backbone.stages.0.downsample.norm.bias"));
        assert!(!merges_patches("backbone.layer1.0.downsample.0.weight"));
    }

    /// The reference data hold the permutation, by which their values were checked against the authors' code.
    #[test]
    fn the_order_of_a_block_is_the_references() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/goldens/ops/patch_merging.safetensors");
        let file = Checkpoint::open(file).unwrap();
        for case in ["even", "odd", "one", "row"] {
            let bytes = file.bytes(&format!("{case}.perm_orig_to_mm")).unwrap();
            let size = bytes.len() / file.shape(&format!("{case}.perm_orig_to_mm")).unwrap()[0];
            let wanted: Vec<f32> = bytes.chunks_exact(size).map(|b| f32::from(b[0])).collect();
            let places = Tensor::from_fn([2, wanted.len()], |at| at[1] as f32);
            let found = reorder(&places);
            assert_eq!(found.data()[..wanted.len()], wanted, "{case}");
            assert_eq!(found.data()[wanted.len()..], wanted, "{case}");
        }
    }
}
