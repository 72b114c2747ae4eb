//! Which CUDA kernel runs a convolution, how it is tiled and how its reduction is split: a pure function of
//! shape, precision and capabilities, by a cost model (`conv_cost.rs`) that measures nothing.

use super::conv_cost::Model;
use crate::cuda::gpu::{Caps, Precision};
use std::fmt;

/// A convolution as an implicit matrix product `[M, K] x [N, K]^T`, one a group. Pairs are (vertical,
/// horizontal).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ConvGemm {
    /// Maps of the batch.
    pub batch: usize,
    /// Size of the map that is read.
    pub map: [usize; 2],
    /// Its channels.
    pub channels: usize,
    /// Size of the map that is written.
    pub out: [usize; 2],
    /// Its channels, the columns of the product.
    pub n: usize,
    /// Taps of a filter.
    pub taps: [usize; 2],
    /// Step between outputs.
    pub stride: [usize; 2],
    /// Zeros before the map; negative: so much of the map is left out.
    pub padding: [isize; 2],
    /// Step between taps.
    pub dilation: [usize; 2],
    /// Blocks of channels that do not mix.
    pub groups: usize,
    /// Elements of the map that is added to the result; 0: none.
    pub residual: usize,
    /// The result is f32, whatever the map is stored as.
    pub wide: bool,
    /// Every tap of every pixel is moved by an offset of its own.
    pub deformed: bool,
}

impl ConvGemm {
    /// Rows of the product: output pixels.
    pub fn m(&self) -> usize {
        self.batch * self.out[0] * self.out[1]
    }

    /// Terms of each sum: taps times channels of a group.
    pub fn k(&self) -> usize {
        self.tap_count() * self.channels / self.groups
    }

    /// Taps of a pixel.
    pub fn tap_count(&self) -> usize {
        self.taps[0] * self.taps[1]
    }

    /// Size of an element of the result.
    pub fn result_size(&self, precision: Precision) -> usize {
        if self.wide { 4 } else { precision.storage().size() }
    }

    /// Whether tensor cores can take words of the map as they lie there (a pixel's window begins at a word)
    /// from a small patch.
    fn has_few_channels(&self) -> bool {
        self.groups == 1
            && !self.deformed
            && !self.wide
            && (1..=4).contains(&self.channels)
            && (self.channels * self.stride[1]).is_multiple_of(2)
            && self.dilation == [1, 1]
            && self.taps.iter().all(|taps| (1..=7).contains(taps))
            && self.stride.iter().all(|&stride| stride <= 4)
    }

    fn is_pointwise(&self) -> bool {
        self.taps == [1, 1] && self.stride == [1, 1] && self.padding == [0, 0] && self.out == self.map
    }
}

/// How warps multiply; numbers of `kernels/conv/implicit_gemm.cu`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Math {
    /// f32 with FMA.
    Fma,
    /// 16-bit types on tensor cores.
    Tensor,
    /// f32 on tensor cores, by three TF32 products.
    Tf32x3,
}

/// The tile of a block of an implicit GEMM (`kernels/conv/implicit_gemm.cu`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GemmTile {
    /// Pixels.
    pub m: usize,
    /// Filters.
    pub n: usize,
    /// Warps along each.
    pub warps: [usize; 2],
    /// Chunks of 16 bytes along the reduction a step.
    pub chunks: usize,
    /// Steps in shared memory at once.
    pub stages: usize,
    /// Blocks of a multiprocessor that registers leave room for.
    pub blocks: usize,
    /// How its warps multiply.
    pub math: Math,
}

impl GemmTile {
    const fn new(
        math: Math,
        [m, n]: [usize; 2],
        warps: [usize; 2],
        [chunks, stages, blocks]: [usize; 3],
    ) -> GemmTile {
        GemmTile { m, n, warps, chunks, stages, blocks, math }
    }

    /// Threads of a block.
    pub fn threads(&self) -> usize {
        self.warps[0] * self.warps[1] * 32
    }

