//! Post-processing on a GPU, as plain launch data: class logits are ranked (`kernels/instance_rank.cu`), and
//! mask logits become bit masks at the size of the photo (`kernels/postprocess_instance.cu`) or an object for
//! each of its pixels (`kernels/postprocess_panoptic.cu`). Both equal the CPU's results, those of
//! `src/image/instance.rs` and `src/image/panoptic.rs`, bit for bit, given the same logits.

use super::ops::{self, launches::storage};
use crate::cuda::gpu::Target;
use crate::cuda::launch::{Arg, Launch, Program};
use crate::ops::{TopK, ValueType};
use crate::plan::Site;
use crate::tensor::DType;

/// Threads of a block and output columns of a tile: `THREADS`, `TILE_W` of `kernels/common/mask_sampler.cuh`.
const THREADS: usize = 256;
const TILE_W: usize = 64;
/// Output rows of a block: `BAND` of `kernels/postprocess_instance.cu`, `TILE_H` of
/// `kernels/postprocess_panoptic.cu`.
const BAND: usize = 32;
const TILE_H: usize = 16;
/// Most probabilities that a block holds at a time, if a row of them is not longer.
const PROBABILITIES: usize = 4096;
/// Threads of a block of `kernels/instance_rank.cu`; its `RUN` and `LANES`.
const RANK_THREADS: u32 = 128;
const QUALITY_RUN: usize = 4096;
const QUALITY_LANES: usize = 16;
/// Most objects of [`panoptic`], whose indices take 16 bits.
const MAX_OBJECTS: usize = 1 << 16;

/// Mask logits in device memory, and the sizes between them and the photo; pairs are (height, width).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MaskLogits {
    /// Number of masks N.
    pub objects: usize,
    /// Size of a mask: the padded size over 8 or over 4. Masks are planar, `[N, height, width]`.
    pub size: (usize, usize),
    /// Element type.
    pub dtype: DType,
    /// The network input.
    pub padded: (usize, usize),
    /// The part of the network input that the photo fills.
    pub resized: (usize, usize),
    /// The photo.
    pub original: (usize, usize),
}

/// What 32 rows of a mask hold; the parts of a mask are put together by [`Extent::join`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Extent {
    /// Pixels.
    pub area: u32,
    /// First column with a pixel; beyond `right` if there is none.
    pub left: u32,
    /// Last column with a pixel.
    pub right: u32,
    /// First row with a pixel.
    pub top: u32,
    /// Last row with a pixel.
    pub bottom: u32,
}

impl Extent {
    /// Rows of a band, a whole number of words of a mask.
    pub const ROWS: usize = BAND;

    /// No pixel.
    pub const NOTHING: Extent = Extent { area: 0, left: u32::MAX, right: 0, top: u32::MAX, bottom: 0 };

    /// The smallest rectangle around the pixels: left, top, width, height; all zero if there are none.
    pub fn rectangle(self) -> [usize; 4] {
        if self.area == 0 {
            return [0; 4];
        }
        let side = |first: u32, last: u32| (last + 1).saturating_sub(first) as usize;
        let [width, height] = [side(self.left, self.right), side(self.top, self.bottom)];
        [self.left as usize, self.top as usize, width, height]
    }

    /// Both together.
    pub fn join(self, other: Extent) -> Extent {
        Extent {
            area: self.area + other.area,
            left: self.left.min(other.left),
            right: self.right.max(other.right),
            top: self.top.min(other.top),
            bottom: self.bottom.max(other.bottom),
        }
    }
}

