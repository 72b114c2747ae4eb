//! Checkpoints: safetensors in and out, PyTorch `.pth` in, and seeded weights.
//!
//! Everything here reads foreign bytes, so nothing here panics on them: each reader validates before it
//! allocates and reports an [`Error::Checkpoint`](crate::error::Error::Checkpoint) that names the file, the
//! tensor and the byte offset. Tensors keep upstream's names and layouts (OIHW convolutions).
//!
//! * [`Checkpoint`]: a safetensors file, read whole and checked in full when opened;
//! * [`write_safetensors`]: the reverse, all or nothing;
//! * [`write_sealed`], [`Checkpoint::open_sealed`]: safetensors laid out for mapping, with a checksum;
//! * [`pth`]: files of `torch.save`, read without executing anything;
//! * [`seeded`]: weights computed from tensor names, for tests and benchmarks without a file.

mod fault;
pub mod pth;
mod safetensors;
mod seal;
pub mod seeded;
mod storage;
mod write;

pub use safetensors::{Checkpoint, TensorInfo};
pub use seal::{ALIGNMENT, write_sealed};
pub use storage::{StorageType, first_non_finite};
pub use write::{TensorData, TensorOut, write_safetensors};
