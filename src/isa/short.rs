//! Instructions for products of numbers that are shorter than f32.

use super::Isa;
use std::fmt;
use std::sync::OnceLock;

/// Instructions that multiply bf16 and add in f32, worst first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Dot {
    /// None: a plain loop, which is slower than f32. For tests.
    Portable,
    /// AVX-512 BF16: pairs in vectors.
    Avx512,
    /// AMX BF16: tiles.
    Amx,
}

impl Dot {
    /// The best this processor has, `None` for the plain loop. What `KNET_ISA` excludes is not taken:
    /// `KNET_ISA=avx512` leaves AMX out.
    pub fn detect() -> Option<Dot> {
        static BEST: OnceLock<Option<Dot>> = OnceLock::new();
        *BEST.get_or_init(|| {
            let most = match std::env::var("KNET_ISA").as_deref() {
                Ok("portable" | "avx2") => Dot::Portable,
                Ok("avx512") => Dot::Avx512,
                _ => Dot::Amx,
            };
            let best = Dot::hardware().min(most);
            (best > Dot::Portable).then_some(best)
        })
    }

    /// Whether products of bf16 are sure to be faster than those of f32. Of AVX-512 BF16 they are not: a Xeon
    /// with it makes half as many of its products as of f32's in the same time.
    pub fn pays(self) -> bool {
        self == Dot::Amx
    }

    /// All that run here, worst first: what tests iterate over.
    pub fn available() -> Vec<Dot> {
        [Dot::Portable, Dot::Avx512, Dot::Amx].into_iter().filter(|dot| dot.is_available()).collect()
    }

    /// Whether this processor has the instructions, and the system lets the process use them.
    pub fn is_available(self) -> bool {
        self <= Dot::hardware()
    }

    #[cfg(target_arch = "x86_64")]
    fn hardware() -> Dot {
        static HARDWARE: OnceLock<Dot> = OnceLock::new();
        *HARDWARE.get_or_init(|| {
            if !Isa::Avx512.is_available() || !is_x86_feature_detected!("avx512bf16") {
                return Dot::Portable;
            }
            if has_amx() { Dot::Amx } else { Dot::Avx512 }
        })
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn hardware() -> Dot {
        Dot::Portable
    }
}

impl fmt::Display for Dot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Dot::Portable => "portable",
            Dot::Avx512 => "avx512_bf16",
            Dot::Amx => "amx",
        })
    }
}

/// Instructions that multiply 8-bit integers, unsigned by signed, and add in i32, worst first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Int8 {
    /// None: a plain loop, which is slower than f32. For tests.
    Portable,
    /// AVX-VNNI: fours in vectors of 256 bits, of processors without AVX-512 too.
    AvxVnni,
    /// AVX-512 VNNI: fours in vectors of 512 bits.
    Avx512,
    /// AMX INT8: tiles.
    Amx,
}

impl Int8 {
    const ALL: [Int8; 4] = [Int8::Portable, Int8::AvxVnni, Int8::Avx512, Int8::Amx];

    /// The best this processor has, `None` for the plain loop. What `KNET_ISA` excludes is not taken:
    /// `KNET_ISA=avx512` leaves AMX out, `KNET_ISA=avx2` AVX-512 VNNI too.
    pub fn detect() -> Option<Int8> {
        static BEST: OnceLock<Option<Int8>> = OnceLock::new();
        *BEST.get_or_init(|| {
            let most = match std::env::var("KNET_ISA").as_deref() {
                Ok("portable") => Int8::Portable,
                Ok("avx2") => Int8::AvxVnni,
                Ok("avx512") => Int8::Avx512,
                _ => Int8::Amx,
            };
            let found = Int8::available().into_iter().rfind(|&engine| engine <= most);
            found.filter(|&engine| engine > Int8::Portable)
        })
    }

    /// All that run here, worst first: what tests iterate over.
    pub fn available() -> Vec<Int8> {
        Int8::ALL.into_iter().filter(|engine| engine.is_available()).collect()
    }

    /// Whether this processor has the instructions, and the system lets the process use them.
    #[cfg(target_arch = "x86_64")]
    pub fn is_available(self) -> bool {
        match self {
            Int8::Portable => true,
            Int8::AvxVnni => Isa::Avx2.is_available() && is_x86_feature_detected!("avxvnni"),
            Int8::Avx512 => Isa::Avx512.is_available() && is_x86_feature_detected!("avx512vnni"),
            // Every processor with tiles multiplies both, and AVX-512 BF16 finishes what tiles began.
            Int8::Amx => Dot::Amx.is_available(),
        }
    }

    /// Whether this processor has the instructions, and the system lets the process use them.
    #[cfg(not(target_arch = "x86_64"))]
    pub fn is_available(self) -> bool {
        self == Int8::Portable
    }
}

impl fmt::Display for Int8 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Int8::Portable => "portable",
            Int8::AvxVnni => "avx_vnni",
            Int8::Avx512 => "avx512_vnni",
            Int8::Amx => "amx",
        })
    }
}

/// Whether the processor multiplies tiles of bf16 and of 8-bit integers, and Linux grants this process their
/// registers, which it does for those that ask.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn has_amx() -> bool {
    use std::arch::x86_64::{__cpuid, __cpuid_count};
    const BF16: u32 = 1 << 22;
    const TILE: u32 = 1 << 24;
    const INT8: u32 = 1 << 25;
    const ALL: u32 = BF16 | TILE | INT8;
    const ARCH_REQ_XCOMP_PERM: libc::c_int = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_ulong = 18;
    // SAFETY: every 64-bit processor has the instruction.
    #[allow(unused_unsafe)]
    let features = unsafe { if __cpuid(0).eax < 7 { 0 } else { __cpuid_count(7, 0).edx } };
    // SAFETY: asks for a permission; the system refuses what it does not know.
    let granted =
        || unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 };
    features & ALL == ALL && granted()
}

#[cfg(all(target_arch = "x86_64", not(target_os = "linux")))]
fn has_amx() -> bool {
    false
}
