//! The shape of a convolution and the choice of its kernel.

use super::skip;
use std::fmt;

/// A 2-D convolution of an NHWC map `[batch, height, width, c_in]` with KRSC filters
/// `[c_out, kernel[0], kernel[1], c_in / groups]`, as in PyTorch's `Conv2d` (zero padding,
/// cross-correlation).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ConvShape {
    /// Images.
    pub batch: usize,
    /// Rows of the input.
    pub height: usize,
    /// Columns of the input.
    pub width: usize,
    /// Input channels.
    pub c_in: usize,
    /// Output channels.
    pub c_out: usize,
    /// Rows and columns of a filter.
    pub kernel: [usize; 2],
    /// Rows and columns between neighbouring outputs.
    pub stride: [usize; 2],
    /// Zero rows above, zero columns on the left.
    pub padding: [usize; 2],
    /// Zero rows below, zero columns on the right.
    pub padding_end: [usize; 2],
    /// Rows and columns between neighbouring taps.
    pub dilation: [usize; 2],
    /// Groups; divides both channel counts.
    pub groups: usize,
}

impl ConvShape {
    /// The product of `m` points with filters of one tap.
    pub fn pointwise(m: usize, c_in: usize, c_out: usize) -> ConvShape {
        ConvShape {
            batch: 1,
            height: 1,
            width: m,
            c_in,
            c_out,
            kernel: [1, 1],
            stride: [1, 1],
            padding: [0, 0],
            padding_end: [0, 0],
            dilation: [1, 1],
            groups: 1,
        }
    }

    /// Rows of the output; 0 when the filter does not fit.
    pub fn out_height(&self) -> usize {
        self.extent(self.height, 0)
    }

    /// Columns of the output; 0 when the filter does not fit.
    pub fn out_width(&self) -> usize {
        self.extent(self.width, 1)
    }

    fn extent(&self, size: usize, axis: usize) -> usize {
        let reach = self.dilation[axis] * (self.kernel[axis] - 1) + 1;
        (size + self.padding[axis] + self.padding_end[axis])
            .checked_sub(reach)
            .map_or(0, |room| room / self.stride[axis] + 1)
    }

    /// Pixels of the output, all images.
    pub fn out_pixels(&self) -> usize {
        self.batch * self.out_height() * self.out_width()
    }

    /// Values of the input.
    pub fn input_len(&self) -> usize {
        self.batch * self.height * self.width * self.c_in
    }

    /// Values of the output.
    pub fn output_len(&self) -> usize {
        self.out_pixels() * self.c_out
    }

    /// Values of the KRSC filters.
    pub fn filter_len(&self) -> usize {
        self.c_out * self.depth()
    }

    /// Terms of one output value: `kernel[0] * kernel[1] * c_in / groups`.
    pub fn depth(&self) -> usize {
        self.kernel[0] * self.kernel[1] * self.c_in / self.groups
    }

    /// A 3x3, stride 1, ungrouped convolution of any dilation.
    fn suits_winograd(&self) -> bool {
        self.kernel == [3, 3] && self.stride == [1, 1] && self.groups == 1
    }

    /// How many residues modulo the dilation the outputs of an axis have. Outputs of one residue and what
    /// they read are a map of their own, on which the convolution is undilated.
    pub(super) fn residues(&self, axis: usize) -> usize {
        self.dilation[axis].min([self.out_height(), self.out_width()][axis])
    }

    /// Winograd's tiles of `out x out` outputs, down and across one image: whole tiles of every residue.
    pub(super) fn tiles(&self, out: usize) -> [usize; 2] {
        let extents = [self.out_height(), self.out_width()];
        let tiles = |axis: usize| extents[axis].div_ceil(self.dilation[axis]).div_ceil(out);
        [0, 1].map(|axis| self.residues(axis) * tiles(axis))
    }
}

