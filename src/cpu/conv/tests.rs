//! Every kernel against f64 loops, on every instruction set this machine has.

use proptest::prelude::*;

use crate::cpu::gemm::tests::{noise, relative_l2, same_bits};

use super::*;

pub(super) fn reference(s: &ConvShape, x: &[f32], filter: &[f32]) -> Vec<f64> {
    let (cg, ng) = (s.c_in / s.groups, s.c_out / s.groups);
    let mut y = Vec::with_capacity(s.output_len());
    for b in 0..s.batch {
        for oy in 0..s.out_height() {
            for ox in 0..s.out_width() {
                for n in 0..s.c_out {
                    let mut sum = 0.0;
                    for ky in 0..s.kernel[0] {
                        for kx in 0..s.kernel[1] {
                            let iy = (oy * s.stride[0] + ky * s.dilation[0]).wrapping_sub(s.padding[0]);
                            let ix = (ox * s.stride[1] + kx * s.dilation[1]).wrapping_sub(s.padding[1]);
                            if iy >= s.height || ix >= s.width {
                                continue;
                            }
                            let x = &x[((b * s.height + iy) * s.width + ix) * s.c_in + n / ng * cg..][..cg];
                            let f = &filter[((n * s.kernel[0] + ky) * s.kernel[1] + kx) * cg..][..cg];
                            sum += x.iter().zip(f).map(|(&x, &f)| x as f64 * f as f64).sum::<f64>();
                        }
                    }
                    y.push(sum);
                }
            }
        }
    }
    y
}

/// Relative L2 error that a kernel may make: direct sums err by a few roundings (6e-8), the transforms of
/// Winograd convolution amplify those (`winograd::tests` measures by how much at full size).
fn tolerance(kernel: ConvKernel) -> f64 {
    match kernel {
        ConvKernel::Winograd4 => 2e-6,
        _ => 1e-6,
    }
}

pub(super) fn run(conv: &Conv, x: &[f32], filter: &[f32], epilogue: &Epilogue) -> Vec<f32> {
    let mut packed = vec![f32::NAN; conv.packed_len()];
    conv.pack(filter, &mut packed);
    let mut y = vec![f32::NAN; conv.shape.output_len()];
    let mut workspace = vec![f32::NAN; conv.workspace_len()];
    conv.run(x, &packed, epilogue, &mut y, &mut workspace);
    y
}

const KERNELS: [ConvKernel; 5] = [
    ConvKernel::Pointwise,
    ConvKernel::ImplicitGemm,
    ConvKernel::Winograd2,
    ConvKernel::Winograd4,
    ConvKernel::Depthwise,
];

/// How much of `exact` an error may be: the kernel's tolerance of outputs of ordinary size, a third in the
/// root of the mean square. A few outputs may all be small because their terms cancel, and are no more exact
/// for that.
fn bound(kernel: ConvKernel, exact: &[f64]) -> f64 {
    let size = (exact.iter().map(|v| v * v).sum::<f64>() / exact.len().max(1) as f64).sqrt();
    tolerance(kernel) * (1.0 / 3.0 / size).max(1.0)
}

/// Every kernel that supports `s`, bare and with a full epilogue.
fn check(s: ConvShape) {
    let (x, mut filter) = (noise(s.input_len(), 1), noise(s.filter_len(), 2));
    // Outputs of about unit size: a clamp that cut most of them would leave little to measure errors against.
    let scale = 1.0 / (s.depth() as f32).sqrt();
    filter.iter_mut().for_each(|w| *w *= scale);
    let (bias, residual) = (noise(s.c_out, 3), noise(s.output_len(), 4));
    let exact = reference(&s, &x, &filter);
    let finished: Vec<f64> = exact
        .iter()
        .enumerate()
        .map(|(i, v)| (v + bias[i % s.c_out] as f64 + residual[i] as f64).clamp(0.0, 6.0))
        .collect();
    for isa in Isa::available() {
        for kernel in KERNELS.into_iter().filter(|k| k.supports(&s)) {
            let conv = Conv { shape: s, kernel, isa };
            let bare = relative_l2(&run(&conv, &x, &filter, &Epilogue::default()), &exact);
            assert!(bare < bound(kernel, &exact), "{conv:?}: {bare:e}");
            let epilogue =
                Epilogue { residual: Some(&residual), clamp: Some((0.0, 6.0)), ..Epilogue::bias(&bias) };
            let full = relative_l2(&run(&conv, &x, &filter, &epilogue), &finished);
            assert!(full < bound(kernel, &finished), "{conv:?} with epilogue: {full:e}");
        }
    }
}

