//! Matrix instructions and asynchronous copies against index arithmetic.

mod common;

use common::{Bench, Params, noise};
use half::{bf16, f16};
use ptxemu::{Config, MmaSum};

/// D = A B + C in f64: A [16][k], B [8][k], C [16][8].
fn product(a: &[f64], b: &[f64], c: &[f64], k: usize) -> Vec<f64> {
    (0..128)
        .map(|i| {
            let (row, col) = (i / 8, i % 8);
            c[i] + (0..k).map(|j| a[row * k + j] * b[col * k + j]).sum::<f64>()
        })
        .collect()
}

fn close(got: &[f32], want: &[f64], what: &str) {
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        // 16 sums of products below 1 in f32: half a unit each.
        assert!((f64::from(*g) - w).abs() < 2e-6, "{what} element {i}: {g}, not {w}");
    }
}

#[test]
fn half_products() {
    let bench = Bench::cuda("matrix", &[]);
    for (name, k, brain) in
        [("f16_k16", 16, false), ("f16_k8", 8, false), ("bf16_k16", 16, true), ("bf16_k8", 8, true)]
    {
        let round = |x: f32| if brain { bf16::from_f32(x).to_bits() } else { f16::from_f32(x).to_bits() };
        let back = |x: u16| if brain { bf16::from_bits(x).to_f64() } else { f16::from_bits(x).to_f64() };
        let a: Vec<u16> = noise(1, 16 * k).into_iter().map(round).collect();
        let b: Vec<u16> = noise(2, 8 * k).into_iter().map(round).collect();
        let c = noise(3, 128);
        let d = bench.room::<f32>("d", 128);
        let params =
            Params::new().arg(bench.put("a", &a)).arg(bench.put("b", &b)).arg(bench.put("c", &c)).arg(d);
        let report = bench.run(name, [1; 3], [32, 1, 1], &params).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!((report.mma, report.mma_macs), (1, 16 * 8 * k as u64));
        let wide = |v: &[u16]| v.iter().map(|x| back(*x)).collect::<Vec<f64>>();
        let want = product(&wide(&a), &wide(&b), &c.iter().map(|x| f64::from(*x)).collect::<Vec<_>>(), k);
        close(&bench.get::<f32>(d, 128), &want, name);
    }
}

#[test]
fn half_accumulators() {
    let bench = Bench::cuda("matrix", &[]);
    let [a, b, c] = [(1, 256), (2, 128), (3, 128)]
        .map(|(seed, n)| noise(seed, n).into_iter().map(f16::from_f32).collect::<Vec<f16>>());
    let d = bench.room::<u16>("d", 128);
    let params = Params::new().arg(bench.put("a", &a)).arg(bench.put("b", &b)).arg(bench.put("c", &c)).arg(d);
    bench.run("f16_narrow", [1; 3], [32, 1, 1], &params).unwrap_or_else(|e| panic!("{e}"));
    let wide = |v: &[f16]| v.iter().map(|x| x.to_f64()).collect::<Vec<f64>>();
    let want = product(&wide(&a), &wide(&b), &wide(&c), 16);
    for (got, want) in bench.get::<u16>(d, 128).into_iter().zip(want) {
        // Half a unit of f16 at magnitude up to 8.
        assert!((f16::from_bits(got).to_f64() - want).abs() < 0.004);
    }
}

#[test]
fn tf32_products() {
    let bench = Bench::cuda("matrix", &[]);
    let cut = |x: f32| f64::from(f32::from_bits((x.to_bits() + 0x1000) & !0x1fff));
    for (name, k) in [("tf32_k8", 8), ("tf32_k4", 4)] {
        let (a, b, c) = (noise(1, 16 * k), noise(2, 8 * k), noise(3, 128));
        let d = bench.room::<f32>("d", 128);
        let params =
            Params::new().arg(bench.put("a", &a)).arg(bench.put("b", &b)).arg(bench.put("c", &c)).arg(d);
        bench.run(name, [1; 3], [32, 1, 1], &params).unwrap_or_else(|e| panic!("{e}"));
        let wide = |v: &[f32]| v.iter().map(|x| cut(*x)).collect::<Vec<f64>>();
        let want = product(&wide(&a), &wide(&b), &c.iter().map(|x| f64::from(*x)).collect::<Vec<_>>(), k);
        close(&bench.get::<f32>(d, 128), &want, name);
    }
}

