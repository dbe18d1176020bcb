// Vectors of floats in one spelling for every machine.
//
// The kernels are written once, in terms of `vec`: LANES floats side by side. What a machine offers decides LANES
// when Theano compiles the Ops (with -march=native):
//
//     AVX-512  16 lanes  32 registers        AVX, AVX2  8 lanes  16 registers
//     NEON      4 lanes  32 registers        SSE        4 lanes  16 registers        anything else  4 lanes
//
// -DTHEANO_TODAY_LANES=1, 4, 8 or 16 forces a width: GCC and Clang lower their vector types to what there is, so
// every width runs (and is tested) on every machine. Plain operators (+ - * / < & ...) work on `vec` and `uvec`;
// this file adds the few things that have no operator. Intrinsics live here and nowhere else, each behind a small
// function with a portable twin.
#pragma once
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include "lanes.hpp"

#if defined(__AVX__) || defined(__SSE2__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

// Inline even where the compiler's cost model says no: a micro-kernel's accumulators must stay in registers.
#define SIMD_INLINE static inline __attribute__((always_inline))

namespace simd {

typedef float vec __attribute__((vector_size(4 * THEANO_TODAY_LANES)));
typedef int32_t ivec __attribute__((vector_size(4 * THEANO_TODAY_LANES)));    // what comparing two vec gives: 0 or -1
typedef uint32_t uvec __attribute__((vector_size(4 * THEANO_TODAY_LANES)));
typedef uint32_t lanebits;    // one bit per lane, the lowest bit for lane 0

// True where intrinsics of this width exist; otherwise the portable twins are used.
#if defined(__AVX512F__) && THEANO_TODAY_LANES == 16
#define SIMD_AVX512 1
#elif defined(__AVX__) && THEANO_TODAY_LANES == 8
#define SIMD_AVX 1
#elif defined(__SSE2__) && THEANO_TODAY_LANES == 4
#define SIMD_SSE 1
#elif defined(__aarch64__) && THEANO_TODAY_LANES == 4
#define SIMD_NEON 1
#endif

// ---- moving ----

SIMD_INLINE vec load(const float* p) {    // any alignment
    vec v;
    memcpy(&v, p, sizeof v);
    return v;
}

SIMD_INLINE void store(float* p, vec v) { memcpy(p, &v, sizeof v); }

SIMD_INLINE void add_to(float* p, vec v) { store(p, load(p) + v); }

// p[i] += v[i] in float64.
SIMD_INLINE void add_to(double* p, vec v) {
#if SIMD_AVX512
    const __m256 low = _mm512_castps512_ps256(v);
    const __m256 high = _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(v), 1));
    _mm512_storeu_pd(p, _mm512_add_pd(_mm512_loadu_pd(p), _mm512_cvtps_pd(low)));
    _mm512_storeu_pd(p + 8, _mm512_add_pd(_mm512_loadu_pd(p + 8), _mm512_cvtps_pd(high)));
#elif SIMD_AVX
    const __m128 low = _mm256_castps256_ps128(v), high = _mm256_extractf128_ps(v, 1);
    _mm256_storeu_pd(p, _mm256_add_pd(_mm256_loadu_pd(p), _mm256_cvtps_pd(low)));
    _mm256_storeu_pd(p + 4, _mm256_add_pd(_mm256_loadu_pd(p + 4), _mm256_cvtps_pd(high)));
#else
    for (int l = 0; l < LANES; l++) p[l] += v[l];
#endif
}

SIMD_INLINE uvec load(const uint32_t* p) {
    uvec v;
    memcpy(&v, p, sizeof v);
    return v;
}

SIMD_INLINE void store(uint32_t* p, uvec v) { memcpy(p, &v, sizeof v); }

SIMD_INLINE vec zero() { return vec{}; }

SIMD_INLINE vec broadcast(float x) { return x - vec{}; }    // x - 0 is x for every x, also -0 and NaN

SIMD_INLINE uvec broadcast(uint32_t x) { return x + uvec{}; }

