//! Outlines of instances as polygons.

use super::result::{knet_result, mask};
use super::status::{guarded, knet_status};
use super::structs::{Versioned, handle, write};
use knet::image::outline::{Corner, Outline};

/// A corner of pixels: the pixel in column x of row y is the square from (x, y) to (x + 1, y + 1).
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct knet_point {
    /// From the left edge of the frame.
    pub x: u32,
    /// From the upper edge.
    pub y: u32,
}

/// A closed line along the edges of pixels; the last point is joined to the first.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct knet_ring {
    /// Its first point.
    pub first: u32,
    /// Number of its points.
    pub count: u32,
    /// The ring around the part of the mask that it belongs to: its own number for the outline of a part,
    /// another one for a hole in it.
    pub outer: u32,
}

/// The outline of a mask: rings around its parts, and around holes in them. Pixels that touch at a corner
/// alone are two parts. Parts are gone around clockwise, as a frame is looked at, holes counterclockwise;
/// there are points only where a ring turns. By the even-odd rule as by the winding rule, all rings together
/// hold exactly the mask's pixels.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct knet_polygons {
    /// sizeof(knet_polygons).
    pub struct_size: u32,
    /// Number of rings.
    pub ring_count: u32,
    /// The rings.
    pub rings: *const knet_ring,
    /// The points of all rings.
    pub points: *const knet_point,
    /// Number of points.
    pub point_count: usize,
}

// SAFETY: plain numbers and pointers, which may be NULL.
unsafe impl Versioned for knet_polygons {
    const NAME: &'static str = "knet_polygons";
    const FIRST: usize = size_of::<knet_polygons>();
}

/// The memory of what is lent.
#[derive(Default)]
pub(crate) struct Polygons {
    outline: Outline,
    rings: Vec<knet_ring>,
}

const _: () = assert!(size_of::<knet_point>() == size_of::<Corner>());

/// Lends the outline of an instance's mask as polygons. They live until the next call of this function with
/// the result, a frame is segmented into it or it is freed. The same mask has the same polygons, always.
///
/// KNET_ERROR_STATE: the result has no such instance.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn knet_result_polygons(
    result: *const knet_result,
    index: u32,
    polygons: *mut knet_polygons,
) -> knet_status {
    guarded(|| {
        // SAFETY: the pointers are as the header asks.
        let result = unsafe { handle(result, "result") }?;
        let value = result.with_mut(|found| {
            let Polygons { outline, rings } = &mut found.polygons;
            outline.trace(mask(&found.segmentation, index)?);
            rings.clear();
            let mut first = 0;
            rings.extend(outline.rings().map(|ring| {
                let count = ring.corners.len() as u32;
                first += count;
                knet_ring { first: first - count, count, outer: ring.outer as u32 }
            }));
            Ok(knet_polygons {
                struct_size: 0,
                ring_count: rings.len() as u32,
                rings: rings.as_ptr(),
                points: outline.corners().as_ptr().cast(),
                point_count: outline.corners().len(),
            })
        })?;
        // SAFETY: as above.
        unsafe { write(value, polygons) }
    })
}
