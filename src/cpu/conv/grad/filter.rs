//! The gradient of the filters: `dw[k, (r, s, c)] = sum over pixels p of dy[p, k] * field(p)[r, s, c]`, a
//! product of the transposed `dy` with the receptive fields. The fields exist only as the panels of one
//! block: rows are gathered from the map, and zeros stand in for padding. The sum is long (all pixels of the
//! batch), see [`LongGemm`]. Plain 3x3 filters of larger maps take Winograd's way.

use std::ptr;

use crate::cpu::gemm::{Ahead, Arch, BLayout, CHUNK, LongGemm, Matrix, Panels, Product, Transposed, Vector};
use crate::isa::Isa;

use super::super::winograd::FilterPass;
use super::{GradShape, depthwise};

/// The gradient of a convolution's filters and how it is computed.
#[derive(Clone, Copy, Debug)]
pub struct FilterGrad {
    shape: GradShape,
    isa: Isa,
    how: How,
}

#[derive(Clone, Copy, Debug)]
enum How {
    /// 1x1, stride 1, no padding: a product of two matrices.
    Pointwise(Product),
    Depthwise,
    Winograd(FilterPass),
    Fields(LongGemm),
}

impl FilterGrad {
    /// The gradient with the kernel that suits the shape.
    pub fn new(shape: GradShape, isa: Isa) -> FilterGrad {
        let s = &shape;
        let (rows, channels, pixels) = (s.c_out / s.groups, s.c_in / s.groups, s.out_pixels());
        let plain = s.kernel == [1; 2] && s.stride == [1; 2] && s.padding == [0; 2] && s.map == s.out;
        let how = if s.is_depthwise() {
            How::Depthwise
        } else if plain && s.groups == 1 {
            let extents = [rows, channels, pixels];
            How::Pointwise(Product { transpose_a: true, layout: BLayout::RowMajor, extents, isa })
        } else if let Some(pass) = FilterPass::new(shape, isa) {
            How::Winograd(pass)
        } else {
            How::Fields(LongGemm::new(rows, s.kernel[0] * s.kernel[1] * channels, pixels, isa))
        };
        FilterGrad { shape, isa, how }
    }

    /// Name of the kernel.
    pub fn name(&self) -> String {
        let how = match self.how {
            How::Pointwise(_) => "pointwise",
            How::Depthwise => "depthwise",
            How::Winograd(_) => "winograd-f4",
            How::Fields(_) => "implicit-gemm",
        };
        format!("{how} {}", self.isa)
    }

    /// Values of workspace that [`FilterGrad::run`] needs.
    pub fn workspace_len(&self) -> usize {
        match self.how {
            How::Pointwise(product) => product.workspace_len(),
            How::Depthwise => depthwise::filter_workspace_len(&self.shape),
            How::Winograd(pass) => pass.workspace_len(),
            How::Fields(gemm) => gemm.workspace_len(),
        }
    }

    /// Computes KRSC `dw` from the map and the gradient of the result, tasks in parallel on the current rayon
    /// pool.
    ///
    /// # Panics
    /// When a slice is shorter than the shape says.
    pub fn run(&self, x: &[f32], dy: &[f32], dw: &mut [f32], workspace: &mut [f32]) {
        let s = &self.shape;
        assert!(x.len() >= s.map_len(), "map of {} values for {s:?}", x.len());
        assert!(dy.len() >= s.out_len(), "gradient of {} values for {s:?}", dy.len());
        assert!(dw.len() >= s.filter_len(), "filter of {} values for {s:?}", dw.len());
        match self.how {
            How::Pointwise(product) => product.run(dy, x, dw, workspace),
            How::Depthwise => depthwise::filter_grad(s, self.isa, x, dy, dw, workspace),
            How::Winograd(pass) => pass.run(x, dy, dw, workspace),
            How::Fields(gemm) => {
                let (rows, size) = (s.c_out / s.groups, s.filter_len() / s.groups);
                for group in 0..s.groups {
                    // An empty batch has no pixels to point at.
                    let a = Transposed(Matrix { data: dy.as_ptr().wrapping_add(group * rows), ld: s.c_out });
                    let b = Fields { shape: s, x: x.as_ptr(), group };
                    gemm.run(&a, &b, &mut dw[group * size..][..size], workspace);
                }
            }
        }
    }
}

/// The receptive fields of one group's output pixels, as columns of B: rows are pixels, columns `(r, s, c)`.
struct Fields<'a> {
    shape: &'a GradShape,
    x: *const f32,
    group: usize,
}

// SAFETY: only read, for the duration of a call that borrows the map.
unsafe impl Sync for Fields<'_> {}

/// Columns of a panel that are neighbours on a line of the map.
#[derive(Clone, Copy, Default)]
struct Piece {
    /// First column within the panel, and how many there are.
    at: usize,
    count: usize,
    /// Lines below a field's top, and values from its left.
    line: usize,
    offset: usize,
}

/// The pieces of a panel: undilated taps of one filter row form one piece.
struct Pieces {
    list: [Piece; NR_MAX],
    count: usize,
}

/// Most columns of a panel.
const NR_MAX: usize = 32;

