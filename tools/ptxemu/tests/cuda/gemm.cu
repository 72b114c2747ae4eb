// C[M,N] (f32) = A[M,K] (f16, row-major) * B[N,K]^T (f16, row-major): 128x128x32 tiles, 256 threads (2 x 4 warps of 64x32),
// STAGES-deep cp.async, XOR swizzle over 16-byte chunks, ldmatrix, mma.m16n8k16. M, N multiples of 128, K of 32.
typedef unsigned int u32;
typedef unsigned short f16;
#ifndef STAGES
#define STAGES 3
#endif
constexpr int BM = 128, BN = 128, BK = 32;

__device__ __forceinline__ u32 smem(const void* p) { return (u32)__cvta_generic_to_shared(p); }
__device__ __forceinline__ void copy16(u32 to, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from));
}
__device__ __forceinline__ void commit() { asm volatile("cp.async.commit_group;"); }
template <int N> __device__ __forceinline__ void wait() { asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory"); }
__device__ __forceinline__ void ldmatrix4(u32 (&r)[4], u32 at) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(at));
}
__device__ __forceinline__ void mma(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
// Byte offset of 16-byte chunk `c` (0..3) of row `r` in a [rows][32] f16 tile: two rows share 128 bytes, chunks are XORed by row.
__device__ __forceinline__ u32 at(int r, int c) {
#ifdef BUG_NO_SWIZZLE
  return r * 64 + c * 16;
#else
  return r * 64 + ((c ^ ((r >> 1) & 3)) * 16);
#endif
}

extern "C" __global__ void __launch_bounds__(256) gemm(const f16* a, const f16* b, float* c, int M, int N, int K) {
  extern __shared__ __align__(128) unsigned char shared[];
  const int tid = threadIdx.x, lane = tid & 31, warp = tid >> 5;
  const int m0 = blockIdx.y * BM, n0 = blockIdx.x * BN, wm = (warp >> 2) * 64, wn = (warp & 3) * 32;
  const u32 base = smem(shared);
  constexpr u32 A_BYTES = BM * BK * 2, STAGE = A_BYTES + BN * BK * 2;
  auto fill = [&](int k0, int stage) {
    const u32 s = base + stage * STAGE;
    for (int i = 0; i < 2; ++i) {
      const int chunk = tid + i * 256, r = chunk >> 2, col = chunk & 3;
      copy16(s + at(r, col), a + (size_t)(m0 + r) * K + k0 + col * 8);
      copy16(s + A_BYTES + at(r, col), b + (size_t)(n0 + r) * K + k0 + col * 8);
    }
  };
  float acc[4][4][4] = {};
  const int steps = K / BK;
  for (int s = 0; s < STAGES - 1; ++s) {
    if (s < steps) fill(s * BK, s);
    commit();
  }
  for (int step = 0; step < steps; ++step) {
#ifdef BUG_WAIT
    wait<STAGES - 1>();
#else
    wait<STAGES - 2>();
#endif
#ifndef BUG_NO_BARRIER
    __syncthreads();
#endif
    const int next = step + STAGES - 1;
    if (next < steps) fill(next * BK, next % STAGES);
    commit();
    const u32 s = base + (step % STAGES) * STAGE;
    for (int kk = 0; kk < 2; ++kk) {
      u32 fa[4][4], fb[2][4];
      for (int i = 0; i < 4; ++i) {
        ldmatrix4(fa[i], s + at(wm + i * 16 + (lane & 15), kk * 2 + (lane >> 4)));
      }
      for (int j = 0; j < 2; ++j) {
#ifdef BUG_FRAGMENT
        ldmatrix4(fb[j], s + A_BYTES + at(wn + j * 16 + (lane & 15), kk * 2 + (lane >> 4)));
#else
        ldmatrix4(fb[j], s + A_BYTES + at(wn + j * 16 + (lane & 7) + ((lane >> 4) << 3), kk * 2 + ((lane >> 3) & 1)));
#endif
      }
      for (int i = 0; i < 4; ++i)
        for (int j = 0; j < 4; ++j) mma(acc[i][j], fa[i], fb[j >> 1][(j & 1) * 2], fb[j >> 1][(j & 1) * 2 + 1]);
    }
  }
  for (int i = 0; i < 4; ++i)
    for (int j = 0; j < 4; ++j)
      for (int h = 0; h < 2; ++h) {
        const int row = m0 + wm + i * 16 + (lane >> 2) + h * 8, col = n0 + wn + j * 8 + (lane & 3) * 2;
        *(float2*)&c[(size_t)row * N + col] = make_float2(acc[i][j][h * 2], acc[i][j][h * 2 + 1]);
      }
}

// C[M,N] = A[M,K] * B[K,N], all f32: 64x64 tiles, k by 16, 8x8 threads of 8x8 results... 64 threads a block.
extern "C" __global__ void __launch_bounds__(64) sgemm(const float* a, const float* b, float* c, int M, int N, int K) {
  __shared__ __align__(16) float sa[16][64 + 4];
  __shared__ __align__(16) float sb[16][64];
  const int tid = threadIdx.x, tx = tid & 7, ty = tid >> 3, m0 = blockIdx.y * 64, n0 = blockIdx.x * 64;
  float acc[8][8] = {};
  for (int k0 = 0; k0 < K; k0 += 16) {
    __syncthreads();
    for (int i = 0; i < 4; ++i) {
      const float4 v = *(const float4*)&a[(size_t)(m0 + tid) * K + k0 + i * 4];
      sa[i * 4 + 0][tid] = v.x; sa[i * 4 + 1][tid] = v.y; sa[i * 4 + 2][tid] = v.z; sa[i * 4 + 3][tid] = v.w;
      const int r = (tid >> 4) + i * 4, q = (tid & 15) * 4;
      *(float4*)&sb[r][q] = *(const float4*)&b[(size_t)(k0 + r) * N + n0 + q];
    }
    __syncthreads();
#pragma unroll
    for (int k = 0; k < 16; ++k) {
      float x[8], y[8];
      *(float4*)&x[0] = *(float4*)&sa[k][ty * 8]; *(float4*)&x[4] = *(float4*)&sa[k][ty * 8 + 4];
      *(float4*)&y[0] = *(float4*)&sb[k][tx * 4]; *(float4*)&y[4] = *(float4*)&sb[k][32 + tx * 4];
      for (int i = 0; i < 8; ++i)
        for (int j = 0; j < 8; ++j) acc[i][j] = fmaf(x[i], y[j], acc[i][j]);
    }
  }
  for (int i = 0; i < 8; ++i)
    for (int h = 0; h < 2; ++h)
      *(float4*)&c[(size_t)(m0 + ty * 8 + i) * N + n0 + h * 32 + tx * 4] =
          make_float4(acc[i][h * 4], acc[i][h * 4 + 1], acc[i][h * 4 + 2], acc[i][h * 4 + 3]);
}

// y = max(x, 0), four at a time: what memory traffic alone costs.
extern "C" __global__ void relu(const float4* x, float4* y, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  const float4 v = x[i];
  y[i] = make_float4(fmaxf(v.x, 0.f), fmaxf(v.y, 0.f), fmaxf(v.z, 0.f), fmaxf(v.w, 0.f));
}
