// Division by a number that the host knows: one multiplication and a shift, where the hardware would take
// some twenty instructions.
//
// With shift = ceil(log2 d) and multiplier = ceil(2^(31 + shift) / d) the quotient is exact for dividends n
// below 2^31: the product exceeds n / d * 2^(31 + shift) by less than n < 2^31, too little to reach the next
// whole quotient, which is at least 2^(31 + shift) / d >= 2^31 away. `divisor` in src/cuda/ops/launches.rs
// makes it.
#pragma once
#include "common/storage.cuh"

struct Divisor {
    u32 multiplier, shift;
};

__device__ inline u32 operator/(u32 n, const Divisor& d) {
    return u32(u64(n) * d.multiplier >> (31 + d.shift));
}