/// `c` plus products as [`MmaSum::Truncated`] says, in whole numbers: multiples of 2^-200.
fn truncated(factors: &[(f64, f64)], c: f64) -> f32 {
    let exponent = |x: f64| if x == 0.0 { -126 } else { x.abs().log2().floor() as i32 };
    let terms: Vec<(f64, i32)> =
        factors.iter().map(|&(a, b)| (a * b, exponent(a) + exponent(b))).chain([(c, exponent(c))]).collect();
    let unit = terms.iter().map(|term| term.1).max().unwrap() - 24;
    let sum: i64 = terms.iter().map(|term| (term.0 * 2_f64.powi(-unit)).trunc() as i64).sum();
    let excess = (40 - (sum.unsigned_abs().leading_zeros() as i32)).max(0);
    let cut = sum.signum() * (sum.abs() >> excess << excess);
    (cut as f64 * 2_f64.powi(unit)) as f32
}

#[test]
fn sums_are_cut_as_on_ampere() {
    let bench = Bench::cuda("matrix", &[]);
    // Some of them much larger than the others, some sums that cancel.
    let spread = |seed, n| -> Vec<f32> {
        let gains = noise(seed + 10, n);
        noise(seed, n).into_iter().zip(gains).map(|(x, gain)| x * (12.0 * gain).exp2()).collect()
    };
    for (name, k, together) in
        [("f16_k16", 16, 8), ("f16_k8", 8, 8), ("bf16_k16", 16, 8), ("tf32_k8", 8, 4), ("tf32_k4", 4, 4)]
    {
        let (a, b, mut c) = (spread(1, 16 * k), spread(2, 8 * k), spread(3, 128));
        c[..8].fill(0.0);
        let d = bench.room::<f32>("d", 128);
        let operand = |label: &str, values: &[f32]| -> (u64, Vec<f64>) {
            let half = |bits: fn(f32) -> u16| values.iter().map(|&x| bits(x)).collect::<Vec<u16>>();
            match &name[..2] {
                "f1" => {
                    let bits = half(|x| f16::from_f32(x).to_bits());
                    (bench.put(label, &bits), bits.iter().map(|&x| f16::from_bits(x).to_f64()).collect())
                }
                "bf" => {
                    let bits = half(|x| bf16::from_f32(x).to_bits());
                    (bench.put(label, &bits), bits.iter().map(|&x| bf16::from_bits(x).to_f64()).collect())
                }
                _ => {
                    let cut = |x: &f32| f64::from(f32::from_bits((x.to_bits() + 0x1000) & !0x1fff));
                    (bench.put(label, values), values.iter().map(cut).collect())
                }
            }
        };
        let ((pa, a), (pb, b)) = (operand("a", &a), operand("b", &b));
        let params = Params::new().arg(pa).arg(pb).arg(bench.put("c", &c)).arg(d);
        let run = |mma_sum| {
            let config = Config { mma_sum, ..Config::default() };
            bench.run_with(name, ([1; 3], [32, 1, 1], 0), &params, &config).unwrap_or_else(|e| panic!("{e}"));
            bench.get::<f32>(d, 128)
        };
        let (found, nearest) = (run(MmaSum::Truncated), run(MmaSum::Nearest));
        for i in 0..128 {
            let factors: Vec<(f64, f64)> = (0..k).map(|j| (a[i / 8 * k + j], b[i % 8 * k + j])).collect();
            let sum = factors.chunks(together).fold(c[i], |sum, part| truncated(part, f64::from(sum)));
            assert_eq!(found[i].to_bits(), sum.to_bits(), "{name} element {i}: {}, not {sum}", found[i]);
        }
        assert_ne!(found, nearest, "{name}: nothing was cut");
    }
}