// The first n lanes (0 <= n <= LANES) from or to memory, the other lanes zero or untouched: tails of rows.
#if SIMD_AVX
SIMD_INLINE __m256i first_lanes(int n) {
    static const int32_t lanes[16] = {-1, -1, -1, -1, -1, -1, -1, -1};
    return _mm256_loadu_si256((const __m256i*)(lanes + 8 - n));
}
#endif

SIMD_INLINE vec load_first(const float* p, int n) {
#if SIMD_AVX512
    return _mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p);
#elif SIMD_AVX
    return _mm256_maskload_ps(p, first_lanes(n));
#else
    if (n == LANES) return load(p);
    vec v = {};
#pragma GCC unroll 16
    for (int l = 0; l < LANES - 1; l++)    // each l is a constant: v stays in its register
        if (l < n) v[l] = p[l];
    return v;
#endif
}

SIMD_INLINE void store_first(float* p, vec v, int n) {
#if SIMD_AVX512
    _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), v);
#elif SIMD_AVX
    if (n == LANES) return store(p, v);    // (AMD's processors take 20 cycles for a masked store)
    __m128 rest = _mm256_castps256_ps128(v);
    if (n & 4) _mm_storeu_ps(p, rest), p += 4, rest = _mm256_extractf128_ps(v, 1);
    if (n & 2) _mm_storel_pi((__m64*)p, rest), p += 2, rest = _mm_movehl_ps(rest, rest);
    if (n & 1) _mm_store_ss(p, rest);
#else
    if (n == LANES) return store(p, v);
#pragma GCC unroll 16
    for (int l = 0; l < LANES - 1; l++)
        if (l < n) p[l] = v[l];
#endif
}

// n floats, a few vec.
SIMD_INLINE void copy(const float* from, ptrdiff_t n, float* to) {
    ptrdiff_t i = 0;
    for (; i + LANES <= n; i += LANES) store(to + i, load(from + i));
    if (i < n) store_first(to + i, load_first(from + i, (int)(n - i)), (int)(n - i));
}

// Pairs (a[l], b[l]) one after another in memory, and back.
SIMD_INLINE void store_pairs(uint32_t* p, uvec a, uvec b) {
#if SIMD_AVX512
    const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    const __m512i high = _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
    _mm512_storeu_si512(p, _mm512_permutex2var_epi32((__m512i)a, low, (__m512i)b));
    _mm512_storeu_si512(p + 16, _mm512_permutex2var_epi32((__m512i)a, high, (__m512i)b));
#elif SIMD_AVX
    const __m256 low = _mm256_unpacklo_ps((__m256)a, (__m256)b), high = _mm256_unpackhi_ps((__m256)a, (__m256)b);
    _mm256_storeu_ps((float*)p, _mm256_permute2f128_ps(low, high, 0x20));    // from within 128-bit halves
    _mm256_storeu_ps((float*)p + 8, _mm256_permute2f128_ps(low, high, 0x31));
#elif SIMD_SSE
    _mm_storeu_ps((float*)p, _mm_unpacklo_ps((__m128)a, (__m128)b));
    _mm_storeu_ps((float*)p + 4, _mm_unpackhi_ps((__m128)a, (__m128)b));
#else
    for (int l = 0; l < LANES; l++) p[2 * l] = a[l], p[2 * l + 1] = b[l];
#endif
}

SIMD_INLINE void load_pairs(const uint32_t* p, uvec* a, uvec* b) {
#if SIMD_AVX512
    const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const __m512i one = _mm512_set1_epi32(1), low = _mm512_loadu_si512(p), high = _mm512_loadu_si512(p + 16);
    *a = (uvec)_mm512_permutex2var_epi32(low, even, high);
    *b = (uvec)_mm512_permutex2var_epi32(low, _mm512_add_epi32(even, one), high);
#elif SIMD_AVX
    const __m256 first = _mm256_loadu_ps((const float*)p), second = _mm256_loadu_ps((const float*)p + 8);
    const __m256 low = _mm256_permute2f128_ps(first, second, 0x20), high = _mm256_permute2f128_ps(first, second, 0x31);
    *a = (uvec)_mm256_shuffle_ps(low, high, 0x88);
    *b = (uvec)_mm256_shuffle_ps(low, high, 0xdd);
#elif SIMD_SSE
    const __m128 low = _mm_loadu_ps((const float*)p), high = _mm_loadu_ps((const float*)p + 4);
    *a = (uvec)_mm_shuffle_ps(low, high, 0x88);
    *b = (uvec)_mm_shuffle_ps(low, high, 0xdd);
#else
    for (int l = 0; l < LANES; l++) (*a)[l] = p[2 * l], (*b)[l] = p[2 * l + 1];
#endif
}

