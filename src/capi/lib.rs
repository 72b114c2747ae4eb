//! The C ABI of knet: models, sessions, frames in, masks out. `include/knet.h` is made from this crate's
//! types and comments, `include/knet.hpp` wraps it for C++17.
//!
//! | module | holds |
//! |---|---|
//! | `status` | status codes, the last error of a thread, the guard around every function |
//! | `structs` | structs that grow: reading and writing by `struct_size` |
//! | `messages` | messages by callback |
//! | `flight` | the thread of a session that frames are submitted to |
//! | `model`, `session`, `frame`, `result`, `maps`, `polygons`, `device` | the functions |

// The names are C's.
#![allow(non_camel_case_types)]

mod device;
mod flight;
mod frame;
mod maps;
mod messages;
mod model;
mod polygons;
mod result;
mod session;
mod status;
mod structs;

use std::ffi::c_char;

/// Version of this interface. It is raised when a program built against an older header would no longer work.
pub const KNET_ABI_VERSION: u32 = 1;

/// The KNET_ABI_VERSION that the library was built with. A program compares it with its own.
#[unsafe(no_mangle)]
pub extern "C" fn knet_abi_version() -> u32 {
    KNET_ABI_VERSION
}

/// The version of the library, such as "0.1.0". Lives for ever.
#[unsafe(no_mangle)]
pub extern "C" fn knet_version() -> *const c_char {
    concat!(env!("CARGO_PKG_VERSION"), "\0").as_ptr().cast()
}
