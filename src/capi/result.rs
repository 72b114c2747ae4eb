//! Results: objects and masks, into the caller's memory or lent.

use super::maps::{Objects, Rows, knet_map};
use super::model::task_code;
use super::polygons::Polygons;
use super::status::{Fault, Turn, guarded, knet_status};
use super::structs::{Versioned, give, handle, write};
use knet::Segmentation;
use knet::image::bitmask::BitMask;
use knet::model::Task;
use std::cell::UnsafeCell;
use std::ffi::c_char;
use std::sync::Arc;

/// What a frame held. It is filled by knet_segment or knet_session_submit, any number of times, and keeps its
/// memory. Opaque.
pub struct knet_result(Arc<Slot>);

/// What a result shares with a frame in flight.
#[derive(Default)]
pub(crate) struct Slot {
    pub turn: Turn,
    pub found: UnsafeCell<Found>,
}

// SAFETY: whoever uses it has its turn.
unsafe impl Send for Slot {}
// SAFETY: as above.
unsafe impl Sync for Slot {}

#[derive(Default)]
pub(crate) struct Found {
    pub segmentation: Segmentation,
    pub timestamp_ns: u64,
    pub polygons: Polygons,
    pub objects: Objects,
}

impl Found {
    /// Has `body` fill it. After an error it is empty, lest objects of an earlier frame are taken for its.
    pub fn fill(
        &mut self,
        timestamp_ns: u64,
        body: impl FnOnce(&mut Segmentation) -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        self.timestamp_ns = timestamp_ns;
        let outcome = body(&mut self.segmentation);
        if outcome.is_err() {
            self.segmentation = Segmentation::default();
        }
        outcome
    }
}

impl knet_result {
    pub(crate) fn slot(&self) -> &Arc<Slot> {
        &self.0
    }

    /// Runs `body` while no other thread uses the result.
    pub(crate) fn with_mut<T>(&self, body: impl FnOnce(&mut Found) -> Result<T, Fault>) -> Result<T, Fault> {
        let _taken = self.0.turn.take("result")?;
        // SAFETY: the turn is this call's until it is dropped.
        body(unsafe { &mut *self.0.found.get() })
    }

    fn with<T>(&self, body: impl FnOnce(&Found) -> Result<T, Fault>) -> Result<T, Fault> {
        self.with_mut(|found| body(found))
    }
}

/// What a result holds.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct knet_result_info {
    /// sizeof(knet_result_info).
    pub struct_size: u32,
    /// A KNET_TASK_*: what kind of result it is.
    pub task: u32,
    /// Rows of every mask and map: the frame's, or what the session was told.
    pub height: u32,
    /// Columns.
    pub width: u32,
    /// Number of objects: instances, best first; segments of a panoptic map; classes that a semantic map has,
    /// largest first.
    pub objects: u32,
    /// Stages of the network that made it; 0 of a model without any.
    pub stages: u32,
    /// The frame's.
    pub timestamp_ns: u64,
}

// SAFETY: plain numbers.
unsafe impl Versioned for knet_result_info {
    const NAME: &'static str = "knet_result_info";
    const FIRST: usize = size_of::<knet_result_info>();
}

/// An instance, a segment of a panoptic map, or a class of a semantic one.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct knet_object {
    /// sizeof(knet_object).
    pub struct_size: u32,
    /// Class index; knet_model_class says what it means.
    pub label: u32,
    /// From 0 to 1; 1 for a class of a semantic map.
    pub score: f32,
    /// 1 for a countable object, 0 for a region.
    pub is_thing: u32,
    /// Pixels.
    pub area: u64,
    /// First column of the smallest box that holds the mask. Instances alone have a box: it is empty for
    /// others.
    pub x: u32,
    /// First row of the box.
    pub y: u32,
    /// Columns of the box.
    pub width: u32,
    /// Rows of the box.
    pub height: u32,
}

// SAFETY: plain numbers.
unsafe impl Versioned for knet_object {
    const NAME: &'static str = "knet_object";
    const FIRST: usize = size_of::<knet_object>();
}

/// An empty result.
#[unsafe(no_mangle)]
pub extern "C" fn knet_result_new() -> *mut knet_result {
    Box::into_raw(Box::new(knet_result(Arc::default())))
}

/// Frees a result; NULL is allowed. One that a frame in flight fills is freed when that is done.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn knet_result_free(result: *mut knet_result) {
    let _ = guarded(|| {
        if !result.is_null() {
            // SAFETY: made by `knet_result_new`, freed once.
            drop(unsafe { Box::from_raw(result) });
        }
        Ok(())
    });
}

/// What the result holds.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn knet_result_get_info(
    result: *const knet_result,
    info: *mut knet_result_info,
) -> knet_status {
    guarded(|| {
        // SAFETY: the pointers are as the header asks.
        let result = unsafe { handle(result, "result") }?;
        let value = result.with(|found| {
            let (height, width) = found.segmentation.size();
            Ok(knet_result_info {
                struct_size: 0,
                task: task_code(found.segmentation.task()),
                height: height as u32,
                width: width as u32,
                objects: found.segmentation.found().count() as u32,
                stages: found.segmentation.stages() as u32,
                timestamp_ns: found.timestamp_ns,
            })
        })?;
        // SAFETY: as above.
        unsafe { write(value, info) }
    })
}