/// f32 products by three TF32 ones, summed over K = 2304: in one chain of `mma` the cuts add up to a bias far
/// beyond what three products leave out, and in steps that start from zero and are added in f32 they do not.
#[test]
fn long_chains_of_cut_sums_are_biased() {
    const STEPS: usize = 2304 / 8;
    let bench = Bench::cuda("matrix", &[]);
    let (a, b) = (noise(1, 16 * 8 * STEPS), noise(2, 8 * 8 * STEPS));
    let high = |x: f32| f32::from_bits((x.to_bits() + 0x1000) & !0x1fff);
    let parts = |values: &[f32]| {
        let low = values.iter().map(|&x| high(x - high(x))).collect::<Vec<f32>>();
        (values.iter().map(|&x| high(x)).collect::<Vec<f32>>(), low)
    };
    let mut wanted = vec![0.0; 128];
    let (mut chain, mut steps) = (vec![0.0_f32; 128], vec![0.0_f32; 128]);
    let product = |a: &[f32], b: &[f32], c: &[f32]| {
        let d = bench.room::<f32>("d", 128);
        let operands = [bench.put("a", a), bench.put("b", b), bench.put("c", c), d];
        let params = operands.iter().fold(Params::new(), |params, &operand| params.arg(operand));
        bench.run("tf32_k8", [1; 3], [32, 1, 1], &params).unwrap_or_else(|e| panic!("{e}"));
        let found = bench.get::<f32>(d, 128);
        operands.iter().for_each(|&operand| bench.memory.free(operand).unwrap());
        found
    };
    for (a, b) in a.chunks(16 * 8).zip(b.chunks(8 * 8)) {
        for (i, wanted) in wanted.iter_mut().enumerate() {
            *wanted += (0..8).map(|k| f64::from(a[i / 8 * 8 + k]) * f64::from(b[i % 8 * 8 + k])).sum::<f64>();
        }
        let ((a_high, a_low), (b_high, b_low)) = (parts(a), parts(b));
        let add = |c: &[f32]| {
            let c = product(&a_low, &b_high, c);
            product(&a_high, &b_high, &product(&a_high, &b_low, &c))
        };
        chain = add(&chain);
        steps.iter_mut().zip(add(&[0.0; 128])).for_each(|(sum, step)| *sum += step);
    }
    let error = |found: &[f32]| {
        let square = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>();
        let off = square(&mut found.iter().zip(&wanted).map(|(&x, w)| f64::from(x) - w));
        (off / square(&mut wanted.iter().copied())).sqrt()
    };
    let (chain, steps) = (error(&chain), error(&steps));
    // The second is what f32 itself may do: sqrt(288) roundings of 6e-8, and 2^-22 of each product that was
    // left out.
    assert!(chain > 5e-6 && steps < 1.5e-6, "relative L2 {chain:.2e} in a chain, {steps:.2e} in steps");
}

/// What is not a number, and what overflows, comes out as of plain sums.
#[test]
fn infinities_pass_through_sums() {
    let bench = Bench::cuda("matrix", &[]);
    let (mut a, b) = ([f16::ONE; 256], [f16::ONE; 128]);
    (a[0], a[16], a[40]) = (f16::INFINITY, f16::NAN, f16::NEG_INFINITY);
    let d = bench.room::<f32>("d", 128);
    let (pa, pb) = (bench.put("a", &a), bench.put("b", &b));
    let params = Params::new().arg(pa).arg(pb).arg(bench.put("c", &[0.0_f32; 128])).arg(d);
    bench.run("f16_k16", [1; 3], [32, 1, 1], &params).unwrap_or_else(|e| panic!("{e}"));
    for (i, found) in bench.get::<f32>(d, 128).into_iter().enumerate() {
        let right = match i / 8 {
            0 => found == f32::INFINITY,
            1 => found.is_nan(),
            2 => found == f32::NEG_INFINITY,
            _ => found == 16.0,
        };
        assert!(right, "row {}: {found}", i / 8);
    }
}

