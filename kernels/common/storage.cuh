// Element types of feature maps. STORAGE chooses what `storage_t` is; arithmetic is always f32.
//
// NVRTC is given no toolkit headers, so the two 16-bit types are bare bits here, converted by one PTX
// instruction each, rounding to nearest even.
#pragma once

#define F32 0
#define F16 1
#define BF16 2

typedef unsigned char u8;
typedef unsigned short u16;
typedef int i32;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef int i32;
typedef long long i64;

struct f16 { u16 bits; };
struct bf16 { u16 bits; };

__device__ inline float to_f32(float x) { return x; }
__device__ inline float to_f32(f16 x) {
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
    return y;
}
__device__ inline float to_f32(bf16 x) { return __uint_as_float(u32(x.bits) << 16); }

template <typename T> __device__ inline T from_f32(float x);
template <> __device__ inline float from_f32<float>(float x) { return x; }
template <> __device__ inline f16 from_f32<f16>(float x) {
    f16 y;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
    return y;
}
template <> __device__ inline bf16 from_f32<bf16>(float x) {
    bf16 y;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
    return y;
}

// The type of number `dtype`, for sources that mix types.
template <int dtype> struct Storage;
template <> struct Storage<F32> { typedef float type; };
template <> struct Storage<F16> { typedef f16 type; };
template <> struct Storage<BF16> { typedef bf16 type; };

#ifdef STORAGE
typedef Storage<STORAGE>::type storage_t;
#endif
