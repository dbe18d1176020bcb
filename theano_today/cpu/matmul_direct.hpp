// Matrix products whose factors are not worth packing: small ones, and those with few columns.
//
// The tiles are those of matmul.hpp, but the micro-kernel reads A and B where they are:
//
//                        ┌──B──┬───┐
//                        │ NR  │ ~ │   rows of B, contiguous; the last tile reads and writes as many lanes as there are
//          k ──►         └─────┴───┘
//      ┌───A──────────┐  ┌─────┬───┐
//   MR │ x x x x      │  │  C  │   │   numbers of A, one by one, from MR rows
//      └──────────────┘  └─────┴───┘
//
// Every sum has the order of matmul.hpp's, so that it does not matter for the result which of the two is taken.
#pragma once
#include "matmul.hpp"

namespace matmul {

// ---- one tile ----

// The first n lanes, or, where the compiler shall know that there is no tail, all.
template <bool ALL>
SIMD_INLINE vec load_some(const float* p, int n) {
    return ALL ? simd::load(p) : simd::load_first(p, n);
}

// ROWS x V vec of C (+)= ROWS rows of A times `depth` rows of B.
template <Index ROWS, Index V, bool ALL>
static void direct_tile(Matrix a, const float* b, Index b_row, Index depth, int last, float* c, Index ld, bool first) {
    vec sum[ROWS][V];
#pragma GCC unroll 16
    for (Index i = 0; i < ROWS; i++)
#pragma GCC unroll 2
        for (Index v = 0; v < V; v++) sum[i][v] = simd::zero();
    const float* p[(ROWS + 2) / 3];    // every third row: addresses that fit into registers
    for (Index i = 0; i < ROWS; i += 3) p[i / 3] = a.at(i, 0);
    for (Index k = 0; k < depth; k++, b += b_row) {
        vec row[V];
#pragma GCC unroll 2
        for (Index v = 0; v < V - 1; v++) row[v] = simd::load(b + v * LANES);
        row[V - 1] = load_some<ALL>(b + (V - 1) * LANES, last);
#pragma GCC unroll 16
        for (Index i = 0; i < ROWS; i++) {
            const vec x = simd::broadcast(p[i / 3][i % 3 * a.row]);
#pragma GCC unroll 2
            for (Index v = 0; v < V; v++) sum[i][v] = simd::fma(x, row[v], sum[i][v]);
        }
#pragma GCC unroll 16
        for (Index i = 0; i < ROWS; i += 3) p[i / 3] += a.column;
    }
#pragma GCC unroll 16
    for (Index i = 0; i < ROWS; i++, c += ld) {
#pragma GCC unroll 2
        for (Index v = 0; v < V; v++) {
            float* const q = c + v * LANES;
            if (ALL || v < V - 1) simd::store(q, first ? sum[i][v] : simd::load(q) + sum[i][v]);
            else simd::store_first(q, first ? sum[i][v] : simd::load_first(q, last) + sum[i][v], last);
        }
    }
}

typedef void (*DirectTile)(Matrix, const float*, Index, Index, int, float*, Index, bool);

// The kernels for 1 to ROWS rows.
template <Index ROWS, Index V, bool ALL>
struct DirectTiles {
    static DirectTile find(Index rows) {
        return rows == ROWS ? direct_tile<ROWS, V, ALL> : DirectTiles<ROWS - 1, V, ALL>::find(rows);
    }
};
template <Index V, bool ALL>
struct DirectTiles<0, V, ALL> {
    static DirectTile find(Index) { return NULL; }
};

static inline DirectTile direct_tile_for(Index rows, Index columns) {
    if (columns == NR) return DirectTiles<MR, NV, true>::find(rows);
    return columns > NR - LANES ? DirectTiles<MR, NV, false>::find(rows) : DirectTiles<MR, 1, false>::find(rows);
}

// ---- all of them ----

// A rectangle of C = A B; B's rows are contiguous.
static void direct_rectangle(Matrix a, Matrix b, Index depth, Rectangle r, float* c, Index ld) {
    const Index kc = depth_of_parts(depth, KC);
    Index k = 0;
    do {
        const Index ks = std::min(kc, depth - k);
        for (Index i = r.m0; i < r.m1; i += MR)
            for (Index j = r.n0; j < r.n1; j += NR) {
                const Index rows = std::min(MR, r.m1 - i), columns = std::min(NR, r.n1 - j);
                direct_tile_for(rows, columns)(Matrix{a.at(i, k), a.row, a.column}, b.at(k, j), b.row, ks,
                                               (int)((columns - 1) % LANES + 1), c + i * ld + j, ld, k == 0);
            }
        k += kc;
    } while (k < depth);
}

// Whether packing A and B would take longer than it saves.
static inline bool is_direct(Index m, Index n, Index depth) {
    const bool in_cache = n * depth <= 1 << 18;    // B, in the second-level cache
    return n <= 4 * NR || (n <= 8 * NR && in_cache) || m * n * depth <= 1 << 22;
}

// C = A B where is_direct(m, n, depth). Returns false when memory is short.
static inline bool direct_product(Matrix a, Matrix b, Index m, Index n, Index depth, float* c, Index ld) {
    if (b.column != 1 && n * depth > 1 << 20) return product(a, b, m, n, depth, c, ld);    // rather than copy so much
    Workspace rows(b.column == 1 ? 0 : n * depth);
    if (!rows.data) return false;
    if (b.column != 1) {
        if (b.row == 1) simd::transpose(b.data, b.column, n, depth, rows.data, n);
        else
            for (Index k = 0; k < depth; k++)
                for (Index j = 0; j < n; j++) rows.data[k * n + j] = *b.at(k, j);
        b = Matrix{rows.data, n, 1};
    }
    const int threads = threads_for((double)m * n * depth);
    const Grid grid(m, n, threads);
    return parallel::in_shares(threads, threads, 1, [=](Index t) {
        direct_rectangle(a, b, depth, grid.part((int)t, m, n), c, ld);
        return true;
    });
}

}    // namespace matmul
