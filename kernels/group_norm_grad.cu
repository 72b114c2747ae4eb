// Gradient of a group norm over maps [B, pixels, C], from x and dy alone. With the mean and biased variance
// of a group of an image, inverse = 1 / sqrt(variance + eps), xhat = (x - mean) * inverse and g = gamma * dy:
//
//   dgamma[c] = sum of dy * xhat,  dbeta[c] = sum of dy  over all images and pixels,
//   dx = (g - a - xhat * b) * inverse,  a and b being the means of g and of g * xhat over the group.
//
// Three launches, without atomics:
//
//   parts   a block takes LANES vectors of VECTOR channels and `part_pixels` pixels of an image: the moments
//           of each channel (common/column_moments.cuh), then, reading its part again from L1 and L2, the
//           sums of dy and of dy * (x - the part's own mean), which lose no digits to a mean far from zero
//   groups  a block a group of an image: its statistics from the parts, and every channel's sums about the
//           group's mean: sum of dy * (x - mean) = sum over parts of (their sum + (their mean - mean) * sum
//           of dy). dgamma and dbeta of the image go to [B, C] each, which sum_parts.cu adds
//   dx      a vector of a pixel a thread
//
// x and dy are read twice and dx is written: 5 * B * pixels * C * sizeof(storage_t) bytes; 12 FLOPs an
// element.
//
// Defines: STORAGE, VECTOR (16 bytes where rows are whole chunks, else 1).
#include "common/column_moments.cuh"
#include "common/divisor.cuh"

#define GROUP_THREADS 256

struct Params {
    u32 pixels;   // of an image
    u32 vectors;  // of a pixel
    u32 groups, width;  // channels of a group
    u32 parts, part_pixels;
    float eps;
    Divisor by_vectors, by_width;
};

// Of a channel in a part: its moments, relative to the group's first element, and the sums of dy and of dy *
// (x - mean).
struct alignas(16) Part {
    float mean, m2, grad, product;
};

// Of a group of an image.
struct alignas(16) Group {
    float mean, inverse, first, second;
};

// The first elements of the groups of the channels from `channel` on.
__device__ inline void load_origins(const Params& p, const storage_t* image, u32 channel,
                                    float (&origin)[VECTOR]) {
#pragma unroll
    for (int v = 0; v < VECTOR; ++v) origin[v] = to_f32(image[(channel + v) / p.by_width * p.width]);
}

extern "C" __global__ void __launch_bounds__(LANES* ROWS, 1)
    parts(const storage_t* __restrict__ x, const storage_t* __restrict__ dy, Part* __restrict__ parts,
          const Params p) {
    __shared__ ColumnMoments shared;
    __shared__ ColumnSums sums;
    const u32 lane = threadIdx.x, row = threadIdx.y, vector = blockIdx.x * LANES + lane;
    const u32 channel = vector * VECTOR;
    const u64 pixel = u64(p.vectors) * VECTOR, image = u64(blockIdx.z) * p.pixels * pixel;
    const u32 start = blockIdx.y * p.part_pixels, pixels = min(p.part_pixels, p.pixels - start);
    const bool active = vector < p.vectors;
    float origin[VECTOR] = {};
    if (active) load_origins(p, x + image, channel, origin);
    const storage_t* from = x + image + start * pixel + channel;
    column_moments(shared, pixels, [=](u32 i) { return from + i * pixel; }, active, origin);

    float grads[VECTOR] = {}, products[VECTOR] = {};
    if (active) {
        const storage_t* grad_from = dy + (from - x);
        float mean[VECTOR];
#pragma unroll
        for (int v = 0; v < VECTOR; ++v) mean[v] = shared.mean[v][0][lane];
#pragma unroll 2
        for (u32 i = row; i < pixels; i += ROWS) {
            float value[VECTOR], grad[VECTOR];
            load_elements(from + i * pixel, value);
            load_elements(grad_from + i * pixel, grad);
#pragma unroll
            for (int v = 0; v < VECTOR; ++v) {
                grads[v] += grad[v];
                products[v] += grad[v] * (value[v] - origin[v] - mean[v]);
            }
        }
    }
    add_rows(sums, grads);
#pragma unroll
    for (int v = 0; v < VECTOR; ++v)
        if (row == 0) grads[v] = sums[v][0][lane];
    __syncthreads();
    add_rows(sums, products);
    if (row > 0 || !active) return;
    parts += (u64(blockIdx.z) * p.parts + blockIdx.y) * pixel + channel;
#pragma unroll
    for (int v = 0; v < VECTOR; ++v)
        parts[v] = Part{shared.mean[v][0][lane], shared.m2[v][0][lane], grads[v], sums[v][0][lane]};
}

