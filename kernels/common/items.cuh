// Launches over many values: a table in device memory has an item for each. An item says where its values
// lie, their `count`, and its first `block`; each of its blocks takes `share` elements. It has one at least.
#pragma once
#include "common/elements.cuh"

// The item of this block, which is the last that has begun. A block has as many threads as there are items,
// at least; all of them call it.
template <typename Item> __device__ inline Item item_of_block(const Item* __restrict__ items, u32 count) {
    const bool begun = threadIdx.x < count && items[threadIdx.x].block <= blockIdx.x;
    return items[__syncthreads_count(begun) - 1];
}

// So many neighbouring elements.
template <int N> struct Width {
    static constexpr int value = N;
};

// Calls `body` for the elements of this block, four neighbours at a time where there are so many: with the
// Width and the first. `share` is a multiple of 4, and values begin on 16 bytes.
template <u32 threads, u32 share, typename Item, typename F>
__device__ inline void for_elements(const Item& item, F body) {
    const u32 begin = (blockIdx.x - item.block) * share, end = min(begin + share, item.count);
    const u32 whole = end - end % 4;
    for (u32 at = begin + 4 * threadIdx.x; at < whole; at += 4 * threads) body(Width<4>{}, at);
    if (whole + threadIdx.x < end) body(Width<1>{}, whole + threadIdx.x);
}
