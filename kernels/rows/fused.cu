// Linear layers over rows that are made on the way: y_l[m, n] = activation(sum over k of row[m, k] * w_l[n,
// k] + bias_l[n]) for one to three layers l, all f32. The prologue makes row m of its operands:
//   PROLOGUE 0: row = a
//   PROLOGUE 1: row = g(norm(a))                       layer norm with its activation g
//   PROLOGUE 2: row = a * b
//   PROLOGUE 3: row = sigmoid(norm(a)) * norm(b) + sigmoid(norm(c)) * norm(d)    the gates of the kernel
//   update
//
// K-Net's kernel update is a chain of such steps, each so small that launching it costs more than running it;
// this kernel makes one launch of two to six steps. A block computes a tile (rows/tile.cuh) of one layer. Its
// rows and its weights lie in shared memory whole: weights come by cp.async while each warp makes rows, which
// it holds in registers. All column tiles make the same rows again: that is cheaper than a launch. Those of
// column tile 0 write them to `kept`, if others need them.
//
// 2 M N K FLOPs; operands of the prologue are read N / BN times and weights M / BM times, from L2.
//
// Grid: column tiles of all layers, row tiles. Block: 32 * WARPS_M * WARPS_N * WARPS_K threads. K is a
// multiple of 4. Shared memory: SLABS * (BM + BN) * 128 bytes, at least WARPS_K * BM * (BN + 8) * 4.
// Defines: MATH, BM, BN, WARPS_M, WARPS_N, WARPS_K, SLABS (of 32, for all of K), PROLOGUE, ROW_ACTIVATION,
// ACTIVATION.
#include "rows/standardise.cuh"
#include "rows/tile.cuh"

// Pieces of 128 neighbouring terms, four a lane.
#define PIECES ((SLABS + 3) / 4)

struct Params {
    u32 rows, terms;
    u32 columns[3];  // of each layer; 0: none
    float eps;
};

// An operand of the prologue with its norm's scale and shift, where it has one.
struct Operand {
    const float* x;
    const float* gamma;
    const float* beta;
};

struct Layer {
    const float* w;
    Epilogue<float> tail;
};

typedef float Row[PIECES][4];

__device__ inline u32 first_term(u32 piece) { return piece * 128 + threadIdx.x % WARP * 4; }

__device__ inline void load_row(Row& row, const float* x, const Params& p) {
#pragma unroll
    for (u32 i = 0; i < PIECES; ++i) {
        if (first_term(i) < p.terms) {
            load_vector(x + first_term(i), row[i]);
        } else {
#pragma unroll
            for (u32 j = 0; j < 4; ++j) row[i][j] = 0.0f;
        }
    }
}

// Layer norm of a row. Terms from K on stay 0.
template <int activation> __device__ inline void normalise(Row& row, const Operand& by, const Params& p) {
    standardise(row, p.terms, p.eps);
#pragma unroll
    for (u32 i = 0; i < PIECES; ++i) {
        if (first_term(i) >= p.terms) continue;
        float gamma[4], beta[4];
        load_vector(by.gamma + first_term(i), gamma);
        load_vector(by.beta + first_term(i), beta);
#pragma unroll
        for (u32 j = 0; j < 4; ++j) row[i][j] = activate<activation>(row[i][j] * gamma[j] + beta[j]);
    }
}

__device__ inline void multiply_rows(Row& row, const Row& by) {
#pragma unroll
    for (u32 i = 0; i < PIECES; ++i) {
#pragma unroll
        for (u32 j = 0; j < 4; ++j) row[i][j] *= by[i][j];
    }
}

// sigmoid(norm(gate)) * norm(value)
__device__ inline void gated(Row& row, const Operand& gate, const Operand& value, u64 at, const Params& p) {
    Row factor;
    load_row(row, gate.x + at, p);
    load_row(factor, value.x + at, p);
    normalise<ACTIVATION_SIGMOID>(row, gate, p);
    normalise<ACTIVATION_NONE>(factor, value, p);
    multiply_rows(row, factor);
}

