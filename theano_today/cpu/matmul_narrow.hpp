// Matrix products of which one side is short: a batch times one column of weights, an outer product.
//
// What matmul.hpp does to be fast, packing both factors and computing whole tiles, costs more here than the product.
// There is little to reuse: A is read once, in its own order, while B stays in the first-level cache.
//
//     short rows    C has at most NARROW columns:   dot products of A's rows, with what lies side by side in memory
//                                                   side by side in a vec: LANES floats of a row, or LANES rows (as
//                                                   always where a row is short)
//     short sums    A has at most SHALLOW columns:  each row of C is a sum of a few rows of B
//
// C with few rows is the transpose of C with few columns. Each number of C is computed by one thread, in the same way
// for any number of threads and any layout of A and B in memory: sizes alone decide.
#pragma once
#include "matmul_direct.hpp"

namespace matmul {

constexpr Index NARROW = 8;
constexpr Index SHALLOW = 8;
constexpr Index BLOCK = 64;    // rows that a thread takes at a time

// A partial sum has at most this many products; partial sums add up in float64.
constexpr Index CHAIN = 2048;

// ---- at most NARROW columns, long sums ----
//
// The order of every sum, whichever of the two kernels makes it: partial sum l has the products of k = l, l + LANES,
// l + 2 LANES, ...; these LANES partial sums are added pairwise, as simd::sum does.

// The next products of all sums: of LANES values of k, or n of them.
template <bool ALL, int ROWS, int COLUMNS>
SIMD_INLINE void add_products(const float* a, Index a_row, const float* b, Index depth, int n,
                              vec (&sum)[ROWS][COLUMNS]) {
    vec x[COLUMNS];
    for (int j = 0; j < COLUMNS; j++) x[j] = load_some<ALL>(b + j * depth, n);
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++) {
        const vec y = load_some<ALL>(a + r * a_row, n);
#pragma GCC unroll 8
        for (int j = 0; j < COLUMNS; j++) sum[r][j] = simd::fma(y, x[j], sum[r][j]);
    }
}

// ROWS x COLUMNS numbers of C, which are `row` and `column` apart, from ROWS rows of A that lie in memory in their order
// (k side by side). `b` has the columns of B one after the other, `depth` floats each.
template <int ROWS, int COLUMNS>
static void rows_by_dot(const float* a, Index a_row, const float* b, Index depth, float* c, Index row, Index column) {
    double total[ROWS][COLUMNS] = {};
    float sums[ROWS][COLUMNS] = {};
    for (Index k0 = 0; k0 < depth; k0 += CHAIN * LANES) {
        const Index k1 = std::min(depth, k0 + CHAIN * LANES);
        vec sum[ROWS][COLUMNS] = {};
        Index k = k0;
        for (; k + LANES <= k1; k += LANES) add_products<true>(a + k, a_row, b + k, depth, LANES, sum);
        if (k < k1) add_products<false>(a + k, a_row, b + k, depth, (int)(k1 - k), sum);
        if (ROWS * COLUMNS % 8 == 0)
            for (int i = 0; i < ROWS * COLUMNS; i += 8) simd::sum_8(&sum[0][0] + i, &sums[0][0] + i);
        else
            for (int r = 0; r < ROWS; r++)
                for (int j = 0; j < COLUMNS; j++) sums[r][j] = simd::sum(sum[r][j]);
        if (depth > CHAIN * LANES)
            for (int r = 0; r < ROWS; r++)
                for (int j = 0; j < COLUMNS; j++) {
                    total[r][j] += sums[r][j];
                    sums[r][j] = (float)total[r][j];
                }
    }
    for (int r = 0; r < ROWS; r++)
        for (int j = 0; j < COLUMNS; j++) c[r * row + j * column] = sums[r][j];
}

// The same for any number of rows.
template <int ROWS, int COLUMNS>
static void columns_by_dot(const float* a, Index a_row, const float* b, Index rows, Index depth, float* c, Index row,
                           Index column) {
    Index i = 0;
    for (; i + ROWS <= rows; i += ROWS)
        rows_by_dot<ROWS, COLUMNS>(a + i * a_row, a_row, b, depth, c + i * row, row, column);
    for (; i < rows; i++) rows_by_dot<1, COLUMNS>(a + i * a_row, a_row, b, depth, c + i * row, row, column);
}