#[test]
fn byte_products() {
    let bench = Bench::cuda("matrix", &[]);
    for (name, k) in [("s8_k32", 32), ("s8_k16", 16)] {
        let a: Vec<i8> = (0..16 * k).map(|i| (i * 73 + 11) as i8).collect();
        let b: Vec<u8> = (0..8 * k).map(|i| (i * 151 + 7) as u8).collect();
        let c: Vec<i32> = (0..128).map(|i| i * 1000 - 64000).collect();
        let d = bench.room::<i32>("d", 128);
        let params =
            Params::new().arg(bench.put("a", &a)).arg(bench.put("b", &b)).arg(bench.put("c", &c)).arg(d);
        bench.run(name, [1; 3], [32, 1, 1], &params).unwrap_or_else(|e| panic!("{e}"));
        let got: Vec<i32> = bench.get(d, 128);
        for i in 0..128 {
            let sum: i32 = (0..k).map(|j| i32::from(a[i / 8 * k + j]) * i32::from(b[i % 8 * k + j])).sum();
            assert_eq!(got[i], c[i] + sum, "{name}");
        }
    }
}

#[test]
fn matrix_moves() {
    for arch in ["compute_80", "compute_90"] {
        let bench = Bench::new(&common::ptx_for("matrix", arch, &[]));
        let x: Vec<u16> = (0..256_u16).map(|i| i.wrapping_mul(257).wrapping_add(3)).collect();
        let (y, z) = (bench.room::<u32>("y", 12 * 32), bench.room::<u16>("z", 256));
        let params = Params::new().arg(bench.put("x", &x)).arg(y).arg(z);
        bench.run("moves", [1; 3], [32, 1, 1], &params).unwrap_or_else(|e| panic!("{e}"));
        let got: Vec<u32> = bench.get(y, 12 * 32);
        let at = |matrix: usize, row: usize, col: usize| u32::from(x[matrix * 64 + row * 8 + col]);
        for lane in 0..32 {
            let (g, t) = (lane / 4, 2 * (lane % 4));
            let plain = |j: usize| at(j, g, t) | at(j, g, t + 1) << 16;
            let turned = |j: usize| at(j, t, g) | at(j, t + 1, g) << 16;
            for j in 0..4 {
                assert_eq!(got[j * 32 + lane], plain(j));
                assert_eq!(got[(4 + j) * 32 + lane], turned(j));
            }
            assert_eq!([8, 9, 10].map(|r| got[r * 32 + lane]), [plain(0), plain(1), plain(0)]);
            assert_eq!(got[11 * 32 + lane], turned(0));
        }
        if arch == "compute_90" {
            let z: Vec<u16> = bench.get(z, 256);
            assert!((0..256).all(|i| u32::from(z[i]) == at(i / 64, i % 8, i / 8 % 8)));
        }
    }
}

#[test]
fn asynchronous_copies() {
    let bench = Bench::cuda("matrix", &[]);
    let x: Vec<u8> = (0..512).map(|i| (i * 7 + 1) as u8).collect();
    let px = bench.put("x", &x);
    for late_async in [true, false] {
        for valid in [512_usize, 100, 0] {
            let y = bench.room::<u8>("y", 896);
            let config = Config { late_async, ..Config::default() };
            let params = Params::new().arg(px).arg(y).arg(valid as i32);
            let report = bench
                .run_with("copies", ([1; 3], [32, 1, 1], 0), &params, &config)
                .unwrap_or_else(|e| panic!("{e}"));
            assert_eq!(report.async_bytes, 32 * 28);
            let got: Vec<u8> = bench.get(y, 896);
            for i in 0..512 {
                assert_eq!(got[i], if i < valid { x[i] } else { 0 }, "byte {i} of {valid}");
            }
            assert_eq!(got[512..768], x[..256]);
            assert_eq!(got[768..], x[..128]);
        }
    }
}