/// Two taps of one output position, as the kernels compute them.
fn blend(position: usize, input: usize, output: usize) -> [usize; 2] {
    if input == output {
        return [position; 2];
    }
    let source = (input as f32 / output as f32 * (position as f32 + 0.5) - 0.5).max(0.0);
    let low = (source as usize).min(input - 1);
    [low, (low + 1).min(input - 1)]
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Direction {
    logits: i32,
    stride4: i32,
    padded: i32,
    resized: i32,
    original: i32,
    upsample_scale: f32,
    pad_scale: f32,
    photo_scale: f32,
}

impl Direction {
    fn new(logits: usize, padded: usize, resized: usize, original: usize) -> Self {
        let stride4 = padded / 4;
        let scale = |input: usize, output: usize| input as f32 / output as f32;
        Direction {
            logits: logits as i32,
            stride4: stride4 as i32,
            padded: padded as i32,
            resized: resized as i32,
            original: original as i32,
            upsample_scale: scale(logits, stride4),
            pad_scale: scale(stride4, padded),
            photo_scale: scale(resized, original),
        }
    }

    /// Most stride-4 positions that `tile` neighbouring output positions draw on.
    fn widest(&self, tile: usize) -> usize {
        let [stride4, padded, resized, original] =
            [self.stride4, self.padded, self.resized, self.original].map(|n| n as usize);
        let end = |position: usize, which: usize| {
            let in_resized = blend(position, resized, original)[which];
            blend(in_resized, stride4, padded)[which]
        };
        let tiles = (0..original).step_by(tile);
        let widths = tiles.map(|from| end((from + tile).min(original) - 1, 1) + 1 - end(from, 0));
        widths.max().unwrap_or(0)
    }
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Sampler {
    vertical: Direction,
    horizontal: Direction,
    wide_rows: i32,
    wide_columns: i32,
    batch_rows: i32,
}

impl Sampler {
    /// Bytes of shared memory: taps, probabilities and rows of a tile.
    fn shared(&self) -> usize {
        let [rows, columns, batch] = [self.wide_rows, self.wide_columns, self.batch_rows].map(|n| n as usize);
        16 * (rows + columns) + 4 * (batch * columns + rows * TILE_W)
    }
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct InstanceParams {
    sampler: Sampler,
    objects: u32,
    mask_words: u32,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct ScoreParams {
    classes: u32,
    proposals: u32,
    things: u32,
    pixels: u32,
    runs: u32,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct SlotParams {
    instances: u32,
    classes: u32,
    min_score: f32,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct ClassParams {
    objects: u32,
    classes: u32,
    proposals: u32,
    things: u32,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct PanopticParams {
    sampler: Sampler,
    objects: u32,
}

impl MaskLogits {
    /// Bytes from one bit mask to the next: the pixels of the photo, in words of 32.
    pub fn mask_bytes(&self) -> usize {
        (self.original.0 * self.original.1).div_ceil(32) * 4
    }

    /// Number of [`Extent`]s of a mask.
    pub fn bands(&self) -> usize {
        self.original.0.div_ceil(BAND)
    }

    /// The numbers of the kernels for tiles of `tile_rows` rows.
    fn sampler(&self, tile_rows: usize) -> Result<Sampler, String> {
        let MaskLogits { size, padded, resized, original, .. } = *self;
        let at_stride = |s: usize| padded == (size.0 * s, size.1 * s);
        let sound = resized.0 * resized.1 > 0 && resized.0 <= padded.0 && resized.1 <= padded.1;
        if !sound || !(at_stride(8) || at_stride(4)) {
            return Err(format!(
                "{size:?} maps are neither at stride 8 nor at stride 4 of the padded size in {self:?}"
            ));
        }
        if original.0 * original.1 == 0 || original.0 * original.1 > i32::MAX as usize {
            return Err(format!("photos have 1 to 2147483647 pixels, this one is {original:?}"));
        }
        let vertical = Direction::new(size.0, padded.0, resized.0, original.0);
        let horizontal = Direction::new(size.1, padded.1, resized.1, original.1);
        let (rows, columns) = (vertical.widest(tile_rows), horizontal.widest(TILE_W));
        let batch_rows = (PROBABILITIES / columns).clamp(1, rows);
        let [wide_rows, wide_columns, batch_rows] = [rows, columns, batch_rows].map(|n| n as i32);
        Ok(Sampler { vertical, horizontal, wide_rows, wide_columns, batch_rows })
    }
}

/// Bit masks of some objects. Operands: 0 the mask logits, 1 `u32 [slots]`, the object of each slot
/// ([`u32::MAX`]: none: its mask is not written, and it has no pixel). Results: 0 the masks, each
/// [`MaskLogits::mask_bytes`] long, in the layout of `BitMask` (`src/image/bitmask.rs`); 1 `[slots, bands]`
/// of [`Extent`]; 2 as 0 (or null), of which bands without a pixel are not written.
///
/// # Errors
/// A sentence, if sizes do not fit each other.
pub fn instance_masks(logits: &MaskLogits, slots: usize) -> Result<Program, String> {
    let sampler = logits.sampler(BAND)?;
    if slots == 0 {
        return Ok(Program { kernel: "nothing".into(), ..Program::default() });
    }
    let mask_words = (logits.mask_bytes() / 4) as u32;
    let params = InstanceParams { sampler, objects: logits.objects as u32, mask_words };
    let width = logits.original.1;
    let launch = Launch {
        source: "postprocess_instance.cu",
        entry: "postprocess_instance",
        defines: vec![storage(logits.dtype)],
        grid: [logits.bands() as u32, slots as u32, 1],
        block: [THREADS as u32, 1, 1],
        shared: (sampler.shared() + 16 * width.div_ceil(TILE_W) + 4 * width) as u32,
        args: vec![
            Arg::Input(0),
            Arg::Input(1),
            Arg::Output(0),
            Arg::Output(1),
            Arg::Output(2),
            Arg::of(&params),
        ],
    };
    Ok(Program { kernel: "bands of masks".into(), launches: vec![launch], ..Program::default() })
}

/// What counts as an instance, as in `src/image/instance.rs`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ranking {
    /// Number of classes C.
    pub classes: usize,
    /// Number of pairs of an object and a class that are kept, k; fewer, if there are fewer pairs.
    pub instances: usize,
    /// Pairs that score lower are dropped.
    pub min_score: f32,
    /// Only this many objects, the first, are looked at.
    pub proposals: usize,
    /// Only this many classes, the first, are looked at.
    pub things: usize,
    /// A pair's score is multiplied by the quality of its mask.
    pub mask_score: bool,
}

/// The instances of a photo and their bit masks.
///
/// Operands: 0 the mask logits, 1 the class logits `f32 [N, C]`. Results, for k instances by descending score
/// and as many places for masks: 0 the masks, each [`MaskLogits::mask_bytes`] long, in the layout of
/// `BitMask` (`src/image/bitmask.rs`); 1 `[k, bands]` of [`Extent`]; 2 `f32 [k]`, scores; 3 `i32 [k]`,
/// `object * C + class`; 4 `u32 [k]`, the place of its mask ([`u32::MAX`]: it is dropped, as are all after
/// it); 5 `u32 [k]`, the object of each place ([`u32::MAX`]: none; then its mask is not written, and its
/// extents are [`Extent::NOTHING`]); 6 as 0 (or null), of which bands without a pixel are not written.
///
/// # Errors
/// A sentence, if sizes or numbers do not fit each other.
pub fn instances(logits: &MaskLogits, ranking: &Ranking, target: &Target) -> Result<Program, String> {
    let pairs = logits.objects * ranking.classes;
    let k = ranking.instances.min(pairs);
    let masks = instance_masks(logits, k)?;
    if k == 0 {
        return Ok(Program { kernel: "nothing".into(), ..Program::default() });
    }
    let (scores, places) = (Arg::Workspace(0), Arg::Output(5));
    let scores_bytes = (pairs * 4).next_multiple_of(256);
    let ranked = rank(pairs, k, target)?;
    let mut launches = vec![score(logits, ranking, scores.clone())];
    launches.extend(ranked.launches.into_iter().map(|launch| {
        let place = |arg| match arg {
            Arg::Input(_) => scores.clone(),
            Arg::Output(i) => Arg::Output(2 + i),
            Arg::Workspace(offset) => Arg::Workspace(scores_bytes + offset),
            other => other,
        };
        Launch { args: launch.args.into_iter().map(place).collect(), ..launch }
    }));
    let slots =
        SlotParams { instances: k as u32, classes: ranking.classes as u32, min_score: ranking.min_score };
    launches.push(Launch {
        source: "instance_rank.cu",
        entry: "instance_slots",
        defines: rank_defines(logits, ranking),
        grid: [1; 3],
        block: [RANK_THREADS, 1, 1],
        shared: (k * 4) as u32,
        args: vec![Arg::Output(2), Arg::Output(3), Arg::Output(4), places.clone(), Arg::of(&slots)],
    });
    launches.extend(masks.launches.into_iter().map(|launch| {
        let place = |arg| match arg {
            Arg::Input(1) => places.clone(),
            Arg::Output(2) => Arg::Output(6),
            other => other,
        };
        Launch { args: launch.args.into_iter().map(place).collect(), ..launch }
    }));
    let workspace = scores_bytes + ranked.workspace;
    Ok(Program { kernel: "ranked, bands of masks".into(), launches, workspace, ..Program::default() })
}

fn rank_defines(logits: &MaskLogits, ranking: &Ranking) -> Vec<(&'static str, i64)> {
    vec![storage(logits.dtype), ("MASK_SCORE", i64::from(ranking.mask_score))]
}

/// The scores of all pairs.
fn score(logits: &MaskLogits, ranking: &Ranking, scores: Arg) -> Launch {
    let pixels = logits.size.0 * logits.size.1;
    let runs = pixels.div_ceil(QUALITY_RUN);
    let params = ScoreParams {
        classes: ranking.classes as u32,
        proposals: ranking.proposals.min(logits.objects) as u32,
        things: ranking.things.min(ranking.classes) as u32,
        pixels: pixels as u32,
        runs: runs as u32,
    };
    Launch {
        source: "instance_rank.cu",
        entry: "instance_scores",
        defines: rank_defines(logits, ranking),
        grid: [logits.objects as u32, 1, 1],
        block: [RANK_THREADS, 1, 1],
        shared: if ranking.mask_score { (runs * QUALITY_LANES * 8) as u32 } else { 0 },
        args: vec![Arg::Input(0), Arg::Input(1), scores, Arg::of(&params)],
    }
}

/// The `k` best of a row of scores: the operator's program.
fn rank(pairs: usize, k: usize, target: &Target) -> Result<Program, String> {
    let op = TopK { k }.into();
    let inputs = [ValueType::f32([1, pairs])];
    let outputs = [ValueType::f32([1, k]), ValueType::i32([1, k])];
    ops::program(&Site { op: &op, inputs: &inputs, constant: &[false], outputs: &outputs }, target)
}

/// The object of every pixel, and what the merge of `src/image/panoptic.rs` needs. The objects are
/// `proposals` things, then one for each of `stuff` classes; the classes are `things`, then those.
///
/// Operands: 0 the mask logits, 1 the class logits `f32 [N, classes]`. Results: 0 `u16 [height, width]`, the
/// object of each pixel; 1 `u32 [2, N]`, the pixels that each object wins and those of its own mask; 2
/// `f32 [N]`, scores; 3 `u32 [N]`, classes.
///
/// # Errors
/// A sentence, if sizes or numbers do not fit each other.
pub fn panoptic(
    logits: &MaskLogits,
    proposals: usize,
    things: usize,
    stuff: usize,
) -> Result<Program, String> {
    let sampler = logits.sampler(TILE_H)?;
    let (objects, classes) = (logits.objects, things + stuff);
    if objects != proposals + stuff || classes == 0 || objects == 0 || objects > MAX_OBJECTS {
        return Err(format!(
            "{objects} objects are not {proposals} proposals and {stuff} stuff kernels ({things} thing classes; up to \
             {MAX_OBJECTS} objects)"
        ));
    }
    let [objects, classes, proposals, things] = [objects, classes, proposals, things].map(|n| n as u32);
    let classify = Launch {
        source: "postprocess_panoptic.cu",
        entry: "panoptic_classify",
        defines: vec![storage(logits.dtype)],
        grid: [objects.div_ceil(THREADS as u32 / 32), 1, 1],
        block: [THREADS as u32, 1, 1],
        shared: 0,
        args: vec![
            Arg::Input(1),
            Arg::Output(2),
            Arg::Output(3),
            Arg::Output(1),
            Arg::of(&ClassParams { objects, classes, proposals, things }),
        ],
    };
    let shared = sampler.shared() + 16 * objects as usize;
    let (height, width) = logits.original;
    let assign = Launch {
        source: "postprocess_panoptic.cu",
        entry: "panoptic_assign",
        defines: vec![storage(logits.dtype)],
        grid: [width.div_ceil(TILE_W) as u32, height.div_ceil(TILE_H) as u32, 1],
        block: [THREADS as u32, 1, 1],
        shared: shared as u32,
        args: vec![
            Arg::Input(0),
            Arg::Output(2),
            Arg::Output(0),
            Arg::Output(1),
            Arg::of(&PanopticParams { sampler, objects }),
        ],
    };
    Ok(Program { kernel: "tiles of pixels".into(), launches: vec![classify, assign], ..Program::default() })
}
