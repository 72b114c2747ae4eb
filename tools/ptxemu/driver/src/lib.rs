//! A stand-in `libcuda.so` over [`ptxemu`]: an unchanged CUDA program runs on a machine without a GPU.
//!
//! It is a test double, and says so: the device is called `ptxemu (PTX emulator, no GPU)`. Only PTX can be
//! loaded, and it is interpreted with every access checked. What it promises is the driver API's *contract*,
//! at its least generous:
//!
//! - Asynchronous work is queued and runs only at a synchronisation point, so a missing one shows as stale
//!   data. Streams order against each other by events alone (and by the legacy default stream's rule). With
//!   `PTXEMU_SEED` other than 0, work of other streams is at each synchronisation run ahead by a random,
//!   legal amount, and a graph's nodes run in a random legal order.
//! - A copy from pinned memory reads it when the copy runs, not when it is queued; pageable memory is read at
//!   the call.
//! - A fault prints the emulator's message to stderr and makes the context fail from then on, as on a device.
//! - Stream capture refuses what a driver refuses.
//!
//! Environment:
//!
//! | variable | meaning |
//! |---|---|
//! | `PTXEMU_GPU` | `h100`: multiprocessors, clocks, L2 and compute capability that an H100's driver reports, not those of a small device |
//! | `PTXEMU_CC` | compute capability, `8.0` by default |
//! | `PTXEMU_DRIVER_VERSION` | CUDA version of the driver, `13050` by default; newer PTX is refused |
//! | `PTXEMU_SEED` | order of warps, streams and graph nodes; 0 (default) is program order, as late as possible |
//! | `PTXEMU_THREADS` | threads of the emulator; all by default |
//! | `PTXEMU_LATE_ASYNC` | `1` (default): a kernel's asynchronous copies land as late as its waits allow; `0`: at once |
//! | `PTXEMU_CHECKS` | `off`: no checks of races and of uninitialised reads |
//! | `PTXEMU_MMA` | `truncated` (default): tensor cores sum as measured on hardware; `nearest`: as fused multiply-adds, faster |
//! | `PTXEMU_MAX_INSTRUCTIONS` | most warp instructions of a launch, 2^34 by default, so that an endless kernel ends in an error; 0: no bound |
//! | `PTXEMU_DEVICES` | devices of the machine, 1 by default, of which a process can use one at a time |
//! | `PTXEMU_FREE_MEMORY` | bytes of free device memory at the start, for out-of-memory tests |
//! | `PTXEMU_LOG` | file to which one line is appended for each driver call, and a `#` line for each piece of work as it runs |
//! | `PTXEMU_REPORT` | file that gets the emulator's counts per kernel, as JSON, at exit |
//!
//! `cuProfilerStart` and `cuProfilerStop` do nothing but appear in the log: they mark a stretch of it.

mod capture;
mod context;
mod copy;
mod device;
mod driver;
mod emulator;
mod error;
mod event;
mod ffi;
mod function;
mod graph;
mod launch;
mod log;
mod memory;
mod module;
mod pinned;
mod pointer;
mod queue;
mod report;
mod settings;
mod stream;
mod symbols;
