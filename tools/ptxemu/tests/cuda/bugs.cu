// Small kernels with one seeded bug each, behind a define. `// <- NAME` marks the line that the emulator must name.
typedef unsigned int u32;
typedef unsigned short u16;
constexpr u32 ALL = 0xffffffffu;
__device__ __forceinline__ u32 smem(const void* p) { return (u32)__cvta_generic_to_shared(p); }
__device__ __forceinline__ void copy16(void* to, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(smem(to)), "l"(from) : "memory");
}
__device__ __forceinline__ void commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N> __device__ __forceinline__ void wait() { asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory"); }

extern "C" __global__ void stencil(const float* x, float* y, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  float sum = x[i];
  if (i > 0) sum += x[i - 1];
#ifdef BUG_HALO
  if (i < n) sum += x[i + 1]; // <- HALO
#else
  if (i < n - 1) sum += x[i + 1];
#endif
  y[i] = sum;
}

extern "C" __global__ void tail(float* y, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
#ifndef BUG_TAIL
  if (i < n)
#endif
  y[i] = i; // <- TAIL
}

extern "C" __global__ void reverse(const int* x, int* y) {
  __shared__ int s[128];
  const int t = threadIdx.x;
  s[t] = x[t];
#ifndef BUG_BARRIER
  __syncthreads();
#endif
  y[t] = s[127 - t]; // <- BARRIER
}

// Block-wide running maximum over rounds: the second barrier of a round keeps the next round's store away from slow readers.
extern "C" __global__ void rounds(const int* x, int* y, int n) {
  __shared__ int s[64];
  const int t = threadIdx.x;
  int best = 0;
  for (int r = 0; r < n; ++r) {
    s[t] = x[r * 64 + t]; // <- REUSE
    __syncthreads();
    best = max(best, s[(t + 33) & 63]);
#ifndef BUG_REUSE
    __syncthreads();
#endif
  }
  y[t] = best;
}

// Two-stage pipeline of asynchronous copies.
extern "C" __global__ void pipeline(const float4* x, float4* y, int steps) {
  __shared__ float4 s[2][64];
  const int t = threadIdx.x;
  copy16(&s[0][t], &x[t]);
  commit();
  for (int i = 0; i < steps; ++i) {
    if (i + 1 < steps) copy16(&s[(i + 1) & 1][t], &x[(i + 1) * 64 + t]); // <- REFILL
    commit();
#if defined(BUG_WAIT)
    wait<2>();
#elif !defined(BUG_NO_WAIT)
    wait<1>();
#endif
    __syncthreads();
    y[i * 64 + t] = s[i & 1][63 - t]; // <- WAIT NO_WAIT REFILL
#ifndef BUG_REFILL
    __syncthreads();
#endif
  }
}

// A copy that is never committed to a group is not waited for.
extern "C" __global__ void uncommitted(const float4* x, float4* y) {
  __shared__ float4 s[32];
  const int t = threadIdx.x;
  copy16(&s[t], &x[t]);
#ifndef BUG_COMMIT
  commit();
#endif
  wait<0>();
  y[t] = s[t]; // <- COMMIT
}

extern "C" __global__ void partial_tile(const float* x, float* y, int n) {
  __shared__ float s[64];
  const int t = threadIdx.x;
  if (t < n) s[t] = x[t];
#ifndef BUG_UNWRITTEN
  else s[t] = 0;
#endif
  __syncthreads();
  y[t] = s[63 - t]; // <- UNWRITTEN
}

extern "C" __global__ void vectors(const float* x, float* y) {
  const int t = threadIdx.x;
#ifdef BUG_MISALIGNED
  const float4 v = *(const float4*)(x + t * 4 + 1); // <- MISALIGNED
#else
  const float4 v = *(const float4*)(x + t * 4);
#endif
  y[t] = v.x + v.w;
}

extern "C" __global__ void halves(const float* x, float* y) {
  __shared__ float s[64];
  const int t = threadIdx.x;
  s[t] = x[t];
#ifdef BUG_DIVERGENT
  if (t < 48) __syncthreads(); // <- DIVERGENT
#else
  __syncthreads();
#endif
  y[t] = s[t] * 2;
}

extern "C" __global__ void total(const int* x, int* y) {
  int v = x[blockIdx.x * 32 + threadIdx.x];
  for (int d = 16; d; d >>= 1) v += __shfl_xor_sync(ALL, v, d);
  if (threadIdx.x == 0)
#ifdef BUG_BLOCKS
    *y += v; // <- BLOCKS
#else
    atomicAdd(y, v);
#endif
}

extern "C" __global__ void exchange(const int* x, int* y) {
  __shared__ int s[32];
  const int t = threadIdx.x;
  s[t] = x[t];
#ifndef BUG_SYNCWARP
  __syncwarp();
#endif
  y[t] = s[t ^ 1]; // <- SYNCWARP
}

extern "C" __global__ void groups(const int* x, int* y) {
  __shared__ int s[128];
  const int t = threadIdx.x;
  s[t] = x[t];
  if (t < 64) asm volatile("bar.sync 1, 64;" ::: "memory");
#if defined(BUG_COUNT)
  else asm volatile("bar.sync 2, 96;" ::: "memory"); // <- COUNT
#else
  else asm volatile("bar.sync 2, 64;" ::: "memory");
#endif
  y[t] = s[t ^ 32];
}

// Both halves meet at one barrier, but disagree on how many threads it has.
extern "C" __global__ void disagree(const int* x, int* y) {
  __shared__ int s[128];
  const int t = threadIdx.x;
  s[t] = x[t];
#ifdef BUG_DISAGREE
  if (t < 64) asm volatile("bar.sync 1, 128;" ::: "memory"); // <- DISAGREE
  else asm volatile("bar.sync 1, 64;" ::: "memory"); // <- DISAGREE
#else
  asm volatile("bar.sync 1, 128;" ::: "memory");
#endif
  y[t] = s[127 - t]; // <- DISAGREE
}

extern "C" __global__ void lookup(const int* x, int* y, int n) {
  const int t = threadIdx.x;
  const int v = x[t];
#ifdef BUG_SHUFFLE
  if (t < n) y[t] = __shfl_sync(ALL, v, (t + 1) & 31); // <- SHUFFLE
#else
  const int w = __shfl_sync(ALL, v, (t + 1) & 31);
  if (t < n) y[t] = w;
#endif
}

extern "C" __global__ void rows(const u16* x, u32* y) {
  __shared__ __align__(16) u16 s[16 * 8 + 8];
  const int t = threadIdx.x;
  for (int i = t; i < 136; i += 32) s[i] = x[i];
  __syncwarp();
  u32 r;
#ifdef BUG_ROW
  const u32 at = smem(&s[(t & 7) * 9]);
#else
  const u32 at = smem(&s[(t & 7) * 8]);
#endif
  asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];" : "=r"(r) : "r"(at)); // <- ROW
  y[t] = r;
}

