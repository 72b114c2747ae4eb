//! Branches, reconvergence, calls, exit.
//!
//! The paths of a warp form a stack. A branch that splits the lanes leaves, below the two sides, an entry
//! that waits at the branch's immediate post-dominator; a side that arrives there (a `join` instruction
//! stands at every such point) is popped, until the waiting entry comes up with all lanes again. Lanes that
//! exit or return are taken out of the entries when those come up.

use super::{Frame, Machine, Side, State};
use crate::fault::FaultKind;
use crate::ir::{Flow, Ins, NEVER};

/// `bra`: `y` is the target, the executing lanes take it.
pub(crate) unsafe fn branch(m: &mut Machine, i: &Ins) -> Flow {
    let taken = m.mask;
    let rest = m.active & !taken;
    if rest == 0 {
        m.pc = i.y;
        return Flow::Jump;
    }
    let meet = m.env.program.reconverge[m.pc as usize];
    let sides = [(m.pc + 1, rest), (i.y, taken)];
    split(m, meet, &sides)
}

/// Splits the current path into several, which meet again at `meet`.
fn split(m: &mut Machine, meet: u32, sides: &[(u32, u32)]) -> Flow {
    let (active, outer) = (m.active, m.reconverge);
    let swap = m.env.config.seed != 0 && m.random.below(2) == 1;
    let stack = &mut m.warps[m.warp].sides;
    if meet != NEVER && meet != outer {
        stack.push(Side { pc: meet, reconverge: outer, mask: active });
    }
    let mut push = |&(pc, mask): &(u32, u32)| {
        if pc != meet {
            stack.push(Side { pc, reconverge: meet, mask });
        }
    };
    if swap {
        sides.iter().for_each(&mut push)
    } else {
        sides.iter().rev().for_each(&mut push)
    }
    pop(m)
}

/// Takes up the next path of the stack that still has lanes; ends the frame or the warp when there is none.
fn pop(m: &mut Machine) -> Flow {
    loop {
        let warp = &mut m.warps[m.warp];
        let (base, gone) = warp.frames.last().map_or((0, 0), |f| (f.base, f.returned));
        if warp.sides.len() > base {
            let side = warp.sides[warp.sides.len() - 1];
            warp.sides.pop();
            let mask = side.mask & !m.exited & !gone;
            if mask != 0 {
                (m.pc, m.reconverge, m.active) = (side.pc, side.reconverge, mask);
                return Flow::Jump;
            }
            continue;
        }
        let Some(frame) = warp.frames.pop() else {
            warp.state = State::Done;
            m.active = 0;
            return m.warp_ended();
        };
        let mask = frame.mask & !m.exited;
        if mask == 0 {
            continue;
        }
        (m.pc, m.reconverge, m.active) = (frame.resume, frame.reconverge, mask);
        // The results belong to the lanes that called, whether or not they still do.
        m.copy_results(&frame);
        return Flow::Jump;
    }
}

/// Stands at every reconvergence point.
pub(crate) unsafe fn join(m: &mut Machine, _: &Ins) -> Flow {
    if m.pc == m.reconverge { pop(m) } else { Flow::Next }
}

/// `exit`, and `ret` of an entry.
pub(crate) unsafe fn exit(m: &mut Machine, _: &Ins) -> Flow {
    m.exited |= m.mask;
    m.active &= !m.mask;
    if m.active == 0 { pop(m) } else { Flow::Next }
}

/// `ret` of a function.
pub(crate) unsafe fn ret(m: &mut Machine, _: &Ins) -> Flow {
    let mask = m.mask;
    if let Some(frame) = m.current().frames.last_mut() {
        frame.returned |= mask;
    }
    m.active &= !mask;
    if m.active == 0 { pop(m) } else { Flow::Next }
}

/// `call` of a known function; `y` is the call's number.
pub(crate) unsafe fn call(m: &mut Machine, i: &Ins) -> Flow {
    let env = m.env;
    let call = &env.program.calls[i.y as usize];
    let frame = Frame {
        call: i.y,
        resume: m.pc + 1,
        mask: m.active,
        reconverge: m.reconverge,
        callers: m.mask,
        returned: 0,
        base: m.warps[m.warp].sides.len(),
    };
    m.copy_local(&call.arguments, frame.callers);
    m.current().frames.push(frame);
    (m.pc, m.active, m.reconverge) = (call.entry, frame.callers, NEVER);
    Flow::Jump
}

/// `brx.idx`: `a` is the index, `y` the table.
pub(crate) unsafe fn branch_table(m: &mut Machine, i: &Ins) -> Flow {
    // SAFETY: the instruction belongs to the machine's program (contract of `Exec`).
    let index = unsafe { *m.slot::<u32>(i.a) };
    let env = m.env;
    let table = &env.program.tables[i.y as usize];
    let mut sides: Vec<(u32, u32)> = Vec::new();
    for l in (0..32).filter(|l| m.mask >> l & 1 != 0) {
        let Some(&pc) = table.get(index[l] as usize) else {
            let message = format!("jump table of {} targets indexed by {}", table.len(), index[l]);
            return m.fail(FaultKind::OutOfBounds, Some(l as u32), message);
        };
        match sides.iter_mut().find(|s| s.0 == pc) {
            Some(side) => side.1 |= 1 << l,
            None => sides.push((pc, 1 << l)),
        }
    }
    let rest = m.active & !m.mask;
    if rest != 0 {
        sides.push((m.pc + 1, rest));
    }
    if let [(pc, _)] = sides[..] {
        m.pc = pc;
        return Flow::Jump;
    }
    let meet = env.program.reconverge[m.pc as usize];
    split(m, meet, &sides)
}

/// `trap`, `brkpt`, a failed assertion.
pub(crate) unsafe fn trap(m: &mut Machine, i: &Ins) -> Flow {
    let lane = m.mask.trailing_zeros();
    let what = if i.imm == 1 { "a device-side assertion failed" } else { "the kernel trapped" };
    m.fail(FaultKind::Trap, Some(lane), what)
}

/// `discard`, `prefetch`, `nanosleep`: nothing to do.
pub(crate) unsafe fn nothing(_: &mut Machine, _: &Ins) -> Flow {
    Flow::Next
}

impl Machine<'_> {
    /// Copies parameter areas in the local memory of `lanes`.
    fn copy_local(&mut self, copies: &[(u32, u32, u32)], lanes: u32) {
        let bytes = self.env.program.local_bytes as usize;
        let local = self.warps[self.warp].local.as_mut_ptr().cast::<u8>();
        for &(from, to, len) in copies {
            for l in (0..32).filter(|l| lanes >> l & 1 != 0) {
                // SAFETY: parameter areas lie inside each lane's `local_bytes`, which the program's layout
                // guarantees.
                unsafe {
                    let base = local.add(l * bytes);
                    base.add(from as usize).copy_to(base.add(to as usize), len as usize);
                }
            }
        }
    }

    fn copy_results(&mut self, frame: &Frame) {
        let env = self.env;
        self.copy_local(&env.program.calls[frame.call as usize].results, frame.callers & !self.exited);
    }
}
