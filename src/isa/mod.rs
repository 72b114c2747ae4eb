//! Run-time choice of the instruction set, and of the instructions for products of short numbers.
//!
//! Every fast path exists in a portable form; on x86-64 the same source is compiled again for wider
//! vectors and chosen once per process, on AArch64 for NEON, which every processor there has. Nothing here
//! depends on how the crate was compiled.

mod short;

pub use short::{Dot, Int8};

use std::fmt;
use std::sync::OnceLock;

/// Instruction sets that the CPU kernels are compiled for, worst first on each architecture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Isa {
    /// Plain Rust: whatever the compiler makes of it with what the target guarantees (SSE2 on x86-64).
    Portable,
    /// NEON with fused multiply-add. AArch64 alone.
    Neon,
    /// AVX2 with FMA. x86-64 alone.
    Avx2,
    /// AVX-512 F, VL, BW, DQ. x86-64 alone.
    Avx512,
}

impl Isa {
    /// Those of this architecture, worst first; a processor that has one has all before it.
    const HERE: &[Isa] = if cfg!(target_arch = "x86_64") {
        &[Isa::Portable, Isa::Avx2, Isa::Avx512]
    } else if cfg!(target_arch = "aarch64") {
        &[Isa::Portable, Isa::Neon]
    } else {
        &[Isa::Portable]
    };

    /// The best set this processor has. `KNET_ISA=portable|neon|avx2|avx512` lowers the choice (it never
    /// raises it above what the processor has).
    pub fn detect() -> Isa {
        static BEST: OnceLock<Isa> = OnceLock::new();
        *BEST.get_or_init(|| {
            let want = std::env::var("KNET_ISA").unwrap_or_default();
            Isa::available().into_iter().find(|isa| isa.name() == want).unwrap_or(Isa::hardware())
        })
    }

    /// All sets this processor has, worst first: what tests iterate over.
    pub fn available() -> Vec<Isa> {
        Isa::HERE.iter().copied().filter(|isa| isa.is_available()).collect()
    }

    /// Whether this processor has the set. Code for a set it lacks must never run.
    pub fn is_available(self) -> bool {
        Isa::HERE.contains(&self) && self <= Isa::hardware()
    }

    /// As `KNET_ISA` and bundles name it.
    const fn name(self) -> &'static str {
        match self {
            Isa::Portable => "portable",
            Isa::Neon => "neon",
            Isa::Avx2 => "avx2",
            Isa::Avx512 => "avx512",
        }
    }

    #[cfg(target_arch = "x86_64")]
    fn hardware() -> Isa {
        let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
        let avx512 = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq");
        match (avx2, avx512) {
            (true, true) => Isa::Avx512,
            (true, false) => Isa::Avx2,
            _ => Isa::Portable,
        }
    }

    /// What the architecture guarantees is all there is to know.
    #[cfg(not(target_arch = "x86_64"))]
    fn hardware() -> Isa {
        Isa::HERE[Isa::HERE.len() - 1]
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Compiles one function body for every [`Isa`] and dispatches on its first argument.
///
/// `simd! { pub fn f(isa, x: &[f32], y: &mut [f32]) { ... } }` defines `f(isa: Isa, x, y)`. The body must be
/// plain code that the compiler can vectorise; functions it calls must be `#[inline(always)]`. `f` may be
/// generic over types with one bound each: `fn f<E: Element>(isa, x: &[E])`. AArch64's compiler uses NEON in
/// all code, so the body is compiled once there.
macro_rules! simd {
    ($(#[$meta:meta])* $vis:vis fn $name:ident $(<$($generic:ident : $bound:path),+>)? (
        isa $(, $arg:ident : $ty:ty)* $(,)?
    ) $(-> $ret:ty)? $body:block) => {
        $(#[$meta])*
        #[allow(clippy::too_many_arguments)]
        $vis fn $name $(<$($generic: $bound),+>)? (isa: $crate::isa::Isa $(, $arg: $ty)*) $(-> $ret)? {
            #[inline(always)]
            #[allow(clippy::too_many_arguments)]
            fn body $(<$($generic: $bound),+>)? ($($arg: $ty),*) $(-> $ret)? $body
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            #[allow(clippy::too_many_arguments)]
            fn avx2 $(<$($generic: $bound),+>)? ($($arg: $ty),*) $(-> $ret)? { body($($arg),*) }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx2,fma")]
            #[allow(clippy::too_many_arguments)]
            fn avx512 $(<$($generic: $bound),+>)? ($($arg: $ty),*) $(-> $ret)? { body($($arg),*) }
            match isa {
                // SAFETY: callers pass `Isa::detect()` or what an executor was made with, and
                // `Executor::new` refuses a set that this processor lacks.
                #[cfg(target_arch = "x86_64")]
                $crate::isa::Isa::Avx512 => unsafe { avx512($($arg),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                $crate::isa::Isa::Avx2 => unsafe { avx2($($arg),*) },
                _ => body($($arg),*),
            }
        }
    };
}
pub(crate) use simd;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_are_those_of_this_architecture() {
        let sets = Isa::available();
        assert_eq!(sets[0], Isa::Portable);
        assert!(sets.is_sorted() && sets.contains(&Isa::detect()));
        assert_eq!(sets.contains(&Isa::Neon), cfg!(target_arch = "aarch64"));
        assert!(cfg!(target_arch = "x86_64") || !(Isa::Avx2.is_available() || Isa::Avx512.is_available()));
    }
}
