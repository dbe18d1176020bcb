// Convolution and bias: the micro-kernel of the forward pass; see conv.hpp.
#pragma once
#include "conv_layer.hpp"

namespace conv {

// A part of a filter: `floats` consecutive ones from `begin` on, in each of `rows` rows from `row` on.
struct FilterPart {
    long row, rows, begin, floats;
};

// The micro-kernel: MR pixels x NR vec of filters, accumulated in registers.
//
//                   filters  ──►
//                 [ w0 ][ w1 ]            one row of the packed block per k
//     pixel 0  x  [    ][    ]
//     pixel 1  x  [   acc    ]            MR * NR accumulators + NR for w + 1 for x
//       ...    x  [    ][    ]            fill the machine's registers
//
// k runs over the part's rows of the window and the floats in each.
template <int MR, int NR>
static void conv_tile(const Layer& l, const FilterPart& part, const float* x, const float* w, const float* bias,
                      float* out, long out_pixel) {
    const long row = l.padded_w * l.C, pixel = l.stride_w * l.C, floats = part.floats;
    const long skip = (l.segment - floats) * NR * LANES;
    vec acc[MR][NR];
    for (int r = 0; r < NR; r++) {
        const vec b = load(bias + r * LANES);
        for (int p = 0; p < MR; p++) acc[p][r] = b;
    }
    for (long i = 0; i < part.rows; i++, x += row, w += skip)
        for (long k = 0; k < floats; k++, w += NR * LANES) {
            vec wk[NR];
#pragma GCC unroll 8
            for (int r = 0; r < NR; r++) wk[r] = load(w + r * LANES);
#pragma GCC unroll 32
            for (int p = 0; p < MR; p++) {
                vec xk = broadcast(x[p * pixel + k]);
#pragma GCC unroll 8
                for (int r = 0; r < NR; r++) acc[p][r] = fma(xk, wk[r], acc[p][r]);
            }
        }
    for (int p = 0; p < MR; p++)
        for (int r = 0; r < NR; r++) store(out + p * out_pixel + r * LANES, acc[p][r]);
}

// The most pixels whose accumulators fit.
constexpr int most_pixels(int nr) {
    return (REGISTERS - 1 - nr) / nr < 1 ? 1 : (REGISTERS - 1 - nr) / nr > 12 ? 12 : (REGISTERS - 1 - nr) / nr;
}

typedef void (*ConvTile)(const Layer&, const FilterPart&, const float*, const float*, const float*, float*, long);

// conv_tile<n, NR> for an n of 1 .. MR that is known at run time.
template <int MR, int NR>
struct ConvTiles {
    static ConvTile find(int n) { return n == MR ? conv_tile<MR, NR> : ConvTiles<MR - 1, NR>::find(n); }
};
template <int NR>
struct ConvTiles<0, NR> {
    static ConvTile find(int) { return NULL; }
};

// One part of a block of filters (see conv_rows): the sums of the first part start from the bias, those of the others,
// for which `bias` is NULL, are added to `out`. The columns are split evenly, since tiles of 6 + 4 pixels run as fast
// as two of 5, and 6 + 1 do not.
template <int NR>
static void conv_rows_part(const Layer& l, const FilterPart& part, const float* x, long begin, long end, long columns,
                           const float* w, const float* bias, float* out) {
    constexpr int MR = most_pixels(NR);
    long tiles = (columns + MR - 1) / MR, small = tiles ? columns / tiles : 0, larger = tiles ? columns % tiles : 0;
    ConvTile kernel = ConvTiles<MR, NR>::find((int)small), kernel_larger = ConvTiles<MR, NR>::find((int)small + 1);
    alignas(64) static const float none[NR * LANES] = {};
    alignas(64) float sums[MR * NR * LANES];
    x += part.row * l.padded_w * l.C + part.begin;
    w += (part.row * l.segment + part.begin) * NR * LANES;
    for (long y = begin; y < end; y++) {
        const float* p = x + y * l.stride_h * l.padded_w * l.C;
        for (long t = 0; t < tiles; t++) {
            long n = small + (t < larger);
            (t < larger ? kernel_larger : kernel)(l, part, p, w, bias ? bias : none, bias ? out : sums, NR * LANES);
            if (!bias)
                for (long i = 0; i < n * NR * LANES; i += LANES) add_to(out + i, load(sums + i));
            p += n * l.stride_w * l.C;
            out += n * NR * LANES;
        }
    }
}

// Rows [begin, end) of the conv output for one block of filters, the first `columns` of each, into
// out[row - begin][column][NR * LANES].
//
// A long filter is taken in parts: that of a block then stays in the first-level cache while it meets all the pixels,
// and a sum of many products is a sum of partial sums, which rounds less.
template <int NR>
static void conv_rows(const Layer& l, const float* x, long begin, long end, long columns, const float* w,
                      const float* bias, float* out) {
    const long MOST = 512;    // floats of a filter
    if (l.KH * l.segment <= MOST)
        return conv_rows_part<NR>(l, FilterPart{0, l.KH, 0, l.segment}, x, begin, end, columns, w, bias, out);
    const long rows = l.segment <= MOST ? MOST / l.segment : 1, cuts = (l.segment + MOST - 1) / MOST;
    for (long i = 0; i < l.KH; i += rows)
        for (long c = 0; c < cuts; c++) {
            const long from = l.segment * c / cuts, to = l.segment * (c + 1) / cuts;
            const FilterPart part = {i, rows < l.KH - i ? rows : l.KH - i, from, to - from};
            conv_rows_part<NR>(l, part, x, begin, end, columns, w, i || c ? NULL : bias, out);
        }
}

static void conv_rows(const Layer& l, const float* x, long begin, long end, long columns, const float* w,
                      const float* bias, float* out, long width) {
    if (l.KW == 1 && l.stride_h == 1 && l.stride_w == 1 && columns == l.padded_w)
        columns *= end - begin, end = begin + 1;    // all rows are one
    if (width == BLOCK) conv_rows<2>(l, x, begin, end, columns, w, bias, out);
    else conv_rows<1>(l, x, begin, end, columns, w, bias, out);
}

}    // namespace conv
