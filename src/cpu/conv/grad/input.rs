//! The gradient of the map.
//!
//! With stride 1 it is a convolution of `dy` by the filters turned by 180 degrees, input and output channels
//! exchanged: Winograd's or the depthwise kernel computes it where it suits. Every other gradient is cut into
//! *phases*: pixels `iy = first + n * stride` of one residue are reached by the same taps, every
//! `stride / gcd(stride, dilation)`-th, and the sum over those is a convolution of `dy` with stride 1. Each
//! phase is an implicit GEMM, so no product with a zero is computed; its rows of C lie in the map, a stride
//! apart.

use crate::cpu::gemm::{
    self, Dense, Epilogue, Matrix, Packed, Places, SharedMut, Target, for_each_task, tile_shape,
};
use crate::cpu::kernel::PackedLayout;
use crate::isa::Isa;

use super::super::implicit::Fields;
use super::super::winograd::Order;
use super::super::{Arithmetic, Conv, ConvKernel, ConvShape};
use super::{GradShape, Phase, depthwise};

/// The gradient of a convolution's map and how it is computed.
#[derive(Clone, Copy, Debug)]
pub struct InputGrad {
    shape: GradShape,
    isa: Isa,
    how: How,
}

#[derive(Clone, Copy, Debug)]
enum How {
    /// Another convolution, by turned filters.
    Turned(Conv),
    Depthwise,
    Phases,
}

impl InputGrad {
    /// The gradient with the kernel that suits the shape.
    pub fn new(shape: GradShape, isa: Isa) -> InputGrad {
        // No threshold hangs on a gradient's last digits, so the fast kernels serve whatever the forward pass
        // takes.
        let turned = shape.turned().map(|turned| Conv::new(turned, isa, Arithmetic::Fast)).filter(|conv| {
            matches!(conv.kernel, ConvKernel::Winograd2 | ConvKernel::Winograd4 | ConvKernel::Depthwise)
        });
        let how = match turned {
            Some(conv) => How::Turned(conv),
            None if shape.is_depthwise() => How::Depthwise,
            None => How::Phases,
        };
        InputGrad { shape, isa, how }
    }

    /// Name of the kernel.
    pub fn name(&self) -> String {
        match self.how {
            How::Turned(conv) => format!("turned {} {}", conv.kernel, self.isa),
            How::Depthwise => format!("depthwise {}", self.isa),
            How::Phases => format!("phases {}", self.isa),
        }
    }

    /// The instruction set; filters must be packed for the same one.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// The order of the packed filters.
    pub fn packed_layout(&self) -> PackedLayout {
        match self.how {
            How::Turned(conv) => PackedLayout::TurnedFilters(conv.kernel),
            How::Depthwise => PackedLayout::Filters(ConvKernel::Depthwise),
            How::Phases => PackedLayout::Taps,
        }
    }

    /// Values of the packed filters.
    pub fn packed_len(&self) -> usize {
        match self.how {
            // Turned depthwise filters lie behind the packed ones.
            How::Turned(conv) if conv.kernel == ConvKernel::Depthwise => {
                conv.packed_len() + self.shape.filter_len()
            }
            How::Turned(conv) => conv.packed_len(),
            How::Depthwise => self.shape.filter_len(),
            How::Phases => {
                let s = &self.shape;
                let nr = tile_shape(self.isa).1;
                s.kernel[0] * s.kernel[1] * s.c_out * (s.c_in / s.groups).next_multiple_of(nr)
            }
        }
    }

