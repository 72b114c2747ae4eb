//! Seeded bugs: each is caught, with a message that names the right line of CUDA source; without the bug the
//! same kernel passes.

mod common;

use common::{Bench, Params, noise};
use ptxemu::{Config, Fault, FaultKind};

/// Line of `tests/cuda/bugs.cu` that carries `// <- NAME`.
fn marked(name: &str) -> Vec<u32> {
    let source = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cuda/bugs.cu"))
        .expect("the source");
    let marks =
        |line: &str| line.split("// <- ").nth(1).is_some_and(|names| names.split(' ').any(|n| n == name));
    let lines: Vec<u32> = source.lines().zip(1..).filter(|(line, _)| marks(line)).map(|(_, at)| at).collect();
    assert!(!lines.is_empty(), "no line is marked {name}");
    lines
}

/// A launch: entry, grid and block in x, dynamic shared bytes.
type Shape = (&'static str, u32, u32, u32);

fn start(
    bench: &Bench,
    (entry, grid, block, shared): Shape,
    params: &Params,
    config: &Config,
) -> Result<(), Fault> {
    bench.run_with(entry, ([grid, 1, 1], [block, 1, 1], shared), params, config).map(|_| ())
}

/// Runs the kernel without and with `-DBUG_NAME`, under several seeds; the second must fault as said, on the
/// marked line.
fn catches(name: &str, kinds: &[FaultKind], shape: Shape, params: impl Fn(&Bench) -> Params) {
    for arch in ["compute_80", "compute_100"] {
        let good = Bench::new(&common::ptx_for("bugs", arch, &[]));
        let bad = Bench::new(&common::ptx_for("bugs", arch, &[&format!("-DBUG_{name}")]));
        for seed in 0..4 {
            let config = Config { seed, threads: 1, max_instructions: Some(1 << 20), ..Config::default() };
            start(&good, shape, &params(&good), &config)
                .unwrap_or_else(|e| panic!("{name} without the bug: {e}"));
            let fault = start(&bad, shape, &params(&bad), &config).expect_err(name);
            assert!(kinds.contains(&fault.kind), "{name}: {fault}");
            check(&fault, name);
            if seed == 0 && arch == "compute_80" {
                println!("{fault}");
            }
        }
    }
}

fn check(fault: &Fault, name: &str) {
    let lines: Vec<u32> = fault.line.into_iter().chain(fault.inlined_at.iter().map(|s| s.line)).collect();
    assert!(
        marked(name).iter().any(|line| lines.contains(line)),
        "{name}: line {:?} expected: {fault}",
        marked(name)
    );
    assert!(fault.file.as_ref().is_some_and(|f| f.ends_with("bugs.cu")), "{fault}");
    assert!(fault.kernel.is_some() && fault.ptx_line.is_some() && fault.instruction.is_some(), "{fault}");
    assert!(fault.block.is_some() && fault.warp.is_some(), "{fault}");
}

fn io<T: Copy, U>(bench: &Bench, x: &[T], outputs: usize) -> Params {
    let params = Params::new().arg(bench.put("x", x));
    params.arg(bench.room::<U>("y", outputs))
}

#[test]
fn global_bounds() {
    catches("HALO", &[FaultKind::OutOfBounds], ("stencil", 2, 64, 0), |b| {
        io::<f32, f32>(b, &noise(1, 100), 100).arg(100)
    });
    catches("TAIL", &[FaultKind::OutOfBounds], ("tail", 2, 64, 0), |b| {
        Params::new().arg(b.room::<f32>("y", 100)).arg(100)
    });
    catches("MISALIGNED", &[FaultKind::Misaligned], ("vectors", 1, 32, 0), |b| {
        io::<f32, f32>(b, &noise(1, 132), 32)
    });
    catches("CONSTANT", &[FaultKind::ReadOnly], ("constants", 1, 32, 0), |b| {
        Params::new().arg(b.room::<f32>("y", 32))
    });
}

#[test]
fn shared_races() {
    let ints: Vec<i32> = (0..640).collect();
    // Another warp's lanes are often the first in the way, sometimes the own warp's.
    let race = [FaultKind::SharedRace, FaultKind::WarpRace];
    // In some warp orders the other half is not written yet when it is read.
    let early = [FaultKind::SharedRace, FaultKind::UninitialisedRead];
    catches("BARRIER", &early, ("reverse", 1, 128, 0), |b| io::<i32, i32>(b, &ints[..128], 128));
    catches("REUSE", &race, ("rounds", 1, 64, 0), |b| io::<i32, i32>(b, &ints, 64).arg(10));
    let halves: Vec<u16> = (0..128).collect();
    catches("NARROW", &race, ("narrow", 1, 128, 0), |b| io::<u16, u16>(b, &halves, 128));
    catches("SYNCWARP", &[FaultKind::WarpRace], ("exchange", 1, 32, 0), |b| {
        io::<i32, i32>(b, &ints[..32], 32)
    });
    catches("SAME_PLACE", &[FaultKind::WarpRace], ("same_place", 1, 64, 0), |b| {
        Params::new().arg(b.room::<i32>("y", 32))
    });
}

#[test]
fn shared_contents() {
    catches("UNWRITTEN", &[FaultKind::UninitialisedRead], ("partial_tile", 1, 64, 0), |b| {
        io::<f32, f32>(b, &noise(1, 64), 64).arg(50)
    });
    catches("SHARED_END", &[FaultKind::OutOfBounds], ("dynamic", 1, 64, 256), |b| {
        io::<f32, f32>(b, &noise(1, 64), 64)
    });
    let bits: Vec<u16> = (0..136).collect();
    catches("ROW", &[FaultKind::Misaligned], ("rows", 1, 32, 0), |b| io::<u16, u32>(b, &bits, 32));
}

#[test]
fn asynchronous_copies() {
    let pending = [FaultKind::PendingAsyncCopy];
    let values = noise(1, 5 * 256);
    let shape = ("pipeline", 1, 64, 0);
    catches("WAIT", &pending, shape, |b| io::<f32, [f32; 4]>(b, &values, 320).arg(5));
    catches("NO_WAIT", &pending, shape, |b| io::<f32, [f32; 4]>(b, &values, 320).arg(5));
    catches("REFILL", &[FaultKind::SharedRace, FaultKind::PendingAsyncCopy], shape, |b| {
        io::<f32, [f32; 4]>(b, &values, 320).arg(5)
    });
    catches("COMMIT", &pending, ("uncommitted", 1, 32, 0), |b| io::<f32, [f32; 4]>(b, &values[..128], 32));
}

#[test]
fn barriers() {
    let ints: Vec<i32> = (0..128).collect();
    catches("DIVERGENT", &[FaultKind::DivergentBarrier], ("halves", 1, 64, 0), |b| {
        io::<f32, f32>(b, &noise(1, 64), 64)
    });
    // Whoever passes too early may also be caught by what it reads.
    let disagreements = [FaultKind::BarrierCount, FaultKind::SharedRace, FaultKind::UninitialisedRead];
    catches("COUNT", &[FaultKind::Deadlock], ("groups", 1, 128, 0), |b| io::<i32, i32>(b, &ints, 128));
    catches("DISAGREE", &disagreements, ("disagree", 1, 128, 0), |b| io::<i32, i32>(b, &ints, 128));
}

#[test]
fn warp_wide_instructions() {
    let ints: Vec<i32> = (0..32).collect();
    catches("SHUFFLE", &[FaultKind::InvalidMask], ("lookup", 1, 32, 0), |b| {
        io::<i32, i32>(b, &ints, 32).arg(20)
    });
    catches("LANES", &[FaultKind::InactiveLanes], ("product", 1, 32, 0), |b| {
        io::<u32, f32>(b, &[0; 96], 32).arg(16)
    });
}

#[test]
fn races_between_blocks() {
    let ints: Vec<i32> = (0..128).collect();
    let race = [FaultKind::GlobalRace];
    catches("BLOCKS", &race, ("total", 4, 32, 0), |b| {
        Params::new().arg(b.put("x", &ints)).arg(b.put("y", &[0_i32]))
    });
    let both = [FaultKind::GlobalRace, FaultKind::UninitialisedRead];
    catches("NEIGHBOUR", &both, ("neighbours", 2, 32, 0), |b| {
        Params::new().arg(b.room::<i32>("x", 64)).arg(b.room::<i32>("y", 64))
    });
    // With contents from before, the early read is a race as well.
    catches("NEIGHBOUR", &race, ("neighbours", 2, 32, 0), |b| io::<i32, i32>(b, &ints[..64], 64));
}

#[test]
fn endless_loops() {
    catches("SPIN", &[FaultKind::InstructionLimit], ("flag", 1, 32, 0), |b| io::<i32, i32>(b, &[0], 32));
}

#[test]
fn traps() {
    let bench = Bench::cuda("bugs", &[]);
    let params = io::<i32, i32>(&bench, &(-5..27).collect::<Vec<i32>>(), 32);
    let fault = start(&bench, ("checked", 1, 32, 0), &params, &Config::default()).expect_err("traps");
    assert_eq!(fault.kind, FaultKind::Trap);
    check(&fault, "TRAP");
}

#[test]
fn host_mistakes() {
    let bench = Bench::cuda("bugs", &[]);
    let shape = ("exchange", 1, 32, 0);
    let (x, y) = (bench.put("x", &[1_i32; 32]), bench.room::<i32>("y", 32));
    // Output read before anybody wrote it.
    let mut bytes = [0; 4];
    let fault = bench.memory.read(y, &mut bytes).expect_err("unwritten");
    assert_eq!(fault.kind, FaultKind::UninitialisedRead, "{fault}");
    // Input that was never uploaded.
    let params = Params::new().arg(y).arg(bench.room::<i32>("z", 32));
    let fault = start(&bench, shape, &params, &Config::default()).expect_err("unwritten");
    assert_eq!(fault.kind, FaultKind::UninitialisedRead, "{fault}");
    assert!(fault.message.contains("`y`"), "{fault}");
    // Use after free, by the device and by the host; double free; free of something else.
    bench.memory.free(x).expect("live");
    let params = Params::new().arg(x).arg(y);
    let fault = start(&bench, shape, &params, &Config::default()).expect_err("freed");
    assert_eq!(fault.kind, FaultKind::UseAfterFree, "{fault}");
    assert_eq!(bench.memory.write(x, &[0; 4]).expect_err("freed").kind, FaultKind::UseAfterFree);
    assert_eq!(bench.memory.free(x).expect_err("freed").kind, FaultKind::DoubleFree);
    assert_eq!(bench.memory.free(y + 4).expect_err("inside").kind, FaultKind::InvalidFree);
    assert_eq!(bench.memory.write(y + 126, &[0; 4]).expect_err("past the end").kind, FaultKind::OutOfBounds);
}

#[test]
fn impossible_launches() {
    let bench = Bench::cuda("bugs", &[]);
    let params = io::<i32, i32>(&bench, &[1; 32], 32);
    let config = Config::default();
    let launch = |grid, block, shared, params: &Params| {
        let fault = bench.run_with("exchange", (grid, block, shared), params, &config).expect_err("refused");
        assert_eq!(fault.kind, FaultKind::InvalidLaunch, "{fault}");
    };
    launch([0, 1, 1], [32, 1, 1], 0, &params);
    launch([1, 1, 1], [1025, 1, 1], 0, &params);
    launch([1, 1, 1], [32, 1, 1], 1 << 20, &params);
    launch([1, 1, 1], [32, 1, 1], 0, &Params::new());
    launch([1, 70000, 1], [32, 1, 1], 0, &params);
    assert_eq!(
        bench.run("nothing", [1; 3], [1; 3], &params).expect_err("unknown").kind,
        FaultKind::InvalidLaunch
    );
}

/// The GEMM's mutants: what a check catches, and what only values or counts show.
mod gemm {
    use super::*;
    use half::f16;

    /// Runs a mutant on 128 x 128 x 256; largest error, and the bank-conflict factor of `ldmatrix`.
    fn run(options: &[&str], config: &Config) -> Result<(f64, f64), Fault> {
        let bench = Bench::cuda("gemm", options);
        let (m, k) = (128, 256);
        let halves = |seed| noise(seed, m * k).into_iter().map(f16::from_f32).collect::<Vec<f16>>();
        let (a, b) = (halves(1), halves(2));
        let c = bench.room::<f32>("c", m * m);
        let params = Params::new()
            .arg(bench.put("a", &a))
            .arg(bench.put("b", &b))
            .arg(c)
            .arg(128)
            .arg(128)
            .arg(k as i32);
        let report = bench.run_with("gemm", ([1; 3], [256, 1, 1], 3 * 16384), &params, config)?;
        let got: Vec<f32> = bench.get(c, m * m);
        let error = |at: usize| {
            let (row, col) = (at / m, at % m);
            let sum: f64 = (0..k).map(|i| a[row * k + i].to_f64() * b[col * k + i].to_f64()).sum();
            (sum - f64::from(got[at])).abs()
        };
        Ok(((0..m * m).step_by(37).map(error).fold(0.0, f64::max), report.matrix_load.conflict()))
    }

    #[test]
    fn right() {
        for seed in 0..4 {
            let config = Config { seed, ..Config::default() };
            let (error, conflict) = run(&[], &config).unwrap_or_else(|e| panic!("{e}"));
            assert!(error < 1e-4 && conflict == 1.0, "{error}, {conflict}");
        }
    }

    #[test]
    fn missing_swizzle_is_counted() {
        let (error, conflict) =
            run(&["-DBUG_NO_SWIZZLE"], &Config::default()).unwrap_or_else(|e| panic!("{e}"));
        assert!(error < 1e-4 && conflict == 4.0, "{error}, {conflict}");
    }

    #[test]
    fn wrong_fragment_layout_gives_wrong_values() {
        let (error, _) = run(&["-DBUG_FRAGMENT"], &Config::default()).unwrap_or_else(|e| panic!("{e}"));
        assert!(error > 1.0, "{error}");
    }

    #[test]
    fn wait_one_short() {
        for seed in 0..4 {
            let config = Config { seed, ..Config::default() };
            let fault = run(&["-DBUG_WAIT"], &config).expect_err("pending");
            assert_eq!(fault.kind, FaultKind::PendingAsyncCopy, "{fault}");
            assert!(fault.instruction.as_ref().is_some_and(|i| i.starts_with("ldmatrix")), "{fault}");
        }
    }

    #[test]
    fn missing_barrier() {
        for seed in 0..4 {
            let config = Config { seed, ..Config::default() };
            let fault = run(&["-DBUG_NO_BARRIER"], &config).expect_err("race");
            let kinds = [
                FaultKind::SharedRace,
                FaultKind::WarpRace,
                FaultKind::UninitialisedRead,
                FaultKind::PendingAsyncCopy,
            ];
            assert!(kinds.contains(&fault.kind), "{fault}");
        }
    }
}
