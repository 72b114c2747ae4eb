//! Implicit GEMM: `C[pixels, c_out] = A[pixels, taps * c_in] B`, where a row of A is the receptive field of
//! one output pixel. A exists only as the strips of one block: rows are gathered from the NHWC map, and zeros
//! stand in for padding.

use std::mem::MaybeUninit;
use std::ptr;

use crate::cpu::gemm::{Ahead, Arch, CHUNK, KC, Rows, Vector, copy_row, strip_row};

use super::ConvShape;

/// The receptive fields of one group's output pixels.
pub(super) struct Fields {
    pub shape: ConvShape,
    /// The map, all channels.
    pub x: *const f32,
    pub group: usize,
    /// Rows and columns of the output.
    pub out: [usize; 2],
    /// Row and column of the map, or of the padding around it, that the first tap of the first output reads.
    pub origin: [isize; 2],
}

impl Fields {
    /// The fields of a convolution.
    pub fn new(shape: ConvShape, x: *const f32, group: usize) -> Fields {
        let out = [shape.out_height(), shape.out_width()];
        Fields { shape, x, group, out, origin: shape.padding.map(|zeros| -(zeros as isize)) }
    }
}

// SAFETY: only read, for the duration of a call that borrows the map.
unsafe impl Sync for Fields {}

impl Rows for Fields {
    #[inline(always)]
    fn ahead(&self, row: usize, rows: usize, k: usize) -> Ahead {
        let s = &self.shape;
        let [out_h, out_w] = self.out;
        if row >= s.batch * out_h * out_w {
            return Ahead::NOTHING;
        }
        // Taken as if the rows were neighbours on one line of the map.
        let (x, y, image) = (row % out_w, row / out_w % out_h, row / (out_w * out_h));
        let at = Cursor::new(s, k);
        let line = image * s.height + y * s.stride[0] + at.ky * s.dilation[0];
        let pixel = line * s.width + x * s.stride[1] + at.kx * s.dilation[1];
        let before = self.origin[0] * s.width as isize + self.origin[1];
        let start = self.x.wrapping_add(pixel * s.c_in + self.group * (s.c_in / s.groups) + at.channel);
        Ahead::along(start.wrapping_offset(before * s.c_in as isize), rows, s.stride[1] * s.c_in)
    }

    #[inline(always)]
    unsafe fn fill<A: Arch>(&self, row: usize, rows: usize, k: usize, len: usize, strips: *mut f32) {
        if len == 0 {
            return;
        }
        let s = &self.shape;
        let [out_h, out_w] = self.out;
        let (mut x, mut y, mut image) = (row % out_w, row / out_w % out_h, row / (out_w * out_h));
        let start = Cursor::new(s, k);
        let inside = Inside::new(self, start, len);
        let aligned = (s.c_in / s.groups).is_multiple_of(CHUNK);
        // A strip's rows are spread once all are gathered: reading a line just after writing it in odd pieces
        // would wait for every store to reach the cache.
        let mut lines = MaybeUninit::<[Line; MR_MAX]>::uninit();
        let lines = lines.as_mut_ptr().cast::<Line>();
        for r in 0..rows {
            let field = Field {
                image: self.x.wrapping_add(image * s.height * s.width * s.c_in),
                top: (y * s.stride[0]) as isize + self.origin[0],
                left: (x * s.stride[1]) as isize + self.origin[1],
            };
            let mut cursor = start;
            let mut at = 0;
            // SAFETY: the strip has a row of `len` values at `dst`; pieces lie inside the map and the line.
            unsafe {
                let dst = strips.add(strip_row(r, len, A::MR));
                if let Some(pieces) = inside.as_ref().filter(|_| field.is_inside(s)) {
                    let origin = field
                        .image
                        .wrapping_offset((field.top * s.width as isize + field.left) * s.c_in as isize);
                    for &(offset, count) in pieces.iter() {
                        let src = origin.wrapping_add(offset);
                        if aligned {
                            copy_row(src, dst.add(at * A::MR), count, A::MR);
                        } else {
                            put::<A>(lines.add(r % A::MR).cast::<f32>().add(at), src, count);
                        }
                        at += count;
                    }
                }
                while at < len {
                    let (src, count) = cursor.piece(self, &field, len - at);
                    match (aligned, src.is_null()) {
                        (true, false) => copy_row(src, dst.add(at * A::MR), count, A::MR),
                        (true, true) => {
                            for i in 0..count / CHUNK {
                                ptr::write_bytes(dst.add((at + i * CHUNK) * A::MR), 0, CHUNK);
                            }
                        }
                        // Pieces that straddle cache lines meet in a line buffer first.
                        (false, _) => put::<A>(lines.add(r % A::MR).cast::<f32>().add(at), src, count),
                    }
                    at += count;
                }
                if !aligned && (r % A::MR == A::MR - 1 || r == rows - 1) {
                    for r in r / A::MR * A::MR..=r {
                        let line = lines.add(r % A::MR).cast::<f32>();
                        copy_row(line, strips.add(strip_row(r, len, A::MR)), len, A::MR);
                    }
                }
            }
            x += 1;
            if x == out_w {
                (x, y) = (0, y + 1);
                if y == out_h {
                    (y, image) = (0, image + 1);
                }
            }
        }
    }
}

