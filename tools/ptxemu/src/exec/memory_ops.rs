//! Loads and stores of all spaces: addresses, checks, and moving the data.

use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering::Relaxed};

use super::access::{Access, PlanSet};
use super::lanes::{BITS, multiversion, store};
use super::shared::{Checks, WRITTEN};
use super::{Machine, Trouble};
use crate::fault::FaultKind;
use crate::ir::{Flow, Ins, Mem, MemSpace, Strength};
use crate::memory::BASE;

/// Generic address of shared offset 0, and of the spaces that follow it.
pub(crate) const SHARED_WINDOW: u64 = 0x5000_0000_0000;
pub(crate) const LOCAL_WINDOW: u64 = 0x5100_0000_0000;
pub(crate) const PARAM_WINDOW: u64 = 0x5200_0000_0000;
/// Size of each window.
pub(crate) const WINDOW: u64 = 0x0100_0000_0000;

/// Where each lane's data lies.
pub(crate) type Pointers = [*mut u8; 32];

impl<'a> Machine<'a> {
    /// The lanes' addresses of an instruction: `a` + `imm`.
    ///
    /// # Safety
    /// `i` must belong to the machine's program.
    #[inline(always)]
    pub unsafe fn addresses(&self, i: &Ins, mem: &Mem) -> Access {
        let mut address = [0; 32];
        // SAFETY: by the caller's promise.
        unsafe {
            if mem.long_address {
                let base = &*self.slot::<u64>(i.a);
                for l in 0..32 {
                    let on = self.mask & BITS[l] != 0;
                    address[l] = if on { base[l].wrapping_add_signed(i.imm) } else { 0 };
                }
            } else {
                let base = &*self.slot::<u32>(i.a);
                for l in 0..32 {
                    let on = self.mask & BITS[l] != 0;
                    address[l] = if on { u64::from(base[l].wrapping_add(i.imm as u32)) } else { 0 };
                }
            }
        }
        Access { address, mask: self.mask, width: mem.element * mem.count }
    }

    /// Turns generic addresses into those of the space they lie in.
    #[inline(always)]
    pub fn resolve(&self, access: &mut Access, space: MemSpace) -> Result<MemSpace, Trouble> {
        if space != MemSpace::Generic {
            return Ok(space);
        }
        let first = access.base();
        let window = match first {
            SHARED_WINDOW.. => (first - SHARED_WINDOW) / WINDOW,
            _ => u64::MAX,
        };
        let (space, start) = match window {
            0 => (MemSpace::Shared, SHARED_WINDOW),
            1 => (MemSpace::Local, LOCAL_WINDOW),
            2 => (MemSpace::Param, PARAM_WINDOW),
            _ => return Ok(MemSpace::Global),
        };
        for l in 0..32 {
            if access.mask & BITS[l] != 0 {
                let offset = access.address[l].wrapping_sub(start);
                if offset >= WINDOW {
                    let message = "one generic access reaches several spaces";
                    return Err(Trouble::new(FaultKind::Unsupported, Some(l as u32), message));
                }
                access.address[l] = offset;
            }
        }
        Ok(space)
    }

    pub fn checks(&self) -> Checks {
        Checks { uninit: self.env.config.check_uninit, races: self.env.config.check_races }
    }

    /// Checks of an access of that strength: atomic ones (`.volatile`, `.relaxed`) do not race.
    fn checks_for(&self, strength: Strength) -> Checks {
        let all = self.checks();
        Checks { races: all.races && strength == Strength::Weak, ..all }
    }

    #[inline(always)]
    fn pointers(&mut self, access: &Access, base: *mut u8, subtract: u64) -> Pointers {
        let idle: *mut u8 = (&raw mut self.scratch).cast();
        let mut pointers = [idle; 32];
        for l in 0..32 {
            let p = base.wrapping_add(access.address[l].wrapping_sub(subtract) as usize);
            pointers[l] = if access.mask & BITS[l] != 0 { p } else { idle };
        }
        pointers
    }

