//! Frames: pixels that the caller owns.

use super::status::Fault;
use super::structs::Versioned;
use knet::image::view::{ImageView, MAX_PLANES, PixelFormat, Plane, YuvMatrix};
use std::ffi::c_void;
use std::mem::offset_of;

/// Three bytes a pixel: red, green, blue.
pub const KNET_FORMAT_RGB8: u32 = 0;
/// Three bytes a pixel: blue, green, red.
pub const KNET_FORMAT_BGR8: u32 = 1;
/// Four bytes a pixel: red, green, blue, and one that is not looked at.
pub const KNET_FORMAT_RGBA8: u32 = 2;
/// Four bytes a pixel: blue, green, red, and one that is not looked at.
pub const KNET_FORMAT_BGRA8: u32 = 3;
/// A byte a pixel.
pub const KNET_FORMAT_GRAY8: u32 = 4;
/// A plane of luma, and one of interleaved U and V for 2 x 2 pixels, BT.601, video range. Even sides.
pub const KNET_FORMAT_NV12: u32 = 5;
/// As NV12, BT.709.
pub const KNET_FORMAT_NV12_BT709: u32 = 6;
/// A plane of luma, one of U and one of V for 2 x 2 pixels, BT.601, video range. Even sides.
pub const KNET_FORMAT_I420: u32 = 7;
/// As I420, BT.709.
pub const KNET_FORMAT_I420_BT709: u32 = 8;

/// The planes are on the host.
pub const KNET_MEMORY_HOST: u32 = 0;
/// The planes are in the memory of the model's GPU, at addresses of the driver's (CUdeviceptr).
pub const KNET_MEMORY_CUDA: u32 = 1;

/// Rows of bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct knet_plane {
    /// The first row: any address, any alignment.
    pub data: *const c_void,
    /// Bytes from one row to the next; 0 where there is nothing between them.
    pub stride: usize,
}

/// An 8-bit image that the caller owns, rows from top to bottom. How long its pixels are read, the functions
/// say.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct knet_frame {
    /// sizeof(knet_frame).
    pub struct_size: u32,
    /// A KNET_FORMAT_*.
    pub format: u32,
    /// Rows.
    pub height: u32,
    /// Columns.
    pub width: u32,
    /// As many planes as the format has, in its order; the others are not looked at.
    pub planes: [knet_plane; 3],
    /// Comes back in knet_result_info.
    pub timestamp_ns: u64,
    /// A KNET_MEMORY_*: where the planes are. On a GPU they must be whole for knet_segment and
    /// knet_session_submit, which wait for no stream of the program's.
    pub memory: u32,
    /// Zero.
    pub reserved: u32,
}

// SAFETY: plain numbers and pointers, which may be NULL.
unsafe impl Versioned for knet_frame {
    const NAME: &'static str = "knet_frame";
    const FIRST: usize = offset_of!(knet_frame, memory);
}

/// # Safety
/// The planes that the format has can be read if they are on the host.
pub(crate) unsafe fn view<'a>(frame: &knet_frame) -> Result<ImageView<'a>, Fault> {
    const { assert!(MAX_PLANES == 3) };
    let format = match frame.format {
        KNET_FORMAT_RGB8 => PixelFormat::Rgb8,
        KNET_FORMAT_BGR8 => PixelFormat::Bgr8,
        KNET_FORMAT_RGBA8 => PixelFormat::Rgba8,
        KNET_FORMAT_BGRA8 => PixelFormat::Bgra8,
        KNET_FORMAT_GRAY8 => PixelFormat::Gray8,
        KNET_FORMAT_NV12 => PixelFormat::Nv12(YuvMatrix::Bt601),
        KNET_FORMAT_NV12_BT709 => PixelFormat::Nv12(YuvMatrix::Bt709),
        KNET_FORMAT_I420 => PixelFormat::I420(YuvMatrix::Bt601),
        KNET_FORMAT_I420_BT709 => PixelFormat::I420(YuvMatrix::Bt709),
        other => return Err(Fault::argument(format!("knet_frame.format is {other}: no KNET_FORMAT_*"))),
    };
    let on_device = match frame.memory {
        KNET_MEMORY_HOST => false,
        KNET_MEMORY_CUDA => true,
        other => return Err(Fault::argument(format!("knet_frame.memory is {other}: no KNET_MEMORY_*"))),
    };
    let size = (frame.height as usize, frame.width as usize);
    format.check(size)?;
    let mut planes = [Plane::host(&[], 0); MAX_PLANES];
    for (index, ((plane, given), shape)) in
        planes.iter_mut().zip(&frame.planes).zip(format.shapes(size)).enumerate()
    {
        if given.data.is_null() {
            let text = format!("knet_frame.planes[{index}].data ({}) is NULL", shape.name);
            return Err(Fault::argument(text));
        }
        let stride = if given.stride == 0 { shape.row_bytes } else { given.stride };
        let bytes = stride.checked_mul(shape.rows - 1).and_then(|bytes| bytes.checked_add(shape.row_bytes));
        let Some(bytes) = bytes.filter(|_| stride >= shape.row_bytes) else {
            return Err(Fault::argument(format!(
                "knet_frame.planes[{index}].stride ({}) is {stride}: rows have {} bytes",
                shape.name, shape.row_bytes
            )));
        };
        if on_device {
            *plane = Plane::device(given.data.addr() as u64, stride);
            continue;
        }
        // SAFETY: as the caller says; the last row ends where its pixels do.
        *plane = Plane::host(unsafe { std::slice::from_raw_parts(given.data.cast(), bytes) }, stride);
    }
    Ok(ImageView::new(format, size, &planes[..format.planes()])?)
}
