//! Implicit GEMM: `C[pixels, c_out] = A[pixels, taps * c_in] B`, where a row of A is the receptive field of one
//! output pixel. A exists only as the strips of one block: rows are gathered from the NHWC map, and zeros
//! stand in for padding.

use std::ptr;

use crate::cpu::gemm::{Arch, CHUNK, KC, Rows, copy_row, strip_row};

use super::ConvShape;

/// The receptive fields of one group's output pixels.
pub(super) struct Fields {
    pub shape: ConvShape,
    /// The map, all channels.
    pub x: *const f32,
    pub group: usize,
}

// SAFETY: only read, for the duration of a call that borrows the map.
unsafe impl Sync for Fields {}

impl Rows for Fields {
    #[inline(always)]
    unsafe fn fill<A: Arch>(&self, row: usize, rows: usize, k: usize, len: usize, strips: *mut f32) {
        if len == 0 {
            return;
        }
        let s = &self.shape;
        let (out_h, out_w) = (s.out_height(), s.out_width());
        let (mut x, mut y, mut image) = (row % out_w, row / out_w % out_h, row / (out_w * out_h));
        let mut line = Line([0.0; KC + 2 * CHUNK]);
        for r in 0..rows {
            let field = Field {
                image: self.x.wrapping_add(image * s.height * s.width * s.c_in),
                top: (y * s.stride[0]) as isize - s.padding[0] as isize,
                left: (x * s.stride[1]) as isize - s.padding[1] as isize,
            };
            // SAFETY: the strip has a row of `len` values at `dst`; pieces lie inside the map and the line.
            unsafe {
                let dst = strips.add(strip_row(r, len, A::MR));
                if s.c_in / s.groups % CHUNK == 0 {
                    self.pieces(&field, k, len, |at, src, count| {
                        let dst = dst.add(at * A::MR);
                        if src.is_null() {
                            for i in 0..count / CHUNK {
                                ptr::write_bytes(dst.add(i * A::MR * CHUNK), 0, CHUNK);
                            }
                        } else {
                            copy_row(src, dst, count, A::MR);
                        }
                    });
                } else {
                    // Pieces that straddle cache lines meet in a line buffer first.
                    self.pieces(&field, k, len, |at, src, count| line.put(at, src, count));
                    copy_row(line.0.as_ptr(), dst, len.next_multiple_of(CHUNK), A::MR);
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

impl Fields {
    /// Calls `put(offset, source, count)` for the contiguous pieces of `k..k + len` of one field; a null source
    /// means zeros.
    #[inline(always)]
    unsafe fn pieces(
        &self,
        field: &Field,
        k: usize,
        len: usize,
        mut put: impl FnMut(usize, *const f32, usize),
    ) {
        let s = &self.shape;
        let c = s.c_in / s.groups;
        // Undilated taps of one filter row are neighbours in memory: one piece of up to kernel[1] * c values.
        let merged = s.dilation[1] == 1 && s.groups == 1;
        let (mut tap, mut channel) = (k / c, k % c);
        let mut at = 0;
        while at < len {
            let (ky, kx) = (tap / s.kernel[1], tap % s.kernel[1]);
            let y = field.top + (ky * s.dilation[0]) as isize;
            let x = field.left + (kx * s.dilation[1]) as isize;
            let inside = y >= 0 && y < s.height as isize && x >= 0 && x < s.width as isize;
            let mut taps = 1;
            if inside && merged {
                taps = (s.kernel[1] - kx).min(s.width - x as usize);
            }
            let count = (taps * c - channel).min(len - at);
            let src = if inside {
                let pixel = y as usize * s.width + x as usize;
                field.image.wrapping_add(pixel * s.c_in + self.group * c + channel)
            } else {
                ptr::null()
            };
            put(at, src, count);
            at += count;
            tap += (channel + count) / c;
            channel = (channel + count) % c;
        }
    }
}

/// One row of A in plain order.
#[repr(align(64))]
struct Line([f32; KC + 2 * CHUNK]);

impl Line {
    /// # Safety
    /// `src` is null or holds `count` values; `at + count <= KC`.
    #[inline(always)]
    unsafe fn put(&mut self, at: usize, src: *const f32, count: usize) {
        // SAFETY: inside `src` and the line. Eight at a time, then one by one: pieces are short (21 values in
        // a 7x7 stem), so a call of memcpy would cost more than the copy.
        unsafe {
            let dst = self.0.as_mut_ptr().add(at);
            if src.is_null() {
                for i in 0..count {
                    *dst.add(i) = 0.0;
                }
                return;
            }
            let mut i = 0;
            while i + 8 <= count {
                ptr::copy_nonoverlapping(src.add(i), dst.add(i), 8);
                i += 8;
            }
            while i < count {
                *dst.add(i) = *src.add(i);
                i += 1;
            }
        }
    }
}
