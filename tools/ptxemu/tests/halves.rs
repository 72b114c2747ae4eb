//! Half-precision arithmetic and every conversion, against the `half` crate and Rust's casts.

mod common;

use common::{Bench, Params};
use half::{bf16, f16};

/// Runs `body` on all 65536 half bit patterns in `%a` (low half of a word), with `%b` a scrambled second
/// operand.
fn all(body: &str) -> Vec<(u16, u16, u32)> {
    let ptx = format!(
        ".version 8.0\n.target sm_80\n.address_size 64\n.visible .entry k(.param .u64 out)\n{{\n\
         .reg .b64 %o, %i;\n.reg .b32 %t, %x, %y, %d, %e, %w, %v;\n.reg .b16 %a, %b, %c, %h;\n.reg .f32 %f, %g;\n.reg .f64 %l;\n\
         mov.u32 %x, %ctaid.x;\nmov.u32 %y, %ntid.x;\nmov.u32 %t, %tid.x;\nmad.lo.s32 %t, %x, %y, %t;\n\
         cvt.u16.u32 %a, %t;\nmul.lo.u32 %e, %t, 40503;\nadd.u32 %e, %e, 77;\ncvt.u16.u32 %b, %e;\n\
         mov.b32 %w, {{%a, %b}};\nmov.b32 %v, {{%b, %a}};\nmov.u32 %d, 0;\nmov.u16 %c, 0;\n{body}\n\
         ld.param.u64 %o, [out];\nmul.wide.u32 %i, %t, 4;\nadd.s64 %o, %o, %i;\nst.global.u32 [%o], %d;\nret;\n}}\n"
    );
    let bench = Bench::new(&ptx);
    let out = bench.room::<u32>("out", 65536);
    bench
        .run("k", [256, 1, 1], [256, 1, 1], &Params::new().arg(out))
        .unwrap_or_else(|e| panic!("{body}: {e}"));
    let got: Vec<u32> = bench.get(out, 65536);
    (0..65536_u32)
        .map(|t| (t as u16, (t.wrapping_mul(40503).wrapping_add(77)) as u16, got[t as usize]))
        .collect()
}

fn check16(body: &str, expected: impl Fn(u16, u16) -> (u16, bool)) {
    for (a, b, got) in all(&format!("{body}\ncvt.u32.u16 %d, %c;")) {
        let (want, nan) = expected(a, b);
        let is_nan = |v: u16| {
            if body.contains("bf16") { bf16::from_bits(v).is_nan() } else { f16::from_bits(v).is_nan() }
        };
        assert!(
            got as u16 == want || nan && is_nan(got as u16),
            "{body} of {a:#06x}, {b:#06x}: {got:#06x}, not {want:#06x}"
        );
    }
}

/// The pattern nearest to `r`, ties to even, among a guess and its neighbours: the `half` crate rounds f64
/// twice.
fn nearest(r: f64, guess: u16, value: impl Fn(u16) -> f64) -> u16 {
    if !r.is_finite() || !value(guess).is_finite() {
        return guess;
    }
    let near = [guess, guess.wrapping_add(1), guess.wrapping_sub(1)];
    let near = near.into_iter().filter(|b| (b ^ guess) & 0x8000 == 0 && value(*b).is_finite());
    let better = |x: &u16, y: &u16| {
        let key = |b: u16| ((value(b) - r).abs(), b & 1);
        key(*x).partial_cmp(&key(*y)).expect("finite values")
    };
    near.min_by(better).unwrap_or(guess)
}

fn h(f: impl Fn(f64, f64) -> f64) -> impl Fn(u16, u16) -> (u16, bool) {
    move |a, b| {
        let r = f(f16::from_bits(a).to_f64(), f16::from_bits(b).to_f64());
        (nearest(r, f16::from_f64(r).to_bits(), |b| f16::from_bits(b).to_f64()), r.is_nan())
    }
}

fn bf(f: impl Fn(f64, f64) -> f64) -> impl Fn(u16, u16) -> (u16, bool) {
    move |a, b| {
        let r = f(bf16::from_bits(a).to_f64(), bf16::from_bits(b).to_f64());
        (nearest(r, bf16::from_f64(r).to_bits(), |b| bf16::from_bits(b).to_f64()), r.is_nan())
    }
}

