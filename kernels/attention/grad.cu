// Gradients of multi-head self-attention (attention.cu): of queries, keys and values. Weights are computed
// again: no matrix of them is ever in memory.
//
// With the weights P of a head and dP = dy v^T: dS = P * (dP - rowsum(P * dP)) / sqrt(D), dq = dS k, dk =
// dS^T q, dv = P^T dy. qkv and dqkv [B, N, 3C], dy [B, N, C], all f32.
//
// Two launches, so that every sum is one warp's, in a fixed order, and the work is spread over as many blocks
// as there are rows: attention_grad_queries leaves each query's maximum, inverse sum and rowsum(P * dP), and
// dq; attention_grad_keys makes columns of P and dS of those, and dk and dv. In both, a warp owns SIDE rows,
// and all rows of the other side pass through shared memory, KEYS at a time, copied behind each other by
// cp.async. A warp takes 32 of them at a time: lane l multiplies row l with the warp's own; the weights are
// exchanged through shared memory, and lane l adds up channels l, l + 32, ..
//
// 18 N^2 C FLOPs an image (the two products that give P and dP are made three times) and 7 N C floats; the
// other side's rows are read N / (WARPS * SIDE) times, from L2.
//
// Grid: blocks of WARPS * SIDE rows, heads, images. Shared memory: 4 * (2 * KEYS * PITCH + 2 * WARPS * SIDE *
// (PADDED + 32)) bytes. Defines: D, KEYS (a multiple of 32), SIDE (4), WARPS.
#include "attention/rows.cuh"
#include "common/elements.cuh"

#define LINES (WARPS * SIDE)

struct Params {
    u32 objects, channels;
    float scale;  // 1 / sqrt(D)
};

// What a query's weights and their slopes are made of.
struct alignas(16) Softmax {
    float max, inverse, mean, unused;
};

extern __shared__ __align__(16) float shared[];

// Rows of one head of one image in memory.
struct Rows {
    const float* first;
    u32 stride;
};

// The operands of the block's head.
struct Head {
    Rows queries, keys, values, dys;

    __device__ inline Head(const float* qkv, const float* dy, const Params& p) {
        const u64 row = u64(blockIdx.z) * p.objects;
        const float* const head = qkv + row * 3 * p.channels + blockIdx.y * D;
        queries = {head, 3 * p.channels};
        keys = {head + p.channels, 3 * p.channels};
        values = {head + 2 * p.channels, 3 * p.channels};
        dys = {dy + row * p.channels + blockIdx.y * D, p.channels};
    }
};

// What lies in shared memory: pairs of rows of the other side and the block's own, and what a warp exchanges.
struct Stage {
    float* others[2];
    float* own[2];
    float* exchange[2];

    __device__ inline Stage() {
        const u32 warp = threadIdx.x / WARP;
        float* next = shared;
#pragma unroll
        for (u32 i = 0; i < 2; ++i) {
            others[i] = next + i * KEYS * PITCH;
            own[i] = next + 2 * KEYS * PITCH + (i * LINES + warp * SIDE) * PADDED;
            exchange[i] = next + 2 * KEYS * PITCH + 2 * LINES * PADDED + (i * LINES + warp * SIDE) * WARP;
        }
    }

    // Copies the rows from `row` on that the block owns; those of the other side wait for these as well.
    __device__ inline void take_own(const Rows& a, const Rows& b, u32 row, u32 objects) const {
        const u32 warp = threadIdx.x / WARP, back = warp * SIDE * PADDED;
        copy_rows(own[0] - back, PADDED, a.first + u64(row) * a.stride, a.stride, LINES, objects - row);
        copy_rows(own[1] - back, PADDED, b.first + u64(row) * b.stride, b.stride, LINES, objects - row);
    }

    // Calls f(row, at) for every 32 rows of the other side: the first, and how many floats from the start of
    // `others` it lies. `kept`: they are all there from the last time.
    template <typename F>
    __device__ inline void for_others(const Rows& a, const Rows& b, u32 objects, bool kept, F f) const {
        for (u32 start = 0; start < objects; start += KEYS) {
            const u32 left = objects - start;
            if (!kept) {
                __syncthreads();
                copy_rows(others[0], PITCH, a.first + u64(start) * a.stride, a.stride, KEYS, left);
                copy_rows(others[1], PITCH, b.first + u64(start) * b.stride, b.stride, KEYS, left);
                commit_copies();
                wait_copies<0>();
                __syncthreads();
            }
            for (u32 base = 0; base < KEYS && base < left; base += WARP) f(start + base, base * PITCH);
        }
    }

    // dot[side][i] = own row i . this lane's other row, of both pairs.
    __device__ inline void multiply(u32 at, float (&dot)[2][SIDE]) const {
        const u32 lane = threadIdx.x % WARP;
#pragma unroll
        for (u32 side = 0; side < 2; ++side) {
            const float* const other = others[side] + at + lane * PITCH;
#pragma unroll
            for (u32 i = 0; i < SIDE; ++i) dot[side][i] = 0.0f;
#pragma unroll 4
            for (u32 c = 0; c < PADDED; c += 4) {
                float a[4];
                load_vector(other + c, a);
#pragma unroll
                for (u32 i = 0; i < SIDE; ++i) {
                    float b[4];
                    load_vector(own[side] + i * PADDED + c, b);
#pragma unroll
                    for (u32 j = 0; j < 4; ++j) dot[side][i] += a[j] * b[j];
                }
            }
        }
    }