SIMD_INLINE void load_pairs(const float* p, vec* a, vec* b) {
#if SIMD_AVX512 || SIMD_AVX || SIMD_SSE
    uvec first, second;
    load_pairs((const uint32_t*)p, &first, &second);
    *a = (vec)first, *b = (vec)second;
#else
    for (int l = 0; l < LANES; l++) (*a)[l] = p[2 * l], (*b)[l] = p[2 * l + 1];
#endif
}

SIMD_INLINE void prefetch(const void* p) { __builtin_prefetch(p); }

// out[j * out_row + i] = in[i * in_row + j] for 8 x 8 floats, written row after row.
SIMD_INLINE void transpose_8x8(const float* in, ptrdiff_t in_row, float* out, ptrdiff_t out_row) {
#if defined(__AVX__)
    __m256 a[8], b[8];
    for (int i = 0; i < 8; i++) a[i] = _mm256_loadu_ps(in + i * in_row);
    for (int i = 0; i < 8; i += 2) {    // pairs of rows, then of pairs, then the halves
        b[i] = _mm256_unpacklo_ps(a[i], a[i + 1]);
        b[i + 1] = _mm256_unpackhi_ps(a[i], a[i + 1]);
    }
    for (int i = 0; i < 8; i += 4)
        for (int j = 0; j < 2; j++) {
            a[i + 2 * j] = _mm256_shuffle_ps(b[i + j], b[i + j + 2], 0x44);
            a[i + 2 * j + 1] = _mm256_shuffle_ps(b[i + j], b[i + j + 2], 0xee);
        }
    for (int i = 0; i < 4; i++) _mm256_storeu_ps(out + i * out_row, _mm256_permute2f128_ps(a[i], a[i + 4], 0x20));
    for (int i = 4; i < 8; i++) _mm256_storeu_ps(out + i * out_row, _mm256_permute2f128_ps(a[i - 4], a[i], 0x31));
#else
    for (int j = 0; j < 8; j++)
        for (int i = 0; i < 8; i++) out[j * out_row + i] = in[i * in_row + j];
#endif
}

// The same for any number of rows and columns.
static inline void transpose(const float* in, ptrdiff_t in_row, ptrdiff_t rows, ptrdiff_t columns, float* out,
                             ptrdiff_t out_row) {
    if (rows >= 8 && columns >= 8) {    // the last 8 rows or columns may have been done in part before
        const ptrdiff_t BLOCK = 64;     // columns whose `out` stays in the cache
        for (ptrdiff_t begin = 0; begin < columns; begin += BLOCK)
            for (ptrdiff_t i = 0; i < rows; i += 8)
                for (ptrdiff_t j = begin; j < columns && j < begin + BLOCK; j += 8) {
                    const ptrdiff_t ii = i < rows - 8 ? i : rows - 8, jj = j < columns - 8 ? j : columns - 8;
                    transpose_8x8(in + ii * in_row + jj, in_row, out + jj * out_row + ii, out_row);
                }
        return;
    }
    ptrdiff_t i = 0, j = 0;
    if (rows < 8 && out_row == rows) {    // what is written beyond a column's end belongs to the next, which follows
        alignas(32) float eight[64] = {};
        for (; j + 16 <= columns; j += 8) {
            for (i = 0; i < rows; i++) memcpy(eight + 8 * i, in + i * in_row + j, 8 * sizeof(float));
            transpose_8x8(eight, 8, out + j * out_row, out_row);
        }
        i = 0;
    } else if (columns < 8 && in_row >= columns) {    // what is read beyond a row's end belongs to the next
        alignas(32) float eight[64];
        for (; i + 16 <= rows; i += 8) {
            transpose_8x8(in + i * in_row, in_row, eight, 8);
            for (j = 0; j < columns; j++) memcpy(out + j * out_row + i, eight + 8 * j, 8 * sizeof(float));
        }
        j = 0;
    }
    for (const ptrdiff_t first = i; j < columns; j++)
        for (i = first; i < rows; i++) out[j * out_row + i] = in[i * in_row + j];
}

