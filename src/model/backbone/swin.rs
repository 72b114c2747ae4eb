//! Swin Transformer (Liu et al., ICCV 2021): attention within windows that are shifted in every other block.
//!
//! Parameters are named as in mmdet and mmseg: `backbone.patch_embed.projection`,
//! `backbone.stages.0.blocks.0.attn.w_msa.qkv`, `backbone.stages.0.downsample.reduction` and so on.

use super::Part;
use crate::error::Result;
use crate::graph::{Builder, Layout, ValueId};
use crate::model::evidence::Evidence;
use crate::model::layers::{activation, dropout, layer_norm, linear_map, linear_map_no_bias};
use crate::ops::activation::Activation;
use crate::ops::binary::BinaryKind;
use crate::ops::dropout::DropKind;
use crate::ops::epilogue::Epilogue;
use crate::ops::{Binary, Conv2d, PixelUnshuffle, WindowAttention};
use serde::{Deserialize, Serialize};

/// Side of a patch, and the stride of the first level.
const PATCH: usize = 4;

/// Hidden channels of a block's feed-forward network per channel.
const EXPANSION: usize = 4;

/// Largest window that is taken: its pairs of pixels number the fourth power.
const MOST_WINDOW: usize = 32;

/// What tells the sizes of the paper apart: letter, channels, depths and heads.
const SIZES: [(&str, usize, [usize; 4], [usize; 4]); 4] = [
    ("t", 96, [2, 2, 6, 2], [3, 6, 12, 24]),
    ("s", 96, [2, 2, 18, 2], [3, 6, 12, 24]),
    ("b", 128, [2, 2, 18, 2], [4, 8, 16, 32]),
    ("l", 192, [2, 2, 18, 2], [6, 12, 24, 48]),
];

/// A Swin Transformer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Swin {
    /// Channels of the first level; each further one has twice as many as the one before.
    pub channels: usize,
    /// Blocks of each stage.
    pub depths: [usize; 4],
    /// Attention heads of each stage's blocks.
    pub heads: [usize; 4],
    /// Side of a window, in pixels of the stage's map.
    #[serde(default = "default_window", skip_serializing_if = "is_default_window")]
    pub window: usize,
}

fn default_window() -> usize {
    7
}
fn is_default_window(window: &usize) -> bool {
    *window == default_window()
}

impl Swin {
    /// The one of this letter, `t`, `s`, `b` or `l`, with windows of 7 pixels.
    pub fn of_size(letter: &str) -> Option<Swin> {
        let &(_, channels, depths, heads) = SIZES.iter().find(|(size, ..)| *size == letter)?;
        Some(Swin { channels, depths, heads, window: default_window() })
    }

    /// Its letter; one of other numbers has none.
    fn letter(&self) -> Option<&'static str> {
        let alike = |(_, channels, depths, heads): &&(&str, usize, [usize; 4], [usize; 4])| {
            (*channels, *depths, *heads) == (self.channels, self.depths, self.heads)
        };
        SIZES.iter().find(alike).map(|(letter, ..)| *letter)
    }

    /// A block: attention, then a feed-forward network, each over a norm and added to what comes in.
    fn block(&self, b: &mut Builder, prefix: &str, x: ValueId, block: Block) -> Result<ValueId> {
        let name = |part: &str| format!("{prefix}.{part}");
        let channels = b.shape(x).last();
        let add = Binary { kind: BinaryKind::Add };
        let y = layer_norm(b, &name("norm1"), x)?;
        let attention = name("attn.w_msa");
        let qkv = linear_map(b, &format!("{attention}.qkv"), y, 3 * channels)?;
        let bias = b.param(&format!("{attention}.qkv.bias"), &[3 * channels], Layout::Plain)?;
        let shift = if block.shifted { self.window / 2 } else { 0 };
        let op = WindowAttention { heads: block.heads, window: self.window, shift };
        let table = format!("{attention}.relative_position_bias_table");
        let table = b.param(&table, &[op.offsets(), op.heads], Layout::Plain)?;
        let y = b.node(&attention, op, &[qkv, bias, table])?;
        let y = linear_map(b, &format!("{attention}.proj"), y, channels)?;
        let y = dropout(b, &attention, block.path, y)?;
        let x = b.node(&name("attn"), add, &[y, x])?;

        let y = layer_norm(b, &name("norm2"), x)?;
        let y = linear_map(b, &name("ffn.layers.0.0"), y, EXPANSION * channels)?;
        let y = activation(b, &name("ffn.layers.0.1"), Activation::Gelu, y)?;
        let y = linear_map(b, &name("ffn.layers.1"), y, channels)?;
        let y = dropout(b, &name("ffn"), block.path, y)?;
        b.node(&name("ffn"), add, &[y, x])
    }
}

