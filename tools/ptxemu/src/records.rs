//! Who used which bytes of device memory in the running launch: the basis of the check for races between
//! blocks.
//!
//! A record is `epoch << 24 | bytes << 20 | block`: the launch, the bytes of the word (all, for sectors), and
//! the block, or [`MANY`] readers. Accesses that cover whole 32-byte sectors, nearly all of them, are
//! recorded by sector; the rest by 4-byte word, and a flag per page tells whether any word record of this
//! launch is there to look at. Records are relaxed atomics: blocks run in parallel, and two accesses at the
//! very same moment may miss each other.

use std::sync::atomic::{AtomicU8, AtomicU32, Ordering::Relaxed};

use memmap2::{MmapMut, MmapOptions, UncheckedAdvice};

/// Block number that stands for several readers.
pub(crate) const MANY: u32 = (1 << 20) - 1;
/// Launches between clearings.
pub(crate) const EPOCHS: u32 = 255;
const BYTES_SHIFT: u32 = 20;
const EPOCH_SHIFT: u32 = 24;
const ALL_BYTES: u32 = 15 << BYTES_SHIFT;
const SECTOR: u64 = 32;
const PAGE: u64 = 4096;

/// What the blocks of the current launch did, readers and writers apart.
pub(crate) struct Records {
    readers: Side,
    writers: Side,
}

struct Side {
    sectors: MmapMut,
    words: MmapMut,
    /// Epoch of the last word record in each page.
    pages: MmapMut,
}

/// The party of a launch: its epoch and a block.
#[derive(Clone, Copy)]
pub(crate) struct Party(u32);

impl Party {
    /// Blocks beyond a million share numbers: races between those that do are missed.
    pub fn new(epoch: u32, block: u64) -> Party {
        Party(epoch << EPOCH_SHIFT | tag(block))
    }
}

/// The number a block is recorded by.
pub(crate) fn tag(block: u64) -> u32 {
    (block % u64::from(MANY)) as u32
}

/// Another block's access to the same bytes.
pub(crate) struct Conflict {
    /// Offset of a byte both used.
    pub at: u64,
    /// Whether the other access was a read.
    pub read: bool,
    /// The other block's number, or [`MANY`].
    pub block: u32,
}

/// A piece of an access: a whole sector, or bytes of a word.
enum Piece {
    Sector(u64),
    Word(u64, u32),
}

/// Cuts a range into pieces.
#[inline(always)]
fn pieces(at: u64, len: u64) -> impl Iterator<Item = Piece> {
    let (mut at, end) = (at, at + len);
    std::iter::from_fn(move || {
        if at >= end {
            return None;
        }
        if at & (SECTOR - 1) == 0 && end - at >= SECTOR {
            at += SECTOR;
            return Some(Piece::Sector(at / SECTOR - 1));
        }
        let word = at / 4;
        let stop = end.min(word * 4 + 4);
        let bytes = (15 << (at & 3) & 15) & (15 >> (word * 4 + 4 - stop));
        at = stop;
        Some(Piece::Word(word, bytes << BYTES_SHIFT))
    })
}

impl Side {
    fn new(size: u64) -> std::io::Result<Side> {
        let map = |bytes: u64| {
            let len = usize::try_from(bytes).map_err(std::io::Error::other)?;
            MmapOptions::new().len(len).no_reserve_swap().map_anon()
        };
        Ok(Side { sectors: map(size / SECTOR * 4)?, words: map(size)?, pages: map(size / PAGE)? })
    }

    #[inline(always)]
    fn sector(&self, sector: u64) -> &AtomicU32 {
        // SAFETY: callers pass sectors of ranges inside the memory that the maps were sized for; maps are
        // page-aligned, and only accessed atomically while a launch runs.
        unsafe {
            AtomicU32::from_ptr(self.sectors.as_ptr().wrapping_add(sector as usize * 4).cast_mut().cast())
        }
    }

    #[inline(always)]
    fn word(&self, word: u64) -> &AtomicU32 {
        // SAFETY: as in `sector`.
        unsafe { AtomicU32::from_ptr(self.words.as_ptr().wrapping_add(word as usize * 4).cast_mut().cast()) }
    }