extern "C" __global__ void __launch_bounds__(GROUP_THREADS, 1)
    groups(const Part* __restrict__ parts, const float* __restrict__ gamma, Group* __restrict__ groups,
           float* __restrict__ dgamma, float* __restrict__ dbeta, const Params p) {
    __shared__ float partial[WARP];
    const u32 group = blockIdx.x, image = blockIdx.y, thread = threadIdx.x;
    const u32 channels = p.vectors * VECTOR, warps = GROUP_THREADS / WARP;
    const Part* from = parts + u64(image) * p.parts * channels + group * p.width;
    const auto count_of = [&](u32 part) {
        return float(min(p.part_pixels, p.pixels - part * p.part_pixels));
    };
    const u32 all = p.parts * p.width;
    const float total = float(p.pixels) * float(p.width);
    // The mean lies `shift` above the first part's: of a small number few digits are lost, and they count, as
    // every channel's sum of dy is multiplied with what is left of them.
    const float base = from[0].mean;
    float weighted = 0.0f;
    for (u32 i = thread; i < all; i += GROUP_THREADS) {
        const u32 part = i / p.by_width;
        weighted += count_of(part) * (from[u64(part) * channels + i - part * p.width].mean - base);
    }
    const float shift = __fdividef(block_sum(weighted, partial, thread, warps), total);
    float spread = 0.0f;
    for (u32 i = thread; i < all; i += GROUP_THREADS) {
        const u32 part = i / p.by_width;
        const Part own = from[u64(part) * channels + i - part * p.width];
        const float d = own.mean - base - shift;
        spread += own.m2 + count_of(part) * d * d;
    }
    spread = block_sum(spread, partial, thread, warps);
    const float inverse = inverse_root(__fdividef(spread, total) + p.eps);

    // A warp a channel.
    float first = 0.0f, second = 0.0f;
    for (u32 c = thread / WARP; c < p.width; c += warps) {
        float grad = 0.0f, product = 0.0f;
        for (u32 part = thread % WARP; part < p.parts; part += WARP) {
            const Part own = from[u64(part) * channels + c];
            grad += own.grad;
            product += own.product + (own.mean - base - shift) * own.grad;
        }
        grad = warp_sum(grad);
        product = warp_sum(product) * inverse;
        if (thread % WARP > 0) continue;
        const u32 channel = group * p.width + c;
        dgamma[u64(image) * channels + channel] = product;
        dbeta[u64(image) * channels + channel] = grad;
        first += gamma[channel] * grad;
        second += gamma[channel] * product;
    }
    first = block_sum(first, partial, thread, warps);
    second = block_sum(second, partial, thread, warps);
    if (thread == 0)
        groups[u64(image) * p.groups + group] =
            Group{base + shift, inverse, __fdividef(first, total), __fdividef(second, total)};
}

extern "C" __global__ void __launch_bounds__(256, 1)
    dx(const storage_t* __restrict__ x, const float* __restrict__ gamma, const storage_t* __restrict__ dy,
       const Group* __restrict__ groups, storage_t* __restrict__ to, const Params p) {
    const u32 i = blockIdx.x * blockDim.x + threadIdx.x, pixel = i / p.by_vectors;
    if (pixel >= p.pixels) return;
    const u32 channel = (i - pixel * p.vectors) * VECTOR;
    const u64 image = u64(blockIdx.y) * p.pixels * p.vectors * VECTOR, at = image + u64(i) * VECTOR;
    float value[VECTOR], grad[VECTOR], g[VECTOR], origin[VECTOR];
    load_elements(x + at, value);
    load_elements(dy + at, grad);
    load_elements(gamma + channel, g);
    load_origins(p, x + image, channel, origin);
#pragma unroll
    for (int v = 0; v < VECTOR; ++v) {
        const Group own = groups[blockIdx.y * p.groups + (channel + v) / p.by_width];
        const float normalised = (value[v] - origin[v] - own.mean) * own.inverse;
        grad[v] = (g[v] * grad[v] - own.first - normalised * own.second) * own.inverse;
    }
    store_elements(to + at, grad);
}
