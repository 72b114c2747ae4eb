//! Warp operations, divergence, calls, atomics, barriers and memory spaces, with several warp orders.

mod common;

use common::{Bench, Params};
use ptxemu::Config;

fn seeds() -> impl Iterator<Item = Config> {
    [0, 1, 2, 3].into_iter().map(|seed| Config {
        seed,
        threads: if seed < 2 { 1 } else { 2 },
        ..Config::default()
    })
}

#[test]
fn shuffles_and_votes() {
    for arch in ["compute_80", "compute_90", "compute_120"] {
        let bench = Bench::new(&common::ptx_for("warp", arch, &[]));
        let y = bench.room::<i32>("y", 352);
        bench.run("shuffles", [1; 3], [32, 1, 1], &Params::new().arg(y)).unwrap_or_else(|e| panic!("{e}"));
        let got: Vec<i32> = bench.get(y, 352);
        for t in 0..32_i32 {
            let at = |row: i32| got[(row * 32 + t) as usize];
            assert_eq!(at(0), (t + 5) % 32 * 3);
            assert_eq!(at(1), if t < 3 { t * 3 } else { (t - 3) * 3 });
            assert_eq!(at(2), if t % 16 + 7 > 15 { t * 3 } else { (t + 7) * 3 });
            assert_eq!(at(3), (t ^ 9) * 3);
            assert_eq!(at(4), t / 8 * 8 + 2);
            assert_eq!(at(5), (0..32).filter(|l| l % 3 == 0).map(|l| 1_u32 << l).sum::<u32>() as i32);
            assert_eq!(at(6), 1 + 4);
            assert_eq!(at(7), (0..32).filter(|l| l / 5 == t / 5).map(|l| 1_u32 << l).sum::<u32>() as i32);
            assert_eq!(at(8), 496 + 961 + 31);
            assert_eq!(at(9), if t & 1 == 1 { (t ^ 2) + (0xaaaa_aaaa_u32 % 1000) as i32 } else { 0 });
            let first = if t == 0 { 0 } else { (t << 3).trailing_zeros() as i32 + 1 };
            assert_eq!(
                at(10),
                32 + t.leading_zeros() as i32 + first + ((t as u32).reverse_bits() % 97) as i32
            );
        }
    }
}

fn walk(t: i32, mut v: i32) -> i32 {
    let (mut steps, mut sum) = (0_i32, 0_i32);
    while v != 1 {
        if steps > 200 {
            break;
        }
        if v & 1 != 0 {
            v = v.wrapping_mul(3).wrapping_add(1);
        } else {
            v /= 2;
            if v % 5 == 0 {
                steps += 1;
                continue;
            }
        }
        sum = sum.wrapping_add(v);
        steps += 1;
        for i in 0..t & 3 {
            if sum % 7 == 3 {
                sum += i;
                break;
            }
            sum ^= i << 2;
        }
    }
    if t % 11 == 4 {
        return -1;
    }
    let w = match t % 9 {
        0 => sum,
        1 => sum.wrapping_mul(2),
        2 => sum - 7 + steps,
        3 => steps,
        4 => sum ^ 0x55,
        5 => sum / 3,
        6 => sum % 13,
        _ => 42,
    };
    w.wrapping_mul(1000).wrapping_add(steps)
}

#[test]
fn divergence() {
    for arch in ["compute_80", "compute_100"] {
        let bench = Bench::new(&common::ptx_for("warp", arch, &[]));
        let x: Vec<i32> = (0..1000).map(|t| t * 7 % 523 + 1).collect();
        let px = bench.put("x", &x);
        for config in seeds() {
            let y = bench.put("y", &vec![0_i32; 1000]);
            let params = Params::new().arg(px).arg(y).arg(990_i32);
            bench
                .run_with("divergence", ([8, 1, 1], [128, 1, 1], 0), &params, &config)
                .unwrap_or_else(|e| panic!("{e}"));
            let got: Vec<i32> = bench.get(y, 1000);
            for t in 0..1000 {
                assert_eq!(got[t], if t < 990 { walk(t as i32, x[t]) } else { 0 }, "thread {t}");
            }
        }
    }
}