    /// Bytes of a step of both operands.
    pub fn stage_bytes(&self) -> usize {
        (self.m + self.n) * self.chunks * 16
    }

    /// Whether its steps have the eight chunks that tensor cores blend at once.
    pub fn blends(&self) -> bool {
        self.math == Math::Tensor && self.chunks == 8
    }

    /// Shared memory of a block: the stages, or the bands of 16 rows (eight words longer than the warp's
    /// part) through which tensor-core kernels write their tiles; besides, windows of the pixels where they
    /// are read one by one, and where each of so many `taps` of theirs samples the map if taps are deformed.
    pub fn shared(&self, addressing: Addressing, taps: usize) -> usize {
        let bands = self.warps[0] * self.warps[1] * 16 * (self.n / self.warps[1] + 8) * 4;
        let places = match addressing {
            Addressing::Pointwise | Addressing::Taps => 0,
            Addressing::Elements => self.m * 8,
            Addressing::Deformed if self.blends() => self.m * taps * 20,
            Addressing::Deformed | Addressing::DeformedElements => self.m * taps * 16,
        };
        (self.stages * self.stage_bytes() + places).max(bands)
    }
}

/// Tiles of 16-bit types, on tensor cores, the preferred first: of tiles that the model thinks equal, those
/// of 64 pixels were the faster on an H200.
pub const TENSOR_TILES: &[GemmTile] = &[
    GemmTile::new(Math::Tensor, [128, 128], [2, 2], [4, 4, 2]),
    GemmTile::new(Math::Tensor, [128, 128], [2, 2], [8, 3, 2]),
    GemmTile::new(Math::Tensor, [128, 128], [2, 4], [4, 3, 2]),
    GemmTile::new(Math::Tensor, [256, 128], [4, 2], [4, 3, 1]),
    GemmTile::new(Math::Tensor, [64, 128], [1, 4], [8, 3, 3]),
    GemmTile::new(Math::Tensor, [64, 128], [1, 4], [4, 4, 4]),
    GemmTile::new(Math::Tensor, [128, 64], [2, 2], [8, 3, 3]),
    GemmTile::new(Math::Tensor, [128, 64], [2, 2], [4, 4, 4]),
    GemmTile::new(Math::Tensor, [64, 64], [2, 2], [8, 3, 5]),
    GemmTile::new(Math::Tensor, [64, 64], [2, 2], [4, 4, 6]),
    GemmTile::new(Math::Tensor, [64, 32], [2, 1], [4, 4, 8]),
];

/// Tiles of f32 on tensor cores.
pub const TF32X3_TILES: &[GemmTile] = &[
    GemmTile::new(Math::Tf32x3, [128, 64], [2, 2], [4, 4, 2]),
    GemmTile::new(Math::Tf32x3, [64, 64], [2, 2], [4, 4, 4]),
    GemmTile::new(Math::Tf32x3, [64, 32], [2, 1], [4, 4, 8]),
];

/// Tiles of f32.
pub const F32_TILES: &[GemmTile] = &[
    GemmTile::new(Math::Fma, [64, 64], [2, 1], [4, 3, 4]),
    GemmTile::new(Math::Fma, [64, 32], [2, 1], [4, 3, 6]),
];

/// Tiles of 16-bit types read one by one.
pub const TENSOR_ELEMENT_TILES: &[GemmTile] = &[
    GemmTile::new(Math::Tensor, [128, 64], [4, 2], [4, 2, 2]),
    GemmTile::new(Math::Tensor, [64, 32], [2, 1], [4, 2, 7]),
];

/// Tiles of f32 read one by one.
pub const F32_ELEMENT_TILES: &[GemmTile] = &[GemmTile::new(Math::Fma, [64, 32], [2, 1], [4, 2, 6])];

