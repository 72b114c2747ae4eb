//! Launches over many values at once: a table in device memory says which blocks work on which.

use crate::cuda::launch::Arg;

/// The items of a launch, one after the other: `kernels/common/items.cuh`.
#[derive(Default)]
pub(crate) struct Items {
    /// What the table holds.
    table: Vec<Arg>,
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
    /// As [`Items::push`].
    pub(crate) fn new(share: u32, each: impl IntoIterator<Item = (Vec<Arg>, u32)>) -> Result<Items, String> {
        let mut items = Items::default();
        for (pointers, elements) in each {
            items.push(pointers, &[elements], elements.div_ceil(share).max(1))?;
        }
        Ok(items)
    }

    /// One more item: its pointers, its numbers, which the first of its `blocks` follows, one at least.
    ///
    /// # Errors
    /// A sentence, for more blocks than a grid has.
    pub(crate) fn push(
        &mut self,
        pointers: impl IntoIterator<Item = Arg>,
        numbers: &[u32],
        blocks: u32,
    ) -> Result<(), String> {
        self.table.extend(pointers);
        let numbers = [numbers, &[self.blocks]].concat();
        self.table.push(Arg::Struct(bytemuck::cast_slice(&numbers).to_vec()));
        self.count += 1;
        self.blocks = self.blocks.checked_add(blocks).ok_or("a launch has more than 4294967295 blocks")?;
        Ok(())
    }

    /// The table.
    pub(crate) fn table(self) -> Arg {
        Arg::Table(self.table)
    }
}
