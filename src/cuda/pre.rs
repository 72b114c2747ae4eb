//! Image pre-processing on a GPU, as plain launch data: an 8-bit image becomes the network input in one
//! launch (`kernels/preprocess.cu`), with the bits that `src/image/preprocess.rs` gives on the CPU.

use super::ops::launches::{lanes, storage};
use crate::cuda::launch::{Arg, Launch};
use crate::image::preprocess::{Geometry, PreprocessConfig};
use crate::image::view::{PixelFormat, YuvMatrix};
use crate::tensor::DType;

/// Columns and rows of a block: `TILE_W` and `TILE_H` of `kernels/preprocess.cu`.
const TILE: (usize, usize) = (64, 16);
/// Threads of a block: `THREADS` of `kernels/preprocess.cu`.
const THREADS: u32 = 256;
/// Largest side and row of an image, which keeps every coordinate and sum in 32 bits.
const MAX_SIDE: usize = 1 << 20;

/// From an image in device memory to the network input.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Preprocess {
    /// Layout of the image.
    pub format: PixelFormat,
    /// Height and width of the image.
    pub source: (usize, usize),
    /// Bytes from one row to the next, in all planes: U and V of I420 lie side by side.
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

/// Every format, for whoever compiles kernels before images are there.
pub const FORMATS: [PixelFormat; 7] = [
    PixelFormat::Rgb8,
    PixelFormat::Bgr8,
    PixelFormat::Rgba8,
    PixelFormat::Bgra8,
    PixelFormat::Gray8,
    PixelFormat::Nv12(YuvMatrix::Bt601),
    PixelFormat::I420(YuvMatrix::Bt601),
];

/// The number of a format in `kernels/preprocess.cu`.
fn code(format: PixelFormat) -> i64 {
    match format {
        PixelFormat::Rgb8 => 0,
        PixelFormat::Bgr8 => 1,
        PixelFormat::Nv12(_) => 2,
        PixelFormat::I420(_) => 3,
        PixelFormat::Rgba8 => 4,
        PixelFormat::Bgra8 => 5,
        PixelFormat::Gray8 => 6,
    }
}

/// Bytes of a row of pixels, or of luma.
fn row_bytes(format: PixelFormat, size: (usize, usize)) -> usize {
    format.shapes(size).next().map_or(0, |plane| plane.row_bytes)
}

/// Where a plane of an image lies in the memory that pre-processing reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlacedPlane {
    /// Its first byte.
    pub offset: usize,
    /// Number of rows.
    pub rows: usize,
    /// Bytes of a row.
    pub row_bytes: usize,
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
    luma: i32,
    u_blue: i32,
    u_green: i32,
    v_green: i32,
    v_red: i32,
    chunks: i32,
}

impl Preprocess {
    /// From an image of `source` (height, width) pixels, with rows as close as they can be.
    pub fn new(
        format: PixelFormat,
        source: (usize, usize),
        geometry: &Geometry,
        config: &PreprocessConfig,
    ) -> Self {
        let PreprocessConfig { mean, std, .. } = *config;
        let Geometry { resized, padded, .. } = *geometry;
        Preprocess { format, source, pitch: row_bytes(format, source), resized, padded, mean, std }
    }

    /// The planes, one after another; U and V of I420, which have half as many bytes in a row as the luma,
    /// side by side.
    pub fn planes(&self) -> impl Iterator<Item = PlacedPlane> {
        let luma = self.pitch * self.source.0;
        let mut offset = 0;
        self.format.shapes(self.source).enumerate().map(move |(index, plane)| {
            let placed = PlacedPlane { offset, rows: plane.rows, row_bytes: plane.row_bytes };
            offset = if index == 0 { luma } else { offset + plane.row_bytes };
            placed
        })
    }

    /// Bytes of all planes.
    pub fn bytes(&self) -> usize {
        let (rows, chroma) = (self.source.0, self.format.is_subsampled());
        self.pitch * (rows + if chroma { rows / 2 } else { 0 })
    }

    /// First byte of the chroma.
    pub fn chroma(&self) -> usize {
        self.pitch * self.source.0
    }

    /// The launch. [`Arg::Input`] 0 is the image (its luma), 1 its chroma (null if it has none),
    /// [`Arg::Output`] 0 the network input `[1, padded height, padded width, 3]`, R G B, of element type
    /// `dtype`.
    ///
    /// # Errors
    /// A sentence, if sizes do not fit each other, the pitch is shorter than a row, or a deviation is not
    /// positive.
    pub fn launch(&self, dtype: DType) -> Result<Launch, String> {
        self.check()?;
        let [luma, u_blue, u_green, v_green, v_red] = match self.format {
            PixelFormat::Nv12(matrix) | PixelFormat::I420(matrix) => matrix.coefficients(),
            _ => [0; 5],
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
            luma,
            u_blue,
            u_green,
            v_green,
            v_red,
            chunks: i32::from((self.padded.1 * 3).is_multiple_of(lanes(dtype))),
        };
        let chroma = if self.format.is_subsampled() { Arg::Input(1) } else { Arg::Null };
        let blocks = |size: usize, tile: usize| size.div_ceil(tile) as u32;
        Ok(Launch {
            source: "preprocess.cu",
            entry: "preprocess",
            defines: vec![storage(dtype), ("FORMAT", code(self.format))],
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
        let row = row_bytes(format, source);
        if pitch < row || pitch > i32::MAX as usize {
            return Err(format!(
                "rows of {} {format:?} pixels take {row} bytes, the pitch is {pitch}",
                source.1
            ));
        }
        format.check(source).map_err(|error| error.to_string())?;
        if !std.iter().all(|&s| s > 0.0 && s.is_finite()) || !mean.iter().all(|m| m.is_finite()) {
            return Err(format!(
                "mean {mean:?} must be finite, standard deviation {std:?} finite and positive"
            ));
        }
        Ok(())
    }
}
