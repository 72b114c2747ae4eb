// Gradients of attention within windows, of queries, keys and values, of the projection's bias and of the
// table of biases, on tensor cores. Weights are computed again, and nothing of the windows is ever in memory.
//
// With the weights P of a head in a window, dP = dy v^T and dS = P * (dP - rowsum(P * dP)): dq = dS k /
// sqrt(D), dk = dS^T q / sqrt(D), dv = P^T dy; the table's gradient is the sum of dS over the pairs that
// share a row of it; the bias's that of dk and dv over tokens of the padding, where dy is 0.
//
// qkv and dqkv [B, H, W, 3C], dy [B, H, W, C], f16 or bf16. Logits, dP and all sums are f32; P, and dS made
// of it, are rounded to the maps' type. A pixel is in one window: its gradients are written once.
//
// A block takes one head of `share` windows, one after the other, as many warps as there are steps of
// sixteen tokens (window_tiles.cuh). First a warp has sixteen queries: P and dP are accumulators of its
// products, and dS, rounded, is the left factor of dq. rowsum(P * dP), which comes before dS, is dy times P
// v. Then a warp has sixteen keys, and needs the columns of P and dS, which pass through shared memory: P,
// and when dv is made of it dS in its place, read by transposing loads. There dS is gathered by rows of the
// table as well. Modulo the window's side, query less key takes WINDOW values either way, and every query
// has one key at each: a thread has one pair (down, right) of them, four rows of the table, and half of the
// queries. Nothing is added in an order that is not fixed: no atomics.
//
// Sums over the windows of a block leave as parts: of the table [shares, OFFSETS, heads], of the bias
// [shares, 3C]; sum_parts.cu adds them in order.
//
// 12 TOKENS^2 D FLOPs a window and head, and 14 bytes a channel and token, each read or written once: 0.9
// MFLOP and 22 KB for 7 x 7 tokens of 32 channels. On an H100 memory takes longer than the instructions take
// to issue (kernels/counts.tsv).
//
// Grid: heads, shares. Block: STEPS warps. Shared memory: 4 tiles and ROWS * WEIGHT_PITCH bytes. Defines:
// STORAGE, BIAS (the bias's type), D (16, 32 or 64), WINDOW (up to 12).
#include "attention/window_tiles.cuh"

#define THREADS (WARP * STEPS)
// Blocks of a multiprocessor that the compiler has to leave registers for.
#define RESIDENT (TOKENS <= 64 && D <= 32 ? 5 : 1)
// Bytes from one query's weights, or slopes, to the next's: an odd number of chunks, so that the reads of
// eight rows have no bank conflicts.
#define WEIGHT_PITCH (16 * (KEY_TILES | 1))
// Rows of the window that a thread adds up for the table, one of two for whom there are threads.
#define HALF ((WINDOW + 1) / 2)

// Makes `x` new for all the compiler knows: what it has made of it would else stay in registers.
__device__ inline void forget(u32& x) { asm volatile("" : "+r"(x)); }

// Leaves four 8 x 8 tiles of a step's rows, two by two keys, for `columns`.
__device__ inline void leave(const u32 (&x)[4], u32 step, u32 j, u32 lane) {
    unsigned char* const to = shared + 4 * TILE_BYTES + (step * 16 + lane / 4) * WEIGHT_PITCH + lane % 4 * 4;
#pragma unroll
    for (u32 i = 0; i < 4; ++i) {
        const u32 tile = 2 * j + i / 2;
        if (tile < KEY_TILES) *reinterpret_cast<u32*>(to + i % 2 * 8 * WEIGHT_PITCH + tile * 16) = x[i];
    }
}

// result = (the step's columns of what was left)^T times a tile.
__device__ inline void multiply_columns(u32 step, u32 tile, u32 lane, float (&result)[CHUNKS][4]) {
    // Beyond the window's last tile of keys there is none; what comes of it is not used.
    const u32 chunk = min(2 * step + lane / 8 % 2, KEY_TILES - 1);
    const u32 from = shared_address(shared) + 4 * TILE_BYTES + chunk * 16 +
                     (lane / 16 * 8 + lane % 8) * WEIGHT_PITCH;
    const u32 at = along_at(tile, lane);
#pragma unroll
    for (u32 k = 0; k < STEPS; ++k) {
        u32 a[4];
        load_matrices_transposed(a, from + k * 16 * WEIGHT_PITCH);
        add_rows(a, at, k, result);
    }
}

