//! Block barriers (`bar`, `barrier`), `bar.warp.sync`, fences, and what a block does when nothing can run.

use super::{Machine, State, Trouble};
use crate::fault::FaultKind;
use crate::ir::{Flow, Ins};

/// A named barrier's current phase.
#[derive(Clone, Debug, Default)]
pub(crate) struct Barrier {
    /// Threads it waits for; 0 for all of the block. Meaningful once somebody arrived.
    pub expected: u32,
    /// Warps that arrived in this phase, waiting or not.
    pub arrived: u32,
    /// Warps that wait for its completion.
    pub waiting: u32,
    /// What each warp is known to have done by those that arrived ([`super::shared::Shared::known`]).
    pub joined: Vec<u32>,
    /// `bar.red`: lanes with a true predicate, and threads counted.
    pub votes: u32,
    pub voters: u32,
    /// Where each waiting warp stores the result: predicate number or slot, by operation.
    pub results: Vec<(usize, u32, u8)>,
}

/// `bar.red` operations; 3 is "or".
pub(crate) const RED_NONE: u8 = 0;
pub(crate) const RED_POPC: u8 = 1;
pub(crate) const RED_AND: u8 = 2;

/// `bar.sync`, `bar.arrive`, `bar.red`: `a` barrier number, `b` thread count. `imm`: bit 0 arrive only, bit 1
/// no count given, bits 4-5 reduction, bit 6 its predicate is negated; `p[0]` source, `p[1]` result
/// predicate, `d` result slot.
pub(crate) unsafe fn bar(m: &mut Machine, i: &Ins) -> Flow {
    // SAFETY: the instruction belongs to the machine's program (contract of `Exec`).
    let (number, count) = unsafe { ((*m.slot::<u32>(i.a))[lane0(m)], (*m.slot::<u32>(i.b))[lane0(m)]) };
    let whole = !m.exited;
    if m.mask != whole {
        let missing = (whole & !m.mask).trailing_zeros();
        let message = format!(
            "barrier {number} is executed by {} of the warp's {} threads (lanes {:#010x}); lane {missing} is on another path",
            m.mask.count_ones(),
            whole.count_ones(),
            m.mask
        );
        return m.fail(FaultKind::DivergentBarrier, Some(m.mask.trailing_zeros()), message);
    }
    if number > 15 {
        return m.fail(
            FaultKind::BarrierCount,
            None,
            format!("there is no barrier {number}; they go from 0 to 15"),
        );
    }
    let all = 32 * m.env.warps;
    let expected = if i.imm & 2 != 0 { 0 } else { count };
    if i.imm & 2 == 0 && (count == 0 || count % 32 != 0 || count > all) {
        let message = format!(
            "barrier {number} waits for {count} threads: not a multiple of 32 up to the block's {all}"
        );
        return m.fail(FaultKind::BarrierCount, None, message);
    }
    let w = m.warp;
    let barrier = &mut m.barriers[number as usize];
    let bit = 1 << w;
    if barrier.arrived == 0 {
        barrier.expected = expected;
    } else if barrier.expected != expected {
        let show = |n: u32| if n == 0 { "all".to_owned() } else { n.to_string() };
        let message = format!(
            "barrier {number} waits for {} threads here, but for {} where another warp arrived",
            show(expected),
            show(barrier.expected)
        );
        return m.fail(FaultKind::BarrierCount, None, message);
    }
    if barrier.arrived & bit != 0 {
        let message =
            format!("warp {w} arrives a second time at barrier {number} before its phase is complete");
        return m.fail(FaultKind::BarrierCount, None, message);
    }
    m.shared.arrive(w, &mut barrier.joined);
    barrier.arrived |= bit;
    let red = (i.imm >> 4 & 3) as u8;
    if red != RED_NONE {
        // SAFETY: as above.
        let p = unsafe { m.predicate(i.p[0]) } ^ if i.imm & 64 != 0 { u32::MAX } else { 0 };
        let barrier = &mut m.barriers[number as usize];
        barrier.votes += (p & m.mask).count_ones();
        barrier.voters += m.mask.count_ones();
        barrier.results.push((w, if red == RED_POPC { i.d } else { u32::from(i.p[1]) }, red));
    }
    m.pc += 1;
    if i.imm & 1 == 0 {
        m.barriers[number as usize].waiting |= bit;
        m.current().state = State::Waiting(number as u8);
    }
    m.complete(number as usize);
    if m.warps[w].state == State::Ready && m.env.config.seed == 0 { Flow::Jump } else { Flow::Stop }
}

