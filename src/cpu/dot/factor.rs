//! What is multiplied: bf16, or codes of 8-bit levels.

use super::conv::lines;
use super::layout::Taps;
use super::points::gather;
use super::{COLS, DotConv, Job, STEP, Sums, pack, portable, with};
use crate::cpu::element::Element;
use crate::isa::{Dot, Int8, Isa};
use crate::ops::levels::{Levels, Rule};
use bytemuck::Pod;
use half::bf16;
use std::fmt;
use std::ops::Range;

/// The left side of a product, as engines read it.
pub(crate) trait Factor: Pod + Send + Sync {
    /// As the right side is stored, in as many bytes.
    type Right: Pod + Send + Sync;
    /// Instructions that multiply them.
    type Dot: Copy + fmt::Debug + Send + Sync;
    /// How numbers become factors.
    type Rule: Copy + fmt::Debug + Send + Sync;

    /// Factors of a step.
    const PER_STEP: usize = STEP / size_of::<Self>();
    /// Factors of a row that one instruction multiplies and adds.
    const GROUP: usize = 4 / size_of::<Self>();
    /// Panels that a tile's fields meet before its sums are stored: as many as fill a cache line of results.
    const ABREAST: usize = STEP / COLS / size_of::<Self>();
    /// Floats of a panel's column beside its factors.
    const BESIDE: usize;

    /// What stands for 0.
    fn zero(rule: Self::Rule) -> Self;

    /// Runs `job` with an engine for these instructions, which the processor has (`Selection::check`).
    fn on(dot: Self::Dot, job: impl Job<Self>);

    /// Packs KRSC filters: panels, then what else there is of each column.
    fn pack(conv: &DotConv<Self>, filter: &[f32], packed: &mut [f32]);

    /// What the sums of products with packed filters are.
    fn sums<'a>(conv: &DotConv<Self>, packed: &'a [f32]) -> Sums<'a>;
}

impl Factor for bf16 {
    type Right = bf16;
    type Dot = Dot;
    type Rule = ();

    const BESIDE: usize = 0;

    fn zero((): ()) -> bf16 {
        bf16::ZERO
    }

    fn on(dot: Dot, job: impl Job<bf16>) {
        match dot {
            #[cfg(target_arch = "x86_64")]
            Dot::Amx => with::<bf16, super::amx::Amx>(job),
            #[cfg(target_arch = "x86_64")]
            Dot::Avx512 => with::<bf16, super::avx512::Bf16>(job),
            _ => with::<bf16, portable::Portable>(job),
        }
    }

    fn pack(conv: &DotConv<bf16>, filter: &[f32], packed: &mut [f32]) {
        let panels = bytemuck::cast_slice_mut(packed);
        pack::filters::<bf16>(filter, conv.shape.c_out, &conv.taps(), panels, |_, value| bf16::narrow(value));
    }

    fn sums<'a>(_: &DotConv<bf16>, _: &'a [f32]) -> Sums<'a> {
        Sums::F32
    }
}

/// Codes without a sign meet levels of filters, which have one; sums are i32.
impl Factor for u8 {
    type Right = i8;
    type Dot = Int8;
    type Rule = Rule;

    /// The filter's step, and the sum of its levels.
    const BESIDE: usize = 2;

    fn zero(rule: Rule) -> u8 {
        rule.zero
    }

    fn on(dot: Int8, job: impl Job<u8>) {
        match dot {
            #[cfg(target_arch = "x86_64")]
            Int8::Amx => with::<u8, super::amx::Amx>(job),
            #[cfg(target_arch = "x86_64")]
            Int8::Avx512 => with::<u8, super::avx512::Vnni>(job),
            #[cfg(target_arch = "x86_64")]
            Int8::AvxVnni => with::<u8, super::avx_vnni::AvxVnni>(job),
            _ => with::<u8, portable::Portable>(job),
        }
    }

    /// Each filter has levels of its own, which reach as far as it does. Behind the panels come the filters'
    /// steps, and the sums of their levels.
    fn pack(conv: &DotConv<u8>, filter: &[f32], packed: &mut [f32]) {
        let (c_out, taps) = (conv.shape.c_out, conv.taps());
        let (panels, beside) = packed.split_at_mut(conv.panels_len());
        let (steps, sums) = beside.split_at_mut(beside.len() / 2);
        let sums: &mut [i32] = bytemuck::cast_slice_mut(sums);
        steps.fill(0.0);
        sums.fill(0);
        let filters = filter.chunks_exact(taps.depth().max(1));
        for ((filter, step), sum) in filters.take(c_out).zip(&mut *steps).zip(&mut *sums) {
            let levels = Levels::of_filter(filter);
            *step = levels.step;
            *sum = filter.iter().map(|&value| levels.level(value) as i32).sum();
        }
        let panels = bytemuck::cast_slice_mut(panels);
        pack::filters::<u8>(filter, c_out, &taps, panels, |k, value| {
            Levels { step: steps[k], signed: true }.level(value) as i8
        });
    }

    fn sums<'a>(conv: &DotConv<u8>, packed: &'a [f32]) -> Sums<'a> {
        let beside = &packed[conv.panels_len()..];
        let (steps, sums) = beside.split_at(beside.len() / 2);
        let (step, zero) = (conv.rule.step, i32::from(conv.rule.zero));
        Sums::I32 { step, zero, steps, sums: bytemuck::cast_slice(sums) }
    }
}