// ---- arithmetic ----

// a * b + c, in one rounding where the machine has such an instruction.
SIMD_INLINE vec fma(vec a, vec b, vec c) {
#if SIMD_AVX512
    return _mm512_fmadd_ps(a, b, c);
#elif SIMD_AVX && defined(__FMA__)
    return _mm256_fmadd_ps(a, b, c);
#elif SIMD_NEON
    return (vec)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
    return a * b + c;
#endif
}

// a > b ? a : b in every lane; the second argument wins where one is NaN, as C's ternary (and x86's max) has it.
SIMD_INLINE vec max(vec a, vec b) {
#if SIMD_AVX512
    return _mm512_max_ps(a, b);
#elif SIMD_AVX
    return _mm256_max_ps(a, b);
#elif SIMD_SSE
    return _mm_max_ps(a, b);
#else
    return a > b ? a : b;
#endif
}

SIMD_INLINE vec abs(vec a) { return (vec)((uvec)a & 0x7fffffffu); }

// Integers to floats.
SIMD_INLINE vec to_floats(ivec a) {    // __builtin_convertvector needs g++ 9
#if SIMD_AVX512
    return _mm512_cvtepi32_ps((__m512i)a);
#elif SIMD_AVX
    return _mm256_cvtepi32_ps((__m256i)a);
#elif SIMD_SSE
    return _mm_cvtepi32_ps((__m128i)a);
#elif SIMD_NEON
    return (vec)vcvtq_f32_s32((int32x4_t)a);
#else
    vec v;
    for (int l = 0; l < LANES; l++) v[l] = (float)a[l];
    return v;
#endif
}

// The sum of all lanes, added pairwise (the order depends on LANES alone).
SIMD_INLINE float sum(vec a) {
    float s[LANES];
    memcpy(s, &a, sizeof a);
    for (int half = LANES / 2; half > 0; half /= 2)
        for (int l = 0; l < half; l++) s[l] += s[l + half];
    return s[0];
}

// out[i] = sum(a[i]) of eight vec: the halves of two vec side by side, and so on.
SIMD_INLINE void sum_8(const vec* a, float* out) {
#if SIMD_AVX512
    __m512 b[4], c[2];
    for (int i = 0; i < 4; i++)
        b[i] = _mm512_add_ps(_mm512_shuffle_f32x4(a[2 * i], a[2 * i + 1], 0x44),
                             _mm512_shuffle_f32x4(a[2 * i], a[2 * i + 1], 0xee));
    for (int i = 0; i < 2; i++)
        c[i] = _mm512_add_ps(_mm512_shuffle_f32x4(b[2 * i], b[2 * i + 1], 0x88),
                             _mm512_shuffle_f32x4(b[2 * i], b[2 * i + 1], 0xdd));
    __m512 d = _mm512_add_ps(_mm512_shuffle_ps(c[0], c[1], 0x44), _mm512_shuffle_ps(c[0], c[1], 0xee));
    d = _mm512_add_ps(d, _mm512_shuffle_ps(d, d, 0xb1));
    const __m512i sums = _mm512_setr_epi32(0, 4, 8, 12, 2, 6, 10, 14, 0, 0, 0, 0, 0, 0, 0, 0);
    _mm256_storeu_ps(out, _mm512_castps512_ps256(_mm512_permutexvar_ps(sums, d)));
#elif SIMD_AVX
    __m256 b[4], c[2];
    for (int i = 0; i < 4; i++)
        b[i] = _mm256_add_ps(_mm256_permute2f128_ps(a[2 * i], a[2 * i + 1], 0x20),
                             _mm256_permute2f128_ps(a[2 * i], a[2 * i + 1], 0x31));
    for (int i = 0; i < 2; i++)
        c[i] = _mm256_add_ps(_mm256_shuffle_ps(b[2 * i], b[2 * i + 1], 0x44),
                             _mm256_shuffle_ps(b[2 * i], b[2 * i + 1], 0xee));
    const __m256 d = _mm256_add_ps(_mm256_shuffle_ps(c[0], c[1], 0x88), _mm256_shuffle_ps(c[0], c[1], 0xdd));
    const __m128 even = _mm256_castps256_ps128(d), odd = _mm256_extractf128_ps(d, 1);
    _mm_storeu_ps(out, _mm_unpacklo_ps(even, odd));
    _mm_storeu_ps(out + 4, _mm_unpackhi_ps(even, odd));
#elif SIMD_SSE
    for (int i = 0; i < 8; i += 4) {
        const __m128 b = _mm_add_ps(_mm_shuffle_ps(a[i], a[i + 1], 0x44), _mm_shuffle_ps(a[i], a[i + 1], 0xee));
        const __m128 c = _mm_add_ps(_mm_shuffle_ps(a[i + 2], a[i + 3], 0x44), _mm_shuffle_ps(a[i + 2], a[i + 3], 0xee));
        _mm_storeu_ps(out + i, _mm_add_ps(_mm_shuffle_ps(b, c, 0x88), _mm_shuffle_ps(b, c, 0xdd)));
    }
#else
    for (int i = 0; i < 8; i++) out[i] = sum(a[i]);
#endif
}

