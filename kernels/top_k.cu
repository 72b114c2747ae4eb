// The k largest of each row, in descending order; of equal elements the lower index first, NaN last.
//
// An element becomes one 64-bit key that no other of its row has: its bits mapped so that integers order as
// floats do (-0 as +0, NaN below all), then the complement of its index. A block sorts SIZE keys (a power of
// two) in shared memory (common/bitonic.cuh) and keeps the first k. A row of more than SIZE elements takes
// several passes: each cuts the list into chunks and leaves k keys a chunk, until one chunk is left. Nothing
// depends on timing.
//
// Grid: chunks, rows. Block: SIZE / 2 threads. Shared memory: 8 SIZE bytes. Defines: SIZE (64 to 2048), FIRST
// (reads x, else keys of the pass before), LAST (writes values and indices, else keys).
#include "common/bitonic.cuh"

struct Params {
    u32 row;     // elements of a row of x
    u32 length;  // entries of a row of this pass's list
    u32 k;
};

__device__ inline u64 key(float x, u32 index) { return key_of(x != x ? 0 : order_of(x + 0.0f), index); }

extern "C" __global__ void __launch_bounds__(SIZE / 2)
    top_k(const float* __restrict__ x, const u64* __restrict__ from, u64* __restrict__ to,
          float* __restrict__ values, int* __restrict__ indices, const Params p) {
    __shared__ u64 keys[SIZE];
    const u32 thread = threadIdx.x, row = blockIdx.y;
    for (u32 i = thread; i < SIZE; i += SIZE / 2) {
        const u32 at = blockIdx.x * SIZE + i;
        u64 found = 0;
        if (at < p.length)
            found = FIRST ? key(x[u64(row) * p.row + at], at) : from[u64(row) * p.length + at];
        keys[i] = found;
    }
    sort_descending<SIZE>(keys, thread);
    for (u32 i = thread; i < p.k && i < SIZE; i += SIZE / 2) {
        const u64 found = keys[i];
        if (LAST) {
            const u32 index = index_of(found);
            values[u64(row) * p.k + i] = x[u64(row) * p.row + index];
            indices[u64(row) * p.k + i] = int(index);
        } else {
            to[(u64(row) * gridDim.x + blockIdx.x) * p.k + i] = found;
        }
    }
}