/// Stored values that become factors.
pub(crate) trait Read<F: Factor>: Pod + Send + Sync {
    /// Writes values as factors, and zeros behind them.
    fn read(x: &[Self], to: &mut [F], rule: F::Rule);

    /// The values, if they are factors as they lie.
    fn factors(_: &[Self]) -> Option<&[F]> {
        None
    }
}

/// A map of values that become factors, whatever they are stored as: what multiplies factors is compiled once
/// for all of them.
pub(super) trait Map<F: Factor>: Sync {
    /// The map, if its values are factors as they lie.
    fn factors(&self) -> Option<&[F]>;

    /// Writes the rows that rows `units` of an image's outputs read, with the padding around them.
    fn lines(
        &self,
        isa: Isa,
        conv: &DotConv<F>,
        taps: &Taps,
        image: usize,
        units: Range<usize>,
        band: &mut [F],
    );

    /// Copies steps of the pixels of at most a tile's outputs to rows that lie so far apart.
    fn gather(
        &self,
        isa: Isa,
        conv: &DotConv<F>,
        outputs: Range<usize>,
        steps: Range<usize>,
        fields: &mut [F],
        pitch: usize,
    );
}

impl<F: Factor, X: Read<F>> Map<F> for &[X] {
    fn factors(&self) -> Option<&[F]> {
        X::factors(self)
    }

    fn lines(
        &self,
        isa: Isa,
        conv: &DotConv<F>,
        taps: &Taps,
        image: usize,
        units: Range<usize>,
        band: &mut [F],
    ) {
        lines::<F, X>(isa, conv, taps, self, image, units, band);
    }

    fn gather(
        &self,
        isa: Isa,
        conv: &DotConv<F>,
        outputs: Range<usize>,
        steps: Range<usize>,
        fields: &mut [F],
        pitch: usize,
    ) {
        gather::<F, X>(isa, conv, self, outputs, steps, fields, pitch);
    }
}

impl Read<bf16> for bf16 {
    #[inline(always)]
    fn read(x: &[bf16], to: &mut [bf16], (): ()) {
        let (to, rest) = to.split_at_mut(x.len());
        to.copy_from_slice(x);
        rest.fill(bf16::ZERO);
    }

    fn factors(x: &[bf16]) -> Option<&[bf16]> {
        Some(x)
    }
}

impl Read<bf16> for f32 {
    #[inline(always)]
    fn read(x: &[f32], to: &mut [bf16], (): ()) {
        let (to, rest) = to.split_at_mut(x.len());
        to.iter_mut().zip(x).for_each(|(to, x)| *to = bf16::narrow(*x));
        rest.fill(bf16::ZERO);
    }
}

#[inline(always)]
fn encode<E: Element>(x: &[E], to: &mut [u8], rule: Rule) {
    let (to, rest) = to.split_at_mut(x.len());
    // Of few the compiler would make single ones.
    let few = if x.len() < 64 { x.len() / 8 * 8 } else { 0 };
    for (to, x) in to[..few].as_chunks_mut::<8>().0.iter_mut().zip(x[..few].as_chunks::<8>().0) {
        for at in 0..8 {
            to[at] = rule.code(x[at].widen());
        }
    }
    to[few..].iter_mut().zip(&x[few..]).for_each(|(to, x)| *to = rule.code(x.widen()));
    rest.fill(rule.zero);
}

impl Read<u8> for bf16 {
    #[inline(always)]
    fn read(x: &[bf16], to: &mut [u8], rule: Rule) {
        encode(x, to, rule);
    }
}

impl Read<u8> for f32 {
    #[inline(always)]
    fn read(x: &[f32], to: &mut [u8], rule: Rule) {
        encode(x, to, rule);
    }
}

/// Codes of the same levels.
impl Read<u8> for u8 {
    #[inline(always)]
    fn read(x: &[u8], to: &mut [u8], rule: Rule) {
        let (to, rest) = to.split_at_mut(x.len());
        to.copy_from_slice(x);
        rest.fill(rule.zero);
    }

    fn factors(x: &[u8]) -> Option<&[u8]> {
        Some(x)
    }
}

/// What results are stored as.
pub(crate) trait Store: Pod + Send + Sync {
    /// Whether it is bf16.
    const BF16: bool = false;
    /// Whether it is a code of a level.
    const CODE: bool = false;

    /// A number, brought to the nearest of `levels` first if there are any. A code needs them.
    fn store(value: f32, levels: Option<Rule>) -> Self;
}

#[inline(always)]
fn leveled(value: f32, levels: Option<Rule>) -> f32 {
    levels.map_or(value, |levels| levels.level(value) * levels.step)
}

impl Store for f32 {
    #[inline(always)]
    fn store(value: f32, levels: Option<Rule>) -> f32 {
        leveled(value, levels)
    }
}

impl Store for bf16 {
    const BF16: bool = true;

    #[inline(always)]
    fn store(value: f32, levels: Option<Rule>) -> bf16 {
        bf16::narrow(leveled(value, levels))
    }
}

impl Store for u8 {
    const CODE: bool = true;

    #[inline(always)]
    fn store(value: f32, levels: Option<Rule>) -> u8 {
        levels.map_or(0, |levels| levels.code(value))
    }
}
