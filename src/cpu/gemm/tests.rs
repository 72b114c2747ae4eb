//! Every path against f64 loops, on every instruction set this machine has.

use proptest::prelude::*;

use super::*;

/// Deterministic values in about N(0, 1)'s range.
pub(crate) fn noise(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..len)
        .map(|_| {
            let sum: f32 = (0..4)
                .map(|_| {
                    state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                    (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
                })
                .sum();
            sum * 1.7
        })
        .collect()
}

/// `|got - want| / |want|` over all values, in f64.
pub(crate) fn relative_l2(got: &[f32], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len());
    let (mut diff, mut norm) = (0.0, 0.0);
    for (&g, &w) in got.iter().zip(want) {
        diff += (g as f64 - w).powi(2);
        norm += w * w;
    }
    if diff == 0.0 { 0.0 } else { (diff / norm).sqrt() }
}

/// Runs `f` on pools of 1, 2, 3 and 5 threads and demands the same bits from all.
pub(crate) fn same_bits(f: impl Fn() -> Vec<f32> + Sync) -> Vec<f32> {
    let on = |n| rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap().install(&f);
    let first = on(1);
    for n in [2, 3, 5] {
        let again = on(n);
        let equal = first.iter().zip(&again).all(|(a, b)| a.to_bits() == b.to_bits());
        assert!(equal && first.len() == again.len(), "{n} threads give other bits than one");
    }
    first
}

fn reference(
    m: usize,
    n: usize,
    k: usize,
    a: impl Fn(usize, usize) -> f64,
    b: impl Fn(usize, usize) -> f64,
) -> Vec<f64> {
    let mut c = vec![0.0; m * n];
    for i in 0..m {
        for p in 0..k {
            for j in 0..n {
                c[i * n + j] += a(i, p) * b(p, j);
            }
        }
    }
    c
}

fn transposed(b: &[f32], k: usize, n: usize) -> Vec<f32> {
    (0..k * n).map(|i| b[i % k * n + i / k]).collect()
}

fn check(m: usize, n: usize, k: usize, pad: usize) {
    let (lda, ldc) = (k + pad, n + pad);
    let (a, b) = (noise(m * lda + 1, 1), noise(k * n, 2));
    let (bias, rows, residual) = (noise(n, 3), noise(m, 4), noise(m * ldc + 1, 5));
    let exact = reference(m, n, k, |i, p| a[i * lda + p] as f64, |p, j| b[p * n + j] as f64);
    let bt = transposed(&b, k, n);
    for isa in Isa::available() {
        let gemm = Gemm { m, n, k, isa };
        let mut packed = vec![f32::NAN; gemm.packed_len()];
        let mut other = packed.clone();
        gemm.pack_b(&b, BLayout::RowMajor, &mut packed);
        gemm.pack_b(&bt, BLayout::Transposed, &mut other);
        assert_eq!(packed, other, "the two layouts pack alike");
        let cases = [
            Epilogue::default(),
            Epilogue::bias(&bias).relu(),
            Epilogue { bias: Some(Bias::Row(&rows)), residual: Some(&residual), clamp: Some((0.0, 6.0)) },
        ];
        for epilogue in cases {
            let mut c = vec![7.0; m * ldc + 1];
            gemm.run(&a, lda, &packed, &epilogue, &mut c, ldc);
            let (mut got, mut want) = (vec![], vec![]);
            for i in 0..m {
                for j in 0..n {
                    let bias = match epilogue.bias {
                        Some(Bias::Column(b)) => b[j] as f64,
                        Some(Bias::Row(b)) => b[i] as f64,
                        None => 0.0,
                    };
                    let v =
                        exact[i * n + j] + bias + epilogue.residual.map_or(0.0, |r| r[i * ldc + j] as f64);
                    want.push(epilogue.clamp.map_or(v, |(lo, hi)| v.clamp(lo as f64, hi as f64)));
                    got.push(c[i * ldc + j]);
                }
                let gap = &c[i * ldc + n..(i + 1) * ldc];
                assert!(gap.iter().all(|&v| v == 7.0), "wrote between the rows of C");
            }
            // A sum of k <= 700 terms in f32 errs by about sqrt(k) / 2 roundings of 6e-8.
            let error = relative_l2(&got, &want);
            assert!(error < 1e-6, "{gemm:?} {epilogue:?}: {error:e}");
        }
    }
}

impl<'a> Epilogue<'a> {
    /// A per-column bias alone.
    pub fn bias(bias: &'a [f32]) -> Self {
        Epilogue { bias: Some(Bias::Column(bias)), ..Default::default() }
    }

    /// The same with ReLU behind it.
    pub fn relu(self) -> Self {
        Epilogue { clamp: Some((0.0, f32::INFINITY)), ..self }
    }
}

