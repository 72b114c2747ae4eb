//! Deformable convolution: `C[pixels, c_out] = A[pixels, taps * c_in] B`, where a row of A holds the samples
//! of one output pixel. A exists only as the strips of one block, or, in the gradient of the filters, as the
//! panels of one: channels lie side by side, so a sample of 16 channels is four loads and four multiply-adds.

use std::mem::MaybeUninit;

use crate::cpu::gemm::{
    self, Ahead, Arch, BLayout, CHUNK, Epilogue, Gemm, KC, LongGemm, Matrix, Packed, Panels, Rows, Target,
    Transposed, Vector, copy_row, strip_row,
};
use crate::isa::Isa;

/// A deformable convolution of `[batch, map, c_in]` by KRSC filters `[c_out, kernel, c_in]` to
/// `[batch, out, c_out]`, with offsets `[batch, out, kernel, 2]`, down and right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeformShape {
    /// Images.
    pub batch: usize,
    /// Rows and columns of the map.
    pub map: [usize; 2],
    /// Rows and columns of the result.
    pub out: [usize; 2],
    /// Channels of the map.
    pub c_in: usize,
    /// Channels of the result.
    pub c_out: usize,
    /// Rows and columns of a filter.
    pub kernel: [usize; 2],
    /// Rows and columns between neighbouring results.
    pub stride: [usize; 2],
    /// Zero rows above, zero columns left of the map.
    pub padding: [usize; 2],
    /// Rows and columns between neighbouring taps.
    pub dilation: [usize; 2],
}

impl DeformShape {
    /// Taps of a filter.
    pub fn taps(&self) -> usize {
        self.kernel[0] * self.kernel[1]
    }

    /// Terms of one result.
    pub fn depth(&self) -> usize {
        self.taps() * self.c_in
    }

    /// Pixels of the result, all images.
    pub fn pixels(&self) -> usize {
        self.batch * self.out[0] * self.out[1]
    }

    /// Values of the map.
    pub fn map_len(&self) -> usize {
        self.batch * self.map[0] * self.map[1] * self.c_in
    }

    /// Values of the result.
    pub fn out_len(&self) -> usize {
        self.pixels() * self.c_out
    }

    /// Values of the filters.
    pub fn filter_len(&self) -> usize {
        self.c_out * self.depth()
    }

    /// Values of the offsets.
    pub fn offset_len(&self) -> usize {
        self.pixels() * self.taps() * 2
    }
}

/// A deformable convolution by the GEMM that gathers its left side.
#[derive(Clone, Copy, Debug)]
pub struct DeformConv {
    shape: DeformShape,
    gemm: Gemm,
}

impl DeformConv {
    /// The convolution of this shape.
    pub fn new(shape: DeformShape, isa: Isa) -> DeformConv {
        let gemm = Gemm { m: shape.pixels(), n: shape.c_out, k: shape.depth(), isa };
        DeformConv { shape, gemm }
    }

    /// Values of the packed filters.
    pub fn packed_len(&self) -> usize {
        self.gemm.packed_len()
    }

    /// Packs KRSC filters into `packed[..packed_len()]`, in parallel.
    ///
    /// # Panics
    /// When a slice is shorter than the shape says.
    pub fn pack(&self, filter: &[f32], packed: &mut [f32]) {
        self.gemm.pack_b(filter, BLayout::Transposed, packed);
    }

    /// `y = epilogue(conv(x))`, tasks in parallel on the current rayon pool. The residual is laid out as `y`.
    ///
    /// # Panics
    /// When a slice is shorter than the shape says.
    pub fn run(&self, x: &[f32], offset: &[f32], packed: &[f32], epilogue: &Epilogue, y: &mut [f32]) {
        let (s, Gemm { m, n, k, isa }) = (&self.shape, self.gemm);
        assert!(packed.len() >= self.packed_len(), "packed filter of {} values for {s:?}", packed.len());
        assert!(y.len() >= s.out_len(), "output of {} values for {s:?}", y.len());
        let samples = Samples::new(s, x, offset);
        let target = Target { c: y.as_mut_ptr(), ldc: n, finish: epilogue.finish(m, n, n) };
        gemm::run(isa, [m, n, k], &samples, &Packed { data: packed.as_ptr(), k_total: k }, target);
    }
}

/// The gradient of a deformable convolution's filters: a product of the transposed `dy` with the samples,
/// over all pixels of the batch.
#[derive(Clone, Copy, Debug)]
pub struct DeformFilterGrad {
    shape: DeformShape,
    gemm: LongGemm,
}

impl DeformFilterGrad {
    /// The gradient for this shape.
    pub fn new(shape: DeformShape, isa: Isa) -> DeformFilterGrad {
        DeformFilterGrad { shape, gemm: LongGemm::new(shape.c_out, shape.depth(), shape.pixels(), isa) }
    }

