//! What the environment asks for; the table is in the crate's documentation.

use std::path::PathBuf;
use std::str::FromStr;

use crate::device::Size;
use ptxemu::MmaSum;

/// The environment's settings, read at `cuInit`.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Compute capability, major and minor.
    pub capability: (u32, u32),
    /// Multiprocessors, clocks, L2.
    pub size: Size,
    /// CUDA version of the driver: 1000 * major + 10 * minor.
    pub driver_version: u32,
    /// Seed of every order that the API leaves open; 0 is program order, as late as possible.
    pub seed: u64,
    /// Threads of the emulator; 0 is one for each processor.
    pub threads: usize,
    /// Whether asynchronous copies within a kernel land as late as its waits allow.
    pub late_async: bool,
    /// Whether races and uninitialised reads are looked for.
    pub checks: bool,
    /// How tensor cores sum.
    pub mma_sum: MmaSum,
    /// Most warp instructions of a launch; `None` lets it run for ever.
    pub instructions: Option<u64>,
    /// Bytes of device memory.
    pub memory: u64,
    /// Devices that the driver counts.
    pub devices: i32,
    /// Where the counts go at exit.
    pub report: Option<PathBuf>,
}

const DEFAULT_MEMORY: u64 = 8 << 30;
/// Several times what the largest layers of a network take in f32: a launch that needs more does not end.
const DEFAULT_INSTRUCTIONS: u64 = 1 << 34;

impl Settings {
    /// Reads the environment. `Err` is a line for the user.
    pub fn from_env() -> Result<Settings, String> {
        let (own, size) = match variable("PTXEMU_GPU").as_deref() {
            None => ((8, 0), Size::SMALL),
            Some("h100") => ((9, 0), Size::H100),
            Some(text) => return Err(format!("PTXEMU_GPU={text}: h100, or nothing, is expected")),
        };
        let capability = match variable("PTXEMU_CC") {
            None => own,
            Some(text) => text
                .split_once('.')
                .and_then(|(major, minor)| {
                    Some((major.parse().ok()?, minor.parse().ok().filter(|minor| *minor < 10)?))
                })
                .filter(|capability| *capability >= (7, 5))
                .ok_or_else(|| {
                    format!("PTXEMU_CC={text}: a compute capability from 7.5 on, such as 8.0, is expected")
                })?,
        };
        Ok(Settings {
            capability,
            size,
            driver_version: number("PTXEMU_DRIVER_VERSION", 13050)?,
            seed: number("PTXEMU_SEED", 0)?,
            threads: number("PTXEMU_THREADS", 0)?,
            late_async: switch("PTXEMU_LATE_ASYNC", true)?,
            checks: switch("PTXEMU_CHECKS", true)?,
            mma_sum: match variable("PTXEMU_MMA").as_deref() {
                None | Some("truncated") => MmaSum::Truncated,
                Some("nearest") => MmaSum::Nearest,
                Some(text) => return Err(format!("PTXEMU_MMA={text}: truncated or nearest is expected")),
            },
            instructions: Some(number("PTXEMU_MAX_INSTRUCTIONS", DEFAULT_INSTRUCTIONS)?)
                .filter(|most| *most > 0),
            memory: number("PTXEMU_FREE_MEMORY", DEFAULT_MEMORY)?,
            devices: number("PTXEMU_DEVICES", 1)?,
            report: variable("PTXEMU_REPORT").map(PathBuf::from),
        })
    }
}

fn variable(name: &str) -> Option<String> {
    std::env::var_os(name).filter(|value| !value.is_empty()).map(|value| value.to_string_lossy().into_owned())
}

fn number<T: FromStr>(name: &str, default: T) -> Result<T, String> {
    variable(name)
        .map_or(Ok(default), |text| text.parse().map_err(|_| format!("{name}={text}: a number is expected")))
}

fn switch(name: &str, default: bool) -> Result<bool, String> {
    match variable(name).as_deref() {
        None => Ok(default),
        Some("1" | "on") => Ok(true),
        Some("0" | "off") => Ok(false),
        Some(text) => Err(format!("{name}={text}: on, off, 1 or 0 is expected")),
    }
}