/// How an implicit GEMM reads the map; numbers of `kernels/conv/implicit_gemm.cu`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Addressing {
    /// The map is the matrix.
    Pointwise,
    /// Chunks of 16 bytes under any filter.
    Taps,
    /// One by one, whatever the channels.
    Elements,
    /// Chunks at a point of its own for each tap, between four pixels.
    Deformed,
    /// The same one by one.
    DeformedElements,
}

/// How a convolution runs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ConvChoice {
    /// `kernels/conv/implicit_gemm.cu`, and `split_k.cu` if `splits` is above 1.
    Gemm {
        /// How the map is read.
        addressing: Addressing,
        /// The tile of a block.
        tile: GemmTile,
        /// Parts of the reduction, each of at least one step.
        splits: usize,
        /// What the model thinks it takes.
        microseconds: f64,
    },
    /// `kernels/conv/few_channels.cu`.
    FewChannels {
        /// Filters of a block.
        filters: usize,
    },
    /// `kernels/conv/depthwise.cu`, so many neighbouring pixels a thread.
    Depthwise {
        /// Pixels of a row a thread computes.
        pixels: usize,
    },
    /// `kernels/conv/direct.cu`.
    Direct,
}

impl ConvChoice {
    /// What the cost model thinks it takes; it knows implicit GEMMs alone.
    pub fn estimate(&self) -> Option<f64> {
        match *self {
            ConvChoice::Gemm { microseconds, .. } => Some(microseconds),
            _ => None,
        }
    }
}

impl fmt::Display for ConvChoice {
    /// Such as `gemm taps 128x128/2x4 k64B x3 split 4`: the tile of a block, its warps, bytes of a step of
    /// the reduction, steps in shared memory, parts of the reduction.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            ConvChoice::Gemm { addressing, tile, splits, .. } => {
                let name = match addressing {
                    Addressing::Pointwise => "pointwise",
                    Addressing::Taps => "taps",
                    Addressing::Elements => "elements",
                    Addressing::Deformed => "deformed",
                    Addressing::DeformedElements => "deformed elements",
                };
                let GemmTile { m, n, warps: [wm, wn], chunks, stages, .. } = tile;
                let math = if tile.math == Math::Tf32x3 { "tf32x3 " } else { "" };
                write!(f, "gemm {math}{name} {m}x{n}/{wm}x{wn} k{}B x{stages}", chunks * 16)?;
                if splits > 1 { write!(f, " split {splits}") } else { Ok(()) }
            }
            ConvChoice::FewChannels { filters } => write!(f, "few channels 8x32x{filters}"),
            ConvChoice::Depthwise { pixels } => write!(f, "depthwise {pixels} pixels"),
            ConvChoice::Direct => write!(f, "direct"),
        }
    }
}

/// Most taps of a side that the implicit GEMM's sets of taps have bits for.
const MAX_TAPS: usize = 16;
/// Most taps of a side of the depthwise kernel: what it holds in registers.
const MAX_DEPTHWISE_TAPS: usize = 5;
/// Numbers of parts that are considered.
const SPLITS: [usize; 10] = [1, 2, 3, 4, 5, 6, 8, 10, 12, 16];
/// Fewest steps of a part: fewer do not fill the pipeline.
const MIN_STEPS: usize = 4;

/// The kernel for a convolution: the first of [`candidates`].
///
/// # Errors
/// As [`candidates`].
pub fn conv(shape: &ConvGemm, precision: Precision, caps: &Caps) -> Result<ConvChoice, String> {
    Ok(candidates(shape, precision, caps)?.remove(0))
}

