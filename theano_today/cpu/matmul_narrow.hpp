// Matrix products of which one side is short: a batch times one column of weights, an outer product.
//
// What matmul.hpp does to be fast, packing both factors and computing whole tiles, costs more here than the product.
// There is little to reuse: A is read once, in its own order, while B stays in the first-level cache.
//
//     short rows    C has at most NARROW columns:   dot products along the rows of A, or where these are short
//                                                   LANES rows of A at a time
//     short sums    A has at most SHALLOW columns:  each row of C is a sum of a few rows of B
//
// C with few rows is the transpose of C with few columns. Each number of C is computed by one thread, in the same way
// for any number of threads and any layout of A and B in memory: sizes alone decide.
#pragma once
#include "matmul.hpp"

namespace matmul {

constexpr Index NARROW = 8;
constexpr Index SHALLOW = 8;

// A partial sum has at most this many products; partial sums add up in float64.
constexpr Index CHAIN = 2048;

// ---- at most NARROW columns ----

// ROWS x COLUMNS numbers of C, which are `row` and `column` apart, from ROWS rows of A that lie in memory in their order
// (k side by side). `b` has the columns of B one after the other, `depth` floats each.
template <int ROWS, int COLUMNS>
static void rows_by_dot(const float* a, Index a_row, const float* b, Index depth, float* c, Index row, Index column) {
    double total[ROWS][COLUMNS] = {};
    for (Index k0 = 0; k0 < depth; k0 += CHAIN * LANES) {
        const Index k1 = std::min(depth, k0 + CHAIN * LANES);
        vec sum[ROWS][COLUMNS] = {};
        Index k = k0;
        for (; k + LANES <= k1; k += LANES) {
            vec x[COLUMNS];
            for (int j = 0; j < COLUMNS; j++) x[j] = simd::load(b + j * depth + k);
#pragma GCC unroll 8
            for (int r = 0; r < ROWS; r++) {
                const vec y = simd::load(a + r * a_row + k);
#pragma GCC unroll 8
                for (int j = 0; j < COLUMNS; j++) sum[r][j] = simd::fma(y, x[j], sum[r][j]);
            }
        }
        for (int r = 0; r < ROWS; r++)
            for (int j = 0; j < COLUMNS; j++) {
                float s = simd::sum(sum[r][j]);
                for (Index q = k; q < k1; q++) s += a[r * a_row + q] * b[j * depth + q];
                total[r][j] += s;
            }
    }
    for (int r = 0; r < ROWS; r++)
        for (int j = 0; j < COLUMNS; j++) c[r * row + j * column] = (float)total[r][j];
}

// The same for n columns.
template <int ROWS>
static void rows_by_dot(const float* a, Index a_row, const float* b, Index n, Index depth, float* c, Index row,
                        Index column) {
    Index j = 0;
    for (; j + 2 <= n; j += 2) rows_by_dot<ROWS, 2>(a, a_row, b + j * depth, depth, c + j * column, row, column);
    if (j < n) rows_by_dot<ROWS, 1>(a, a_row, b + j * depth, depth, c + j * column, row, column);
}

// LANES rows of C from an A whose rows lie side by side (a column of A is contiguous) and are short. `b` has B's rows, n
// floats each.
template <int N>
static void rows_by_column(const float* a, Index a_column, const float* b, Index rows, Index depth, float* c, Index row,
                           Index column) {
    constexpr Index PART = 16;    // products in a partial sum
    vec total[N] = {};
    for (Index k0 = 0; k0 < depth; k0 += PART) {
        const Index k1 = std::min(depth, k0 + PART);
        vec sum[N] = {};
        for (Index k = k0; k < k1; k++) {
            const float* p = a + k * a_column;
            const vec x = rows == LANES ? simd::load(p) : simd::load_first(p, (int)rows);
#pragma GCC unroll 8
            for (int j = 0; j < N; j++) sum[j] = simd::fma(x, simd::broadcast(b[k * N + j]), sum[j]);
        }
        for (int j = 0; j < N; j++) total[j] += sum[j];
    }
    for (int j = 0; j < N; j++)
        for (Index r = 0; r < rows; r++) c[r * row + j * column] = total[j][r];
}

typedef void (*RowsByColumn)(const float*, Index, const float*, Index, Index, float*, Index, Index);

template <int N>
struct NarrowKernels {
    static RowsByColumn find(Index n) { return n == N ? rows_by_column<N> : NarrowKernels<N - 1>::find(n); }
};
template <>
struct NarrowKernels<0> {
    static RowsByColumn find(Index) { return NULL; }
};

// C = A B with n <= NARROW columns; C's elements are `row` and `column` apart. Returns false when memory is short.
static bool narrow_product(Matrix a, Matrix b, Index m, Index n, Index depth, float* c, Index row, Index column) {
    const bool by_column = depth < 4 * LANES;
    Workspace packed(n * depth);
    if (!packed.data) return false;
    for (Index k = 0; k < depth; k++)
        for (Index j = 0; j < n; j++) packed.data[by_column ? k * n + j : j * depth + k] = *b.at(k, j);
    constexpr Index BLOCK = 64;    // rows
    const int threads = threads_for((double)m * n * depth);
    bool done = true;
#ifdef _OPENMP
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1) reduction(&& : done)
#endif
    for (Index i0 = 0; i0 < m; i0 += BLOCK) {
        const Index i1 = std::min(m, i0 + BLOCK);
        if (by_column) {
            const RowsByColumn kernel = NarrowKernels<(int)NARROW>::find(n);
            float columns[4 * LANES * BLOCK];
            Matrix block = {a.at(i0, 0), 1, a.column};
            if (a.row != 1) {
                for (Index k = 0; k < depth; k++)
                    for (Index i = i0; i < i1; i++) columns[k * BLOCK + i - i0] = *a.at(i, k);
                block = Matrix{columns, 1, BLOCK};
            }
            for (Index i = i0; i < i1; i += LANES)
                kernel(block.at(i - i0, 0), block.column, packed.data, std::min<Index>(LANES, i1 - i), depth,
                       c + i * row, row, column);
            continue;
        }
        Matrix rows = {a.at(i0, 0), a.row, 1};
        Workspace copy(a.column == 1 ? 0 : (i1 - i0) * depth);
        if (a.column != 1) {
            done = done && copy.data;
            if (!copy.data) continue;
            if (a.row == 1)
                simd::transpose(a.at(i0, 0), a.column, depth, i1 - i0, copy.data, depth);
            else
                for (Index i = i0; i < i1; i++)
                    for (Index k = 0; k < depth; k++) copy.data[(i - i0) * depth + k] = *a.at(i, k);
            rows = Matrix{copy.data, depth, 1};
        }
        Index i = i0;
        for (; i + 4 <= i1; i += 4)
            rows_by_dot<4>(rows.at(i - i0, 0), rows.row, packed.data, n, depth, c + i * row, row, column);
        for (; i < i1; i++)
            rows_by_dot<1>(rows.at(i - i0, 0), rows.row, packed.data, n, depth, c + i * row, row, column);
    }
    (void)threads;
    return done;
}

