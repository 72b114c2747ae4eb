//! Deterministic weights computed from tensor names (`WEIGHTS.md` and `WEIGHTS_SEG.md` of the references).
//!
//! A tensor's name and a seed start a SplitMix64 stream; element `i` (row-major, upstream's shape) takes draw
//! `i`, whose state `s + (i + 1) * GOLDEN` needs no earlier draw, so that elements are filled in parallel.
//! The upper 24 bits of a draw give `t` in [-1, 1), exact in f32, and the first rule that matches the name
//! and the number of dimensions turns `t` into a value: `c + h * t` for a constant pair, or `h * t` with
//! `h = g * sqrt(3 / fan_in)`. One rounding per operation, never a fused multiply-add, hence the same bits as
//! the NumPy original.

use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::tensor::{MAX_RANK, Tensor};

/// How a rule makes values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Recipe {
    /// Integer index buffer that the model computes itself: there is nothing to generate.
    Keep,
    /// All zeros (counters).
    Zero,
    /// `c + h * t`: uniform in `[c - h, c + h)`.
    Uniform {
        /// Centre.
        c: f32,
        /// Half width.
        h: f32,
    },
    /// `g * sqrt(3 / fan_in) * t`, where `fan_in` is the product of all dimensions but the first: variance
    /// `g^2 / fan_in`.
    Fan {
        /// Gain.
        g: f32,
    },
}

/// Ranks a rule applies to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rank {
    Any,
    One,
    TwoUp,
}

/// One line of the rule table.
#[derive(Debug)]
pub struct Rule {
    /// Identifier in the reference documents (`R28`, `S01`).
    pub id: &'static str,
    /// How values are made.
    pub recipe: Recipe,
    rank: Rank,
    /// Patterns for whole names: `#` is one or more digits, `@` one digit, `*` anything.
    patterns: &'static [&'static str],
}