// Adds what was left of dS to the sums of the table's rows, `halves` being those of either half of the
// queries. A thread has those of queries that lie `down` and `right` of their keys; and, where that leaves
// the window, by as much less the window's side.
__device__ inline void add_to_table(u32 thread, float (&halves)[2][OFFSETS]) {
    const u32 half = thread / TOKENS, down = thread % TOKENS / WINDOW, right = thread % TOKENS % WINDOW;
    if (half > 1) return;
    // Inside along both axes, beyond along x, along y, along both.
    float sums[4] = {};
#pragma unroll 1
    for (u32 y = half * HALF; y < min((half + 1) * HALF, WINDOW); ++y) {
        const u32 key_y = y < down ? y + WINDOW - down : y - down;
        const unsigned char* const row = shared + 4 * TILE_BYTES + y * WINDOW * WEIGHT_PITCH +
                                         (i32(key_y * WINDOW) - i32(right)) * i32(sizeof(storage_t));
        float inside = 0.0f, beyond = 0.0f;
#pragma unroll
        for (u32 x = 0; x < WINDOW; ++x) {
            const u32 key_x = x < right ? x + WINDOW : x;
            const float slope = to_f32(
                *reinterpret_cast<const storage_t*>(row + x * WEIGHT_PITCH + key_x * sizeof(storage_t)));
            inside += x < right ? 0.0f : slope;
            beyond += x < right ? slope : 0.0f;
        }
        sums[0] += y < down ? 0.0f : inside;
        sums[1] += y < down ? 0.0f : beyond;
        sums[2] += y < down ? inside : 0.0f;
        sums[3] += y < down ? beyond : 0.0f;
    }
#pragma unroll
    for (u32 i = 0; i < 4; ++i) {
        const u32 back_y = i / 2 * WINDOW, back_x = i % 2 * WINDOW;
        if (down + WINDOW <= back_y || right + WINDOW <= back_x) continue;
        const u32 offset = (down + WINDOW - 1 - back_y) * (2 * WINDOW - 1) + right + WINDOW - 1 - back_x;
        halves[half][offset] += sums[i];
    }
}