    // sums[i] += sum over the 32 rows at `at` of weight[row][i] * other row: this lane's channels of it, the
    // weights being what lane `row` gives.
    __device__ inline void add(u32 side, u32 at, const float (&weight)[SIDE], u32 through,
                               float (&sums)[SIDE][OWNED]) const {
        const u32 lane = threadIdx.x % WARP;
        __syncwarp();
        store_shared_floats(exchange[through] + lane * SIDE, weight);
        __syncwarp();
#pragma unroll 8
        for (u32 row = 0; row < WARP; ++row) {
            float w[SIDE];
            load_vector(exchange[through] + row * SIDE, w);
#pragma unroll
            for (u32 j = 0; j < OWNED; ++j) {
                const u32 channel = lane + j * WARP;
                if (D % WARP != 0 && channel >= D) continue;
                const float x = others[side][at + row * PITCH + channel];
#pragma unroll
                for (u32 i = 0; i < SIDE; ++i) sums[i][j] += w[i] * x;
            }
        }
    }
};

// Writes row `row` of the gradient of queries (block 0), keys or values of the block's head.
__device__ inline void put(float* dqkv, u32 row, u32 block, float factor, const float (&x)[OWNED],
                           const Params& p) {
    if (row >= p.objects) return;
    float* const to = dqkv + (u64(blockIdx.z) * p.objects + row) * 3 * p.channels + block * p.channels +
                      blockIdx.y * D;
#pragma unroll
    for (u32 j = 0; j < OWNED; ++j) {
        const u32 channel = threadIdx.x % WARP + j * WARP;
        if (channel < D) to[channel] = x[j] * factor;
    }
}

extern "C" __global__ void __launch_bounds__(WARPS* WARP, 1)
    attention_grad_queries(const float* __restrict__ qkv, const float* __restrict__ dy,
                           float* __restrict__ dqkv, Softmax* __restrict__ softmax, const Params p) {
    const u32 lane = threadIdx.x % WARP, row = blockIdx.x * LINES + threadIdx.x / WARP * SIDE;
    const Head head(qkv, dy, p);
    const Stage stage;
    stage.take_own(head.queries, head.dys, blockIdx.x * LINES, p.objects);

    float max[SIDE], inverse[SIDE], mean[SIDE];
#pragma unroll
    for (u32 i = 0; i < SIDE; ++i) {
        max[i] = __int_as_float(0xff800000);
        inverse[i] = mean[i] = 0.0f;
    }
    // `inverse` is the sum until it is known.
    stage.for_others(head.keys, head.values, p.objects, false, [&](u32 key, u32 at) {
        float dot[2][SIDE];
        stage.multiply(at, dot);
#pragma unroll
        for (u32 i = 0; i < SIDE; ++i) {
            const float x = key + lane < p.objects ? dot[0][i] * p.scale : __int_as_float(0xff800000);
            const float raised = fmaxf(max[i], warp_max(x));
            const float rescale = __expf(max[i] - raised), weight = __expf(x - raised);
            max[i] = raised;
            inverse[i] = inverse[i] * rescale + weight;
            mean[i] = mean[i] * rescale + weight * dot[1][i];
        }
    });
#pragma unroll
    for (u32 i = 0; i < SIDE; ++i) {
        inverse[i] = 1.0f / warp_sum(inverse[i]);
        mean[i] = warp_sum(mean[i]) * inverse[i];
        if (lane == 0 && row + i < p.objects) {
            const u64 query = (u64(blockIdx.z) * gridDim.y + blockIdx.y) * p.objects + row + i;
            softmax[query] = Softmax{max[i], inverse[i], mean[i], 0.0f};
        }
    }

    float dq[SIDE][OWNED] = {};
    stage.for_others(head.keys, head.values, p.objects, p.objects <= KEYS, [&](u32 key, u32 at) {
        float dot[2][SIDE], slope[SIDE];
        stage.multiply(at, dot);
#pragma unroll
        for (u32 i = 0; i < SIDE; ++i) {
            const float weight = key + lane < p.objects ? __expf(dot[0][i] * p.scale - max[i]) : 0.0f;
            slope[i] = weight * inverse[i] * (dot[1][i] - mean[i]);
        }
        stage.add(0, at, slope, 0, dq);
    });
#pragma unroll
    for (u32 i = 0; i < SIDE; ++i) put(dqkv, row + i, 0, p.scale, dq[i], p);
}

extern "C" __global__ void __launch_bounds__(WARPS* WARP, 1)
    attention_grad_keys(const float* __restrict__ qkv, const float* __restrict__ dy,
                        float* __restrict__ dqkv, const Softmax* __restrict__ softmax, const Params p) {
    const u32 lane = threadIdx.x % WARP, row = blockIdx.x * LINES + threadIdx.x / WARP * SIDE;
    const Head head(qkv, dy, p);
    const Stage stage;
    stage.take_own(head.keys, head.values, blockIdx.x * LINES, p.objects);
    softmax += (u64(blockIdx.z) * gridDim.y + blockIdx.y) * p.objects;

    float dk[SIDE][OWNED] = {}, dv[SIDE][OWNED] = {};
    stage.for_others(head.queries, head.dys, p.objects, false, [&](u32 query, u32 at) {
        float dot[2][SIDE], weight[SIDE], slope[SIDE];
        stage.multiply(at, dot);
        const bool inside = query + lane < p.objects;
        const Softmax known = softmax[inside ? query + lane : 0];
#pragma unroll
        for (u32 i = 0; i < SIDE; ++i) {
            weight[i] = inside ? __expf(dot[0][i] * p.scale - known.max) * known.inverse : 0.0f;
            slope[i] = weight[i] * (dot[1][i] - known.mean);
        }
        stage.add(0, at, slope, 0, dk);
        stage.add(1, at, weight, 1, dv);
    });
#pragma unroll
    for (u32 i = 0; i < SIDE; ++i) {
        put(dqkv, row + i, 1, p.scale, dk[i], p);
        put(dqkv, row + i, 2, 1.0f, dv[i], p);
    }
}
