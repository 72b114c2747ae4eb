use super::*;
use crate::cpu::conv::ConvShape;
use crate::cpu::element::Element;
use crate::cpu::pool::Pool;
use crate::isa::{Dot, Int8, Isa};
use crate::ops::activation::Activation;
use crate::ops::levels::Levels;
use half::bf16;

/// Numbers that bf16 holds, so that only sums are rounded.
fn numbers(count: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9).wrapping_add(1);
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        bf16::narrow((state >> 8) as f32 / (1 << 23) as f32 - 1.0).widen()
    };
    std::iter::repeat_with(next).take(count).collect()
}

fn shape(x: [usize; 4], c_out: usize, kernel: [usize; 2]) -> ConvShape {
    ConvShape {
        batch: x[0],
        height: x[1],
        width: x[2],
        c_in: x[3],
        c_out,
        kernel,
        stride: [1, 1],
        padding: kernel.map(|taps| taps / 2),
        padding_end: kernel.map(|taps| taps / 2),
        dilation: [1, 1],
        groups: 1,
    }
}

/// Shapes that between them take every way through the code.
fn shapes() -> Vec<ConvShape> {
    let plain = shape([1, 9, 13, 64], 40, [3, 3]);
    vec![
        // Pointwise, in the map: whole tiles, and one that is not, whose fields are copied.
        shape([1, 8, 8, 32], 32, [1, 1]),
        shape([2, 7, 9, 64], 70, [1, 1]),
        // Pointwise, gathered: channels that are no whole steps, and strides.
        shape([1, 5, 9, 20], 33, [1, 1]),
        ConvShape { stride: [2, 2], ..shape([2, 9, 7, 64], 32, [1, 1]) },
        // More steps than one block.
        shape([1, 6, 11, 600], 35, [1, 1]),
        // Tiles over the ends of lines, and gaps of several columns.
        plain,
        ConvShape { padding: [0, 0], padding_end: [0, 0], ..plain },
        ConvShape { dilation: [2, 3], padding: [2, 3], padding_end: [2, 3], ..plain },
        ConvShape { stride: [2, 2], ..plain },
        ConvShape { stride: [2, 1], padding_end: [0, 1], ..shape([2, 10, 45, 32], 16, [3, 5]) },
        // Padding beyond the map.
        ConvShape {
            padding: [4, 6],
            padding_end: [4, 6],
            dilation: [4, 6],
            ..shape([1, 3, 2, 32], 8, [3, 3])
        },
        // A filter row as one run, with strides.
        shape([1, 6, 8, 3], 5, [3, 3]),
        ConvShape { stride: [2, 2], ..shape([2, 22, 31, 3], 64, [7, 7]) },
        shape([1, 5, 70, 16], 24, [3, 3]),
    ]
}

/// The convolution in double precision, with residual, bias and activation.
fn expected(s: &ConvShape, x: &[f32], filter: &[f32], tail: impl Fn(usize, f64) -> f64) -> Vec<f64> {
    let (height, width) = (s.out_height(), s.out_width());
    let mut y = Vec::with_capacity(s.output_len());
    for output in 0..s.out_pixels() {
        let (image, row, column) = (output / (height * width), output / width % height, output % width);
        for k in 0..s.c_out {
            let mut sum = 0.0;
            for (tap, filter) in filter[k * s.depth()..][..s.depth()].chunks_exact(s.c_in).enumerate() {
                let (ky, kx) = (tap / s.kernel[1], tap % s.kernel[1]);
                let at = |o: usize, tap: usize, axis: usize, size: usize| {
                    (o * s.stride[axis] + tap * s.dilation[axis])
                        .checked_sub(s.padding[axis])
                        .filter(|&i| i < size)
                };
                if let (Some(i), Some(j)) = (at(row, ky, 0, s.height), at(column, kx, 1, s.width)) {
                    let x = &x[((image * s.height + i) * s.width + j) * s.c_in..][..s.c_in];
                    sum += x.iter().zip(filter).map(|(&x, &w)| f64::from(x) * f64::from(w)).sum::<f64>();
                }
            }
            y.push(tail(y.len(), sum));
        }
    }
    y
}

fn run<F: Factor, X: Read<F>, Y: Store>(
    conv: DotConv<F>,
    x: &[X],
    filter: &[f32],
    finish: Finish<'_>,
    threads: usize,
) -> Vec<Y> {
    let mut packed = vec![f32::NAN; conv.packed_len()];
    conv.pack(filter, &mut packed);
    let finish = Finish { sums: conv.sums(&packed), ..finish };
    let mut y = vec![Y::store(f32::NAN, finish.output); conv.shape.output_len()];
    // What is left in memory from before must not matter.
    let mut workspace = vec![f32::NAN; conv.workspace_len(threads)];
    Pool::new(threads).unwrap().run(|| conv.run(x, &packed, &finish, &mut y, &mut workspace));
    y
}

fn narrowed(values: &[f32]) -> Vec<bf16> {
    values.iter().map(|&v| bf16::narrow(v)).collect()
}

