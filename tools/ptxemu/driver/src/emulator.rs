//! What passes between the driver and the emulator: settings one way, faults the other.

use ptxemu::{Config, Fault, FaultKind};

use crate::driver::Driver;
use crate::error::CUresult;

/// The result code that a device gives where the emulator gives this fault. Findings that a device would not
/// notice (races, uninitialised reads, divergence) fail the launch.
pub fn result_of(fault: &Fault) -> CUresult {
    match fault.kind {
        FaultKind::OutOfBounds | FaultKind::UseAfterFree | FaultKind::ReadOnly => CUresult::ILLEGAL_ADDRESS,
        FaultKind::Misaligned => CUresult::MISALIGNED_ADDRESS,
        FaultKind::Trap | FaultKind::Unsupported => CUresult::ILLEGAL_INSTRUCTION,
        FaultKind::InstructionLimit | FaultKind::Deadlock => CUresult::LAUNCH_TIMEOUT,
        FaultKind::OutOfMemory => CUresult::OUT_OF_MEMORY,
        FaultKind::InvalidLaunch | FaultKind::DoubleFree | FaultKind::InvalidFree => CUresult::INVALID_VALUE,
        _ => CUresult::LAUNCH_FAILED,
    }
}

/// Prints a fault for the user and gives its result code.
pub fn report_fault(fault: Fault) -> CUresult {
    let result = result_of(&fault);
    eprintln!("ptxemu: {fault} ({result})");
    result
}

impl Driver {
    /// How kernels run.
    pub fn config(&self) -> Config {
        let settings = &self.settings;
        Config {
            seed: settings.seed,
            late_async: settings.late_async,
            check_uninit: settings.checks,
            check_races: settings.checks,
            threads: settings.threads,
            max_instructions: settings.instructions,
            max_shared: self.device.shared_opt_in(),
            mma_sum: settings.mma_sum,
            ..Config::default()
        }
    }
}