// And for n columns.
static void rows_by_dot(const float* a, Index a_row, const float* b, Index rows, Index n, Index depth, float* c,
                        Index row, Index column) {
    constexpr int MANY = simd::REGISTERS >= 32 ? 4 : 2;
    Index j = 0;
    for (; j + MANY <= n; j += MANY)
        columns_by_dot<4, MANY>(a, a_row, b + j * depth, rows, depth, c + j * column, row, column);
    if (j + 2 <= n) {
        columns_by_dot<4, 2>(a, a_row, b + j * depth, rows, depth, c + j * column, row, column);
        j += 2;
    }
    if (j < n) columns_by_dot<8, 1>(a, a_row, b + j * depth, rows, depth, c + j * column, row, column);
}

// Sums that registers hold beside what is added to them.
constexpr int HELD = simd::REGISTERS >= 32 ? 16 : 8;

// The largest that is not above n.
constexpr int power_of_two(int n) { return n < 2 ? 1 : 2 * power_of_two(n / 2); }

// TOGETHER of the LANES partial sums of N columns and GROUPS vec of rows, as many as registers hold, from an A whose
// rows lie side by side (each of its columns is contiguous). `a` and `b` (as above) begin at the first k of the first.
template <int N, int GROUPS, int TOGETHER>
SIMD_INLINE void partial_sums(const float* a, Index a_column, const float* b, Index b_column, int rows, Index depth,
                              vec* out) {
    constexpr int SUMS = TOGETHER * N * GROUPS;
    vec sum[SUMS];
#pragma GCC unroll 16
    for (int i = 0; i < SUMS; i++) sum[i] = simd::zero();
    const auto add = [&](Index k, int l) {
        vec x[GROUPS];
#pragma GCC unroll 4
        for (int g = 0; g < GROUPS; g++)
            x[g] = GROUPS > 1 ? simd::load(a + (k + l) * a_column + g * LANES)
                              : simd::load_first(a + (k + l) * a_column, rows);
#pragma GCC unroll 8
        for (int j = 0; j < N; j++) {
            const vec y = simd::broadcast(b[j * b_column + k + l]);
#pragma GCC unroll 4
            for (int g = 0; g < GROUPS; g++) {
                vec& s = sum[(l * N + j) * GROUPS + g];
                s = simd::fma(x[g], y, s);
            }
        }
    };
    Index k = 0;
    for (; k + TOGETHER <= depth; k += LANES)
#pragma GCC unroll 16
        for (int l = 0; l < TOGETHER; l++) add(k, l);
    if (k < depth)
#pragma GCC unroll 16
        for (int l = 0; l < TOGETHER - 1; l++)
            if (k + l < depth) add(k, l);
#pragma GCC unroll 16
    for (int i = 0; i < SUMS; i++) out[i] = sum[i];
}

// The sum of N (a power of two) partial sums that are STEP vec apart.
template <int STEP, int N = LANES>
SIMD_INLINE vec pairwise(const vec* sums) {
    vec sum[N];
#pragma GCC unroll 16
    for (int l = 0; l < N; l++) sum[l] = sums[l * STEP];
#pragma GCC unroll 4
    for (int half = N / 2; half > 0; half /= 2)
#pragma GCC unroll 8
        for (int l = 0; l < half; l++) sum[l] += sum[l + half];
    return sum[0];
}

// The first n lanes to numbers that are `row` apart.
SIMD_INLINE void store_rows(vec v, Index n, float* c, Index row) {
    n = std::min<Index>(n, LANES);
    if (row == 1) simd::store_first(c, v, (int)n);
    else
        for (Index r = 0; r < n; r++) c[r * row] = v[r];
}