/// Where one output pixel looks.
struct Field {
    image: *const f32,
    top: isize,
    left: isize,
}

impl Field {
    /// Whether no tap falls on padding.
    #[inline(always)]
    fn is_inside(&self, s: &ConvShape) -> bool {
        let fits = |from: isize, axis: usize, size: usize| {
            from >= 0 && from as usize + s.dilation[axis] * (s.kernel[axis] - 1) < size
        };
        fits(self.top, 0, s.height) && fits(self.left, 1, s.width)
    }
}

/// The pieces of every field without padding, as (offset from the field's first tap, length): most fields are
/// such, and cost no more than the copies.
struct Inside {
    pieces: [(usize, usize); Inside::MOST],
    count: usize,
}

impl Inside {
    const MOST: usize = 16;

    /// The pieces of `len` values from `start`; none if they are too many to be worth it.
    #[inline(always)]
    fn new(fields: &Fields, start: Cursor, len: usize) -> Option<Inside> {
        let s = &fields.shape;
        let mut inside = Inside { pieces: [(0, 0); Inside::MOST], count: 0 };
        let c = s.c_in / s.groups;
        let (mut at, mut cursor) = (0, start);
        while at < len {
            let offset = (cursor.ky * s.dilation[0] * s.width + cursor.kx * s.dilation[1]) * s.c_in
                + fields.group * c
                + cursor.channel;
            let taps = if s.dilation[1] == 1 && s.groups == 1 { s.kernel[1] - cursor.kx } else { 1 };
            let count = cursor.advance(s, taps, len - at);
            *inside.pieces.get_mut(inside.count)? = (offset, count);
            inside.count += 1;
            at += count;
        }
        Some(inside)
    }

    #[inline(always)]
    fn iter(&self) -> std::slice::Iter<'_, (usize, usize)> {
        self.pieces[..self.count].iter()
    }
}

/// A place in the depth of a field: filter row, filter column, channel.
#[derive(Clone, Copy)]
struct Cursor {
    ky: usize,
    kx: usize,
    channel: usize,
}

impl Cursor {
    fn new(s: &ConvShape, k: usize) -> Cursor {
        let c = s.c_in / s.groups;
        Cursor { ky: k / c / s.kernel[1], kx: k / c % s.kernel[1], channel: k % c }
    }

    /// The next piece of at most `room` values that are neighbours in memory, null for zeros, and its length.
    /// Only the last piece of a block may be cut short by `room`.
    #[inline(always)]
    fn piece(&mut self, fields: &Fields, field: &Field, room: usize) -> (*const f32, usize) {
        let s = &fields.shape;
        let c = s.c_in / s.groups;
        let y = field.top + (self.ky * s.dilation[0]) as isize;
        let x = field.left + (self.kx * s.dilation[1]) as isize;
        let inside = y >= 0 && y < s.height as isize && x >= 0 && x < s.width as isize;
        let (mut src, mut taps) = (ptr::null(), 1);
        if inside {
            let pixel = y as usize * s.width + x as usize;
            src = field.image.wrapping_add(pixel * s.c_in + fields.group * c + self.channel);
            // Undilated taps of one filter row are neighbours in memory.
            if s.dilation[1] == 1 && s.groups == 1 {
                taps = (s.kernel[1] - self.kx).min(s.width - x as usize);
            }
        }
        (src, self.advance(s, taps, room))
    }

    /// Moves past the rest of `taps` taps, or past `room` values of them if those are fewer (and the last);
    /// gives the number of values.
    #[inline(always)]
    fn advance(&mut self, s: &ConvShape, taps: usize, room: usize) -> usize {
        let whole = taps * (s.c_in / s.groups) - self.channel;
        if whole <= room {
            self.channel = 0;
            self.kx += taps;
            if self.kx == s.kernel[1] {
                (self.kx, self.ky) = (0, self.ky + 1);
            }
        }
        whole.min(room)
    }
}

/// One row of A in plain order, with room for a whole vector past the last piece.
type Line = [f32; KC + CHUNK];

/// Most rows of a strip.
const MR_MAX: usize = 14;

/// Copies a piece into a line, vector by vector: pieces are short (21 values in a 7x7 stem), so a call of
/// memcpy would cost more than the copy.
///
/// # Safety
/// `src` is null (zeros) or holds `count` values; `dst` has room for them and a vector more; features as for
/// `A`.
#[inline(always)]
unsafe fn put<A: Arch>(dst: *mut f32, src: *const f32, count: usize) {
    for i in (0..count).step_by(A::V::LANES) {
        // SAFETY: the contract above.
        unsafe {
            let v = if src.is_null() { A::V::splat(0.0) } else { A::V::load_up_to(src.add(i), count - i) };
            v.store(dst.add(i));
        }
    }
}
