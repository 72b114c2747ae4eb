//! The gradients of a deformable convolution's map and offsets.
//!
//! A task owns a slice of the channels of one image: for a few pixels at a time it computes the gradients of
//! their samples, `dy` by the filters, and hands them on to the pixels of the map that were blended, which no
//! other task writes. The gradient of an offset sums over all channels: slices keep theirs apart, and they
//! are added up in order.

use crate::cpu::gemm::{
    Arch, Block, CHUNK, Dense, Epilogue, Job, Matrix, Packed, SharedMut, Target, Vector, add_up,
    for_each_task, on, tile_shape,
};
use crate::isa::Isa;

use super::super::deform::{Corners, DeformShape, Samples};

/// Channels of a slice: two cache lines of a pixel.
const SLICE: usize = 32;
/// Pixels whose samples' gradients lie in cache: with 9 taps, 97 KB.
const PIXELS: usize = 84;

/// The gradients of map and offsets for one shape.
#[derive(Clone, Copy, Debug)]
pub struct DeformInputGrad {
    shape: DeformShape,
    isa: Isa,
}

impl DeformInputGrad {
    /// The gradients for this shape.
    pub fn new(shape: DeformShape, isa: Isa) -> DeformInputGrad {
        DeformInputGrad { shape, isa }
    }

    fn slices(&self) -> usize {
        self.shape.c_in.div_ceil(SLICE)
    }

    /// Channels of a slice.
    fn width(&self, slice: usize) -> usize {
        SLICE.min(self.shape.c_in - slice * SLICE)
    }

    /// Values of the packed filters of a slice of this width.
    fn slice_len(&self, width: usize) -> usize {
        (self.shape.taps() * width).next_multiple_of(tile_shape(self.isa).1) * self.shape.c_out
    }

    /// Values of the packed filters.
    pub fn packed_len(&self) -> usize {
        (0..self.slices()).map(|slice| self.slice_len(self.width(slice))).sum()
    }

    /// Packs KRSC filters into `packed[..packed_len()]`, slice by slice as panels of a right side
    /// `[c_out, (tap, channel)]`, in parallel.
    ///
    /// # Panics
    /// When a slice is shorter than the shape says.
    pub fn pack(&self, filter: &[f32], packed: &mut [f32]) {
        let (s, nr) = (&self.shape, tile_shape(self.isa).1);
        assert!(filter.len() >= s.filter_len(), "filter of {} values for {s:?}", filter.len());
        let shared = SharedMut::new(&mut packed[..self.packed_len()]);
        for_each_task(self.slices(), |slice| {
            let width = self.width(slice);
            let columns = s.taps() * width;
            // SAFETY: the panels of this slice, which belong to this task.
            let panels = unsafe {
                let start = shared.get().add(slice * self.slice_len(SLICE));
                std::slice::from_raw_parts_mut(start, self.slice_len(width))
            };
            for (at, value) in panels.iter_mut().enumerate() {
                let (panel, k, column) = (at / nr / s.c_out, at / nr % s.c_out, at % nr);
                let column = panel * nr + column;
                let (tap, channel) = (column / width, slice * SLICE + column % width);
                let inside = column < columns;
                *value = if inside { filter[(k * s.taps() + tap) * s.c_in + channel] } else { 0.0 };
            }
        });
    }

    /// Values that a task's gradients of samples take.
    fn tile_len(&self) -> usize {
        PIXELS * self.shape.taps() * SLICE
    }

    /// Values of workspace that [`DeformInputGrad::run`] needs.
    pub fn workspace_len(&self) -> usize {
        let parts = if self.slices() > 1 { self.slices() * self.shape.offset_len() } else { 0 };
        self.shape.batch * self.slices() * self.tile_len() + parts
    }

    /// Computes `dx` and `doffset`, tasks in parallel on the current rayon pool.
    ///
    /// # Panics
    /// When a slice is shorter than the shape says.
    pub fn run(
        &self,
        [dy, packed, x, offset]: [&[f32]; 4],
        [dx, doffset]: [&mut [f32]; 2],
        workspace: &mut [f32],
    ) {
        let (s, slices) = (&self.shape, self.slices());
        assert!(dy.len() >= s.out_len(), "gradient of {} values for {s:?}", dy.len());
        assert!(packed.len() >= self.packed_len(), "packed filter of {} values for {s:?}", packed.len());
        let (dx, doffset) = (&mut dx[..s.map_len()], &mut doffset[..s.offset_len()]);
        let tiles = s.batch * slices * self.tile_len();
        let (tiles, parts) = workspace[..self.workspace_len()].split_at_mut(tiles);
        let samples = Samples::new(s, x, offset);
        let tiles = SharedMut::new(tiles);
        let sums = SharedMut::new(if slices > 1 { &mut *parts } else { &mut *doffset });
        let dx = SharedMut::new(dx);
        for_each_task(s.batch * slices, |task| {
            let (image, slice) = (task / slices, task % slices);
            on(
                self.isa,
                Slice {
                    grad: self,
                    samples: &samples,
                    dy,
                    x,
                    packed: packed[slice * self.slice_len(SLICE)..].as_ptr(),
                    image,
                    first: slice * SLICE,
                    width: self.width(slice),
                    // SAFETY: a tile for each task, and a sum for each slice, whose images lie apart.
                    tile: unsafe { tiles.get().add(task * self.tile_len()) },
                    // SAFETY: as above.
                    doffset: unsafe { sums.get().add(slice * s.offset_len()) },
                    dx: dx.get(),
                },
            );
        });
        if slices > 1 {
            add_up(parts, doffset);
        }
    }
}