const PLAIN: ConvShape = ConvShape {
    batch: 1,
    height: 1,
    width: 1,
    c_in: 1,
    c_out: 1,
    kernel: [3, 3],
    stride: [1, 1],
    padding: [1, 1],
    padding_end: [1, 1],
    dilation: [1, 1],
    groups: 1,
};

/// "Same" padding, taps so far apart.
fn dilated(step: usize) -> ConvShape {
    ConvShape { padding: [step; 2], padding_end: [step; 2], dilation: [step; 2], ..PLAIN }
}

#[test]
fn network_shapes_in_small() {
    check(ConvShape {
        height: 37,
        width: 41,
        c_in: 3,
        c_out: 64,
        kernel: [7, 7],
        stride: [2, 2],
        padding: [3, 3],
        padding_end: [3, 3],
        ..PLAIN
    });
    check(ConvShape { height: 13, width: 21, c_in: 256, c_out: 48, ..PLAIN });
    check(ConvShape {
        height: 15,
        width: 15,
        c_in: 64,
        c_out: 96,
        kernel: [1, 1],
        stride: [2, 2],
        padding: [0, 0],
        padding_end: [0, 0],
        ..PLAIN
    });
    check(ConvShape {
        batch: 2,
        height: 9,
        width: 23,
        c_in: 96,
        c_out: 96,
        kernel: [5, 5],
        padding: [2, 2],
        padding_end: [2, 2],
        groups: 96,
        ..PLAIN
    });
    check(ConvShape { height: 1, width: 1, c_in: 300, c_out: 40, ..PLAIN });
    check(ConvShape {
        height: 2,
        width: 2,
        c_in: 4,
        c_out: 4,
        padding: [0, 0],
        padding_end: [0, 0],
        ..PLAIN
    });
}

prop_compose! {
    fn any_shape()(
        batch in 1usize..3, height in 1usize..14, width in 1usize..14, cg in 1usize..24, ng in 1usize..24,
        groups in prop_oneof![3 => Just(1usize), 1 => 2usize..5], kernel in [1usize..6, 1usize..6],
        stride in [1usize..4, 1usize..4], padding in [0usize..4, 0usize..4], padding_end in [0usize..4, 0usize..4],
        dilation in [1usize..3, 1usize..3],
    ) -> ConvShape {
        ConvShape { batch, height, width, c_in: cg * groups, c_out: ng * groups, kernel, stride, padding, padding_end, dilation, groups }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(120))]
    #[test]
    fn general(shape in any_shape()) {
        check(shape);
    }

    #[test]
    fn plain_3x3(shape in any_shape()) {
        check(ConvShape { groups: 1, kernel: [3, 3], stride: [1, 1], dilation: [1, 1], ..shape });
    }

    /// Dilated so far that residues have few outputs each or none, and taps lie in the padding altogether.
    #[test]
    fn dilated_3x3(shape in any_shape(), dilation in [1usize..9, 1usize..9], padding in [0usize..9, 0usize..9]) {
        let padding_end = padding;
        check(ConvShape { groups: 1, kernel: [3, 3], stride: [1, 1], dilation, padding, padding_end, ..shape });
    }

    /// As many channels as products that are left out take.
    #[test]
    fn taps_in_the_padding(
        shape in any_shape(), dilation in [1usize..9, 1usize..9], padding in [0usize..9, 0usize..9],
    ) {
        let (stride, c_in) = ([1, 1], 256);
        check(ConvShape { groups: 1, stride, dilation, padding, c_in, ..shape });
    }

    #[test]
    fn pointwise(shape in any_shape()) {
        check(ConvShape { groups: 1, kernel: [1, 1], stride: [1, 1], padding: [0, 0], padding_end: [0, 0], ..shape });
    }

    #[test]
    fn depthwise(shape in any_shape()) {
        let c = shape.c_in * 3;
        check(ConvShape { groups: c, c_in: c, c_out: c, ..shape });
    }

    /// Maps wide enough for tiles, with the filters that have them.
    #[test]
    fn depthwise_tiles(
        shape in any_shape(), k in prop::sample::select(vec![3usize, 5]), stride in 1usize..3, width in 1usize..45,
        c in 1usize..70,
    ) {
        let (kernel, stride) = ([k, k], [stride, stride]);
        check(ConvShape { groups: c, c_in: c, c_out: c, width, kernel, stride, dilation: [1, 1], ..shape });
    }
}

