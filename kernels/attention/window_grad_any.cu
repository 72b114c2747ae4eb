// Gradients of attention within windows, of queries, keys and values, of the projection's bias and of the
// table of biases: any window, heads of any depth, products in f32. Weights are computed again.
//
// With the weights P of a head in a window, dP = dy v^T and dS = P * (dP - rowsum(P * dP)): dq = dS k /
// sqrt(D), dk = dS^T q / sqrt(D), dv = P^T dy; the table's gradient is the sum of dS over the pairs that
// share a row of it; the bias's that of dk and dv over tokens of the padding, where dy is 0.
//
// qkv and dqkv [B, H, W, 3C], dy [B, H, W, C], all f32, f16 or bf16; all arithmetic is f32. A pixel is in one
// window: its gradients are written once.
//
// A block takes one head of `share` windows, one after the other, with all their tokens as f32 in shared
// memory, and goes over a window twice. By queries: a warp takes SIDE queries, lane l owns keys l, l + 32,
// ..; it gives each query's maximum, sum and rowsum, which stay in shared memory, its dq, and its row of dS,
// from which each thread adds up the rows of the table that it owns, query by query. By keys: a warp takes
// SIDE keys, lanes own queries; what is known of those turns dot products into columns of P and dS, from
// which dk and dv come. Nothing is added in an order that is not fixed: no atomics.
//
// Sums over the windows of a block leave as parts: of the table [shares, OFFSETS, heads], of the bias
// [shares, 3C]; sum_parts.cu adds them in order.
//
// 14 TOKENS^2 D FLOPs a window and head (the two products that give P and dS are made twice), and 7 elements
// a channel and token, each read or written once; parts are small beside it.
//
// Grid: heads, shares. Block: WARPS warps. Shared memory: 4 * (4 * TOKENS * PITCH + WARPS * SIDE * LINE +
// 2 * OFFSETS + 3 * TOKENS) bytes. Defines: STORAGE, BIAS (the bias's type), D, WINDOW (up to 16), SIDE (4),
// WARPS, LINE (floats of a row of dS: TOKENS in whole warps, at least 64 and D / 2), VECTOR.
#include "attention/window_rows.cuh"
#include "common/reduce.cuh"

#define OWNED ((D + WARP - 1) / WARP)
#define GROUPS ((TOKENS + WARP - 1) / WARP)
#define THREADS (WARPS * WARP)
#define LINES (WARPS * SIDE)
// Blocks of a multiprocessor that the compiler has to leave registers for.
#define RESIDENT (GROUPS <= 2 ? 3 : 2)

extern __shared__ __align__(16) float shared[];

