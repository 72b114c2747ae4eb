// One warp, one product: fragments are loaded element by element as the PTX manual lays them out, so that the emulator's layouts
// are checked against plain index arithmetic. Then ldmatrix / stmatrix / movmatrix and cp.async.
typedef unsigned int u32;
typedef unsigned short u16;
typedef unsigned char u8;
#define D4 "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
#define C4 "f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[3])

__device__ u32 two(const u16* p, int i, int stride) { return p[i] | (u32)p[i + stride] << 16; }
__device__ u32 four(const u8* p) { return p[0] | (u32)p[1] << 8 | (u32)p[2] << 16 | (u32)p[3] << 24; }

// A [16][K] row-major, B [K][8] stored as [8][K], C, D [16][8].
template <int K, bool BF16> __device__ void half_product(const u16* a, const u16* b, const float* cc, float* dd) {
  const int lane = threadIdx.x, g = lane >> 2, t = lane & 3;
  u32 fa[4] = {}, fb[2] = {};
  for (int k = 0; k < K / 8; ++k) {
    fa[2 * k] = two(a, g * K + 2 * t + 8 * k, 1);
    fa[2 * k + 1] = two(a, (g + 8) * K + 2 * t + 8 * k, 1);
    fb[k] = two(b, g * K + 2 * t + 8 * k, 1);
  }
  float c[4], d[4];
  for (int i = 0; i < 4; ++i) c[i] = cc[(g + 8 * (i >> 1)) * 8 + 2 * t + (i & 1)];
  if (K == 16 && BF16)
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%10,%11,%12,%13};"
        : D4 : "r"(fa[0]), "r"(fa[1]), "r"(fa[2]), "r"(fa[3]), "r"(fb[0]), "r"(fb[1]), C4);
  else if (K == 16)
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%10,%11,%12,%13};"
        : D4 : "r"(fa[0]), "r"(fa[1]), "r"(fa[2]), "r"(fa[3]), "r"(fb[0]), "r"(fb[1]), C4);
  else if (BF16)
    asm("mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3},{%4,%5},{%6},{%7,%8,%9,%10};"
        : D4 : "r"(fa[0]), "r"(fa[1]), "r"(fb[0]), C4);
  else
    asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3},{%4,%5},{%6},{%7,%8,%9,%10};"
        : D4 : "r"(fa[0]), "r"(fa[1]), "r"(fb[0]), C4);
  for (int i = 0; i < 4; ++i) dd[(g + 8 * (i >> 1)) * 8 + 2 * t + (i & 1)] = d[i];
}
extern "C" __global__ void f16_k16(const u16* a, const u16* b, const float* c, float* d) { half_product<16, false>(a, b, c, d); }
extern "C" __global__ void f16_k8(const u16* a, const u16* b, const float* c, float* d) { half_product<8, false>(a, b, c, d); }
extern "C" __global__ void bf16_k16(const u16* a, const u16* b, const float* c, float* d) { half_product<16, true>(a, b, c, d); }
extern "C" __global__ void bf16_k8(const u16* a, const u16* b, const float* c, float* d) { half_product<8, true>(a, b, c, d); }

// f16 accumulators: C and D are f16 [16][8].
extern "C" __global__ void f16_narrow(const u16* a, const u16* b, const u16* c, u16* d) {
  const int lane = threadIdx.x, g = lane >> 2, t = lane & 3;
  u32 d0, d1;
  asm("mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16 {%0,%1},{%2,%3,%4,%5},{%6,%7},{%8,%9};"
      : "=r"(d0), "=r"(d1)
      : "r"(two(a, g * 16 + 2 * t, 1)), "r"(two(a, (g + 8) * 16 + 2 * t, 1)), "r"(two(a, g * 16 + 2 * t + 8, 1)),
        "r"(two(a, (g + 8) * 16 + 2 * t + 8, 1)), "r"(two(b, g * 16 + 2 * t, 1)), "r"(two(b, g * 16 + 2 * t + 8, 1)),
        "r"(two(c, g * 8 + 2 * t, 1)), "r"(two(c, (g + 8) * 8 + 2 * t, 1)));
  *(u32*)&d[g * 8 + 2 * t] = d0;
  *(u32*)&d[(g + 8) * 8 + 2 * t] = d1;
}

// tf32: A f32 [16][K], B f32 [K][8] stored as [8][K].
template <int K> __device__ void tf32_product(const float* a, const float* b, const float* cc, float* dd) {
  const int lane = threadIdx.x, g = lane >> 2, t = lane & 3;
  auto cut = [](float x) { u32 r; asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(r) : "f"(x)); return r; };
  float c[4], d[4];
  for (int i = 0; i < 4; ++i) c[i] = cc[(g + 8 * (i >> 1)) * 8 + 2 * t + (i & 1)];
  if (K == 8)
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%10,%11,%12,%13};"
        : D4 : "r"(cut(a[g * K + t])), "r"(cut(a[(g + 8) * K + t])), "r"(cut(a[g * K + t + 4])),
        "r"(cut(a[(g + 8) * K + t + 4])), "r"(cut(b[g * K + t])), "r"(cut(b[g * K + t + 4])), C4);
  else
    asm("mma.sync.aligned.m16n8k4.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3},{%4,%5},{%6},{%7,%8,%9,%10};"
        : D4 : "r"(cut(a[g * K + t])), "r"(cut(a[(g + 8) * K + t])), "r"(cut(b[g * K + t])), C4);
  for (int i = 0; i < 4; ++i) dd[(g + 8 * (i >> 1)) * 8 + 2 * t + (i & 1)] = d[i];
}
extern "C" __global__ void tf32_k8(const float* a, const float* b, const float* c, float* d) { tf32_product<8>(a, b, c, d); }
extern "C" __global__ void tf32_k4(const float* a, const float* b, const float* c, float* d) { tf32_product<4>(a, b, c, d); }

