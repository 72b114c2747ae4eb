// Moves ranges of rows: concat (each operand is a range of the result's rows) and slice (the result is a
// range of its operand's rows). A row is the axis that is cut or joined with all axes behind it; the axes
// before it count rows. A range without an operand is zeros: the gradient of a slice lies among them.
//
//   to[row * to_stride + to_start + j] = from[(row % from_rows) * from_stride + from_start + j],   0 <= j <
//   width
//
// in units of UNIT bytes (2, 4, 8 or 16): the largest that divides every width, start and stride. `row %
// from_rows` repeats an operand of fewer rows.
// One thread a unit; blockIdx.y is the range. Each byte is read and written once; no arithmetic.
//
// Defines: UNIT.
#include "common/vector.cuh"

template <int bytes> struct Unit;
template <> struct Unit<2> { typedef u16 type; };
template <> struct Unit<4> { typedef u32 type; };
template <> struct Unit<8> { typedef u64 type; };
template <> struct Unit<16> { typedef Chunk type; };
typedef Unit<UNIT>::type unit_t;

#define RANGES 8

struct Range {
    u32 width;
    u32 from_rows;
    u32 from_stride;
    u32 from_start;
    u32 to_start;
};

struct Params {
    u32 rows;
    u32 to_stride;
    Range range[RANGES];
};

__device__ inline void copy_range(const unit_t* __restrict__ from, unit_t* __restrict__ to, const Params& p,
                                  const Range& r) {
    const u32 unit = blockIdx.x * blockDim.x + threadIdx.x;
    if (r.width == 0) return;
    const u32 row = unit / r.width;
    const u32 j = unit % r.width;
    if (row >= p.rows) return;
    const u64 source = u64(row % r.from_rows) * r.from_stride + r.from_start + j;
    to[u64(row) * p.to_stride + r.to_start + j] = from ? from[source] : unit_t{};
}

extern "C" __global__ void copy_ranges(const unit_t* __restrict__ from0, const unit_t* __restrict__ from1,
                                       const unit_t* __restrict__ from2, const unit_t* __restrict__ from3,
                                       const unit_t* __restrict__ from4, const unit_t* __restrict__ from5,
                                       const unit_t* __restrict__ from6, const unit_t* __restrict__ from7,
                                       unit_t* __restrict__ to, const Params p) {
    // Parameters are indexed by constants alone: an index known at run time would copy them all to local
    // memory.
    switch (blockIdx.y) {
    case 0: return copy_range(from0, to, p, p.range[0]);
    case 1: return copy_range(from1, to, p, p.range[1]);
    case 2: return copy_range(from2, to, p, p.range[2]);
    case 3: return copy_range(from3, to, p, p.range[3]);
    case 4: return copy_range(from4, to, p, p.range[4]);
    case 5: return copy_range(from5, to, p, p.range[5]);
    case 6: return copy_range(from6, to, p, p.range[6]);
    case 7: return copy_range(from7, to, p, p.range[7]);
    }
}
