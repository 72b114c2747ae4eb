//! Instruction groups against Rust: every operation on special and random operands, one lane per operand set.

mod common;

use common::{Bench, Params};

/// A register's type in the generated kernel, with the width of its memory form.
fn reg(ty: &str) -> (&'static str, u32) {
    match ty {
        "b16" => (".b16", 2),
        "b32" => (".b32", 4),
        _ => (".b64", 8),
    }
}

/// Operands worth trying, as bits: small, extreme, and random ones.
fn operands(seed: u64) -> Vec<[u64; 3]> {
    let special = [
        0_u64,
        1,
        2,
        31,
        32,
        33,
        0x7f,
        0x80,
        0xff,
        0x7fff,
        0x8000,
        0xffff,
        0x7fff_ffff,
        0x8000_0000,
        0xffff_ffff,
        0x1_0000_0000,
        0x7fff_ffff_ffff_ffff,
        0x8000_0000_0000_0000,
        u64::MAX,
    ];
    combine(&special, seed)
}

/// Operands that are interesting as `f32` bits (and `f16`/`bf16` pairs).
fn floats(seed: u64) -> Vec<[u64; 3]> {
    let special: Vec<u64> = [
        0.0_f32,
        -0.0,
        1.0,
        -1.0,
        0.5,
        1.5,
        2.5,
        -2.5,
        3.1415927,
        65504.0,
        65520.0,
        1e-8,
        6e-8,
        1e-40,
        3.4e38,
        -3.4e38,
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::NAN,
        2147483648.0,
        4294967296.0,
        -0.75,
        16777216.0,
    ]
    .map(|x| u64::from(x.to_bits()))
    .to_vec();
    combine(&special, seed)
}

fn combine(special: &[u64], seed: u64) -> Vec<[u64; 3]> {
    let mut state = seed | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut sets = Vec::new();
    for (i, a) in special.iter().enumerate() {
        for b in special {
            sets.push([*a, *b, special[(i * 7 + sets.len()) % special.len()]]);
        }
    }
    for _ in 0..200 {
        let (x, y, z) = (next(), next(), next());
        sets.push([x, y, z]);
        // Moderate exponents, so that sums round.
        let moderate =
            |v: u64| u64::from(((v as u32) & 0x807f_ffff) | (0x3f00_0000 + (((v >> 40) as u32 & 7) << 23)));
        sets.push([moderate(x), moderate(y), moderate(z)]);
    }
    sets
}

/// Runs `body` (which computes `%d` from `%a`, `%b`, `%c`) on every operand set.
fn run(types: [&str; 4], body: &str, sets: &[[u64; 3]]) -> Vec<u64> {
    let [(d, dw), (a, aw), (b, bw), (c, cw)] = types.map(reg);
    let ptx = format!(
        ".version 8.0\n.target sm_80\n.address_size 64\n.visible .entry k(.param .u64 pin, .param .u64 pout, .param .u32 n)\n{{\n\
         .reg .b64 %in, %out, %o;\n.reg .b32 %t, %x, %y, %z, %n;\n.reg .b16 %h, %i, %j;\n.reg .pred %p, %q, %skip;\n\
         .reg {d} %d;\n.reg {a} %a;\n.reg {b} %b;\n.reg {c} %c;\n.reg .b64 %l;\n.reg .f32 %f, %g;\n\
         mov.u32 %x, %ctaid.x;\nmov.u32 %y, %ntid.x;\nmov.u32 %t, %tid.x;\nmad.lo.s32 %t, %x, %y, %t;\nld.param.u32 %n, [n];\n\
         setp.ge.u32 %skip, %t, %n;\n@%skip exit;\n\
         ld.param.u64 %in, [pin];\nld.param.u64 %out, [pout];\nmul.wide.u32 %o, %t, 24;\nadd.s64 %in, %in, %o;\n\
         mul.wide.u32 %o, %t, 8;\nadd.s64 %out, %out, %o;\nmov.u64 %l, 0;\nst.global.u64 [%out], %l;\n\
         ld.global{a} %a, [%in];\nld.global{b} %b, [%in+8];\nld.global{c} %c, [%in+16];\n{body}\nst.global{d} [%out], %d;\nret;\n}}\n"
    );
    let _ = (dw, aw, bw, cw);
    let bench = Bench::new(&ptx);
    let flat: Vec<u64> = sets.iter().flatten().copied().collect();
    let (input, output) = (bench.put("in", &flat), bench.room::<u64>("out", sets.len()));
    let params = Params::new().arg(input).arg(output).arg(sets.len() as u32);
    let blocks = (sets.len() as u32).div_ceil(64);
    bench.run("k", [blocks, 1, 1], [64, 1, 1], &params).unwrap_or_else(|e| panic!("{body}: {e}"));
    bench.get(output, sets.len())
}