extern "C" __global__ void product(const u32* a, float* y, int n) {
  const int t = threadIdx.x;
  float d[4] = {};
#ifdef BUG_LANES
  if (t < n)
#endif
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3},{%4,%5},{%6},{%0,%1,%2,%3};" // <- LANES
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a[t]), "r"(a[32 + t]), "r"(a[64 + t]));
  y[t] = d[0] + d[3];
}

extern "C" __global__ void dynamic(const float* x, float* y) {
  extern __shared__ float d[];
  const int t = threadIdx.x;
#ifdef BUG_SHARED_END
  d[t + 1] = x[t]; // <- SHARED_END
#else
  d[t] = x[t];
#endif
  __syncthreads();
  y[t] = d[t ? t : 1];
}

__constant__ float weights[4] = {1, 2, 3, 4};
extern "C" __global__ void constants(float* y) {
  const int t = threadIdx.x;
  y[t] = weights[t & 3];
#ifdef BUG_CONSTANT
  float* p;
  asm("mov.u64 %0, weights;" : "=l"(p));
  if (t == 0) p[1] = 5; // <- CONSTANT
#endif
}

extern "C" __global__ void flag(volatile int* ready, int* y) {
#ifdef BUG_SPIN
  while (*ready == 0) {} // <- SPIN
#endif
  y[threadIdx.x] = *ready;
}

extern "C" __global__ void same_place(int* y) {
  const int t = threadIdx.x;
#ifdef BUG_SAME_PLACE
  y[t / 2] = t; // <- SAME_PLACE
#else
  y[t / 2] = t / 2;
#endif
}

extern "C" __global__ void checked(const int* x, int* y) {
  const int t = threadIdx.x;
  if (x[t] < 0) __trap(); // <- TRAP
  y[t] = x[t];
}

// One block writes a row, the other reads it in the same launch.
extern "C" __global__ void neighbours(int* x, int* y) {
  const int t = threadIdx.x;
  x[blockIdx.x * 32 + t] = t; // <- NEIGHBOUR
#ifdef BUG_NEIGHBOUR
  y[blockIdx.x * 32 + t] = x[(blockIdx.x ^ 1) * 32 + t]; // <- NEIGHBOUR
#else
  y[blockIdx.x * 32 + t] = x[blockIdx.x * 32 + (t ^ 1) * 0 + t];
#endif
}

// Copies a result through shared memory: the values that other warps still read are overwritten by 2-byte stores.
extern "C" __global__ void narrow(const u16* x, u16* y) {
  __shared__ u16 s[128];
  const int t = threadIdx.x;
  s[t] = x[t];
  __syncthreads();
  const u16 v = s[t ^ 64]; // <- NARROW
#ifndef BUG_NARROW
  __syncthreads();
#endif
  s[t] = v + 1; // <- NARROW
  __syncthreads();
  y[t] = s[t];
}
