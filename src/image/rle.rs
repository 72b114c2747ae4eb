//! COCO run-length encoding: column-major runs that alternate between outside and inside, starting outside.
//!
//! In the compressed form (pycocotools `rleToString`) each run from the fourth on is stored as the difference
//! to the run two before it; the number is cut into 5-bit groups, lowest first, bit 5 of a character says
//! that more follow, bit 4 of the last one is the sign, and 48 is added to make it printable.

use super::bitmask::BitMask;
use crate::error::{Error, Result};

/// Largest mask that [`decode`] makes, pixels. Run lengths are tiny whatever size they claim, so that the
/// size has to be bounded before memory is taken.
pub const MAX_PIXELS: usize = 1 << 28;

/// Column-major run lengths of a mask; the first run is outside and may be 0.
///
/// Time goes with the boundary, not with the area: runs change where a pixel differs from the one above it,
/// which is the exclusive-or of two packed rows.
pub fn run_lengths(mask: &BitMask) -> Vec<u32> {
    let (height, width) = (mask.height(), mask.width());
    // Ends of runs per column, first counted, then placed; rows are walked in order, so that each column's
    // are sorted.
    let mut starts = vec![0usize; width + 1];
    each_change(mask, |x, _| starts[x + 1] += 1);
    for x in 0..width {
        starts[x + 1] += starts[x];
    }
    let mut ends = vec![0usize; starts[width]];
    each_change(mask, |x, y| {
        ends[starts[x]] = x * height + y;
        starts[x] += 1;
    });
    let mut runs = Vec::with_capacity(ends.len() + 1);
    let mut from = 0;
    for end in ends.into_iter().chain([height * width]) {
        runs.push((end - from) as u32);
        from = end;
    }
    runs
}

/// Calls `change(x, y)` where the pixel differs from its predecessor in column-major order, row by row.
fn each_change(mask: &BitMask, mut change: impl FnMut(usize, usize)) {
    let (height, width) = (mask.height(), mask.width());
    if height == 0 {
        return;
    }
    for x in 0..width {
        let before = x > 0 && mask.get(height - 1, x - 1);
        if mask.get(0, x) != before {
            change(x, 0);
        }
    }
    for y in 1..height {
        for at in (0..width).step_by(BitMask::WORD) {
            let mut word = mask.word(y, at) ^ mask.word(y - 1, at);
            while word != 0 {
                let bit = word.leading_zeros();
                change(at + bit as usize, y);
                word &= !(1 << (63 - bit));
            }
        }
    }
}

/// Compressed COCO run lengths of a mask.
pub fn encode(mask: &BitMask) -> String {
    compress(&run_lengths(mask))
}

/// The compressed form of run lengths.
pub fn compress(runs: &[u32]) -> String {
    let mut out = String::with_capacity(runs.len() * 2);
    for (i, &run) in runs.iter().enumerate() {
        let mut value = i64::from(run);
        if i > 2 {
            value -= i64::from(runs[i - 2]);
        }
        loop {
            let group = (value & 0x1f) as u8;
            value >>= 5;
            // The sign of what is left is carried by bit 4 of the last group.
            let more = if group & 0x10 != 0 { value != -1 } else { value != 0 };
            out.push(char::from(group + if more { 0x20 } else { 0 } + 48));
            if !more {
                break;
            }
        }
    }
    out
}

/// The run lengths of their compressed form.
///
/// # Errors
/// [`Error::Image`] (with `RLE` for the file) that names the position of a character outside the alphabet, of
/// a number that is cut short, and of a run that is negative or beyond 32 bits.
pub fn decompress(counts: &str) -> Result<Vec<u32>> {
    let mut runs: Vec<u32> = Vec::new();
    let (mut value, mut shift) = (0i64, 0);
    for (at, byte) in counts.bytes().enumerate() {
        let Some(code) = byte.checked_sub(48).filter(|&c| c < 64) else {
            return Err(refuse(format!("byte {byte:#04x} at {at} is not a run-length character")));
        };
        if shift > 35 {
            return Err(refuse(format!("the number that ends at {at} has too many digits")));
        }
        value |= i64::from(code & 0x1f) << shift;
        shift += 5;
        if code & 0x20 != 0 {
            continue;
        }
        if code & 0x10 != 0 {
            value |= -1 << shift;
        }
        if runs.len() > 2 {
            value += i64::from(runs[runs.len() - 2]);
        }
        let run = u32::try_from(value);
        runs.push(run.map_err(|_| refuse(format!("run {} is {value}", runs.len())))?);
        (value, shift) = (0, 0);
    }
    match shift {
        0 => Ok(runs),
        _ => Err(refuse("the last number is cut short".into())),
    }
}

/// The mask of compressed COCO run lengths.
///
/// # Errors
/// As [`decompress`]; also if the runs do not add up to `height * width`, or that exceeds [`MAX_PIXELS`].
pub fn decode(counts: &str, height: usize, width: usize) -> Result<BitMask> {
    let runs = decompress(counts)?;
    from_runs(&runs, height, width)
}

/// The mask of column-major run lengths (COCO's uncompressed form).
///
/// # Errors
/// [`Error::Image`] if the runs do not add up to `height * width`, or that exceeds [`MAX_PIXELS`].
pub fn from_runs(runs: &[u32], height: usize, width: usize) -> Result<BitMask> {
    let pixels = height.checked_mul(width).filter(|&p| p <= MAX_PIXELS);
    let Some(pixels) = pixels else {
        return Err(refuse(format!("a {height} x {width} mask has more than {MAX_PIXELS} pixels")));
    };
    let total: u64 = runs.iter().map(|&r| u64::from(r)).sum();
    if total != pixels as u64 {
        return Err(refuse(format!("the runs add up to {total}, not to {height} x {width} = {pixels}")));
    }
    let mut mask = BitMask::new(height, width);
    let mut at = 0;
    for (i, &run) in runs.iter().enumerate() {
        let end = at + run as usize;
        if i % 2 == 1 {
            for p in at..end {
                mask.set(p % height, p / height);
            }
        }
        at = end;
    }
    Ok(mask)
}

fn refuse(reason: String) -> Error {
    Error::image("RLE", reason)
}
