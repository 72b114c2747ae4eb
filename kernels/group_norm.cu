// y = activation((x - mean) / sqrt(variance + eps) * gamma[c] + beta[c]) over maps [B, pixels, C]; mean and
// biased variance over the pixels and the C / groups neighbouring channels of a group of an image (Wu and He
// 2018).
//
// For channels in whole chunks of 16 bytes; group_norm_any.cu takes the rest. Two launches, no atomics:
//
//   group_norm_moments  a block of vectors x ROWS threads takes a run of pixels; thread (vector, row) sums (x
//                       - first) and
//                       its square for VECTOR channels of every ROWS-th pixel, `first` being the first value
//                       it sees. The sums meet in shared memory, where one warp a group puts them together
//                       (common/moments.cuh) and writes the part's moments: partial[image][group][part],
//                       relative to the group's first element.
//   group_norm_apply    each block loads its pixels, puts the parts of every group together (a few KiB, from
//                       L2) while
//                       they arrive, then normalises.
//
// x is read twice and y written once: 3 * B * pixels * C * sizeof(storage_t) bytes, of which the second read
// comes from L2 where the map fits; 5 FLOPs an element. The order of all sums follows from the shape alone.
//
// Defines: STORAGE, ACTIVATION, WIDTH (channels of a group). Threads: see Params; dynamic shared memory: (2 *
// (C + 8) + 1) * rows floats, then 3 * groups.
#include "common/activation.cuh"
#include "common/elements.cuh"
#include "common/moments.cuh"

#define VECTOR (Lanes<storage_t>::count)
// Pixels of a thread: enough loads in flight to cover the latency of memory.
#define MOMENT_PIXELS 16
#define APPLY_PIXELS 8

struct Params {
    u32 pixels;
    u32 vectors;  // of one pixel
    u32 groups;
    u32 parts;    // blocks of group_norm_moments an image
    u32 part_pixels;
    float eps;
};

extern "C" __global__ void __launch_bounds__(256, 4)
    group_norm_moments(const storage_t* __restrict__ x, Moments* __restrict__ partial, const Params p) {
    extern __shared__ float4 shared[];
    const u32 rows = blockDim.y, row = threadIdx.y;
    const u32 channels = p.vectors * VECTOR, channel = threadIdx.x * VECTOR;
    // Eight more floats a row spread the rows of a group over the banks.
    const u32 pitch = channels + 8;
    float* means = reinterpret_cast<float*>(shared);
    float* m2s = means + rows * pitch;
    float* counts = m2s + rows * pitch;

    const storage_t* image = x + u64(blockIdx.y) * p.pixels * channels;
    const u32 start = blockIdx.x * p.part_pixels;
    const u32 pixels = min(p.part_pixels, p.pixels - start);
    const storage_t* at = image + u64(start) * channels + channel;
    const float count = float(row < pixels ? (pixels - row + rows - 1) / rows : 0);
    float first[VECTOR], sum[VECTOR], squares[VECTOR];
    load_elements(row < pixels ? at + u64(row) * channels : at, first);
#pragma unroll
    for (int v = 0; v < VECTOR; ++v) sum[v] = squares[v] = 0.0f;
#pragma unroll 8
    for (u32 pixel = row + rows; pixel < pixels; pixel += rows) {
        float value[VECTOR];
        load_elements(at + u64(pixel) * channels, value);
#pragma unroll
        for (int v = 0; v < VECTOR; ++v) {
            const float d = value[v] - first[v];
            sum[v] += d;
            squares[v] += d * d;
        }
    }
    float mean[VECTOR], m2[VECTOR];
#pragma unroll
    for (int v = 0; v < VECTOR; ++v) {
        const float origin = to_f32(image[(channel + v) / WIDTH * WIDTH]);
        const Moments moments = moments_of(sum[v], squares[v], count, first[v] - origin);
        mean[v] = moments.mean;
        m2[v] = moments.m2;
    }
    store_shared_floats(means + row * pitch + channel, mean);
    store_shared_floats(m2s + row * pitch + channel, m2);
    if (threadIdx.x == 0) counts[row] = count;
    __syncthreads();

    const u32 thread = row * blockDim.x + threadIdx.x, lane = thread % WARP;
    const u32 warps = blockDim.x * rows / WARP;
    const float total = float(pixels * WIDTH);
    // Threads beyond the last whole warp have nothing left to do: warp `warps` finds no group.
    if (thread / WARP >= warps) return;
    for (u32 group = thread / WARP; group < p.groups; group += warps) {
        float weighted = 0.0f;
        for (u32 i = lane; i < WIDTH * rows; i += WARP) {
            const u32 r = i / WIDTH;
            weighted += counts[r] * means[r * pitch + group * WIDTH + i % WIDTH];
        }
        const float group_mean = __fdividef(warp_sum(weighted), total);
        float spread = 0.0f;
        for (u32 i = lane; i < WIDTH * rows; i += WARP) {
            const u32 r = i / WIDTH, place = r * pitch + group * WIDTH + i % WIDTH;
            const float d = means[place] - group_mean;
            spread += m2s[place] + counts[r] * d * d;
        }
        spread = warp_sum(spread);
        if (lane == 0) {
            partial[(u64(blockIdx.y) * p.groups + group) * p.parts + blockIdx.x] =
                Moments{group_mean, spread};
        }
    }
}

