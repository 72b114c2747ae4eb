// Moments of the parts of a map [B, pixels, C], for every group of WIDTH neighbouring channels:
// moments[image][part][group] = (mean, sum of squares of distances from it) over PART_PIXELS pixels
// (common/moments.cuh).
//
// For convolutions that cannot give them with their result (conv/tail.cuh): those whose reduction is split,
// or whose tiles do not fall on parts. A block takes one part: thread (group, row) sums (x - first) and its
// square over every ROWS-th pixel, a vector of channels at a time; the threads of row 0 put the rows
// together.
//
// Reads the map once, which has just been written and comes from L2 where it fits; 3 FLOPs an element. The
// order of all sums follows from the shape alone.
//
// Defines: STORAGE, WIDTH, VECTOR (channels of a load: a chunk, or one), ROWS. Blocks of groups x ROWS
// threads, up to 256.
#include "common/elements.cuh"
#include "common/moments.cuh"

struct Params {
    u32 pixels;
    u32 groups;
};

extern "C" __global__ void __launch_bounds__(256)
    group_moments(const storage_t* __restrict__ x, Moments* __restrict__ moments, const Params p) {
    extern __shared__ float3 rows[];
    const u32 group = threadIdx.x, row = threadIdx.y;
    const u32 start = blockIdx.x * PART_PIXELS, pixels = min(PART_PIXELS, p.pixels - start);
    const u64 pitch = u64(p.groups) * WIDTH;
    const storage_t* part = x + (u64(blockIdx.y) * p.pixels + start) * pitch + group * WIDTH;
    float sum = 0.0f, squares = 0.0f;
    const float first = to_f32(part[0]);
#pragma unroll 4
    for (u32 pixel = row; pixel < pixels; pixel += ROWS) {
#pragma unroll
        for (u32 v = 0; v < WIDTH; v += VECTOR) {
            float value[VECTOR];
            load_elements(part + pixel * pitch + v, value);
#pragma unroll
            for (int e = 0; e < VECTOR; ++e) {
                const float d = value[e] - first;
                sum += d;
                squares += d * d;
            }
        }
    }
    const float count = row < pixels ? float((pixels - row + ROWS - 1) / ROWS * WIDTH) : 0.0f;
    const Moments own = moments_of(sum, squares, count, first);
    rows[row * p.groups + group] = float3{count, own.mean, own.m2};
    __syncthreads();
    if (row > 0) return;
    float weighted = 0.0f, spread = 0.0f;
    for (u32 r = 0; r < ROWS; ++r) weighted += rows[r * p.groups + group].x * rows[r * p.groups + group].y;
    const float mean = __fdividef(weighted, float(pixels * WIDTH));
    for (u32 r = 0; r < ROWS; ++r) {
        const float3 other = rows[r * p.groups + group];
        const float d = other.y - mean;
        spread += other.z + other.x * d * d;
    }
    moments[(u64(blockIdx.y) * gridDim.x + blockIdx.x) * p.groups + group] = Moments{mean, spread};
}
