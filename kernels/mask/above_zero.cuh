// Hard masks of logits: which of two neighbours are above 0. NaN, like 0, is not.
#pragma once
#include "common/storage.cuh"

// 1 for each of two logits that is above 0, else 0.
__device__ inline u32 above_zero(u32 pair, f16) {
    u32 y;
    asm("set.gt.f16x2.f16x2 %0, %1, %2;" : "=r"(y) : "r"(pair), "r"(0));
    return y;
}
// Before sm_90 there is no such instruction for bf16. Of its bits as a whole number, without the sign: at
// least 1 means not 0, at most 0x7f80 means no NaN; either test leaves its answer in the top bit. 0x3f80 is
// 1.
__device__ inline u32 above_zero(u32 pair, bf16) {
    const u32 size = pair & 0x7fff7fff;
    const u32 top = (size + 0x7fff7fff) & ~(size + 0x007f007f) & ~pair & 0x80008000;
    return (top >> 1) - (top >> 8);
}
