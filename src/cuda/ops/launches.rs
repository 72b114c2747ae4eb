//! What programs of many operators share.

use crate::cuda::launch::{Arg, Launch, Packing};
use crate::ops::ValueType;
use crate::plan::Site;
use crate::tensor::DType;

/// Threads of a block of kernels with one thread an element.
const THREADS: usize = 256;

/// Most ranges of a launch: `RANGES` of `kernels/copy_ranges.cu`.
const RANGES: usize = 8;

/// The define that chooses the element type of feature maps: numbers of `kernels/common/storage.cuh`.
pub(crate) fn storage(dtype: DType) -> (&'static str, i64) {
    ("STORAGE", dtype_number(dtype))
}

/// Number of an element type in `kernels/common/storage.cuh`.
pub(crate) fn dtype_number(dtype: DType) -> i64 {
    match dtype {
        DType::F32 | DType::I32 => 0,
        DType::F16 => 1,
        DType::BF16 => 2,
        DType::U8 => unreachable!("codes are for CPUs"),
    }
}

/// Geometry of a kernel with one thread for each of `count` elements; source, entry and arguments are left
/// empty.
pub(crate) fn per_element(count: usize) -> Launch {
    Launch {
        source: "",
        entry: "",
        defines: Vec::new(),
        grid: [count.div_ceil(THREADS) as u32, 1, 1],
        block: [THREADS as u32, 1, 1],
        shared: 0,
        args: Vec::new(),
    }
}

/// Elements of a value, which kernels count in 32 bits.
///
/// # Errors
/// A sentence, from 2^31 elements.
pub(crate) fn elements(ty: ValueType) -> Result<u32, String> {
    let count = ty.shape.len();
    match i32::try_from(count) {
        Ok(count) => Ok(count as u32),
        Err(_) => Err(format!("{ty} has {count} elements; CUDA kernels count up to 2147483647")),
    }
}

/// Elements of 16 bytes: `Lanes` of `kernels/common/vector.cuh`.
pub(crate) fn lanes(dtype: DType) -> usize {
    16 / dtype.size()
}

/// Neighbouring channels that one thread takes: 16 bytes where rows of `channels` are whole chunks, else one.
pub(crate) fn vector(dtype: DType, channels: usize) -> usize {
    if channels.is_multiple_of(lanes(dtype)) { lanes(dtype) } else { 1 }
}

/// Neighbouring elements of operands of these types that one thread takes: as many as whole chunks of 16
/// bytes of each have, where `count` is a multiple of it, else one.
pub(crate) fn common_vector(dtypes: &[DType], count: usize) -> usize {
    let widest = dtypes.iter().map(|&dtype| lanes(dtype)).max().unwrap_or(1);
    if count.is_multiple_of(widest) { widest } else { 1 }
}

/// That these operands lie in memory as f32.
///
/// # Errors
/// A sentence on the first that does not.
pub(crate) fn expect_f32(site: &Site<'_>, operands: impl IntoIterator<Item = usize>) -> Result<(), String> {
    let shorter = |&operand: &usize| site.dtype(operand, Packing::plain(DType::F32)) != DType::F32;
    match operands.into_iter().find(shorter) {
        None => Ok(()),
        Some(operand) => {
            Err(format!("operand {operand} is stored as {}; the kernel takes f32", site.inputs[operand]))
        }
    }
}

/// Geometry of a kernel with one thread for `vector` channels of each pixel of the map `y` `[B, H, W, C]`: x
/// walks columns and channels, y rows, z images. Source, entry and arguments are left empty.
pub(crate) fn per_pixel(y: ValueType, vector: usize) -> Launch {
    let row = per_element(y.shape[2] * y.shape[3] / vector);
    Launch { grid: [row.grid[0], y.shape[1] as u32, y.shape[0] as u32], ..row }
}

/// Elements of each row of the result of [`copy_ranges`] that one operand gives, or that are zeros.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Range {
    /// The operand; zeros without.
    pub from: Option<usize>,
    /// Elements copied.
    pub width: usize,
    /// Rows of the operand; the result's rows repeat them.
    pub from_rows: usize,
    /// Elements from one row of the operand to the next.
    pub from_stride: usize,
    /// First element, in the operand's row.
    pub from_start: usize,
    /// First element, in the result's row.
    pub to_start: usize,
}

/// Launch of `kernels/copy_ranges.cu`: ranges of `rows` rows of `to_stride` elements of `y`, whose element
/// type the operands share.
///
/// # Errors
/// A sentence, for more than [`RANGES`] ranges; as [`elements`].
pub(crate) fn copy_ranges(
    y: ValueType,
    rows: usize,
    to_stride: usize,
    ranges: &[Range],
) -> Result<Launch, String> {
    #[repr(C)]
    #[derive(Clone, Copy, Default, bytemuck::Pod, bytemuck::Zeroable)]
    struct RangeParams {
        width: u32,
        from_rows: u32,
        from_stride: u32,
        from_start: u32,
        to_start: u32,
    }
    #[repr(C)]
    #[derive(Clone, Copy, bytemuck::NoUninit)]
    struct Params {
        rows: u32,
        to_stride: u32,
        range: [RangeParams; RANGES],
    }
    elements(y)?;
    if ranges.len() > RANGES {
        return Err(format!("{} ranges are joined; the kernel takes up to {RANGES}", ranges.len()));
    }
    // The largest unit that divides everything: 16 bytes, or a smaller power of two down to one element.
    let size = y.dtype.size();
    let places = ranges.iter().flat_map(|r| [r.width, r.from_stride, r.from_start, r.to_start]);
    let bits = places.chain([to_stride]).fold(16, |bits, elements| bits | (elements * size));
    let unit = 1 << bits.trailing_zeros();
    let units = |elements: usize| u32::try_from(elements * size / unit).map_err(|_| "rows are too long");
    let mut params = Params { rows: rows as u32, to_stride: units(to_stride)?, range: Default::default() };
    for (to, from) in params.range.iter_mut().zip(ranges) {
        *to = RangeParams {
            width: units(from.width)?,
            from_rows: from.from_rows as u32,
            from_stride: units(from.from_stride)?,
            from_start: units(from.from_start)?,
            to_start: units(from.to_start)?,
        };
    }
    let widest = ranges.iter().map(|r| r.width * size / unit).max().unwrap_or(0);
    let operand = |i: usize| ranges.get(i).and_then(|range| range.from).map_or(Arg::Null, Arg::Input);
    let geometry = per_element(widest * rows);
    Ok(Launch {
        source: "copy_ranges.cu",
        entry: "copy_ranges",
        defines: vec![("UNIT", unit as i64)],
        grid: [geometry.grid[0], ranges.len() as u32, 1],
        args: (0..RANGES).map(operand).chain([Arg::Output(0), Arg::of(&params)]).collect(),
        ..geometry
    })
}
