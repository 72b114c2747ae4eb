//! What a launch did: instructions by class, matrix products, bank conflicts, sectors.

use std::collections::BTreeMap;
use std::fmt;

use crate::exec::access::Plan;
use crate::ir::{Class, Program};

/// Traffic of one kind of memory instruction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Warp instructions.
    pub instructions: u64,
    /// Requests: passes of up to 128 bytes (32 lanes of 4 bytes, 16 of 8, 8 of 16).
    pub requests: u64,
    /// Shared memory: wavefronts, bank conflicts included. Without conflicts it equals `requests`.
    pub waves: u64,
    /// Global memory: 32-byte sectors touched.
    pub sectors: u64,
    /// The least number of sectors that holds the bytes touched.
    pub ideal_sectors: u64,
    /// Bytes that lanes moved (a broadcast counts once a lane).
    pub bytes: u64,
}

impl Traffic {
    #[inline(always)]
    pub(crate) fn add(&mut self, plan: &Plan) {
        self.instructions += 1;
        self.requests += u64::from(plan.requests);
        self.waves += u64::from(plan.waves);
        self.sectors += u64::from(plan.sectors);
        self.ideal_sectors += u64::from(plan.ideal_sectors);
        self.bytes += u64::from(plan.lane_bytes);
    }

    /// Sectors touched for every four that the bytes would fill: 4.0 where every byte fetched is used,
    /// whatever lanes took part.
    pub fn sectors_per_full_request(&self) -> f64 {
        4.0 * ratio(self.sectors, self.ideal_sectors)
    }

    fn merge(&mut self, other: &Traffic) {
        self.instructions += other.instructions;
        self.requests += other.requests;
        self.waves += other.waves;
        self.sectors += other.sectors;
        self.ideal_sectors += other.ideal_sectors;
        self.bytes += other.bytes;
    }

    /// Wavefronts per conflict-free wavefront: 1.0 is free of bank conflicts.
    pub fn conflict(&self) -> f64 {
        ratio(self.waves, self.requests)
    }

    /// Sectors per request: 4.0 where every byte fetched is used, for full-width accesses.
    pub fn sectors_per_request(&self) -> f64 {
        ratio(self.sectors, self.requests)
    }
}

fn ratio(a: u64, b: u64) -> f64 {
    if b == 0 { 0.0 } else { a as f64 / b as f64 }
}

/// One thread's counters while it runs.
pub(crate) struct Counts {
    executed: Vec<u64>,
    pub blocks: u64,
    pub global_load: Traffic,
    pub global_store: Traffic,
    pub wide_load: Traffic,
    pub wide_store: Traffic,
    pub shared_load: Traffic,
    pub shared_store: Traffic,
    pub matrix_load: Traffic,
    pub async_store: Traffic,
    pub async_bytes: u64,
}

impl Counts {
    pub fn new(instructions: usize) -> Counts {
        Counts {
            executed: vec![0; instructions],
            blocks: 0,
            global_load: Traffic::default(),
            global_store: Traffic::default(),
            wide_load: Traffic::default(),
            wide_store: Traffic::default(),
            shared_load: Traffic::default(),
            shared_store: Traffic::default(),
            matrix_load: Traffic::default(),
            async_store: Traffic::default(),
            async_bytes: 0,
        }
    }

    /// Counts one execution of the instruction at `pc`.
    #[inline(always)]
    pub fn tick(&mut self, pc: u32) {
        self.executed[pc as usize] += 1;
    }

    /// Instructions executed so far.
    pub fn total(&self) -> u64 {
        self.executed.iter().sum()
    }

    /// Turns the counters into a report.
    pub fn report(&self, program: &Program) -> Report {
        let mut report = Report {
            blocks: self.blocks,
            global_load: self.global_load,
            global_store: self.global_store,
            wide_load: self.wide_load,
            wide_store: self.wide_store,
            shared_load: self.shared_load,
            shared_store: self.shared_store,
            matrix_load: self.matrix_load,
            async_store: self.async_store,
            async_bytes: self.async_bytes,
            ..Report::default()
        };
        let inside = program.product_loops();
        for ((origin, &times), inside) in program.origins.iter().zip(&self.executed).zip(inside) {
            if origin.class == Class::Internal || times == 0 {
                continue;
            }
            report.instructions += times;
            *report.classes.entry(name(origin.class)).or_default() += times;
            report.loop_instructions += if inside { times } else { 0 };
            let macs = times * u64::from(origin.macs);
            match origin.class {
                Class::Mma => {
                    report.mma += times;
                    report.loop_mma += if inside { times } else { 0 };
                    report.mma_macs += macs;
                }
                _ => report.scalar_macs += 32 * macs,
            }
        }
        report
    }
}