// GROUPS * LANES rows of N columns of C; where GROUPS is 1, `rows` of them.
template <int N, int GROUPS>
static void vectors_of_rows(const float* a, Index a_column, const float* b, int rows, Index depth, float* c, Index row,
                            Index column) {
    constexpr int FITTING = power_of_two(HELD / (N * GROUPS)), TOGETHER = FITTING < LANES ? FITTING : LANES;
    double total[N][GROUPS * LANES] = {};
    alignas(64) float sums[N][GROUPS * LANES];
    for (Index k0 = 0; k0 < depth; k0 += CHAIN * LANES) {
        const Index k1 = std::min(depth, k0 + CHAIN * LANES);
        vec partial[LANES * N * GROUPS];
        for (int l = 0; l < LANES; l += TOGETHER)
            partial_sums<N, GROUPS, TOGETHER>(a + (k0 + l) * a_column, a_column, b + k0 + l, depth, rows, k1 - k0 - l,
                                              partial + l * N * GROUPS);
        for (int j = 0; j < N; j++)
            for (int g = 0; g < GROUPS; g++)
                simd::store(&sums[j][g * LANES], pairwise<N * GROUPS>(partial + j * GROUPS + g));
        if (depth > CHAIN * LANES)
            for (int j = 0; j < N; j++)
                for (int r = 0; r < rows; r++) {
                    total[j][r] += sums[j][r];
                    sums[j][r] = (float)total[j][r];
                }
    }
    for (int j = 0; j < N; j++)
        for (int g = 0; g < GROUPS; g++)
            store_rows(simd::load(&sums[j][g * LANES]), rows - g * LANES, c + g * LANES * row + j * column, row);
}

// Any number of rows.
template <int N>
static void rows_by_lanes(const float* a, Index a_column, const float* b, Index rows, Index depth, float* c, Index row,
                          Index column) {
    constexpr int GROUPS = N == 1 ? 2 : N > HELD / 4 ? power_of_two(HELD / N) : 4;
    Index i = 0;
    for (; i + GROUPS * LANES <= rows; i += GROUPS * LANES)
        vectors_of_rows<N, GROUPS>(a + i, a_column, b, GROUPS * LANES, depth, c + i * row, row, column);
    for (; i < rows; i += LANES)
        vectors_of_rows<N, 1>(a + i, a_column, b, (int)std::min<Index>(LANES, rows - i), depth, c + i * row, row,
                              column);
}

// One column of C from such an A: the partial sums of STREAM rows wait in the first-level cache, so that A is read a
// column, or some columns, after the other.

constexpr Index STREAM = 256;

// N arrays of partial sums, added up.
template <int N>
static void add_up(const float (&partial)[N][STREAM], Index rows, float* c, Index row) {
    for (Index i = 0; i < rows; i += LANES) {
        vec sums[N];
#pragma GCC unroll 16
        for (int l = 0; l < N; l++) sums[l] = simd::load(partial[l] + i);
        store_rows(pairwise<1, N>(sums), rows - i, c + i * row, row);
    }
}

// K more products for LANES partial sums (or n), of columns of A that are LANES apart.
template <bool ALL, int K>
SIMD_INLINE void add_columns(const float* a, Index a_column, const vec (&x)[K], float* partial, bool first, Index n) {
    vec sum = first ? simd::zero() : simd::load(partial);
#pragma GCC unroll 4
    for (int k = 0; k < K; k++) sum = simd::fma(load_some<ALL>(a + k * LANES * a_column, (int)n), x[k], sum);
    simd::store(partial, sum);
}

// For all rows.
template <int K>
static void add_columns(const float* a, Index a_column, const float* b, Index rows, float* partial, bool first) {
    vec x[K];
    for (int k = 0; k < K; k++) x[k] = simd::broadcast(b[k * LANES]);
    Index i = 0;
    for (; i + LANES <= rows; i += LANES) add_columns<true>(a + i, a_column, x, partial + i, first, LANES);
    if (i < rows) add_columns<false>(a + i, a_column, x, partial + i, first, rows - i);
}

// Up to STREAM rows; no partial sum is empty.
static void stream(const float* a, Index a_column, const float* b, Index rows, Index depth, float* c, Index row) {
    alignas(64) float partial[LANES][STREAM];
    for (Index l = 0; l < LANES; l++)
        for (Index k = l; k < depth; k += 4 * LANES) {
            const Index more = std::min<Index>(4, (depth - k - 1) / LANES + 1);
            const auto add = more == 4 ? add_columns<4> : more == 3 ? add_columns<3> : more == 2 ? add_columns<2>
                                                                                         : add_columns<1>;
            add(a + k * a_column, a_column, b + k, rows, partial[l], k == l);
        }
    add_up(partial, rows, c, row);
}