#[test]
fn half_arithmetic() {
    check16("add.f16 %c, %a, %b;", h(|a, b| a + b));
    check16("sub.f16 %c, %a, %b;", h(|a, b| a - b));
    check16("mul.f16 %c, %a, %b;", h(|a, b| a * b));
    check16("fma.rn.f16 %c, %a, %b, %a;", h(|a, b| a * b + a));
    check16("fma.rn.relu.f16 %c, %a, %b, %a;", h(|a, b| if a * b + a < 0.0 { 0.0 } else { a * b + a }));
    check16("neg.f16 %c, %a;", |a, _| (a ^ 0x8000, true));
    check16("abs.f16 %c, %a;", |a, _| (a & 0x7fff, true));
    check16(
        "max.f16 %c, %a, %b;",
        h(|a, b| if a == b { if a.is_sign_negative() { b } else { a } } else { a.max(b) }),
    );
    check16("fma.rn.bf16 %c, %a, %b, %a;", bf(|a, b| a * b + a));
    check16(
        "min.bf16 %c, %a, %b;",
        bf(|a, b| if a == b { if a.is_sign_negative() { a } else { b } } else { a.min(b) }),
    );
}

#[test]
fn packed_arithmetic() {
    let (low, high) =
        (|v: u32| f16::from_bits(v as u16).to_f32(), |v: u32| f16::from_bits((v >> 16) as u16).to_f32());
    for (a, b, got) in all("add.f16x2 %d, %w, %v;") {
        let (w, v) = (u32::from(a) | u32::from(b) << 16, u32::from(b) | u32::from(a) << 16);
        let want = [low(w) + low(v), high(w) + high(v)].map(f16::from_f32);
        for (half, want) in [got as u16, (got >> 16) as u16].into_iter().zip(want) {
            assert!(half == want.to_bits() || want.is_nan() && f16::from_bits(half).is_nan());
        }
    }
    for (a, b, got) in all("mul.bf16x2 %d, %w, %v;") {
        let want = bf16::from_f32(bf16::from_bits(a).to_f32() * bf16::from_bits(b).to_f32());
        assert!(got as u16 == want.to_bits() || want.is_nan() && bf16::from_bits(got as u16).is_nan());
        assert_eq!(got >> 16, got & 0xffff);
    }
}

#[test]
fn packed_comparison() {
    let less = |a: u16, b: u16| f16::from_bits(a) < f16::from_bits(b);
    let wide = |yes: bool, value: u32| if yes { value } else { 0 };
    for (a, b, got) in all("set.lt.f16x2.f16x2 %d, %w, %v;") {
        assert_eq!(got, wide(less(a, b), 0x3c00) | wide(less(b, a), 0x3c00) << 16);
    }
    for (a, b, got) in all("set.geu.u32.f16x2 %d, %w, %v;") {
        assert_eq!(got, wide(!less(a, b), 0xffff) | wide(!less(b, a), 0xffff) << 16);
    }
    for (a, b, got) in
        all(".reg .pred %p, %q; setp.gt.f16x2 %p|%q, %w, %v; selp.u32 %d, 1, 0, %p; @%q add.u32 %d, %d, 2;")
    {
        assert_eq!(got, wide(less(b, a), 1) + wide(less(a, b), 2));
    }
    for (a, b, got) in all("set.ge.bf16.bf16 %c, %a, %b; cvt.u32.u16 %d, %c;") {
        assert_eq!(got, wide(bf16::from_bits(a) >= bf16::from_bits(b), 0x3f80));
    }
}

#[test]
fn widening_and_narrowing() {
    for (a, _, got) in all("cvt.f32.f16 %f, %a; mov.b32 %d, %f;") {
        let want = f16::from_bits(a).to_f32();
        assert!(got == want.to_bits() || want.is_nan() && f32::from_bits(got).is_nan(), "{a:#x}: {got:#x}");
    }
    for (a, _, got) in all("cvt.f32.bf16 %f, %a; mov.b32 %d, %f;") {
        assert_eq!(got, u32::from(a) << 16);
    }
    // f32 bit patterns around every half: %v = {b, a} as f32 has a's bits on top.
    let source = |a: u16, b: u16| f32::from_bits(u32::from(a) << 16 | u32::from(b));
    for (a, b, got) in all("mov.b32 %f, %v; cvt.rn.f16.f32 %c, %f; cvt.u32.u16 %d, %c;") {
        let want = f16::from_f32(source(a, b));
        assert!(
            got as u16 == want.to_bits() || want.is_nan() && f16::from_bits(got as u16).is_nan(),
            "{a:#x} {b:#x}"
        );
    }
    for (a, b, got) in all("mov.b32 %f, %v; cvt.rn.bf16.f32 %c, %f; cvt.u32.u16 %d, %c;") {
        let want = bf16::from_f32(source(a, b));
        assert!(got as u16 == want.to_bits() || want.is_nan() && bf16::from_bits(got as u16).is_nan());
    }
    for (a, b, got) in all("mov.b32 %f, %v; cvt.rz.f16.f32 %c, %f; cvt.u32.u16 %d, %c;") {
        let x = source(a, b);
        if x.is_nan() {
            continue;
        }
        // Towards zero: the nearest, or the one below it in magnitude.
        let near = f16::from_f32(x);
        let over = near.to_f32().abs() > x.abs();
        let want = if over { near.to_bits() - 1 } else { near.to_bits() };
        assert_eq!(got as u16, want, "{x:e}");
    }
    for (a, b, got) in all("mov.b32 %f, %v; mov.b32 %g, %w; cvt.rn.f16x2.f32 %d, %f, %g;") {
        for (half, x) in [(got >> 16, source(a, b)), (got & 0xffff, source(b, a))] {
            let want = f16::from_f32(x);
            assert!(half as u16 == want.to_bits() || want.is_nan() && f16::from_bits(half as u16).is_nan());
        }
    }
    for (a, b, got) in all("mov.b32 %f, %v; mov.b32 %g, %w; cvt.rn.relu.bf16x2.f32 %d, %f, %g;") {
        let x = source(a, b);
        let want = bf16::from_f32(if x < 0.0 { 0.0 } else { x });
        assert!((got >> 16) as u16 == want.to_bits() || x.is_nan());
    }
    for (a, b, got) in all("mov.b32 %f, %v; cvt.rna.tf32.f32 %d, %f;") {
        let x = source(a, b);
        if x.is_finite() {
            let half = 0x1000;
            assert_eq!(got, (x.to_bits() + half) & !0x1fff);
        }
    }
}

