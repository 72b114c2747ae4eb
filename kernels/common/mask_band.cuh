// A band of BAND rows of a bit mask that a block makes, in the layout of src/image/bitmask.rs: rows follow
// each other without alignment, the first pixel in the top bit of a byte. 32 rows are a whole number of
// words, so that the bands of a mask share none.
//
// Bits are collected in shared memory, the first pixel in the lowest bit of a word, by integer OR, which
// knows no order, and written as words. Each band also leaves its number of pixels and their extent.
#pragma once
#include "common/storage.cuh"

#define BAND 32

// What a band adds to its mask; left > right if it has no pixel.
struct Summary {
    u32 area;
    u32 left, right;
    u32 top, bottom;
};

__device__ inline Summary nothing() { return Summary{0, 0xffffffffu, 0, 0xffffffffu, 0}; }

// Of a band from row `top` of the photo on, which is `width` pixels wide: adds those of 32 neighbours
// whose bits are set, from column `from` of row `row` of the band on. One lane calls it for its warp.
__device__ inline void add_pixels(u32 ballot, u32 from, u32 row, u32 top, u32 width, u32* bits,
                                  Summary& summary) {
    const u32 place = row * width + from;
    const u32 high = place % 32 == 0 ? 0 : ballot >> (32 - place % 32);
    atomicOr(&bits[place / 32], ballot << place % 32);
    if (high != 0) atomicOr(&bits[place / 32 + 1], high);
    atomicMin(&summary.left, from + __ffs(ballot) - 1);
    atomicMax(&summary.right, from + 31 - __clz(ballot));
    atomicMin(&summary.top, top + row);
    atomicMax(&summary.bottom, top + row);
}

// Writes a band's words to its place in the mask, and counts its pixels. `host`, if it is not null, is
// page-locked memory of the host that takes a second copy of bands with pixels alone: most bands of most
// masks have none, and the bus to the host is a hundred times slower than device memory. The whole block,
// of `threads`, calls it.
__device__ inline void write_band(const u32* bits, u32 words, u32 thread, u32 threads, u32* mask, u32* host,
                                  Summary& summary, Summary* to) {
    // First pixel from the lowest bit of the word to the top bit of its first byte.
    const auto packed = [&](u32 i) { return __byte_perm(__brev(bits[i]), 0, 0x0123); };
    u32 area = 0;
    for (u32 i = thread; i < words; i += threads) {
        area += __popc(bits[i]);
        mask[i] = packed(i);
    }
    if (area != 0) atomicAdd(&summary.area, area);
    __syncthreads();
    if (host && summary.area != 0) {
        for (u32 i = thread; i < words; i += threads) host[i] = packed(i);
    }
    if (thread == 0) *to = summary;
}