impl Pieces {
    #[inline(always)]
    fn new(fields: &Fields<'_>, col: usize, cols: usize) -> Pieces {
        let s = fields.shape;
        let c = s.c_in / s.groups;
        let mut pieces = Pieces { list: [Piece::default(); NR_MAX], count: 0 };
        let mut at = 0;
        while at < cols {
            let (tap, channel) = ((col + at) / c, (col + at) % c);
            let (ky, kx) = (tap / s.kernel[1], tap % s.kernel[1]);
            let taps = if s.dilation[1] == 1 && s.groups == 1 { s.kernel[1] - kx } else { 1 };
            let count = (taps * c - channel).min(cols - at);
            let offset = kx * s.dilation[1] * s.c_in + fields.group * c + channel;
            pieces.list[pieces.count] = Piece { at, count, line: ky * s.dilation[0], offset };
            pieces.count += 1;
            at += count;
        }
        pieces
    }
}

impl Panels for Fields<'_> {
    #[inline(always)]
    unsafe fn panel<A: Arch>(&self, index: usize, k: usize, len: usize, scratch: *mut f32) -> *const f32 {
        let s = self.shape;
        let depth = s.kernel[0] * s.kernel[1] * s.c_in / s.groups;
        let col = index * A::NR;
        let pieces = Pieces::new(self, col, A::NR.min(depth - col));
        let pieces = &pieces.list[..pieces.count];
        let (width, height) = ((s.map[1] * s.c_in) as isize, s.map[0] as isize);
        let step = (s.stride[1] * s.c_in) as isize;
        let before = (s.padding[1] * s.c_in) as isize;
        let (mut image, mut line, mut column) =
            (k / (s.out[0] * s.out[1]), k / s.out[1] % s.out[0], k % s.out[1]);
        let mut row = 0;
        // One run of pixels on a line of the result at a time.
        while row < len {
            let run = (len - row).min(s.out[1] - column);
            let top = (line * s.stride[0]) as isize - s.padding[0] as isize;
            let map = self.x.wrapping_add(image * s.map[0] * s.map[1] * s.c_in);
            for piece in pieces {
                let y = top + piece.line as isize;
                let start = column as isize * step - before + piece.offset as isize;
                // SAFETY: rows row..row + run of the panel; what is read lies on line y of the map.
                unsafe {
                    let dst = scratch.add(row * A::NR + piece.at);
                    if y < 0 || y >= height {
                        for r in 0..run {
                            ptr::write_bytes(dst.add(r * A::NR), 0, piece.count);
                        }
                    } else {
                        let src = map.wrapping_offset(y * width);
                        gather::<A>(src, width, [start, step], piece.count, dst, run);
                    }
                }
            }
            row += run;
            column = 0;
            line += 1;
            if line == s.out[0] {
                (line, image) = (0, image + 1);
            }
        }
        scratch
    }

    #[inline(always)]
    fn ahead<A: Arch>(&self, index: usize, k: usize) -> Ahead {
        let s = self.shape;
        let c = s.c_in / s.groups;
        if k >= s.out_pixels() {
            return Ahead::NOTHING;
        }
        // Taken as if the pixels were neighbours on one line of the map.
        let tap = index * A::NR / c;
        let (column, line, image) = (k % s.out[1], k / s.out[1] % s.out[0], k / (s.out[0] * s.out[1]));
        let line = image * s.map[0] + line * s.stride[0] + tap / s.kernel[1] * s.dilation[0];
        let pixel = line * s.map[1] + column * s.stride[1] + tap % s.kernel[1] * s.dilation[1];
        let before = s.padding[0] * s.map[1] + s.padding[1];
        let start = self.x.wrapping_add(pixel * s.c_in + self.group * c + index * A::NR % c);
        let start = start.wrapping_sub(before * s.c_in);
        Ahead::across(start, s.stride[1] * s.c_in, A::NR.div_ceil(CHUNK))
    }
}

/// Copies the `count` values at `start + r * step` of a line of `width` values to row `r` of a panel, for
/// `rows` rows; values beside the line are zero.
///
/// # Safety
/// `line` holds `width` values, `dst` has room for `rows` rows; features as for `A`.
#[inline(always)]
unsafe fn gather<A: Arch>(
    line: *const f32,
    width: isize,
    [start, step]: [isize; 2],
    count: usize,
    dst: *mut f32,
    rows: usize,
) {
    let lanes = A::V::LANES;
    let last = width - count as isize;
    for r in 0..rows {
        let from = start + r as isize * step;
        // SAFETY: the contract above; values are read inside the line alone.
        unsafe {
            let dst = dst.add(r * A::NR);
            if from >= 0 && from <= last {
                let src = line.offset(from);
                let mut i = 0;
                while i < count {
                    A::V::load_up_to(src.add(i), count - i).store_up_to(dst.add(i), count - i);
                    i += lanes;
                }
            } else {
                for i in 0..count {
                    let at = from + i as isize;
                    *dst.add(i) = if at >= 0 && at < width { *line.offset(at) } else { 0.0 };
                }
            }
        }
    }
}