// Adds the rows of a step that lie in the padding, a bit each, to the sums of its warp: lane l < 4 has
// columns 2 l and 2 l + 1 of each eight.
__device__ inline void add_padding(u32 rows, u32 lane, const float (&x)[CHUNKS][4], float factor,
                                   float (&sums)[D]) {
    const bool upper = rows >> (lane / 4) & 1, lower = rows >> (lane / 4 + 8) & 1;
#pragma unroll
    for (u32 j = 0; j < CHUNKS; ++j) {
#pragma unroll
        for (u32 e = 0; e < 2; ++e) {
            float sum = (upper ? x[j][e] : 0.0f) + (lower ? x[j][2 + e] : 0.0f);
#pragma unroll
            for (int distance = 4; distance < WARP; distance *= 2)
                sum += __shfl_xor_sync(FULL_MASK, sum, distance);
            if (lane < 4) sums[8 * j + 2 * lane + e] += sum * factor;
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT)
    window_attention_grad(const storage_t* __restrict__ qkv, const bias_t* __restrict__ bias,
                          const float* __restrict__ table, const storage_t* __restrict__ dy,
                          storage_t* __restrict__ dqkv, float* __restrict__ table_parts,
                          float* __restrict__ bias_parts, const GradParams g) {
    __shared__ Tokens tokens;
    __shared__ float halves[2][OFFSETS];
    __shared__ float padding[STEPS][2][D];  // of keys and values
    const Params& p = g.map;
    const u32 head = blockIdx.x, channel = head * D, stride = 3 * p.channels;
    for (u32 i = threadIdx.x; i < STEPS * 2 * D; i += THREADS) padding[i / (2 * D)][i / D % 2][i % D] = 0.0f;
    for (u32 i = threadIdx.x; i < OFFSETS; i += THREADS) halves[0][i] = halves[1][i] = 0.0f;
    tokens.take_biases(table, head, p, THREADS);
    const u32 last = min((blockIdx.y + 1) * g.share, g.windows);
    for (u32 window = blockIdx.y * g.share; window < last; ++window) {
        u32 thread = threadIdx.x;
        forget(thread);
        const u32 step = thread / WARP, lane = thread % WARP;
        const u32 column = window % p.across, row = window / p.across;
        const Place place(row / p.down, row % p.down, column, p);
        __syncthreads();
        tokens.gather<4>(qkv, bias, dy, head, place, p, thread, THREADS);
        wait_copies<0>();
        __syncthreads();

        // Four 8 x 8 tiles a step of keys: weights, then slopes.
        u32 rounded[STEPS][4] = {};
        {
            float s[KEY_TILES][4], inverse[2];
            weigh(tokens, place, p, step, lane, s, inverse);
#pragma unroll
            for (u32 j = 0; j < STEPS; ++j) {
#pragma unroll
                for (u32 i = 0; i < 4; ++i) {
                    const u32 tile = 2 * j + i / 2, half = i % 2;
                    if (tile < KEY_TILES)
                        rounded[j][i] = pack2(s[tile][2 * half] * inverse[half],
                                              s[tile][2 * half + 1] * inverse[half], storage_t{});
                }
                leave(rounded[j], step, j, lane);
            }
        }
        const Rows dys(3, step, lane);
        // A row's sum of P * dP is dy times what attention gave.
        float y[CHUNKS][4] = {}, mean[2] = {};
#pragma unroll
        for (u32 j = 0; j < STEPS; ++j) add_rows(rounded[j], along_at(2, lane), j, y);
#pragma unroll
        for (u32 i = 0; i < 2 * CHUNKS; ++i) {
            const float2 own = unpack2(dys.a[i / 4][i % 4], storage_t{});
            const u32 half = i % 2;
            mean[half] += own.x * y[i / 2][2 * half] + own.y * y[i / 2][2 * half + 1];
        }
#pragma unroll
        for (u32 half = 0; half < 2; ++half) {
            mean[half] += __shfl_xor_sync(FULL_MASK, mean[half], 1);
            mean[half] += __shfl_xor_sync(FULL_MASK, mean[half], 2);
        }
        const u32 values_at = across_at(2, lane), keys_at = along_at(1, lane);
        float dq[CHUNKS][4] = {};
#pragma unroll
        for (u32 j = 0; j < STEPS; ++j) {
            float dp[2][4] = {};
            dys.multiply(values_at, j, dp[0], dp[1]);
#pragma unroll
            for (u32 i = 0; i < 4; ++i) {
                const u32 half = i % 2;
                const float2 weight = unpack2(rounded[j][i], storage_t{});
                rounded[j][i] = pack2(weight.x * (dp[i / 2][2 * half] - mean[half]),
                                      weight.y * (dp[i / 2][2 * half + 1] - mean[half]), storage_t{});
            }
            add_rows(rounded[j], keys_at, j, dq);
        }
        // Keys and values have been read: results pass through the rows of keys.
        __syncthreads();
        const u32 own = step * 16 + lane % 16;
        const u32 padded = __ballot_sync(FULL_MASK, own < TOKENS && tokens.pixels[own] == PADDING);
        const auto put = [&](u32 block, const float(&x)[CHUNKS][4], float factor) {
            const float factors[2] = {factor, factor};
            if (block > 0 && padded) add_padding(padded, lane, x, factor, padding[step][block - 1]);
            put_rows(1, step, lane, x, factors, dqkv + block * p.channels + channel, stride,
                     tokens.pixels);
        };
        put(0, dq, p.scale);
        float dv[CHUNKS][4] = {};
        multiply_columns(step, 3, lane, dv);
        put(2, dv, 1.0f);
        __syncthreads();
#pragma unroll
        for (u32 j = 0; j < STEPS; ++j) leave(rounded[j], step, j, lane);
        __syncthreads();
        add_to_table(thread, halves);
        float dk[CHUNKS][4] = {};
        multiply_columns(step, 0, lane, dk);
        put(1, dk, p.scale);
    }

    __syncthreads();
    const u32 heads = p.channels / D;
    for (u32 i = threadIdx.x; i < OFFSETS; i += THREADS)
        table_parts[(u64(blockIdx.y) * OFFSETS + i) * heads + head] = halves[0][i] + halves[1][i];
    float* const to = bias_parts + u64(blockIdx.y) * stride + channel;
    for (u32 i = threadIdx.x; i < 3 * D; i += THREADS) {
        float sum = 0.0f;
        if (i >= D) {
            for (u32 warp = 0; warp < STEPS; ++warp) sum += padding[warp][i / D - 1][i % D];
        }
        to[i / D * p.channels + i % D] = sum;
    }
}