    /// Checks a load and finds its data.
    #[inline(always)]
    pub fn readable(&mut self, access: &mut Access, mem: &Mem) -> Result<Pointers, Trouble> {
        let space = self.resolve(access, mem.space)?;
        access.aligned(access.width.min(32), "load")?;
        match space {
            MemSpace::Shared => {
                let on = self.checks_for(mem.strength);
                let plan = self.plans[mem.plan as usize].find(access)?;
                self.shared.read(self.warp, access, plan, access.base(), on)?;
                self.counts.shared_load.add(plan);
                Ok(self.pointers(access, self.shared.data(), 0))
            }
            MemSpace::Global | MemSpace::Const | MemSpace::Generic => {
                let mut set = std::mem::take(&mut self.plans[mem.plan as usize]);
                let result = self.load_global(access, &mut set, space != MemSpace::Const, mem.strength);
                self.plans[mem.plan as usize] = set;
                result?;
                if mem.strength == Strength::Acquire {
                    self.synchronise(access.base(), true, false);
                }
                Ok(self.pointers(access, self.env.memory.data_ptr(0), BASE))
            }
            MemSpace::Local => self.local(access, "load"),
            MemSpace::Param => {
                let size = self.env.params.len() as u64;
                for l in access.lanes() {
                    let at = access.address[l as usize];
                    if at.checked_add(u64::from(access.width)).is_none_or(|end| end > size) {
                        let message = format!("{} bytes at parameter offset {at:#x} of {size}", access.width);
                        return Err(Trouble::new(FaultKind::OutOfBounds, Some(l), message));
                    }
                }
                Ok(self.pointers(access, self.env.params.as_ptr().cast_mut(), 0))
            }
        }
    }

    /// Checks a store and finds where its data goes.
    #[inline(always)]
    pub fn writable(&mut self, access: &mut Access, mem: &Mem) -> Result<(Pointers, bool), Trouble> {
        let space = self.resolve(access, mem.space)?;
        access.aligned(access.width.min(32), "store")?;
        match space {
            MemSpace::Shared => {
                let on = self.checks_for(mem.strength);
                let plan = self.plans[mem.plan as usize].find(access)?;
                self.shared.write(self.warp, access, plan, access.base(), (on, WRITTEN))?;
                self.counts.shared_store.add(plan);
                let overlap = plan.overlap.is_some();
                Ok((self.pointers(access, self.shared.data(), 0), overlap))
            }
            MemSpace::Local => Ok((self.local(access, "store")?, false)),
            MemSpace::Param => Err(Trouble::new(
                FaultKind::ReadOnly,
                Some(access.mask.trailing_zeros()),
                "store to a kernel parameter",
            )),
            MemSpace::Global | MemSpace::Const | MemSpace::Generic => {
                let mut set = std::mem::take(&mut self.plans[mem.plan as usize]);
                let result = self.store_global(access, &mut set, mem.strength);
                self.plans[mem.plan as usize] = set;
                let overlap = result?;
                Ok((self.pointers(access, self.env.memory.data_ptr(0), BASE), overlap))
            }
        }
    }

    /// Checks and counts a load from global (`counted`) or constant memory.
    #[inline(always)]
    pub fn load_global(
        &mut self,
        access: &Access,
        set: &mut PlanSet,
        counted: bool,
        strength: Strength,
    ) -> Result<(), Trouble> {
        let plan = set.find(access)?;
        self.global_read(access, plan, counted && strength == Strength::Weak)?;
        if counted {
            self.counts.global_load.add(plan);
            if access.width == 16 {
                self.counts.wide_load.add(plan);
            }
        }
        Ok(())
    }

    /// Checks and counts a store to global memory; whether lanes overlap in a plain store.
    #[inline(always)]
    fn store_global(
        &mut self,
        access: &Access,
        set: &mut PlanSet,
        strength: Strength,
    ) -> Result<bool, Trouble> {
        let plan = set.find(access)?;
        if strength == Strength::Weak {
            self.global_write(access, plan)?;
        } else {
            let release = self.fenced || strength == Strength::Release;
            self.global_touch(access, plan)?;
            self.synchronise(access.base(), false, release);
        }
        self.counts.global_store.add(plan);
        if access.width == 16 {
            self.counts.wide_store.add(plan);
        }
        Ok(plan.overlap.is_some() && strength == Strength::Weak)
    }

