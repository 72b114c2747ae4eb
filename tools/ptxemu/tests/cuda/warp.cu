// Warp-level operations, divergence, calls, atomics, barriers, memory spaces.
typedef unsigned int u32;
typedef unsigned long long u64;
constexpr u32 ALL = 0xffffffffu;

extern "C" __global__ void shuffles(int* y) {
  const int t = threadIdx.x;
  y[t] = __shfl_sync(ALL, t * 3, (t + 5) & 31);
  y[32 + t] = __shfl_up_sync(ALL, t * 3, 3);
  y[64 + t] = __shfl_down_sync(ALL, t * 3, 7, 16);
  y[96 + t] = __shfl_xor_sync(ALL, t * 3, 9);
  y[128 + t] = __shfl_sync(ALL, t, 2, 8);
  y[160 + t] = __ballot_sync(ALL, t % 3 == 0);
  y[192 + t] = __any_sync(ALL, t == 7) + 2 * __all_sync(ALL, t < 31) + 4 * __all_sync(ALL, t < 32);
  y[224 + t] = __match_any_sync(ALL, t / 5);
  y[256 + t] = __reduce_add_sync(ALL, t) + __reduce_max_sync(ALL, t * t) - __reduce_min_sync(ALL, -t);
  int part = 0;
  if (t & 1) part = __shfl_xor_sync(0xaaaaaaaau, t, 2) + __activemask() % 1000;
  y[288 + t] = part;
  y[320 + t] = __popc(__activemask()) + __clz(t) + __ffs(t << 3) + __brev(t) % 97;
}

// Loops whose trip count differs by lane, with break, continue and early return.
extern "C" __global__ void divergence(const int* x, int* y, int n) {
  const int t = blockIdx.x * blockDim.x + threadIdx.x;
  if (t >= n) return;
  int v = x[t], steps = 0, sum = 0;
  while (v != 1) {
    if (steps > 200) break;
    if (v & 1) { v = 3 * v + 1; } else { v /= 2; if (v % 5 == 0) { ++steps; continue; } }
    sum += v; ++steps;
    for (int i = 0; i < (t & 3); ++i) { if (sum % 7 == 3) { sum += i; break; } sum ^= i << 2; }
  }
  if (t % 11 == 4) { y[t] = -1; return; }
  int w = 0;
  switch (t % 9) {
    case 0: w = sum; break;
    case 1: w = sum * 2; break;
    case 2: w = sum - 7; // falls through
    case 3: w += steps; break;
    case 4: w = sum ^ 0x55; break;
    case 5: w = sum / 3; break;
    case 6: w = sum % 13; break;
    default: w = 42;
  }
  y[t] = w * 1000 + steps;
}

__device__ __noinline__ int fibonacci(int n) { int a = 0, b = 1; for (int i = 0; i < n; ++i) { const int c = a + b; a = b; b = c; } return a; }
struct Pair { int a; float b; };
__device__ __noinline__ Pair both(int n, float x, const int* table) {
  if (n < 3) return Pair{-n, x};
  return Pair{fibonacci(n) + table[n & 3], x * n};
}
__constant__ int table[4] = {10, 20, 30, 40};
__device__ int scale = 3;
extern "C" __global__ void calls(int* y, float* z) {
  const int t = threadIdx.x;
  const Pair p = both(t, t * 0.5f, table);
  int local[8];
  for (int i = 0; i < 8; ++i) local[i] = p.a * i + scale;
  y[t] = local[(t * 5) & 7];
  z[t] = p.b;
}

