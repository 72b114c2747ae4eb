//! Maps of the whole frame, into the caller's memory.

use super::result::knet_result;
use super::status::{Fault, guarded, knet_status};
use super::structs::{Versioned, handle, read};
use knet::Segmentation;
use std::ffi::c_void;

/// Object of each pixel: its index in the result plus one, 0 where there is none. Of instances that overlap,
/// the best.
pub const KNET_MAP_OBJECTS: u32 = 1;
/// Class index of each pixel, `none` where there is none. Of instances that overlap, the best.
pub const KNET_MAP_CLASSES: u32 = 2;

/// Memory of the caller for a map.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct knet_map {
    /// The first row; a multiple of the element.
    pub pixels: *mut c_void,
    /// Bytes from one row to the next, a multiple of the element; 0 where there is nothing between them.
    pub stride: usize,
    /// 1, 2 or 4: elements are unsigned.
    pub element_bytes: u32,
    /// Zero.
    pub reserved: u32,
}

/// What robots publish of a frame: two maps of it.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct knet_maps {
    /// sizeof(knet_maps).
    pub struct_size: u32,
    /// Class of pixels that no object has.
    pub none: u32,
    /// Gets what KNET_MAP_OBJECTS is.
    pub objects: knet_map,
    /// Gets what KNET_MAP_CLASSES is.
    pub classes: knet_map,
}

// SAFETY: plain numbers and pointers, which may be NULL.
unsafe impl Versioned for knet_maps {
    const NAME: &'static str = "knet_maps";
    const FIRST: usize = size_of::<knet_maps>();
}

/// Writes a map of the whole frame, of the size that knet_result_info says: a KNET_MAP_* with elements of
/// `element_bytes` (1, 2 or 4, unsigned). `stride` is what lies between the beginnings of rows, in bytes, 0
/// where they follow each other; `pixels` and `stride` are multiples of the element. `none` is for
/// KNET_MAP_CLASSES alone.
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
        result.with_mut(|found| {
            let (objects, found) = (&mut found.objects, &found.segmentation);
            let is_classes = match map {
                KNET_MAP_OBJECTS => false,
                KNET_MAP_CLASSES => true,
                other => return Err(Fault::argument(format!("map is {other}: no KNET_MAP_*"))),
            };
            objects.look_at(found, none);
            let map = knet_map { pixels, stride, element_bytes, reserved: 0 };
            // SAFETY: as above.
            let mut rows = unsafe { Rows::new("", &map, found.size()) }?;
            rows.check("", if is_classes { objects.largest_class() } else { objects.count() })?;
            for y in 0..found.size().0 {
                let (row, classes) = objects.row(found, y);
                if is_classes {
                    rows.write(y, |x| classes[row[x] as usize]);
                } else {
                    rows.write(y, |x| row[x]);
                }
            }
            Ok(())
        })
    })
}

/// Writes both maps of a frame in one go: to which object each pixel belongs, and of which class that is.
///
/// KNET_ERROR_ARGUMENT: a value does not fit an element; nothing is written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn knet_result_maps(result: *const knet_result, maps: *const knet_maps) -> knet_status {
    guarded(|| {
        // SAFETY: the pointers are as the header asks.
        let (result, maps) = unsafe { (handle(result, "result")?, read(maps)?) };
        result.with_mut(|found| {
            let (objects, found) = (&mut found.objects, &found.segmentation);
            objects.look_at(found, maps.none);
            let (first, second) = ("knet_maps.objects.", "knet_maps.classes.");
            // SAFETY: as above.
            let mut to = unsafe { Rows::new(first, &maps.objects, found.size()) }?;
            // SAFETY: as above.
            let mut classes_to = unsafe { Rows::new(second, &maps.classes, found.size()) }?;
            to.check(first, objects.count())?;
            classes_to.check(second, objects.largest_class())?;
            for y in 0..found.size().0 {
                let (row, classes) = objects.row(found, y);
                to.write(y, |x| row[x]);
                classes_to.write(y, |x| classes[row[x] as usize]);
            }
            Ok(())
        })
    })
}

/// Objects of a result by their pixels. Keeps its memory.
#[derive(Default)]
pub(crate) struct Objects {
    /// What pixels of no object have, then the class of each object.
    classes: Vec<u32>,
    /// Of a semantic map, the object of each class.
    of_class: Vec<u32>,
    row: Vec<u32>,
}

