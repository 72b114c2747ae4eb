//! Augmentation: what is drawn for a sample, and in which order it is applied.
//!
//! scale and crop (or shift), mirror -> objects pasted from other images -> colour -> blur. All from the
//! sample's own random stream.

use serde::{Deserialize, Serialize};

use super::colour::Colour;
use super::dataset::{IGNORE, Sample};
use super::frame::{Frame, Painter, Placement};
use super::random::Draw;
use crate::error::{Error, Result};

/// Tries to place a crop so that it shows an object, before it is taken as it comes.
const CROP_TRIES: usize = 4;

/// Tries to place a crop so that no class fills it ([`Augment::max_class_share`]): the first and ten more, as
/// mmseg's `RandomCrop` has it.
const CLASS_TRIES: usize = 11;

/// How training images are varied.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Augment {
    /// False: each image is fitted into `size`, top left, as at inference, and nothing is random.
    pub enabled: bool,
    /// Height and width of the training images, pixels.
    pub size: [usize; 2],
    /// Bounds of the random scale, relative to the image fitted into `size`; uniform in the logarithm. What
    /// is larger than `size` is cropped at random, what is smaller is placed at random.
    pub scale: [f64; 2],
    /// A crop of a semantic map is drawn again, up to ten times, while a class has this share of its labelled
    /// pixels or more, or all of them: mmseg's `cat_max_ratio`, 0.75 upstream. 1 takes crops as they come.
    pub max_class_share: f64,
    /// Probability of a mirror image.
    pub flip: f64,
    /// Colour changes.
    pub colour: Colour,
    /// Probability that objects of other images are pasted in.
    pub copy_paste: f64,
    /// Fewest and most objects pasted.
    pub copy_paste_objects: [usize; 2],
    /// Objects of which fewer pixels than this are left vanish.
    pub min_area: usize,
}

impl Default for Augment {
    fn default() -> Self {
        Augment {
            enabled: true,
            size: [512, 512],
            scale: [0.6, 1.6],
            max_class_share: 1.0,
            flip: 0.5,
            colour: Colour::default(),
            copy_paste: 0.0,
            copy_paste_objects: [1, 3],
            min_area: 8,
        }
    }
}

impl Augment {
    /// No augmentation: images fitted into `size` (height, width).
    pub fn off(size: [usize; 2]) -> Self {
        Augment { enabled: false, size, min_area: 1, ..Augment::default() }
    }

    /// Checks every field.
    ///
    /// # Errors
    /// [`Error::Usage`] naming the field.
    pub fn validate(&self) -> Result<()> {
        let check = |ok: bool, what: String| {
            if ok { Ok(()) } else { Err(Error::usage(format!("augmentation: {what}"))) }
        };
        check(
            self.size.iter().all(|s| (1..=16_384).contains(s)),
            format!("size = {:?} must lie between 1 and 16384", self.size),
        )?;
        let [low, high] = self.scale;
        check(
            0.05 <= low && low <= high && high <= 20.0,
            format!("scale = {:?} must ascend within 0.05 to 20", self.scale),
        )?;
        for (name, p) in [("flip", self.flip), ("copy_paste", self.copy_paste)] {
            check((0.0..=1.0).contains(&p), format!("{name} = {p} is no probability"))?;
        }
        let share = self.max_class_share;
        check(
            share > 0.0 && share <= 1.0,
            format!("max_class_share = {share} must be above 0 and at most 1"),
        )?;
        let [few, many] = self.copy_paste_objects;
        check(
            few <= many && many <= 100,
            format!("copy_paste_objects = {:?} must ascend, at most 100", self.copy_paste_objects),
        )?;
        self.colour.validate()
    }

    /// Height and width of the arrays: `size` padded to multiples of 32.
    pub fn padded(&self) -> [usize; 2] {
        self.size.map(|side| side.next_multiple_of(32))
    }

    /// Fills `frame` with `sample`. `donor` gives another random image that has objects.
    pub(super) fn apply(
        &self,
        sample: &Sample,
        draw: &mut Draw,
        mut donor: impl FnMut(&mut Draw) -> Result<std::sync::Arc<Sample>>,
        painter: &mut Painter,
        frame: &mut Frame,
    ) -> Result<()> {
        let source = (sample.image.height() as usize, sample.image.width() as usize);
        [frame.height, frame.width] = self.size;
        if !self.enabled {
            let placement = Placement { size: scaled(source, self.fit(source)), y: 0, x: 0, flip: false };
            painter.place(sample, placement, frame);
            return Ok(());
        }
        let placement = self.draw_placement(sample, source, draw);
        painter.place(sample, placement, frame);
        if draw.chance(self.copy_paste) {
            let [few, many] = self.copy_paste_objects;
            for _ in 0..draw.between(few as i64, many as i64) {
                let donor = donor(draw)?;
                if !donor.objects.is_empty() {
                    self.paste(&donor, draw, painter, frame);
                }
            }
        }
        self.colour.apply(draw, frame);
        Ok(())
    }

    /// The scale that fits an image into `size`.
    fn fit(&self, (height, width): (usize, usize)) -> f64 {
        (self.size[0] as f64 / height as f64).min(self.size[1] as f64 / width as f64)
    }

