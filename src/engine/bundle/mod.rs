//! A model compiled into one file, for these sizes of the network's input and these devices: it opens without
//! packing and without a compiler, and what sessions read of it lies mapped.
//!
//! The file is a sealed safetensors file: any reader of that format lists it. Its metadata hold the model's
//! configuration, as in a checkpoint, and the [`Manifest`]: by which selections plans were made, and for
//! which sizes. The tensors are constants as kernels read them and compiled code, by name.
//!
//! A plan is not in it. It is a pure function of configuration, size and selection, and making it takes
//! milliseconds, as reading one and checking that it overwrites nothing would. What a plan of another version
//! of knet might ask for has another name, and is not found; bundles of other versions are refused before.
//!
//! The checksum keeps out accidents, not people: a bundle for a GPU holds code that the GPU will run. Open
//! what you would run as a program.

mod compile;
mod manifest;
mod open;

pub use compile::{Compiled, For, compile};
pub use manifest::{MANIFEST_KEY, Manifest, Target};
pub(super) use open::{Opened, open};
pub use open::{is_bundle, read};