__device__ inline void make_row(Row& row, const Operand (&operands)[4], u32 m, const Params& p) {
    const u64 at = u64(m) * p.terms;
#if PROLOGUE == 3
    Row other;
    gated(row, operands[0], operands[1], at, p);
    gated(other, operands[2], operands[3], at, p);
#pragma unroll
    for (u32 i = 0; i < PIECES; ++i) {
#pragma unroll
        for (u32 j = 0; j < 4; ++j) row[i][j] += other[i][j];
    }
#else
    load_row(row, operands[0].x + at, p);
#if PROLOGUE == 1
    normalise<ROW_ACTIVATION>(row, operands[0], p);
#elif PROLOGUE == 2
    Row other;
    load_row(other, operands[1].x + at, p);
    multiply_rows(row, other);
#endif
#endif
}

// Makes the block's rows of x in shared memory, and in `kept` if it is not null. Rows from M on repeat the
// last: what becomes of them is not written, and without a branch the loads and sums of several rows overlap.
__device__ inline void make_rows(const Operand (&operands)[4], float* kept, u32 first, const Params& p) {
#pragma unroll (PROLOGUE == 3 ? 2 : 4)
    for (u32 r = threadIdx.x / WARP; r < BM; r += THREADS / WARP) {
        Row row;
        make_row(row, operands, min(first + r, p.rows - 1), p);
#pragma unroll
        for (u32 i = 0; i < PIECES; ++i) {
            const u32 term = first_term(i);
            if (term < 32 * SLABS) {
                store_shared_floats(
                    reinterpret_cast<float*>(shared + term / 32 * SLAB_BYTES + swizzled<8>(r, term % 32 / 4)),
                    row[i]);
            }
            if (kept && first + r < p.rows && term < p.terms)
                store_elements(kept + u64(first + r) * p.terms + term, row[i]);
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    fused_linear(const float* __restrict__ x0, const float* __restrict__ gamma0,
                 const float* __restrict__ beta0, const float* __restrict__ x1,
                 const float* __restrict__ gamma1, const float* __restrict__ beta1,
                 const float* __restrict__ x2, const float* __restrict__ gamma2,
                 const float* __restrict__ beta2, const float* __restrict__ x3,
                 const float* __restrict__ gamma3, const float* __restrict__ beta3, float* __restrict__ kept,
                 const float* __restrict__ w0, const float* __restrict__ bias0, float* __restrict__ y0,
                 const float* __restrict__ w1, const float* __restrict__ bias1, float* __restrict__ y1,
                 const float* __restrict__ w2, const float* __restrict__ bias2, float* __restrict__ y2,
                 const Params p) {
    const Operand operands[4] = {
        {x0, gamma0, beta0}, {x1, gamma1, beta1}, {x2, gamma2, beta2}, {x3, gamma3, beta3}};
    Layer layer = {w0, {bias0, nullptr, y0}};
    u32 tile = blockIdx.x, columns = p.columns[0];
    if (tile >= (columns + BN - 1) / BN) {
        tile -= (columns + BN - 1) / BN;
        layer = {w1, {bias1, nullptr, y1}};
        columns = p.columns[1];
        if (tile >= (columns + BN - 1) / BN) {
            tile -= (columns + BN - 1) / BN;
            layer = {w2, {bias2, nullptr, y2}};
            columns = p.columns[2];
        }
    }
    const u32 row = blockIdx.y * BM, column = tile * BN, base = shared_address(shared);
    constexpr u32 chunks = 8 * SLABS;
    static_assert(BN * chunks % THREADS == 0, "every thread copies as many chunks");
#pragma unroll 8
    for (u32 each = 0; each < BN * chunks / THREADS; ++each) {
        const u32 i = each * THREADS + threadIdx.x, n = i / chunks, term = i % chunks * 4;
        const u32 to = base + term / 32 * SLAB_BYTES + swizzled<8>(BM + n, term % 32 / 4);
        const bool take = column + n < columns && term < p.terms;
        copy_async<16>(to, layer.w + u64(column + n) * p.terms + term, take);
    }
    commit_copies();
    make_rows(operands, blockIdx.x == 0 ? kept : nullptr, row, p);
    wait_copies<0>();
    __syncthreads();
    const Place at = place();
    Sums sums;
    sums.clear();
#pragma unroll
    for (u32 slab = at.k; slab < SLABS; slab += WARPS_K) multiply(sums, base + slab * SLAB_BYTES, at);
    __syncthreads();
    finish(sums, layer.tail, row, column, p.rows, columns);
}