fn name(class: Class) -> &'static str {
    match class {
        Class::Integer => "integer",
        Class::Float32 => "f32",
        Class::Float16 => "f16/bf16",
        Class::Float64 => "f64",
        Class::Special => "special function",
        Class::Convert => "convert",
        Class::Move => "move",
        Class::Predicate => "predicate",
        Class::GlobalLoad => "global load",
        Class::GlobalStore => "global store",
        Class::SharedLoad => "shared load",
        Class::SharedStore => "shared store",
        Class::LocalMemory => "local memory",
        Class::Constant => "constant, parameter",
        Class::Atomic => "atomic",
        Class::AsyncCopy => "async copy",
        Class::MatrixLoad => "ldmatrix",
        Class::Mma => "mma",
        Class::Barrier => "barrier, fence",
        Class::Exchange => "shuffle, vote",
        Class::Control => "control",
        Class::Internal => "internal",
    }
}

/// Counts of one launch, or of several merged ones. Instructions are counted per warp.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// Launches merged into this report.
    pub launches: u64,
    /// Blocks executed.
    pub blocks: u64,
    /// Warp instructions executed, of the PTX (the SASS differs).
    pub instructions: u64,
    /// The same by class.
    pub classes: BTreeMap<&'static str, u64>,
    /// `mma.sync` instructions, and multiply-accumulates in them.
    pub mma: u64,
    /// Multiply-accumulates of `mma.sync`.
    pub mma_macs: u64,
    /// Warp instructions executed in the loops of matrix products, those between the branch back and its
    /// target: what it costs to feed the tensor cores.
    pub loop_instructions: u64,
    /// `mma.sync` instructions among them.
    pub loop_mma: u64,
    /// Multiply-accumulates of scalar FMA instructions, all 32 lanes counted.
    pub scalar_macs: u64,
    /// Loads from global memory, the sources of asynchronous copies included.
    pub global_load: Traffic,
    /// Stores to global memory.
    pub global_store: Traffic,
    /// Of the loads from global memory, those of 16 bytes a lane.
    pub wide_load: Traffic,
    /// Of the stores to global memory, those of 16 bytes a lane.
    pub wide_store: Traffic,
    /// Loads from shared memory other than `ldmatrix`.
    pub shared_load: Traffic,
    /// Stores to shared memory, `stmatrix` included.
    pub shared_store: Traffic,
    /// `ldmatrix`.
    pub matrix_load: Traffic,
    /// The shared-memory side of asynchronous copies.
    pub async_store: Traffic,
    /// Bytes that asynchronous copies put into shared memory.
    pub async_bytes: u64,
}

impl Report {
    /// Adds another report's counts to this one.
    pub fn merge(&mut self, other: &Report) {
        self.launches += other.launches;
        self.blocks += other.blocks;
        self.instructions += other.instructions;
        for (class, times) in &other.classes {
            *self.classes.entry(class).or_default() += times;
        }
        self.mma += other.mma;
        self.mma_macs += other.mma_macs;
        self.loop_instructions += other.loop_instructions;
        self.loop_mma += other.loop_mma;
        self.scalar_macs += other.scalar_macs;
        self.async_bytes += other.async_bytes;
        self.global_load.merge(&other.global_load);
        self.global_store.merge(&other.global_store);
        self.wide_load.merge(&other.wide_load);
        self.wide_store.merge(&other.wide_store);
        self.shared_load.merge(&other.shared_load);
        self.shared_store.merge(&other.shared_store);
        self.matrix_load.merge(&other.matrix_load);
        self.async_store.merge(&other.async_store);
    }

