//! Image pre-processing on a GPU, as plain launch data: an 8-bit image becomes the network input in one
//! launch (`kernels/preprocess.cu`), with the bits that `src/image/preprocess.rs` gives on the CPU.

use super::ops::launches::{lanes, storage};
use crate::cuda::launch::{Arg, Launch};
use crate::tensor::DType;

/// Columns and rows of a block: `TILE_W`, `TILE_H` of `kernels/preprocess.cu`.
const TILE: (usize, usize) = (64, 16);
/// Threads of a block.
const THREADS: u32 = 256;
/// Largest side and row of an image, which keeps every coordinate and sum in 32 bits.
const MAX_SIDE: usize = 1 << 20;

/// How luma and chroma become red, green and blue; 8 bits, video range (luma 16 to 235).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum YuvMatrix {
    /// ITU-R BT.601, with OpenCV's coefficients (`COLOR_YUV2RGB_NV12`): standard definition, and most
    /// cameras.
    #[default]
    Bt601,
    /// ITU-R BT.709: high definition video.
    Bt709,
}

impl YuvMatrix {
    /// Factors of luma, U in blue, U in green, V in green, V in red, times 2^20.
    fn coefficients(self) -> [i32; 5] {
        match self {
            YuvMatrix::Bt601 => [1_220_542, 2_116_026, -409_993, -852_492, 1_673_527],
            YuvMatrix::Bt709 => [1_220_945, 2_215_014, -223_607, -558_796, 1_879_825],
        }
    }
}

/// How an image lies in memory, rows from top to bottom.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum PixelFormat {
    /// Three bytes a pixel: red, green, blue.
    #[default]
    Rgb8,
    /// Three bytes a pixel: blue, green, red.
    Bgr8,
    /// A plane of luma, and a plane of interleaved U and V, one pair for 2 x 2 pixels. Even sides.
    Nv12(YuvMatrix),
}

/// From an image in device memory to the network input.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Preprocess {
    /// Layout of the image.
    pub format: PixelFormat,
    /// Height and width of the image.
    pub source: (usize, usize),
    /// Bytes from one row to the next (of NV12: in both planes).
    pub pitch: usize,
    /// Height and width after the resize.
    pub resized: (usize, usize),
    /// Height and width after padding with zeros at the bottom and the right: the network input.
    pub padded: (usize, usize),
    /// Mean of each channel, R G B, on the scale 0..255.
    pub mean: [f32; 3],
    /// Standard deviation of each channel, R G B.
    pub std: [f32; 3],
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    scale: [f64; 3],
    row_step: f64,
    column_step: f64,
    mean: [f32; 3],
    source: [i32; 2],
    pitch: i32,
    resized: [i32; 2],
    padded: [i32; 2],
    coefficients: [i32; 5],
    chunks: i32,
}

impl Preprocess {
    /// The launch. [`Arg::Input`] 0 is the image (its luma), 1 the chroma plane (null but for NV12),
    /// [`Arg::Output`] 0 the network input `[1, padded height, padded width, 3]`, R G B, of element type
    /// `dtype`.
    ///
    /// # Errors
    /// A sentence, if sizes do not fit each other, the pitch is shorter than a row, or a deviation is not
    /// positive.
    pub fn launch(&self, dtype: DType) -> Result<Launch, String> {
        self.check()?;
        let (format, coefficients) = match self.format {
            PixelFormat::Rgb8 => (0, [0; 5]),
            PixelFormat::Bgr8 => (1, [0; 5]),
            PixelFormat::Nv12(matrix) => (2, matrix.coefficients()),
        };
        let pair = |(height, width): (usize, usize)| [height as i32, width as i32];
        // OpenCV derives the step from the reciprocal ratio; the double rounding is part of the result.
        let step = |source: usize, resized: usize| 1.0 / (resized as f64 / source as f64);
        let params = Params {
            scale: self.std.map(|std| 1.0 / f64::from(std)),
            row_step: step(self.source.0, self.resized.0),
            column_step: step(self.source.1, self.resized.1),
            mean: self.mean,
            source: pair(self.source),
            pitch: self.pitch as i32,
            resized: pair(self.resized),
            padded: pair(self.padded),
            coefficients,
            chunks: i32::from((self.padded.1 * 3).is_multiple_of(lanes(dtype))),
        };
        let chroma = if format == 2 { Arg::Input(1) } else { Arg::Null };
        let blocks = |size: usize, tile: usize| size.div_ceil(tile) as u32;
        Ok(Launch {
            source: "preprocess.cu",
            entry: "preprocess",
            defines: vec![storage(dtype), ("FORMAT", format)],
            grid: [blocks(self.padded.1, TILE.0), blocks(self.padded.0, TILE.1), 1],
            block: [THREADS, 1, 1],
            shared: 0,
            args: vec![Arg::Input(0), chroma, Arg::Output(0), Arg::of(&params)],
        })
    }

    fn check(&self) -> Result<(), String> {
        let Preprocess { format, source, pitch, resized, padded, mean, std } = *self;
        let sides = [source.0, source.1, resized.0, resized.1, padded.0, padded.1];
        if sides.contains(&0) || sides.iter().any(|&side| side > MAX_SIDE) {
            return Err(format!(
                "an image of {source:?}, resized to {resized:?} and padded to {padded:?}: sides must be 1 to {MAX_SIDE}"
            ));
        }
        if resized.0 > padded.0 || resized.1 > padded.1 {
            return Err(format!("an image of {resized:?} cannot be padded to {padded:?}"));
        }
        let row = if matches!(format, PixelFormat::Nv12(_)) { source.1 } else { source.1 * 3 };
        if pitch < row || pitch > i32::MAX as usize {
            return Err(format!(
                "rows of {} {format:?} pixels take {row} bytes, the pitch is {pitch}",
                source.1
            ));
        }
        if matches!(format, PixelFormat::Nv12(_)) && !(source.0 % 2 == 0 && source.1 % 2 == 0) {
            return Err(format!("NV12 images have even sides, this one is {source:?}"));
        }
        if !std.iter().all(|&s| s > 0.0 && s.is_finite()) || !mean.iter().all(|m| m.is_finite()) {
            return Err(format!(
                "mean {mean:?} must be finite, standard deviation {std:?} finite and positive"
            ));
        }
        Ok(())
    }
}
