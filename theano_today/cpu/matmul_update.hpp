// Products that go straight into an update rule, which is given a few rows of them at a time:
//
//              columns of a strip
//            ┌──────┬──────┬──────┐
//         MR │ tile │ tile │ tile │  rows of A B, in the first-level cache   ──►   rule(rows)
//            └──────┴──────┴──────┘
//
// The rule may take several products, all m x n: the gradient of weights that a net uses in two places is a sum of two.
#pragma once
#include "matmul_sparse.hpp"

namespace matmul {

// Beyond this depth a strip of B no longer fits into the second-level cache.
constexpr Index DEEP = 8 * KC;

// ---- through memory ----

// Write all products, then give them to `rule` row by row. Returns false when memory is short.
template <class Rule>
static bool update_through_memory(const Factors* products, int count, Index m, Index n, const Rule& rule) {
    Workspace whole(count * m * n);
    if (!whole.data) return false;
    for (int p = 0; p < count; p++)
        if (!product_of(products[p].a, products[p].b, m, n, products[p].depth, whole.data + p * m * n)) return false;
    return parallel::in_shares(threads_for((double)m * n), m, 1, [=, &whole, &rule](Index i) {
        const float* rows[MOST_PRODUCTS];
        for (int p = 0; p < count; p++) rows[p] = whole.data + (p * m + i) * n;
        rule(rows, n, i, 0, 1, n);
        return true;
    });
}

// ---- strip by strip ----

// One product's part in a strip of up to `width` columns; MR rows of it are computed at a time, `width` apart.
struct Strip {
    Factors f;
    Index width;
    float *b, *a, *rows;    // packed columns of B, packed rows of A, rows of the product
    Matrix few;             // rows of B, where they are so few that nothing is packed

    static size_t floats(const Factors& f, Index width) { return f.depth * (width + MR) + MR * width; }

    bool is_shallow() const { return f.depth > 0 && f.depth <= SHALLOW; }

    // n columns from column j on.
    void begin(Index j, Index n) {
        few = Matrix{f.b.at(0, j), f.b.row, 1};
        if (!is_shallow()) pack<NR>(f.b.at(0, j), f.b.column, f.b.row, n, f.depth, b);
        else if (f.b.column != 1) {
            for (Index k = 0; k < f.depth; k++)
                for (Index q = 0; q < n; q++) b[k * width + q] = *f.b.at(k, j + q);
            few = Matrix{b, width, 1};
        }
    }

    // m rows from row i on.
    void begin_rows(Index i, Index m, Index n) {
        const Matrix first = {f.a.at(i, 0), f.a.row, f.a.column};
        if (is_shallow()) ShallowKernels<(int)SHALLOW>::find(f.depth)(first, few.data, few.row, m, n, rows, width);
        else pack_panel<MR>(first.data, first.row, first.column, m, f.depth, a);
    }

