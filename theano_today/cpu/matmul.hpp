// Matrix products C = A B of float32 matrices with any strides.
//
// Every thread owns a rectangle of C and computes it alone: no barriers, no partial sums, and the same bits for any
// number of threads. Within its rectangle a thread works as follows:
//
//               ┌───────┬──B─────┐
//            KC │░░░░░░░│        │   for each NC columns of C
//               │ strip │        │     for each KC values of k: pack the strip     panels of NR columns, in L2
//               └───────┴────────┘       for each MC rows: pack the block          panels of MR rows, in L2
//      KC           NC                     for each panel of the strip             KC x NR, in L1
//    ┌────┬────┐┌───────┬────────┐           for each panel of the block           KC x MR
//    │░░░░│    ││  ┌──┐MR        │             tile of C += panel * panel          (the micro-kernel)
// MC │░░░░│ A  ││  └──┘ │  C     │
//    │    │    ││   NR  │        │   The tile stays in registers while k runs over the panels. Packing puts what
//    └────┴────┘└───────┴────────┘   the micro-kernel reads next to each other, whatever the strides were.
#pragma once
#include <stddef.h>
#include <stdlib.h>
#include <algorithm>
#include "matrix.hpp"
#include "parallel.hpp"
#include "simd.hpp"

namespace matmul {

using simd::vec;
using simd::LANES;

// Sizes of the packed pieces, for a first-level cache of 32 kB and a second-level cache of 512 kB or more.
constexpr Index KC = 256;             // a panel of B: KC * NR * 4 bytes, 16 kB with 8 lanes
constexpr Index MC = MR * (96 / MR);  // a block of A: KC * MC * 4 bytes, at most 96 kB
constexpr Index NC = NR * (512 / NR); // a strip of B: KC * NC * 4 bytes, at most 512 kB

struct Rectangle {
    Index m0, m1, n0, n1;    // rows m0 .. m1 - 1, columns n0 .. n1 - 1
};

// Memory for packed panels, freed with the object. A little is there already: small products are done in less time
// than it takes to ask for memory.
struct Workspace {
    float* data;
    alignas(64) float little[256];
    explicit Workspace(size_t floats) : data(little) {
        void* p = 0;
        if (floats > sizeof little / sizeof(float))
            data = posix_memalign(&p, 64, floats * sizeof(float)) ? 0 : (float*)p;
    }
    ~Workspace() {
        if (data != little) free(data);
    }
    Workspace(const Workspace&) = delete;
};

static inline Index round_up(Index n, Index step) { return (n + step - 1) / step * step; }

// ---- packing ----

// WIDTH rows of `a` (zeros below the last one) into a panel: panel[k * WIDTH + i] = a(i, k). The same serves panels of
// B, whose columns are the rows of its transpose.
template <Index WIDTH>
static void pack_panel(const float* a, Index row, Index column, Index rows, Index depth, float* panel) {
    if (rows < WIDTH)
        for (Index k = 0; k < depth; k++) std::fill(panel + k * WIDTH + rows, panel + (k + 1) * WIDTH, 0.f);
    if (column == 1 && row != 1)
        simd::transpose(a, row, rows, depth, panel, WIDTH);
    else if (rows == WIDTH && row == 1)
        for (Index k = 0; k < depth; k++, a += column, panel += WIDTH)
            for (Index i = 0; i < WIDTH; i++) panel[i] = a[i];
    else if (row == 1)
        for (Index k = 0; k < depth; k++, a += column, panel += WIDTH) simd::copy(a, rows, panel);
    else
        for (Index k = 0; k < depth; k++, a += column, panel += WIDTH)
            for (Index i = 0; i < rows; i++) panel[i] = a[i * row];
}

// Several panels, one after the other.
template <Index WIDTH>
static void pack(const float* a, Index row, Index column, Index rows, Index depth, float* packed) {
    // Read memory in its own order: where neighbours in memory belong to different panels, all panels grow together.
    const Index step = row == 1 ? 8 : depth;
    for (Index k = 0; k < depth; k += step)
        for (Index i = 0; i < rows; i += WIDTH)
            pack_panel<WIDTH>(a + i * row + k * column, row, column, std::min<Index>(WIDTH, rows - i),
                              std::min(step, depth - k), packed + i * depth + k * WIDTH);
}

// ---- the micro-kernel ----

// Leaves ROWS x NR sums over k of panel a times panel b in `tile`, whose rows are `ld` apart.
template <Index ROWS>
static inline void micro_kernel(Index depth, const float* a, const float* b, float* tile, Index ld) {
    vec sum[ROWS][NV];
#pragma GCC unroll 16
    for (Index i = 0; i < ROWS; i++)
#pragma GCC unroll 2
        for (Index v = 0; v < NV; v++) sum[i][v] = simd::zero();
    for (Index k = 0; k < depth; k++, a += MR, b += NR) {
        vec row[NV];
#pragma GCC unroll 2
        for (Index v = 0; v < NV; v++) row[v] = simd::load(b + v * LANES);
#pragma GCC unroll 16
        for (Index i = 0; i < ROWS; i++) {
            const vec x = simd::broadcast(a[i]);
#pragma GCC unroll 2
            for (Index v = 0; v < NV; v++) sum[i][v] = simd::fma(x, row[v], sum[i][v]);
        }
    }
#pragma GCC unroll 16
    for (Index i = 0; i < ROWS; i++)
#pragma GCC unroll 2
        for (Index v = 0; v < NV; v++) simd::store(tile + i * ld + v * LANES, sum[i][v]);
}

// The same for a number of rows that is known at run time: the last panel of a block may have less than MR.
template <Index ROWS>
static inline void micro_kernel(Index rows, Index depth, const float* a, const float* b, float* tile, Index ld) {
    if (rows == ROWS)
        micro_kernel<ROWS>(depth, a, b, tile, ld);
    else
        micro_kernel<(ROWS > 1 ? ROWS - 1 : 1)>(rows, depth, a, b, tile, ld);
}

// ---- one thread's rectangle ----

// Sums over k are cut into parts of about `step`, even ones: 260 is not 256 + 4.
static inline Index depth_of_parts(Index depth, Index step) {
    const Index parts = std::max<Index>(1, (depth + step / 2) / std::max<Index>(1, step));
    return (depth + parts - 1) / parts;
}

// Where C goes, tile by tile; its rows are `ld` apart.
struct Store {
    float* c;
    Index ld;