/// Compares bits.
fn exact(types: [&str; 4], body: &str, expected: impl Fn(u64, u64, u64) -> u64) {
    let mask = match types[0] {
        "b16" => 0xffff,
        "b32" => 0xffff_ffff,
        _ => u64::MAX,
    };
    for sets in [operands(1), floats(2)] {
        for (set, got) in sets.iter().zip(run(types, body, &sets)) {
            let want = expected(set[0], set[1], set[2]) & mask;
            assert_eq!(
                got, want,
                "{body} of {:#x}, {:#x}, {:#x}: {got:#x}, not {want:#x}",
                set[0], set[1], set[2]
            );
        }
    }
}

/// Compares `f32` results: same bits, or both NaN.
fn float(body: &str, expected: impl Fn(f32, f32, f32) -> f32) {
    float_within(body, 0.0, expected);
}

fn float_within(body: &str, relative: f32, expected: impl Fn(f32, f32, f32) -> f32) {
    let sets = floats(3);
    let from = |v: u64| f32::from_bits(v as u32);
    for (set, got) in sets.iter().zip(run(["b32"; 4], body, &sets)) {
        let (got, want) = (from(got), expected(from(set[0]), from(set[1]), from(set[2])));
        let close = (got - want).abs() <= relative * want.abs() && relative > 0.0;
        let same = got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan() || close;
        assert!(
            same,
            "{body} of {:e}, {:e}, {:e}: {got:e}, not {want:e}",
            from(set[0]),
            from(set[1]),
            from(set[2])
        );
    }
}

const W: [&str; 4] = ["b32"; 4];
const L: [&str; 4] = ["b64"; 4];
const H: [&str; 4] = ["b16"; 4];