    #[inline(always)]
    fn page(&self, at: u64) -> &AtomicU8 {
        // SAFETY: as in `sector`.
        unsafe { AtomicU8::from_ptr(self.pages.as_ptr().wrapping_add((at / PAGE) as usize).cast_mut()) }
    }

    /// Whether the page of `at` has word records of this launch.
    #[inline(always)]
    fn has_words(&self, at: u64, me: Party) -> bool {
        u32::from(self.page(at).load(Relaxed)) == me.0 >> EPOCH_SHIFT
    }

    /// Another block's record that overlaps a whole sector.
    #[inline(always)]
    fn in_sector(&self, sector: u64, me: Party) -> Option<(u64, u32)> {
        let at = sector * SECTOR;
        let record = self.sector(sector).load(Relaxed);
        if conflicts(record, me, ALL_BYTES) {
            return Some((at, record & MANY));
        }
        if self.has_words(at, me) { self.in_words(at, me) } else { None }
    }

    #[cold]
    fn in_words(&self, at: u64, me: Party) -> Option<(u64, u32)> {
        let records = (at / 4..at / 4 + SECTOR / 4).map(|w| (w, self.word(w).load(Relaxed)));
        let mut found = records.filter(|r| conflicts(r.1, me, ALL_BYTES));
        found.next().map(|(word, record)| (word * 4 + first_byte(record), record & MANY))
    }

    /// Another block's record that overlaps bytes of a word.
    fn in_word(&self, word: u64, bytes: u32, me: Party) -> Option<(u64, u32)> {
        let at = word * 4;
        let whole = self.sector(at / SECTOR).load(Relaxed);
        if conflicts(whole, me, ALL_BYTES) {
            return Some((at + first_byte(bytes), whole & MANY));
        }
        let record = self.word(word).load(Relaxed);
        conflicts(record, me, bytes).then(|| (at + first_byte(record & bytes), record & MANY))
    }
}

fn first_byte(bytes: u32) -> u64 {
    u64::from((bytes >> BYTES_SHIFT).trailing_zeros() & 3)
}

/// Whether a record is of this launch, another block's, and about some of `bytes`.
#[inline(always)]
fn conflicts(record: u32, me: Party, bytes: u32) -> bool {
    let differs = record ^ me.0;
    differs >> EPOCH_SHIFT == 0 && differs & MANY != 0 && record & bytes != 0
}

/// Adds a reader to a record.
#[inline(always)]
fn add_reader(cell: &AtomicU32, me: Party, bytes: u32) {
    let old = cell.load(Relaxed);
    let differs = old ^ me.0;
    let new = if differs >> EPOCH_SHIFT != 0 {
        me.0 | bytes
    } else if differs & MANY != 0 {
        me.0 | MANY | old & ALL_BYTES | bytes
    } else {
        old | bytes
    };
    if new != old {
        cell.store(new, Relaxed);
    }
}

impl Records {
    /// Maps for `size` bytes of memory.
    pub fn new(size: u64) -> std::io::Result<Records> {
        Ok(Records { readers: Side::new(size)?, writers: Side::new(size)? })
    }

    /// Forgets everything. No launch may be running.
    pub fn clear(&self) {
        for side in [&self.readers, &self.writers] {
            for map in [&side.sectors, &side.words, &side.pages] {
                // SAFETY: nobody looks at the records between launches; they read as zero from here on.
                let advice = unsafe { map.unchecked_advise(UncheckedAdvice::DontNeed) };
                // Stale records could only bring false alarms, which their epoch makes 255 launches old.
                drop(advice);
            }
        }
    }

    /// Notes a read of a range inside the memory.
    #[inline(always)]
    pub fn read(&self, at: u64, len: u64, me: Party) -> Result<(), Conflict> {
        for piece in pieces(at, len) {
            let found = match piece {
                Piece::Sector(sector) => {
                    add_reader(self.readers.sector(sector), me, ALL_BYTES);
                    self.writers.in_sector(sector, me)
                }
                Piece::Word(word, bytes) => {
                    add_reader(self.readers.word(word), me, bytes);
                    self.readers.page(word * 4).store((me.0 >> EPOCH_SHIFT) as u8, Relaxed);
                    self.writers.in_word(word, bytes, me)
                }
            };
            if let Some((at, block)) = found {
                return Err(Conflict { at, read: false, block });
            }
        }
        Ok(())
    }

