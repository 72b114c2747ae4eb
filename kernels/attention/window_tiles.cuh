// One head of a window on tensor cores: its tiles in shared memory, the weights that sixteen queries give its
// keys, and products with sixteen rows at a time.
//
// A tile is what the map has of the head for the window's tokens: swizzled rows of D 16-bit elements, zeros
// beyond the window. Tiles 0 to 2 are queries, keys and values, 3 gradients. A step is sixteen of its rows, a
// warp's share; a warp holds products as m16n8k16 leaves them (common/mma.cuh).
// Defines: STORAGE, BIAS (the bias's type), D (16, 32 or 64), WINDOW (up to 12).
#pragma once
#include "attention/window.cuh"
#include "common/async_copy.cuh"
#include "common/elements.cuh"
#include "common/fast_math.cuh"
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
#define STEP_BYTES (16 * D * 2)
#define LOG2_E 1.44269504f

typedef Storage<BIAS>::type bias_t;

extern __shared__ __align__(128) unsigned char shared[];

__device__ inline float load_shared(u32 address) {
    float x;
    asm volatile("ld.shared.f32 %0, [%1];" : "=f"(x) : "r"(address) : "memory");
    return x;
}

// What is known of a window's tokens and of the head, in shared memory.
struct Tokens {
    float biases[OFFSETS];         // of the head, times log2(e)
    alignas(8) u32 offsets[ROWS];  // of keys, in bytes of the table
    alignas(8) u32 parts[ROWS];
    u32 pixels[ROWS];              // PADDING beyond the window as well

    // Starts copies of the head's first `tiles` tiles; `threads` threads take part, this one as `thread`.
    template <u32 tiles>
    __device__ inline void gather(const storage_t* qkv, const bias_t* bias, const storage_t* dy, u32 head,
                                  const Place& place, const Params& p, u32 thread, u32 threads) {
        const u32 base = shared_address(shared);
        for (u32 i = thread; i < ROWS * CHUNKS; i += threads) {
            const u32 token = i / CHUNKS, chunk = i % CHUNKS;
            const u32 pixel = token < TOKENS ? place.pixel(token, p) : PADDING;
            const u32 to = swizzled<CHUNKS>(token, chunk), channel = head * D + chunk * 8;
            if (chunk == 0) {
                pixels[token] = pixel;
                offsets[token] = token < TOKENS ? key_offset(token) * 4 : 0;
                parts[token] = place.part(token);
            }
            if (tiles > 3)
                copy_async<16>(base + 3 * TILE_BYTES + to, dy + u64(pixel) * p.channels + channel,
                               pixel != PADDING);
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
    }

    __device__ inline void take_biases(const float* table, u32 head, const Params& p, u32 threads) {
        for (u32 i = threadIdx.x; i < OFFSETS; i += threads)
            biases[i] = table[i * p.offset_stride + head * p.head_stride] * LOG2_E;
    }
};

// A lane's address in a tile for `Rows::multiply` and for `add_rows`.
__device__ inline u32 across_at(u32 tile, u32 lane) {
    return shared_address(shared) + tile * TILE_BYTES +
           swizzled<CHUNKS>(lane / 16 * 8 + lane % 8, lane / 8 % 2);
}
__device__ inline u32 along_at(u32 tile, u32 lane) {
    return shared_address(shared) + tile * TILE_BYTES + swizzled<CHUNKS>(lane % 16, lane / 16);
}

// A step's rows of a tile as the left factor.
struct Rows {
    u32 a[D / 16][4];

    __device__ inline Rows(u32 tile, u32 step, u32 lane) {
        const u32 at = along_at(tile, lane) + step * STEP_BYTES;
#pragma unroll
        for (u32 k = 0; k < D / 16; ++k) load_matrices(a[k], at ^ (k * 32));
    }