#[test]
fn integer_arithmetic() {
    exact(W, "add.s32 %d, %a, %b;", |a, b, _| a.wrapping_add(b));
    exact(L, "add.s64 %d, %a, %b;", |a, b, _| a.wrapping_add(b));
    exact(H, "add.s16 %d, %a, %b;", |a, b, _| a.wrapping_add(b));
    exact(W, "sub.u32 %d, %a, %b;", |a, b, _| a.wrapping_sub(b));
    exact(W, "add.sat.s32 %d, %a, %b;", |a, b, _| (a as i32).saturating_add(b as i32) as u64);
    exact(W, "sub.sat.s32 %d, %a, %b;", |a, b, _| (a as i32).saturating_sub(b as i32) as u64);
    exact(W, "mul.lo.s32 %d, %a, %b;", |a, b, _| a.wrapping_mul(b));
    exact(W, "mul.hi.s32 %d, %a, %b;", |a, b, _| ((a as i32 as i64 * b as i32 as i64) >> 32) as u64);
    exact(W, "mul.hi.u32 %d, %a, %b;", |a, b, _| (a as u32 as u64 * b as u32 as u64) >> 32);
    exact(L, "mul.hi.u64 %d, %a, %b;", |a, b, _| ((a as u128 * b as u128) >> 64) as u64);
    exact(L, "mul.hi.s64 %d, %a, %b;", |a, b, _| ((a as i64 as i128 * b as i64 as i128) >> 64) as u64);
    exact(["b64", "b32", "b32", "b32"], "mul.wide.s32 %d, %a, %b;", |a, b, _| {
        (a as i32 as i64 * b as i32 as i64) as u64
    });
    exact(["b64", "b32", "b32", "b32"], "mul.wide.u32 %d, %a, %b;", |a, b, _| {
        a as u32 as u64 * b as u32 as u64
    });
    exact(["b32", "b16", "b16", "b32"], "mul.wide.s16 %d, %a, %b;", |a, b, _| {
        (a as i16 as i32 * b as i16 as i32) as u64
    });
    exact(["b32", "b16", "b16", "b32"], "mul.wide.u16 %d, %a, %b;", |a, b, _| {
        (a as u16 as u64) * (b as u16 as u64)
    });
    exact(W, "mad.lo.s32 %d, %a, %b, %c;", |a, b, c| a.wrapping_mul(b).wrapping_add(c));
    exact(["b64", "b32", "b32", "b64"], "mad.wide.u32 %d, %a, %b, %c;", |a, b, c| {
        (a as u32 as u64 * b as u32 as u64).wrapping_add(c)
    });
    exact(W, "mad.hi.u32 %d, %a, %b, %c;", |a, b, c| {
        ((a as u32 as u64 * b as u32 as u64) >> 32).wrapping_add(c)
    });
    exact(W, "mul24.lo.u32 %d, %a, %b;", |a, b, _| (a & 0xffffff).wrapping_mul(b & 0xffffff));
    exact(W, "mad24.lo.s32 %d, %a, %b, %c;", |a, b, c| {
        let low = |v: u64| ((v as i32) << 8) >> 8;
        low(a).wrapping_mul(low(b)).wrapping_add(c as i32) as u64
    });
    exact(W, "div.u32 %d, %a, %b;", |a, b, _| (a as u32).checked_div(b as u32).unwrap_or(u32::MAX).into());
    exact(W, "div.s32 %d, %a, %b;", |a, b, _| {
        if b as i32 == 0 { u64::MAX } else { (a as i32).wrapping_div(b as i32) as u64 }
    });
    exact(
        L,
        "rem.s64 %d, %a, %b;",
        |a, b, _| if b == 0 { a } else { (a as i64).wrapping_rem(b as i64) as u64 },
    );
    exact(W, "rem.u32 %d, %a, %b;", |a, b, _| if b as u32 == 0 { a } else { (a as u32 % b as u32).into() });
    exact(W, "neg.s32 %d, %a;", |a, _, _| 0_u64.wrapping_sub(a));
    exact(W, "abs.s32 %d, %a;", |a, _, _| (a as i32).wrapping_abs() as u64);
    exact(W, "min.s32 %d, %a, %b;", |a, b, _| (a as i32).min(b as i32) as u64);
    exact(W, "max.u32 %d, %a, %b;", |a, b, _| (a as u32).max(b as u32).into());
    exact(L, "min.u64 %d, %a, %b;", |a, b, _| a.min(b));
    exact(H, "max.s16 %d, %a, %b;", |a, b, _| (a as i16).max(b as i16) as u64);
    exact(W, "sad.u32 %d, %a, %b, %c;", |a, b, c| {
        (a as u32).abs_diff(b as u32).wrapping_add(c as u32).into()
    });
    exact(W, "dp4a.s32.s32 %d, %a, %b, %c;", |a, b, c| {
        let dot: i32 =
            (0..4).map(|i| i32::from((a >> (8 * i)) as i8) * i32::from((b >> (8 * i)) as i8)).sum();
        dot.wrapping_add(c as i32) as u64
    });
    exact(W, "dp4a.u32.u32 %d, %a, %b, %c;", |a, b, c| {
        let dot: u32 =
            (0..4).map(|i| u32::from((a >> (8 * i)) as u8) * u32::from((b >> (8 * i)) as u8)).sum();
        dot.wrapping_add(c as u32).into()
    });
    exact(
        L,
        "{.reg .b32 %al, %ah, %bl, %bh, %dl, %dh; mov.b64 {%al, %ah}, %a; mov.b64 {%bl, %bh}, %b;\n\
        add.cc.u32 %dl, %al, %bl; addc.u32 %dh, %ah, %bh; mov.b64 %d, {%dl, %dh};}",
        |a, b, _| a.wrapping_add(b),
    );
    exact(
        L,
        "{.reg .b32 %al, %ah, %bl, %bh, %dl, %dh; mov.b64 {%al, %ah}, %a; mov.b64 {%bl, %bh}, %b;\n\
        sub.cc.u32 %dl, %al, %bl; subc.u32 %dh, %ah, %bh; mov.b64 %d, {%dl, %dh};}",
        |a, b, _| a.wrapping_sub(b),
    );
    exact(
        ["b64", "b32", "b32", "b64"],
        "{.reg .b32 %cl, %ch, %dl, %dh; mov.b64 {%cl, %ch}, %c;\n\
        mad.lo.cc.u32 %dl, %a, %b, %cl; madc.hi.u32 %dh, %a, %b, %ch; mov.b64 %d, {%dl, %dh};}",
        |a, b, c| (a as u32 as u64 * b as u32 as u64).wrapping_add(c),
    );
}