fn lane0(m: &Machine) -> usize {
    m.mask.trailing_zeros() as usize & 31
}

/// `bar.warp.sync`: `a` is the mask.
pub(crate) unsafe fn warp_sync(m: &mut Machine, i: &Ins) -> Flow {
    // SAFETY: the instruction belongs to the machine's program (contract of `Exec`).
    let wanted = unsafe { (*m.slot::<u32>(i.a))[lane0(m)] };
    if let Err(trouble) = check_members(m, wanted, "__syncwarp") {
        return m.stop(trouble);
    }
    m.shared.sync_warp(m.warp);
    Flow::Next
}

/// Checks a member mask: every executing lane is in it, and every lane in it executes (or has exited).
pub(crate) fn check_members(m: &Machine, wanted: u32, what: &str) -> Result<(), Trouble> {
    let outside = m.mask & !wanted;
    if outside != 0 {
        let message =
            format!("{what} with mask {wanted:#010x} is executed by a lane that the mask leaves out");
        return Err(Trouble::new(FaultKind::InvalidMask, Some(outside.trailing_zeros()), message));
    }
    let missing = wanted & !m.mask & !m.exited;
    if missing != 0 {
        let lane = missing.trailing_zeros();
        let message = format!(
            "{what} with mask {wanted:#010x} waits for lane {lane}, which is inactive here (active lanes {:#010x})",
            m.mask
        );
        return Err(Trouble::new(FaultKind::InvalidMask, Some(lane), message));
    }
    Ok(())
}

/// `membar`, `fence`.
pub(crate) unsafe fn fence(m: &mut Machine, _: &Ins) -> Flow {
    m.fenced = true;
    Flow::Next
}

impl Machine<'_> {
    /// Completes a barrier's phase if everybody it waits for is there.
    fn complete(&mut self, number: usize) {
        let barrier = &self.barriers[number];
        if barrier.arrived == 0 {
            return;
        }
        let full = match barrier.expected {
            0 => {
                let live = |w: usize| self.warps[w].state != State::Done;
                (0..self.warps.len()).all(|w| barrier.arrived >> w & 1 != 0 || !live(w))
            }
            n => barrier.arrived.count_ones() * 32 >= n,
        };
        if !full {
            return;
        }
        let barrier = std::mem::take(&mut self.barriers[number]);
        self.shared.release(barrier.waiting, &barrier.joined);
        for (w, target, op) in &barrier.results {
            let warp = &mut self.warps[*w];
            if *op == RED_POPC {
                warp.registers[*target as usize].0 = [barrier.votes; 32];
            } else {
                let all = barrier.votes == barrier.voters;
                let yes = if *op == RED_AND { all } else { barrier.votes != 0 };
                warp.predicates[*target as usize] = if yes { u32::MAX } else { 0 };
            }
        }
        for w in (0..self.warps.len()).filter(|w| barrier.waiting >> w & 1 != 0) {
            self.warps[w].state = State::Ready;
        }
    }

    /// A warp's last lanes have exited: barriers may have waited for it alone.
    pub(super) fn warp_ended(&mut self) -> Flow {
        for number in 0..self.barriers.len() {
            self.complete(number);
        }
        Flow::Stop
    }

    /// The warp loaded waits, and so does every other: say for what.
    pub(super) fn deadlock(&mut self) -> Trouble {
        // The waiting instruction is the one before the warp's next.
        self.pc = self.pc.saturating_sub(1);
        let mut parts = Vec::new();
        for (number, barrier) in self.barriers.iter().enumerate() {
            if barrier.arrived != 0 {
                let expected = if barrier.expected == 0 { 32 * self.env.warps } else { barrier.expected };
                parts.push(format!(
                    "barrier {number} has {} of {expected} threads (warps {})",
                    32 * barrier.arrived.count_ones(),
                    list(barrier.arrived)
                ));
            }
        }
        let done = (0..self.warps.len()).filter(|w| self.warps[*w].state == State::Done).count();
        if done > 0 {
            parts.push(format!("{done} warps have ended"));
        }
        Trouble::new(
            FaultKind::Deadlock,
            None,
            format!("no warp of the block can go on: {}", parts.join("; ")),
        )
    }
}

fn list(mask: u32) -> String {
    let warps: Vec<String> = (0..32).filter(|w| mask >> w & 1 != 0).map(|w| w.to_string()).collect();
    warps.join(",")
}
