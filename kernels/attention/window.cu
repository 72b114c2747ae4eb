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
#include "attention/window.cuh"
#include "common/async_copy.cuh"
#include "common/elements.cuh"
#include "common/mma.cuh"
#include "common/reduce.cuh"
#include "common/swizzle.cuh"

// Steps of 16 tokens.
#define STEPS ((TOKENS + 15) / 16)
#define ROWS (16 * STEPS)
// Tiles of eight keys.
#define KEY_TILES ((TOKENS + 7) / 8)
#define CHUNKS (D / 8)
#define TILE_BYTES (ROWS * D * 2)
// Sixteen rows of a tile.
#define STEP_BYTES (16 * D * 2)
#define THREADS (WARP * WARPS)
#define LOG2_E 1.44269504f
// Blocks of a multiprocessor that the compiler has to leave registers for.
#define RESIDENT (TOKENS <= 64 && D <= 32 ? 6 : 1)

typedef Storage<BIAS>::type bias_t;

extern __shared__ __align__(128) unsigned char shared[];

__device__ inline float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

__device__ inline float load_shared(u32 address) {
    float x;
    asm volatile("ld.shared.f32 %0, [%1];" : "=f"(x) : "r"(address) : "memory");
    return x;
}

extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT)
    window_attention(const storage_t* __restrict__ qkv, const bias_t* __restrict__ bias,
                     const float* __restrict__ table, storage_t* __restrict__ y, const Params p) {
    __shared__ float biases[OFFSETS];           // of this head, times log2(e)
    __shared__ alignas(8) u32 offsets[ROWS];    // of keys, in bytes of the table
    __shared__ alignas(8) u32 parts[ROWS];
    __shared__ u32 pixels[ROWS];

    const u32 heads = p.channels / D, head = blockIdx.x % heads;
    const Place place(blockIdx.z, blockIdx.y, blockIdx.x / heads, p);
    const u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, base = shared_address(shared);
    // Rows beyond the window are zeros.
    for (u32 i = threadIdx.x; i < ROWS * CHUNKS; i += THREADS) {
        const u32 token = i / CHUNKS, chunk = i % CHUNKS;
        const u32 pixel = token < TOKENS ? place.pixel(token, p) : PADDING;
        const u32 to = swizzled<CHUNKS>(token, chunk), channel = head * D + chunk * 8;
        if (chunk == 0) {
            pixels[token] = pixel;
            offsets[token] = token < TOKENS ? key_offset(token) * 4 : 0;
            parts[token] = place.part(token);
        }
        const bool of_padding = token < TOKENS && pixel == PADDING;
#pragma unroll
        for (u32 tile = 0; tile < 3; ++tile) {
            const u32 source = tile * p.channels + channel;
            const storage_t* from = qkv + u64(pixel) * (3 * p.channels) + source;
#if BIAS == STORAGE
            if (of_padding) from = bias + source;
#else
            if (of_padding) {
                float x[8];
                load_elements(bias + source, x);
                store_chunk(shared + tile * TILE_BYTES + to, pack(x, storage_t{}));
                continue;
            }
#endif
            copy_async<16>(base + tile * TILE_BYTES + to, from, token < TOKENS);
        }
    }
    commit_copies();
    for (u32 i = threadIdx.x; i < OFFSETS; i += THREADS)
        biases[i] = table[i * p.offset_stride + head * p.head_stride] * LOG2_E;
    wait_copies<0>();
    __syncthreads();

    const float scale = p.scale * LOG2_E, mask = p.mask * LOG2_E;
    const u32 keys_at = base + TILE_BYTES + swizzled<CHUNKS>(lane / 16 * 8 + lane % 8, lane / 8 % 2);
    const u32 values_at = base + 2 * TILE_BYTES + swizzled<CHUNKS>(lane % 16, lane / 16);
    // Of the two keys, and of the two channels, that a lane has of a tile of eight.
    const u32 pair = lane % 4 * 2;
#pragma unroll 1
    for (u32 step = warp; step < STEPS; step += WARPS) {
        // Logits, times log2(e): of two queries, eight rows apart.
        u32 a[D / 16][4];
        const u32 queries_at = base + step * STEP_BYTES + swizzled<CHUNKS>(lane % 16, lane / 16);
#pragma unroll
        for (u32 k = 0; k < D / 16; ++k) load_matrices(a[k], queries_at ^ (k * 32));
        float s[KEY_TILES][4] = {};
#pragma unroll
        for (u32 j = 0; j < STEPS; ++j) {
#pragma unroll
            for (u32 k = 0; k < D / 16; ++k) {
                u32 b[4];
                load_matrices(b, (keys_at ^ (k * 32)) + j * STEP_BYTES);
                Mma<storage_t>::multiply(s[2 * j], a[k], b[0], b[1]);
                if (2 * j + 1 < KEY_TILES) Mma<storage_t>::multiply(s[2 * j + 1], a[k], b[2], b[3]);
            }
        }
        u32 query[2], from[2];
#pragma unroll
        for (u32 half = 0; half < 2; ++half) {
            query[half] = min(step * 16 + lane / 4 + 8 * half, TOKENS - 1);
            from[half] = shared_address(biases + query_offset(query[half]));
        }
#pragma unroll
        for (u32 j = 0; j < KEY_TILES; ++j) {
            const uint2 of_keys = *reinterpret_cast<const uint2*>(offsets + 8 * j + pair);
#pragma unroll
            for (u32 e = 0; e < 4; ++e) {
                const u32 of_key = e % 2 == 0 ? of_keys.x : of_keys.y;
                s[j][e] = s[j][e] * scale + load_shared(from[e / 2] - of_key);
                const bool beyond = 8 * j + 8 > TOKENS && 8 * j + pair + e % 2 >= TOKENS;
                if (beyond) s[j][e] = __int_as_float(0xff800000);
            }
        }
        if (place.has_parts()) {
            const u32 own[2] = {parts[query[0]], parts[query[1]]};
#pragma unroll
            for (u32 j = 0; j < KEY_TILES; ++j) {
                const uint2 of_keys = *reinterpret_cast<const uint2*>(parts + 8 * j + pair);
#pragma unroll
                for (u32 e = 0; e < 4; ++e)
                    if (own[e / 2] != (e % 2 == 0 ? of_keys.x : of_keys.y)) s[j][e] += mask;
            }
        }

        // Weights. Four lanes share a row.
        float inverse[2];
#pragma unroll
        for (u32 half = 0; half < 2; ++half) {
            float max = s[0][2 * half], sum = 0.0f;
#pragma unroll
            for (u32 j = 0; j < KEY_TILES; ++j) max = fmaxf(max, fmaxf(s[j][2 * half], s[j][2 * half + 1]));
            max = fmaxf(max, __shfl_xor_sync(FULL_MASK, max, 1));
            max = fmaxf(max, __shfl_xor_sync(FULL_MASK, max, 2));
#pragma unroll
            for (u32 j = 0; j < KEY_TILES; ++j) {
#pragma unroll
                for (u32 e = 2 * half; e < 2 * half + 2; ++e) {
                    s[j][e] = exp2_fast(s[j][e] - max);
                    sum += s[j][e];
                }
            }
            sum += __shfl_xor_sync(FULL_MASK, sum, 1);
            sum += __shfl_xor_sync(FULL_MASK, sum, 2);
            inverse[half] = 1.0f / sum;
        }

        float result[CHUNKS][4] = {};
#pragma unroll
        for (u32 k = 0; k < STEPS; ++k) {
            u32 weights[4] = {};
#pragma unroll
            for (u32 i = 0; i < 4; ++i) {
                const u32 tile = 2 * k + i / 2;
                if (tile < KEY_TILES)
                    weights[i] = pack2(s[tile][i % 2 * 2], s[tile][i % 2 * 2 + 1], storage_t{});
            }
#pragma unroll
            for (u32 j = 0; j < D / 16; ++j) {
                u32 b[4];
                load_matrices_transposed(b, (values_at ^ (j * 32)) + k * STEP_BYTES);
                Mma<storage_t>::multiply(result[2 * j], weights, b[0], b[1]);
                Mma<storage_t>::multiply(result[2 * j + 1], weights, b[2], b[3]);
            }
        }

        __syncwarp();
#pragma unroll
        for (u32 j = 0; j < CHUNKS; ++j) {
#pragma unroll
            for (u32 half = 0; half < 2; ++half) {
                const u32 to = swizzled<CHUNKS>(step * 16 + lane / 4 + 8 * half, j) + pair * 2;
                const float left = result[j][2 * half] * inverse[half];
                const float right = result[j][2 * half + 1] * inverse[half];
                *reinterpret_cast<u32*>(shared + to) = pack2(left, right, storage_t{});
            }
        }
        __syncwarp();
#pragma unroll
        for (u32 i = 0; i < CHUNKS / 2; ++i) {
            const u32 row = step * 16 + (i * WARP + lane) / CHUNKS, chunk = lane % CHUNKS;
            const u32 to = pixels[row];
            if (to == PADDING) continue;
            store_global_chunk(y + u64(to) * p.channels + head * D + chunk * 8,
                               load_chunk(shared + swizzled<CHUNKS>(row, chunk)));
        }
    }
}