    fn local(&mut self, access: &Access, what: &str) -> Result<Pointers, Trouble> {
        let bytes = u64::from(self.env.program.local_bytes);
        let base = self.warps[self.warp].local.as_mut_ptr().cast::<u8>();
        let mut pointers: Pointers = [(&raw mut self.scratch).cast(); 32];
        for l in access.lanes() {
            let at = access.address[l as usize];
            if at.checked_add(u64::from(access.width)).is_none_or(|end| end > bytes) {
                let message = format!("{what} of {} bytes at local offset {at:#x} of {bytes}", access.width);
                return Err(Trouble::new(FaultKind::OutOfBounds, Some(l), message));
            }
            pointers[l as usize] = base.wrapping_add((u64::from(l) * bytes + at) as usize);
        }
        Ok(pointers)
    }
}

/// Loads one element of every lane.
macro_rules! gather {
    ($atomic:ty, $pointers:expr, $at:expr, $to:ty) => {{
        let mut out = [0 as $to; 32];
        for l in 0..32 {
            out[l] = <$atomic>::from_ptr($pointers[l].wrapping_add($at).cast()).load(Relaxed) as $to;
        }
        out
    }};
}

#[inline(always)]
unsafe fn load_body(m: &mut Machine, i: &Ins) -> Flow {
    let mem = m.env.program.mems[i.y as usize];
    // SAFETY: the instruction belongs to the machine's program (contract of `Exec`).
    let mut access = unsafe { m.addresses(i, &mem) };
    let pointers = match m.readable(&mut access, &mem) {
        Ok(pointers) => pointers,
        Err(trouble) => return m.stop(trouble),
    };
    let lists = &m.env.program.lists[i.x as usize..];
    for e in 0..mem.count as usize {
        let (slot, long, at) = (lists[e], mem.long_regs >> e & 1 != 0, e * mem.element as usize);
        // SAFETY: the pointers were checked for `width` bytes, aligned to it; inactive lanes point at
        // `scratch`, which is as large as any access. The slots belong to the program.
        unsafe {
            match (mem.element, mem.signed, long) {
                (4, _, false) => store(m, slot, &gather!(AtomicU32, pointers, at, u32)),
                (8, ..) => store(m, slot, &gather!(AtomicU64, pointers, at, u64)),
                (2, false, false) => store(m, slot, &gather!(AtomicU16, pointers, at, u32)),
                (1, false, false) => store(m, slot, &gather!(AtomicU8, pointers, at, u32)),
                (4, false, true) => store(m, slot, &gather!(AtomicU32, pointers, at, u64)),
                (2, false, true) => store(m, slot, &gather!(AtomicU16, pointers, at, u64)),
                (1, false, true) => store(m, slot, &gather!(AtomicU8, pointers, at, u64)),
                (2, true, false) => {
                    store(m, slot, &gather!(AtomicU16, pointers, at, u32).map(|v| v as u16 as i16 as u32));
                }
                (_, true, false) => {
                    store(m, slot, &gather!(AtomicU8, pointers, at, u32).map(|v| v as u8 as i8 as u32));
                }
                (4, true, true) => {
                    store(m, slot, &gather!(AtomicU32, pointers, at, u64).map(|v| v as u32 as i32 as u64));
                }
                (2, true, true) => {
                    store(m, slot, &gather!(AtomicU16, pointers, at, u64).map(|v| v as u16 as i16 as u64));
                }
                _ => store(m, slot, &gather!(AtomicU8, pointers, at, u64).map(|v| v as u8 as i8 as u64)),
            }
        }
    }
    Flow::Next
}

