//! K-Net (Zhang et al., *K-Net: Towards Unified Image Segmentation*, NeurIPS 2021) from scratch: a set of
//! learned kernels, each refined in three rounds by the pixels it owns, gives instance, panoptic and semantic
//! masks without boxes and without non-maximum suppression.
//!
//! # In one example
//!
//! ```
//! use knet::image::{RgbImage, image_rs::Rgb}; // of the crate `image`, in the version that this crate takes
//! use knet::{Engine, engine::WeightSource};
//!
//! # fn main() -> knet::Result<()> {
//! let mut engine = Engine::builder()
//!     .weights(WeightSource::Seeded(0)) // or a file: std::path::Path::new("model.safetensors")
//!     .size(Some((96, 160))) // fit photos into 96 x 160 pixels; leave out for the model's own size
//!     .min_score(0.3)
//!     .build()?;
//! let photo = RgbImage::from_fn(160, 96, |x, y| Rgb([x as u8, y as u8, 90]));
//! let found = engine.segment(&photo)?;
//! for instance in found.instances() {
//!     let mask = found.mask(instance);
//!     assert_eq!((mask.height(), mask.width()), (96, 160)); // masks have the photo's size
//!     assert_eq!(mask.area(), instance.area);
//!     let run_lengths = mask.to_rle(); // COCO's compressed form
//!     println!("class {} score {:.2} box {:?}", instance.label, instance.score, instance.bbox);
//!     println!("{run_lengths}");
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # The picture in one line
//!
//! ```text
//! model fn -> Graph -> passes -> Plan (order, kernels, one arena) -> executor
//! ```
//!
//! | module | holds |
//! |---|---|
//! | [`error`], [`tensor`] | the error type; shapes and host tensors |
//! | [`graph`] | SSA graph with static shapes, builder, verifier, rewriting passes |
//! | [`ops`] | one file an operator: attributes, shape inference, reference, cases; the recipe to add one |
//! | [`plan`] | schedule with the program of each step, lifetimes to arena offsets, text dump |
//! | [`exec`] | the contract of executors: inputs, segments, results and variables by handle |
//! | [`cpu`] | executor and fast paths: packed GEMM, Winograd, implicit GEMM, attention |
//! | [`cuda`] | NVIDIA GPUs: launches as plain data, kernels compiled at run time, one captured graph from photo to masks |
//! | [`model`] | K-Net as graphs, with the parameter names of the official checkpoints |
//! | [`checkpoint`] | safetensors, official `.pth` files, seeded weights |
//! | [`image`] | photo to network input; logits to masks, maps, overlays and COCO files |
//! | [`task`] | instance, panoptic, semantic: from the network's results to the user's, on the CPU and on a GPU; one file each |
//! | [`engine`] | the public API that joins them: models, sessions, sources of weights |
//! | [`train`] | training: data sets, augmentation, losses, matching, optimizer; evaluation by COCO AP, panoptic quality, mIoU |
//! | [`fsio`], [`isa`] | files written whole or not at all; run-time choice of the instruction set |
//! | [`variables`] | the environment variables that are known |
//!
//! Each imports only what stands above it (`tests/layering` checks). Nothing is allocated, compiled or
//! looked up after a plan is built; a plan is built once per input size and kept.
//!
//! # Features
//!
//! `cuda` (NVIDIA GPUs: the module `cuda`), `train` (the module `train`) and `cli` (the two programs, with
//! both) are on by default. What embeds an engine takes `default-features = false`, with
//! `features = ["cuda"]` where there may be a GPU, and compiles neither the others nor what they depend on.
//!
//! # What is promised
//!
//! Versions promise, by semantic versioning, what an embedding takes: this page's [`Engine`], [`Model`],
//! [`Session`], [`Segmentation`] and [`Error`], the module [`engine`] with what its functions take and give
//! ([`image`], [`model::Config`](model::config::Config), [`checkpoint`], [`tensor`]), the programs' options,
//! exit codes and files, and with `train` the run configuration. All other modules are public so that tests,
//! benches and the curious see the whole engine: [`graph`], [`ops`], [`plan`], [`exec`], [`cpu`], [`task`],
//! [`isa`], [`fsio`], and under their features `cuda` and `train`. They change with any version, and the
//! changelog says how.
//!
//! # Numbers
//!
//! The same input, weights, instruction set and plan give the same bits, whatever the number of threads.
//! Every fast path is tested against a naive reference in double precision, the references against PyTorch,
//! and whole models against the official K-Net code, tap by tap (`tests/model/goldens.rs`).

pub mod bundle;
pub mod checkpoint;
pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
#[cfg(feature = "train")]
pub mod dist;
pub mod engine;
pub mod error;
pub mod exec;
pub mod fsio;
pub mod graph;
pub mod image;
pub mod isa;
pub(crate) mod memory;
pub mod model;
pub mod ops;
pub mod plan;
pub mod task;
pub mod tensor;
#[cfg(feature = "train")]
pub mod train;
pub mod variables;

pub use engine::{Engine, Model, Segmentation, Session};
pub use error::{Error, ErrorKind, Result};