/// Every way to run a convolution that fits the device, one at least, the one thought fastest first. Implicit
/// GEMMs come in the order of the cost model's estimates; those that blend deformed taps on tensor cores
/// before those that do not.
///
/// # Errors
/// A sentence if offsets do not fit into 32 bits, no tile into shared memory, or if no kernel has it.
pub fn candidates(shape: &ConvGemm, precision: Precision, caps: &Caps) -> Result<Vec<ConvChoice>, String> {
    let elements = shape.batch * shape.map[0] * shape.map[1] * shape.channels;
    let results = shape.m() * shape.n;
    if elements.max(results).max(shape.k() * shape.n) > i32::MAX as usize {
        return Err(format!("maps of {elements} and {results} elements; offsets have 31 bits"));
    }
    let few_taps = shape.taps.iter().all(|&taps| taps <= MAX_TAPS);
    let product = shape.groups == 1 && shape.k() > 0 && (few_taps || shape.deformed);
    if (shape.wide || shape.deformed) && !product {
        let kind = if shape.deformed { "deformed taps" } else { "a result of another type than its map" };
        let ConvGemm { groups, taps: [rows, columns], channels, .. } = shape;
        return Err(format!(
            "no kernel has {kind} with {groups} groups, {rows}x{columns} taps and {channels} channels"
        ));
    }
    if shape.groups > 1 && shape.groups == shape.channels && shape.n == shape.channels {
        if shape.taps.iter().all(|&taps| taps <= MAX_DEPTHWISE_TAPS) {
            // Neighbouring pixels share columns of the map only where taps are neighbours.
            let pixels: &[usize] = match (shape.dilation, shape.stride[1]) {
                ([_, 1], 1) => &[4, 2, 1],
                ([_, 1], 2) => &[2, 4, 1],
                ([_, 1], _) => &[1, 2, 4],
                _ => &[1],
            };
            return Ok(pixels.iter().map(|&pixels| ConvChoice::Depthwise { pixels }).collect());
        }
        return Ok(vec![ConvChoice::Direct]);
    }
    if !product {
        return Ok(vec![ConvChoice::Direct]);
    }
    let mut found = Vec::new();
    if precision.is_half() && shape.has_few_channels() {
        let filters = if shape.n > 32 { [64, 32] } else { [32, 64] };
        found.extend(filters.map(|filters| ConvChoice::FewChannels { filters }));
    }
    found.extend(gemms(shape, precision, caps));
    if found.is_empty() {
        let room = caps.shared_per_block;
        return Err(format!("no tile of the convolution fits into {room} bytes of shared memory"));
    }
    Ok(found)
}