// The sum of four partial sums of K products each, for LANES rows (or n) from row i on.
template <bool ALL, int K>
SIMD_INLINE vec sum_of_four(const float* const (&p)[4][K], const vec (&x)[4][K], Index i, Index n) {
    vec sums[4];
#pragma GCC unroll 4
    for (int q = 0; q < 4; q++) {
        sums[q] = simd::zero();
#pragma GCC unroll 4
        for (int j = 0; j < K; j++) sums[q] = simd::fma(load_some<ALL>(p[q][j] + i, (int)n), x[q][j], sums[q]);
    }
    return pairwise<1, 4>(sums);
}

// The same as `stream` where no partial sum has more than K products.
template <int K>
static void short_stream(const float* a, Index a_column, const float* b, Index rows, Index depth, float* c, Index row) {
    constexpr int QUARTER = LANES < 4 ? 1 : LANES / 4;
    static const float zeros[STREAM] = {};
    alignas(64) float partial[QUARTER][STREAM];
    for (int l = 0; l < QUARTER; l++) {
        const float* p[4][K];
        vec x[4][K];
        for (int q = 0; q < 4; q++)
            for (int j = 0; j < K; j++) {
                const Index k = l + q * QUARTER + j * LANES;
                p[q][j] = k < depth ? a + k * a_column : zeros;
                x[q][j] = k < depth ? simd::broadcast(b[k]) : simd::zero();
            }
        Index i = 0;
        for (; i + LANES <= rows; i += LANES) simd::store(partial[l] + i, sum_of_four<true>(p, x, i, LANES));
        if (i < rows) simd::store(partial[l] + i, sum_of_four<false>(p, x, i, rows - i));
    }
    add_up(partial, rows, c, row);
}

static bool is_streamed(Matrix a, Index n, Index depth) {
    return n == 1 && a.row == 1 && a.column != 1 && depth <= CHAIN * LANES;
}

typedef void (*Stream)(const float*, Index, const float*, Index, Index, float*, Index);

static Stream stream_for(Index depth) {
    if (LANES < 4 || depth > 4 * LANES) return stream;    // at least LANES products
    return depth > 3 * LANES ? short_stream<4> : depth > 2 * LANES ? short_stream<3> : depth > LANES ? short_stream<2>
                                                                                                    : short_stream<1>;
}

// ---- at most NARROW columns, short sums ----

constexpr Index SHORT = 4 * LANES;    // products in the longest of them

// Up to GROUPS * LANES rows of C from an A whose rows lie side by side. `b` has B's rows, N floats each. In order: sums
// of PART products, then the sum of these.
template <int N, int GROUPS>
static void rows_by_column(const float* a, Index a_column, const float* b, Index depth, float* c, Index rows, Index row,
                           Index column) {
    constexpr Index PART = 16;
    vec total[GROUPS][N] = {};
    for (Index k0 = 0; k0 < depth; k0 += PART) {
        const Index k1 = std::min(depth, k0 + PART);
        vec sum[GROUPS][N] = {};
        for (Index k = k0; k < k1; k++)
#pragma GCC unroll 4
            for (int g = 0; g < GROUPS; g++) {
                const vec x = simd::load(a + k * a_column + g * LANES);
#pragma GCC unroll 8
                for (int j = 0; j < N; j++) sum[g][j] = simd::fma(x, simd::broadcast(b[k * N + j]), sum[g][j]);
            }
        for (int g = 0; g < GROUPS; g++)
            for (int j = 0; j < N; j++) total[g][j] += sum[g][j];
    }
    for (int g = 0; g < GROUPS; g++)
        for (int j = 0; j < N; j++)
            store_rows(total[g][j], rows - g * LANES, c + g * LANES * row + j * column, row);
}

// Up to BLOCK rows; those of `a` are there up to whole vectors.
template <int N>
static void short_sums(const float* a, Index a_column, const float* b, Index rows, Index depth, float* c, Index row,
                       Index column) {
    constexpr int GROUPS = N == 1 ? 4 : N <= 3 ? 2 : 1;    // sums at a time that hide the latency of fma
    Index i = 0;
    for (; i + (GROUPS - 1) * LANES < rows; i += GROUPS * LANES)
        rows_by_column<N, GROUPS>(a + i, a_column, b, depth, c + i * row, rows - i, row, column);
    for (; i < rows; i += LANES)
        rows_by_column<N, 1>(a + i, a_column, b, depth, c + i * row, rows - i, row, column);
}