#[test]
fn bits() {
    exact(W, "and.b32 %d, %a, %b;", |a, b, _| a & b);
    exact(L, "or.b64 %d, %a, %b;", |a, b, _| a | b);
    exact(H, "xor.b16 %d, %a, %b;", |a, b, _| a ^ b);
    exact(W, "not.b32 %d, %a;", |a, _, _| !a);
    exact(W, "cnot.b32 %d, %a;", |a, _, _| u64::from(a as u32 == 0));
    let shift = |n: u64, width: u64| n.min(width);
    exact(W, "shl.b32 %d, %a, %b;", |a, b, _| {
        let n = shift(b as u32 as u64, 32);
        if n == 32 { 0 } else { (a as u32 as u64) << n }
    });
    exact(["b64", "b64", "b32", "b32"], "shr.u64 %d, %a, %b;", |a, b, _| {
        a.checked_shr(b as u32).unwrap_or(0)
    });
    exact(W, "shr.s32 %d, %a, %b;", |a, b, _| ((a as i32) >> (b as u32).min(31)) as u64);
    exact(["b16", "b16", "b32", "b32"], "shr.u16 %d, %a, %b;", |a, b, _| {
        (a as u16).checked_shr(b as u32).unwrap_or(0).into()
    });
    exact(["b16", "b16", "b32", "b32"], "shl.b16 %d, %a, %b;", |a, b, _| {
        (a as u16).checked_shl(b as u32).unwrap_or(0).into()
    });
    exact(["b32", "b32", "b32", "b32"], "popc.b32 %d, %a;", |a, _, _| (a as u32).count_ones().into());
    exact(["b32", "b64", "b32", "b32"], "popc.b64 %d, %a;", |a, _, _| a.count_ones().into());
    exact(W, "clz.b32 %d, %a;", |a, _, _| (a as u32).leading_zeros().into());
    exact(["b32", "b64", "b32", "b32"], "clz.b64 %d, %a;", |a, _, _| a.leading_zeros().into());
    exact(W, "brev.b32 %d, %a;", |a, _, _| (a as u32).reverse_bits().into());
    exact(L, "brev.b64 %d, %a;", |a, _, _| a.reverse_bits());
    exact(W, "bfind.u32 %d, %a;", |a, _, _| (a as u32).checked_ilog2().unwrap_or(u32::MAX).into());
    exact(W, "bfind.shiftamt.u32 %d, %a;", |a, _, _| {
        (a as u32).checked_ilog2().map_or(u32::MAX, |n| 31 - n).into()
    });
    let bfe = |a: u64, b: u64, c: u64, signed: bool| {
        let (at, len) = ((b & 255) as usize, (c & 255) as usize);
        let bit = |i: usize| a >> i & 1;
        let sign = if signed && len > 0 { bit((at + len - 1).min(31)) } else { 0 };
        (0..32).map(|i| if i < len && at + i <= 31 { bit(at + i) } else { sign } << i).sum()
    };
    exact(W, "bfe.u32 %d, %a, %b, %c;", |a, b, c| bfe(a, b, c, false));
    exact(W, "bfe.s32 %d, %a, %b, %c;", |a, b, c| bfe(a, b, c, true));
    exact(W, "bfi.b32 %d, %a, %b, %c, 5;", |a, b, c| {
        let at = (c & 255) as usize;
        (0..32).map(|i| if i >= at && i < at + 5 { a >> (i - at) & 1 } else { b >> i & 1 } << i).sum()
    });
    exact(L, "bfi.b64 %d, %a, %b, 8, 40;", |a, b, _| {
        let field = ((1_u64 << 40) - 1) << 8;
        b & !field | a << 8 & field
    });
    for table in [0x96, 0xe8, 0x1b, 0xf8, 0x80, 0xfe] {
        exact(W, &format!("lop3.b32 %d, %a, %b, %c, {table};"), |a, b, c| {
            (0..32).map(|i| (table >> ((a >> i & 1) << 2 | (b >> i & 1) << 1 | c >> i & 1) & 1) << i).sum()
        });
    }
    let prmt = |a: u64, b: u64, c: u64| {
        let bytes = (b & 0xffff_ffff) << 32 | a & 0xffff_ffff;
        (0..4)
            .map(|i| {
                let pick = c >> (4 * i) & 15;
                let byte = bytes >> (8 * (pick & 7)) & 255;
                let byte = if pick & 8 != 0 { if byte & 128 != 0 { 255 } else { 0 } } else { byte };
                byte << (8 * i)
            })
            .sum()
    };
    exact(W, "prmt.b32 %d, %a, %b, %c;", prmt);
    exact(W, "prmt.b32 %d, %a, %b, 0x5410;", |a, b, _| a & 0xffff | (b & 0xffff) << 16);
    let pair = |a: u64, b: u64| (b & 0xffff_ffff) << 32 | a & 0xffff_ffff;
    exact(W, "shf.l.wrap.b32 %d, %a, %b, %c;", |a, b, c| (pair(a, b) << (c & 31)) >> 32);
    exact(W, "shf.r.wrap.b32 %d, %a, %b, %c;", |a, b, c| pair(a, b) >> (c & 31));
    exact(W, "shf.l.clamp.b32 %d, %a, %b, %c;", |a, b, c| {
        ((pair(a, b) as u128) << (c as u32).min(32) >> 32) as u64
    });
    exact(W, "shf.r.clamp.b32 %d, %a, %b, %c;", |a, b, c| pair(a, b) >> (c as u32).min(32));
    exact(["b32", "b16", "b16", "b32"], "mov.b32 %d, {%a, %b};", |a, b, _| a & 0xffff | (b & 0xffff) << 16);
    exact(["b16", "b32", "b32", "b32"], "mov.b32 {%h, %d}, %a;", |a, _, _| a >> 16);
    exact(["b64", "b16", "b16", "b16"], "mov.b64 %d, {%a, %b, %c, %a};", |a, b, c| {
        let h = |v: u64| v & 0xffff;
        h(a) | h(b) << 16 | h(c) << 32 | h(a) << 48
    });
    exact(["b16", "b64", "b32", "b32"], "mov.b64 {%h, %i, %d, %j}, %a;", |a, _, _| a >> 32);
}

