// y = softmax(q k^T / sqrt(D) + bias + mask) v for every head of every window of a map: any window, heads of
// any depth, products in f32.
//
// qkv [B, H, W, 3C] holds queries, keys and values side by side, head h in channels h D .. (h + 1) D of each,
// y [B, H, W, C], both f32, f16 or bf16; all arithmetic is f32. A token of the padding has the projection's
// bias [3C] as query, key and value.
//
// A block takes one head of one window. Its keys and values pass through shared memory as f32, KEYS at a time
// (all at once for 12 x 12 tokens of 32 channels, and then once), gathered from the map or the bias. A warp
// takes QUERIES queries and 32 keys at a time:
//   logits: lane l owns key l; one 16-byte read of its key serves all queries, which are broadcast;
//   softmax: running maximum m and sum of exp(logit - m), rescaled when m grows (Milakov and Gimelshein
//   2018); values: lane l owns channels l, l + 32, ..; the 32 weights of each query are exchanged through
//   shared memory.
// The head's column of the table of biases lies in shared memory; masks come of positions.
//
// 4 TOKENS^2 D FLOPs a block; each channel of a token is read once as key and value, if all fit, and once as
// query: 4 elements a channel and token.
//
// Grid: x counts heads, and windows across beyond them, y windows down, z images. Block: WARPS warps. Shared
// memory: 4 * (KEYS * (PITCH + PADDED) + WARPS * QUERIES * (PADDED + 32) + OFFSETS) bytes. Defines: STORAGE,
// BIAS (the bias's type), D, WINDOW, KEYS (a multiple of 32), QUERIES (a multiple of 4), WARPS, VECTOR.
#include "attention/window_rows.cuh"
#include "common/reduce.cuh"

#define OWNED ((D + WARP - 1) / WARP)

extern __shared__ __align__(16) float shared[];

extern "C" __global__ void __launch_bounds__(WARPS * WARP, 4)
    window_attention_any(const storage_t* __restrict__ qkv, const bias_t* __restrict__ bias,
                         const float* __restrict__ table, storage_t* __restrict__ y, const Params p) {
    const u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    float* const keys = shared;
    float* const values = keys + KEYS * PITCH;
    float* const queries = values + KEYS * PADDED + warp * (QUERIES * PADDED);
    float* const weights = values + KEYS * PADDED + WARPS * QUERIES * PADDED + warp * (QUERIES * WARP);
    float* const biases = values + KEYS * PADDED + WARPS * QUERIES * (PADDED + WARP);

    const u32 heads = p.channels / D, head = blockIdx.x % heads;
    const Place place(blockIdx.z, blockIdx.y, blockIdx.x / heads, p);
    const auto source = [&](u32 block) {
        const u32 channel = block * p.channels + head * D;
        return Source{qkv + channel, 3 * p.channels, bias + channel};
    };
    for (u32 i = threadIdx.x; i < OFFSETS; i += WARPS * WARP)
        biases[i] = table[i * p.offset_stride + head * p.head_stride];

    for (u32 round = 0; round < TOKENS; round += WARPS * QUERIES) {
        const u32 first = round + warp * QUERIES;
        __syncwarp();
        gather(queries, PADDED, first, QUERIES, source(0), place, p, lane, WARP);
        __syncwarp();
        float max[QUERIES], sum[QUERIES], result[QUERIES][OWNED] = {};
#pragma unroll
        for (int q = 0; q < QUERIES; ++q) {
            max[q] = __int_as_float(0xff800000);
            sum[q] = 0.0f;
        }
        for (u32 start = 0; start < TOKENS; start += KEYS) {
            if (KEYS < TOKENS || round == 0) {
                __syncthreads();
                gather(keys, PITCH, start, KEYS, source(1), place, p, threadIdx.x, WARPS * WARP);
                gather(values, PADDED, start, KEYS, source(2), place, p, threadIdx.x, WARPS * WARP);
                __syncthreads();
            }
            const u32 left = TOKENS - start;
            for (u32 base = 0; base < KEYS && base < left && first < TOKENS; base += WARP) {
                float logit[QUERIES] = {};
                const float* key = keys + (base + lane) * PITCH;
#pragma unroll 4
                for (int c = 0; c < PADDED; c += 4) {
                    float k[4];
                    load_vector(key + c, k);
#pragma unroll
                    for (int q = 0; q < QUERIES; ++q) {
                        float x[4];
                        load_vector(queries + q * PADDED + c, x);
#pragma unroll
                        for (int i = 0; i < 4; ++i) logit[q] += k[i] * x[i];
                    }
                }
                const u32 token = start + base + lane, part = place.part(token);
                float exchanged[QUERIES];
                __syncwarp();
#pragma unroll
                for (int q = 0; q < QUERIES; ++q) {
                    float x = __int_as_float(0xff800000);
                    if (token < TOKENS && first + q < TOKENS) {
                        x = logit[q] * p.scale + biases[query_offset(first + q) - key_offset(token)];
                        if (place.part(first + q) != part) x += p.mask;
                    }
                    const float raised = fmaxf(max[q], warp_max(x));
                    const float rescale = __expf(max[q] - raised), weight = __expf(x - raised);
                    max[q] = raised;
                    sum[q] = sum[q] * rescale + weight;
#pragma unroll
                    for (int i = 0; i < OWNED; ++i) result[q][i] *= rescale;
                    exchanged[q] = weight;
                }
                store_shared_floats(weights + lane * QUERIES, exchanged);
                __syncwarp();
                const float* value = values + base * PADDED;
#pragma unroll 8
                for (int j = 0; j < WARP; ++j) {
#pragma unroll
                    for (int i = 0; i < OWNED; ++i) {
                        const u32 channel = lane + i * WARP;
                        if (D % WARP != 0 && channel >= D) continue;
                        const float v = value[j * PADDED + channel];
#pragma unroll
                        for (int q = 0; q < QUERIES; ++q) result[q][i] += weights[j * QUERIES + q] * v;
                    }
                }
            }
        }
#pragma unroll
        for (int q = 0; q < QUERIES; ++q) {
            const float total = warp_sum(sum[q]);
            const u32 pixel = first + q < TOKENS ? place.pixel(first + q, p) : PADDING;
            if (pixel == PADDING) continue;
            storage_t* to = y + u64(pixel) * p.channels + head * D;
#pragma unroll
            for (int i = 0; i < OWNED; ++i) {
                const u32 channel = lane + i * WARP;
                if (channel < D) to[channel] = from_f32<storage_t>(result[q][i] / total);
            }
        }
    }
}