// s8 x u8: A [16][K], B [8][K].
template <int K> __device__ void int_product(const u8* a, const u8* b, const int* c, int* dd) {
  const int lane = threadIdx.x, g = lane >> 2, t = lane & 3;
  int d[4], e[4];
  for (int i = 0; i < 4; ++i) e[i] = c[(g + 8 * (i >> 1)) * 8 + 2 * t + (i & 1)];
  if (K == 32)
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.u8.s32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%10,%11,%12,%13};"
        : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
        : "r"(four(a + g * K + 4 * t)), "r"(four(a + (g + 8) * K + 4 * t)), "r"(four(a + g * K + 4 * t + 16)),
          "r"(four(a + (g + 8) * K + 4 * t + 16)), "r"(four(b + g * K + 4 * t)), "r"(four(b + g * K + 4 * t + 16)),
          "r"(e[0]), "r"(e[1]), "r"(e[2]), "r"(e[3]));
  else
    asm("mma.sync.aligned.m16n8k16.row.col.s32.s8.u8.s32 {%0,%1,%2,%3},{%4,%5},{%6},{%7,%8,%9,%10};"
        : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
        : "r"(four(a + g * K + 4 * t)), "r"(four(a + (g + 8) * K + 4 * t)), "r"(four(b + g * K + 4 * t)),
          "r"(e[0]), "r"(e[1]), "r"(e[2]), "r"(e[3]));
  for (int i = 0; i < 4; ++i) dd[(g + 8 * (i >> 1)) * 8 + 2 * t + (i & 1)] = d[i];
}
extern "C" __global__ void s8_k32(const u8* a, const u8* b, const int* c, int* d) { int_product<32>(a, b, c, d); }
extern "C" __global__ void s8_k16(const u8* a, const u8* b, const int* c, int* d) { int_product<16>(a, b, c, d); }

// x: u16 [32][8], four 8x8 matrices. y: the fragments of ldmatrix x4, x4.trans, x2, x1, movmatrix; z: what stmatrix stores back.
extern "C" __global__ void moves(const u16* x, u32* y, u16* z) {
  __shared__ __align__(16) u16 s[32 * 8], r[32 * 8];
  const int lane = threadIdx.x;
  for (int i = lane; i < 256; i += 32) s[i] = x[i];
  __syncwarp();
  const u32 at = (u32)__cvta_generic_to_shared(&s[lane * 8]);
  u32 f[4], h[4], m;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];" : "=r"(f[0]), "=r"(f[1]), "=r"(f[2]), "=r"(f[3]) : "r"(at));
  for (int i = 0; i < 4; ++i) y[i * 32 + lane] = f[i];
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];" : "=r"(h[0]), "=r"(h[1]), "=r"(h[2]), "=r"(h[3]) : "r"(at));
  for (int i = 0; i < 4; ++i) y[(4 + i) * 32 + lane] = h[i];
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];" : "=r"(h[0]), "=r"(h[1]) : "r"(at));
  y[8 * 32 + lane] = h[0]; y[9 * 32 + lane] = h[1];
  asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];" : "=r"(h[0]) : "r"(at));
  y[10 * 32 + lane] = h[0];
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(m) : "r"(f[0]));
  y[11 * 32 + lane] = m;
#if __CUDA_ARCH__ >= 900
  const u32 to = (u32)__cvta_generic_to_shared(&r[lane * 8]);
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(to), "r"(f[0]), "r"(f[1]), "r"(f[2]), "r"(f[3]) : "memory");
  __syncwarp();
  for (int i = lane; i < 256; i += 32) z[i] = r[i];
#endif
}

// cp.async of 16, 8 and 4 bytes, with zero fill of what lies past `valid` bytes.
extern "C" __global__ void copies(const u8* x, u8* y, int valid) {
  __shared__ __align__(16) u8 s[3][32 * 16];
  const int lane = threadIdx.x;
  auto to = [&](int b, int i) { return (u32)__cvta_generic_to_shared(&s[b][i]); };
  const int left = min(16, max(0, valid - lane * 16));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to(0, lane * 16)), "l"(x + lane * 16), "r"(left));
  asm volatile("cp.async.commit_group;");
  asm volatile("cp.async.ca.shared.global [%0], [%1], 8;" ::"r"(to(1, lane * 8)), "l"(x + lane * 8));
  asm volatile("cp.async.commit_group;");
  asm volatile("cp.async.ca.shared.global.L2::128B [%0], [%1], 4;" ::"r"(to(2, lane * 4)), "l"(x + lane * 4));
  asm volatile("cp.async.commit_group;");
  asm volatile("cp.async.wait_group 2;" ::: "memory");
  __syncwarp();
  for (int i = 0; i < 16; ++i) y[i * 32 + lane] = s[0][i * 32 + lane];
  asm volatile("cp.async.wait_all;" ::: "memory");
  __syncwarp();
  for (int i = 0; i < 8; ++i) y[512 + i * 32 + lane] = s[1][i * 32 + lane];
  for (int i = 0; i < 4; ++i) y[768 + i * 32 + lane] = s[2][i * 32 + lane];
}
