//! Results: objects, masks and maps, into the caller's memory or lent.

use super::model::task_code;
use super::polygons::Polygons;
use super::status::{Fault, Turn, guarded, knet_status};
use super::structs::{Versioned, give, handle, write};
use knet::Segmentation;
use knet::image::bitmask::BitMask;
use knet::model::Task;
use std::cell::UnsafeCell;
use std::ffi::{c_char, c_void};
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
    /// Rows of the frame, and of every mask and map.
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

/// Object of each pixel: its index in the result plus one, 0 where there is none. Of instances that overlap,
/// the best.
pub const KNET_MAP_OBJECTS: u32 = 1;
/// Class index of each pixel, `none` where there is none. Of instances that overlap, the best.
pub const KNET_MAP_CLASSES: u32 = 2;

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

/// Class of each object, in their order.
fn labels(found: &Segmentation) -> Vec<usize> {
    match (found.panoptic(), found.semantic()) {
        (Some(map), _) => map.segments.iter().map(|segment| segment.category).collect(),
        (_, Some(map)) => map.present().into_iter().map(|(class, _)| class).collect(),
        _ => found.instances().iter().map(|instance| instance.label).collect(),
    }
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
/// beginnings of rows, in bytes.
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
            let mask = mask(&found.segmentation, index)?;
            // SAFETY: as above.
            let mut rows = unsafe { Rows::<u8>::new(pixels.cast(), stride, found.segmentation.size()) }?;
            rows.each(|y, row| {
                row.iter_mut()
                    .enumerate()
                    .for_each(|(x, pixel)| *pixel = if mask.get(y, x) { value } else { 0 });
                Ok(())
            })
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

/// Writes a map of the whole frame, as robots publish them: a KNET_MAP_* with elements of `element_bytes` (1,
/// 2 or 4, unsigned). `stride` is what lies between the beginnings of rows, in bytes; `pixels` and `stride`
/// are multiples of the element. `none` is for KNET_MAP_CLASSES alone.
///
/// KNET_ERROR_ARGUMENT: a value does not fit the element; nothing is written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn knet_result_map(
    result: *const knet_result,
    map: u32,
    none: u32,
    element_bytes: u32,
    pixels: *mut c_void,
    stride: usize,
) -> knet_status {
    guarded(|| {
        // SAFETY: the pointers are as the header asks.
        let result = unsafe { handle(result, "result") }?;
        result.with(|found| {
            let (found, size) = (&found.segmentation, found.segmentation.size());
            let values = Values::new(found, map, none)?;
            let most = match element_bytes {
                1 => u32::from(u8::MAX),
                2 => u32::from(u16::MAX),
                4 => u32::MAX,
                other => return Err(Fault::argument(format!("element_bytes is {other}: 1, 2 or 4"))),
            };
            if values.largest > most {
                return Err(Fault::argument(format!(
                    "the map has values up to {}, elements of {element_bytes} bytes end at {most}",
                    values.largest
                )));
            }
            // SAFETY: as above.
            unsafe {
                match element_bytes {
                    1 => {
                        Rows::<u8>::new(pixels, stride, size)?.each(|y, row| values.fill(y, row, |v| v as u8))
                    }
                    2 => Rows::<u16>::new(pixels, stride, size)?
                        .each(|y, row| values.fill(y, row, |v| v as u16)),
                    _ => Rows::<u32>::new(pixels, stride, size)?.each(|y, row| values.fill(y, row, |v| v)),
                }
            }
        })
    })
}

/// What a map's pixels are.
struct Values<'a> {
    found: &'a Segmentation,
    /// Objects, or classes.
    objects: bool,
    none: u32,
    /// The largest value that may occur.
    largest: u32,
    /// Of a semantic map, the value of each class.
    classes: Vec<u32>,
}