#[test]
fn comparison_and_selection() {
    let pick = |yes: bool| if yes { 7 } else { 9 };
    let body = |compare: &str| format!("{compare}\nselp.b32 %d, 7, 9, %p;");
    let ints: [(&str, fn(i32, i32) -> bool); 6] = [
        ("eq", |a, b| a == b),
        ("ne", |a, b| a != b),
        ("lt", |a, b| a < b),
        ("le", |a, b| a <= b),
        ("gt", |a, b| a > b),
        ("ge", |a, b| a >= b),
    ];
    for (op, f) in ints {
        exact(W, &body(&format!("setp.{op}.s32 %p, %a, %b;")), |a, b, _| pick(f(a as i32, b as i32)));
    }
    exact(W, &body("setp.lo.u32 %p, %a, %b;"), |a, b, _| pick((a as u32) < b as u32));
    exact(W, &body("setp.hs.u32 %p, %a, %b;"), |a, b, _| pick(a as u32 >= b as u32));
    exact(["b32", "b64", "b64", "b32"], &body("setp.gt.s64 %p, %a, %b;"), |a, b, _| {
        pick(a as i64 > b as i64)
    });
    exact(["b32", "b16", "b16", "b32"], &body("setp.lt.u16 %p, %a, %b;"), |a, b, _| {
        pick((a as u16) < b as u16)
    });
    let floats: [(&str, fn(f32, f32) -> bool); 14] = [
        ("eq", |a, b| a == b),
        ("ne", |a, b| a < b || a > b),
        ("lt", |a, b| a < b),
        ("le", |a, b| a <= b),
        ("gt", |a, b| a > b),
        ("ge", |a, b| a >= b),
        ("equ", |a, b| !(a < b || a > b)),
        ("neu", |a, b| a != b),
        ("ltu", |a, b| !(a >= b)),
        ("leu", |a, b| !(a > b)),
        ("gtu", |a, b| !(a <= b)),
        ("geu", |a, b| !(a < b)),
        ("num", |a, b| !a.is_nan() && !b.is_nan()),
        ("nan", |a, b| a.is_nan() || b.is_nan()),
    ];
    for (op, f) in floats {
        exact(W, &body(&format!("setp.{op}.f32 %p, %a, %b;")), |a, b, _| {
            pick(f(f32::from_bits(a as u32), f32::from_bits(b as u32)))
        });
    }
    exact(W, &body("setp.lt.s32 %q, %b, %c; setp.lt.and.s32 %p, %a, %b, !%q;"), |a, b, c| {
        pick((a as i32) < b as i32 && !((b as i32) < c as i32))
    });
    exact(
        W,
        "setp.lt.s32 %p|%q, %a, %b; selp.b32 %x, 1, 0, %p; selp.b32 %y, 2, 0, %q; or.b32 %d, %x, %y;",
        |a, b, _| {
            if (a as i32) < b as i32 { 1 } else { 2 }
        },
    );
    exact(W, "set.lt.u32.s32 %d, %a, %b;", |a, b, _| if (a as i32) < b as i32 { u64::MAX } else { 0 });
    exact(W, "set.gt.f32.s32 %d, %a, %b;", |a, b, _| if a as i32 > b as i32 { 0x3f80_0000 } else { 0 });
    exact(W, "slct.b32.s32 %d, %a, %b, %c;", |a, b, c| if c as i32 >= 0 { a } else { b });
    exact(L, "setp.eq.s64 %p, %a, %b; selp.b64 %d, %b, %c, %p;", |a, b, c| if a == b { b } else { c });
    exact(
        W,
        "setp.lt.s32 %p, %a, %b; setp.lt.s32 %q, %b, %c; xor.pred %p, %p, %q; not.pred %p, %p; selp.b32 %d, 7, 9, %p;",
        |a, b, c| pick(((a as i32) < b as i32) == ((b as i32) < c as i32)),
    );
    exact(
        W,
        "mov.u32 %d, 1; setp.lt.s32 %p, %a, %b; @%p mov.u32 %d, 2; @!%p add.s32 %d, %d, 5;",
        |a, b, _| {
            if (a as i32) < b as i32 { 2 } else { 6 }
        },
    );
    for (property, f) in [
        ("finite", (|x: f32| x.is_finite()) as fn(f32) -> bool),
        ("infinite", |x| x.is_infinite()),
        ("number", |x| !x.is_nan()),
        ("notanumber", |x| x.is_nan()),
    ] {
        exact(W, &body(&format!("testp.{property}.f32 %p, %a;")), |a, _, _| {
            pick(f(f32::from_bits(a as u32)))
        });
    }
}

