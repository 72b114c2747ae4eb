//! Device memory from the host, and the counts of known access patterns.

mod common;

use common::{Bench, Params};
use ptxemu::{BASE, FaultKind, Memory, Options};

fn small() -> Memory {
    Memory::new(Options { limit: 256 << 20, address_space: 256 << 20, red_zone: 100 }).expect("address space")
}

#[test]
fn allocations_are_aligned_and_apart() {
    let memory = small();
    let a = memory.alloc(100, "a").expect("memory");
    let b = memory.alloc(0, "b").expect("memory");
    assert!(a.is_multiple_of(256) && b.is_multiple_of(256) && a >= BASE && b >= a + 100 + 256);
    assert_eq!(
        memory.allocation(a + 99).map(|m| (m.address, m.bytes, m.label)),
        Some((a, 100, "a".to_owned()))
    );
    assert_eq!(memory.allocation(a + 100), None);
    assert_eq!((memory.in_use(), memory.allocations().len()), (101, 2));
    assert!(memory.describe(a + 104).contains("4 bytes past the end of `a`"), "{}", memory.describe(a + 104));
    memory.free(a).expect("live");
    assert_eq!((memory.in_use(), memory.peak()), (1, 101));
    assert!(memory.describe(a + 7).contains("freed"));
}

#[test]
fn contents_and_their_state() {
    let memory = small();
    let (a, b) = (memory.alloc(64, "a").expect("memory"), memory.alloc(64, "b").expect("memory"));
    memory.write(a, &[1, 2, 3, 4]).expect("in bounds");
    memory.fill(a + 8, &[5, 6], 3).expect("in bounds");
    let mut bytes = [9; 4];
    memory.read(a, &mut bytes).expect("written");
    assert_eq!(bytes, [1, 2, 3, 4]);
    let mut six = [0; 6];
    memory.read(a + 8, &mut six).expect("written");
    assert_eq!(six, [5, 6, 5, 6, 5, 6]);
    // The gap was never written, and stays so through a copy.
    for at in [a, b] {
        memory.copy(b, a, 16).expect("in bounds");
        let mut all = [0; 14];
        let fault = memory.read(at, &mut all).expect_err("unwritten");
        assert_eq!(fault.kind, FaultKind::UninitialisedRead);
        assert!(fault.message.contains("byte 4"), "{fault}");
        memory.read_raw(at, &mut all).expect("raw");
        assert_eq!(all[8..], [5, 6, 5, 6, 5, 6]);
    }
    for (from, len) in [(a - 1, 2), (a + 60, 5), (0, 1), (u64::MAX - 2, 8)] {
        assert_eq!(memory.write(from, &vec![0; len]).expect_err("outside").kind, FaultKind::OutOfBounds);
    }
    assert_eq!(memory.copy(a, b + 60, 8).expect_err("outside").kind, FaultKind::OutOfBounds);
    memory.write(a + 1000, &[]).expect("nothing is written");
}

#[test]
fn limits_and_reuse() {
    let memory = small();
    let fault = memory.alloc(1 << 40, "huge").expect_err("too large");
    assert_eq!(fault.kind, FaultKind::OutOfMemory);
    assert!(fault.message.contains("`huge`") && fault.message.contains("268435456"), "{fault}");
    // Addresses come back only after the whole range was handed out once.
    let first = memory.alloc(16 << 20, "first").expect("memory");
    memory.write(first, &[7; 16]).expect("in bounds");
    memory.free(first).expect("live");
    let mut seen = vec![first];
    for _ in 0..40 {
        let next = memory.alloc(16 << 20, "next").expect("memory");
        assert!(seen.len() >= 15 || !seen.contains(&next));
        let mut bytes = [0];
        assert_eq!(memory.read(next, &mut bytes).expect_err("new").kind, FaultKind::UninitialisedRead);
        memory.free(next).expect("live");
        seen.push(next);
    }
    // Larger than any freed piece: neighbours are merged.
    memory.alloc(100 << 20, "merged").expect("memory");
}

#[test]
fn counts() {
    let bench = Bench::cuda("counts", &[]);
    let x = bench.put("x", &[1_f32; 1024]);
    let y = bench.room::<f32>("y", 32);
    let report = bench
        .run("patterns", [1; 3], [32, 1, 1], &Params::new().arg(x).arg(y).arg(x))
        .unwrap_or_else(|e| panic!("{e}"));
    let load = report.global_load;
    assert_eq!((load.instructions, load.requests, load.sectors), (4, 7, 32 + 4 + 5 + 16));
    assert_eq!((report.global_store.sectors, report.global_store.bytes), (4, 128));
    assert_eq!((report.shared_load.requests, report.shared_load.waves), (4, 32 + 1 + 2 + 1));
    assert_eq!((report.shared_store.waves, report.shared_store.conflict()), (33, 1.0));
    assert_eq!((report.wide_load.requests, report.wide_load.sectors), (4, 16));
    assert_eq!((report.wide_load.sectors_per_full_request(), report.wide_store.instructions), (4.0, 0));
    assert_eq!((report.loop_instructions, report.loop_mma), (0, 0), "its loop holds no mma");
    let named: std::collections::BTreeMap<_, _> = report.counts().collect();
    assert_eq!(
        (named["global_load_sectors"], named["shared_load_waves"], named["instructions_mma"]),
        (57, 36, 0)
    );
    assert_eq!(named["instructions"], report.instructions);
    let classes: u64 = named.iter().filter(|(k, _)| k.starts_with("instructions_")).map(|(_, v)| v).sum();
    assert_eq!(classes, report.instructions);
    let mut twice = report.clone();
    twice.merge(&report);
    assert_eq!((twice.launches, twice.global_load.bytes), (2, 2 * report.global_load.bytes));
    assert!(twice.to_string().contains("shared load"));
}
