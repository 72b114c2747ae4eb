//! Whole kernels through NVRTC: values against Rust, and speed.

mod common;

use common::{Bench, Params, noise};
use half::f16;
use ptxemu::Config;

#[repr(C)]
#[derive(Clone, Copy)]
struct P {
    n: i32,
    s: f32,
    k: [i32; 4],
}

/// A kernel with a bit of everything: reduction, call, switch, constants, libdevice functions, f64 and 64-bit
/// division.
#[test]
fn basic() {
    for arch in ["compute_80", "compute_100"] {
        let bench = Bench::new(&common::ptx_for("basic", arch, &[]));
        let a = noise(1, 256);
        let pa = bench.put("a", &a);
        let py = bench.put("y", &vec![0_f32; 2048]);
        let p = P { n: 200, s: 0.5, k: [1, 2, 3, 4] };
        let params = Params::new().arg(pa).arg(py).arg(p);
        let run = bench.run_with("k1", ([2, 1, 1], [128, 1, 1], 1024), &params, &Config::default());
        run.unwrap_or_else(|e| panic!("{e}"));
        let y: Vec<f32> = bench.get(py, 2048);
        let v = |i: usize| if i < 200 { f64::from(a[i]) } else { 0.0 };
        let w = |i: usize| {
            let x = v(i);
            v(i ^ 1) + x.tanh() + x / 0.5 + x.sqrt() + x.exp() + x.ln() + x.sin()
        };
        // Single precision, and a reduction over 128 values.
        let close = |got: f32, want: f64| {
            let same = got.is_nan() && want.is_nan() || f64::from(got) == want;
            assert!(
                same || (f64::from(got) - want).abs() < 1e-4 * want.abs().max(1.0),
                "{arch}: {got}, not {want}"
            );
        };
        for block in 0..2 {
            let sum = (0..128).map(|t| v(block * 128 + t)).sum::<f64>() * 0.5;
            close(y[block], sum + sum.exp() + 1.0);
        }
        for i in 0..256 {
            let warp = i / 32 * 32;
            let stored = (warp..warp + 32).any(|j| w(j) > 3.0);
            close(y[512 + i], if stored { w(i) } else { 0.0 });
            close(y[1024 + i], 2.0 * w(i ^ 1) + (200 * i / 7) as f64 + (i % 200) as f64);
        }
        let counter = bench.instance.global("counter").expect("a variable").address;
        assert_eq!(bench.get::<i32>(counter, 1), [2]);
    }
}

/// The fp16 GEMM on random data; returns the largest error against an f64 product.
fn gemm(
    options: &[&str],
    config: &Config,
    (m, n, k): (usize, usize, usize),
) -> Result<(f64, ptxemu::Report), ptxemu::Fault> {
    let bench = Bench::cuda("gemm", options);
    let a: Vec<f16> = noise(1, m * k).into_iter().map(f16::from_f32).collect();
    let b: Vec<f16> = noise(2, n * k).into_iter().map(f16::from_f32).collect();
    let (pa, pb, pc) = (bench.put("a", &a), bench.put("b", &b), bench.room::<f32>("c", m * n));
    let params = Params::new().arg(pa).arg(pb).arg(pc).arg(m as i32).arg(n as i32).arg(k as i32);
    let grid = [(n / 128) as u32, (m / 128) as u32, 1];
    let report = bench.run_with("gemm", (grid, [256, 1, 1], 3 * 16384), &params, config)?;
    let c: Vec<f32> = bench.get(pc, m * n);
    let mut worst = 0_f64;
    for row in (0..m).step_by(7) {
        for col in (0..n).step_by(5) {
            let sum: f64 = (0..k).map(|i| a[row * k + i].to_f64() * b[col * k + i].to_f64()).sum();
            worst = worst.max((sum - f64::from(c[row * n + col])).abs());
        }
    }
    Ok((worst, report))
}

#[test]
fn fp16_gemm() {
    let (worst, report) = gemm(&[], &Config::default(), (512, 512, 512)).unwrap_or_else(|e| panic!("{e}"));
    assert!(worst < 1e-4, "{worst}");
    assert_eq!(report.mma_macs, 512 * 512 * 512);
    assert_eq!((report.matrix_load.conflict(), report.async_store.conflict()), (1.0, 1.0));
    assert_eq!(report.global_load.sectors_per_request(), 4.0);
    assert_eq!(report.loop_mma, report.mma, "all products are in the main loop");
    let (_, longer) = gemm(&[], &Config::default(), (512, 512, 544)).unwrap_or_else(|e| panic!("{e}"));
    // A step more, in each warp: what it costs is the loop's instructions per step, if the last ones copy
    // nothing ahead.
    let (step, steps) = (longer.instructions - report.instructions, 512 / 32);
    let average = report.loop_instructions as f64 / f64::from(steps);
    assert!(average <= step as f64 && average > 0.9 * step as f64, "{average} of {step}");
}