impl<'a> Values<'a> {
    fn new(found: &'a Segmentation, map: u32, none: u32) -> Result<Values<'a>, Fault> {
        let (objects, none) = match map {
            KNET_MAP_OBJECTS => (true, 0),
            KNET_MAP_CLASSES => (false, none),
            other => return Err(Fault::argument(format!("map is {other}: no KNET_MAP_*"))),
        };
        let labels = labels(found);
        let most = if objects { labels.len() } else { labels.iter().copied().max().unwrap_or(0) };
        let largest = none.max(most as u32);
        let mut classes: Vec<u32> = (0..found.semantic().map_or(0, |map| map.areas.len() as u32)).collect();
        if objects && found.semantic().is_some() {
            labels.iter().zip(1..).for_each(|(&class, place)| classes[class] = place);
        }
        Ok(Values { found, objects, none, largest, classes })
    }

    /// Writes row `y`.
    fn fill<T: Copy>(&self, y: usize, row: &mut [T], cast: impl Fn(u32) -> T) -> Result<(), Fault> {
        let width = row.len();
        if let Some(map) = self.found.panoptic() {
            let (mut last, mut value) = (None, self.none);
            for (pixel, &id) in row.iter_mut().zip(&map.map[y * width..]) {
                // Neighbours mostly belong together.
                if last != Some(id) {
                    let place = map.segments.iter().position(|segment| segment.id == id);
                    value = place.map_or(self.none, |place| self.value(place, map.segments[place].category));
                    last = Some(id);
                }
                *pixel = cast(value);
            }
        } else if let Some(map) = self.found.semantic() {
            for (pixel, &class) in row.iter_mut().zip(&map.map[y * width..]) {
                *pixel = cast(self.classes[usize::from(class)]);
            }
        } else {
            row.fill(cast(self.none));
            // The best comes last, and stays.
            for (place, instance) in self.found.instances().iter().enumerate().rev() {
                let bounds = instance.bbox;
                if !(bounds.y..bounds.y + bounds.height).contains(&y) {
                    continue;
                }
                let (mask, value) = (self.found.mask(instance), cast(self.value(place, instance.label)));
                for x in bounds.x..bounds.x + bounds.width {
                    if mask.get(y, x) {
                        row[x] = value;
                    }
                }
            }
        }
        Ok(())
    }

    fn value(&self, place: usize, class: usize) -> u32 {
        if self.objects { place as u32 + 1 } else { class as u32 }
    }
}

/// Rows of the caller's memory.
struct Rows<T> {
    pixels: *mut u8,
    stride: usize,
    size: (usize, usize),
    element: std::marker::PhantomData<T>,
}

impl<T> Rows<T> {
    /// # Safety
    /// `pixels` is NULL or has as many rows as `size` says, `stride` bytes apart, of initialised memory.
    unsafe fn new(pixels: *mut c_void, stride: usize, size: (usize, usize)) -> Result<Rows<T>, Fault> {
        let (bytes, align) = (size.1 * size_of::<T>(), align_of::<T>());
        if pixels.is_null() {
            return Err(Fault::argument("pixels is NULL"));
        }
        if stride < bytes {
            return Err(Fault::argument(format!("stride is {stride}: rows have {bytes} bytes")));
        }
        if !pixels.addr().is_multiple_of(align) || !stride.is_multiple_of(align) {
            return Err(Fault::argument(format!(
                "pixels ({pixels:p}) and stride ({stride}) must be multiples of {align}, the size of an element"
            )));
        }
        Ok(Rows { pixels: pixels.cast(), stride, size, element: std::marker::PhantomData })
    }

    fn each(&mut self, mut body: impl FnMut(usize, &mut [T]) -> Result<(), Fault>) -> Result<(), Fault> {
        let (height, width) = self.size;
        for y in 0..height {
            // SAFETY: a row of the caller's, as `new` was promised, and aligned as it checked.
            let row = unsafe {
                std::slice::from_raw_parts_mut(self.pixels.add(y * self.stride).cast::<T>(), width)
            };
            body(y, row)?;
        }
        Ok(())
    }
}