#[test]
fn f32_arithmetic() {
    float("add.f32 %d, %a, %b;", |a, b, _| a + b);
    float("sub.rn.f32 %d, %a, %b;", |a, b, _| a - b);
    float("mul.f32 %d, %a, %b;", |a, b, _| a * b);
    float("fma.rn.f32 %d, %a, %b, %c;", |a, b, c| a.mul_add(b, c));
    float("div.rn.f32 %d, %a, %b;", |a, b, _| a / b);
    float("neg.f32 %d, %a;", |a, _, _| -a);
    float("abs.f32 %d, %a;", |a, _, _| a.abs());
    float("sqrt.rn.f32 %d, %a;", |a, _, _| a.sqrt());
    float("rcp.rn.f32 %d, %a;", |a, _, _| 1.0 / a);
    float("copysign.f32 %d, %a, %b;", |a, b, _| b.copysign(a));
    let order = |a: f32, b: f32, min: bool| {
        if a.is_nan() {
            b
        } else if b.is_nan() {
            a
        } else if a == b {
            if min == a.is_sign_negative() { a } else { b }
        } else if (a < b) == min {
            a
        } else {
            b
        }
    };
    float("min.f32 %d, %a, %b;", |a, b, _| order(a, b, true));
    float("max.f32 %d, %a, %b;", |a, b, _| order(a, b, false));
    float(
        "max.NaN.f32 %d, %a, %b;",
        |a, b, _| if a.is_nan() || b.is_nan() { f32::NAN } else { order(a, b, false) },
    );
    let saturate = |x: f32| if x.is_nan() { 0.0 } else { x.clamp(0.0, 1.0) + 0.0 };
    float("add.sat.f32 %d, %a, %b;", |a, b, _| saturate(a + b));
    float("fma.rn.sat.f32 %d, %a, %b, %c;", |a, b, c| saturate(a.mul_add(b, c)));
    float("cvt.sat.f32.f32 %d, %a;", |a, _, _| saturate(a));
    let flush = |x: f32| if x.is_subnormal() { 0.0_f32.copysign(x) } else { x };
    float("mul.ftz.f32 %d, %a, %b;", |a, b, _| flush(flush(a) * flush(b)));
    float("fma.rn.ftz.f32 %d, %a, %b, %c;", |a, b, c| flush(flush(a).mul_add(flush(b), flush(c))));
    // Directed rounding: the result brackets the exact value and is next to the nearest.
    let down = |exact: f64| {
        let near = exact as f32;
        if f64::from(near) > exact { near.next_down() } else { near }
    };
    let up = |exact: f64| -down(-exact);
    float("mul.rm.f32 %d, %a, %b;", |a, b, _| down(f64::from(a) * f64::from(b)));
    float("mul.rp.f32 %d, %a, %b;", |a, b, _| up(f64::from(a) * f64::from(b)));
    float("mul.rz.f32 %d, %a, %b;", |a, b, _| {
        let exact = f64::from(a) * f64::from(b);
        if exact > 0.0 { down(exact) } else { up(exact) }
    });
    float("ex2.approx.ftz.f32 %d, %a;", |a, _, _| flush((f64::from(flush(a)).exp2()) as f32));
    float_within("lg2.approx.f32 %d, %a;", 1e-6, |a, _, _| (f64::from(a).log2()) as f32);
    float_within("rsqrt.approx.f32 %d, %a;", 1e-6, |a, _, _| (1.0 / f64::from(a).sqrt()) as f32);
    float_within("tanh.approx.f32 %d, %a;", 1e-5, |a, _, _| (f64::from(a).tanh()) as f32);
    float_within("sin.approx.f32 %d, %a;", 1e-5, |a, _, _| a.sin());
    float_within("cos.approx.f32 %d, %a;", 1e-5, |a, _, _| a.cos());
    float_within("div.full.f32 %d, %a, %b;", 1e-6, |a, b, _| a / b);
}

