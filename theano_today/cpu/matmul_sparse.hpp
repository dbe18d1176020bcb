// Matrix products with a factor that is mostly zeros: the gradients of a layer with ReLU and dropout.
//
// What ReLU cut off or dropout left out has a gradient of exactly zero: behind both, three of four. A product need not
// multiply them. Each row of the sparse factor A becomes a list of what is not zero, and where:
//
//                                                       WIDTH columns of B, packed: the panel
//               k ──►                                  k ┌────────────────┐
//     row of A  . x . . . y . z . .                    │ │                │
//     its list  (x, 1) (y, 5) (z, 7)                   ▼ │████████████████│ row 1
//                                                        │                │
//         sums (WIDTH / LANES vec, in registers)         │████████████████│ row 5
//            +=  x * row 1 + y * row 5 + z * row 7       │████████████████│ row 7
//                                                        └────────────────┘
//
// The lists are made once and serve all panels. Adding zeros would not change a sum, so the results are as good as
// those of the dense product; but 0 * inf and 0 * NaN are NaN: a panel that has such a number is multiplied in full.
#pragma once
#include <stdint.h>
#include "matmul_narrow.hpp"

namespace matmul {

// Eight sums keep two units for fma busy, each of which takes four cycles for one.
constexpr Index SUMS = 8;
constexpr Index WIDTH = SUMS * LANES;

// Rows of a panel: 32 kB with 8 lanes, the first-level cache.
constexpr Index STEP = 128;

// Up to this share of numbers that are not zero the lists win: a list costs two loads more for each SUMS of fma, and
// the transposition of the results in `sparse_update`.
constexpr double SPARSE = 0.45;

// ---- lists ----

struct Entry {
    float value;
    int32_t offset;    // of the panel's row, in floats
};

// Lists of the rows of a matrix, cut into pieces of at most `longest` columns.
class Lists {
    const Matrix a;
    const Index rows, depth, step, pieces;
    Workspace memory;

    Entry* entries(Index piece, Index row) const { return (Entry*)memory.data + (piece * rows + row) * (step + 1); }
    int32_t* lengths() const { return (int32_t*)((Entry*)memory.data + pieces * rows * (step + 1)); }

    // Some rows of one piece. Each number is written down, and the next overwrites it if it was zero: no branches.
    template <Index ROWS>
    void make(Index piece, Index row) {
        const Index begin = piece * step, end = std::min(depth, begin + step);
        Entry* last[ROWS];
        for (Index r = 0; r < ROWS; r++) last[r] = entries(piece, row + r);
        for (Index k = begin; k < end; k++)
            for (Index r = 0; r < ROWS; r++) {
                const float value = *a.at(row + r, k);
                *last[r] = Entry{value, (int32_t)((k - begin) * WIDTH)};
                last[r] += value != 0;
            }
        for (Index r = 0; r < ROWS; r++)
            lengths()[piece * rows + row + r] = (int32_t)(last[r] - entries(piece, row + r));
    }

   public:
    Lists(Matrix a, Index rows, Index depth, Index longest)
        : a(a), rows(rows), depth(depth), step(std::max<Index>(1, std::min(depth, longest))),
          pieces(std::max<Index>(1, (depth + step - 1) / step)), memory(pieces * rows * (2 * (step + 1) + 1)) {}

    // Fills the lists. Returns false when there is no memory for them.
    bool make(int threads) {
        if (!memory.data) return false;
        const Index BLOCK = 16;    // rows: a cache line where rows are what lies side by side in memory
        return parallel::in_shares(threads, rows, BLOCK, [this](Index row) {
            for (Index piece = 0; piece < pieces; piece++)
                if (row + BLOCK <= rows) make<BLOCK>(piece, row);
                else
                    for (Index r = row; r < rows; r++) make<1>(piece, r);
            return true;
        });
    }

    const Entry* list(Index piece, Index row) const { return entries(piece, row); }
    Index length(Index piece, Index row) const { return lengths()[piece * rows + row]; }

