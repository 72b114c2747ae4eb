//! Slots for virtual registers: liveness over the graph, then linear scan.
//!
//! NVRTC's PTX is in single-assignment form with thousands of registers; sharing slots keeps a warp's
//! registers in the first-level cache.

use super::cfg::Graph;
use super::{Pre, Src};
use crate::text::ast::{Class, Reg};

/// Slot of each register, and how many slots the function needs.
pub(crate) struct Slots {
    pub slot: Vec<u32>,
    pub count: u32,
}

/// Registers an instruction reads.
pub(crate) fn sources(ins: &Pre) -> impl Iterator<Item = Reg> + '_ {
    ins.s
        .iter()
        .flatten()
        .chain(&ins.list_s)
        .filter_map(|s| if let Src::Reg(r) = s { Some(*r) } else { None })
}

/// Registers an instruction writes.
pub(crate) fn dests(ins: &Pre) -> impl Iterator<Item = Reg> + '_ {
    ins.d.iter().chain(&ins.list_d).copied()
}

/// Bit set over registers.
#[derive(Clone, PartialEq)]
struct Set(Vec<u64>);

impl Set {
    fn new(n: usize) -> Set {
        Set(vec![0; n.div_ceil(64)])
    }
    fn has(&self, r: Reg) -> bool {
        self.0[r as usize / 64] >> (r % 64) & 1 != 0
    }
    fn add(&mut self, r: Reg) {
        self.0[r as usize / 64] |= 1 << (r % 64);
    }
    fn iter(&self) -> impl Iterator<Item = Reg> + '_ {
        self.0.iter().enumerate().flat_map(|(w, bits)| {
            let mut bits = *bits;
            std::iter::from_fn(move || {
                (bits != 0).then(|| {
                    let at = bits.trailing_zeros();
                    bits &= bits - 1;
                    w as u32 * 64 + at
                })
            })
        })
    }
}

/// Registers live at the ends of each block.
struct Liveness {
    at_start: Vec<Set>,
    at_end: Vec<Set>,
}

fn liveness(pre: &[Pre], graph: &Graph, registers: usize) -> Liveness {
    let n = registers;
    let blocks = graph.blocks.len();
    let (mut used, mut defined) = (vec![Set::new(n); blocks], vec![Set::new(n); blocks]);
    for (b, block) in graph.blocks.iter().enumerate() {
        for ins in &pre[block.start..block.end] {
            for r in sources(ins) {
                if !defined[b].has(r) {
                    used[b].add(r);
                }
            }
            // A guarded write leaves the old value in the other lanes: it does not end the register's life.
            if ins.guard == 0 {
                dests(ins).for_each(|r| defined[b].add(r));
            }
        }
    }
    let mut at_start = used.clone();
    let mut at_end = vec![Set::new(n); blocks];
    let mut changed = true;
    while changed {
        changed = false;
        for b in (0..blocks).rev() {
            let mut out = Set::new(n);
            for &s in &graph.blocks[b].successors {
                out.0.iter_mut().zip(&at_start[s].0).for_each(|(o, i)| *o |= i);
            }
            let mut changed_here = false;
            for w in 0..out.0.len() {
                let new = used[b].0[w] | out.0[w] & !defined[b].0[w];
                changed_here |= new != at_start[b].0[w];
                at_start[b].0[w] = new;
            }
            at_end[b] = out;
            changed |= changed_here;
        }
    }
    Liveness { at_start, at_end }
}

/// Registers that some path reads before it writes them.
pub(crate) fn undefined(pre: &[Pre], graph: &Graph, registers: usize) -> Vec<Reg> {
    liveness(pre, graph, registers).at_start[0].iter().collect()
}

/// Assigns slots.
pub(crate) fn assign(pre: &[Pre], graph: &Graph, classes: &[Class]) -> Slots {
    let n = classes.len();
    let live = liveness(pre, graph, n);
    let mut spans = vec![(usize::MAX, 0); n];
    let mut extend = |r: Reg, at: usize| {
        let span = &mut spans[r as usize];
        *span = (span.0.min(at), span.1.max(at));
    };
    for (b, block) in graph.blocks.iter().enumerate() {
        live.at_start[b].iter().for_each(|r| extend(r, 2 * block.start));
        live.at_end[b].iter().for_each(|r| extend(r, 2 * block.end - 1));
        for (at, ins) in pre.iter().enumerate().take(block.end).skip(block.start) {
            sources(ins).for_each(|r| extend(r, 2 * at));
            dests(ins).for_each(|r| {
                extend(r, 2 * at + 1);
                // Written before every source is read, or only in some lanes: no sharing with the sources.
                if ins.early {
                    extend(r, 2 * at);
                }
            });
        }
    }
    let mut slot = vec![0; n];
    let words = scan(&spans, |r| classes[r] == Class::Word, &mut slot);
    let longs = scan(&spans, |r| classes[r] == Class::Long, &mut slot);
    for (r, class) in classes.iter().enumerate() {
        if *class == Class::Long {
            slot[r] = words + 2 * slot[r];
        }
    }
    Slots { slot, count: words + 2 * longs }
}

/// Linear scan over the registers that `wanted` picks; returns the number of places used.
fn scan(spans: &[(usize, usize)], wanted: impl Fn(usize) -> bool, place: &mut [u32]) -> u32 {
    let mut order: Vec<usize> =
        (0..spans.len()).filter(|r| wanted(*r) && spans[*r].0 != usize::MAX).collect();
    order.sort_unstable_by_key(|r| spans[*r]);
    let mut busy = std::collections::BinaryHeap::new();
    let mut free: Vec<u32> = Vec::new();
    let mut top = 0;
    for r in order {
        let (start, end) = spans[r];
        while let Some(&std::cmp::Reverse((last, at))) = busy.peek() {
            if last >= start {
                break;
            }
            busy.pop();
            free.push(at);
        }
        let at = free.pop().unwrap_or_else(|| {
            top += 1;
            top - 1
        });
        place[r] = at;
        busy.push(std::cmp::Reverse((end, at)));
    }
    top
}