/// The implicit GEMMs that fit, in the order of [`candidates`].
fn gemms(shape: &ConvGemm, precision: Precision, caps: &Caps) -> Vec<ConvChoice> {
    let lanes = 16 / precision.storage().size();
    let addressing = match () {
        _ if shape.deformed && shape.channels.is_multiple_of(lanes) => Addressing::Deformed,
        _ if shape.deformed => Addressing::DeformedElements,
        _ if !shape.channels.is_multiple_of(lanes) => Addressing::Elements,
        _ if shape.is_pointwise() => Addressing::Pointwise,
        _ => Addressing::Taps,
    };
    let tiles = match (addressing, precision) {
        (Addressing::Elements, Precision::F32 | Precision::Tf32x3) => F32_ELEMENT_TILES,
        (Addressing::Elements, Precision::F16 | Precision::Bf16) => TENSOR_ELEMENT_TILES,
        (_, Precision::F32) => F32_TILES,
        (_, Precision::Tf32x3) => TF32X3_TILES,
        (_, Precision::F16 | Precision::Bf16) => TENSOR_TILES,
    };
    let mut found: Vec<(bool, f64, ConvChoice)> = Vec::new();
    let fits =
        |tile: &&GemmTile| tile.shared(addressing, shape.tap_count()) <= caps.shared_per_block as usize;
    for &tile in tiles.iter().filter(fits) {
        let steps = shape.k().div_ceil(tile.chunks * lanes);
        for splits in SPLITS {
            // Parts of equal length, the last of at least one step.
            let slice = steps.div_ceil(splits);
            if splits > 1 && (slice < MIN_STEPS || steps.div_ceil(slice) != splits) {
                continue;
            }
            let model = Model { shape, precision, caps, tile, addressing };
            let clocks = model.clocks(splits);
            let microseconds = clocks / f64::from(caps.clock_mhz);
            found.push((
                !model.blends(),
                clocks,
                ConvChoice::Gemm { addressing, tile, splits, microseconds },
            ));
        }
    }
    // Blending on tensor cores first: of the others the model knows no more than a perfect rate of issue. Of
    // equals, the earlier tile and the fewer parts.
    found.sort_by(|a, b| a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)));
    found.into_iter().map(|(.., choice)| choice).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::gpu::GPUS;

    /// Square stride 1 or 2, "same" padding.
    fn square(map: [usize; 2], channels: usize, filters: usize, taps: usize, stride: usize) -> ConvGemm {
        ConvGemm {
            batch: 1,
            map,
            channels,
            out: map.map(|v| v.div_ceil(stride)),
            n: filters,
            taps: [taps; 2],
            stride: [stride; 2],
            padding: [taps as isize / 2; 2],
            dilation: [1; 2],
            groups: 1,
            residual: 0,
            wide: false,
            deformed: false,
        }
    }

    /// The layers of K-Net with ResNet-50 and FPN at 800 x 1344 that do the most work, and how they run on an
    /// H100 in f16.
    fn heaviest() -> Vec<(&'static str, ConvGemm, &'static str)> {
        let c = [[200, 336], [100, 168], [50, 84], [25, 42]];
        vec![
            ("stem", square([800, 1344], 3, 64, 7, 2), "few channels 8x32x64"),
            ("layer1 reduce", square(c[0], 256, 64, 1, 1), "gemm pointwise 128x64/2x2 k64B x4"),
            ("layer1 3x3", square(c[0], 64, 64, 3, 1), "gemm taps 128x64/2x2 k64B x4"),
            ("layer1 expand", square(c[0], 64, 256, 1, 1), "gemm pointwise 128x128/2x2 k64B x4"),
            ("layer2 reduce", square(c[1], 512, 128, 1, 1), "gemm pointwise 128x128/2x2 k128B x3"),
            ("layer2 3x3", square(c[1], 128, 128, 3, 1), "gemm taps 128x128/2x2 k128B x3"),
            ("layer2 3x3 / 2", square(c[0], 128, 128, 3, 2), "gemm taps 128x128/2x2 k128B x3"),
            ("layer2 expand", square(c[1], 128, 512, 1, 1), "gemm pointwise 128x128/2x2 k64B x4"),
            ("layer3 reduce", square(c[2], 1024, 256, 1, 1), "gemm pointwise 64x128/1x4 k128B x3"),
            ("layer3 3x3", square(c[2], 256, 256, 3, 1), "gemm taps 64x128/1x4 k128B x3"),
            ("layer3 expand", square(c[2], 256, 1024, 1, 1), "gemm pointwise 128x128/2x2 k64B x4"),
            ("layer4 reduce", square(c[3], 2048, 512, 1, 1), "gemm pointwise 128x128/2x2 k128B x3 split 3"),
            ("layer4 3x3", square(c[3], 512, 512, 3, 1), "gemm taps 128x128/2x2 k64B x4 split 6"),
            ("layer4 expand", square(c[3], 512, 2048, 1, 1), "gemm pointwise 64x128/1x4 k128B x3"),
            ("layer4 shortcut / 2", square(c[2], 1024, 2048, 1, 2), "gemm taps 64x128/1x4 k128B x3"),
            ("fpn lateral 2", square(c[0], 256, 256, 1, 1), "gemm pointwise 128x128/2x2 k64B x4"),
            ("fpn lateral 5", square(c[3], 2048, 256, 1, 1), "gemm pointwise 64x128/1x4 k64B x4 split 6"),
            ("fpn out 2", square(c[0], 256, 256, 3, 1), "gemm taps 128x128/2x2 k64B x4"),
            ("fpn out 3", square(c[1], 256, 256, 3, 1), "gemm taps 128x128/2x2 k64B x4"),
            ("fpn out 4", square(c[2], 256, 256, 3, 1), "gemm taps 64x128/1x4 k128B x3"),
            ("fpn out 5", square(c[3], 256, 256, 3, 1), "gemm taps 128x128/2x2 k128B x3 split 6"),
            ("sem fpn p2", square(c[0], 256, 128, 3, 1), "gemm taps 128x128/2x2 k64B x4"),
        ]
    }

    fn gemm(choice: ConvChoice) -> (Addressing, GemmTile, usize, f64) {
        match choice {
            ConvChoice::Gemm { addressing, tile, splits, microseconds } => {
                (addressing, tile, splits, microseconds)
            }
            other => panic!("{other}"),
        }
    }

    #[test]
    fn the_heaviest_layers_on_an_h100() {
        let choice = |shape| conv(&shape, Precision::F16, &Caps::H100).unwrap().to_string();
        let found = heaviest().into_iter().map(|(name, shape, _)| (name, choice(shape)));
        let wanted = heaviest().into_iter().map(|(name, _, wanted)| (name, wanted.to_string()));
        assert_eq!(found.collect::<Vec<_>>(), wanted.collect::<Vec<_>>());
    }

    #[test]
    fn no_estimate_beats_the_multiplying_units_and_every_part_has_work() {
        for caps in GPUS.map(|gpu| gpu.caps) {
            for precision in Precision::ALL {
                for (name, shape, _) in heaviest() {
                    let choice = conv(&shape, precision, &caps).unwrap();
                    if matches!(choice, ConvChoice::FewChannels { .. }) {
                        continue;
                    }
                    let (addressing, tile, splits, microseconds) = gemm(choice);
                    let model = Model { shape: &shape, precision, caps: &caps, tile, addressing };
                    let macs = (shape.m() * shape.n * shape.k()) as f64;
                    let rate =
                        model.multiply_rate() * f64::from(caps.multiprocessors) * f64::from(caps.clock_mhz);
                    assert!(microseconds > macs / rate, "{name}: {microseconds} us");
                    let steps = shape.k().div_ceil(tile.chunks * 16 / precision.storage().size());
                    assert_eq!(steps.div_ceil(steps.div_ceil(splits)), splits, "{name}");
                    assert!(tile.shared(addressing, 1) <= caps.shared_per_block as usize, "{name}");
                }
            }
        }
    }

    #[test]
    fn a_residual_costs_the_time_that_device_memory_takes_for_it() {
        let plain = square([200, 336], 64, 256, 1, 1);
        let added = ConvGemm { residual: plain.m() * plain.n, ..plain };
        let estimate = |shape| gemm(conv(&shape, Precision::F16, &Caps::H100).unwrap()).3;
        let least = (2 * added.residual) as f64 / (f64::from(Caps::H100.bandwidth_gbs) * 1e3);
        assert!(estimate(added) - estimate(plain) >= least, "{} us", estimate(added) - estimate(plain));
    }

    #[test]
    fn small_maps_split_their_reduction_and_large_ones_do_not() {
        let splits = |shape| gemm(conv(&shape, Precision::F16, &Caps::H100).unwrap()).2;
        assert!(splits(square([25, 42], 512, 512, 3, 1)) > 1);
        assert!(splits(square([25, 42], 2048, 256, 1, 1)) > 1);
        assert_eq!(splits(square([200, 336], 256, 256, 3, 1)), 1);
        assert_eq!(splits(square([25, 42], 8, 8, 1, 1)), 1);
    }

    #[test]
    fn addressing_follows_channels_and_geometry() {
        let addressing = |shape, precision| gemm(conv(&shape, precision, &Caps::H100).unwrap()).0;
        assert_eq!(addressing(square([9, 9], 64, 64, 1, 1), Precision::F16), Addressing::Pointwise);
        assert_eq!(addressing(square([9, 9], 64, 64, 1, 2), Precision::F16), Addressing::Taps);
        assert_eq!(addressing(square([9, 9], 12, 64, 3, 1), Precision::F16), Addressing::Elements);
        assert_eq!(addressing(square([9, 9], 12, 64, 3, 1), Precision::F32), Addressing::Taps);
        assert_eq!(addressing(square([9, 9], 3, 64, 7, 2), Precision::F32), Addressing::Elements);
        assert_eq!(addressing(square([9, 9], 3, 64, 7, 1), Precision::F16), Addressing::Elements);
        let stem = conv(&square([9, 9], 3, 64, 7, 2), Precision::F16, &Caps::H100).unwrap();
        assert_eq!(stem, ConvChoice::FewChannels { filters: 64 });
        let deformed = |channels| ConvGemm { deformed: true, ..square([9, 9], channels, 64, 3, 1) };
        assert_eq!(addressing(deformed(64), Precision::F16), Addressing::Deformed);
        assert_eq!(addressing(deformed(12), Precision::F16), Addressing::DeformedElements);
        assert_eq!(addressing(deformed(12), Precision::F32), Addressing::Deformed);
    }

    #[test]
    fn groups_take_the_depthwise_or_the_direct_kernel() {
        let choose = |shape: ConvGemm| conv(&shape, Precision::F16, &Caps::H100).unwrap().to_string();
        let depthwise = ConvGemm { groups: 32, ..square([20, 20], 32, 32, 3, 1) };
        assert_eq!(choose(depthwise), "depthwise 4 pixels");
        assert_eq!(choose(ConvGemm { stride: [2; 2], ..depthwise }), "depthwise 2 pixels");
        assert_eq!(choose(ConvGemm { dilation: [2; 2], ..depthwise }), "depthwise 1 pixels");
        assert_eq!(choose(ConvGemm { n: 64, ..depthwise }), "direct");
        assert_eq!(choose(ConvGemm { groups: 4, ..depthwise }), "direct");
        assert_eq!(choose(ConvGemm { taps: [17, 1], groups: 1, ..depthwise }), "direct");
    }

    #[test]
    fn candidates_differ_by_name_and_fit_and_come_by_rising_estimate() {
        let mut shapes: Vec<ConvGemm> = heaviest().into_iter().map(|(_, shape, _)| shape).collect();
        shapes.push(ConvGemm { groups: 32, ..square([20, 20], 32, 32, 3, 1) });
        shapes.push(ConvGemm { groups: 4, ..square([20, 20], 32, 32, 3, 1) });
        for caps in GPUS.map(|gpu| gpu.caps) {
            for (precision, shape) in Precision::ALL.iter().flat_map(|p| shapes.iter().map(move |s| (*p, s)))
            {
                let all = candidates(shape, precision, &caps).unwrap();
                let names: std::collections::HashSet<String> = all.iter().map(ToString::to_string).collect();
                assert_eq!(names.len(), all.len(), "{shape:?}");
                let estimates: Vec<f64> = all.iter().filter_map(ConvChoice::estimate).collect();
                assert!(estimates.is_sorted(), "{shape:?}: {estimates:?}");
                for choice in &all {
                    let ConvChoice::Gemm { addressing, tile, .. } = choice else { continue };
                    let shared = tile.shared(*addressing, shape.tap_count());
                    assert!(shared <= caps.shared_per_block as usize, "{choice}");
                }
            }
        }
        let stem = candidates(&shapes[0], Precision::F16, &Caps::H100).unwrap();
        assert_eq!(stem[..2], [64, 32].map(|filters| ConvChoice::FewChannels { filters }));
        assert!(matches!(stem[2], ConvChoice::Gemm { addressing: Addressing::Elements, .. }));
    }

    #[test]
    fn maps_beyond_32_bits_are_refused() {
        let fault = conv(&square([65_536, 65_536], 1, 1, 1, 1), Precision::F16, &Caps::H100).unwrap_err();
        assert!(fault.contains("4294967296 elements"), "{fault}");
    }
}
