//! Everything between an image file and the network input, and between mask logits and the user's result.
//!
//! ```text
//! file -> decode -> RGB8 -> preprocess (resize, normalise, pad) -> NHWC f32 -> network
//! network -> mask + class logits
//!         -> instance | panoptic (resize of masks, threshold | arg-max) -> overlay, output
//! network -> class logits -> semantic (resize, arg-max) -> overlay, output
//! ```

pub mod bitmask;
pub mod classes;
pub mod decode;
#[cfg(feature = "train")]
pub(crate) mod glance;
pub mod instance;
mod label;
pub mod legend;
pub mod listing;
mod mask_resize;
pub mod outline;
pub mod output;
pub mod overlay;
pub mod palette;
pub mod panoptic;
mod parts;
pub mod picture;
pub mod preprocess;
pub mod resize;
pub mod rle;
pub mod semantic;
pub mod text;
pub mod view;
mod worker_pool;

/// The crate `image` in the version whose pictures this crate takes: `knet::image::image_rs::open(path)`.
pub use ::image as image_rs;
pub use ::image::{DynamicImage, RgbImage};

pub use view::ImageView;

use crate::error::{Error, Result};
use mask_resize::{Alignment, MaskSampler};
use preprocess::Geometry;

/// What the last stage of the kernel update head says about one image.
#[derive(Clone, Copy, Debug)]
pub struct HeadOutput<'a> {
    /// Number of objects N.
    pub objects: usize,
    /// Number of classes C.
    pub classes: usize,
    /// Class logits `[N, C]`.
    pub class_logits: &'a [f32],
    /// Height and width of a mask: the padded size over 8 (upstream `s2.mask_preds`) or over 4 (after its x2
    /// upsampling).
    pub mask_size: (usize, usize),
    /// Mask logits, planar `[N, height, width]`.
    pub mask_logits: &'a [f32],
}

impl HeadOutput<'_> {
    /// The mask logits of one object.
    fn mask(&self, object: usize) -> &[f32] {
        let pixels = self.mask_size.0 * self.mask_size.1;
        &self.mask_logits[object * pixels..][..pixels]
    }

    fn check(&self) -> Result<()> {
        let refuse = |value: &str, found: usize, wanted: &[usize]| {
            Err(Error::Shape {
                op: "postprocess",
                value: value.into(),
                reason: format!("{found} elements do not make a {wanted:?} tensor"),
            })
        };
        let (h, w) = self.mask_size;
        if self.class_logits.len() != self.objects * self.classes {
            return refuse("cls_score", self.class_logits.len(), &[self.objects, self.classes]);
        }
        if self.mask_logits.len() != self.objects * h * w {
            return refuse("mask_preds", self.mask_logits.len(), &[self.objects, h, w]);
        }
        Ok(())
    }
}

/// Makes `slot` hold the tables for these sizes; true if they had to be made.
fn sampler_for(
    slot: &mut Option<MaskSampler>,
    mask_size: (usize, usize),
    geometry: &Geometry,
    alignment: Alignment,
) -> Result<bool> {
    if slot.as_ref().is_some_and(|s| s.fits(mask_size, geometry)) {
        return Ok(false);
    }
    *slot = Some(MaskSampler::new(mask_size, *geometry, alignment)?);
    Ok(true)
}
