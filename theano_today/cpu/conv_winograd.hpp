// Convolution with filters of 2x2 and 3x3 by fewer multiplications (S. Winograd, "Arithmetic Complexity of
// Computations", 1980; A. Lavin, S. Gray, "Fast Algorithms for Convolutional Neural Networks", arXiv:1509.09308).
//
// Two neighbouring outputs of a filter (g0, g1) over pixels d0, d1, d2 are d0 g0 + d1 g1 and d1 g0 + d2 g1: four
// products. With
//
//     m0 = (d0 - d1) g0        m1 = d1 (g0 + g1)        m2 = (d2 - d1) g1
//
// they are m0 + m1 and m1 + m2: three. In both directions that is 9 in place of 16, and with filters of 3x3, where 4
// products do for two outputs, 16 in place of 36:
//
//     image ────► V[place][tile][C rounded up]   tiles of (K + 1) x (K + 1) pixels, two apart, transformed
//     filters ──► U[place][C][filters]           the same of all filters
//                 M[place] = V[place] U[place]   a product of matrices for each of the (K + 1)² places
//     M ────────► 2 x 2 conv outputs of each tile
//
// Where a tile reaches beyond the image, only outputs that are not wanted depend on what it sees there.
#pragma once
#include "conv_tile.hpp"

namespace conv {

static inline long places(const Layer& l) { return (l.KH + 1) * (l.KW + 1); }    // in a tile

// ---- the transforms of a line: K + 1 values, or K of a filter, `step` apart ----

template <int K>
SIMD_INLINE void transform_pixels(const vec* d, int step, vec* v) {
    const vec d0 = d[0], d1 = d[step], d2 = d[2 * step];
    if (K == 2) {
        v[0] = d0 - d1, v[step] = d1, v[2 * step] = d2 - d1;
    } else {
        v[0] = d0 - d2, v[step] = d1 + d2, v[2 * step] = d2 - d1, v[3 * step] = d1 - d[3 * step];
    }
}

template <int K>
SIMD_INLINE void transform_weights(const vec* g, int from, vec* u, int to) {
    if (K == 2) {
        u[0] = g[0], u[to] = g[0] + g[from], u[2 * to] = g[from];
    } else {
        const vec ends = g[0] + g[2 * from];
        u[0] = g[0], u[to] = .5f * (ends + g[from]), u[2 * to] = .5f * (ends - g[from]), u[3 * to] = g[2 * from];
    }
}

template <int K>
SIMD_INLINE void transform_products(const vec* m, int from, vec* y, int to) {
    const vec m1 = m[from], m2 = m[2 * from];
    if (K == 2) {
        y[0] = m[0] + m1, y[to] = m1 + m2;
    } else {
        y[0] = m[0] + m1 + m2, y[to] = m1 - m2 - m[3 * from];
    }
}

// ---- which layers ----

// Layers with enough channels to be worth the transforms, and enough tiles to be worth that of the filters. Strips and
// bands of an image begin at even rows, so that they have the tiles of the whole image, and the bits.
static inline bool is_winograd(const Layer& l) {
    return l.KH == l.KW && (l.KW == 2 || l.KW == 3) && l.stride_h == 1 && l.stride_w == 1 && l.C >= 16 &&
           l.O >= 16 && l.disjoint && !l.pool_pad_h && l.N * l.OH * l.OW >= 1024;
}

// ---- filters ----

// From blocks [KH][KW][C][width], as Filters::forward has them, to blocks [place][C][width].
template <int K>
static void transform_filters(const Layer& l, const float* filters, float* u) {
    for (long b = 0; b < l.O; b += BLOCK) {
        const long width = l.O - b <= LANES ? LANES : BLOCK, place = l.C * width;
        for (long k = 0; k < place; k += LANES) {
            vec g[K * K], lines[(K + 1) * K], all[(K + 1) * (K + 1)];
#pragma GCC unroll 16
            for (int p = 0; p < K * K; p++) g[p] = load(filters + b * K * K * l.C + p * place + k);
#pragma GCC unroll 4
            for (int j = 0; j < K; j++) transform_weights<K>(g + j, K, lines + j, K);
#pragma GCC unroll 4
            for (int i = 0; i <= K; i++) transform_weights<K>(lines + i * K, 1, all + i * (K + 1), 1);
#pragma GCC unroll 16
            for (int p = 0; p < (K + 1) * (K + 1); p++) store(u + b * (K + 1) * (K + 1) * l.C + p * place + k, all[p]);
        }
    }
}

// ---- images ----

// Some rows [begin, end) of the conv output, the first `columns` of each, as tiles of 2 x 2.
struct Tiles {
    long begin, end, columns, down, across;