#[test]
fn same_bits_on_any_number_of_threads() {
    for shape in [
        ConvShape { height: 30, width: 31, c_in: 256, c_out: 70, ..dilated(9) },
        ConvShape { height: 40, width: 50, c_in: 40, c_out: 70, ..PLAIN },
        ConvShape { height: 20, width: 50, c_in: 70, c_out: 70, groups: 70, ..PLAIN },
        ConvShape {
            height: 20,
            width: 50,
            c_in: 70,
            c_out: 90,
            kernel: [1, 1],
            padding: [0, 0],
            padding_end: [0, 0],
            ..PLAIN
        },
    ] {
        let (x, filter) = (noise(shape.input_len(), 1), noise(shape.filter_len(), 2));
        for isa in Isa::available() {
            for kernel in KERNELS.into_iter().filter(|k| k.supports(&shape)) {
                same_bits(|| run(&Conv { shape, kernel, isa }, &x, &filter, &Epilogue::default()));
            }
        }
    }
}

/// What products are left out of was zero, and is added as before.
#[test]
fn leaving_out_taps_changes_no_bit() {
    let shape = ConvShape { batch: 2, height: 19, width: 23, c_in: 256, c_out: 40, ..dilated(8) };
    assert!(skip::suits(&shape));
    let (x, filter) = (noise(shape.input_len(), 1), noise(shape.filter_len(), 2));
    let (bias, residual) = (noise(shape.c_out, 3), vec![0.0; shape.output_len()]);
    for isa in Isa::available() {
        let conv = Conv { shape, kernel: ConvKernel::ImplicitGemm, isa };
        // With a residual nothing is left out.
        let whole = Epilogue { residual: Some(&residual), ..Epilogue::bias(&bias) };
        let (left_out, whole) =
            (run(&conv, &x, &filter, &Epilogue::bias(&bias)), run(&conv, &x, &filter, &whole));
        assert!(left_out.iter().zip(&whole).all(|(a, b)| a.to_bits() == b.to_bits()), "{isa}");
    }
}

#[test]
fn nan_passes_through_relu() {
    let shape = ConvShape { height: 6, width: 7, c_in: 5, c_out: 5, ..PLAIN };
    for shape in [shape, ConvShape { groups: 5, ..shape }] {
        let (mut x, filter) = (noise(shape.input_len(), 1), noise(shape.filter_len(), 2));
        x[(3 * 7 + 3) * 5] = f32::NAN;
        for isa in Isa::available() {
            for kernel in KERNELS.into_iter().filter(|k| k.supports(&shape)) {
                let y = run(&Conv { shape, kernel, isa }, &x, &filter, &Epilogue::default().relu());
                assert!(y[(3 * 7 + 3) * 5].is_nan(), "{kernel} on {isa} lost a NaN");
                assert!(y.iter().all(|v| v.is_nan() || *v >= 0.0));
            }
        }
    }
}

#[test]
fn choice_is_named() {
    let of = |shape| select(&shape, Arithmetic::Fast).to_string();
    assert_eq!(
        of(ConvShape {
            height: 4,
            width: 6,
            c_in: 256,
            c_out: 256,
            kernel: [1, 1],
            padding: [0, 0],
            padding_end: [0, 0],
            ..PLAIN
        }),
        "pointwise"
    );
    assert_eq!(of(ConvShape { height: 9, width: 9, c_in: 8, c_out: 8, groups: 8, ..PLAIN }), "depthwise");
    assert_eq!(
        of(ConvShape { height: 9, width: 9, c_in: 8, c_out: 8, stride: [2, 2], ..PLAIN }),
        "implicit-gemm"
    );
    let plain = |height, width, c| of(ConvShape { height, width, c_in: c, c_out: c, ..PLAIN });
    assert_eq!(plain(200, 336, 256), "winograd-f4");
    let large = ConvShape { height: 200, width: 336, c_in: 256, c_out: 256, ..PLAIN };
    assert_eq!(select(&large, Arithmetic::Exact), ConvKernel::Winograd2);
    assert_eq!(plain(50, 84, 256), "winograd-f4");
    // 77 tiles: too few to round coarsely for.
    assert_eq!(plain(25, 42, 512), "winograd-f2");
    assert_eq!(plain(8, 8, 512), "winograd-f2");
    assert_eq!(plain(2, 3, 512), "implicit-gemm");
    let apart = |step, c_in| of(ConvShape { height: 64, width: 64, c_in, c_out: 512, ..dilated(step) });
    assert_eq!(apart(2, 256), "winograd-f4");
    assert_eq!(apart(4, 512), "winograd-f4");
    // Most taps lie in the padding, and are left out.
    assert_eq!(apart(36, 2048), "implicit-gemm");
}
