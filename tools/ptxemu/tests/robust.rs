//! Malformed and unusual PTX: typed errors with a place, never a panic.

mod common;

use common::{Bench, Params};
use ptxemu::{Config, FaultKind, Module};

const HEAD: &str = ".version 8.0\n.target sm_80\n.address_size 64\n";

fn kernel(body: &str) -> String {
    format!(
        "{HEAD}.visible .entry k(.param .u64 out)\n{{\n.reg .b32 %r<9>;\n.reg .b64 %rd<9>;\n.reg .pred %p<4>;\n.reg .f32 %f<4>;\n{body}\nret;\n}}\n"
    )
}

#[test]
fn errors_name_line_and_text() {
    for (body, line, text, message) in [
        ("frobnicate.b32 %r1, %r2;", 10, "frobnicate.b32", "unknown"),
        ("add.s32 %r1, %r2;", 10, "add.s32", "expected 3 operands"),
        ("add.s32 %r1, %r2, %rd1;\nadd.s64 %rd1, %r1, %r2;", 11, "add.s64", "%r1 does not fit"),
        ("add.magic.s32 %r1, %r2, %r3;", 10, "add.magic.s32", "modifier `.magic`"),
        ("bra $nowhere;", 10, "bra", "no label `$nowhere`"),
        ("@%r1 bra $x;", 10, "%r1", "predicate"),
        ("mov.u32 %r1, %nonsense;", 10, "mov.u32", "%nonsense"),
        ("mov.u32 %r1, variable;", 10, "mov.u32", "`variable` is not defined"),
        ("ld.global.u32 %r1, [%rd1", 11, "ret", "expected `]`"),
        (
            "mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%rd1}, {%rd2}, {%rd3}, {%rd4};",
            10,
            "mma",
            "shapes",
        ),
        ("ld.param.u32 %r1, [out+8];", 10, "ld.param.u32", "offset 8"),
        ("add.s32 %r1 %r2, %r3;", 10, "%r2", "expected `,` or `;`"),
        ("call (x), other, (y);", 10, "other", "no body"),
        ("mov.u32 %r1, 0q12;", 10, "0q12", "not a number"),
    ] {
        let error = Module::parse(&kernel(body)).expect_err(body);
        assert_eq!(error.line, line, "{error}");
        assert!(error.text.contains(text) && error.message.contains(message), "{error}");
    }
    for (source, message) in [
        (".version 8.0\n.address_size 32\n", "64-bit"),
        ("nonsense", "module-level"),
        (".visible .entry k() {", "never closed"),
        ("/* open", "never closed"),
        (".file 1 \"open", "never closed"),
        (".visible .entry k(.param .magic x) { ret; }", "type"),
        (".global .u32 x = {1, 2};", "larger"),
        (".global .align 3 .u32 x;", "power of two"),
        ("µ", "unexpected character"),
    ] {
        let error = Module::parse(source).expect_err(source);
        assert!(error.message.contains(message), "{error}");
    }
}

#[test]
fn recursion_is_refused() {
    let source = format!("{HEAD}.func f() {{ call f; ret; }}\n.visible .entry k() {{ call f; ret; }}\n");
    assert!(Module::parse(&source).expect_err("recursion").message.contains("recursive"));
}

#[test]
fn unwritten_registers() {
    let source = kernel(
        ".reg .b32 %t; mov.u32 %t, %tid.x; setp.lt.u32 %p1, %t, 20; ld.param.u64 %rd1, [out]; mul.wide.u32 %rd2, %t, 4;\n\
         add.s64 %rd1, %rd1, %rd2;\n@%p1 mov.u32 %r1, 7;\n@%p1 st.global.u32 [%rd1], %r1;\nst.global.u32 [%rd1], %r1;",
    );
    let bench = Bench::new(&source);
    let out = Params::new().arg(bench.room::<u32>("out", 32));
    bench.run("k", [1; 3], [20, 1, 1], &out).unwrap_or_else(|e| panic!("{e}"));
    let fault = bench.run("k", [1; 3], [32, 1, 1], &out).expect_err("lane 20 reads what it has not written");
    assert_eq!(
        (fault.kind, fault.lane, fault.ptx_line),
        (FaultKind::UninitialisedRegister, Some(20), Some(14)),
        "{fault}"
    );
    assert!(fault.message.contains("%r1"), "{fault}");
    // Computing with the value is no mistake where a selection throws it away.
    let selected = source.replace(
        "\nst.global.u32 [%rd1], %r1;",
        "\nadd.s32 %r2, %r1, 5; setp.gt.s32 %p2, %r2, 3; selp.b32 %r3, %r2, 1, %p1; st.global.u32 [%rd1], %r3;",
    );
    assert_ne!(selected, source);
    let bench = Bench::new(&selected);
    let out = Params::new().arg(bench.room::<u32>("out", 32));
    bench.run("k", [1; 3], [32, 1, 1], &out).unwrap_or_else(|e| panic!("{e}"));
    // But not as a condition.
    let branch = Bench::new(&selected.replace("selp.b32 %r3, %r2, 1, %p1", "selp.b32 %r3, 2, 1, %p2"));
    let out = Params::new().arg(branch.room::<u32>("out", 32));
    let fault = branch.run("k", [1; 3], [32, 1, 1], &out).expect_err("the predicate is undefined");
    assert_eq!((fault.kind, fault.lane), (FaultKind::UninitialisedRegister, Some(20)), "{fault}");
    let (bench, out) = (Bench::new(&source), Params::new());
    let out = out.arg(bench.room::<u32>("out", 32));
    let lax = Config { check_registers: false, ..Config::default() };
    bench.run_with("k", ([1; 3], [32, 1, 1], 0), &out, &lax).unwrap_or_else(|e| panic!("{e}"));
}

