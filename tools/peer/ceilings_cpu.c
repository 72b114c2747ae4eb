// What a core multiplies at best in registers: AVX-512 in f32, bf16 and int8, and the tiles of AMX in bf16 and int8,
// with and without loads from the first cache. Built and run by ceilings_cpu.py; x86-64 Linux. Prints lines of
// `name threads operations-a-second operations-a-second-of-CPU-time`, the latter of one core.
#include <immintrin.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { LOOPS = 6, REPEATS = 20000, THREADS = 1024 };

static const char *const NAMES[LOOPS] = {"f32_avx512", "bf16_avx512", "int8_avx512", "bf16_amx", "int8_amx", "bf16_amx_from_l1"};
static double seconds = 0.3;
static uint8_t tiles[8][1024] __attribute__((aligned(64)));

typedef struct {
    double wall[LOOPS], busy[LOOPS];
} Rates;

static double now(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return t.tv_sec + 1e-9 * t.tv_nsec;
}

// Repeats `body`, of so many operations, for a while.
#define LOOP(at, operations, body) \
    { \
        double begin = now(CLOCK_MONOTONIC), cpu = now(CLOCK_THREAD_CPUTIME_ID), passed, done = 0; \
        do { \
            for (int repeat = 0; repeat < REPEATS; repeat++) { \
                body \
            } \
            done += (double)REPEATS * (operations); \
            passed = now(CLOCK_MONOTONIC) - begin; \
        } while (passed < seconds); \
        rates->wall[at] = done / passed; \
        rates->busy[at] = done / (now(CLOCK_THREAD_CPUTIME_ID) - cpu); \
    }

// Twelve sums at once hide the latency; the compiler may not drop or merge them.
#define EACH(step) step(0) step(1) step(2) step(3) step(4) step(5) step(6) step(7) step(8) step(9) step(10) step(11)
#define KEPT(i) __asm__ volatile("" : "+v"(s##i));
#define F32(i) s##i = _mm512_fmadd_ps(half, half, s##i); KEPT(i)
#define BF16(i) s##i = _mm512_dpbf16_ps(s##i, short_half, short_half); KEPT(i)
#define INT8(i) s##i = _mm512_dpbusd_epi32(s##i, threes, threes); KEPT(i)
#define ZERO_PS(i) __m512 s##i = _mm512_setzero_ps();
#define ZERO_SI(i) __m512i s##i = _mm512_setzero_si512();
#define TILES_4(product) product(4, 0, 2); product(5, 0, 3); product(6, 1, 2); product(7, 1, 3);
#define LOADS_4 _tile_loadd(0, tiles[0], 64); _tile_loadd(1, tiles[1], 64); _tile_loadd(2, tiles[2], 64); _tile_loadd(3, tiles[3], 64);

static void *work(void *argument)
{
    Rates *rates = argument;
    {
        const __m512 half = _mm512_set1_ps(0.5F);
        EACH(ZERO_PS)
        LOOP(0, 12 * 2 * 16, EACH(F32))
    }
    {
        const __m512bh short_half = (__m512bh)_mm512_set1_epi16(0x3f00);
        EACH(ZERO_PS)
        LOOP(1, 12 * 2 * 32, EACH(BF16))
    }
    {
        const __m512i threes = _mm512_set1_epi8(3);
        EACH(ZERO_SI)
        LOOP(2, 12 * 2 * 64, EACH(INT8))
    }
    struct {
        uint8_t palette, start, unused[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    } shape __attribute__((aligned(64))) = {.palette = 1};
    for (int i = 0; i < 8; i++) {
        shape.bytes[i] = 64;
        shape.rows[i] = 16;
    }
    _tile_loadconfig(&shape);
    LOADS_4
    _tile_zero(4);
    _tile_zero(5);
    _tile_zero(6);
    _tile_zero(7);
    LOOP(3, 4 * 2 * 16 * 16 * 32, TILES_4(_tile_dpbf16ps))
    LOOP(4, 4 * 2 * 16 * 16 * 64, TILES_4(_tile_dpbssd))
    LOOP(5, 4 * 2 * 16 * 16 * 32, LOADS_4 TILES_4(_tile_dpbf16ps))
    _tile_release();
    return NULL;
}

int main(int count, char **words)
{
    static pthread_t threads[THREADS];
    static Rates rates[THREADS];
    const int n = count > 1 ? atoi(words[1]) : 1;
    // Tiles are asked for: ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA.
    if (n < 1 || n > THREADS || syscall(SYS_arch_prctl, 0x1023, 18) != 0) return 1;
    for (int i = 0; i < n; i++)
        if (pthread_create(&threads[i], NULL, work, &rates[i]) != 0) return 1;
    for (int i = 0; i < n; i++) pthread_join(threads[i], NULL);
    for (int loop = 0; loop < LOOPS; loop++) {
        double wall = 0, busy = 0;
        for (int i = 0; i < n; i++) {
            wall += rates[i].wall[loop];
            busy += rates[i].busy[loop] / n;
        }
        printf("%s %d %.0f %.0f\n", NAMES[loop], n, wall, busy);
    }
    return 0;
}