    /// Notes a write of a range inside the memory, unless it conflicts.
    #[inline(always)]
    pub fn write(&self, at: u64, len: u64, me: Party) -> Result<(), Conflict> {
        for piece in pieces(at, len) {
            let found = |side: &Side| match piece {
                Piece::Sector(sector) => side.in_sector(sector, me),
                Piece::Word(word, bytes) => side.in_word(word, bytes, me),
            };
            if let Some((at, block)) = found(&self.writers) {
                return Err(Conflict { at, read: false, block });
            }
            if let Some((at, block)) = found(&self.readers) {
                return Err(Conflict { at, read: true, block });
            }
            self.put(piece, me);
        }
        Ok(())
    }

    fn put(&self, piece: Piece, me: Party) {
        match piece {
            Piece::Sector(sector) => self.writers.sector(sector).store(me.0 | ALL_BYTES, Relaxed),
            Piece::Word(word, bytes) => {
                let cell = self.writers.word(word);
                let old = cell.load(Relaxed);
                let same = (old ^ me.0) & !ALL_BYTES == 0;
                cell.store(if same { old | bytes } else { me.0 | bytes }, Relaxed);
                self.writers.page(word * 4).store((me.0 >> EPOCH_SHIFT) as u8, Relaxed);
            }
        }
    }

    /// Notes a write that an atomic has ordered after what others did there: their records go.
    #[cold]
    pub fn force_write(&self, at: u64, len: u64, me: Party) {
        for piece in pieces(at, len) {
            let (sector, words) = match piece {
                Piece::Sector(sector) => (sector, sector * 8..sector * 8 + 8),
                Piece::Word(word, _) => (word / 8, word..word + 1),
            };
            for side in [&self.readers, &self.writers] {
                side.sector(sector).store(0, Relaxed);
                words.clone().for_each(|w| side.word(w).store(0, Relaxed));
            }
            self.put(piece, me);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Byte-exact reference: who read and wrote each byte.
    #[derive(Default)]
    struct Exact {
        readers: std::collections::HashMap<u64, Vec<u64>>,
        writers: std::collections::HashMap<u64, Vec<u64>>,
    }

    #[test]
    fn conflicts_are_those_of_single_bytes() {
        let mut state = 88172645463325252_u64;
        let mut random = |bound: u64| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 11) % bound
        };
        let records = Records::new(1 << 20).expect("address space");
        let mut found = 0;
        for epoch in 1..200 {
            let mut exact = Exact::default();
            for _ in 0..12 {
                let (block, at, write) = (random(3), random(200), random(3) == 0);
                let len = [1, 2, 4, 16, 32, 64, 100][random(7) as usize];
                let me = Party::new(epoch, block);
                let others = |map: &std::collections::HashMap<u64, Vec<u64>>| {
                    (at..at + len).any(|b| map.get(&b).is_some_and(|l| l.iter().any(|o| *o != block)))
                };
                let wanted = others(&exact.writers) || write && others(&exact.readers);
                let result = if write { records.write(at, len, me) } else { records.read(at, len, me) };
                // Words keep one writer, so a conflict with a byte of an earlier writer may be missed; none
                // may be invented.
                assert!(wanted || result.is_ok(), "false conflict at {at}, {len} bytes");
                if let Err(conflict) = result {
                    assert!((at..at + len).contains(&conflict.at));
                    let map = if conflict.read { &exact.readers } else { &exact.writers };
                    assert!(map.contains_key(&conflict.at));
                    found += 1;
                    break;
                }
                assert!(
                    !wanted || len < 4 || at % 4 != 0 || len % 4 != 0,
                    "missed conflict at {at}, {len} bytes"
                );
                let map = if write { &mut exact.writers } else { &mut exact.readers };
                for b in at..at + len {
                    map.entry(b).or_default().push(block);
                }
                if wanted {
                    break;
                }
            }
        }
        assert!(found > 50, "{found}");
        records.clear();
        assert!(records.write(0, 300, Party::new(1, 9)).is_ok());
    }
}