// The largest lane.
SIMD_INLINE float largest(vec a) {
    float m = a[0];
    for (int l = 1; l < LANES; l++) m = a[l] > m ? a[l] : m;
    return m;
}

// ---- lanes as bits ----

// One bit per lane from the 0 / -1 lanes of a comparison, as in `to_bits(a > b)`.
SIMD_INLINE lanebits to_bits(ivec c) {
#if SIMD_AVX512
    return _mm512_cmplt_epi32_mask((__m512i)c, _mm512_setzero_si512());
#elif SIMD_AVX
    return _mm256_movemask_ps((__m256)c);
#elif SIMD_SSE
    return _mm_movemask_ps((__m128)c);
#elif SIMD_NEON
    return vaddvq_u32((uint32x4_t)c & (uint32x4_t){1, 2, 4, 8});
#else
    lanebits m = 0;
    for (int l = 0; l < LANES; l++) m |= (lanebits)(c[l] & 1) << l;
    return m;
#endif
}

// The 0 / -1 lanes of a comparison as bytes 0 / 1, numpy's bool.
SIMD_INLINE void store_bools(bool* p, ivec c) {
#if SIMD_AVX512
    _mm_storeu_si128((__m128i*)p, _mm512_cvtepi32_epi8(_mm512_and_si512((__m512i)c, _mm512_set1_epi32(1))));
#elif SIMD_AVX
    const __m128i halves = _mm_packs_epi32(_mm256_castsi256_si128((__m256i)c), _mm256_extractf128_si256((__m256i)c, 1));
    _mm_storel_epi64((__m128i*)p, _mm_and_si128(_mm_packs_epi16(halves, halves), _mm_set1_epi8(1)));
#else
    for (int l = 0; l < LANES; l++) p[l] = c[l] != 0;
#endif
}

// The 0 / -1 lanes that the bits stand for.
SIMD_INLINE ivec from_bits(lanebits m) {
    uvec bit;
    for (int l = 0; l < LANES; l++) bit[l] = 1u << l;    // a constant after inlining
    return (ivec)((bit & m) != 0);
}

// a where the bit is set, b elsewhere.
SIMD_INLINE vec select(lanebits m, vec a, vec b) {
#if SIMD_AVX512
    return _mm512_mask_blend_ps((__mmask16)m, b, a);
#elif SIMD_AVX
    return _mm256_blendv_ps(b, a, (__m256)from_bits(m));
#else
    return from_bits(m) ? a : b;
#endif
}