/// How a convolution is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ConvKernel {
    /// 1x1, stride 1, no padding: one matrix product over the pixels.
    Pointwise,
    /// A matrix product whose left side is gathered from the map tap by tap, never stored.
    ImplicitGemm,
    /// F(2x2, 3x3): 2.25 times fewer multiplications.
    Winograd2,
    /// F(4x4, 3x3): 4 times fewer multiplications.
    Winograd4,
    /// One filter a channel, vectorised over channels.
    Depthwise,
}

impl fmt::Display for ConvKernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            ConvKernel::Pointwise => "pointwise",
            ConvKernel::ImplicitGemm => "implicit-gemm",
            ConvKernel::Winograd2 => "winograd-f2",
            ConvKernel::Winograd4 => "winograd-f4",
            ConvKernel::Depthwise => "depthwise",
        })
    }
}

impl ConvKernel {
    /// Whether this kernel can compute `shape` at all.
    pub fn supports(self, shape: &ConvShape) -> bool {
        match self {
            ConvKernel::Pointwise => {
                shape.kernel == [1, 1]
                    && shape.stride == [1, 1]
                    && shape.padding == [0, 0]
                    && shape.padding_end == [0, 0]
                    && shape.groups == 1
            }
            ConvKernel::ImplicitGemm => true,
            ConvKernel::Winograd2 | ConvKernel::Winograd4 => shape.suits_winograd(),
            ConvKernel::Depthwise => shape.groups == shape.c_in && shape.c_out == shape.c_in,
        }
    }
}

/// How coarsely a convolution may round.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Arithmetic {
    /// F(4x4) too, where it is faster: relative L2 up to 1e-6 of the result at 256 channels, held by a test.
    #[default]
    Fast,
    /// As exact as direct convolution (3e-7): kernels that round more coarsely are not taken. What a hard
    /// threshold follows, as in K-Net's mask pooling, then falls on the side that the same network in PyTorch
    /// gives.
    Exact,
}

/// The kernel for `shape`: a function of its arguments alone.
///
/// 3x3 convolutions of stride 1 take the kernel of least estimated cost, in multiplications a pair of
/// channels: products; Winograd's transforms, dearer with fewer channels to share them; and streaming the
/// (transformed) filters, which takes as long as computing with each value some twenty times. Fitted to Zen 5
/// with AVX-512.
pub fn select(shape: &ConvShape, arithmetic: Arithmetic) -> ConvKernel {
    const STREAM: f64 = 20.0;
    // F(4x4) rounds three times as coarsely as F(2x2), which is as exact as direct convolution: its output
    // transform amplifies the rounding of the products' sums, and neither shorter runs (4.2e-7 at 16 instead
    // of 64 terms) nor other points bring it to F(2x2)'s 2.2e-7 at less than the difference in time. Small
    // maps, where it would save little, keep the finer kernel.
    const F4_TILES: usize = 192;
    if shape.groups > 1 && ConvKernel::Depthwise.supports(shape) {
        return ConvKernel::Depthwise;
    }
    if ConvKernel::Pointwise.supports(shape) {
        return ConvKernel::Pointwise;
    }
    if !shape.suits_winograd() {
        return ConvKernel::ImplicitGemm;
    }
    let direct = skip::products(shape) as f64 + 9.0 * STREAM;
    let tiles = |out: usize| shape.batch * shape.tiles(out).iter().product::<usize>();
    let winograd = |out: usize| {
        let tiles = tiles(out);
        let transforms = 16.0 / shape.c_in as f64 + 16.0 / shape.c_out as f64;
        ((out + 2) * (out + 2)) as f64 * (tiles as f64 * (1.4 + transforms) + STREAM)
    };
    let (two, four) = (winograd(2), winograd(4));
    if arithmetic == Arithmetic::Fast && tiles(4) >= F4_TILES && four <= two && four < direct {
        ConvKernel::Winograd4
    } else if two < direct {
        ConvKernel::Winograd2
    } else {
        ConvKernel::ImplicitGemm
    }
}
