// y = softmax(q k^T / sqrt(D)) v for every head of every image: multi-head self-attention over the N objects
// of an image.
//
// qkv [B, N, 3C] holds queries, keys and values side by side, head h in channels h D .. (h + 1) D of each; y
// [B, N, C]. Everything is f32: N is some hundreds, so that this step is a matter of latency.
//
// A block takes WARPS * QUERIES queries of one head, a warp QUERIES of them. Keys and values pass through
// shared memory, KEYS at a time (all at once for up to 160 objects of 32 channels), copied behind each other
// by cp.async. A warp takes 32 keys at a time:
//   logits: lane l owns key l; one 16-byte read of its key serves all queries, which are broadcast;
//   softmax: running maximum m and sum of exp(logit - m), rescaled when m grows (Milakov and Gimelshein
//   2018); values: lane l owns channels l, l + 32, ..; the 32 weights of each query are exchanged through
//   shared memory.
//
// 4 N^2 C FLOPs and 4 N C floats an image; keys and values are read N / (WARPS * QUERIES) times, from L2.
// Grid: query blocks, heads, images. Defines: D, KEYS (a multiple of 32), QUERIES, WARPS.
#include "attention/rows.cuh"

struct Params {
    u32 objects, channels;
    float scale;  // 1 / sqrt(D)
};

extern "C" __global__ void __launch_bounds__(WARPS * WARP, 1)
    attention(const float* __restrict__ qkv, float* __restrict__ y, const Params p) {
    __shared__ alignas(16) float keys[KEYS * PITCH];
    __shared__ alignas(16) float values[KEYS * PADDED];
    __shared__ alignas(16) float queries[WARPS * QUERIES * PADDED];
    __shared__ alignas(16) float weights[WARPS][WARP][QUERIES];

    const u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, stride = 3 * p.channels;
    const u32 first = blockIdx.x * (WARPS * QUERIES);
    const float* head = qkv + u64(blockIdx.z) * p.objects * stride + blockIdx.y * D;
    copy_rows(queries, PADDED, head + u64(first) * stride, stride, WARPS * QUERIES, p.objects - first);

    float max[QUERIES], sum[QUERIES], result[QUERIES][OWNED] = {};
#pragma unroll
    for (int q = 0; q < QUERIES; ++q) {
        max[q] = __int_as_float(0xff800000);
        sum[q] = 0.0f;
    }
    const float* mine = queries + warp * QUERIES * PADDED;
    for (u32 start = 0; start < p.objects; start += KEYS) {
        const u32 left = p.objects - start;
        const float* from = head + u64(start) * stride + p.channels;
        __syncthreads();
        copy_rows(keys, PITCH, from, stride, KEYS, left);
        copy_rows(values, PADDED, from + p.channels, stride, KEYS, left);
        commit_copies();
        wait_copies<0>();
        __syncthreads();
        for (u32 base = 0; base < KEYS && base < left; base += WARP) {
            float logit[QUERIES] = {};
            const float* key = keys + (base + lane) * PITCH;
#pragma unroll
            for (int c = 0; c < PADDED; c += 4) {
                float k[4];
                load_vector(key + c, k);
#pragma unroll
                for (int q = 0; q < QUERIES; ++q) {
                    float x[4];
                    load_vector(mine + q * PADDED + c, x);
#pragma unroll
                    for (int i = 0; i < 4; ++i) logit[q] += k[i] * x[i];
                }
            }
            __syncwarp();
#pragma unroll
            for (int q = 0; q < QUERIES; ++q) {
                const float x = base + lane < left ? logit[q] * p.scale : __int_as_float(0xff800000);
                const float raised = fmaxf(max[q], warp_max(x));
                const float rescale = __expf(max[q] - raised), weight = __expf(x - raised);
                max[q] = raised;
                sum[q] = sum[q] * rescale + weight;
#pragma unroll
                for (int i = 0; i < OWNED; ++i) result[q][i] *= rescale;
                weights[warp][lane][q] = weight;
            }
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
                    for (int q = 0; q < QUERIES; ++q) result[q][i] += weights[warp][j][q] * v;
                }
            }
        }
    }
#pragma unroll
    for (int q = 0; q < QUERIES; ++q) {
        const u32 row = first + warp * QUERIES + q;
        const float total = warp_sum(sum[q]);
        if (row >= p.objects) continue;
        float* to = y + (u64(blockIdx.z) * p.objects + row) * p.channels + blockIdx.y * D;
#pragma unroll
        for (int i = 0; i < OWNED; ++i) {
            const u32 channel = lane + i * WARP;
            if (channel < D) to[channel] = result[q][i] / total;
        }
    }
}