// a where the bit is set, zero elsewhere.
SIMD_INLINE vec select(lanebits m, vec a) {
#if SIMD_AVX512
    return _mm512_maskz_mov_ps((__mmask16)m, a);
#else
    return (vec)((ivec)a & from_bits(m));
#endif
}

// Bits of consecutive lanes kept in memory, eight to a byte; `lane` is a multiple of LANES.
SIMD_INLINE lanebits load_bits(const uint8_t* bits, int lane) {
    if (LANES == 16) {
        uint16_t m;
        memcpy(&m, bits + lane / 8, 2);
        return m;
    }
    return (bits[lane / 8] >> lane % 8) & ((1u << LANES) - 1);
}

// Several vec share a byte where LANES < 8: the byte's first vec (lane % 8 == 0) clears the bits of the others.
SIMD_INLINE void store_bits(uint8_t* bits, int lane, lanebits m) {
    if (LANES == 16) {
        uint16_t h = (uint16_t)m;
        memcpy(bits + lane / 8, &h, 2);
    } else if (lane % 8 == 0) {
        bits[lane / 8] = (uint8_t)m;
    } else {
        bits[lane / 8] |= (uint8_t)(m << lane % 8);
    }
}

#if SIMD_AVX && defined(__AVX2__)
// For each byte of bits, the lanes that are set, in order, one byte each.
struct SetLanes {
    uint64_t of[256];
    SetLanes() {
        for (int m = 0; m < 256; m++) {
            of[m] = 0;
            for (int l = 7; l >= 0; l--)
                if (m >> l & 1) of[m] = of[m] << 8 | (uint64_t)l;
        }
    }
};
static const SetLanes set_lanes;
#endif

// Pairs (a[l], b[l]) of the lanes l whose bit is set, one after another. Returns their number. Up to LANES pairs may be
// overwritten.
SIMD_INLINE int compress_pairs(lanebits m, vec a, uvec b, void* pairs) {
    float* p = (float*)pairs;
#if SIMD_AVX512
    const __m512 ca = _mm512_maskz_compress_ps((__mmask16)m, a), cb = _mm512_maskz_compress_ps((__mmask16)m, (__m512)b);
    store_pairs((uint32_t*)p, (uvec)ca, (uvec)cb);
    return __builtin_popcount(m);
#elif SIMD_AVX && defined(__AVX2__)
    const __m256i order = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128((long long)set_lanes.of[m]));
    const __m256 ca = _mm256_permutevar8x32_ps(a, order), cb = _mm256_permutevar8x32_ps((__m256)b, order);
    store_pairs((uint32_t*)p, (uvec)ca, (uvec)cb);
    return __builtin_popcount(m);
#else
    int n = 0;
    for (; m; m &= m - 1, n++) {
        const int l = __builtin_ctz(m);
        memcpy(p + 2 * n, (const float*)&a + l, 4);
        memcpy(p + 2 * n + 1, (const uint32_t*)&b + l, 4);
    }
    return n;
#endif
}

// The form of a mask that the machine likes best: bits with AVX-512, lanes of 0 / -1 elsewhere. & and | combine masks.
#if SIMD_AVX512
typedef lanebits mask;

SIMD_INLINE mask to_mask(ivec c) { return to_bits(c); }    // of a comparison

SIMD_INLINE mask load_mask(const uint8_t* bits, int lane) { return load_bits(bits, lane); }

SIMD_INLINE lanebits to_bits(mask m) { return m; }
#else
typedef ivec mask;

SIMD_INLINE mask to_mask(ivec c) { return c; }

// As load_bits; `bits` are whole 32-bit words.
SIMD_INLINE mask load_mask(const uint8_t* bits, int lane) {
    uint32_t word;
    memcpy(&word, bits + lane / 32 * 4, 4);
    uvec bit;
    for (int l = 0; l < LANES; l++) bit[l] = 1u << l;
    bit <<= (uint32_t)(lane % 32);
    return (ivec)((broadcast(word) & bit) == bit);
}

SIMD_INLINE vec select(mask m, vec a) { return (vec)((ivec)a & m); }

SIMD_INLINE vec select(mask m, vec a, vec b) { return m ? a : b; }
#endif

}    // namespace simd