// dot[i] = own[rows[i]] . other, over one head's channels.
__device__ inline void multiply(const float* own, const u32 (&rows)[SIDE], const float* other,
                                float (&dot)[SIDE]) {
#pragma unroll 4
    for (u32 c = 0; c < PADDED; c += 4) {
        float a[4];
        load_vector(other + c, a);
#pragma unroll
        for (u32 i = 0; i < SIDE; ++i) {
            float b[4];
            load_vector(own + rows[i] + c, b);
#pragma unroll
            for (u32 j = 0; j < 4; ++j) dot[i] += a[j] * b[j];
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT)
    window_attention_grad_any(const storage_t* __restrict__ qkv, const bias_t* __restrict__ bias,
                              const float* __restrict__ table, const storage_t* __restrict__ dy,
                              storage_t* __restrict__ dqkv, float* __restrict__ table_parts,
                              float* __restrict__ bias_parts, const GradParams g) {
    const Params& p = g.map;
    const u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, head = blockIdx.x;
    const u32 stride = 3 * p.channels, channel = head * D;
    float* const queries = shared;
    float* const keys = queries + TOKENS * PITCH;
    float* const values = keys + TOKENS * PITCH;
    float* const dys = values + TOKENS * PITCH;
    float* const lines = dys + TOKENS * PITCH;
    float* const biases = lines + LINES * LINE;
    float* const dtable = biases + OFFSETS;
    float* const maxima = dtable + OFFSETS;
    float* const inverses = maxima + TOKENS;
    float* const means = inverses + TOKENS;
    // Of the padding, keys and values.
    float padding[2][OWNED] = {};

    for (u32 i = threadIdx.x; i < OFFSETS; i += THREADS) {
        biases[i] = table[i * p.offset_stride + head * p.head_stride];
        dtable[i] = 0.0f;
    }
    const u32 last = min((blockIdx.y + 1) * g.share, g.windows);
    for (u32 window = blockIdx.y * g.share; window < last; ++window) {
        const u32 column = window % p.across, row = window / p.across;
        const Place place(row / p.down, row % p.down, column, p);
        const auto stage = [&](float* to, const Source& source) {
            gather(to, PITCH, 0, TOKENS, source, place, p, threadIdx.x, THREADS);
        };
        const auto logit = [&](float dot, u32 query, u32 key) {
            const float x = dot * p.scale + biases[query_offset(query) - key_offset(key)];
            return place.part(query) == place.part(key) ? x : x + p.mask;
        };
        // Writes a token's gradient of queries (block 0), keys or values, or adds it to the padding's.
        const auto put = [&](u32 token, u32 block, const float (&x)[OWNED]) {
            const u32 pixel = place.pixel(token, p);
#pragma unroll
            for (u32 i = 0; i < OWNED; ++i) {
                const u32 at = lane + i * WARP;
                if (D % WARP != 0 && at >= D) continue;
                if (pixel != PADDING) {
                    dqkv[u64(pixel) * stride + block * p.channels + channel + at] = from_f32<storage_t>(x[i]);
                } else if (block > 0) {
                    padding[block - 1][i] += x[i];
                }
            }
        };
        __syncthreads();
        stage(queries, {qkv + channel, stride, bias + channel});
        stage(keys, {qkv + p.channels + channel, stride, bias + p.channels + channel});
        stage(values, {qkv + 2 * p.channels + channel, stride, bias + 2 * p.channels + channel});
        stage(dys, {dy + channel, p.channels, nullptr});
        __syncthreads();

        for (u32 round = 0; round < TOKENS; round += LINES) {
            const u32 first = round + warp * SIDE;
            u32 own[SIDE];
#pragma unroll
            for (u32 i = 0; i < SIDE; ++i) own[i] = min(first + i, TOKENS - 1) * PITCH;
            float weight[GROUPS][SIDE] = {}, slope[GROUPS][SIDE] = {};
#pragma unroll
            for (u32 group = 0; group < GROUPS; ++group) {
                const u32 key = min(group * WARP + lane, TOKENS - 1);
                multiply(queries, own, keys + key * PITCH, weight[group]);
                multiply(dys, own, values + key * PITCH, slope[group]);
            }
            float* const line = lines + warp * SIDE * LINE;
#pragma unroll
            for (u32 i = 0; i < SIDE; ++i) {
                const u32 query = min(first + i, TOKENS - 1);
                float max = __int_as_float(0xff800000), sum = 0.0f, mean = 0.0f;
#pragma unroll
                for (u32 group = 0; group < GROUPS; ++group) {
                    const u32 key = group * WARP + lane;
                    float& x = weight[group][i];
                    x = key < TOKENS ? logit(x, query, key) : __int_as_float(0xff800000);
                    max = fmaxf(max, x);
                }
                max = warp_max(max);
#pragma unroll
                for (u32 group = 0; group < GROUPS; ++group) {
                    weight[group][i] = __expf(weight[group][i] - max);
                    sum += weight[group][i];
                    mean += weight[group][i] * slope[group][i];
                }
                const float inverse = 1.0f / warp_sum(sum);
                mean = warp_sum(mean) * inverse;
#pragma unroll
                for (u32 group = 0; group < GROUPS; ++group)
                    line[i * LINE + group * WARP + lane] =
                        weight[group][i] * inverse * (slope[group][i] - mean);
                if (lane == 0 && first + i < TOKENS) {
                    maxima[query] = max;
                    inverses[query] = inverse;
                    means[query] = mean;
                }
            }
            __syncthreads();

            float dq[SIDE][OWNED] = {};
            if (first < TOKENS) {
#pragma unroll 4
                for (u32 key = 0; key < TOKENS; ++key) {
#pragma unroll
                    for (u32 j = 0; j < OWNED; ++j) {
                        const u32 at = lane + j * WARP;
                        if (D % WARP != 0 && at >= D) continue;
                        const float k = keys[key * PITCH + at];
#pragma unroll
                        for (u32 i = 0; i < SIDE; ++i) dq[i][j] += line[i * LINE + key] * k;
                    }
                }
            }
#pragma unroll
            for (u32 i = 0; i < SIDE; ++i) {
#pragma unroll
                for (u32 j = 0; j < OWNED; ++j) dq[i][j] *= p.scale;
                if (first + i < TOKENS) put(first + i, 0, dq[i]);
            }
            for (u32 i = threadIdx.x; i < OFFSETS; i += THREADS) {
                const u32 down = i / (2 * WINDOW - 1), right = i % (2 * WINDOW - 1);
                float sum = dtable[i];
                for (u32 query = round; query < TOKENS && query < round + LINES; ++query) {
                    // Of the only key that shares this row with the query; below 0 they are large.
                    const u32 y = query / WINDOW + WINDOW - 1 - down, x = query % WINDOW + WINDOW - 1 - right;
                    if (y < WINDOW && x < WINDOW) sum += lines[(query - round) * LINE + y * WINDOW + x];
                }
                dtable[i] = sum;
            }
            __syncthreads();
        }

        float* const weights = lines + warp * SIDE * LINE;
        float* const slopes = weights + SIDE * WARP;
        for (u32 first = warp * SIDE; first < TOKENS; first += LINES) {
            u32 own[SIDE];
#pragma unroll
            for (u32 i = 0; i < SIDE; ++i) own[i] = min(first + i, TOKENS - 1) * PITCH;
            float dk[SIDE][OWNED] = {}, dv[SIDE][OWNED] = {};
            for (u32 base = 0; base < TOKENS; base += WARP) {
                const u32 query = min(base + lane, TOKENS - 1);
                float weight[SIDE] = {}, slope[SIDE] = {};
                multiply(keys, own, queries + query * PITCH, weight);
                multiply(values, own, dys + query * PITCH, slope);
#pragma unroll
                for (u32 i = 0; i < SIDE; ++i) {
                    const float x = logit(weight[i], query, min(first + i, TOKENS - 1));
                    weight[i] = __expf(x - maxima[query]) * inverses[query];
                    slope[i] = weight[i] * (slope[i] - means[query]);
                }
                __syncwarp();
                store_shared_floats(weights + lane * SIDE, weight);
                store_shared_floats(slopes + lane * SIDE, slope);
                __syncwarp();
                const u32 count = min(TOKENS - base, WARP);
#pragma unroll 4
                for (u32 i = 0; i < count; ++i) {
                    float w[SIDE], s[SIDE];
                    load_vector(weights + i * SIDE, w);
                    load_vector(slopes + i * SIDE, s);
#pragma unroll
                    for (u32 j = 0; j < OWNED; ++j) {
                        const u32 at = lane + j * WARP;
                        if (D % WARP != 0 && at >= D) continue;
                        const float q = queries[(base + i) * PITCH + at], d = dys[(base + i) * PITCH + at];
#pragma unroll
                        for (u32 key = 0; key < SIDE; ++key) {
                            dk[key][j] += s[key] * q;
                            dv[key][j] += w[key] * d;
                        }
                    }
                }
            }
#pragma unroll
            for (u32 i = 0; i < SIDE; ++i) {
                if (first + i >= TOKENS) continue;
#pragma unroll
                for (u32 j = 0; j < OWNED; ++j) dk[i][j] *= p.scale;
                put(first + i, 1, dk[i]);
                put(first + i, 2, dv[i]);
            }
        }
    }

    // Parts. Warps' sums of the padding meet in `lines`.
    const u32 heads = p.channels / D;
    for (u32 i = threadIdx.x; i < OFFSETS; i += THREADS)
        table_parts[(u64(blockIdx.y) * OFFSETS + i) * heads + head] = dtable[i];
    __syncthreads();
#pragma unroll
    for (u32 block = 0; block < 2; ++block) {
#pragma unroll
        for (u32 i = 0; i < OWNED; ++i) {
            const u32 at = lane + i * WARP;
            if (at < D) lines[(warp * 2 + block) * D + at] = padding[block][i];
        }
    }
    __syncthreads();
    float* const to = bias_parts + u64(blockIdx.y) * stride + channel;
    for (u32 i = threadIdx.x; i < 3 * D; i += THREADS) {
        float sum = 0.0f;
        if (i >= D) {
            for (u32 w = 0; w < WARPS; ++w) sum += lines[w * 2 * D + i - D];
        }
        to[i / D * p.channels + i % D] = sum;
    }
}