extern "C" __global__ void __launch_bounds__(512, 1)
    group_norm_apply(const storage_t* __restrict__ x, const Moments* __restrict__ partial,
                     const float* __restrict__ gamma, const float* __restrict__ beta,
                     storage_t* __restrict__ y, const Params p) {
    extern __shared__ float group_values[];
    const u32 rows = blockDim.y, row = threadIdx.y;
    const u32 channels = p.vectors * VECTOR, channel = threadIdx.x * VECTOR;
    const u64 base = u64(blockIdx.y) * p.pixels * channels;
    const u32 start = blockIdx.x * rows * APPLY_PIXELS + row;
    Chunk chunk[APPLY_PIXELS];
#pragma unroll
    for (int i = 0; i < APPLY_PIXELS; ++i) {
        const u32 pixel = start + i * rows;
        if (pixel < p.pixels) chunk[i] = load_chunk(x + base + u64(pixel) * channels + channel);
    }

    const u32 thread = row * blockDim.x + threadIdx.x, lane = thread % WARP;
    const u32 warps = blockDim.x * rows / WARP;
    const float total = float(p.pixels) * float(WIDTH);
    float* origins = group_values;
    float* group_means = origins + p.groups;
    float* inverses = group_means + p.groups;
    for (u32 group = thread / WARP; group < p.groups && thread / WARP < warps; group += warps) {
        const Moments* parts = partial + (u64(blockIdx.y) * p.groups + group) * p.parts;
        const float last = float((p.pixels - (p.parts - 1) * p.part_pixels) * WIDTH);
        const float full = float(p.part_pixels * WIDTH);
        float weighted = 0.0f;
        for (u32 i = lane; i < p.parts; i += WARP)
            weighted += (i + 1 < p.parts ? full : last) * parts[i].mean;
        const float mean = __fdividef(warp_sum(weighted), total);
        float spread = 0.0f;
        for (u32 i = lane; i < p.parts; i += WARP) {
            const Moments part = parts[i];
            const float d = part.mean - mean;
            spread += part.m2 + (i + 1 < p.parts ? full : last) * d * d;
        }
        spread = warp_sum(spread);
        if (lane == 0) {
            origins[group] = to_f32(x[base + group * WIDTH]);
            group_means[group] = mean;
            inverses[group] = inverse_root(__fdividef(spread, total) + p.eps);
        }
    }
    __syncthreads();

    float origin[VECTOR], scale[VECTOR], shift[VECTOR];
    load_elements(gamma + channel, scale);
    load_elements(beta + channel, shift);
#pragma unroll
    for (int v = 0; v < VECTOR; ++v) {
        const u32 group = (channel + v) / WIDTH;
        origin[v] = origins[group];
        scale[v] *= inverses[group];
        shift[v] -= group_means[group] * scale[v];
    }
#pragma unroll
    for (int i = 0; i < APPLY_PIXELS; ++i) {
        const u32 pixel = start + i * rows;
        if (pixel >= p.pixels) break;
        float value[VECTOR];
        unpack(chunk[i], value, storage_t{});
#pragma unroll
        for (int v = 0; v < VECTOR; ++v) {
            value[v] = activate<ACTIVATION>((value[v] - origin[v]) * scale[v] + shift[v]);
        }
        store_elements(y + base + u64(pixel) * channels + channel, value);
    }
}
