// y = softmax(q k^T / sqrt(D) + bias + mask) v for every head of every window of a map, on tensor cores.
//
// qkv [B, H, W, 3C] holds queries, keys and values side by side, head h in channels h D .. (h + 1) D of each,
// y [B, H, W, C]; both f16 or bf16. A token of the padding has the projection's bias [3C] as query, key and
// value. Logits, weights and sums are f32; a weight, exp(logit - maximum), at most 1, is rounded to the maps'
// type for its product with values, and the sum divides the result.
//
// A block takes one head of one window: its queries, keys and values go from the map straight into swizzled
// rows of shared memory by cp.async, those of the padding from the bias. A warp takes 16 queries with all
// keys, so that its logits stay in registers: they are the accumulators of q k^T and, rounded, the left
// factor of the product with v. Keys beyond the window get a weight of 0. The table's row of a pair is a
// difference of a number of the query and one of the key, which lie in shared memory beside the head's column
// of the table; only windows at the seam of the roll look at parts. Results pass through the rows of the
// warp's own queries, so that stores of 16 bytes fill whole sectors.
//
// 4 TOKENS^2 D FLOPs a block (49 of 64 rows and 49 of 56 and 64 columns of the products are the window's if
// it is 7 x 7, all if it is 12 x 12), and 8 bytes a channel and token, each read or written once: 0.3 MFLOP
// and 12.5 KB for 7 x 7 tokens of 32 channels. Products are far from the bound: on an H100, memory takes as
// long as the instructions of softmax and addressing take to issue (kernels/counts.tsv).
//
// Grid: x counts heads, and windows across beyond them, y windows down, z images. Block: WARPS warps, each of
// which takes every WARPS-th 16 queries. Shared memory: 3 * ROWS * D * 2 bytes.
// Defines: STORAGE, BIAS (the bias's type), D (16, 32 or 64), WINDOW (up to 12), WARPS.
#include "attention/window_tiles.cuh"

#define THREADS (WARP * WARPS)
// Blocks of a multiprocessor that the compiler has to leave registers for.
#define RESIDENT (TOKENS <= 64 && D <= 32 ? 6 : 1)

extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT)
    window_attention(const storage_t* __restrict__ qkv, const bias_t* __restrict__ bias,
                     const float* __restrict__ table, storage_t* __restrict__ y, const Params p) {
    __shared__ Tokens tokens;
    const u32 heads = p.channels / D, head = blockIdx.x % heads;
    const Place place(blockIdx.z, blockIdx.y, blockIdx.x / heads, p);
    tokens.gather<3>(qkv, bias, nullptr, head, place, p, threadIdx.x, THREADS);
    tokens.take_biases(table, head, p, THREADS);
    wait_copies<0>();
    __syncthreads();

    const u32 lane = threadIdx.x % WARP, values_at = along_at(2, lane);
#pragma unroll 1
    for (u32 step = threadIdx.x / WARP; step < STEPS; step += WARPS) {
        float s[KEY_TILES][4], inverse[2], result[CHUNKS][4] = {};
        weigh(tokens, place, p, step, lane, s, inverse);
#pragma unroll
        for (u32 k = 0; k < STEPS; ++k) {
            u32 weights[4] = {};
#pragma unroll
            for (u32 i = 0; i < 4; ++i) {
                const u32 tile = 2 * k + i / 2;
                if (tile < KEY_TILES)
                    weights[i] = pack2(s[tile][i % 2 * 2], s[tile][i % 2 * 2 + 1], storage_t{});
            }
            add_rows(weights, values_at, k, result);
        }
        put_rows(0, step, lane, result, inverse, y + head * D, p.channels, tokens.pixels);
    }
}