#[test]
fn calls() {
    let fibonacci = |n: i32| (0..n).fold((0, 1), |(a, b), _| (b, a + b)).0;
    for arch in ["compute_80", "compute_100"] {
        let bench = Bench::new(&common::ptx_for("warp", arch, &[]));
        let (y, z) = (bench.room::<i32>("y", 32), bench.room::<f32>("z", 32));
        bench
            .run("calls", [1; 3], [32, 1, 1], &Params::new().arg(y).arg(z))
            .unwrap_or_else(|e| panic!("{e}"));
        let (got, floats): (Vec<i32>, Vec<f32>) = (bench.get(y, 32), bench.get(z, 32));
        for t in 0..32_i32 {
            let (a, b) = if t < 3 {
                (-t, t as f32 * 0.5)
            } else {
                (fibonacci(t) + [10, 20, 30, 40][t as usize & 3], t as f32 * 0.5 * t as f32)
            };
            assert_eq!(got[t as usize], a * (t * 5 & 7) + 3);
            assert_eq!(floats[t as usize], b);
        }
    }
}

#[test]
fn module_variables() {
    let bench = Bench::cuda("warp", &[]);
    let table = bench.instance.global("table").expect("a variable");
    assert!(table.constant && table.bytes == 16);
    assert_eq!(bench.get::<i32>(table.address, 4), [10, 20, 30, 40]);
    let scale = bench.instance.global("scale").expect("a variable").address;
    bench.memory.write(scale, &100_i32.to_le_bytes()).expect("writable");
    let (y, z) = (bench.room::<i32>("y", 32), bench.room::<f32>("z", 32));
    bench.run("calls", [1; 3], [32, 1, 1], &Params::new().arg(y).arg(z)).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(bench.get::<i32>(y, 1), [100]);
}

#[test]
fn atomics() {
    for config in seeds() {
        let bench = Bench::cuda("warp", &[]);
        let count = bench.put("count", &[0_u32; 12]);
        let (lowest, sum, total) =
            (bench.put("low", &[500_i32]), bench.put("sum", &[0_u64]), bench.put("total", &[0_f32]));
        let order = bench.room::<u32>("order", 256);
        let params = Params::new().arg(count).arg(lowest).arg(sum).arg(total).arg(order);
        bench
            .run_with("atomics", ([4, 1, 1], [64, 1, 1], 0), &params, &config)
            .unwrap_or_else(|e| panic!("{e}"));
        let counts: Vec<u32> = bench.get(count, 12);
        assert_eq!(counts[..8], [32; 8]);
        assert_eq!(counts[8..], [56, 7, 5, u32::MAX]);
        assert_eq!(bench.get::<i32>(lowest, 1), [100 - 255]);
        assert_eq!(bench.get::<u64>(sum, 1), [(255 * 128) << 20]);
        assert_eq!(bench.get::<f32>(total, 1), [64.0]);
        let mut order: Vec<u32> = bench.get(order, 256);
        order.sort_unstable();
        let mut want: Vec<u32> = (0..256).map(|i| i % 100).collect();
        want.sort_unstable();
        assert_eq!(order, want);
    }
}

#[test]
fn last_block_reduces() {
    for config in seeds() {
        let bench = Bench::cuda("warp", &[]);
        let x: Vec<i32> = (0..32 * 20).map(|i| i * i % 101).collect();
        let (px, partial) = (bench.put("x", &x), bench.room::<i32>("partial", 20));
        let (ticket, y) = (bench.put("ticket", &[0_u32]), bench.room::<i32>("y", 1));
        let params = Params::new().arg(px).arg(partial).arg(ticket).arg(y);
        bench
            .run_with("last_block", ([20, 1, 1], [32, 1, 1], 0), &params, &config)
            .unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(bench.get::<i32>(y, 1), [x.iter().sum::<i32>()]);
    }
}