    // All numbers of a row, zeros too, into `all`. Returns their number.
    Index everything(Index piece, Index row, Entry* all) const {
        const Index begin = piece * step, n = std::min(step, depth - begin);
        for (Index k = 0; k < n; k++) all[k] = Entry{*a.at(row, begin + k), (int32_t)(k * WIDTH)};
        return n;
    }
};

// Whether a matrix seems worth lists, by the share of zeros in some of its rows.
static inline bool is_sparse(Matrix a, Index rows, Index depth) {
    const Index SAMPLES = 8;
    const Index every = (rows + SAMPLES - 1) / SAMPLES;
    Index n = 0, nonzero = 0;
    for (Index i = every / 2; i < rows; i += every)
        for (Index k = 0; k < depth; k++, n++) nonzero += *a.at(i, k) != 0;
    return nonzero < SPARSE * n;
}

// ---- the micro-kernel ----

// sums[WIDTH] += sum over the list: value * panel[offset + :]
//
// The list's own sum comes first: a sum over many lists is then one of partial sums, which rounds less.
static inline void add_list(const Entry* list, Index n, const float* panel, float* sums) {
    vec sum[SUMS];
#pragma GCC unroll 8
    for (Index v = 0; v < SUMS; v++) sum[v] = simd::zero();
    for (const Entry* e = list; e != list + n; e++) {
        const vec value = simd::broadcast(e->value);
        const float* row = panel + e->offset;
#pragma GCC unroll 8
        for (Index v = 0; v < SUMS; v++) sum[v] = simd::fma(value, simd::load(row + v * LANES), sum[v]);
    }
#pragma GCC unroll 8
    for (Index v = 0; v < SUMS; v++) simd::add_to(sums + v * LANES, sum[v]);
}

static inline bool all_finite(const float* p, Index n) {    // n is a multiple of WIDTH
    vec sum[SUMS] = {};
    for (Index i = 0; i < n; i += WIDTH)
#pragma GCC unroll 8
        for (Index v = 0; v < SUMS; v++) sum[v] = simd::fma(simd::load(p + i + v * LANES), simd::zero(), sum[v]);
    float total = 0;    // 0 * x is NaN for inf and NaN
    for (Index v = 0; v < SUMS; v++) total += simd::sum(sum[v]);
    return total == 0;
}

// ---- C = A B, A sparse ----

// Returns false when memory is short.
static inline bool sparse_product(Matrix a, Matrix b, Index m, Index n, Index depth, float* c) {
    const int threads = threads_for((double)m * n * depth);
    Lists lists(a, m, depth, STEP);
    if (!lists.make(threads)) return false;
    bool done = true;
#ifdef _OPENMP
#pragma omp parallel num_threads(threads) if (threads > 1) reduction(&& : done)
#endif
    {
        Workspace panel(STEP * WIDTH), sums(m * WIDTH);
        Entry all[STEP];
        done = panel.data && sums.data;
#ifdef _OPENMP
#pragma omp for schedule(static)
#endif
        for (Index j = 0; j < n; j += WIDTH) {
            if (!done) continue;
            const Index columns = std::min(WIDTH, n - j);
            std::fill(sums.data, sums.data + m * WIDTH, 0.f);
            for (Index k = 0, piece = 0; k < depth; k += STEP, piece++) {
                const Index ks = std::min(STEP, depth - k);
                pack_panel<WIDTH>(b.at(k, j), b.column, b.row, columns, ks, panel.data);
                if (all_finite(panel.data, ks * WIDTH))
                    for (Index i = 0; i < m; i++)
                        add_list(lists.list(piece, i), lists.length(piece, i), panel.data, sums.data + i * WIDTH);
                else
                    for (Index i = 0; i < m; i++)
                        add_list(all, lists.everything(piece, i, all), panel.data, sums.data + i * WIDTH);
            }
            for (Index i = 0; i < m; i++)
                std::copy(sums.data + i * WIDTH, sums.data + i * WIDTH + columns, c + i * n + j);
        }
    }
    return done;
}

// ---- which one ----

// C[m x n] = A[m x depth] B[depth x n], by lists where A is sparse. Returns false when memory is short.
static inline bool product_of(Matrix a, Matrix b, Index m, Index n, Index depth, float* c) {
    if (is_narrow(m, n, depth)) return short_product(a, b, m, n, depth, c);
    if (n > LANES && n <= LANES + 2)    // whole vectors of columns, rather than two of which one has a number or two
        return direct_product(a, b, m, LANES, depth, c, n) &&
               narrow_product(a, Matrix{b.at(0, LANES), b.row, b.column}, m, n - LANES, depth, c + LANES, n, 1);
    if (is_direct(m, n, depth)) return direct_product(a, b, m, n, depth, c, n);
    if (n >= 2 * WIDTH && is_sparse(a, m, depth)) return sparse_product(a, b, m, n, depth, c);
    return product(a, b, m, n, depth, c, n);
}

}    // namespace matmul