#[test]
fn edges() {
    for (m, n, k) in [(0, 3, 3), (3, 0, 3), (1, 1, 0), (20, 40, 0), (1, 1, 1), (14, 32, 16), (15, 33, 17)] {
        check(m, n, k, 0);
    }
    check(85, 65, 257, 0);
    check(200, 100, 700, 3);
}

/// Every tile that can lie at the edge of C. Both sums of k products take the same order, in f32: each is off
/// the exact sum by at most k u / (1 - k u) of the sum of absolute products, with u = 2^-24, fused or not.
#[test]
fn every_tile_is_the_portable_one_but_for_rounding() {
    const U: f32 = f32::EPSILON / 2.0;
    let (most_m, most_n) = (17, 35);
    for k in [1, 15, 16, 40] {
        let (a, b) = (noise(most_m * k, 1), noise(k * most_n, 2));
        let of = |isa, m, n, a: &[f32], b: &[f32]| {
            let gemm = Gemm { m, n, k, isa };
            let mut packed = vec![f32::NAN; gemm.packed_len()];
            gemm.pack_b_strided(b, most_n, BLayout::RowMajor, &mut packed);
            let mut c = vec![f32::NAN; m * n];
            gemm.run(a, k, &packed, &Epilogue::default(), &mut c, n);
            c
        };
        let absolute = |v: &[f32]| v.iter().map(|v| v.abs()).collect::<Vec<_>>();
        let (a_size, b_size) = (absolute(&a), absolute(&b));
        // Twice for the two sums, and half as much again for the rounding of the sizes themselves.
        let bound = 3.0 * k as f32 * U / (1.0 - k as f32 * U);
        for (m, n) in (1..=most_m).flat_map(|m| (1..=most_n).map(move |n| (m, n))) {
            let want = of(Isa::Portable, m, n, &a, &b);
            let sizes = of(Isa::Portable, m, n, &a_size, &b_size);
            for isa in Isa::available() {
                let got = of(isa, m, n, &a, &b);
                for (i, (got, want)) in got.iter().zip(&want).enumerate() {
                    let off = (got - want).abs();
                    assert!(off <= bound * sizes[i], "{isa}: {m} x {n} x {k}, element {i} is off by {off:e}");
                }
            }
        }
    }
}

/// What a register is for, lane by lane.
struct Lanes;

impl Job for Lanes {
    #[inline(always)]
    fn run<A: Arch>(self) {
        let lanes = A::V::LANES;
        let (x, y, z) = (noise(CHUNK, 1), noise(CHUNK, 2), noise(CHUNK, 3));
        // SAFETY: `on` chose an available A; all arrays hold `CHUNK` values, which is at least `LANES`.
        unsafe {
            let stored = |v: A::V| {
                let mut to = [7.0f32; CHUNK];
                v.store(to.as_mut_ptr());
                assert!(to[lanes..].iter().all(|&v| v == 7.0), "wrote past a vector");
                to[..lanes].to_vec()
            };
            let each = |f: &dyn Fn(usize) -> f32| (0..lanes).map(f).collect::<Vec<_>>();
            let [a, b, c] = [&x, &y, &z].map(|v| A::V::load(v.as_ptr()));
            assert_eq!(stored(a), x[..lanes]);
            assert_eq!(stored(A::V::splat(1.5)), each(&|_| 1.5));
            assert_eq!(stored(a.add(b)), each(&|i| x[i] + y[i]));
            assert_eq!(stored(a.sub(b)), each(&|i| x[i] - y[i]));
            assert_eq!(stored(a.mul(b)), each(&|i| x[i] * y[i]));
            let products = stored(a.mul_add(b, c));
            for (i, &got) in products.iter().enumerate() {
                let ways = [x[i].mul_add(y[i], z[i]), x[i] * y[i] + z[i]];
                assert!(ways.contains(&got), "{got} is none of {ways:?}");
            }
            let (lo, hi) = a.interleave(b);
            let both = [stored(lo), stored(hi)].concat();
            assert_eq!(both, (0..2 * lanes).map(|i| [&x, &y][i % 2][i / 2]).collect::<Vec<_>>());
            for n in 0..=lanes {
                assert_eq!(
                    stored(A::V::load_first(x.as_ptr(), n)),
                    each(&|i| if i < n { x[i] } else { 0.0 })
                );
                let mut to = [7.0f32; CHUNK];
                a.store_first(to.as_mut_ptr(), n);
                assert_eq!(to[..n], x[..n]);
                assert!(to[n..].iter().all(|&v| v == 7.0), "wrote past {n} lanes");
            }
            let mut odd = x.clone();
            (odd[0], odd[1], odd[2]) = (f32::NAN, f32::INFINITY, f32::NEG_INFINITY);
            let clamped = stored(A::V::load(odd.as_ptr()).clamp(A::V::splat(-0.5), A::V::splat(0.5)));
            assert!(clamped[0].is_nan());
            assert_eq!(clamped[1..], each(&|i| odd[i].clamp(-0.5, 0.5))[1..]);
        }
    }
}

