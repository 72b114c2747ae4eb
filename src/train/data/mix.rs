//! Several data sets seen as one.

use super::dataset::{DataConfig, Dataset, Reading, Sample};
use super::warning::list;
use crate::error::{Error, Result};
use crate::image::classes::Class;

/// Several data sets seen as one.
#[derive(Clone, Debug)]
pub struct Mix {
    sets: Vec<Dataset>,
    /// Set and place in it of each image.
    places: Vec<(usize, usize)>,
    /// `repeat` of each set.
    repeats: Vec<f64>,
}

impl Mix {
    /// Opens all sets; see [`Dataset::open`].
    ///
    /// # Errors
    /// As [`Dataset::open`]; [`Error::Usage`] if there is no set, a `repeat` is not positive and finite, or
    /// the classes of two sets disagree; [`Error::Data`] if no image of any set has an object.
    pub fn open(configs: &[DataConfig], reading: &Reading) -> Result<Mix> {
        let sets = configs.iter().map(|config| Dataset::open(config, reading)).collect::<Result<Vec<_>>>()?;
        Mix::of(sets, configs.iter().map(DataConfig::repeat).collect())
    }

    /// Joins opened sets, each with its `repeat`.
    ///
    /// # Errors
    /// As [`Mix::open`].
    pub(in crate::train) fn of(sets: Vec<Dataset>, repeats: Vec<f64>) -> Result<Mix> {
        let Some(first) = sets.first() else {
            return Err(Error::usage("no data set is given"));
        };
        if let Some(repeat) = repeats.iter().find(|r| !(r.is_finite() && **r > 0.0 && **r <= 1000.0)) {
            return Err(Error::usage(format!("repeat = {repeat} must be above 0 and at most 1000")));
        }
        let names = |set: &Dataset| set.classes.iter().map(|c| c.name.to_string()).collect::<Vec<_>>();
        for set in &sets[1..] {
            if set.things != first.things || names(set) != names(first) {
                return Err(Error::usage(format!(
                    "the classes of {} ({}) are not those of {} ({})",
                    set.source.display(),
                    list(&names(set)),
                    first.source.display(),
                    list(&names(first))
                )));
            }
        }
        if sets.iter().all(|set| (0..set.len()).all(|i| set.objects(i) == 0)) {
            return Err(Error::data(&first.source, "no image has an object of the wanted classes"));
        }
        let places =
            sets.iter().enumerate().flat_map(|(s, set)| (0..set.len()).map(move |i| (s, i))).collect();
        Ok(Mix { sets, places, repeats })
    }

    /// The data sets.
    pub fn sets(&self) -> &[Dataset] {
        &self.sets
    }

    /// The classes, things first.
    pub fn classes(&self) -> &[Class] {
        self.sets[0].classes()
    }

    /// Number of thing classes, which come first.
    pub fn things(&self) -> usize {
        self.sets[0].things()
    }

    /// Number of different images.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// True if there are no images, which [`Mix::open`] refuses.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// [`Dataset::objects`] of an image.
    pub fn objects(&self, index: usize) -> usize {
        let (set, image) = self.places[index];
        self.sets[set].objects(image)
    }

    /// [`Dataset::countable`] of an image.
    pub fn countable(&self, index: usize) -> usize {
        let (set, image) = self.places[index];
        self.sets[set].countable(image)
    }

    /// The file of an image, for messages.
    pub(super) fn name(&self, index: usize) -> String {
        let (set, image) = self.places[index];
        self.sets[set].entries[image].image.display().to_string()
    }

    /// [`DataConfig::repeat`] of the set an image belongs to.
    pub fn repeat(&self, index: usize) -> f64 {
        self.repeats[self.places[index].0]
    }

    /// Reads one image with its masks.
    ///
    /// # Errors
    /// As [`Dataset::load`].
    ///
    /// # Panics
    /// If `index` is not below [`Mix::len`].
    pub fn load(&self, index: usize) -> Result<Sample> {
        let (set, image) = self.places[index];
        self.sets[set].load(image)
    }
}