#[test]
fn named_barriers() {
    for config in seeds() {
        let bench = Bench::cuda("warp", &[]);
        let y = bench.room::<i32>("y", 384);
        bench
            .run_with("named", ([1; 3], [128, 1, 1], 0), &Params::new().arg(y), &config)
            .unwrap_or_else(|e| panic!("{e}"));
        let got: Vec<i32> = bench.get(y, 384);
        for round in 0..6 {
            for t in 0..64 {
                assert_eq!(got[round * 64 + t], (63 - t as i32) * 10 + round as i32);
            }
        }
    }
}

#[test]
fn barrier_votes() {
    for config in seeds() {
        let bench = Bench::cuda("warp", &[]);
        let y = bench.room::<i32>("y", 96);
        bench
            .run_with("votes", ([1; 3], [96, 1, 1], 0), &Params::new().arg(y).arg(37_i32), &config)
            .unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(bench.get::<i32>(y, 96), [37 + 1000 + 2000; 96]);
    }
}

#[test]
fn widths() {
    let bench = Bench::cuda("warp", &[]);
    let n = 96;
    let a: Vec<i8> = (0..n).map(|i| (i * 37) as i8).collect();
    let b: Vec<u8> = (0..n).map(|i| (i * 91) as u8).collect();
    let c: Vec<i16> = (0..n).map(|i| (i * 7919) as i16).collect();
    let d: Vec<u16> = (0..n).map(|i| (i * 3571) as u16).collect();
    let e: Vec<i64> = (0..n).map(|i| i64::from(i) * -1000).collect();
    let f: Vec<f64> = (0..n).map(|i| f64::from(i) * 0.5).collect();
    let g: Vec<[u32; 4]> = (0..n as u32).map(|i| [i * 4, 1, 2, i]).collect();
    let (y, z, w) = (bench.room::<f32>("y", 96), bench.room::<u8>("z", 96), bench.room::<[u16; 2]>("w", 96));
    let params = Params::new()
        .arg(bench.put("a", &a))
        .arg(bench.put("b", &b))
        .arg(bench.put("c", &c))
        .arg(bench.put("d", &d))
        .arg(bench.put("e", &e))
        .arg(bench.put("f", &f))
        .arg(bench.put("g", &g))
        .arg(y)
        .arg(z)
        .arg(w);
    bench.run("widths", [2, 1, 1], [48, 1, 1], &params).unwrap_or_else(|e| panic!("{e}"));
    let (y, z, w): (Vec<f32>, Vec<u8>, Vec<[u16; 2]>) =
        (bench.get(y, 96), bench.get(z, 96), bench.get(w, 96));
    for i in 0..96 {
        let sum = f64::from(a[i]) + f64::from(b[i]) * 2.0 + f64::from(c[i]) * 3.0 + f64::from(d[i]) * 4.0;
        let sum = sum + e[i] as f64 + f[i] + f64::from(g[i][0]) + f64::from(g[i][3]) - 3.0;
        assert!((f64::from(y[i]) - sum).abs() < 0.05, "{i}");
        assert_eq!(z[i], (i32::from(a[i]) * 3) as u8);
        assert_eq!(w[i], [c[i] as u16, d[i].wrapping_add(1)]);
    }
}

#[test]
fn generic_addresses() {
    let bench = Bench::cuda("warp", &[]);
    let x: Vec<i32> = (0..64).collect();
    let (px, y) = (bench.put("x", &x), bench.room::<i32>("y", 64));
    bench.run("generic", [1; 3], [64, 1, 1], &Params::new().arg(px).arg(y)).unwrap_or_else(|e| panic!("{e}"));
    let got: Vec<i32> = bench.get(y, 64);
    assert!((0..64).all(|t| got[t as usize] == if t < 32 { t + 5 } else { t * 2 + 5 }));
}

#[test]
fn three_dimensions() {
    let bench = Bench::cuda("warp", &[]);
    let y = bench.room::<i32>("y", 6 * 10 * 8);
    let report =
        bench.run("cube", [2, 5, 4], [3, 2, 2], &Params::new().arg(y)).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!((report.blocks, report.launches), (40, 1));
    let got: Vec<i32> = bench.get(y, 480);
    for (i, v) in got.into_iter().enumerate() {
        let i = i as i32;
        assert_eq!(v, i % 6 + 100 * (i / 6 % 10) + 10000 * (i / 60));
    }
}