/// Damages real PTX in thousands of ways: parsing and running must end in a result or a typed error. A launch
/// of some of the blocks: they alone write and count, in any order, and a range that is not of the grid is
/// refused.
#[test]
fn some_blocks_of_a_grid() {
    let source = kernel(
        "ld.param.u64 %rd1, [out]; mov.u32 %r1, %ctaid.x; mov.u32 %r2, %nctaid.x; mov.u32 %r3, %ctaid.y;\n\
         mad.lo.u32 %r4, %r3, %r2, %r1; mul.wide.u32 %rd2, %r4, 4; add.s64 %rd1, %rd1, %rd2;\n\
         add.u32 %r4, %r4, 100; st.global.u32 [%rd1], %r4;",
    );
    let bench = Bench::new(&source);
    for (seed, threads) in [(0, 1), (0, 2), (5, 1), (5, 2)] {
        let out = bench.put("out", &[0_u32; 12]);
        let run = |blocks| {
            let config = Config { seed, threads, blocks, ..Config::default() };
            bench.run_with("k", ([4, 3, 1], [1; 3], 0), &Params::new().arg(out), &config)
        };
        let all = run(None).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(bench.get::<u32>(out, 12), (100..112).collect::<Vec<u32>>());
        bench.memory.fill(out, &[0; 4], 12).expect("in bounds");
        let some = run(Some(3..8)).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(bench.get::<u32>(out, 12), [0, 0, 0, 103, 104, 105, 106, 107, 0, 0, 0, 0]);
        assert_eq!((some.blocks, some.global_store.instructions), (5, 5));
        assert_eq!(some.instructions * 12, all.instructions * 5);
        for bad in [5..5, 11..13] {
            let fault = run(Some(bad)).expect_err("not of the grid");
            assert_eq!(fault.kind, FaultKind::InvalidLaunch, "{fault}");
        }
    }
}

#[test]
fn damaged_text_never_panics() {
    for (name, entry, threads) in [("basic", "k1", 128), ("warp", "divergence", 64), ("gemm", "gemm", 256)] {
        let source = common::ptx_for(name, "compute_80", &[]);
        let lines: Vec<&str> = source.lines().collect();
        let mut state = 12345_u64;
        let mut random = |bound: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 20) as usize % bound
        };
        let (mut parsed, mut ran) = (0, 0);
        for _ in 0..400 {
            let mut damaged: Vec<String> = lines.iter().map(|l| (*l).to_owned()).collect();
            for _ in 0..1 + random(2) {
                let at = random(damaged.len());
                match random(6) {
                    0 => damaged[at].clear(),
                    1 => damaged[at] = lines[random(lines.len())].to_owned(),
                    2 => {
                        damaged[at] = damaged[at]
                            .replace(|c: char| c.is_ascii_digit(), ["9", "0", "4294967295"][random(3)])
                    }
                    3 => damaged[at] = damaged[at].replace([',', '[', '{', ';'], [" ", "", "]"][random(3)]),
                    4 => damaged[at] = damaged[at].replace("32", ["64", "16", "8", "f32"][random(4)]),
                    _ => damaged.truncate(at),
                }
                if damaged.is_empty() {
                    break;
                }
            }
            let Ok(module) = Module::parse(&damaged.join("\n")) else { continue };
            parsed += 1;
            let Some(bytes) = module.entry(entry).map(|e| e.param_bytes as usize) else { continue };
            let bench = Bench::of(module);
            let (x, y) = (bench.put("x", &[1_i32; 1 << 16]), bench.put("y", &[0_i32; 1 << 16]));
            let mut params = Params::new().arg(x).arg(y).arg(64_i32).arg(64_i32).arg(64_i32).arg(64_i32);
            params.0.resize(bytes, 0);
            let config = Config { max_instructions: Some(20_000), ..Config::default() };
            ran += usize::from(
                bench.run_with(entry, ([1; 3], [threads, 1, 1], 49152), &params, &config).is_ok(),
            );
        }
        println!("{name}: of 400 damaged modules {parsed} parse and {ran} run without a finding");
        assert!(parsed > 20);
    }
}