    /// Values of workspace that [`DeformFilterGrad::run`] needs.
    pub fn workspace_len(&self) -> usize {
        self.gemm.workspace_len()
    }

    /// Computes KRSC `dw`, tasks in parallel on the current rayon pool.
    ///
    /// # Panics
    /// When a slice is shorter than the shape says.
    pub fn run(&self, x: &[f32], dy: &[f32], offset: &[f32], dw: &mut [f32], workspace: &mut [f32]) {
        let s = &self.shape;
        assert!(dy.len() >= s.out_len(), "gradient of {} values for {s:?}", dy.len());
        let a = Transposed(Matrix { data: dy.as_ptr(), ld: s.c_out });
        self.gemm.run(&a, &Samples::new(s, x, offset), dw, workspace);
    }
}

/// What the taps of all output pixels read.
pub(super) struct Samples<'a> {
    shape: &'a DeformShape,
    x: &'a [f32],
    offset: &'a [f32],
}

/// An output pixel.
#[derive(Clone, Copy)]
pub(super) struct Place {
    index: usize,
    image: usize,
    row: usize,
    column: usize,
}

/// The four pixels around a sampling point, row by row.
pub(super) struct Corners {
    /// Their first channels in the map; `None` outside it.
    pub at: [Option<usize>; 4],
    /// Shares of the pixels before and after the point, down and right.
    pub share: [[f32; 2]; 2],
}

impl Corners {
    const NONE: Corners = Corners { at: [None; 4], share: [[0.0; 2]; 2] };

    /// Share of a pixel in the sample.
    #[inline(always)]
    pub fn weight(&self, corner: usize) -> f32 {
        self.share[0][corner / 2] * self.share[1][corner % 2]
    }
}

impl<'a> Samples<'a> {
    /// The samples of a map.
    ///
    /// # Panics
    /// When a slice is shorter than the shape says.
    pub fn new(shape: &'a DeformShape, x: &'a [f32], offset: &'a [f32]) -> Self {
        assert!(x.len() >= shape.map_len(), "map of {} values for {shape:?}", x.len());
        assert!(offset.len() >= shape.offset_len(), "offsets of {} values for {shape:?}", offset.len());
        Samples { shape, x, offset }
    }

    /// The output pixel of this index, over all images.
    #[inline(always)]
    pub fn place(&self, index: usize) -> Place {
        let [height, width] = self.shape.out;
        Place { index, image: index / (width * height), row: index / width % height, column: index % width }
    }

    /// The pixel after `place`.
    #[inline(always)]
    pub fn next(&self, place: Place) -> Place {
        let Place { index, image, row, column } = place;
        let [height, width] = self.shape.out;
        if column + 1 < width {
            Place { index: index + 1, column: column + 1, ..place }
        } else if row + 1 < height {
            Place { index: index + 1, row: row + 1, column: 0, ..place }
        } else {
            Place { index: index + 1, image: image + 1, row: 0, column: 0 }
        }
    }

    /// The pixels around the point that a tap reads.
    ///
    /// The point's share between two pixels is that of the offset alone, which is exact: a sum with the
    /// tap's place would lose its last digits in wide maps.
    #[inline(always)]
    pub fn corners(&self, place: Place, tap: usize) -> Corners {
        let s = self.shape;
        let offset = &self.offset[(place.index * s.taps() + tap) * 2..][..2];
        let tap = [tap / s.kernel[1], tap % s.kernel[1]];
        let first = [place.row, place.column];
        let mut before = [0; 2];
        let mut share = [[0.0; 2]; 2];
        for axis in 0..2 {
            let whole = offset[axis].floor();
            let part = offset[axis] - whole;
            let tap = (first[axis] * s.stride[axis] + tap[axis] * s.dilation[axis]) as isize;
            before[axis] = tap - s.padding[axis] as isize + whole as i32 as isize;
            share[axis] = [1.0 - part, part];
            // A whole pixel or more outside, or nowhere: the part of an infinite offset is NaN.
            let touches = before[axis] >= 0 || before[axis] == -1 && part > 0.0;
            if !touches || before[axis] >= s.map[axis] as isize || part.is_nan() {
                return Corners::NONE;
            }
        }
        let mut corners = Corners { at: [None; 4], share };
        for (corner, at) in corners.at.iter_mut().enumerate() {
            let row = before[0].wrapping_add((corner / 2) as isize) as usize;
            let column = before[1].wrapping_add((corner % 2) as isize) as usize;
            if row < s.map[0] && column < s.map[1] {
                *at = Some(((place.image * s.map[0] + row) * s.map[1] + column) * s.c_in);
            }
        }
        corners
    }