const fn rule(id: &'static str, rank: Rank, recipe: Recipe, patterns: &'static [&'static str]) -> Rule {
    Rule { id, recipe, rank, patterns }
}

/// A rule for tensors of one dimension with values `c + h * t`.
const fn uni(id: &'static str, c: f32, h: f32, patterns: &'static [&'static str]) -> Rule {
    rule(id, Rank::One, Recipe::Uniform { c, h }, patterns)
}

/// A rule for filters and matrices.
const fn fan(id: &'static str, g: f32, patterns: &'static [&'static str]) -> Rule {
    rule(id, Rank::TwoUp, Recipe::Fan { g }, patterns)
}

/// First match wins. The S rules name heads that only semantic models have, the V rules those of SOLOv2 and
/// CondInst, for which there are no references but our own (`tools/peer/weights.py` has the same): with the
/// rules for anything, the kernels of all places are alike.
static RULES: &[Rule] = &[
    fan("S01", 1.0, &["decode_head.kernel_update_head.#.feat_transform.conv.weight"]),
    fan("S02", 0.25, &["decode_head.kernel_update_head.#.attention.attn.out_proj.weight"]),
    fan("S03", 2.2, &["decode_head.kernel_update_head.#.attention.attn.in_proj_weight"]),
    uni("S04", 0.4, 0.2, &["decode_head.kernel_update_head.#.kernel_update_conv.norm_out.weight"]),
    uni("S05", 2.0, 0.5, &["decode_head.kernel_update_head.#.kernel_update_conv.input_norm_out.weight"]),
    uni("S06", -1.2, 0.1, &["decode_head.kernel_update_head.#.kernel_update_conv.fc_norm.bias"]),
    uni("S07", -1.6, 0.1, &["decode_head.kernel_update_head.#.mask_fcs.#.bias"]),
    uni("S08", -1.6, 0.1, &["decode_head.kernel_update_head.#.ffn.layers.0.0.bias"]),
    fan("S09", 0.3, &["decode_head.kernel_update_head.#.fc_mask.weight"]),
    uni("S10", 0.0, 0.02, &["decode_head.kernel_update_head.#.fc_mask.bias"]),
    fan(
        "S11",
        1.4,
        &[
            "decode_head.conv_seg.weight",
            "decode_head.*.conv_seg.weight",
            "auxiliary_head.conv_seg.weight",
            "auxiliary_head.*.conv_seg.weight",
        ],
    ),
    fan("S12", 2.0, &["decode_head.*fpn_bottleneck.conv.weight"]),
    fan("S13", 0.6, &["decode_head.*lateral_convs.#.conv.weight", "decode_head.*fpn_convs.#.conv.weight"]),
    fan(
        "S14",
        0.8,
        &["decode_head.bottleneck.conv.weight", "decode_head.kernel_generate_head.bottleneck.conv.weight"],
    ),
    fan("S15", 0.4, &["decode_head.*conv.weight", "auxiliary_head.*conv.weight"]),
    uni("V01", -1.0, 0.1, &["mask_head.cls_convs.#.gn.bias", "mask_head.kernel_convs.#.gn.bias"]),
    fan("V02", 5.0, &["mask_head.conv_cls.weight"]),
    uni("V03", -10.0, 0.5, &["mask_head.conv_cls.bias"]),
    fan("V04", 3.0, &["mask_head.conv_kernel.weight"]),
    uni("V05", -0.5, 0.1, &["mask_head.mask_feature_head.conv_pred.gn.bias"]),
    uni("V06", -1.0, 0.1, &["bbox_head.cls_convs.#.gn.bias", "bbox_head.reg_convs.#.gn.bias"]),
    fan("V07", 3.0, &["bbox_head.conv_cls.weight"]),
    uni("V08", -4.0, 0.5, &["bbox_head.conv_cls.bias"]),
    uni("V09", 2.0, 0.5, &["bbox_head.conv_reg.bias"]),
    rule("V10", Rank::Any, Recipe::Uniform { c: 1.0, h: 0.5 }, &["bbox_head.scales.#.scale"]),
    fan("V11", 4.0, &["bbox_head.controller.weight"]),
    uni("V12", -0.5, 0.5, &["bbox_head.controller.bias"]),
    fan("V13", 0.5, &["mask_head.mask_feature_head.conv_pred.weight"]),
    rule("R00", Rank::Any, Recipe::Keep, &["*relative_position_index"]),
    rule("R01", Rank::Any, Recipe::Zero, &["*num_batches_tracked"]),
    rule("R02", Rank::Any, Recipe::Uniform { c: 0.0, h: 0.1 }, &["*running_mean"]),
    rule("R03", Rank::Any, Recipe::Uniform { c: 1.0, h: 0.5 }, &["*running_var"]),
    rule("R04", Rank::Any, Recipe::Uniform { c: 0.0, h: 0.5 }, &["*relative_position_bias_table"]),
    uni("R05", 0.3, 0.2, &["backbone.layer@.#.bn3.weight"]),
    fan("R06", 0.2, &["*.conv_offset.weight"]),
    fan("R07", 0.6, &["neck.*.weight"]),
    uni("R08", 0.08, 0.04, &["rpn_head.loc_convs.#.gn.weight", "rpn_head.seg_convs.#.gn.weight"]),
    uni("R09", -0.06, 0.02, &["rpn_head.loc_convs.#.gn.bias", "rpn_head.seg_convs.#.gn.bias"]),
    uni("R10", -0.4, 0.2, &["rpn_head.localization_fpn.*.gn.bias"]),
    rule(
        "R11",
        Rank::TwoUp,
        Recipe::Uniform { c: 0.0, h: 10.0 },
        &["rpn_head.init_kernels.weight", "rpn_head.conv_seg.weight"],
    ),
    uni("R31", -4.0, 0.5, &["rpn_head.conv_seg.bias"]),
    uni("R12", 0.03, 0.02, &["roi_head.mask_head.#.feat_transform.conv.bias"]),
    uni("R13", -0.9, 0.1, &["roi_head.mask_head.#.fc_mask.bias"]),
    fan("R14", 30.0, &["roi_head.mask_head.#.fc_mask.weight"]),
    uni("R15", -10.0, 0.5, &["roi_head.mask_head.#.fc_cls.bias"]),
    fan("R16", 17.0, &["roi_head.mask_head.#.fc_cls.weight"]),
    fan("R17", 0.25, &["roi_head.mask_head.#.attention.attn.out_proj.weight"]),
    fan("R18", 2.2, &["roi_head.mask_head.#.attention.attn.in_proj_weight"]),
    uni("R19", 0.4, 0.2, &["roi_head.mask_head.#.kernel_update_conv.norm_out.weight"]),
    uni("R20", 2.0, 0.5, &["roi_head.mask_head.#.kernel_update_conv.input_norm_out.weight"]),
    uni("R21", -1.2, 0.1, &["roi_head.mask_head.#.kernel_update_conv.fc_norm.bias"]),
    uni("R22", -1.6, 0.1, &["roi_head.mask_head.#.cls_fcs.#.bias", "roi_head.mask_head.#.mask_fcs.#.bias"]),
    uni("R23", -1.6, 0.1, &["roi_head.mask_head.#.ffn.layers.0.0.bias"]),
    fan("R24", 0.5, &["rpn_head.rpn_cls.weight"]),
    fan("R25", 0.1, &["rpn_head.rpn_reg.weight"]),
    fan("R26", 1.0, &["roi_head.bbox_head.fc_cls.weight", "roi_head.bbox_head.#.fc_cls.weight"]),
    fan("R27", 0.4, &["roi_head.bbox_head.fc_reg.weight", "roi_head.bbox_head.#.fc_reg.weight"]),
    fan("R28", 1.4, &["*"]),
    uni("R29", 0.0, 0.1, &["*bias"]),
    uni("R30", 1.0, 0.5, &["*weight"]),
];

/// Matches a whole name; see [`Rule::patterns`].
fn matches(pattern: &[u8], name: &[u8]) -> bool {
    match pattern.split_first() {
        None => name.is_empty(),
        Some((b'*', rest)) => (0..=name.len()).any(|skip| matches(rest, &name[skip..])),
        Some((b'@', rest)) => name.first().is_some_and(u8::is_ascii_digit) && matches(rest, &name[1..]),
        // No pattern has a digit after `#`, so taking all digits is the only way to match.
        Some((b'#', rest)) => {
            let digits = name.iter().take_while(|b| b.is_ascii_digit()).count();
            digits > 0 && matches(rest, &name[digits..])
        }
        Some((literal, rest)) => name.first() == Some(literal) && matches(rest, &name[1..]),
    }
}

/// The rule for a tensor of this name and number of dimensions, if the table has one.
pub fn rule_for(name: &str, rank: usize) -> Option<&'static Rule> {
    RULES.iter().find(|rule| {
        let rank_fits = match rule.rank {
            Rank::Any => true,
            Rank::One => rank == 1,
            Rank::TwoUp => rank >= 2,
        };
        rank_fits && rule.patterns.iter().any(|p| matches(p.as_bytes(), name.as_bytes()))
    })
}

/// The seeded value of a tensor: `name` and `upstream_shape` (OIHW for convolutions) as in upstream's
/// `state_dict`. Integer counters come as zeros.
///
/// # Errors
/// [`Error::Usage`] if no rule covers the tensor, if it is an index buffer that models compute themselves,
/// or if the shape has more than [`MAX_RANK`] dimensions or overflows.
pub fn tensor(name: &str, upstream_shape: &[usize], seed: u64) -> Result<Tensor> {
    let refuse =
        |why: &str| Error::usage(format!("seeded weights: `{name}` of shape {upstream_shape:?} {why}"));
    let count = upstream_shape
        .iter()
        .try_fold(1usize, |n, &dim| n.checked_mul(dim))
        .filter(|&n| n <= isize::MAX as usize / 4 && upstream_shape.len() <= MAX_RANK)
        .ok_or_else(|| refuse("is too large"))?;
    let rule = rule_for(name, upstream_shape.len()).ok_or_else(|| refuse("is covered by no rule"))?;
    let (c, h) = match rule.recipe {
        Recipe::Keep => return Err(refuse("is an index buffer, which the model computes itself")),
        Recipe::Zero => return Ok(Tensor::zeros(upstream_shape)),
        Recipe::Uniform { c, h } => (c, h),
        Recipe::Fan { g } => {
            let fan_in = upstream_shape[1..].iter().fold(1usize, |n, &dim| n.saturating_mul(dim));
            (0.0, g * (3.0 / fan_in as f32).sqrt())
        }
    };
    let start = fnv1a(name.as_bytes()) ^ seed;
    let mut data = vec![0f32; count];
    const CHUNK: usize = 1 << 15;
    data.par_chunks_mut(CHUNK).enumerate().for_each(|(chunk, values)| {
        let mut state = start.wrapping_add(GOLDEN.wrapping_mul((chunk * CHUNK) as u64));
        for value in values {
            state = state.wrapping_add(GOLDEN);
            let scaled = h * symmetric_unit(mix(state));
            *value = if c != 0.0 { c + scaled } else { scaled };
        }
    });
    Ok(Tensor::new(upstream_shape, data))
}

/// State increment of SplitMix64: 2^64 over the golden ratio.
const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

/// FNV-1a, 64 bits.
pub(crate) fn fnv1a(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Output function of SplitMix64.
fn mix(state: u64) -> u64 {
    let z = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// The upper 24 bits as a number in [-1, 1). Exact: the numerator has 24 bits.
fn symmetric_unit(draw: u64) -> f32 {
    2.0 * ((draw >> 40) as f32 / 16_777_216.0) - 1.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stream_matches_the_documented_draws() {
        assert_eq!(fnv1a(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv1a(b"a"), 0xaf63_dc4c_8601_ec8c);
        let s = fnv1a(b"backbone.conv1.weight");
        assert_eq!(s, 0x00f9_c445_1268_2697);
        let first = mix(s.wrapping_add(GOLDEN));
        assert_eq!(first, 0x8e07_4b35_6e94_09f7);
        assert_eq!(first >> 40, 9_307_979);
    }

    #[test]
    fn patterns() {
        for (pattern, name, expected) in [
            ("a.#.b", "a.12.b", true),
            ("a.#.b", "a..b", false),
            ("a.#.b", "a.1x.b", false),
            ("l@.x", "l1.x", true),
            ("l@.x", "l12.x", false),
            ("neck.*.weight", "neck.a.b.weight", true),
            ("neck.*.weight", "neck.weight", false),
            ("*bias", "bias", true),
            ("*bias", "biases", false),
            ("*", "", true),
        ] {
            assert_eq!(matches(pattern.as_bytes(), name.as_bytes()), expected, "{pattern} on {name}");
        }
    }
}
