// Gradient of a convolution's filter for any number of groups, the slow way:
//
//   dw[k, (r, s, c)] = sum over output pixels p of dy[p, k] * x[p under tap (r, s), g * C' + c],  g = k / K'
//
// with C' = C / groups channels and K' = K / groups filters a group. A warp an element of dw, neighbouring
// warps neighbouring channels; its lanes take pixels in turn, in runs whose sums are added up after, which
// keeps the rounding to that of a run. Two loads an FMA: for shapes that no model of ours trains (grouped,
// but not depthwise; depthwise filters wider than depthwise_filter_grad.cu takes).
//
// Defines: STORAGE. Block: 256 threads.
#include "common/reduce.cuh"
#include "conv/gather.cuh"

#define WARPS 8
#define RUN 32

extern "C" __global__ void __launch_bounds__(WARP* WARPS, 1)
    filter_grad_any(const storage_t* __restrict__ x, const storage_t* __restrict__ dy, float* __restrict__ dw,
                    const Params p) {
    const u32 i = blockIdx.x * WARPS + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const u32 filter = i / p.columns;
    if (filter >= p.filters) return;
    const Column column(p, i - filter * p.columns);
    x += filter / p.group_filters * p.group_channels;
    float total = 0.0f;
    for (u32 from = lane; from < p.pixels; from += WARP * RUN) {
        float sum = 0.0f;
        for (u32 pixel = from; pixel < min(p.pixels, from + WARP * RUN); pixel += WARP) {
            const i32 place = column.place(p, pixel);
            if (place >= 0)
                sum = __fmaf_rn(to_f32(dy[u64(pixel) * p.filters + filter]), to_f32(x[place]), sum);
        }
        total += sum;
    }
    total = warp_sum(total);
    if (lane == 0) dw[i] = total;
}