    /// Packs KRSC filters into `packed[..packed_len()]`, in parallel.
    ///
    /// # Panics
    /// When a slice is shorter than the shape says.
    pub fn pack(&self, filter: &[f32], packed: &mut [f32]) {
        let s = &self.shape;
        assert!(filter.len() >= s.filter_len(), "filter of {} values for {s:?}", filter.len());
        assert!(packed.len() >= self.packed_len(), "packed filter of {} values for {s:?}", packed.len());
        match self.how {
            How::Turned(conv) if conv.kernel == ConvKernel::Depthwise => {
                let (packed, turned) = packed.split_at_mut(conv.packed_len());
                let taps = s.kernel[0] * s.kernel[1];
                for (turned, filter) in turned.chunks_exact_mut(taps).zip(filter.chunks_exact(taps)) {
                    turned.iter_mut().zip(filter.iter().rev()).for_each(|(turned, &w)| *turned = w);
                }
                conv.pack(turned, packed);
            }
            How::Turned(conv) => conv.pack_winograd(filter, Order::Turned, packed),
            How::Depthwise => depthwise::pack(s, filter, packed),
            How::Phases => self.pack_phases(filter, packed),
        }
    }

    /// Values of workspace that [`InputGrad::run`] needs.
    pub fn workspace_len(&self) -> usize {
        match self.how {
            How::Turned(conv) => conv.workspace_len(),
            How::Depthwise | How::Phases => 0,
        }
    }

    /// Computes `dx` from `dy` and the packed filters, tasks in parallel on the current rayon pool.
    ///
    /// # Panics
    /// When a slice is shorter than the shape says.
    pub fn run(&self, dy: &[f32], packed: &[f32], dx: &mut [f32], workspace: &mut [f32]) {
        let s = &self.shape;
        assert!(dy.len() >= s.out_len(), "gradient of {} values for {s:?}", dy.len());
        assert!(packed.len() >= self.packed_len(), "packed filter of {} values for {s:?}", packed.len());
        assert!(dx.len() >= s.map_len(), "map of {} values for {s:?}", dx.len());
        match self.how {
            How::Turned(conv) => {
                conv.run(dy, &packed[..conv.packed_len()], &Epilogue::default(), dx, workspace);
            }
            How::Depthwise => depthwise::input_grad(s, self.isa, dy, packed, dx),
            How::Phases => self.run_phases(dy, packed, dx),
        }
    }

    /// Every pair of phases, with the first row of its part in B.
    fn phases(&self) -> impl Iterator<Item = ([Phase; 2], usize)> {
        let s = self.shape;
        let mut row = 0;
        (0..s.stride[0] * s.stride[1]).map(move |i| {
            let pair = [Phase::new(&s, 0, i / s.stride[1]), Phase::new(&s, 1, i % s.stride[1])];
            let first = row;
            row += pair[0].taps * pair[1].taps * s.c_out / s.groups;
            (pair, first)
        })
    }

    /// Packs, for every group and phase, `B[(tap, k), c] = w[k, tap, c]` with the taps in reverse order.
    fn pack_phases(&self, filter: &[f32], packed: &mut [f32]) {
        let s = &self.shape;
        let nr = tile_shape(self.isa).1;
        let (cols, depth) = (s.c_in / s.groups, s.c_out / s.groups);
        let panels = cols.div_ceil(nr);
        let taps_in_all = s.kernel[0] * s.kernel[1];
        let shared = SharedMut::new(packed);
        for group in 0..s.groups {
            for (phase, first) in self.phases() {
                let taps = phase[0].taps * phase[1].taps;
                let start = (group * taps_in_all * depth + first) * panels * nr;
                for_each_task(taps * panels, |i| {
                    let (panel, tap) = (i / taps, i % taps);
                    let ky = phase[0].tap(tap / phase[1].taps);
                    let kx = phase[1].tap(tap % phase[1].taps);
                    let count = nr.min(cols - panel * nr);
                    let from = (group * depth * taps_in_all + ky * s.kernel[1] + kx) * cols + panel * nr;
                    let to = start + (panel * taps * depth + tap * depth) * nr;
                    for k in 0..depth {
                        let source = &filter[from + k * taps_in_all * cols..][..count];
                        // SAFETY: a row of this panel and tap, which belongs to this task.
                        let row =
                            unsafe { std::slice::from_raw_parts_mut(shared.get().add(to + k * nr), nr) };
                        row[..count].copy_from_slice(source);
                        row[count..].fill(0.0);
                    }
                });
            }
        }
    }

