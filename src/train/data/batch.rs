//! The arrays of a training step.

use super::dataset::IGNORE;
use super::frame::Frame;
use super::random::Draw;
use crate::error::{Error, Result};
use crate::image::preprocess::{PreprocessConfig, Preprocessor};
use image::{Rgb, RgbImage};

/// Masks are given at this stride.
pub const STRIDE: usize = 4;

/// What a training step takes: B images of `[H, W]`, with up to G objects each or, for semantic models, with
/// the class of each pixel. All buffers are reused from batch to batch.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    /// Height and width of the padded images, multiples of 32.
    pub size: [usize; 2],
    /// `[B, H, W, 3]`, R G B, `(x - mean) / std`, zeros where there is no image.
    pub images: Vec<f32>,
    /// `[B, G, H/4, W/4]`: soft targets, the 0/1 masks resized to stride 4 (bilinear,
    /// `align_corners = False`, no antialiasing: the mean of the central 2 x 2 pixels of each 4 x 4 block).
    /// Zeros in unused slots.
    pub masks: Vec<f32>,
    /// `[B, G]`: class index (things first, then stuff), -1 in unused slots.
    pub labels: Vec<i32>,
    /// `[B, H * W]`: class index of each pixel, -1 where there is none; empty if there are objects.
    pub classes: Vec<i32>,
    /// For each image the number of thing slots, which come first; the stuff classes present follow,
    /// ascending.
    pub things: Vec<usize>,
    /// For each image the number of slots used.
    pub objects: Vec<usize>,
    /// Image ids, for messages.
    pub ids: Vec<u64>,
    /// Objects left out of this batch because an image had more than G; which ones is random.
    pub left_out: usize,
}

/// What the predictions of an image are compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Targets {
    /// Masks of at most so many objects, stuff included (G).
    Objects(usize),
    /// The class of each pixel.
    Pixels,
}

impl Targets {
    /// Object slots and pixels of an image of `size`.
    fn of_image(self, [height, width]: [usize; 2]) -> (usize, usize) {
        match self {
            Targets::Objects(slots) => (slots, 0),
            Targets::Pixels => (0, height * width),
        }
    }
}

impl Batch {
    /// Empty buffers for `images` images of `size`.
    pub(super) fn new(images: usize, targets: Targets, size: [usize; 2]) -> Self {
        let [height, width] = size;
        let (objects, pixels) = targets.of_image(size);
        Batch {
            size,
            images: vec![0.0; images * height * width * 3],
            masks: vec![0.0; images * objects * (height / STRIDE) * (width / STRIDE)],
            labels: vec![-1; images * objects],
            classes: vec![-1; images * pixels],
            things: vec![0; images],
            objects: vec![0; images],
            ids: vec![0; images],
            left_out: 0,
        }
    }

    /// Bytes of [`Batch::new`], which the limits of the loader keep from overflowing.
    pub(super) fn bytes(images: usize, targets: Targets, size: [usize; 2]) -> usize {
        let [height, width] = size;
        let (objects, pixels) = targets.of_image(size);
        let numbers = height * width * 3 + objects * ((height / STRIDE) * (width / STRIDE) + 1) + pixels;
        images * numbers * size_of::<f32>()
    }

    /// Image slots B.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// True if there is no image slot, which the loader refuses.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// Object slots G of each image, 0 if it has the class of each pixel.
    pub fn slots(&self) -> usize {
        self.labels.len() / self.ids.len().max(1)
    }
}

/// 8-bit values to network inputs, each channel by a table: exactly what [`Preprocessor`] makes of them.
pub(super) struct Normalise([[f32; 256]; 3]);

impl Normalise {
    /// # Errors
    /// [`Error::Usage`] if a standard deviation is not positive.
    pub(super) fn new(mean: [f32; 3], std: [f32; 3]) -> Result<Self> {
        let config = PreprocessConfig { size: None, mean, std, divisor: 1 };
        let ramp = RgbImage::from_fn(256, 1, |x, _| Rgb([x as u8; 3]));
        let mut out = vec![0.0; 256 * 3];
        Preprocessor::new(config)?.run(&ramp, &mut out)?;
        let mut table = [[0.0; 256]; 3];
        for (v, pixel) in out.as_chunks::<3>().0.iter().enumerate() {
            for c in 0..3 {
                table[c][v] = pixel[c];
            }
        }
        if table.as_flattened().iter().any(|v| !v.is_finite()) {
            return Err(Error::usage(format!("mean {mean:?} and std {std:?} give no finite values")));
        }
        Ok(Normalise(table))
    }
}

/// What the labels of a slot are made from.
pub(super) struct Labelling {
    /// Number of thing classes.
    pub things: usize,
    /// Number of classes.
    pub classes: usize,
    /// Objects of which fewer pixels than this are left vanish.
    pub min_area: usize,
}

impl Batch {
    /// Writes `frame` into image slot `slot`.
    pub(super) fn put(
        &mut self,
        slot: usize,
        frame: &Frame,
        normalise: &Normalise,
        labelling: &Labelling,
        draw: &mut Draw,
    ) {
        self.put_pixels(slot, frame, normalise);
        match self.classes.is_empty() {
            true => self.put_objects(slot, frame, labelling, draw),
            false => self.put_classes(slot, frame, labelling),
        }
    }