    /// Every count by a stable snake_case name, for machine-readable output.
    pub fn counts(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let classes = [
            ("instructions_integer", Class::Integer),
            ("instructions_f32", Class::Float32),
            ("instructions_f16", Class::Float16),
            ("instructions_f64", Class::Float64),
            ("instructions_special", Class::Special),
            ("instructions_convert", Class::Convert),
            ("instructions_move", Class::Move),
            ("instructions_predicate", Class::Predicate),
            ("instructions_global_load", Class::GlobalLoad),
            ("instructions_global_store", Class::GlobalStore),
            ("instructions_shared_load", Class::SharedLoad),
            ("instructions_shared_store", Class::SharedStore),
            ("instructions_local", Class::LocalMemory),
            ("instructions_constant", Class::Constant),
            ("instructions_atomic", Class::Atomic),
            ("instructions_async_copy", Class::AsyncCopy),
            ("instructions_ldmatrix", Class::MatrixLoad),
            ("instructions_mma", Class::Mma),
            ("instructions_barrier", Class::Barrier),
            ("instructions_exchange", Class::Exchange),
            ("instructions_control", Class::Control),
        ];
        let classes = classes.map(|(key, class)| (key, self.class(name(class))));
        let t = [
            &self.global_load,
            &self.global_store,
            &self.shared_load,
            &self.shared_store,
            &self.matrix_load,
            &self.async_store,
        ];
        let totals = [
            ("launches", self.launches),
            ("blocks", self.blocks),
            ("instructions", self.instructions),
            ("mma_macs", self.mma_macs),
            ("loop_instructions", self.loop_instructions),
            ("loop_mma", self.loop_mma),
            ("scalar_macs", self.scalar_macs),
            ("global_load_requests", t[0].requests),
            ("global_load_sectors", t[0].sectors),
            ("global_load_ideal_sectors", t[0].ideal_sectors),
            ("global_load_bytes", t[0].bytes),
            ("global_store_requests", t[1].requests),
            ("global_store_sectors", t[1].sectors),
            ("global_store_ideal_sectors", t[1].ideal_sectors),
            ("global_store_bytes", t[1].bytes),
            ("shared_load_waves", t[2].waves),
            ("shared_load_ideal_waves", t[2].requests),
            ("shared_load_bytes", t[2].bytes),
            ("shared_store_waves", t[3].waves),
            ("shared_store_ideal_waves", t[3].requests),
            ("shared_store_bytes", t[3].bytes),
            ("ldmatrix_waves", t[4].waves),
            ("ldmatrix_ideal_waves", t[4].requests),
            ("ldmatrix_bytes", t[4].bytes),
            ("async_copy_waves", t[5].waves),
            ("async_copy_ideal_waves", t[5].requests),
            ("async_copy_bytes", self.async_bytes),
        ];
        totals.into_iter().chain(classes)
    }

    /// Instructions of a class by its name in the table; 0 if none ran.
    pub fn class(&self, name: &str) -> u64 {
        self.classes.get(name).copied().unwrap_or(0)
    }

    /// Shared-memory wavefronts, all instructions together: actual and conflict-free.
    pub fn shared_waves(&self) -> (u64, u64) {
        let all = [&self.shared_load, &self.shared_store, &self.matrix_load, &self.async_store];
        (all.iter().map(|t| t.waves).sum(), all.iter().map(|t| t.requests).sum())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:<28}{:>16}", "launches", self.launches)?;
        writeln!(f, "{:<28}{:>16}", "blocks", self.blocks)?;
        writeln!(f, "{:<28}{:>16}", "warp instructions", self.instructions)?;
        for (class, times) in &self.classes {
            let share = 100.0 * ratio(*times, self.instructions);
            writeln!(f, "  {class:<26}{times:>16}{share:>8.1} %")?;
        }
        writeln!(f, "{:<28}{:>16}", "MACs in mma", self.mma_macs)?;
        writeln!(f, "{:<28}{:>16}", "MACs in scalar fma", self.scalar_macs)?;
        if self.mma > 0 {
            writeln!(f, "{:<28}{:>16.1}", "instructions per mma", ratio(self.instructions, self.mma))?;
        }
        writeln!(
            f,
            "{:<16}{:>12}{:>12}{:>12}{:>8}{:>12}{:>8}{:>16}",
            "memory", "instructions", "requests", "waves", "x", "sectors", "/req", "bytes"
        )?;
        let rows = [
            ("global load", &self.global_load),
            ("global store", &self.global_store),
            ("shared load", &self.shared_load),
            ("shared store", &self.shared_store),
            ("ldmatrix", &self.matrix_load),
            ("cp.async", &self.async_store),
        ];
        for (name, t) in rows.iter().filter(|r| r.1.instructions > 0) {
            write!(f, "{name:<16}{:>12}{:>12}", t.instructions, t.requests)?;
            if name.starts_with("global") {
                write!(f, "{:>12}{:>8}{:>12}{:>8.2}", "-", "-", t.sectors, t.sectors_per_request())?;
            } else {
                write!(f, "{:>12}{:>8.2}{:>12}{:>8}", t.waves, t.conflict(), "-", "-")?;
            }
            writeln!(f, "{:>16}", t.bytes)?;
        }
        Ok(())
    }
}