    fn run_phases(&self, dy: &[f32], packed: &[f32], dx: &mut [f32]) {
        let s = &self.shape;
        let nr = tile_shape(self.isa).1;
        let (cols, depth) = (s.c_in / s.groups, s.c_out / s.groups);
        let panels = cols.div_ceil(nr);
        for (phase, first) in self.phases() {
            let pixels = s.batch * phase[0].count * phase[1].count;
            let lattice = Lattice { shape: s, phase };
            let taps = phase[0].taps * phase[1].taps;
            if taps == 0 {
                lattice.clear(dx);
                continue;
            }
            let target = Target {
                c: dx.as_mut_ptr(),
                ldc: s.stride[1] * s.c_in,
                finish: Epilogue::default().finish(1, s.c_in, s.c_in),
            };
            for group in 0..s.groups {
                let start = (group * s.kernel[0] * s.kernel[1] * depth + first) * panels * nr;
                let b = Packed { data: packed[start..].as_ptr(), k_total: taps * depth };
                let target = target.columns_from(group * cols);
                let extents = [pixels, cols, taps * depth];
                let fields = Fields {
                    shape: ConvShape {
                        batch: s.batch,
                        height: s.out[0],
                        width: s.out[1],
                        c_in: s.c_out,
                        c_out: s.c_in,
                        kernel: [phase[0].taps, phase[1].taps],
                        stride: [1; 2],
                        padding: [0; 2],
                        padding_end: [0; 2],
                        dilation: [phase[0].dilation, phase[1].dilation],
                        groups: s.groups,
                    },
                    x: dy.as_ptr(),
                    group,
                    out: [phase[0].count, phase[1].count],
                    origin: [phase[0].origin, phase[1].origin],
                };
                let plain = taps == 1 && fields.origin == [0; 2] && fields.out == s.out;
                let rows = Matrix { data: dy[group * depth..].as_ptr(), ld: s.c_out };
                match (plain, s.stride == [1; 2]) {
                    (true, true) => gemm::run_at(self.isa, extents, &rows, &b, target, &Dense),
                    (true, false) => gemm::run_at(self.isa, extents, &rows, &b, target, &lattice),
                    (false, true) => gemm::run_at(self.isa, extents, &fields, &b, target, &Dense),
                    (false, false) => gemm::run_at(self.isa, extents, &fields, &b, target, &lattice),
                }
            }
        }
    }
}

/// Where the pixels of a phase lie in the map; those of one line lie `stride` pixels apart.
struct Lattice<'a> {
    shape: &'a GradShape,
    phase: [Phase; 2],
}

impl Places for Lattice<'_> {
    #[inline(always)]
    fn locate(&self, row: usize, rows: usize, _: usize) -> (usize, usize) {
        let [y, x] = &self.phase;
        let (line, column) = (row / x.count, row % x.count);
        let (image, line) = (line / y.count, line % y.count);
        let map = &self.shape.map;
        let pixel = (image * map[0] + y.first + line * y.stride) * map[1] + x.first + column * x.stride;
        (pixel * self.shape.c_in, rows.min(x.count - column))
    }
}

impl Lattice<'_> {
    /// Zeros for pixels that no tap reaches.
    fn clear(&self, dx: &mut [f32]) {
        let [y, x] = &self.phase;
        let channels = self.shape.c_in;
        let shared = SharedMut::new(dx);
        for_each_task(self.shape.batch * y.count * usize::from(x.count > 0), |line| {
            let (start, _) = self.locate(line * x.count, 1, 0);
            for column in 0..x.count {
                // SAFETY: a pixel of this line, which belongs to this task.
                unsafe {
                    let pixel = shared.get().add(start + column * x.stride * channels);
                    std::ptr::write_bytes(pixel, 0, channels);
                }
            }
        });
    }
}
