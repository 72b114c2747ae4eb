//! Memory on cache-line boundaries.

use memmap2::MmapMut;

use crate::error::{Error, Result};
use crate::memory;
use crate::plan::arena::ALIGNMENT;

/// Floats on a cache-line boundary (a page's, indeed), zero at first, in huge pages where the system has
/// them: kernels walk many rows far apart, and every one of them would cost a TLB entry of its own.
pub struct AlignedBuffer {
    /// None for no floats, as no mapping is empty.
    map: Option<MmapMut>,
    len: usize,
}

impl AlignedBuffer {
    /// `len` zeros. Memory comes zeroed from the system, so that pages never written are never resident.
    ///
    /// # Errors
    /// [`Error::Memory`] if the system gives none.
    pub fn new(len: usize) -> Result<Self> {
        if len == 0 {
            return Ok(AlignedBuffer { map: None, len });
        }
        let bytes = len.saturating_mul(size_of::<f32>());
        let map = MmapMut::map_anon(bytes).map_err(|_| Error::Memory {
            what: "a buffer".into(),
            needed: bytes as u64,
            available: memory::available(),
        })?;
        // A refusal costs speed alone.
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        debug_assert!(map.as_ptr().addr().is_multiple_of(ALIGNMENT));
        Ok(AlignedBuffer { map: Some(map), len })
    }

    /// The floats.
    pub fn as_slice(&self) -> &[f32] {
        self.map.as_ref().map_or(&[], |map| &bytemuck::cast_slice(map)[..self.len])
    }

    /// The floats, for writing.
    pub fn as_mut_slice(&mut self) -> &mut [f32] {
        self.map.as_mut().map_or(&mut [], |map| &mut bytemuck::cast_slice_mut(map)[..self.len])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_beyond_the_address_space_is_an_error() {
        let error = AlignedBuffer::new(1 << 58).err().expect("an error");
        assert_eq!(error.kind(), crate::ErrorKind::Memory);
    }
}
