//! Launches over many values at once: a table in device memory says which blocks work on which.

use crate::cuda::launch::Arg;

/// The items of a launch, one after the other: `kernels/common/items.cuh`.
pub(crate) struct Items {
    /// The table.
    pub(crate) table: Arg,
    /// How many.
    pub(crate) count: u32,
    /// Blocks of all.
    pub(crate) blocks: u32,
}

impl Items {
    /// Items of these pointers and numbers of elements, of which a block takes `share`. Each has one block at
    /// least.
    ///
    /// # Errors
    /// A sentence, for more blocks than a grid has.
    pub(crate) fn new(share: u32, items: impl IntoIterator<Item = (Vec<Arg>, u32)>) -> Result<Items, String> {
        let (mut table, mut count, mut blocks) = (Vec::new(), 0, 0u32);
        for (pointers, elements) in items {
            table.extend(pointers);
            table.push(Arg::of(&[elements, blocks]));
            count += 1;
            let own = elements.div_ceil(share).max(1);
            blocks = blocks.checked_add(own).ok_or("a launch has more than 4294967295 blocks")?;
        }
        Ok(Items { table: Arg::Table(table), count, blocks })
    }
}