#[test]
fn fused_directed_rounding() {
    // Sums whose exact value has many more bits than f64: 1.5 * 2^60 - 2^-60 rounds down to below 1.5 * 2^60.
    let big = (1.5 * 2f32.powi(60)).to_bits();
    let tiny = 2f32.powi(-60).to_bits();
    let one = 1f32.to_bits();
    let minus_tiny = (-(2f32.powi(-60))).to_bits();
    let sets = [[big, one, minus_tiny], [big, one, tiny], [big, one, 0]].map(|s| s.map(u64::from));
    let below = f32::from_bits(big).next_down().to_bits();
    let above = f32::from_bits(big).next_up().to_bits();
    let expect =
        [("rm", [below, big, big]), ("rp", [big, above, big]), ("rz", [below, big, big]), ("rn", [big; 3])];
    for (mode, want) in expect {
        let got = run(W, &format!("fma.{mode}.f32 %d, %a, %b, %c;"), &sets);
        assert_eq!(got, want.map(u64::from), "{mode}");
    }
}

#[test]
fn f64_arithmetic() {
    let f = f64::from_bits;
    let sets: Vec<[u64; 3]> =
        floats(5).iter().map(|s| s.map(|v| f64::from(f32::from_bits(v as u32)).to_bits())).collect();
    let check = |body: &str, expected: &dyn Fn(f64, f64, f64) -> f64| {
        for (set, got) in sets.iter().zip(run(L, body, &sets)) {
            let want = expected(f(set[0]), f(set[1]), f(set[2]));
            assert!(
                got == want.to_bits() || f(got).is_nan() && want.is_nan(),
                "{body}: {} not {want}",
                f(got)
            );
        }
    };
    check("add.f64 %d, %a, %b;", &|a, b, _| a + b);
    check("mul.f64 %d, %a, %b;", &|a, b, _| a * b);
    check("fma.rn.f64 %d, %a, %b, %c;", &|a, b, c| a.mul_add(b, c));
    check("div.rn.f64 %d, %a, %b;", &|a, b, _| a / b);
    check("sqrt.rn.f64 %d, %a;", &|a, _, _| a.sqrt());
}
