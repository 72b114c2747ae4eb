//! Implicit GEMM of convolutions so dilated that whole taps of many outputs lie in the padding (DeepLab's
//! branches: at dilation 36 on 64x64, six taps of ten).
//!
//! Along each axis the outputs are cut where a tap enters or leaves the map. The outputs of a rectangle so
//! made see the same taps inside the map and none outside of it: it is a product over those alone. What is
//! left out are sums of zeros, block by block as they would have been added, so the results are the same.

use std::ops::Range;

use crate::cpu::gemm::{Ahead, Arch, Block, KC, MC, Panels, Places, Target, for_each_task, on, tile_shape};

use super::implicit::Fields;
use super::{Conv, ConvShape};

/// Whether products are left out for this shape: if it is worth cutting the map up. Blocks of K may not
/// straddle taps.
pub(super) fn suits(s: &ConvShape) -> bool {
    let plain = s.stride == [1, 1] && s.groups == 1 && s.c_in.is_multiple_of(KC);
    let all = s.kernel[0] * s.kernel[1] * s.out_height() * s.out_width();
    plain && s.dilation != [1, 1] && 10 * inside(s) <= 9 * all
}

/// Products for a pair of channels, a tap and a pixel each, that the implicit GEMM computes.
pub(super) fn products(s: &ConvShape) -> usize {
    match suits(s) {
        true => s.batch * inside(s),
        false => s.kernel[0] * s.kernel[1] * s.out_pixels(),
    }
}

/// Pairs of an output of one image and a tap of its that lies in the map.
fn inside(s: &ConvShape) -> usize {
    let along = |axis: usize| (0..s.kernel[axis]).map(|tap| seen(s, axis, tap).count()).sum::<usize>();
    along(0) * along(1)
}

/// The outputs along an axis for which tap `tap` lies in the map, at stride 1.
fn seen(s: &ConvShape, axis: usize, tap: usize) -> Range<usize> {
    let (size, out) = ([s.height, s.width][axis], [s.out_height(), s.out_width()][axis]);
    let (padding, ahead) = (s.padding[axis], tap * s.dilation[axis]);
    padding.saturating_sub(ahead).min(out)..(padding + size).saturating_sub(ahead).min(out)
}

/// Outputs along an axis that see the same taps.
#[derive(Clone, Copy, Debug)]
struct Span {
    first: usize,
    count: usize,
    first_tap: usize,
    taps: usize,
}

impl Span {
    /// The one that starts at output `first`.
    fn new(s: &ConvShape, axis: usize, first: usize) -> Span {
        let ranges = || (0..s.kernel[axis]).map(|tap| seen(s, axis, tap));
        let ends = ranges().flat_map(|range| [range.start, range.end]);
        let out = [s.out_height(), s.out_width()][axis];
        let end = ends.filter(|&end| end > first).fold(out, usize::min);
        let first_tap = ranges().position(|range| range.contains(&first)).unwrap_or(0);
        let taps = ranges().filter(|range| range.contains(&first)).count();
        // Those that see none at all see the first one's zeros.
        Span { first, count: end - first, first_tap, taps: taps.max(1) }
    }

    /// All of an axis, in order.
    fn all(s: &ConvShape, axis: usize) -> impl Iterator<Item = Span> {
        let out = [s.out_height(), s.out_width()][axis];
        let next = move |first: usize| (first < out).then(|| Span::new(s, axis, first));
        std::iter::successors(next(0), move |span| next(span.first + span.count))
    }
}

/// Computes the convolution rectangle by rectangle. There is no residual.
///
/// A task takes some rows of one rectangle and all columns: cut any narrower, it would gather its rows too
/// often. Tasks of all rectangles are run as one lot.
pub(super) fn run(conv: &Conv, x: &[f32], packed: &[f32], target: Target) {
    let s = &conv.shape;
    let rows = |spans: [Span; 2]| s.batch * spans[0].count * spans[1].count;
    let rectangles = || Span::all(s, 0).flat_map(|down| Span::all(s, 1).map(move |across| [down, across]));
    for_each_task(rectangles().map(|spans| rows(spans).div_ceil(MC)).sum(), |task| {
        let mut index = task;
        for spans in rectangles() {
            let blocks = rows(spans).div_ceil(MC);
            if index < blocks {
                let step = rows(spans).div_ceil(blocks).next_multiple_of(tile_shape(conv.isa).0);
                let rows = (index * step).min(rows(spans))..((index + 1) * step).min(rows(spans));
                return block(conv, spans, rows, x, packed, target);
            }
            index -= blocks;
        }
    });
}

/// Computes some rows, at most [`MC`], of the product of one rectangle.
fn block(conv: &Conv, spans: [Span; 2], rows: Range<usize>, x: &[f32], packed: &[f32], target: Target) {
    let s = &conv.shape;
    let origin = [0, 1].map(|axis| {
        let span = spans[axis];
        (span.first + span.first_tap * s.dilation[axis]) as isize - s.padding[axis] as isize
    });
    let out = spans.map(|span| span.count);
    let shape = ConvShape { kernel: spans.map(|span| span.taps), ..*s };
    let a = &Fields { shape, x: x.as_ptr(), group: 0, out, origin };
    let b = &Taps { data: packed.as_ptr(), shape: s, spans };
    let places = &Rectangle { shape: s, spans };
    if !rows.is_empty() {
        on(conv.isa, Block { a, b, target, places, rows, cols: 0..s.c_out, k: 0..shape.depth() });
    }
}

/// The rows of packed filters that belong to some of the taps.
struct Taps<'a> {
    data: *const f32,
    shape: &'a ConvShape,
    spans: [Span; 2],
}

// SAFETY: only read, for the duration of a call that borrows the slice behind the pointer.
unsafe impl Sync for Taps<'_> {}

impl Taps<'_> {
    /// Row `k` of these taps in panel `index`.
    #[inline(always)]
    fn row<A: Arch>(&self, index: usize, k: usize) -> *const f32 {
        let s = self.shape;
        let [down, across] = &self.spans;
        let (tap, channel) = (k / s.c_in, k % s.c_in);
        let (ky, kx) = (down.first_tap + tap / across.taps, across.first_tap + tap % across.taps);
        let row = index * s.depth() + (ky * s.kernel[1] + kx) * s.c_in + channel;
        self.data.wrapping_add(row * A::NR)
    }
}

impl Panels for Taps<'_> {
    #[inline(always)]
    unsafe fn panel<A: Arch>(&self, index: usize, k: usize, _: usize, _: *mut f32) -> *const f32 {
        self.row::<A>(index, k)
    }

    #[inline(always)]
    fn ahead<A: Arch>(&self, index: usize, k: usize) -> Ahead {
        Ahead::panel(self.row::<A>(index, k), A::NR)
    }
}

/// Where the outputs of a rectangle lie in the map.
struct Rectangle<'a> {
    shape: &'a ConvShape,
    spans: [Span; 2],
}

impl Places for Rectangle<'_> {
    #[inline(always)]
    fn locate(&self, row: usize, rows: usize, ldc: usize) -> (usize, usize) {
        let [down, across] = &self.spans;
        let (line, column) = (row / across.count, row % across.count);
        let (image, line) = (line / down.count, line % down.count);
        let y = image * self.shape.out_height() + down.first + line;
        ((y * self.shape.out_width() + across.first + column) * ldc, rows.min(across.count - column))
    }
}