impl Objects {
    fn look_at(&mut self, found: &Segmentation, none: u32) {
        let Objects { classes, of_class, row } = self;
        classes.clear();
        classes.push(none);
        of_class.clear();
        row.resize(found.size().1, 0);
        if let Some(map) = found.panoptic() {
            classes.extend(map.segments.iter().map(|segment| segment.category as u32));
        } else if let Some(map) = found.semantic() {
            of_class.resize(map.areas.len(), 0);
            for (class, _) in map.present() {
                of_class[class] = classes.len() as u32;
                classes.push(class as u32);
            }
        } else {
            classes.extend(found.instances().iter().map(|instance| instance.label as u32));
        }
    }

    /// The largest number that a pixel may have for its object.
    fn count(&self) -> u32 {
        self.classes.len() as u32 - 1
    }

    fn largest_class(&self) -> u32 {
        self.classes.iter().copied().max().unwrap_or_default()
    }

    /// The object of each pixel of row `y`, its index plus one, or 0; and the classes by that number.
    fn row(&mut self, found: &Segmentation, y: usize) -> (&[u32], &[u32]) {
        let row = &mut self.row[..];
        let width = row.len();
        if let Some(map) = found.panoptic() {
            let mut last = None;
            for (pixel, &id) in row.iter_mut().zip(&map.map[y * width..]) {
                // Neighbours mostly belong together.
                let number = match last {
                    Some((known, number)) if known == id => number,
                    _ => {
                        map.segments.iter().position(|segment| segment.id == id).map_or(0, |at| at as u32 + 1)
                    }
                };
                last = Some((id, number));
                *pixel = number;
            }
        } else if let Some(map) = found.semantic() {
            for (pixel, &class) in row.iter_mut().zip(&map.map[y * width..]) {
                *pixel = self.of_class[usize::from(class)];
            }
        } else {
            row.fill(0);
            // The best comes last, and stays.
            for (at, instance) in found.instances().iter().enumerate().rev() {
                let (bounds, mask) = (instance.bbox, found.mask(instance));
                if !(bounds.y..bounds.y + bounds.height).contains(&y) {
                    continue;
                }
                for x in bounds.x..bounds.x + bounds.width {
                    if mask.get(y, x) {
                        row[x] = at as u32 + 1;
                    }
                }
            }
        }
        (row, &self.classes)
    }
}

/// Rows of the caller's memory.
pub(crate) struct Rows {
    map: knet_map,
    width: usize,
}

impl Rows {
    /// Messages call the fields of `map` by their names, with `of` before them.
    ///
    /// # Safety
    /// `map.pixels` is NULL or has as many rows as `size` says, as far apart as the stride says.
    pub unsafe fn new(of: &str, map: &knet_map, size: (usize, usize)) -> Result<Rows, Fault> {
        let element = match map.element_bytes {
            bytes @ (1 | 2 | 4) => bytes as usize,
            other => return Err(Fault::argument(format!("{of}element_bytes is {other}: 1, 2 or 4"))),
        };
        let (bytes, mut map) = (size.1 * element, *map);
        if map.pixels.is_null() {
            return Err(Fault::argument(format!("{of}pixels is NULL")));
        }
        if map.stride == 0 {
            map.stride = bytes;
        }
        let knet_map { pixels, stride, .. } = map;
        if stride < bytes {
            return Err(Fault::argument(format!("{of}stride is {stride}: rows have {bytes} bytes")));
        }
        if !pixels.addr().is_multiple_of(element) || !stride.is_multiple_of(element) {
            return Err(Fault::argument(format!(
                "{of}pixels ({pixels:p}) and {of}stride ({stride}) must be multiples of {element}, the size of an element"
            )));
        }
        Ok(Rows { map, width: size.1 })
    }

    /// Whether values up to `largest` fit the elements.
    fn check(&self, of: &str, largest: u32) -> Result<(), Fault> {
        let bytes = self.map.element_bytes;
        let most = u32::MAX >> (32 - 8 * bytes);
        if largest > most {
            let text = format!(
                "{of}element_bytes is {bytes}: elements end at {most}, the map has values up to {largest}"
            );
            return Err(Fault::argument(text));
        }
        Ok(())
    }

    /// Writes row `y`, the value of each column.
    pub fn write(&mut self, y: usize, value: impl Fn(usize) -> u32) {
        match self.map.element_bytes {
            1 => self.write_as(y, |x| value(x) as u8),
            2 => self.write_as(y, |x| value(x) as u16),
            _ => self.write_as(y, value),
        }
    }

    fn write_as<T>(&mut self, y: usize, value: impl Fn(usize) -> T) {
        // SAFETY: the row is there, as `new` was promised.
        let row = unsafe { self.map.pixels.byte_add(y * self.map.stride) }.cast::<T>();
        for x in 0..self.width {
            // SAFETY: a pixel of the row, aligned as `new` checked.
            unsafe { row.add(x).write(value(x)) };
        }
    }
}