extern "C" __global__ void atomics(u32* count, int* lowest, u64* sum, float* total, u32* order) {
  __shared__ u32 bins[8];
  const int t = blockIdx.x * blockDim.x + threadIdx.x;
  if (threadIdx.x < 8) bins[threadIdx.x] = 0;
  __syncthreads();
  atomicAdd(&bins[t & 7], 1u);
  __syncthreads();
  if (threadIdx.x < 8) atomicAdd(&count[threadIdx.x], bins[threadIdx.x]);
  atomicMin(lowest, 100 - t);
  atomicAdd(sum, (u64)t << 20);
  atomicAdd(total, 0.25f);
  order[t] = atomicInc(&count[8], 99u);
  atomicExch(&count[9], 7u);
  atomicCAS(&count[10], 0u, 5u);
  atomicOr(&count[11], 1u << (t & 31));
}

// Last block reduces: each block publishes a sum, the last one to arrive adds them up in order.
extern "C" __global__ void last_block(const int* x, int* partial, u32* ticket, int* y) {
  __shared__ bool last;
  const int t = threadIdx.x;
  int v = x[blockIdx.x * 32 + t];
  for (int d = 16; d; d >>= 1) v += __shfl_xor_sync(ALL, v, d);
  if (t == 0) {
    partial[blockIdx.x] = v;
    __threadfence();
    last = atomicAdd(ticket, 1u) == gridDim.x - 1;
  }
  __syncthreads();
  if (last) {
    __threadfence();
    int s = 0;
    for (int i = t; i < gridDim.x; i += 32) s += partial[i];
    for (int d = 16; d; d >>= 1) s += __shfl_xor_sync(ALL, s, d);
    if (t == 0) *y = s;
  }
}

// Producers (warps 0, 1) and consumers (2, 3) meet at named barriers of 128 threads.
extern "C" __global__ void named(int* y) {
  __shared__ int box[2][64];
  const int t = threadIdx.x;
  for (int round = 0; round < 6; ++round) {
    int* b = box[round & 1];
    if (t < 64) {
      if (round >= 2) asm volatile("bar.sync %0, 128;" ::"r"(3 + (round & 1)) : "memory");
      b[t] = t * 10 + round;
      asm volatile("bar.arrive %0, 128;" ::"r"(1 + (round & 1)) : "memory");
    } else {
      asm volatile("bar.sync %0, 128;" ::"r"(1 + (round & 1)) : "memory");
      y[round * 64 + t - 64] = b[127 - t];
      if (round < 4) asm volatile("bar.arrive %0, 128;" ::"r"(3 + (round & 1)) : "memory");
    }
  }
}

extern "C" __global__ void votes(int* y, int n) {
  const int t = threadIdx.x;
  y[t] = __syncthreads_count(t < n) + 1000 * __syncthreads_and(t < 1000) + 2000 * __syncthreads_or(t == 70);
}

// Every width and sign of memory access.
extern "C" __global__ void widths(const signed char* a, const unsigned char* b, const short* c, const unsigned short* d,
                                  const long long* e, const double* f, const uint4* g, float* y, unsigned char* z, ushort2* w) {
  const int t = blockIdx.x * blockDim.x + threadIdx.x;
  const uint4 v = g[t];
  y[t] = a[t] + b[t] * 2.0f + c[t] * 3.0f + d[t] * 4.0f + (float)e[t] + (float)f[t] + v.x + v.w - v.y - v.z;
  z[t] = (unsigned char)(a[t] * 3);
  w[t] = make_ushort2(c[t], d[t] + 1);
}

// A generic pointer that is shared in one half of the block's warps and global in the other.
extern "C" __global__ void generic(int* x, int* y) {
  __shared__ int s[64];
  const int t = threadIdx.x;
  s[t] = t * 2;
  __syncthreads();
  int* p = (t >> 5) ? s : x;
  p[t] += 5;
  __syncthreads();
  y[t] = p[t];
}

extern "C" __global__ void cube(int* y) {
  const int x = blockIdx.x * blockDim.x + threadIdx.x, v = blockIdx.y * blockDim.y + threadIdx.y, z = blockIdx.z * blockDim.z + threadIdx.z;
  y[(z * gridDim.y * blockDim.y + v) * gridDim.x * blockDim.x + x] = x + 100 * v + 10000 * z;
}
