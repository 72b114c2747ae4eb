//! What the model sees: a few photos on one sheet, each as annotated and, beside it, with the model's masks.

use std::borrow::Cow;
use std::path::Path;

use image::RgbImage;
use image::imageops::{FilterType, replace, resize};

use crate::engine::Engine;
use crate::error::Result;
use crate::image::bitmask::BitMask;
use crate::image::classes::Class;
use crate::image::overlay::{Layer, draw, instance_layers, name, panoptic_layers, semantic_layers};
use crate::image::palette::distinct;
use crate::image::picture::write_rgb;
use crate::image::text;
use crate::task::Found;
use crate::train::data::{Mix, Sample};

/// Side of a photo's place on the sheet, pixels.
const TILE: u32 = 320;
/// Photos side by side, each in two places.
const PHOTOS: u32 = 2;
/// What the places of a photo show.
const TITLES: [&str; 2] = ["annotated", "model"];
/// Height of the titles, pixels.
const HEADER: u32 = 24;
/// Instances that score lower are not drawn.
const MIN_SCORE: f32 = 0.3;

/// The photos of a sheet: always the same, spread over those that have objects.
#[derive(Debug)]
pub struct Samples {
    photos: Vec<Photo>,
}

/// A photo, and how it is annotated.
#[derive(Debug)]
struct Photo {
    image: RgbImage,
    annotated: RgbImage,
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
        let photo = |i| {
            let sample = mix.load(i)?;
            let annotated = tile(&draw(&sample.image, &truth_layers(&sample, mix.classes(), mix.things()))?);
            Ok(Photo { image: sample.image, annotated })
        };
        Ok(Samples { photos: chosen.map(photo).collect::<Result<_>>()? })
    }

    /// Segments the photos and writes the sheet as PNG.
    ///
    /// # Errors
    /// As [`Engine::segment`] and [`write_rgb`].
    pub fn write(&self, engine: &mut Engine, path: &Path) -> Result<()> {
        let classes = engine.classes();
        let count = self.photos.len() as u32;
        let (columns, rows) = (count.clamp(1, PHOTOS), count.div_ceil(PHOTOS).max(1));
        let mut sheet = RgbImage::new(2 * columns * TILE, HEADER + rows * TILE);
        let em = HEADER as f32 * 0.6;
        for (column, title) in (0..2 * columns).zip(TITLES.into_iter().cycle()) {
            let (x, baseline) = ((column * TILE) as f32 + em / 2.0, HEADER as f32 * 0.72);
            text::draw(&mut sheet, title, x, baseline, em, [255; 3]);
        }
        for (index, photo) in (0..).zip(&self.photos) {
            let found = engine.segment(&photo.image)?;
            let layers = match found.found() {
                Found::Panoptic(map) => panoptic_layers(map, &classes),
                Found::Semantic(map) => semantic_layers(map, &classes),
                Found::Instance(instances) => instance_layers(instances, &classes, MIN_SCORE),
            };
            let model = tile(&draw(&photo.image, &layers)?);
            let (x, y) = (index % PHOTOS * 2 * TILE, HEADER + index / PHOTOS * TILE);
            replace(&mut sheet, &photo.annotated, x.into(), y.into());
            replace(&mut sheet, &model, (x + TILE).into(), y.into());
        }
        write_rgb(path, &sheet)
    }
}

/// A picture at the size of its place.
fn tile(picture: &RgbImage) -> RgbImage {
    let (width, height) = picture.dimensions();
    let scale = f64::from(TILE) / f64::from(width.max(height));
    let side = |side: u32| ((f64::from(side) * scale).round() as u32).clamp(1, TILE);
    resize(picture, side(width), side(height), FilterType::Triangle)
}

/// What is annotated on a photo: objects in distinct colours, regions (all classes from `things` on) in the
/// colour of their class.
fn truth_layers(sample: &Sample, classes: &[Class], things: usize) -> Vec<Layer<'static>> {
    let (height, width) = (sample.image.height() as usize, sample.image.width() as usize);
    let layer = |class: usize, colour, mask: BitMask| Layer {
        mask: Cow::Owned(mask),
        colour,
        label: name(classes, class).into_owned(),
    };
    let objects = sample.objects.iter().enumerate().map(|(n, object)| {
        let mask = BitMask::from_fn(height, width, |y, x| object.mask.contains(x, y));
        layer(object.class, distinct(n), mask)
    });
    let regions = sample.semantic.iter().flat_map(|map| {
        let present = |class: usize| map.as_raw().iter().any(|&value| usize::from(value) == class);
        (things..classes.len()).filter(move |&class| present(class)).map(move |class| {
            let inside = |y: usize, x: usize| usize::from(map.as_raw()[y * width + x]) == class;
            layer(class, classes[class].colour, BitMask::from_fn(height, width, inside))
        })
    });
    objects.chain(regions).collect()
}