fn absent(index: u32, found: &Segmentation) -> Fault {
    Fault::state(format!("object {index}: the result has {}", found.found().count()))
}

/// One object.
///
/// KNET_ERROR_STATE: the result has fewer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn knet_result_get_object(
    result: *const knet_result,
    index: u32,
    object: *mut knet_object,
) -> knet_status {
    guarded(|| {
        // SAFETY: the pointers are as the header asks.
        let result = unsafe { handle(result, "result") }?;
        let value = result.with(|found| {
            described(&found.segmentation, index as usize).ok_or_else(|| absent(index, &found.segmentation))
        })?;
        // SAFETY: as above.
        unsafe { write(value, object) }
    })
}

fn described(found: &Segmentation, index: usize) -> Option<knet_object> {
    let object = |label: usize, score: f32, is_thing: bool, area: usize| knet_object {
        struct_size: 0,
        label: label as u32,
        score,
        is_thing: u32::from(is_thing),
        area: area as u64,
        x: 0,
        y: 0,
        width: 0,
        height: 0,
    };
    if let Some(map) = found.panoptic() {
        let segment = map.segments.get(index)?;
        return Some(object(segment.category, segment.score, segment.is_thing, segment.area));
    }
    if let Some(map) = found.semantic() {
        let &(class, area) = map.present().get(index)?;
        return Some(object(class, 1.0, false, area));
    }
    let instance = found.instances().get(index)?;
    let bounds = instance.bbox;
    Some(knet_object {
        x: bounds.x as u32,
        y: bounds.y as u32,
        width: bounds.width as u32,
        height: bounds.height as u32,
        ..object(instance.label, instance.score, true, instance.area)
    })
}

/// The mask of an instance.
pub(crate) fn mask(found: &Segmentation, index: u32) -> Result<&BitMask, Fault> {
    if found.task() != Task::Instance {
        return Err(Fault::state("only instances have masks of their own: ask for a map"));
    }
    let instance = found.instances().get(index as usize).ok_or_else(|| absent(index, found))?;
    Ok(found.mask(instance))
}

/// Lends the bits of an instance's mask: pixel (y, x) is bit y * width + x, the first in the highest bit of
/// the first byte. They live until a frame is segmented into the result or it is freed.
///
/// KNET_ERROR_STATE: the result has no such instance.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn knet_result_mask_bits(
    result: *const knet_result,
    index: u32,
    bits: *mut *const u8,
    size: *mut usize,
) -> knet_status {
    guarded(|| {
        // SAFETY: the pointers are as the header asks.
        let result = unsafe { handle(result, "result") }?;
        let (place, len) = result.with(|found| {
            let bytes = mask(&found.segmentation, index)?.bytes();
            Ok((bytes.as_ptr(), bytes.len()))
        })?;
        // SAFETY: as above.
        unsafe {
            give(place, bits, "bits")?;
            give(len, size, "size")
        }
    })
}

/// Writes an instance's mask: `value` for its pixels, 0 for the others. `stride` is what lies between the
/// beginnings of rows, in bytes; 0: rows follow each other.
///
/// KNET_ERROR_STATE: the result has no such instance.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn knet_result_mask_u8(
    result: *const knet_result,
    index: u32,
    value: u8,
    pixels: *mut u8,
    stride: usize,
) -> knet_status {
    guarded(|| {
        // SAFETY: the pointers are as the header asks.
        let result = unsafe { handle(result, "result") }?;
        result.with(|found| {
            let (mask, size) = (mask(&found.segmentation, index)?, found.segmentation.size());
            let map = knet_map { pixels: pixels.cast(), stride, element_bytes: 1, reserved: 0 };
            // SAFETY: as above.
            let mut rows = unsafe { Rows::new("", &map, size) }?;
            (0..size.0).for_each(|y| rows.write(y, |x| if mask.get(y, x) { u32::from(value) } else { 0 }));
            Ok(())
        })
    })
}

/// Writes the compressed run lengths of an instance's mask, as COCO's tools have them, with a zero byte at
/// the end. `*needed` is the number of bytes that takes. With a `capacity` below it, nothing is written: ask
/// with capacity 0 and `text` NULL first.
///
/// KNET_ERROR_STATE: the result has no such instance.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn knet_result_mask_rle(
    result: *const knet_result,
    index: u32,
    text: *mut c_char,
    capacity: usize,
    needed: *mut usize,
) -> knet_status {
    guarded(|| {
        // SAFETY: the pointers are as the header asks.
        let result = unsafe { handle(result, "result") }?;
        let runs = result.with(|found| Ok(mask(&found.segmentation, index)?.to_rle()))?;
        // SAFETY: as above.
        unsafe { give(runs.len() + 1, needed, "needed") }?;
        if capacity <= runs.len() {
            return Ok(());
        }
        if text.is_null() {
            return Err(Fault::argument("text is NULL, and capacity is not 0"));
        }
        // SAFETY: as above; there is room for the text and its end.
        unsafe {
            std::ptr::copy_nonoverlapping(runs.as_ptr(), text.cast(), runs.len());
            text.add(runs.len()).write(0);
        }
        Ok(())
    })
}