    /// Writes the samples of `count` channels from `channel` on, the next [`CHUNK`] of them `spread` further.
    ///
    /// # Safety
    /// The map has these channels, `to` has room for them; features as for `A`.
    #[inline(always)]
    unsafe fn sample<A: Arch>(
        &self,
        corners: &Corners,
        channel: usize,
        count: usize,
        to: *mut f32,
        spread: usize,
    ) {
        let mut terms = Terms { from: [std::ptr::null(); 4], weight: [0.0; 4] };
        let mut found = 0;
        for corner in 0..4 {
            if let Some(at) = corners.at[corner] {
                terms.from[found] = self.x[at + channel..][..count].as_ptr();
                terms.weight[found] = corners.weight(corner);
                found += 1;
            }
        }
        // SAFETY: every term has `count` values; the caller's contract.
        unsafe {
            match found {
                4 => terms.add_up::<A, 4>(count, to, spread),
                2 => terms.add_up::<A, 2>(count, to, spread),
                1 => terms.add_up::<A, 1>(count, to, spread),
                _ => terms.add_up::<A, 0>(count, to, spread),
            }
        }
    }
}

/// Pixels that lie on the map, with their shares.
struct Terms {
    from: [*const f32; 4],
    weight: [f32; 4],
}

impl Terms {
    /// The sum of the first `N` terms, written as [`Samples::sample`] does.
    ///
    /// # Safety
    /// As there.
    #[inline(always)]
    unsafe fn add_up<A: Arch, const N: usize>(&self, count: usize, to: *mut f32, spread: usize) {
        // SAFETY: reads and writes channels below `count` alone.
        unsafe {
            for chunk in (0..count).step_by(CHUNK) {
                let end = count.min(chunk + CHUNK);
                for at in (chunk..end).step_by(A::V::LANES) {
                    let mut sum = A::V::splat(0.0);
                    for term in 0..N {
                        let pixel = A::V::load_up_to(self.from[term].add(at), end - at);
                        sum = pixel.mul_add(A::V::splat(self.weight[term]), sum);
                    }
                    sum.store_up_to(to.add(chunk / CHUNK * spread + at - chunk), end - at);
                }
            }
        }
    }
}

impl Rows for Samples<'_> {
    #[inline(always)]
    fn ahead(&self, _: usize, _: usize, _: usize) -> Ahead {
        Ahead::NOTHING
    }

    #[inline(always)]
    unsafe fn fill<A: Arch>(&self, row: usize, rows: usize, k: usize, len: usize, strips: *mut f32) {
        if len == 0 {
            return;
        }
        let c = self.shape.c_in;
        let aligned = c.is_multiple_of(CHUNK);
        let mut line = MaybeUninit::<[f32; KC]>::uninit();
        let line = line.as_mut_ptr().cast::<f32>();
        let mut place = self.place(row);
        for r in 0..rows {
            // SAFETY: the strip has a row of `len` values at `to`, as has the line.
            unsafe {
                let to = strips.add(strip_row(r, len, A::MR));
                let (mut tap, mut channel, mut at) = (k / c, k % c, 0);
                while at < len {
                    let count = (c - channel).min(len - at);
                    let corners = self.corners(place, tap);
                    if aligned {
                        self.sample::<A>(&corners, channel, count, to.add(at * A::MR), CHUNK * A::MR);
                    } else {
                        // Taps that straddle cache lines meet in a line buffer first.
                        self.sample::<A>(&corners, channel, count, line.add(at), CHUNK);
                    }
                    (tap, channel, at) = (tap + 1, 0, at + count);
                }
                if !aligned {
                    copy_row(line, to, len, A::MR);
                }
            }
            place = self.next(place);
        }
    }
}

/// As columns of B: rows are pixels, columns taps and their channels.
impl Panels for Samples<'_> {
    #[inline(always)]
    unsafe fn panel<A: Arch>(&self, index: usize, k: usize, len: usize, scratch: *mut f32) -> *const f32 {
        let (c, first) = (self.shape.c_in, index * A::NR);
        let columns = A::NR.min(self.shape.depth() - first);
        let mut place = self.place(k);
        for row in 0..len {
            let (mut tap, mut channel, mut at) = (first / c, first % c, 0);
            while at < columns {
                let count = (c - channel).min(columns - at);
                let corners = self.corners(place, tap);
                // SAFETY: the row of the panel has room for `columns` values.
                unsafe {
                    self.sample::<A>(&corners, channel, count, scratch.add(row * A::NR + at), CHUNK);
                }
                (tap, channel, at) = (tap + 1, 0, at + count);
            }
            place = self.next(place);
        }
        scratch
    }

    #[inline(always)]
    fn ahead<A: Arch>(&self, _: usize, _: usize) -> Ahead {
        Ahead::NOTHING
    }
}