// ---- at most NARROW columns, all of them ----

typedef void (*NarrowKernel)(const float* a, Index a_column, const float* b, Index rows, Index depth, float* c,
                             Index row, Index column);

// The kernels for 1 to N columns.
template <int N>
struct NarrowKernels {
    static NarrowKernel by_lanes(Index n) { return n == N ? rows_by_lanes<N> : NarrowKernels<N - 1>::by_lanes(n); }
    static NarrowKernel short_sums(Index n) { return n == N ? matmul::short_sums<N> : NarrowKernels<N - 1>::short_sums(n); }
};
template <>
struct NarrowKernels<0> {
    static NarrowKernel by_lanes(Index) { return NULL; }
    static NarrowKernel short_sums(Index) { return NULL; }
};

// Rows i0 .. i1 - 1. `b` as above. Returns false when memory is short.
static bool long_sums(Matrix a, const float* b, Index i0, Index i1, Index n, Index depth, float* c, Index row,
                      Index column) {
    if (is_streamed(a, n, depth)) {
        stream_for(depth)(a.at(i0, 0), a.column, b, i1 - i0, depth, c + i0 * row, row);
        return true;
    }
    if (a.row == 1 && a.column != 1) {
        NarrowKernels<(int)NARROW>::by_lanes(n)(a.at(i0, 0), a.column, b, i1 - i0, depth, c + i0 * row, row, column);
        return true;
    }
    Matrix rows = {a.at(i0, 0), a.row, 1};
    Workspace copy(a.column == 1 ? 0 : (i1 - i0) * depth);
    if (!copy.data) return false;
    if (a.column != 1) {
        for (Index i = i0; i < i1; i++)
            for (Index k = 0; k < depth; k++) copy.data[(i - i0) * depth + k] = *a.at(i, k);
        rows = Matrix{copy.data, depth, 1};
    }
    rows_by_dot(rows.data, rows.row, b, i1 - i0, n, depth, c + i0 * row, row, column);
    return true;
}

// The rows of a block side by side in `columns`, [depth][BLOCK], unless they are.
static Matrix side_by_side(Matrix a, Index rows, Index depth, float* columns) {
    if (a.row == 1 && rows % LANES == 0) return a;
    if (a.column == 1) simd::transpose(a.data, a.row, rows, depth, columns, BLOCK);
    else
        for (Index k = 0; k < depth; k++)
            for (Index i = 0; i < rows; i++) columns[k * BLOCK + i] = *a.at(i, k);
    return Matrix{columns, 1, BLOCK};
}

// C = A B with n <= NARROW columns; C's elements are `row` and `column` apart. Returns false when memory is short.
static bool narrow_product(Matrix a, Matrix b, Index m, Index n, Index depth, float* c, Index row, Index column) {
    const bool are_short = n > 1 && depth < SHORT;
    Workspace packed(n * depth);
    if (!packed.data) return false;
    if (are_short)
        for (Index k = 0; k < depth; k++)
            for (Index j = 0; j < n; j++) packed.data[k * n + j] = *b.at(k, j);
    else if (b.column == 1) simd::transpose(b.data, b.row, depth, n, packed.data, depth);
    else
        for (Index j = 0; j < n; j++)
            for (Index k = 0; k < depth; k++) packed.data[j * depth + k] = *b.at(k, j);
    const int threads = threads_for((double)m * n * depth);
    Index step = BLOCK;
    if (is_streamed(a, n, depth)) step = std::max(BLOCK, std::min(STREAM, round_up((m - 1) / threads + 1, LANES)));
    return parallel::in_shares(threads, m, step, [=, &packed](Index i0) {
        const Index i1 = std::min(m, i0 + step);
        if (!are_short) return long_sums(a, packed.data, i0, i1, n, depth, c, row, column);
        alignas(64) float columns[SHORT * BLOCK];
        const Matrix block = side_by_side(Matrix{a.at(i0, 0), a.row, a.column}, i1 - i0, depth, columns);
        NarrowKernels<(int)NARROW>::short_sums(n)(block.data, block.column, packed.data, i1 - i0, depth, c + i0 * row,
                                                  row, column);
        return true;
    });
}

