//! From an image to the network input: resize, normalise and pad, in one pass over the output. An image of
//! another format than packed RGB is converted to it first, in a pass of its own.
//!
//! Normalisation is exactly mmcv's `imnormalize`: the mean (float32 values held as float64) is subtracted and
//! the difference rounded to float32; that is multiplied by the float64 reciprocal of the standard deviation
//! and rounded again. With 8-bit input each channel has only 256 results, so they are tabulated. Padding is
//! zeros **after** normalisation, at the right and the bottom.

use super::resize::{Resizer, keep_ratio_size};
use super::view::ImageView;
use crate::error::{Error, Result};

/// Sizes of one image on its way through the network, each `(height, width)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Geometry {
    /// The photo as decoded (upstream `ori_shape`): the size of all results.
    pub original: (usize, usize),
    /// After the keep-ratio resize (upstream `img_shape`).
    pub resized: (usize, usize),
    /// After padding to a multiple of the divisor (upstream `batch_input_shape`): the network input.
    pub padded: (usize, usize),
}

impl Geometry {
    /// Elements of the NHWC network input `[1, padded height, padded width, 3]`.
    pub fn input_len(&self) -> usize {
        self.padded.0 * self.padded.1 * 3
    }

    /// By how much the photo is enlarged, vertically and horizontally, in float32 as upstream's
    /// `scale_factor`.
    pub fn enlargement(&self) -> [f32; 2] {
        let of = |resized: usize, original: usize| (resized as f64 / original.max(1) as f64) as f32;
        [of(self.resized.0, self.original.0), of(self.resized.1, self.original.1)]
    }

    /// What the second input of a two-stage detector is for this photo: height and width as resized, then the
    /// enlargement.
    pub fn info(&self) -> [f32; 4] {
        let [down, across] = self.enlargement();
        [self.resized.0 as f32, self.resized.1 as f32, down, across]
    }
}

/// How images are brought to the network.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PreprocessConfig {
    /// Bounds of the keep-ratio resize: short and long side. `None` leaves the size as it is.
    pub size: Option<(usize, usize)>,
    /// Mean of each channel, R G B, on the scale 0..255.
    pub mean: [f32; 3],
    /// Standard deviation of each channel, R G B.
    pub std: [f32; 3],
    /// The padded sides are multiples of this.
    pub divisor: usize,
}

impl Default for PreprocessConfig {
    /// The COCO setting of K-Net: 800 / 1333, ImageNet statistics, multiples of 32.
    fn default() -> Self {
        PreprocessConfig {
            size: Some((800, 1333)),
            mean: [123.675, 116.28, 103.53],
            std: [58.395, 57.12, 57.375],
            divisor: 32,
        }
    }
}

/// Turns images into network inputs. Keeps the tables of the last pair of sizes, so that images of one size
/// after another allocate nothing.
#[derive(Debug)]
pub struct Preprocessor {
    config: PreprocessConfig,
    table: Box<[[f32; 256]; 3]>,
    resizer: Option<Resizer>,
    /// An image that did not come as packed RGB.
    converted: Vec<u8>,
}

impl Preprocessor {
    /// A preprocessor for one configuration.
    ///
    /// # Errors
    /// [`Error::Usage`] if a size bound or the divisor is zero, or a standard deviation is not positive.
    pub fn new(config: PreprocessConfig) -> Result<Self> {
        if config.size.is_some_and(|(short, long)| short == 0 || long == 0) || config.divisor == 0 {
            return Err(Error::usage(format!(
                "image size {:?} with divisor {} leaves no pixels",
                config.size, config.divisor
            )));
        }
        if !config.std.iter().all(|&s| s > 0.0) {
            return Err(Error::usage(format!("standard deviations {:?} must be positive", config.std)));
        }
        let mut table = Box::new([[0.0; 256]; 3]);
        for c in 0..3 {
            let (mean, scale) = (f64::from(config.mean[c]), 1.0 / f64::from(config.std[c]));
            for (v, out) in table[c].iter_mut().enumerate() {
                *out = (f64::from((v as f64 - mean) as f32) * scale) as f32;
            }
        }
        Ok(Preprocessor { config, table, resizer: None, converted: Vec::new() })
    }

    /// The configuration.
    pub fn config(&self) -> &PreprocessConfig {
        &self.config
    }

    /// Sizes that an image of `height` x `width` takes.
    pub fn geometry(&self, height: usize, width: usize) -> Geometry {
        let original = (height, width);
        let resized = match self.config.size {
            Some((short, long)) => keep_ratio_size(height, width, short, long),
            None => original,
        };
        let pad = |side: usize| side.next_multiple_of(self.config.divisor);
        Geometry { original, resized, padded: (pad(resized.0), pad(resized.1)) }
    }

    /// Writes the network input of `image` into `out`, NHWC `[1, padded height, padded width, 3]`, and
    /// returns the sizes.
    ///
    /// # Errors
    /// [`Error::Shape`] if `out` has another length than [`Geometry::input_len`]; [`Error::Usage`] if the
    /// image has no pixels, or has them in device memory.
    pub fn run<'a>(&mut self, image: impl Into<ImageView<'a>>, out: &mut [f32]) -> Result<Geometry> {
        let image = image.into();
        let source = image.size();
        image.format().check(source)?;
        let geometry = self.geometry(source.0, source.1);
        if out.len() != geometry.input_len() {
            return Err(Error::Shape {
                op: "preprocess",
                value: "input".into(),
                reason: format!(
                    "a {source:?} image needs a [1, {}, {}, 3] input, the buffer has {} elements",
                    geometry.padded.0,
                    geometry.padded.1,
                    out.len()
                ),
            });
        }
        let sizes = (source, geometry.resized);
        let resizer = match &mut self.resizer {
            Some(resizer) if resizer.sizes() == sizes => resizer,
            stale => stale.insert(Resizer::new(sizes.0, sizes.1)),
        };
        let pixels = match image.as_rgb() {
            Some(pixels) => pixels,
            None => {
                self.converted.resize(3 * source.0 * source.1, 0);
                image.to_rgb(&mut self.converted)?;
                &self.converted
            }
        };
        let stride = geometry.padded.1 * 3;
        let table = &self.table;
        resizer.rows_into(pixels, out, stride, |pixels, row| {
            let (inside, padding) = row.split_at_mut(pixels.len());
            for (out, rgb) in inside.as_chunks_mut::<3>().0.iter_mut().zip(pixels.as_chunks::<3>().0) {
                for c in 0..3 {
                    out[c] = table[c][usize::from(rgb[c])];
                }
            }
            padding.fill(0.0);
        });
        out[geometry.resized.0 * stride..].fill(0.0);
        Ok(geometry)
    }
}