    Tiles(long begin, long end, long columns)
        : begin(begin), end(end), columns(columns), down((end - begin + 1) / 2), across((columns + 1) / 2) {}
    long count() const { return down * across; }
};

// V, in this thread's memory.
template <int K>
static const float* transform_image(const Layer& l, const float* x, const Tiles& tiles) {
    float *const all = scratch().tiles.get<float>(places(l) * tiles.count() * round_up(l.C, LANES)), *v = all;
    const long place = tiles.count() * round_up(l.C, LANES);
    const float* pixels[(K + 1) * (K + 1)];
    for (long ty = 0; ty < tiles.down; ty++)
        for (long tx = 0; tx < tiles.across; tx++) {
            for (int i = 0; i <= K; i++)
                for (int j = 0; j <= K; j++) {
                    const long y = tiles.begin + 2 * ty + i, column = 2 * tx + j;
                    pixels[i * (K + 1) + j] = x + ((y < l.padded_h ? y : l.padded_h - 1) * l.padded_w +
                                                   (column < l.padded_w ? column : l.padded_w - 1)) * l.C;
                }
            for (long c = 0; c < l.C; c += LANES, v += LANES) {
                vec d[(K + 1) * (K + 1)];
#pragma GCC unroll 16
                for (int p = 0; p < (K + 1) * (K + 1); p++)
                    d[p] = c + LANES <= l.C ? load(pixels[p] + c) : load_first(pixels[p] + c, (int)(l.C - c));
#pragma GCC unroll 4
                for (int j = 0; j <= K; j++) transform_pixels<K>(d + j, K + 1, d + j);
#pragma GCC unroll 4
                for (int i = 0; i <= K; i++) transform_pixels<K>(d + i * (K + 1), 1, d + i * (K + 1));
#pragma GCC unroll 16
                for (int p = 0; p < (K + 1) * (K + 1); p++) store(v + p * place, d[p]);
            }
        }
    return all;
}

// ---- outputs ----

// One block of filters: from V and the block's U to z[row - begin][column][width].
template <int K>
static void winograd_rows(const Layer& l, const float* v, const float* u, const float* bias, const Tiles& tiles,
                          long width, float* z) {
    alignas(64) static const float none[BLOCK] = {};
    const long count = tiles.count(), place = count * width;
    float* m = scratch().products.get<float>(places(l) * place);
    Layer pixels = l;    // for each place a layer with filters of 1x1, whose image is a row of tiles
    pixels.KH = pixels.KW = 1, pixels.segment = l.C, pixels.C = round_up(l.C, LANES), pixels.padded_w = count;
    for (long p = 0; p < (K + 1) * (K + 1); p++)
        conv_rows(pixels, v + p * count * pixels.C, 0, 1, count, u + p * l.C * width, none, m + p * place, width);
    for (long ty = 0; ty < tiles.down; ty++)
        for (long tx = 0; tx < tiles.across; tx++, m += width)
            for (long r = 0; r < width; r += LANES) {
                vec lines[2 * (K + 1)], y[4], d[(K + 1) * (K + 1)];
#pragma GCC unroll 16
                for (int p = 0; p < (K + 1) * (K + 1); p++) d[p] = load(m + p * place + r);
#pragma GCC unroll 4
                for (int j = 0; j <= K; j++) transform_products<K>(d + j, K + 1, lines + j, K + 1);
#pragma GCC unroll 2
                for (int i = 0; i < 2; i++) transform_products<K>(lines + i * (K + 1), 1, y + 2 * i, 1);
                const vec b = load(bias + r);
                float* const to = z + ((2 * ty) * tiles.columns + 2 * tx) * width + r;
                const bool right = 2 * tx + 1 < tiles.columns, below = tiles.begin + 2 * ty + 1 < tiles.end;
                store(to, y[0] + b);
                if (right) store(to + width, y[1] + b);
                if (below) store(to + tiles.columns * width, y[2] + b);
                if (right && below) store(to + (tiles.columns + 1) * width, y[3] + b);
            }
}

// The same for filters of either size.
static inline const float* transform_image(const Layer& l, const float* x, const Tiles& tiles) {
    return l.KW == 2 ? transform_image<2>(l, x, tiles) : transform_image<3>(l, x, tiles);
}
static inline void winograd_rows(const Layer& l, const float* v, const float* u, const float* bias, const Tiles& tiles,
                                 long width, float* z) {
    if (l.KW == 2) winograd_rows<2>(l, v, u, bias, tiles, width, z);
    else winograd_rows<3>(l, v, u, bias, tiles, width, z);
}
static inline const float* transform_filters(const Layer& l, const float* filters, Buffer& buffer) {
    float* const u = buffer.get<float>(round_up(l.O, BLOCK) * places(l) * l.C);
    if (l.KW == 2) transform_filters<2>(l, filters, u);
    else transform_filters<3>(l, filters, u);
    return u;
}

}    // namespace conv
