//! Programs that use cudarc's safe API as they would on a GPU, each in a process of its own with the stand-in
//! `libcuda.so` on its loader path.

mod graphs;
mod launches;
mod logs;
mod memory;
mod nvrtc;
mod process;
mod streams;
