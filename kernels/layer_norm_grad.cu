// Gradients of layer norm over rows of C channels; the statistics are computed again. With xhat = (x - mean)
// / sqrt(variance + eps) and g = gamma * dy:
//
//   dx = (g - mean of g - xhat * mean of (g * xhat)) / sqrt(variance + eps)
//   dgamma = sum over rows of dy * xhat,   dbeta = sum over rows of dy
//
// layer_norm_dx: one warp a row, a lane VECTOR neighbouring channels at a time; the row is read three times,
// from the caches but for the first: for its mean, for sums over deviations from it (rows/standardise.cuh)
// and of g, for dx. It leaves the row's statistics, from which layer_norm_parts makes sums over `share` rows
// in the order of common/column_sums.cuh: parts [2, parts, C], those of dgamma first. sum_parts.cu adds them
// up.
//
// Bytes: x and dy twice, dx once. About 14 operations an element. gamma, dgamma and dbeta are f32.
// Defines: STORAGE (of x and dx), DY_TYPE, VECTOR (16 bytes where rows are whole chunks, else 1), WARPS (rows
// of a block of layer_norm_dx). The block of layer_norm_parts is LANES x ROWS threads.
#include "common/column_sums.cuh"
#include "rows/standardise.cuh"

typedef Storage<DY_TYPE>::type dy_t;

struct Params {
    u32 rows, channels;
    float eps;
};

extern "C" __global__ void __launch_bounds__(WARPS* WARP)
    layer_norm_dx(const storage_t* __restrict__ x, const float* __restrict__ gamma,
                  const dy_t* __restrict__ dy, storage_t* __restrict__ dx, Standard* __restrict__ standards,
                  const Params p) {
    const u32 lane = threadIdx.x % WARP, row = blockIdx.x * WARPS + threadIdx.x / WARP;
    if (row >= p.rows) return;
    x += u64(row) * p.channels;
    dy += u64(row) * p.channels;
    dx += u64(row) * p.channels;
    const float count = float(p.channels);
    float value[VECTOR], g[VECTOR], scale[VECTOR];
    const auto load_gradient = [&](u32 c) {
        load_elements(dy + c, g);
        load_elements(gamma + c, scale);
#pragma unroll
        for (int i = 0; i < VECTOR; ++i) g[i] *= scale[i];
    };

    float sum = 0.0f;
    for (u32 c = lane * VECTOR; c < p.channels; c += WARP * VECTOR) {
        load_elements(x + c, value);
#pragma unroll
        for (int i = 0; i < VECTOR; ++i) sum += value[i];
    }
    const float mean = warp_sum(sum) / count;
    float deviations = 0.0f, squares = 0.0f, gradients = 0.0f, products = 0.0f;
    for (u32 c = lane * VECTOR; c < p.channels; c += WARP * VECTOR) {
        load_elements(x + c, value);
        load_gradient(c);
#pragma unroll
        for (int i = 0; i < VECTOR; ++i) {
            const float deviation = value[i] - mean;
            deviations += deviation;
            squares += deviation * deviation;
            gradients += g[i];
            products += g[i] * deviation;
        }
    }
    const Standard standard(mean, warp_sum(deviations), warp_sum(squares), count, p.eps);
    const float gradient = warp_sum(gradients) / count;
    const float product = (warp_sum(products) / count - standard.rest * gradient) * standard.scale;
    for (u32 c = lane * VECTOR; c < p.channels; c += WARP * VECTOR) {
        load_elements(x + c, value);
        load_gradient(c);
#pragma unroll
        for (int i = 0; i < VECTOR; ++i)
            g[i] = (g[i] - gradient - standard.of(value[i]) * product) * standard.scale;
        store_elements(dx + c, g);
    }
    if (lane == 0) standards[row] = standard;
}

struct PartParams {
    u32 rows;
    u32 vectors;  // of a row
    u32 share;    // rows of a part
};

extern "C" __global__ void __launch_bounds__(LANES* ROWS)
    layer_norm_parts(const storage_t* __restrict__ x, const dy_t* __restrict__ dy,
                     const Standard* __restrict__ standards, float* __restrict__ parts, const PartParams p) {
    __shared__ ColumnSums sums;
    const u32 vector = blockIdx.x * LANES + threadIdx.x, channels = p.vectors * VECTOR;
    const u32 first = blockIdx.y * p.share, last = min(first + p.share, p.rows);
    float total[2 * VECTOR];
#pragma unroll
    for (int v = 0; v < 2 * VECTOR; ++v) total[v] = 0.0f;
    const auto load = [&](u32 i, float(&value)[2 * VECTOR]) {
        const Standard standard = standards[first + i];
        const u64 at = u64(first + i) * channels + vector * VECTOR;
        float own[VECTOR], g[VECTOR];
        load_elements(x + at, own);
        load_elements(dy + at, g);
#pragma unroll
        for (int v = 0; v < VECTOR; ++v) {
            value[v] = g[v] * standard.of(own[v]);
            value[VECTOR + v] = g[v];
        }
    };
    if (vector < p.vectors) add_values(last - first, load, total);
#pragma unroll
    for (u32 half = 0; half < 2; ++half) {
        float out[VECTOR];
#pragma unroll
        for (int v = 0; v < VECTOR; ++v) out[v] = total[half * VECTOR + v];
        __syncthreads();
        add_rows(sums, out);
        if (threadIdx.y > 0 || vector >= p.vectors) continue;
#pragma unroll
        for (int v = 0; v < VECTOR; ++v) out[v] = sums[v][0][threadIdx.x];
        store_elements(parts + u64(half * gridDim.y + blockIdx.y) * channels + vector * VECTOR, out);
    }
}