    /// Writes the class of each pixel.
    fn put_classes(&mut self, slot: usize, frame: &Frame, labelling: &Labelling) {
        let [height, width] = self.size;
        let out = &mut self.classes[slot * height * width..][..height * width];
        out.fill(-1);
        let rows = out.chunks_exact_mut(width).zip(frame.semantic.chunks_exact(frame.width.max(1)));
        for (out, row) in rows {
            for (out, &class) in out.iter_mut().zip(row) {
                *out = if usize::from(class) < labelling.classes { i32::from(class) } else { -1 };
            }
        }
    }

    /// Writes masks and labels. Vanished objects are dropped: those with less than `min_area` pixels, and
    /// those so thin that no target pixel sees them.
    fn put_objects(&mut self, slot: usize, frame: &Frame, labelling: &Labelling, draw: &mut Draw) {
        let slots = self.slots();
        let pixels = self.masks.len() / self.labels.len();
        let masks = &mut self.masks[slot * slots * pixels..][..slots * pixels];
        let labels = &mut self.labels[slot * slots..][..slots];
        masks.fill(0.0);
        labels.fill(-1);

        // What is there: things in their order, then stuff by class.
        let mut present: Vec<Target> = Vec::new();
        for (i, object) in frame.objects.iter().enumerate() {
            let seen = central(object.mask.y, object.mask.height).any(|y| {
                let row = object.mask.row(y - object.mask.y);
                central(object.mask.x, object.mask.width).any(|x| row[x - object.mask.x] != 0)
            });
            if seen && object.mask.area() >= labelling.min_area {
                present.push(Target::Thing(i));
            }
        }
        let mut things = present.len();
        if !frame.semantic.is_empty() {
            let mut stuff = [false; 256];
            for y in central(0, frame.height) {
                let row = &frame.semantic[y * frame.width..][..frame.width];
                for x in central(0, frame.width) {
                    stuff[usize::from(row[x])] = true;
                }
            }
            let classes = labelling.things..labelling.classes.min(usize::from(IGNORE));
            present.extend(classes.filter(|&c| stuff[c]).map(Target::Stuff));
        }
        if present.len() > slots {
            self.left_out += present.len() - slots;
            let mut chosen: Vec<usize> = (0..present.len()).collect();
            draw.shuffle(&mut chosen);
            chosen.truncate(slots);
            chosen.sort_unstable();
            present = chosen.into_iter().map(|i| present[i]).collect();
            things = present.iter().filter(|t| matches!(t, Target::Thing(_))).count();
        }

        let across = self.size[1] / STRIDE;
        let mut slot_of = [None; 256];
        for (i, target) in present.iter().enumerate() {
            match *target {
                Target::Thing(object) => {
                    let object = &frame.objects[object];
                    labels[i] = object.class as i32;
                    let out = &mut masks[i * pixels..][..pixels];
                    let mask = &object.mask;
                    for y in central(mask.y, mask.height) {
                        let row = mask.row(y - mask.y);
                        let out = &mut out[y / STRIDE * across..][..across];
                        for x in central(mask.x, mask.width) {
                            out[x / STRIDE] += 0.25 * f32::from(row[x - mask.x]);
                        }
                    }
                }
                Target::Stuff(class) => {
                    labels[i] = class as i32;
                    slot_of[class] = Some(i);
                }
            }
        }
        if present.len() > things {
            for y in central(0, frame.height) {
                let row = &frame.semantic[y * frame.width..][..frame.width];
                for x in central(0, frame.width) {
                    if let Some(i) = slot_of[usize::from(row[x])] {
                        masks[i * pixels + y / STRIDE * across + x / STRIDE] += 0.25;
                    }
                }
            }
        }
        self.things[slot] = things;
        self.objects[slot] = present.len();
    }

    fn put_pixels(&mut self, slot: usize, frame: &Frame, Normalise(table): &Normalise) {
        let [height, width] = self.size;
        let out = &mut self.images[slot * height * width * 3..][..height * width * 3];
        for (y, out) in out.chunks_exact_mut(width * 3).enumerate() {
            if !frame.visible.y.contains(&y) {
                out.fill(0.0);
                continue;
            }
            let x = frame.visible.x.clone();
            let row = &frame.rgb[(y * frame.width + x.start) * 3..][..x.len() * 3];
            out[..x.start * 3].fill(0.0);
            let inside = out[x.start * 3..x.end * 3].as_chunks_mut::<3>().0;
            for (out, pixel) in inside.iter_mut().zip(row.as_chunks::<3>().0) {
                for c in 0..3 {
                    out[c] = table[c][usize::from(pixel[c])];
                }
            }
            out[x.end * 3..].fill(0.0);
        }
    }
}

#[derive(Clone, Copy)]
enum Target {
    Thing(usize),
    Stuff(usize),
}

/// The positions from `start` on that a target pixel reads: the middle two of each four.
fn central(start: usize, length: usize) -> impl Iterator<Item = usize> {
    (start..start + length).filter(|v| matches!(v % STRIDE, 1 | 2))
}