/// What differs between the blocks of a Swin.
#[derive(Clone, Copy)]
struct Block {
    heads: usize,
    shifted: bool,
    /// How training drops its branches: from never in the first block linearly to most often in the last.
    path: DropKind,
}

impl Part for Swin {
    /// `backbone.stages.0.blocks.0`: a block, whose maps have 16 times the channels of its operand.
    const STRETCH: usize = 5;

    const CLASSIFIER: &'static [&'static str] = &["backbone.head."];

    fn name(&self) -> String {
        format!("swin_{}", self.letter().unwrap_or("custom"))
    }

    fn short_name(&self) -> String {
        let window =
            if is_default_window(&self.window) { String::new() } else { format!("_w{}", self.window) };
        format!("{}{window}", self.name())
    }

    fn named(short: &str) -> Option<Self> {
        let mut parts = short.strip_prefix("swin_")?.split("_w");
        let swin = Swin::of_size(parts.next()?)?;
        match parts.next() {
            None => Some(swin),
            Some(window) => Some(Swin { window: window.parse().ok()?, ..swin }),
        }
    }

    fn validate(&self) -> Result<(), String> {
        let Swin { channels, depths, heads, window } = *self;
        // The fourth level has eight times the channels of the first.
        if !(1..=1 << 13).contains(&channels) {
            return Err(format!("Swin channels {channels} must be 1 to 8192"));
        }
        if !(1..=MOST_WINDOW).contains(&window) {
            return Err(format!("Swin windows of {window} pixels must be of 1 to {MOST_WINDOW}"));
        }
        if !depths.iter().all(|depth| (1..=256).contains(depth)) {
            return Err(format!("Swin depths {depths:?} must be 1 to 256"));
        }
        let fits = |(level, heads): (usize, &usize)| *heads > 0 && (channels << level).is_multiple_of(*heads);
        if !heads.iter().enumerate().all(fits) {
            return Err(format!("Swin heads {heads:?} do not divide {channels} channels, doubled by level"));
        }
        Ok(())
    }

    fn strides(&self) -> [usize; 4] {
        [4, 8, 16, 32]
    }

    /// Each level is the stage's result over a norm of its own; what goes to the next stage is not.
    fn build(&self, b: &mut Builder, image: ValueId) -> Result<Vec<ValueId>> {
        let mut x = patch_embedding(b, image, self.channels)?;
        let mut levels = Vec::new();
        let last = self.depths.iter().sum::<usize>().max(2) - 1;
        for (stage, (&depth, &heads)) in self.depths.iter().zip(&self.heads).enumerate() {
            if stage > 0 {
                x = patch_merging(b, &format!("backbone.stages.{}.downsample", stage - 1), x)?;
            }
            let before: usize = self.depths[..stage].iter().sum();
            for index in 0..depth {
                let prefix = format!("backbone.stages.{stage}.blocks.{index}");
                let path = DropKind::Path { share: (before + index) as f32 / last as f32 };
                x = self.block(b, &prefix, x, Block { heads, shifted: index % 2 == 1, path })?;
            }
            levels.push(layer_norm(b, &format!("backbone.norm{stage}"), x)?);
        }
        Ok(levels)
    }

    fn recognise(found: &Evidence<'_>, _notes: &mut Vec<String>) -> Result<Option<Self>, String> {
        let Some(channels) = found.dim("backbone.patch_embed.projection.weight", 0) else { return Ok(None) };
        let table = |stage: usize, block: usize, axis: usize| {
            let prefix = format!("backbone.stages.{stage}.blocks.{block}.attn.w_msa");
            found.dim(&format!("{prefix}.relative_position_bias_table"), axis)
        };
        let depths = [0, 1, 2, 3].map(|stage| (0..).take_while(|&i| table(stage, i, 0).is_some()).count());
        let heads = [0, 1, 2, 3].map(|stage| table(stage, 0, 1).unwrap_or(0));
        let mut rows: Vec<usize> =
            (0..4).flat_map(|stage| (0..depths[stage]).filter_map(move |i| table(stage, i, 0))).collect();
        rows.sort_unstable();
        rows.dedup();
        let side = |rows: usize| (1..=MOST_WINDOW).find(|window| (2 * window - 1).pow(2) == rows);
        match rows.as_slice() {
            &[count] if let Some(window) = side(count) => Ok(Some(Swin { channels, depths, heads, window })),
            _ => Err(format!(
                "the tables of relative position biases have {rows:?} rows: a window of W pixels has (2W-1)^2, \
                 the same in all blocks"
            )),
        }
    }
}