// ---- at most SHALLOW columns of A ----

// LANES numbers of a row of C, or n, from a row of A, `x`.
template <bool ALL, int K>
SIMD_INLINE vec shallow_sum(const vec (&x)[K], const float* b, Index b_row, int n) {
    vec sum = x[0] * load_some<ALL>(b, n);
#pragma GCC unroll 8
    for (int k = 1; k < K; k++) sum = simd::fma(x[k], load_some<ALL>(b + k * b_row, n), sum);
    return sum;
}

// Some rows of C, `c_row` apart.
template <int K>
static void shallow_rows(Matrix a, const float* b, Index b_row, Index rows, Index n, float* c, Index c_row) {
    if (n <= LANES) {    // B fits into registers
        vec bk[K];
        for (int k = 0; k < K; k++) bk[k] = simd::load_first(b + k * b_row, (int)n);
        for (Index i = 0; i < rows; i++) {
            vec sum = simd::broadcast(*a.at(i, 0)) * bk[0];
#pragma GCC unroll 8
            for (int k = 1; k < K; k++) sum = simd::fma(simd::broadcast(*a.at(i, k)), bk[k], sum);
            simd::store_first(c + i * c_row, sum, (int)n);
        }
        return;
    }
    for (Index i = 0; i < rows; i++, c += c_row) {
        vec x[K];
        for (int k = 0; k < K; k++) x[k] = simd::broadcast(*a.at(i, k));
        Index j = 0;
        for (; j + LANES <= n; j += LANES) simd::store(c + j, shallow_sum<true, K>(x, b + j, b_row, LANES));
        const int rest = (int)(n - j);
        if (rest) simd::store_first(c + j, shallow_sum<false, K>(x, b + j, b_row, rest), rest);
    }
}

typedef void (*ShallowRows)(Matrix, const float*, Index, Index, Index, float*, Index);

template <int K>
struct ShallowKernels {
    static ShallowRows find(Index k) { return k == K ? shallow_rows<K> : ShallowKernels<K - 1>::find(k); }
};
template <>
struct ShallowKernels<0> {
    static ShallowRows find(Index) { return NULL; }
};

// C = A B with 1 <= depth <= SHALLOW. Returns false when memory is short.
static bool shallow_product(Matrix a, Matrix b, Index m, Index n, Index depth, float* c) {
    Workspace packed(b.column == 1 ? 0 : depth * n);
    if (b.column != 1) {
        if (!packed.data) return false;
        for (Index k = 0; k < depth; k++)
            for (Index j = 0; j < n; j++) packed.data[k * n + j] = *b.at(k, j);
        b = Matrix{packed.data, n, 1};
    }
    const ShallowRows kernel = ShallowKernels<(int)SHALLOW>::find(depth);
    constexpr Index STRIP = 32 * LANES;    // columns: that part of B's rows stays in the first-level cache
    return parallel::in_shares(threads_for((double)m * n * depth), m, BLOCK, [=](Index i) {
        for (Index j = 0; j < n; j += STRIP)
            kernel(Matrix{a.at(i, 0), a.row, a.column}, b.data + j, b.row, std::min(BLOCK, m - i),
                   std::min(STRIP, n - j), c + i * n + j, n);
        return true;
    });
}

// ---- which one, if any ----

static inline bool is_narrow(Index m, Index n, Index depth) {
    return depth > 0 && (m <= NARROW || n <= NARROW || depth <= SHALLOW);
}

// C[m x n] = A[m x depth] B[depth x n] where is_narrow(m, n, depth). Returns false when memory is short.
static inline bool short_product(Matrix a, Matrix b, Index m, Index n, Index depth, float* c) {
    if (!m || !n) return true;
    if (depth <= SHALLOW && n >= NARROW) return shallow_product(a, b, m, n, depth, c);
    if (n <= NARROW) return narrow_product(a, b, m, n, depth, c, n, 1);
    if (m <= NARROW)
        return narrow_product(Matrix{b.data, b.column, b.row}, Matrix{a.data, a.column, a.row}, n, m, depth, c, 1, n);
    return shallow_product(a, b, m, n, depth, c);
}

}    // namespace matmul