#[test]
fn f32_gemm() {
    let bench = Bench::cuda("gemm", &[]);
    let (m, n, k) = (512, 512, 512);
    let (a, b) = (noise(1, m * k), noise(2, n * k));
    let (pa, pb, pc) = (bench.put("a", &a), bench.put("b", &b), bench.room::<f32>("c", m * n));
    let params = Params::new().arg(pa).arg(pb).arg(pc).arg(m as i32).arg(n as i32).arg(k as i32);
    let report = bench.run("sgemm", [8, 8, 1], [64, 1, 1], &params).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(report.scalar_macs, (m * n * k) as u64);
    let c: Vec<f32> = bench.get(pc, m * n);
    for row in (0..m).step_by(7) {
        for col in (0..n).step_by(5) {
            let sum: f64 = (0..k).map(|i| f64::from(a[row * k + i]) * f64::from(b[i * n + col])).sum();
            assert!((sum - f64::from(c[row * n + col])).abs() < 1e-4);
        }
    }
}

/// CPU seconds of this thread.
fn cpu() -> f64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    text.split(' ').next().and_then(|t| t.parse::<f64>().ok()).unwrap_or(0.0) / 1e9
}

/// GMAC per CPU second of one thread, with all checks:
/// `cargo test -p ptxemu --test kernels speed -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn speed() {
    let bench = Bench::cuda("gemm", &[]);
    let (m, n, k) = (512, 512, 512);
    let half: Vec<f16> = noise(1, m * k).into_iter().map(f16::from_f32).collect();
    let single = noise(1, m * k);
    let (pa, pb, pc) = (bench.put("a", &half), bench.put("b", &half), bench.room::<f32>("c", m * n));
    let (big, other) = (bench.put("x", &vec![1_f32; 1 << 22]), bench.room::<f32>("y", 1 << 22));
    let (sa, sb) = (bench.put("a", &single), bench.put("b", &single));
    let sizes = |p: Params| p.arg(pc).arg(m as i32).arg(n as i32).arg(k as i32);
    let config = Config { threads: 1, ..Config::default() };
    for _ in 0..3 {
        let start = cpu();
        let params = sizes(Params::new().arg(pa).arg(pb));
        bench.run_with("gemm", ([4, 4, 1], [256, 1, 1], 3 * 16384), &params, &config).expect("runs");
        let middle = cpu();
        let params = sizes(Params::new().arg(sa).arg(sb));
        bench.run_with("sgemm", ([8, 8, 1], [64, 1, 1], 0), &params, &config).expect("runs");
        let rate = |s: f64| (m * n * k) as f64 / s / 1e9;
        println!(
            "one thread: mma {:.2} GMAC/s, f32 {:.2} GMAC/s",
            rate(middle - start),
            rate(cpu() - middle)
        );
        let before = cpu();
        let count = 1 << 22;
        let params = Params::new().arg(big).arg(other).arg(count / 4);
        bench
            .run_with("relu", ([count as u32 / 1024, 1, 1], [256, 1, 1], 0), &params, &config)
            .expect("runs");
        println!("one thread: float4 in and out {:.2} GB/s", f64::from(count) * 8.0 / (cpu() - before) / 1e9);
        let both = Config { threads: 2, ..Config::default() };
        let (start, params) = (std::time::Instant::now(), sizes(Params::new().arg(pa).arg(pb)));
        bench.run_with("gemm", ([4, 4, 1], [256, 1, 1], 3 * 16384), &params, &both).expect("runs");
        let (middle, params) = (std::time::Instant::now(), sizes(Params::new().arg(sa).arg(sb)));
        bench.run_with("sgemm", ([8, 8, 1], [64, 1, 1], 0), &params, &both).expect("runs");
        let (half, single) = ((middle - start).as_secs_f64(), middle.elapsed().as_secs_f64());
        println!("two threads, wall clock: mma {:.2} GMAC/s, f32 {:.2} GMAC/s", rate(half), rate(single));
    }
}