/// A task: some channels of one image.
struct Slice<'a> {
    grad: &'a DeformInputGrad,
    samples: &'a Samples<'a>,
    dy: &'a [f32],
    x: &'a [f32],
    /// The filters of the slice.
    packed: *const f32,
    image: usize,
    /// First channel, and how many.
    first: usize,
    width: usize,
    /// Gradients of samples, `[PIXELS, taps, width]`.
    tile: *mut f32,
    /// Gradients of the offsets by these channels, all images.
    doffset: *mut f32,
    /// All of the map's gradient.
    dx: *mut f32,
}

impl Job for Slice<'_> {
    #[inline(always)]
    fn run<A: Arch>(self) {
        let s = &self.grad.shape;
        let (pixels, columns) = (s.out[0] * s.out[1], s.taps() * self.width);
        let map = s.map[0] * s.map[1];
        for pixel in self.image * map..(self.image + 1) * map {
            // SAFETY: this task's channels of a pixel of its image.
            unsafe { std::ptr::write_bytes(self.dx.add(pixel * s.c_in + self.first), 0, self.width) };
        }
        let a = Matrix { data: self.dy.as_ptr(), ld: s.c_out };
        let b = Packed { data: self.packed, k_total: s.c_out };
        let finish = Epilogue::default().finish(PIXELS, columns, columns);
        let end = (self.image + 1) * pixels;
        for from in (self.image * pixels..end).step_by(PIXELS) {
            let rows = from..end.min(from + PIXELS);
            let mut place = self.samples.place(from);
            // The block counts rows of C from row 0 of A.
            let c = self.tile.wrapping_sub(from * columns);
            let target = Target { c, ldc: columns, finish };
            Block {
                a: &a,
                b: &b,
                target,
                places: &Dense,
                rows: rows.clone(),
                cols: 0..columns,
                k: 0..s.c_out,
            }
            .run::<A>();
            for pixel in rows {
                for tap in 0..s.taps() {
                    // SAFETY: the tile has these gradients, the offsets of this image belong to this task.
                    unsafe {
                        let grad = self.tile.add((pixel - from) * columns + tap * self.width);
                        let slopes = self.hand_on::<A>(&self.samples.corners(place, tap), grad);
                        let to = self.doffset.add((pixel * s.taps() + tap) * 2);
                        (*to, *to.add(1)) = slopes;
                    }
                }
                place = self.samples.next(place);
            }
        }
    }
}

impl Slice<'_> {
    /// Adds the gradient of a sample to those of its pixels; gives that of the point, down and right.
    ///
    /// # Safety
    /// `grad` holds the slice's channels; features as for `A`.
    #[inline(always)]
    unsafe fn hand_on<A: Arch>(&self, corners: &Corners, grad: *const f32) -> (f32, f32) {
        if corners.at.iter().all(Option::is_none) {
            return (0.0, 0.0);
        }
        let [[above, below], [left, right]] = corners.share;
        // SAFETY: reads and writes the slice's channels of pixels that lie on the map.
        unsafe {
            let zero = A::V::splat(0.0);
            let (mut down, mut across) = (zero, zero);
            for at in (0..self.width).step_by(A::V::LANES) {
                let count = self.width - at;
                let grad = A::V::load_up_to(grad.add(at), count);
                let mut pixels = [zero; 4];
                for (corner, pixel) in pixels.iter_mut().enumerate() {
                    let Some(place) = corners.at[corner] else { continue };
                    let place = place + self.first + at;
                    *pixel = A::V::load_up_to(self.x.as_ptr().add(place), count);
                    let to = self.dx.add(place);
                    let sum = grad.mul_add(A::V::splat(corners.weight(corner)), A::V::load_up_to(to, count));
                    sum.store_up_to(to, count);
                }
                let [a, b, c, d] = pixels;
                let by_row = d.sub(b).mul_add(A::V::splat(right), c.sub(a).mul(A::V::splat(left)));
                let by_column = d.sub(c).mul_add(A::V::splat(below), b.sub(a).mul(A::V::splat(above)));
                down = grad.mul_add(by_row, down);
                across = grad.mul_add(by_column, across);
            }
            (sum::<A>(down), sum::<A>(across))
        }
    }
}

/// The sum of all lanes.
///
/// # Safety
/// Features as for `A`.
#[inline(always)]
unsafe fn sum<A: Arch>(vector: A::V) -> f32 {
    let mut lanes = [0.0; CHUNK];
    // SAFETY: a vector has at most `CHUNK` lanes.
    unsafe { vector.store(lanes.as_mut_ptr()) };
    lanes.iter().sum()
}
