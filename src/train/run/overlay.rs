//! What the model sees: a few photos with its masks on one sheet.

use std::path::Path;

use image::RgbImage;
use image::imageops::{FilterType, replace, resize};

use crate::engine::Engine;
use crate::error::Result;
use crate::image::overlay::{draw, instance_layers, panoptic_layers};
use crate::image::picture::write_rgb;
use crate::train::data::Mix;

/// Side of a photo's place on the sheet, pixels.
const TILE: u32 = 320;
/// Photos side by side.
const COLUMNS: u32 = 4;
/// Instances that score lower are not drawn.
const MIN_SCORE: f32 = 0.3;

/// The photos of a sheet: always the same, spread over those that have objects.
#[derive(Debug)]
pub struct Samples {
    photos: Vec<RgbImage>,
}

impl Samples {
    /// Loads `count` photos.
    ///
    /// # Errors
    /// As [`Mix::load`].
    pub fn load(mix: &Mix, count: usize) -> Result<Samples> {
        let labelled: Vec<usize> = (0..mix.len()).filter(|&i| mix.objects(i) > 0).collect();
        let count = count.min(labelled.len());
        let chosen = (0..count).map(|i| labelled[i * labelled.len() / count]);
        let photos = chosen.map(|i| Ok(mix.load(i)?.image)).collect::<Result<_>>()?;
        Ok(Samples { photos })
    }

    /// Segments the photos and writes the sheet as PNG.
    ///
    /// # Errors
    /// As [`Engine::segment`] and [`write_rgb`].
    pub fn write(&self, engine: &mut Engine, path: &Path) -> Result<()> {
        let classes = engine.classes();
        let count = self.photos.len() as u32;
        let (columns, rows) = (count.clamp(1, COLUMNS), count.div_ceil(COLUMNS).max(1));
        let mut sheet = RgbImage::new(columns * TILE, rows * TILE);
        for (index, photo) in (0..).zip(&self.photos) {
            let found = engine.segment(photo)?;
            let layers = match found.panoptic() {
                Some(panoptic) => panoptic_layers(panoptic, &classes),
                None => instance_layers(found.instance_result(), &classes, MIN_SCORE),
            };
            let picture = draw(photo, &layers)?;
            let scale = f64::from(TILE) / f64::from(photo.width().max(photo.height()));
            let side = |side: u32| ((f64::from(side) * scale).round() as u32).clamp(1, TILE);
            let picture = resize(&picture, side(photo.width()), side(photo.height()), FilterType::Triangle);
            let (x, y) = (index % COLUMNS * TILE, index / COLUMNS * TILE);
            replace(&mut sheet, &picture, x.into(), y.into());
        }
        write_rgb(path, &sheet)
    }
}
