// Products of objects' soft masks with targets in true f32, and sums of both: what mask/cost.cu does, for f32
// logits [B, N, P] and targets [B, G, P].
//
// A block computes 64 objects by 64 slots over `split` pixels, 32 at a time, in 256 threads of 4 x 4 results
// each. Probabilities and targets are put in shared memory turned, pixel by pixel; a warp puts 32 pixels of a
// row at a time there, so that a lane adds up its own pixels of eight rows of either. Records of sums are
// those of mask/cost.cu.
//
// 2 B N G P FLOPs; logits are read G / 64 times and targets N / 64 times. Grid: splits, object tiles x slot
// tiles, images.
#include "common/logistic.cuh"
#include "common/reduce.cuh"
#include "mask/tile_f32.cuh"

#define ROWS (TILE * STEP / THREADS)

struct Params {
    u32 objects, slots, pixels;
    u32 split;         // pixels of a block
    u32 object_tiles;  // of an image
    u32 record;        // floats of a split's sums
};

// This lane's share of the sums of rows threadIdx.x / STEP, and every (THREADS / STEP)th after it.
struct RowSums {
    float sum[ROWS], squares[ROWS];

    // Puts pixels `pixel` .. of `rows` rows into shared memory, zeros beyond `end`, and adds them up.
    template <bool logits> __device__ inline void take(Weights& to, const float* x, u32 rows, u32 pixels,
                                                       u32 pixel, u32 end) {
#pragma unroll
        for (u32 each = 0; each < ROWS; ++each) {
            const u32 row = each * (THREADS / STEP) + threadIdx.x / STEP, at = threadIdx.x % STEP;
            float value = 0.0f;
            if (row < rows && pixel + at < end) value = x[u64(row) * pixels + pixel + at];
            if (logits) value = pixel + at < end ? Logistic(value).p : 0.0f;
            to[at][row] = value;
            sum[each] += value;
            squares[each] += value * value;
        }
    }

    // To `to`, sum and sum of squares of each of the first `count` rows.
    __device__ inline void store(float* to, u32 count) const {
#pragma unroll
        for (u32 each = 0; each < ROWS; ++each) {
            const u32 row = each * (THREADS / STEP) + threadIdx.x / STEP;
            const float a = warp_sum(sum[each]), b = warp_sum(squares[each]);
            if (threadIdx.x % WARP > 0 || row >= count) continue;
            to[2 * row] = a;
            to[2 * row + 1] = b;
        }
    }
};

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    mask_cost_f32(const float* __restrict__ logits, const float* __restrict__ targets, float* __restrict__ y,
                  const Params p) {
    __shared__ Weights masks, labels;
    const u32 object = blockIdx.y % p.object_tiles * TILE, slot = blockIdx.y / p.object_tiles * TILE;
    const u32 begin = blockIdx.x * p.split, end = min(begin + p.split, p.pixels);
    logits += (u64(blockIdx.z) * p.objects + object) * p.pixels;
    targets += (u64(blockIdx.z) * p.slots + slot) * p.pixels;

    // A thread's slots lie 16 apart, so that its warp reads neighbours.
    const u32 row = own_row(), column = threadIdx.x % 16;
    float both[4][4] = {};
    RowSums of_objects = {}, of_slots = {};
    for (u32 pixel = begin; pixel < end; pixel += STEP) {
        __syncthreads();
        of_objects.take<true>(masks, logits, p.objects - object, p.pixels, pixel, end);
        of_slots.take<false>(labels, targets, p.slots - slot, p.pixels, pixel, end);
        __syncthreads();
#pragma unroll 8
        for (u32 at = 0; at < STEP; ++at) {
#pragma unroll
            for (u32 i = 0; i < 4; ++i) {
#pragma unroll
                for (u32 j = 0; j < 4; ++j) both[i][j] += masks[at][row + i] * labels[at][column + 16 * j];
            }
        }
    }

    y += u64(blockIdx.x) * p.record;
    float* const pairs = y + u64(blockIdx.z) * p.objects * p.slots;
#pragma unroll
    for (u32 i = 0; i < 4; ++i) {
#pragma unroll
        for (u32 j = 0; j < 4; ++j) {
            const u32 n = object + row + i, g = slot + column + 16 * j;
            if (n < p.objects && g < p.slots) pairs[n * p.slots + g] = both[i][j];
        }
    }
    y += u64(gridDim.z) * p.objects * p.slots;
    if (slot == 0) of_objects.store(y + 2 * (blockIdx.z * p.objects + object), p.objects - object);
    y += 2 * gridDim.z * p.objects;
    if (object == 0) of_slots.store(y + 2 * (blockIdx.z * p.slots + slot), p.slots - slot);
}
