//! Backbones: what lies under the pyramid. Each is one file with its fields, what they may be, what it builds
//! and how it is known in a checkpoint.
//!
//! Another one is such a file, its `mod` and a line in the list below.

pub mod efficientnet_lite;
pub mod resnet;
pub mod swin;

pub use efficientnet_lite::EfficientNetLite;
pub use resnet::{ResNet, Stem};
pub use swin::Swin;

use super::Normalization;
use super::evidence::Evidence;
use crate::error::{Error, Result};
use crate::graph::{Builder, Graph, ValueId};
use serde::{Deserialize, Serialize};

/// What the names of a backbone's parameters start with in a model, but not in a classifier's `state_dict`.
pub const PREFIX: &str = "backbone.";

/// What a backbone says of itself.
pub(super) trait Part: Sized {
    /// How its ImageNet weights want their pixels.
    const NORMALIZATION: Normalization = Normalization::IMAGENET;

    /// Whether our models with it are the small ones, for small images.
    const SMALL: bool = false;

    /// How many parts of a value's name, between dots, make that of its [stretch](Backbone::stretch).
    const STRETCH: usize;

    /// What the names of those parameters of its classifier start with, in a model, that no model uses.
    const CLASSIFIER: &'static [&'static str];

    /// Name such as `resnet50`.
    fn name(&self) -> String;

    /// Name within that of a model, such as `r50` of `knet_s3_r50_fpn`.
    fn short_name(&self) -> String;

    /// The one of this short name.
    fn named(short: &str) -> Option<Self>;

    /// A sentence on a field that cannot be.
    fn validate(&self) -> Result<(), String>;

    /// Strides of the four levels, in pixels of the image.
    fn strides(&self) -> [usize; 4];

    /// Its levels C2 to C5 over `image`, `[B, H, W, 3]`.
    fn build(&self, b: &mut Builder, image: ValueId) -> Result<Vec<ValueId>>;

    /// The backbone of a model that has these tensors, if it is one of these. What had to be assumed is
    /// noted.
    fn recognise(found: &Evidence<'_>, notes: &mut Vec<String>) -> Result<Option<Self>, String>;

    /// The classifier that has these tensors, if it has one of these, and its number of classes.
    fn recognise_classifier(_found: &Evidence<'_>) -> Option<(Self, usize)> {
        None
    }

    /// The ImageNet classifier over it, if it is known, for `batch` images of `size`.
    fn classifier(&self, _batch: usize, _size: [usize; 2], _classes: usize) -> Option<Result<Graph>> {
        None
    }
}

macro_rules! backbones {
    ($($name:ident = $tag:literal;)*) => {
        /// The network under the pyramid.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(tag = "type")]
        pub enum Backbone {
            $(#[doc = concat!("See [`", stringify!($name), "`].")] #[serde(rename = $tag)] $name($name)),*
        }

        $(impl From<$name> for Backbone {
            fn from(backbone: $name) -> Backbone {
                Backbone::$name(backbone)
            }
        })*

        impl Backbone {
            /// Name such as `resnet50` or `efficientnet_lite0`.
            pub fn name(&self) -> String {
                match self { $(Backbone::$name(part) => part.name()),* }
            }

            /// Name within that of a model, such as `r50` of `knet_s3_r50_fpn`.
            pub fn short_name(&self) -> String {
                match self { $(Backbone::$name(part) => part.short_name()),* }
            }

            /// The one of this short name.
            pub(super) fn named(short: &str) -> Option<Backbone> {
                [$($name::named(short).map(Backbone::$name)),*].into_iter().flatten().next()
            }

            /// A sentence on a field that cannot be.
            pub(super) fn validate(&self) -> Result<(), String> {
                match self { $(Backbone::$name(part) => part.validate()),* }
            }

            /// Strides of the four levels, in pixels of the image.
            pub fn strides(&self) -> [usize; 4] {
                match self { $(Backbone::$name(part) => part.strides()),* }
            }

            /// How its ImageNet weights want their pixels.
            pub fn normalization(&self) -> Normalization {
                match self { $(Backbone::$name(_) => $name::NORMALIZATION),* }
            }

            /// The stretch that a value of this name belongs to: one whose maps take much memory to keep for
            /// a backward pass, and little work to make again from what goes into it and its levels.
            pub fn stretch<'n>(&self, name: &'n str) -> Option<&'n str> {
                let parts = match self { $(Backbone::$name(_) => $name::STRETCH),* };
                let end = name.match_indices('.').nth(parts - 1).map_or(name.len(), |(at, _)| at);
                name.starts_with(PREFIX).then_some(&name[..end])
            }

            /// Whether our models with it are the small ones.
            pub(super) fn is_small(&self) -> bool {
                match self { $(Backbone::$name(_) => $name::SMALL),* }
            }

            /// Its levels C2 to C5 over `image`, `[B, H, W, 3]`.
            ///
            /// # Errors
            /// [`Error::Shape`] if the image is too small.
            pub(super) fn build(&self, b: &mut Builder, image: ValueId) -> Result<Vec<ValueId>> {
                match self { $(Backbone::$name(part) => part.build(b, image)),* }
            }

            /// The backbone of a model that has these tensors. What had to be assumed is noted.
            ///
            /// # Errors
            /// A sentence on what contradicts itself.
            pub fn recognise(
                found: &Evidence<'_>,
                notes: &mut Vec<String>,
            ) -> Result<Option<Backbone>, String> {
                $(if let Some(part) = $name::recognise(found, notes)? {
                    return Ok(Some(Backbone::$name(part)));
                })*
                Ok(None)
            }

            /// The classifier that has these tensors, and its number of classes.
            pub fn recognise_classifier(found: &Evidence<'_>) -> Option<(Backbone, usize)> {
                $(if let Some((part, classes)) = $name::recognise_classifier(found) {
                    return Some((Backbone::$name(part), classes));
                })*
                None
            }

            /// The ImageNet classifier over it for `batch` images of `size` (height, width): see the
            /// backbone's own file.
            ///
            /// # Errors
            /// [`Error::Usage`] if none is known, or for a size without pixels.
            pub fn classifier(&self, batch: usize, size: [usize; 2], classes: usize) -> Result<Graph> {
                let known = match self { $(Backbone::$name(part) => part.classifier(batch, size, classes)),* };
                let unknown = || {
                    Err(Error::usage(format!("no classifier is known for backbone `{}`", self.name())))
                };
                known.unwrap_or_else(unknown)
            }
        }

        /// What the names of classifiers' parameters start with that come with the weights of a backbone and
        /// have no use in a model.
        pub fn classifier_prefixes() -> impl Iterator<Item = &'static str> {
            [$($name::CLASSIFIER),*].into_iter().flatten().copied()
        }
    };
}
backbones! {
    ResNet = "resnet";
    EfficientNetLite = "efficientnet_lite";
    Swin = "swin";
}

impl Backbone {
    /// The configuration as JSON, for the metadata of a checkpoint.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }
}