#[test]
fn convolutions_are_those_of_double_precision() {
    for s in shapes() {
        let (x, filter) = (numbers(s.input_len(), 1), numbers(s.filter_len(), 2));
        let (bias, residual) = (numbers(s.c_out, 3), numbers(s.output_len(), 4));
        let expected = expected(&s, &x, &filter, |at, sum| {
            (sum + f64::from(bias[at % s.c_out]) + f64::from(residual[at])).max(0.0)
        });
        // A sum of `depth` terms below 1 in f32, in any order; then the rounding of bf16.
        let sums = s.depth() as f64 * f64::from(f32::EPSILON) * 4.0;
        for dot in Dot::available() {
            let conv = DotConv::<bf16> { shape: s, dot, rule: () };
            let residual = narrowed(&residual);
            let finish = Finish {
                sums: Sums::F32,
                output: None,
                bias: Some(&bias[..]),
                residual: Residual::Bf16(&residual),
                activation: Some(Activation::Relu),
                layout: Layout::Channels(s.c_out),
                isa: Isa::detect(),
            };
            let y: Vec<bf16> = run(conv, &narrowed(&x), &filter, finish, 2);
            for (at, (y, wanted)) in y.iter().zip(&expected).enumerate() {
                let bound = sums + wanted.abs() / 256.0;
                assert!(
                    (f64::from(y.widen()) - wanted).abs() <= bound,
                    "{dot} {s:?} at {at}: {y} for {wanted}"
                );
            }
            assert_eq!(y, run(conv, &narrowed(&x), &filter, finish, 1), "{dot} {s:?}: bits on one thread");
            let wide: Vec<f32> = residual.iter().map(|v| v.widen()).collect();
            let finish = Finish { residual: Residual::F32(&wide), ..finish };
            assert_eq!(y, run(conv, &narrowed(&x), &filter, finish, 2), "{dot} {s:?}: the residual in f32");
        }
    }
}

#[test]
fn maps_of_f32_are_read_and_written() {
    let gelu = |x: f64| Activation::Gelu.apply(x);
    for s in shapes() {
        let (x, filter) = (numbers(s.input_len(), 5), numbers(s.filter_len(), 6));
        let expected = expected(&s, &x, &filter, |_, sum| gelu(sum));
        for dot in Dot::available() {
            let finish = Finish {
                sums: Sums::F32,
                output: None,
                bias: None,
                residual: Residual::None,
                activation: Some(Activation::Gelu),
                layout: Layout::Channels(s.c_out),
                isa: Isa::detect(),
            };
            let y: Vec<f32> = run(DotConv::<bf16> { shape: s, dot, rule: () }, &x, &filter, finish, 1);
            for (at, (&y, wanted)) in y.iter().zip(&expected).enumerate() {
                let bound = s.depth() as f64 * f64::from(f32::EPSILON) * 4.0 + 2e-6 * wanted.abs();
                assert!((f64::from(y) - wanted).abs() <= bound, "{dot} {s:?} at {at}: {y} for {wanted}");
            }
        }
    }
}

/// Whole lines of codes and single tiles of them go different ways, which no code may show.
#[test]
fn codes_are_the_plain_loops() {
    // Tiles that are copied, that lie in the map but for the last one, and in a band, with its phases.
    let shapes = [
        shape([1, 6, 11, 70], 136, [1, 1]),
        shape([1, 6, 11, 128], 72, [1, 1]),
        shape([1, 5, 9, 33], 64, [3, 3]),
        ConvShape { stride: [2, 2], ..shape([1, 13, 17, 64], 64, [3, 3]) },
    ];
    let activations = [None, Some(Activation::Relu), Some(Activation::Relu6)];
    for (s, activation) in shapes.iter().flat_map(|s| activations.map(|activation| (*s, activation))) {
        let (x, filter) = (numbers(s.input_len(), 7), numbers(s.filter_len(), 8));
        // Sums of such terms reach to about five: levels that they overflow, and some that they do not fill.
        let bias = numbers(s.c_out, 9).iter().map(|b| 3.0 * b).collect::<Vec<f32>>();
        let signs = [true, false];
        for (from, to) in signs.into_iter().flat_map(|from| signs.map(|to| (from, to))) {
            let (input, output) = (Levels::up_to(0.9, from), Levels::up_to(if to { 2.0 } else { 7.5 }, to));
            let added = Levels::up_to(2.5, from);
            let x: Vec<u8> = x.iter().map(|&x| input.code(x)).collect();
            let codes = numbers(s.output_len(), 10).iter().map(|&r| added.code(2.5 * r)).collect::<Vec<u8>>();
            for residual in [Residual::None, Residual::Codes(&codes, added)] {
                let (layout, bias, isa) = (Layout::Channels(s.c_out), Some(&bias[..]), Isa::detect());
                let output = Some(output.rule());
                let finish = Finish { sums: Sums::F32, output, bias, residual, activation, layout, isa };
                let by = |dot| -> Vec<u8> {
                    run(DotConv { shape: s, dot, rule: input.rule() }, &x, &filter, finish, 2)
                };
                let wanted = by(Int8::Portable);
                let values = wanted.iter().collect::<std::collections::HashSet<_>>().len();
                assert!(values > 60, "only {values} codes of {s:?} {activation:?} {output:?}");
                for dot in Int8::available() {
                    assert_eq!(by(dot), wanted, "{dot} {s:?} {activation:?} {from} {output:?}");
                }
            }
        }
    }
}