#[test]
fn vectors_keep_their_contract() {
    Isa::available().into_iter().for_each(|isa| on(isa, Lanes));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn any_shape(m in 1usize..100, n in 1usize..80, k in 1usize..300, pad in 0usize..3) {
        check(m, n, k, pad);
    }

    #[test]
    fn masks(objects in 1usize..100, pixels in 1usize..600, channels in 1usize..70) {
        let (masks, x) = (noise(objects * pixels, 1), noise(pixels * channels, 2));
        let (kernels, bias) = (noise(objects * channels, 3), noise(objects, 4));
        let pooled = reference(objects, channels, pixels,
            |i, p| if masks[i * pixels + p] > 0.0 { 1.0 } else { 0.0 }, |p, j| x[p * channels + j] as f64);
        let mut logits = reference(objects, pixels, channels,
            |i, p| kernels[i * channels + p] as f64, |p, j| x[j * channels + p] as f64);
        for (i, l) in logits.iter_mut().enumerate() {
            *l += bias[i / pixels] as f64;
        }
        let spread = reference(pixels, channels, objects,
            |i, p| if masks[p * pixels + i] > 0.0 { 1.0 } else { 0.0 }, |p, j| kernels[p * channels + j] as f64);
        for isa in Isa::available() {
            let pool = MaskPool { objects, pixels, channels, isa };
            let mut out = vec![f32::NAN; objects * channels];
            let mut workspace = vec![f32::NAN; pool.workspace_len()];
            pool.run(&masks, &x, &mut out, &mut workspace);
            prop_assert!(relative_l2(&out, &pooled) < 1e-6);
            let mut got = vec![f32::NAN; objects * pixels];
            MaskConv { objects, pixels, channels, isa }.run(&kernels, &x, Some(&bias), &mut got);
            prop_assert!(relative_l2(&got, &logits) < 1e-6);
            let mut dx = vec![f32::NAN; pixels * channels];
            pool.run_grad(&masks, &kernels, &mut dx);
            prop_assert!(relative_l2(&dx, &spread) < 1e-6);
        }
    }
}

#[test]
fn same_bits_on_any_number_of_threads() {
    let (m, n, k) = (190, 130, 530);
    let (a, b) = (noise(m * k, 1), noise(k * n, 2));
    for isa in Isa::available() {
        let gemm = Gemm { m, n, k, isa };
        same_bits(|| {
            let mut packed = vec![0.0; gemm.packed_len()];
            gemm.pack_b(&b, BLayout::RowMajor, &mut packed);
            let mut c = vec![0.0; m * n];
            gemm.run(&a, k, &packed, &Epilogue::default(), &mut c, n);
            c
        });
        let (objects, pixels, channels) = (101, 5000, 64);
        let (masks, x) = (noise(objects * pixels, 3), noise(pixels * channels, 4));
        let pool = MaskPool { objects, pixels, channels, isa };
        same_bits(|| {
            let (mut out, mut workspace) = (vec![0.0; objects * channels], vec![0.0; pool.workspace_len()]);
            pool.run(&masks, &x, &mut out, &mut workspace);
            out
        });
    }
}

#[test]
fn nan_passes_through_relu_but_is_outside_every_mask() {
    for isa in Isa::available() {
        let gemm = Gemm { m: 20, n: 40, k: 5, isa };
        let (mut a, b) = (noise(100, 1), noise(200, 2));
        a[7 * 5] = f32::NAN;
        let mut packed = vec![0.0; gemm.packed_len()];
        gemm.pack_b(&b, BLayout::RowMajor, &mut packed);
        let mut c = vec![0.0; 800];
        gemm.run(&a, 5, &packed, &Epilogue { clamp: Some((0.0, 6.0)), ..Default::default() }, &mut c, 40);
        for (i, v) in c.iter().enumerate() {
            assert_eq!(v.is_nan(), i / 40 == 7, "{isa}: element {i} is {v}");
        }
        let pool = MaskPool { objects: 1, pixels: 3, channels: 1, isa };
        let (mut out, mut workspace) = ([0.0], vec![0.0; pool.workspace_len()]);
        pool.run(&[f32::NAN, 0.0, 1e-9], &[1.0, 2.0, 4.0], &mut out, &mut workspace);
        assert_eq!(out, [4.0], "{isa}: only a logit above zero is inside");
    }
}
