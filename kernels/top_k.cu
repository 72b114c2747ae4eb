// The k largest of each row, in descending order; of equal elements the lower index first, NaN last.
//
// An element becomes one 64-bit key that no other of its row has: its bits mapped so that integers order as
// floats do (-0 as +0, NaN below all), then the complement of its index. A block sorts SIZE keys (a power of
// two) by a bitonic network in shared memory and keeps the first k. A row of more than SIZE elements takes
// several passes: each cuts the list into chunks and leaves k keys a chunk, until one chunk is left. Nothing
// depends on timing.
//
// A thread orders one pair a step. While partners are at most 32 apart, a warp's pairs stay within its own 64
// keys, so only steps at distances of 64 and more need barriers of the block around them: 20 for the 66 steps
// of SIZE = 2048.
//
// Grid: chunks, rows. Block: SIZE / 2 threads. Shared memory: 8 SIZE bytes. Defines: SIZE (64 to 2048), FIRST
// (reads x, else keys of the pass before), LAST (writes values and indices, else keys).
#include "common/reduce.cuh"

struct Params {
    u32 row;     // elements of a row of x
    u32 length;  // entries of a row of this pass's list
    u32 k;
};

// Descending order of keys is the order wanted. 0 stands for no element and comes last: no index reaches 2^32
// - 1.
__device__ inline u64 key_of(float x, u32 index) {
    u32 bits = __float_as_uint(x + 0.0f);
    u32 order = bits >> 31 ? ~bits : bits | 0x80000000u;
    if (x != x) order = 0;
    return u64(order) << 32 | ~index;
}

__device__ inline void order_pair(u64* keys, u32 low, u32 high, bool descending) {
    const u64 a = keys[low], b = keys[high];
    if ((a < b) == descending) {
        keys[low] = b;
        keys[high] = a;
    }
}

extern "C" __global__ void __launch_bounds__(SIZE / 2)
    top_k(const float* __restrict__ x, const u64* __restrict__ from, u64* __restrict__ to,
          float* __restrict__ values, int* __restrict__ indices, const Params p) {
    __shared__ u64 keys[SIZE];
    const u32 thread = threadIdx.x, row = blockIdx.y;
    for (u32 i = thread; i < SIZE; i += SIZE / 2) {
        const u32 at = blockIdx.x * SIZE + i;
        u64 key = 0;
        if (at < p.length)
            key = FIRST ? key_of(x[u64(row) * p.row + at], at) : from[u64(row) * p.length + at];
        keys[i] = key;
    }
    __syncthreads();
    for (u32 run = 2; run <= SIZE; run *= 2) {
        for (u32 distance = run / 2; distance > 0; distance /= 2) {
            const u32 low = thread / distance * distance * 2 + thread % distance;
            order_pair(keys, low, low + distance, (low & run) == 0);
            // A barrier of the warp is enough where neither this step nor the next leaves its keys.
            const u32 next = distance > 1 ? distance / 2 : run;
            if (distance > WARP || next > WARP) {
                __syncthreads();
            } else {
                __syncwarp();
            }
        }
    }
    for (u32 i = thread; i < p.k && i < SIZE; i += SIZE / 2) {
        const u64 key = keys[i];
        if (LAST) {
            const u32 index = ~u32(key);
            values[u64(row) * p.k + i] = x[u64(row) * p.row + index];
            indices[u64(row) * p.k + i] = int(index);
        } else {
            to[(u64(row) * gridDim.x + blockIdx.x) * p.k + i] = key;
        }
    }
}
