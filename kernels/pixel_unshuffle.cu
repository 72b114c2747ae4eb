// y[b, p, q, (c F + i) F + j] = x[b, p F + i, q F + j, c], zeros beyond the map: blocks of F x F pixels as
// channels of one, NHWC. `pixel_shuffle` is the way back: what it writes is x, what it reads y.
//
// One thread VECTOR channels of one pixel of the result (16 bytes where rows are whole chunks, else 1), whose
// elements come of F * F pixels and neighbouring channels: for F = 2 a warp reads whole segments of each of
// the four pixels, as it writes whole segments. blockIdx.x walks columns and channels of one row of the
// result, blockIdx.y rows, blockIdx.z images. Bits are moved as they are: each is read and written once, (x +
// y) * UNIT bytes, no FLOPs.
//
// Defines: UNIT (bytes of an element: 2 or 4), VECTOR, FACTOR.
#include "common/divisor.cuh"
#include "common/elements.cuh"

template <int bytes> struct Unit;
template <> struct Unit<2> { typedef u16 type; };
template <> struct Unit<4> { typedef u32 type; };
typedef Unit<UNIT>::type unit_t;

struct Params {
    u32 height, width, channels;  // of x
    u32 out_height, out_width;
    u32 out_channels;
    u32 vectors;  // of one pixel of what is written
    Divisor by_vectors;
};

__device__ inline void store(u16* to, const u16 (&y)[1]) { *to = y[0]; }
__device__ inline void store(u32* to, const u32 (&y)[1]) { *to = y[0]; }
__device__ inline void store(u32* to, const u32 (&y)[4]) {
    store_global_chunk(to, Chunk{{y[0], y[1], y[2], y[3]}});
}
__device__ inline void store(u16* to, const u16 (&y)[8]) {
    Chunk chunk;
#pragma unroll
    for (int i = 0; i < 4; ++i) chunk.word[i] = u32(y[2 * i]) | u32(y[2 * i + 1]) << 16;
    store_global_chunk(to, chunk);
}

extern "C" __global__ void pixel_unshuffle(const unit_t* __restrict__ x, unit_t* __restrict__ y,
                                           const Params p) {
    const u32 at = blockIdx.x * blockDim.x + threadIdx.x;
    const u32 column = at / p.by_vectors, vector = at - column * p.vectors, row = blockIdx.y;
    if (column >= p.out_width) return;
    const unit_t* image = x + u64(blockIdx.z) * p.height * p.width * p.channels;
    unit_t values[VECTOR];
#pragma unroll
    for (u32 k = 0; k < VECTOR; ++k) {
        const u32 element = vector * VECTOR + k, channel = element / (FACTOR * FACTOR);
        const u32 source_row = row * FACTOR + element / FACTOR % FACTOR;
        const u32 source_column = column * FACTOR + element % FACTOR;
        const bool inside = source_row < p.height && source_column < p.width;
        values[k] =
            inside ? image[(u64(source_row) * p.width + source_column) * p.channels + channel] : unit_t(0);
    }
    const u64 pixel = (u64(blockIdx.z) * p.out_height + row) * p.out_width + column;
    store(y + (pixel * p.vectors + vector) * VECTOR, values);
}

extern "C" __global__ void pixel_shuffle(const unit_t* __restrict__ y, unit_t* __restrict__ x,
                                         const Params p) {
    const u32 at = blockIdx.x * blockDim.x + threadIdx.x;
    const u32 column = at / p.by_vectors, vector = at - column * p.vectors, row = blockIdx.y;
    if (column >= p.width) return;
    const u64 block = (u64(blockIdx.z) * p.out_height + row / FACTOR) * p.out_width + column / FACTOR;
    const unit_t* from = y + block * p.out_channels + row % FACTOR * FACTOR + column % FACTOR;
    unit_t values[VECTOR];
#pragma unroll
    for (u32 k = 0; k < VECTOR; ++k) values[k] = from[(vector * VECTOR + k) * (FACTOR * FACTOR)];
    const u64 pixel = (u64(blockIdx.z) * p.height + row) * p.width + column;
    store(x + (pixel * p.vectors + vector) * VECTOR, values);
}