#[inline(always)]
unsafe fn store_body(m: &mut Machine, i: &Ins) -> Flow {
    let mem = m.env.program.mems[i.y as usize];
    // SAFETY: the instruction belongs to the machine's program (contract of `Exec`).
    let mut access = unsafe { m.addresses(i, &mem) };
    let (pointers, overlap) = match m.writable(&mut access, &mem) {
        Ok(found) => found,
        Err(trouble) => return m.stop(trouble),
    };
    let lists = &m.env.program.lists[i.x as usize..];
    if overlap
        && m.checks().races
        && let Err(trouble) = same_values(m, &access, &mem, lists)
    {
        return m.stop(trouble);
    }
    for e in 0..mem.count as usize {
        let (slot, long, at) = (lists[e], mem.long_regs >> e & 1 != 0, e * mem.element as usize);
        // SAFETY: as in `load_body`; stores of inactive lanes fall into `scratch`.
        unsafe {
            if mem.element == 8 {
                let from = &*m.slot::<u64>(slot);
                for l in 0..32 {
                    AtomicU64::from_ptr(pointers[l].wrapping_add(at).cast()).store(from[l], Relaxed);
                }
                continue;
            }
            let mut value = [0; 32];
            if long {
                let from = &*m.slot::<u64>(slot);
                for l in 0..32 {
                    value[l] = from[l] as u32;
                }
            } else {
                value = *m.slot::<u32>(slot);
            }
            match mem.element {
                4 => {
                    for l in 0..32 {
                        AtomicU32::from_ptr(pointers[l].wrapping_add(at).cast()).store(value[l], Relaxed);
                    }
                }
                2 => {
                    for l in 0..32 {
                        AtomicU16::from_ptr(pointers[l].wrapping_add(at).cast())
                            .store(value[l] as u16, Relaxed);
                    }
                }
                _ => {
                    for l in 0..32 {
                        AtomicU8::from_ptr(pointers[l].wrapping_add(at).cast())
                            .store(value[l] as u8, Relaxed);
                    }
                }
            }
        }
    }
    Flow::Next
}

/// Lanes that store to the same bytes must store the same values: which one wins is undefined.
#[cold]
fn same_values(m: &Machine, access: &Access, mem: &Mem, list: &[u32]) -> Result<(), Trouble> {
    let bytes = |l: u32| -> Vec<u8> {
        let element = |e: usize| {
            // SAFETY: the slots belong to the program; the width is the register's.
            let bits = unsafe {
                if mem.long_regs >> e & 1 != 0 {
                    (*m.slot::<u64>(list[e]))[l as usize]
                } else {
                    u64::from((*m.slot::<u32>(list[e]))[l as usize])
                }
            };
            bits.to_le_bytes().into_iter().take(mem.element as usize)
        };
        (0..mem.count as usize).flat_map(element).collect()
    };
    let mut written: std::collections::HashMap<u64, (u8, u32)> = std::collections::HashMap::new();
    for l in access.lanes() {
        for (at, byte) in (access.address[l as usize]..).zip(bytes(l)) {
            let (before, other) = *written.entry(at).or_insert((byte, l));
            if before != byte {
                let message =
                    format!("lanes {other} and {l} store different values to the same address {at:#x}");
                return Err(Trouble::new(FaultKind::WarpRace, Some(l), message));
            }
        }
    }
    Ok(())
}

multiversion!(/// Loads: `y` the [`Mem`], `x` the destination list.
    load, load_body);
multiversion!(/// Stores: `y` the [`Mem`], `x` the source list.
    store_to, store_body);

/// A kernel parameter at fixed offset `imm`: the same for all lanes. List: its size; bit 0 signed, bit 1 a
/// 64-bit register.
pub(crate) unsafe fn load_param(m: &mut Machine, i: &Ins) -> Flow {
    let at = i.imm as usize;
    let mut bytes = [0; 8];
    let list = &m.env.program.lists[i.x as usize..][..2];
    let (size, flags) = (list[0] as usize, list[1]);
    bytes[..size].copy_from_slice(&m.env.params[at..at + size]);
    let value = u64::from_le_bytes(bytes);
    let unused = 64 - 8 * size as u32;
    let value = if flags & 1 != 0 { ((value << unused) as i64 >> unused) as u64 } else { value };
    // SAFETY: the instruction belongs to the machine's program (contract of `Exec`).
    unsafe {
        if flags & 2 != 0 {
            store(m, i.d, &[value; 32]);
        } else {
            store(m, i.d, &[value as u32; 32]);
        }
    }
    Flow::Next
}