    void prefetch(Index i, Index j, Index rows) const {
        for (Index r = i; r < i + rows; r++) simd::prefetch(c + r * ld + j);
    }

    void operator()(const float* tile, Index i, Index j, Index rows, Index columns, bool first) const {
        float* p = c + i * ld + j;
        for (Index r = 0; r < rows; r++, p += ld, tile += NR)
            if (columns == NR)
                for (Index q = 0; q < NR; q += LANES)
                    simd::store(p + q, first ? simd::load(tile + q) : simd::load(p + q) + simd::load(tile + q));
            else
                for (Index q = 0; q < columns; q++) p[q] = first ? tile[q] : p[q] + tile[q];
    }
};

// Compute a rectangle of C = A B. Returns false when there is no memory for the packed pieces.
static bool multiply_rectangle(Matrix a, Matrix b, Index depth, Rectangle r, const Store& store) {
    const Index kc = depth_of_parts(depth, KC);
    Workspace block(std::min(MC, round_up(r.m1 - r.m0, MR)) * kc);
    Workspace strip(std::min(NC, round_up(r.n1 - r.n0, NR)) * kc);
    if (!block.data || !strip.data) return false;
    alignas(64) float tile[MR * NR];
    for (Index n = r.n0; n < r.n1; n += NC) {
        const Index ns = std::min(NC, r.n1 - n);
        Index k = 0;
        do {    // once even if depth is 0: an empty sum is 0
            const Index ks = std::min(kc, depth - k);
            pack<NR>(b.at(k, n), b.column, b.row, ns, ks, strip.data);
            for (Index m = r.m0; m < r.m1; m += MC) {
                const Index ms = std::min(MC, r.m1 - m);
                pack<MR>(a.at(m, k), a.row, a.column, ms, ks, block.data);
                for (Index j = 0; j < ns; j += NR)
                    for (Index i = 0; i < ms; i += MR) {
                        const Index rows = std::min(MR, ms - i), columns = std::min(NR, ns - j);
                        store.prefetch(m + i, n + j, rows);
                        micro_kernel<MR>(rows, ks, block.data + i * ks, strip.data + j * ks, tile, NR);
                        store(tile, m + i, n + j, rows, columns, k == 0);
                    }
            }
            k += kc;
        } while (k < depth);
    }
    return true;
}

// ---- threads ----

// A grid of threads, `down` x `across`, of which each takes a rectangle of about the same size.
struct Grid {
    int down, across;

    // A thread packs what it needs of A and of B by itself. Take the grid that reads least.
    Grid(Index m, Index n, int threads) : down(1), across(threads) {
        double least = -1;
        for (int d = 1; d <= threads; d++) {
            if (threads % d) continue;
            const double read = (double)m / d + (double)n / (threads / d);
            if (least < 0 || read < least) {
                least = read;
                down = d;
                across = threads / d;
            }
        }
    }

    // The part of thread t in an m x n matrix, cut between tiles.
    Rectangle part(int t, Index m, Index n) const {
        const int i = t / across, j = t % across;
        return Rectangle{cut(m, MR, i, down), cut(m, MR, i + 1, down), cut(n, NR, j, across), cut(n, NR, j + 1, across)};
    }

    static Index cut(Index size, Index step, Index part, Index parts) {
        const Index tiles = (size + step - 1) / step;
        return std::min(size, tiles * part / parts * step);
    }
};

// Starting the threads takes a few microseconds, the time of some 100,000 multiplications.
static inline int threads_for(double multiplications) {
    return multiplications < 2e5 ? 1 : parallel::most_threads();
}

// C[m x n] = A[m x depth] B[depth x n], the rows of C `ld` apart. Returns false when memory is short.
static inline bool product(Matrix a, Matrix b, Index m, Index n, Index depth, float* c, Index ld) {
    const int threads = threads_for((double)m * n * depth);
    const Grid grid(m, n, threads);
    return parallel::in_shares(threads, threads, 1, [=](Index t) {
        return multiply_rectangle(a, b, depth, grid.part((int)t, m, n), Store{c, ld});
    });
}

}    // namespace matmul