/// A convolution over patches, zeros beyond the image, and a norm: `[B, ceil(H / 4), ceil(W / 4), channels]`.
fn patch_embedding(b: &mut Builder, image: ValueId, channels: usize) -> Result<ValueId> {
    let shape = b.shape(image);
    let prefix = "backbone.patch_embed.projection";
    let filter = [channels, shape.last(), PATCH, PATCH];
    let weight = b.param(&format!("{prefix}.weight"), &filter, Layout::Filter)?;
    let bias = b.param(&format!("{prefix}.bias"), &[channels], Layout::Plain)?;
    let padding_end = [shape[1], shape[2]].map(|side| side.next_multiple_of(PATCH) - side);
    let op = Conv2d { padding_end, epilogue: Epilogue::BIAS, ..Conv2d::with(PATCH, 0) };
    let x = b.node(prefix, op, &[image, weight, bias])?;
    layer_norm(b, "backbone.patch_embed.norm", x)
}

/// Half the size, twice the channels: the four pixels of a block side by side, a norm, a linear layer.
fn patch_merging(b: &mut Builder, prefix: &str, x: ValueId) -> Result<ValueId> {
    let channels = b.shape(x).last();
    let x = b.node(&format!("{prefix}.sampler"), PixelUnshuffle { factor: 2 }, &[x])?;
    let x = layer_norm(b, &format!("{prefix}.norm"), x)?;
    linear_map_no_bias(b, &format!("{prefix}.reduction"), x, 2 * channels)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Backbone;
    use crate::ops::ValueType;

    fn shapes(swin: Swin, size: [usize; 2]) -> Vec<[usize; 4]> {
        let mut b = Builder::new();
        let image = b.input("image", ValueType::map([1, size[0], size[1], 3]));
        let levels = swin.build(&mut b, image).unwrap();
        levels.iter().map(|&level| b.shape(level).dims().try_into().unwrap()).collect()
    }

    #[test]
    fn sizes_that_do_not_divide_are_rounded_up() {
        let swin = Swin::of_size("t").unwrap();
        let wanted = [[1, 23, 18, 96], [1, 12, 9, 192], [1, 6, 5, 384], [1, 3, 3, 768]];
        assert_eq!(shapes(swin, [90, 70]), wanted);
        assert_eq!(shapes(swin, [1, 1]), [[1, 1, 1, 96], [1, 1, 1, 192], [1, 1, 1, 384], [1, 1, 1, 768]]);
    }

    #[test]
    fn names_and_files_round_trip() {
        for short in ["swin_t", "swin_s", "swin_b", "swin_l", "swin_b_w12"] {
            let swin = Swin::named(short).unwrap();
            assert_eq!(swin.short_name(), short);
            swin.validate().unwrap();
            let backbone = Backbone::from(swin);
            assert_eq!(serde_json::from_str::<Backbone>(&backbone.to_json()).unwrap(), backbone);
        }
        let json = Backbone::from(Swin::of_size("t").unwrap()).to_json();
        assert_eq!(json, r#"{"type":"swin","channels":96,"depths":[2,2,6,2],"heads":[3,6,12,24]}"#);
        assert_eq!(Swin::named("swin_x"), None);
        assert_eq!(Swin::named("swin_t_wide"), None);
    }

    #[test]
    fn numbers_that_cannot_be_are_named() {
        let swin = Swin::of_size("t").unwrap();
        let fault = |swin: Swin| swin.validate().unwrap_err();
        assert!(fault(Swin { window: 0, ..swin }).contains("windows of 0"));
        assert!(fault(Swin { heads: [3, 6, 12, 25], ..swin }).contains("[3, 6, 12, 25]"));
        assert!(fault(Swin { depths: [2, 0, 6, 2], ..swin }).contains("[2, 0, 6, 2]"));
        assert!(fault(Swin { channels: 0, ..swin }).contains("channels 0"));
    }

    #[test]
    fn tables_of_two_windows_are_refused() {
        let recognised = |rows: [usize; 2]| {
            let tables = [[rows[0], 3], [rows[1], 3]];
            let shape = move |name: &str| -> Option<&[usize]> {
                let table = |rows: usize| if rows == 169 { &[169, 3][..] } else { &[529, 3][..] };
                match name {
                    "backbone.patch_embed.projection.weight" => Some(&[96, 3, 4, 4]),
                    name if name.ends_with("blocks.0.attn.w_msa.relative_position_bias_table") => {
                        Some(table(tables[0][0]))
                    }
                    name if name.ends_with("blocks.1.attn.w_msa.relative_position_bias_table") => {
                        Some(table(tables[1][0]))
                    }
                    _ => None,
                }
            };
            Swin::recognise(&Evidence::new(&shape, &|_| Vec::new()), &mut Vec::new())
        };
        let found = recognised([529, 529]).unwrap().unwrap();
        assert_eq!((found.window, found.depths), (12, [2; 4]));
        assert!(recognised([169, 529]).unwrap_err().contains("[169, 529] rows"));
    }
}