// ---- at most SHALLOW columns of A ----

template <int K>
static void shallow_row(const float* x, const float* b, Index b_row, Index n, float* c) {
    vec xk[K];
    for (int k = 0; k < K; k++) xk[k] = simd::broadcast(x[k]);
    Index j = 0;
    for (; j + LANES <= n; j += LANES) {
        vec sum = xk[0] * simd::load(b + j);
#pragma GCC unroll 8
        for (int k = 1; k < K; k++) sum = simd::fma(xk[k], simd::load(b + k * b_row + j), sum);
        simd::store(c + j, sum);
    }
    for (; j < n; j++) {
        float sum = x[0] * b[j];
        for (int k = 1; k < K; k++) sum += x[k] * b[k * b_row + j];
        c[j] = sum;
    }
}

typedef void (*ShallowRow)(const float*, const float*, Index, Index, float*);

template <int K>
struct ShallowKernels {
    static ShallowRow find(Index k) { return k == K ? shallow_row<K> : ShallowKernels<K - 1>::find(k); }
};
template <>
struct ShallowKernels<0> {
    static ShallowRow find(Index) { return NULL; }
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
    const ShallowRow kernel = ShallowKernels<(int)SHALLOW>::find(depth);
    const int threads = threads_for((double)m * n * depth);
#ifdef _OPENMP
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
#endif
    for (Index i = 0; i < m; i++) {
        float x[SHALLOW];
        for (Index k = 0; k < depth; k++) x[k] = *a.at(i, k);
        kernel(x, b.data, b.row, n, c + i * n);
    }
    (void)threads;
    return true;
}

// ---- which one, if any ----

// A few columns more than whole tiles, where a tile for them would cost much of the whole.
static inline Index columns_beside_tiles(Index n) {
    return n <= 2 * NARROW ? n : n < 4 * NR && n % NR <= NARROW ? n % NR : 0;
}

static inline bool is_narrow(Index m, Index n, Index depth) {
    return depth > 0 && (m <= NARROW || n <= NARROW || depth <= SHALLOW);
}

// C[m x n] = A[m x depth] B[depth x n] where is_narrow(m, n, depth). Returns false when memory is short.
static inline bool short_product(Matrix a, Matrix b, Index m, Index n, Index depth, float* c) {
    if (!m || !n) return true;
    if (depth <= SHALLOW && n >= 2 * LANES) return shallow_product(a, b, m, n, depth, c);
    if (n <= NARROW) return narrow_product(a, b, m, n, depth, c, n, 1);
    if (m <= NARROW)
        return narrow_product(Matrix{b.data, b.column, b.row}, Matrix{a.data, a.column, a.row}, n, m, depth, c, 1, n);
    return shallow_product(a, b, m, n, depth, c);
}

}    // namespace matmul
