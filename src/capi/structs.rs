//! Structs that grow. The first field of each is `struct_size`, the size in the header that the program was
//! built with: fields beyond it are zero when read and not touched when written, and fields that this library
//! does not know must be zero.

use super::status::Fault;
use std::ffi::{CStr, c_char};

/// A plain struct of the interface.
///
/// # Safety
/// `repr(C)`, begins with a `u32` called `struct_size`, and is valid whatever its bytes are, zeros among
/// them.
pub(crate) unsafe trait Versioned: Copy {
    /// What messages call it.
    const NAME: &'static str;
    /// Its size in the first header that had it.
    const FIRST: usize;
}

/// The size that a struct says it has.
///
/// # Safety
/// `from` is NULL or points to a struct of the interface.
unsafe fn stated<T: Versioned>(from: *const T) -> Result<usize, Fault> {
    if from.is_null() {
        return Err(Fault::argument(format!("{} is NULL", T::NAME)));
    }
    // SAFETY: the first field; read unaligned, as the pointer is the caller's.
    let size = unsafe { from.cast::<u32>().read_unaligned() } as usize;
    if size < T::FIRST {
        return Err(Fault::argument(format!(
            "{}.struct_size is {size}: set it to sizeof ({}), at least {}",
            T::NAME,
            T::NAME,
            T::FIRST
        )));
    }
    Ok(size)
}

/// A copy of a struct that the caller gives.
///
/// # Safety
/// `from` is NULL, or as many bytes as its `struct_size` says can be read there.
pub(crate) unsafe fn read<T: Versioned>(from: *const T) -> Result<T, Fault> {
    // SAFETY: as the caller says.
    let size = unsafe { stated(from) }?;
    let known = size.min(size_of::<T>());
    // SAFETY: zeros are valid by the trait.
    let mut value: T = unsafe { std::mem::zeroed() };
    // SAFETY: as many bytes are there on both sides.
    unsafe { std::ptr::copy_nonoverlapping(from.cast::<u8>(), (&raw mut value).cast(), known) };
    // SAFETY: the rest of what the caller says is there.
    let rest = unsafe { std::slice::from_raw_parts(from.cast::<u8>().add(known), size - known) };
    if rest.iter().any(|&byte| byte != 0) {
        return Err(Fault::argument(format!(
            "{} has {size} bytes, this library knows {known} of them, and the others are not zero: the program asks for \
             what a newer library has",
            T::NAME
        )));
    }
    Ok(value)
}

/// As [`read`]; all zeros for NULL.
///
/// # Safety
/// As [`read`].
pub(crate) unsafe fn read_or_default<T: Versioned>(from: *const T) -> Result<T, Fault> {
    if from.is_null() {
        // SAFETY: zeros are valid by the trait.
        return Ok(unsafe { std::mem::zeroed() });
    }
    // SAFETY: as the caller says.
    unsafe { read(from) }
}

/// Fills a struct of the caller, but for its `struct_size`.
///
/// # Safety
/// `to` is NULL, or as many bytes as its `struct_size` says can be written there.
pub(crate) unsafe fn write<T: Versioned>(value: T, to: *mut T) -> Result<(), Fault> {
    // SAFETY: as the caller says.
    let size = unsafe { stated(to.cast_const()) }?;
    let (own, known) = (size_of::<u32>(), size.min(size_of::<T>()));
    let from = (&raw const value).cast::<u8>();
    // SAFETY: as many bytes are there on both sides.
    unsafe { std::ptr::copy_nonoverlapping(from.add(own), to.cast::<u8>().add(own), known - own) };
    // What a newer header has and this library does not know is zero.
    // SAFETY: the rest of what the caller says is there.
    unsafe { to.cast::<u8>().add(known).write_bytes(0, size - known) };
    Ok(())
}

/// A text of the caller; `None` for NULL.
///
/// # Safety
/// `text` is NULL or ends with a zero byte, and lives as long as the result.
pub(crate) unsafe fn text<'a>(text: *const c_char, what: &str) -> Result<Option<&'a str>, Fault> {
    if text.is_null() {
        return Ok(None);
    }
    // SAFETY: as the caller says.
    let text = unsafe { CStr::from_ptr(text) };
    text.to_str().map(Some).map_err(|_| Fault::argument(format!("{what} is not UTF-8")))
}

/// A handle of the caller.
///
/// # Safety
/// `handle` is NULL or one that this library gave and that was not closed.
pub(crate) unsafe fn handle<'a, T>(handle: *const T, what: &str) -> Result<&'a T, Fault> {
    // SAFETY: as the caller says.
    unsafe { handle.as_ref() }.ok_or_else(|| Fault::argument(format!("{what} is NULL")))
}

/// A place of the caller for one value.
///
/// # Safety
/// `place` is NULL or can be written to.
pub(crate) unsafe fn give<T>(value: T, place: *mut T, what: &str) -> Result<(), Fault> {
    if place.is_null() {
        return Err(Fault::argument(format!("{what} is NULL")));
    }
    // SAFETY: as the caller says.
    unsafe { place.write(value) };
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[repr(C)]
    #[derive(Clone, Copy, Debug, PartialEq)]
    struct Grown {
        struct_size: u32,
        first: u32,
        later: u64,
    }

    // SAFETY: plain numbers.
    unsafe impl Versioned for Grown {
        const NAME: &'static str = "grown";
        const FIRST: usize = 8;
    }

    #[test]
    fn an_older_program_gives_and_gets_less() {
        let old = [8u32, 5, u32::MAX, u32::MAX];
        // SAFETY: eight bytes are there.
        let value = unsafe { read(old.as_ptr().cast::<Grown>()) }.unwrap();
        assert_eq!(value, Grown { struct_size: 8, first: 5, later: 0 });
        let mut old = [8u32, 0, 7, 7];
        // SAFETY: as above.
        unsafe { write(Grown { struct_size: 0, first: 6, later: 9 }, old.as_mut_ptr().cast()) }.unwrap();
        assert_eq!(old, [8, 6, 7, 7]);
    }

    #[test]
    fn a_newer_program_may_not_ask_for_what_is_not_there() {
        let mut newer = [24u32, 5, 1, 0, 0, 0];
        // SAFETY: 24 bytes are there.
        let value = unsafe { read(newer.as_ptr().cast::<Grown>()) }.unwrap();
        assert_eq!((value.first, value.later), (5, 1));
        newer[5] = 1;
        // SAFETY: as above.
        let fault = unsafe { read(newer.as_ptr().cast::<Grown>()) }.unwrap_err();
        assert!(fault.text.contains("grown has 24 bytes, this library knows 16"), "{}", fault.text);
        // SAFETY: as above.
        unsafe { write(value, newer.as_mut_ptr().cast()) }.unwrap();
        assert_eq!(newer, [24, 5, 1, 0, 0, 0]);
    }

    #[test]
    fn what_no_header_had_is_refused() {
        for size in [0u32, 4, 7] {
            let value = [size, 1, 1, 1];
            // SAFETY: more bytes are there than said.
            let fault = unsafe { read(value.as_ptr().cast::<Grown>()) }.unwrap_err();
            assert!(fault.text.contains("set it to sizeof (grown), at least 8"), "{}", fault.text);
        }
        // SAFETY: NULL is allowed.
        assert_eq!(unsafe { read::<Grown>(std::ptr::null()) }.unwrap_err().text, "grown is NULL");
    }
}