    // Adds their products with the rows of step `step` of another tile, eight each.
    __device__ inline void multiply(u32 at, u32 step, float (&left)[4], float (&right)[4]) const {
#pragma unroll
        for (u32 k = 0; k < D / 16; ++k) {
            u32 b[4];
            load_matrices(b, (at ^ (k * 32)) + step * STEP_BYTES);
            Mma<storage_t>::multiply(left, a[k], b[0], b[1]);
            Mma<storage_t>::multiply(right, a[k], b[2], b[3]);
        }
    }
};

// Adds the product of 16 x 16 weights with the rows of step `step` of a tile.
__device__ inline void add_rows(const u32 (&weights)[4], u32 at, u32 step, float (&result)[CHUNKS][4]) {
#pragma unroll
    for (u32 j = 0; j < D / 16; ++j) {
        u32 b[4];
        load_matrices_transposed(b, (at ^ (j * 32)) + step * STEP_BYTES);
        Mma<storage_t>::multiply(result[2 * j], weights, b[0], b[1]);
        Mma<storage_t>::multiply(result[2 * j + 1], weights, b[2], b[3]);
    }
}

// The weights that the queries of a step give all keys, times what `inverse` undoes: a lane has those of two
// queries, eight rows apart. Keys beyond the window have a weight of 0, queries beyond it any.
__device__ inline void weigh(const Tokens& tokens, const Place& place, const Params& p, u32 step, u32 lane,
                             float (&s)[KEY_TILES][4], float (&inverse)[2]) {
    const float scale = p.scale * LOG2_E, mask = p.mask * LOG2_E;
    // Of the two keys that a lane has of a tile of eight.
    const u32 pair = lane % 4 * 2;
    const Rows queries(0, step, lane);
    const u32 keys_at = across_at(1, lane);
    // Logits, times log2(e).
#pragma unroll
    for (u32 j = 0; j < KEY_TILES; ++j) {
#pragma unroll
        for (u32 e = 0; e < 4; ++e) s[j][e] = 0.0f;
    }
#pragma unroll
    for (u32 j = 0; j < STEPS; ++j) {
        float beyond[4] = {};
        if (2 * j + 1 < KEY_TILES) {
            queries.multiply(keys_at, j, s[2 * j], s[2 * j + 1]);
        } else {
            queries.multiply(keys_at, j, s[2 * j], beyond);
        }
    }
    u32 query[2], from[2];
#pragma unroll
    for (u32 half = 0; half < 2; ++half) {
        query[half] = min(step * 16 + lane / 4 + 8 * half, TOKENS - 1);
        from[half] = shared_address(tokens.biases + query_offset(query[half]));
    }
#pragma unroll
    for (u32 j = 0; j < KEY_TILES; ++j) {
        const uint2 of_keys = *reinterpret_cast<const uint2*>(tokens.offsets + 8 * j + pair);
#pragma unroll
        for (u32 e = 0; e < 4; ++e) {
            const u32 of_key = e % 2 == 0 ? of_keys.x : of_keys.y;
            s[j][e] = s[j][e] * scale + load_shared(from[e / 2] - of_key);
            const bool beyond = 8 * j + 8 > TOKENS && 8 * j + pair + e % 2 >= TOKENS;
            if (beyond) s[j][e] = __int_as_float(0xff800000);
        }
        // Keeps the compiler from loading more at once than there are registers for.
        if (j % 6 == 5) __syncwarp();
    }
    if (place.has_parts()) {
        const u32 own[2] = {tokens.parts[query[0]], tokens.parts[query[1]]};
#pragma unroll
        for (u32 j = 0; j < KEY_TILES; ++j) {
            const uint2 of_keys = *reinterpret_cast<const uint2*>(tokens.parts + 8 * j + pair);
#pragma unroll
            for (u32 e = 0; e < 4; ++e)
                if (own[e / 2] != (e % 2 == 0 ? of_keys.x : of_keys.y)) s[j][e] += mask;
        }
    }

    // Four lanes share a row.
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
}

// Writes a step's rows, two factors times `x`, to the map at the head's first channel, through rows of a tile
// that are the warp's own: stores of 16 bytes fill whole sectors. The padding has no rows.
__device__ inline void put_rows(u32 tile, u32 step, u32 lane, const float (&x)[CHUNKS][4],
                                const float (&factor)[2], storage_t* to, u32 stride, const u32* pixels) {
    unsigned char* const rows = shared + tile * TILE_BYTES;
    __syncwarp();
#pragma unroll
    for (u32 j = 0; j < CHUNKS; ++j) {
#pragma unroll
        for (u32 half = 0; half < 2; ++half) {
            const u32 at = swizzled<CHUNKS>(step * 16 + lane / 4 + 8 * half, j) + lane % 4 * 4;
            const float left = x[j][2 * half] * factor[half], right = x[j][2 * half + 1] * factor[half];
            *reinterpret_cast<u32*>(rows + at) = pack2(left, right, storage_t{});
        }
    }
    __syncwarp();
#pragma unroll
    for (u32 i = 0; i < CHUNKS / 2; ++i) {
        const u32 row = step * 16 + (i * WARP + lane) / CHUNKS, chunk = lane % CHUNKS;
        if (pixels[row] == PADDING) continue;
        store_global_chunk(to + u64(pixels[row]) * stride + chunk * 8,
                           load_chunk(rows + swizzled<CHUNKS>(row, chunk)));
    }
}