/// Instructions, and what they compute.
type Case<T> = (&'static str, fn(T) -> u32);

#[test]
fn integer_conversions() {
    let source = |a: u16, b: u16| f32::from_bits(u32::from(a) << 16 | u32::from(b));
    let cases: [Case<f32>; 8] = [
        ("cvt.rzi.s32.f32 %d, %f;", |x| x as i32 as u32),
        ("cvt.rni.s32.f32 %d, %f;", |x| x.round_ties_even() as i32 as u32),
        ("cvt.rmi.s32.f32 %d, %f;", |x| x.floor() as i32 as u32),
        ("cvt.rpi.s32.f32 %d, %f;", |x| x.ceil() as i32 as u32),
        ("cvt.rzi.u32.f32 %d, %f;", |x| x as u32),
        ("cvt.rni.u32.f32 %d, %f;", |x| x.round_ties_even() as u32),
        ("cvt.rni.f32.f32 %g, %f; mov.b32 %d, %g;", |x| x.round_ties_even().to_bits()),
        ("cvt.rmi.f32.f32 %g, %f; mov.b32 %d, %g;", |x| x.floor().to_bits()),
    ];
    for (body, expected) in cases {
        for (a, b, got) in all(&format!("mov.b32 %f, %v; {body}")) {
            let x = source(a, b);
            assert!(got == expected(x) || x.is_nan(), "{body} of {x:e}: {got:#x}, not {:#x}", expected(x));
        }
    }
    let ints: [Case<u32>; 10] = [
        ("cvt.rn.f32.s32 %f, %w; mov.b32 %d, %f;", |w| (w as i32 as f32).to_bits()),
        ("cvt.rn.f32.u32 %f, %w; mov.b32 %d, %f;", |w| (w as f32).to_bits()),
        ("cvt.rz.f32.u32 %f, %w; mov.b32 %d, %f;", |w| {
            let near = w as f32;
            if f64::from(near) > f64::from(w) { near.next_down().to_bits() } else { near.to_bits() }
        }),
        ("cvt.s32.s16 %d, %a;", |w| w as i16 as i32 as u32),
        ("cvt.u32.u16 %d, %a;", |w| w & 0xffff),
        ("cvt.s32.s8 %d, %w;", |w| w as i8 as i32 as u32),
        ("cvt.u32.u8 %d, %w;", |w| w & 255),
        ("cvt.sat.u8.s32 %d, %w;", |w| (w as i32).clamp(0, 255) as u32),
        ("cvt.sat.s16.s32 %c, %w; cvt.s32.s16 %d, %c;", |w| (w as i32).clamp(-32768, 32767) as u32),
        ("cvt.s64.s32 %i, %w; shr.u64 %i, %i, 32; cvt.u32.u64 %d, %i;", |w| {
            if (w as i32) < 0 { u32::MAX } else { 0 }
        }),
    ];
    for (body, expected) in ints {
        for (a, b, got) in all(body) {
            let w = u32::from(a) | u32::from(b) << 16;
            assert_eq!(got, expected(w), "{body} of {w:#x}");
        }
    }
    for (a, b, got) in all(
        "mov.b32 %f, %v; cvt.f64.f32 %l, %f; add.f64 %l, %l, 0d3E45798EE2308C3A; cvt.rn.f32.f64 %f, %l; mov.b32 %d, %f;",
    ) {
        let x = source(a, b);
        let want = (f64::from(x) + f64::from_bits(0x3E45798EE2308C3A)) as f32;
        assert!(got == want.to_bits() || want.is_nan());
    }
}
