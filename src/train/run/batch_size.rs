//! How many images a step has, as a configuration says it.

use std::fmt;

use serde::de::{Deserializer, Visitor};
use serde::{Deserialize, Serialize, Serializer};

/// Images of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BatchSize {
    /// So many.
    Images(usize),
    /// As many as there is memory for, `"auto"`: [`largest_batch`](super::forecast::largest_batch). A run
    /// that has begun keeps its number.
    Largest,
}

const AUTO: &str = "auto";

impl BatchSize {
    /// The number, if it is one.
    pub fn images(self) -> Option<usize> {
        match self {
            BatchSize::Images(images) => Some(images),
            BatchSize::Largest => None,
        }
    }
}

impl Default for BatchSize {
    fn default() -> Self {
        BatchSize::Images(2)
    }
}

impl Serialize for BatchSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            BatchSize::Images(images) => images.serialize(serializer),
            BatchSize::Largest => AUTO.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for BatchSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Value)
    }
}

struct Value;

impl Visitor<'_> for Value {
    type Value = BatchSize;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a number of images or \"{AUTO}\"")
    }

    fn visit_u64<E: serde::de::Error>(self, images: u64) -> Result<BatchSize, E> {
        usize::try_from(images).map(BatchSize::Images).map_err(E::custom)
    }

    fn visit_i64<E: serde::de::Error>(self, images: i64) -> Result<BatchSize, E> {
        let refused = || E::invalid_value(serde::de::Unexpected::Signed(images), &self);
        usize::try_from(images).map(BatchSize::Images).map_err(|_| refused())
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<BatchSize, E> {
        match text {
            AUTO => Ok(BatchSize::Largest),
            _ => Err(E::invalid_value(serde::de::Unexpected::Str(text), &self)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_or_auto() {
        let read = |text: &str| serde_json::from_str::<BatchSize>(text);
        for (text, batch) in [("3", BatchSize::Images(3)), ("\"auto\"", BatchSize::Largest)] {
            assert_eq!(read(text).unwrap(), batch);
            assert_eq!(serde_json::to_string(&batch).unwrap(), text);
        }
        for text in ["-1", "1.5", "\"large\"", "true"] {
            let error = read(text).unwrap_err().to_string();
            assert!(error.contains("expected a number of images or \"auto\""), "{error}");
        }
    }
}