    void tile(Index m, Index j) {
        if (!is_shallow()) micro_kernel<MR>(m, f.depth, a, b + j * f.depth, rows + j, width);
    }
};

template <class Rule>
static bool update_rectangle(const Factors* products, int count, Rectangle r, const Rule& rule) {
    const Index width = std::min(round_up(r.n1 - r.n0, NR), NR * std::max<Index>(1, 8 / count));
    size_t floats = 0;
    for (int p = 0; p < count; p++) floats += round_up(Strip::floats(products[p], width), 16);
    Workspace memory(floats);
    if (!memory.data) return false;
    Strip strips[MOST_PRODUCTS];
    const float* rows[MOST_PRODUCTS];
    float* next = memory.data;
    for (int p = 0; p < count; p++) {
        const Index k = products[p].depth;
        strips[p] = Strip{products[p], width, next, next + k * width, next + k * (width + MR), Matrix()};
        rows[p] = strips[p].rows;
        next += round_up(Strip::floats(products[p], width), 16);
    }
    for (Index j0 = r.n0; j0 < r.n1; j0 += width) {
        const Index n = std::min(width, r.n1 - j0);
        for (int p = 0; p < count; p++) strips[p].begin(j0, n);
        for (Index i = r.m0; i < r.m1; i += MR) {
            const Index m = std::min(MR, r.m1 - i);
            for (int p = 0; p < count; p++) strips[p].begin_rows(i, m, n);
            for (Index j = 0; j < n; j += NR) {
                rule.prefetch(i, j0 + j, m, std::min(NR, n - j));
                for (int p = 0; p < count; p++) strips[p].tile(m, j);
            }
            rule(rows, width, i, j0, m, n);
        }
    }
    return true;
}

template <class Rule>
static bool update(const Factors* products, int count, Index m, Index n, Index depth, const Rule& rule) {
    const int threads = threads_for((double)m * n * depth);
    const Grid grid(m, n, threads);
    return parallel::in_shares(threads, threads, 1, [=, &rule](Index t) {
        return update_rectangle(products, count, grid.part((int)t, m, n), rule);
    });
}

// ---- B sparse ----

// The lists are those of B's columns, and the panel holds WIDTH rows of A: what comes out is the transpose of C.
template <class Rule>
static bool sparse_update(const Factors& f, Index m, Index n, const Rule& rule) {
    const Matrix a = f.a, b = f.b;
    const Index depth = f.depth;
    const int threads = threads_for((double)m * n * depth);
    Lists lists(Matrix{b.data, b.column, b.row}, n, depth, depth);
    if (!lists.make(threads)) return false;
    bool done = true;
#ifdef _OPENMP
#pragma omp parallel num_threads(threads) if (threads > 1) reduction(&& : done)
#endif
    {
        Workspace panel(depth * WIDTH), everything(2 * depth);
        Entry* const all = (Entry*)everything.data;
        alignas(64) float sums[NR * WIDTH], tile[WIDTH * NR];
        const float* const product = tile;
        done = panel.data && all;
#ifdef _OPENMP
#pragma omp for schedule(static)
#endif
        for (Index i = 0; i < m; i += WIDTH) {
            if (!done) continue;
            const Index rows = std::min(WIDTH, m - i);
            pack_panel<WIDTH>(a.at(i, 0), a.row, a.column, rows, depth, panel.data);
            const bool finite = all_finite(panel.data, depth * WIDTH);
            for (Index j = 0; j < n; j += NR) {
                const Index columns = std::min(NR, n - j);
                rule.prefetch(i, j, rows, columns);
                std::fill(sums, sums + NR * WIDTH, 0.f);
                for (Index q = 0; q < columns; q++)
                    if (finite) add_list(lists.list(0, j + q), lists.length(0, j + q), panel.data, sums + q * WIDTH);
                    else add_list(all, lists.everything(0, j + q, all), panel.data, sums + q * WIDTH);
                simd::transpose(sums, WIDTH, NR, WIDTH, tile, NR);
                rule(&product, NR, i, j, rows, columns);
            }
        }
    }
    return done;
}

// ---- which one ----

// Some m x n products into `rule`: prefetch(i, j, rows, columns) announces a part of its matrices, then
// rule(products, ld, i, j, rows, columns) gets that part of all products, the rows of each `ld` apart. Returns false when
// memory is short.
template <class Rule>
static bool products_into_rule(const Factors* products, int count, Index m, Index n, const Rule& rule) {
    Index depth = 0;
    for (int p = 0; p < count; p++) depth += products[p].depth;
    if (m <= NARROW || n <= NARROW || depth > DEEP) return update_through_memory(products, count, m, n, rule);
    bool sparse = false;
    for (int p = 0; p < count && m >= 2 * WIDTH; p++) {
        const Matrix b = products[p].b;
        sparse = sparse || is_sparse(Matrix{b.data, b.column, b.row}, n, products[p].depth);
    }
    if (sparse && count > 1) return update_through_memory(products, count, m, n, rule);
    if (sparse) return sparse_update(products[0], m, n, rule);
    return update(products, count, m, n, depth, rule);
}

}    // namespace matmul