    fn draw_placement(&self, sample: &Sample, source: (usize, usize), draw: &mut Draw) -> Placement {
        let scale = self.fit(source) * draw.log_uniform(self.scale[0], self.scale[1]);
        let size = scaled(source, scale);
        let flip = draw.chance(self.flip);
        let mut placement = Placement { size, y: 0, x: 0, flip };
        let mixed = sample.semantic.as_ref().filter(|_| self.max_class_share < 1.0);
        for _ in 0..if mixed.is_some() { CLASS_TRIES } else { CROP_TRIES } {
            let mut shift = |frame: usize, side: usize| {
                let slack = frame as i64 - side as i64;
                draw.between(slack.min(0), slack.max(0))
            };
            placement.y = shift(self.size[0], size.0);
            placement.x = shift(self.size[1], size.1);
            let good = match mixed {
                Some(map) => self.is_mixed(&placement.classes(map, self.size)),
                None => sample.objects.is_empty() || self.shows_an_object(sample, source, placement),
            };
            if good {
                break;
            }
        }
        placement
    }

    /// True of a crop with more than one class, none of which has more of it than it may.
    fn is_mixed(&self, pixels: &[usize; 256]) -> bool {
        let labelled = &pixels[..usize::from(IGNORE)];
        let (all, most) = (labelled.iter().sum::<usize>(), labelled.iter().copied().max().unwrap_or(0));
        most < all && (most as f64) < self.max_class_share * all as f64
    }

    /// True if the centre of an object's box lies in the frame.
    fn shows_an_object(&self, sample: &Sample, source: (usize, usize), placement: Placement) -> bool {
        sample.objects.iter().any(|object| {
            let m = &object.mask;
            let along = |at: usize, length: usize, source: usize, scaled: usize| {
                (((2 * at + length) * scaled) / (2 * source)) as i64
            };
            let y = placement.y + along(m.y, m.height, source.0, placement.size.0);
            let x = along(m.x, m.width, source.1, placement.size.1);
            let x = placement.x + if placement.flip { placement.size.1 as i64 - x } else { x };
            (0..self.size[0] as i64).contains(&y) && (0..self.size[1] as i64).contains(&x)
        })
    }

    /// Pastes a random object of `donor` so that its centre lies somewhere in the image.
    fn paste(&self, donor: &Sample, draw: &mut Draw, painter: &mut Painter, frame: &mut Frame) {
        let source = (donor.image.height() as usize, donor.image.width() as usize);
        let object = &donor.objects[draw.below(donor.objects.len())];
        let scale = self.fit(source) * draw.log_uniform(self.scale[0], self.scale[1]);
        let flip = draw.chance(self.flip);
        let size = scaled(source, scale);
        if frame.visible.x.is_empty() || frame.visible.y.is_empty() {
            return;
        }
        let centre = |at: usize, length: usize, source: usize, scaled: usize| {
            ((2 * at + length) * scaled / (2 * source)) as i64
        };
        let m = &object.mask;
        let y = centre(m.y, m.height, source.0, size.0);
        let x = centre(m.x, m.width, source.1, size.1);
        let x = if flip { size.1 as i64 - x } else { x };
        let to_y = (frame.visible.y.start + draw.below(frame.visible.y.len())) as i64;
        let to_x = (frame.visible.x.start + draw.below(frame.visible.x.len())) as i64;
        let placement = Placement { size, y: to_y - y, x: to_x - x, flip };
        painter.paste(donor, object, placement, self.min_area, frame);
    }
}

/// Sides of an image under a scale, rounded as mmcv does (`int(side * scale + 0.5)`), at least 1.
fn scaled((height, width): (usize, usize), scale: f64) -> (usize, usize) {
    let side = |v: usize| ((v as f64 * scale + 0.5) as usize).max(1);
    (side(height), side(width))
}

/// Sets up what [`Augment::apply`] needs beside the configuration.
#[derive(Default)]
pub(super) struct Workspace {
    pub painter: Painter,
    pub frame: Frame,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::data::random::Purpose;
    use image::{GrayImage, Luma, RgbImage};

    /// Class 1 in the right tenth of a wide photo, nothing in its lowest rows, class 0 elsewhere.
    fn sample() -> Sample {
        let (width, height) = (200, 40);
        let class = |x, y| match (x, y) {
            (_, 36..) => IGNORE,
            (180.., _) => 1,
            _ => 0,
        };
        Sample {
            id: 0,
            file: "photo.png".into(),
            image: RgbImage::new(width, height),
            objects: Vec::new(),
            semantic: Some(GrayImage::from_fn(width, height, |x, y| Luma([class(x, y)]))),
        }
    }

    /// How many of a hundred crops of 40x40 show both classes, none of them more than three quarters.
    fn mixed_crops(max_class_share: f64) -> usize {
        let augment = Augment { size: [40, 40], scale: [5.0, 5.0], max_class_share, ..Augment::default() };
        augment.validate().unwrap();
        let (sample, mut workspace) = (sample(), Workspace::default());
        let mut mixed = 0;
        for seed in 0..100 {
            let Workspace { painter, frame } = &mut workspace;
            let donor = |_: &mut Draw| unreachable!("nothing is pasted");
            augment
                .apply(&sample, &mut Draw::new(Purpose::Sample, seed, 0, 0), donor, painter, frame)
                .unwrap();
            let count = |class| frame.semantic.iter().filter(|&&c| c == class).count();
            let (zero, one) = (count(0), count(1));
            mixed += usize::from(zero.min(one) > 0 && 4 * zero.max(one) < 3 * (zero + one));
        }
        mixed
    }

    #[test]
    fn crops_that_one_class_fills_are_drawn_again() {
        // A crop of 40 of 200 columns is mixed when its left edge is one of 11 of 161: 1 in 15 as they come,
        // 1 - (14/15)^11, a half, with eleven tries.
        let (as_they_come, drawn_again) = (mixed_crops(1.0), mixed_crops(0.75));
        assert!((1..=15).contains(&as_they_come), "{as_they_come} of 100");
        assert!((38..=70).contains(&drawn_again), "{drawn_again} of 100");
    }
}
