// Layers of few filters: here the lanes are pixels, where filters would leave most of a vector empty. Without pooling and
// dropout, images, outputs and gradients stay channels first:
//
//     x ──────► few_tile ──► + bias, ReLU ──► out                      forward
//
//     g, masks ──► dz ──┬─► few_tile, filters turned round ──► dx      backward
//                  x ───┴─► FewWeights ──► dw
//
// With pooling, the forward pass does so only where nobody asks for masks (forward_few_pooled). Where somebody does, or
// with dropout, conv_few_rows stands in the place of conv_rows, and dz is written by Walk, where it is not so sparse that
// lists are better.
//
// Vectors run along a row and end with the row: the last one overlaps the one before. With filters of 1x1 all rows of
// an image are one (is_one_row).
#pragma once
#include <algorithm>
#include "conv_layer.hpp"

namespace conv {

// Whether a layer can do without channels last throughout.
static inline bool is_plain(const Layer& l) {
    return l.positions == 1 && !l.dropout && l.pool_stride_h == 1 && l.pool_stride_w == 1 && l.pool_pad_h == 0 &&
           l.pool_pad_w == 0;
}

// Whether each pixel is by itself.
static inline bool is_pointwise(const Layer& l) {
    return is_plain(l) && l.KH == 1 && l.KW == 1 && l.stride_h == 1 && l.stride_w == 1 && l.padded_h == l.H &&
           l.padded_w == l.W;
}

// Whether there are so few filters that pixels in the lanes are the faster way.
static inline bool is_few(const Layer& l) {
    const long weights = l.KH * l.segment;
    const bool leave_a_third = 3 * l.O <= 2 * round_up(l.O, LANES);    // of their vec empty
    if (is_pointwise(l) && leave_a_third && l.O <= 2 * LANES) {
        const long pixels = l.H * l.W;
        if (l.O <= LANES ? pixels >= 16 * LANES : pixels * l.C > 1 << 18) return true;
    }
    const bool few = l.O <= LANES / 2 ||
                     (l.O <= 2 * LANES && (weights <= 4 || (weights <= 32 && leave_a_third && is_plain(l))));
    return few && l.OW >= LANES && l.W >= LANES && l.stride_h == 1 && l.stride_w == 1;
}

// Whether all rows of a layer's input and output can be taken for one.
static inline bool is_one_row(const Layer& l, const Image& in, const Image& out) {
    return is_pointwise(l) && l.H * l.W >= LANES && in.w == 1 && out.w == 1 &&
           (l.H == 1 || (in.h == l.W && out.h == l.W));
}

// The same layer with that row.
static inline Layer in_one_row(const Layer& whole) {
    Layer l = whole;
    l.W = l.padded_w = l.OW = l.PW = l.H * l.W;
    l.H = l.padded_h = l.OH = l.PH = 1;
    return l;
}

// Channels-first rows: row y of plane c begins at data + c * plane + y * row.
struct Planes {
    const float* data;
    ptrdiff_t plane, row;
};

// The layer's input image with its borders: where it lies if that will do, else a copy.
static Planes padded_planes(const Layer& l, const Image& a, Buffer& buffer) {
    if (l.padded_h == l.H && l.padded_w == l.W && a.w == 1) return Planes{a.data, a.c, a.h};
    const long plane = l.padded_h * l.padded_w;
    float* p = buffer.get<float>(l.C * plane);
    memset(p, 0, l.C * plane * sizeof(float));
    for (long c = 0; c < l.C; c++)
        for (long y = 0; y < l.H; y++) {
            float* to = p + c * plane + (l.pad_top + y) * l.padded_w + l.pad_left;
            const float* from = a.data + c * a.c + y * a.h;
            if (a.w == 1) memcpy(to, from, l.W * sizeof(float));
            else
                for (long x = 0; x < l.W; x++) to[x] = from[x * a.w];
        }
    return Planes{p, plane, l.padded_w};
}

// ---- a convolution ----

// C channels and F filters, whose weights lie as [C][KH][KW][F].
struct FewFilters {
    long C, KH, KW;
    const float *weights, *start;    // the sums start from start[F]
};

// The micro-kernel: F filters x V vec of pixels, accumulated in registers.
template <int F, int V>
static void few_tile(const Planes& in, long x, const FewFilters& f, float* out, ptrdiff_t out_plane) {
    const long channels = PART / 2 / (f.KH * f.KW) + 1;
    const float* w = f.weights;
    vec total[F][V];
    for (int o = 0; o < F; o++)
        for (int v = 0; v < V; v++) total[o][v] = broadcast(f.start[o]);
    for (long begin = 0; begin < f.C; begin += channels) {
        vec acc[F][V] = {};
        for (long c = begin; c < f.C && c < begin + channels; c++)
            for (long i = 0; i < f.KH; i++)
                for (long j = 0; j < f.KW; j++, w += F) {
                    const float* p = in.data + c * in.plane + i * in.row + x + j;
                    vec pixels[V];
#pragma GCC unroll 4
                    for (int v = 0; v < V; v++) {
                        pixels[v] = load(p + v * LANES);
                        if (f.KH == 1) prefetch(p + (2 * V + v) * LANES);    // of the tile after the next
                    }
#pragma GCC unroll 4
                    for (int o = 0; o < F; o++) {
                        const vec wo = broadcast(w[o]);
#pragma GCC unroll 4
                        for (int v = 0; v < V; v++) acc[o][v] = fma(pixels[v], wo, acc[o][v]);
                    }
                }
        for (int o = 0; o < F; o++)
            for (int v = 0; v < V; v++) total[o][v] += acc[o][v];
    }
    for (int o = 0; o < F; o++)
        for (int v = 0; v < V; v++) store(out + o * out_plane + x + v * LANES, total[o][v]);
}

// A row of `columns` pixels, at least LANES.
template <int F>
static void few_row(const Planes& in, const FewFilters& f, long columns, float* out, ptrdiff_t out_plane) {
    constexpr int V = F <= 2 ? 4 : 2;
    long x = 0;
    for (; x + V * LANES <= columns; x += V * LANES) few_tile<F, V>(in, x, f, out, out_plane);
    for (; x < columns; x += LANES)
        few_tile<F, 1>(in, x + LANES <= columns ? x : columns - LANES, f, out, out_plane);
}

constexpr long FEW = 4;    // filters of the micro-kernel

// A row of any number of filters. `f` has the weights and starts of FEW filters after those of FEW filters, at the end
// of what is left.
static void few_row(const Planes& in, FewFilters f, long filters, long columns, float* out, ptrdiff_t out_plane) {
    const long weights = f.C * f.KH * f.KW;
    for (; filters > 0; filters -= FEW, out += FEW * out_plane, f.weights += FEW * weights, f.start += FEW) {
        if (filters == 1) few_row<1>(in, f, columns, out, out_plane);
        else if (filters == 2) few_row<2>(in, f, columns, out, out_plane);
        else if (filters == 3) few_row<3>(in, f, columns, out, out_plane);
        else few_row<FEW>(in, f, columns, out, out_plane);
    }
}

// Where weight k of filter o lies, of `filters` with `weights` each.
static inline long few_weight(long filters, long weights, long o, long k) {
    const long block = o / FEW * FEW, width = filters - block < FEW ? filters - block : FEW;
    return block * weights + k * width + o - block;
}

// ---- forward ----

// The weights as FewFilters want them, for the forward pass, or for dx: there the filters' channels take their place,
// the filters that of the channels, and each lies the other way round.
static const float* pack_few(const Layer& l, const Images& w, bool backward, Buffer& buffer) {
    const long filters = backward ? l.C : l.O, channels = backward ? l.O : l.C, K = l.KH * l.KW;
    float* p = buffer.get<float>(filters * channels * K);
    for (long o = 0; o < filters; o++)
        for (long c = 0; c < channels; c++)
            for (long k = 0; k < K; k++) {
                const long i = k / l.KW, j = k % l.KW;
                p[few_weight(filters, channels * K, o, c * K + k)] =
                    backward ? weight(l, w, c, o, l.KH - 1 - i, l.KW - 1 - j) : weight(l, w, o, c, i, j);
            }
    return p;
}

// A row cut into strips, of which a few channels' pixels fit into the cache.
struct Strips {
    const long columns, count;
    Strips(long columns, long channels)
        : columns(columns), count((columns - 1) / std::max(8L * LANES, (64L << 10) / (channels + 1)) + 1) {}
    long begin(long i) const { return columns * i / count; }
    long most() const { return (columns - 1) / count + 1; }
};

constexpr long FEW_MASKS = 8;    // bytes for a pixel with ReLU: a word where the gradient flows, a word for zeros

// ReLU and masks of a row of conv outputs, z[O][columns].
static void few_relu(const Layer& l, const float* z, long columns, const Image& out, uint8_t* masks) {
    for (long x = 0; x < columns; x += LANES) {
        const long at = x + LANES <= columns ? x : columns - LANES;
        uvec flows = {}, zeros = {};
        for (long o = 0; o < l.O; o++) {
            const vec v = load(z + o * columns + at);
            const uvec bit = broadcast((uint32_t)1 << o);
            flows |= (uvec)(l.relu ? v >= zero() : v == v) & bit;
            zeros |= (uvec)(v == zero()) & bit;
            store(out.data + o * out.c + at, l.relu ? max(v, zero()) : v);
        }
        if (masks) store_pairs((uint32_t*)masks + 2 * at, flows, zeros);
    }
}

// Rows [begin, end) of the conv output, the first `columns` of each, into out[row - begin][column][O].
static void conv_few_rows(const Layer& l, const Planes& x, const FewFilters& f, long begin, long end, long columns,
                          float* out) {
    const long pixels = (end - begin) * columns;
    float* z = scratch().dense.get<float>(l.O * pixels);
    for (long y = begin; y < end; y++)
        few_row(Planes{x.data + y * x.row, x.plane, x.row}, f, l.O, columns, z + (y - begin) * columns, pixels);
    transpose(z, pixels, l.O, pixels, out, l.O);
}

static void forward_few(const Layer& l, const float* weights, const float* bias, const Image& image, const Image& out,
                        uint8_t* masks) {
    Scratch& s = scratch();
    const Planes x = padded_planes(l, image, s.image);
    const Strips strips(l.OW, l.C);
    float* z = s.strip.get<float>(l.O * strips.most());
    const FewFilters f = {l.C, l.KH, l.KW, weights, bias};
    for (long y = 0; y < l.OH; y++)
        for (long i = 0; i < strips.count; i++) {
            const long at = strips.begin(i), columns = strips.begin(i + 1) - at;
            few_row(Planes{x.data + y * x.row + at, x.plane, x.row}, f, l.O, columns, z, columns);
            few_relu(l, z, columns, Image{out.data + y * out.h + at, out.c, 0, 1},
                     masks ? masks + (y * l.OW + at) * FEW_MASKS : NULL);
        }
}

// Whether pooling looks at whole windows only: with its padding or ignore_border=False some are cut by the border.
static inline bool has_whole_windows(const Layer& l) { return l.ignore_border && !l.pool_pad_h && !l.pool_pad_w; }

// The same with max-pooling of whole windows, where nobody asks for masks. `columns` of the conv output are used.
static void forward_few_pooled(const Layer& l, const Planes& x, const FewFilters& f, long columns, const Image& out) {
    float* const z = scratch().strip.get<float>(l.O * l.pool_h * columns);
    float* const above = scratch().out.get<float>(round_up(columns, LANES));    // the maxima of the windows' columns
    for (long y = 0; y < l.PH; y++) {
        for (long i = 0; i < l.pool_h; i++) {
            const float* const row = x.data + (y * l.pool_stride_h + i) * x.row;
            few_row(Planes{row, x.plane, x.row}, f, l.O, columns, z + i * columns, l.pool_h * columns);
        }
        for (long o = 0; o < l.O; o++) {
            const float* const best = z + o * l.pool_h * columns;
            float* const to = out.data + o * out.c + y * out.h;
            for (long k = 0; k < columns; k += LANES) {
                vec m = load(best + k);
                for (long i = 1; i < l.pool_h; i++) m = max(m, load(best + i * columns + k));
                store(above + k, l.relu ? max(m, zero()) : m);
            }
            if (l.pool_w == 2 && l.pool_stride_w == 2)
                for (long k = 0; k < l.PW; k += LANES) {
                    vec even, odd;
                    load_pairs(above + 2 * k, &even, &odd);
                    store_first(to + k, max(even, odd), (int)std::min<long>(LANES, l.PW - k));
                }
            else
                for (long k = 0; k < l.PW; k++)
                    to[k] = *std::max_element(above + k * l.pool_stride_w, above + k * l.pool_stride_w + l.pool_w);
        }
    }
}

// ---- backward ----

// The micro-kernel of dw: for F filters and J weights, whose pixels are `step` apart, sums over `rows` x `columns`
// pixels of dz times image. Rows of dz go on with zeros up to whole vec.
template <int F, int J>
struct FewWeights {
    typedef void (*Function)(const Planes&, const Planes&, ptrdiff_t, long, long, float*);

    static void run(const Planes& dz, const Planes& image, ptrdiff_t step, long rows, long columns, float* out) {
        vec acc[F][J] = {};
        for (long y = 0; y < rows; y++) {
            const float *g = dz.data + y * dz.row, *p = image.data + y * image.row;
            for (long x = 0; x < columns; x += LANES, g += LANES, p += LANES) {
                const bool whole = x + LANES <= columns;
                vec pixels[J];
#pragma GCC unroll 4
                for (int j = 0; j < J; j++)
                    pixels[j] = whole ? load(p + j * step) : load_first(p + j * step, (int)(columns - x));
#pragma GCC unroll 4
                for (int f = 0; f < F; f++) {
                    const vec gf = load(g + f * dz.plane);
#pragma GCC unroll 4
                    for (int j = 0; j < J; j++) acc[f][j] = fma(gf, pixels[j], acc[f][j]);
                }
            }
        }
        for (int f = 0; f < F; f++)
            for (int j = 0; j < J; j++) out[f * J + j] = sum(acc[f][j]);
    }
};
constexpr int FEW_IN_ROW = 3;

static FewWeights<1, 1>::Function few_weights(long filters, long columns) {
    typedef FewWeights<1, 1>::Function Function;
    static const Function functions[FEW][FEW_IN_ROW] = {
        {FewWeights<1, 1>::run, FewWeights<1, 2>::run, FewWeights<1, 3>::run},
        {FewWeights<2, 1>::run, FewWeights<2, 2>::run, FewWeights<2, 3>::run},
        {FewWeights<3, 1>::run, FewWeights<3, 2>::run, FewWeights<3, 3>::run},
        {FewWeights<4, 1>::run, FewWeights<4, 2>::run, FewWeights<4, 3>::run}};
    return functions[filters - 1][columns - 1];
}

// The gradients of all conv outputs of an image, channels first, with as many zeros around them as a filter reaches.
struct FewGradients {
    float* data;
    ptrdiff_t plane, row;
    Planes outputs;    // without the zeros

    explicit FewGradients(const Layer& l) {
        const long border_h = l.KH - 1, border_w = l.KW - 1;
        row = round_up(l.OW + 2 * border_w + LANES, LANES), plane = (l.OH + 2 * border_h) * row;
        data = scratch().planes.get<float>(l.O * plane);
        memset(data, 0, l.O * plane * sizeof(float));
        outputs = Planes{data + border_h * row + border_w, plane, row};
    }
    float* output_row(long y) const { return (float*)outputs.data + y * row; }
};

// A row of them without pooling; g is a row of the gradient of the layer's output. Adds to db.
static void few_gradient(const Layer& l, const Image& g, const uint8_t* masks, float* dz, long plane, double* db) {
    for (long x = 0; x < l.OW; x += LANES) {
        const long at = x + LANES <= l.OW ? x : l.OW - LANES;
        uvec flows = {}, zeros = {};
        if (l.planes) load_pairs((const uint32_t*)masks + 2 * at, &flows, &zeros);
        for (long o = 0; o < l.O; o++) {
            const uvec bit = broadcast((uint32_t)1 << o);
            vec v = load(g.data + o * g.c + at);
            if (l.relu && l.relu != RELU_MAXIMUM) v = (zeros & bit) == bit ? v * l.slope_at_zero() : v;
            if (l.planes) v = (vec)((uvec)v & (uvec)((flows & bit) == bit));
            store(dz + o * plane + at, v);
        }
    }
    for (long o = 0; o < l.O; o++) {
        double lanes[LANES] = {};
        for (long x = 0; x < l.OW; x += LANES) add_to(lanes, load(dz + o * plane + x));
        for (int lane = 0; lane < LANES; lane++) db[o] += lanes[lane];
    }
}

// For all filters and `weights` weights, whose pixels are `step` apart, the sums of FewWeights, added to
// dw[weight * dw_weight + filter].
static void few_sums(const Layer& l, const Planes& dz, const Planes& image, long weights, ptrdiff_t step, long rows,
                     long columns, double* dw, long dw_weight) {
    float sums[FEW * FEW_IN_ROW];
    for (long j = 0; j < weights; j += FEW_IN_ROW)
        for (long o = 0; o < l.O; o += FEW) {
            const long filters = l.O - o < FEW ? l.O - o : FEW, n = weights - j < FEW_IN_ROW ? weights - j : FEW_IN_ROW;
            few_weights(filters, n)(Planes{dz.data + o * dz.plane, dz.plane, dz.row},
                                    Planes{image.data + j * step, image.plane, image.row}, step, rows, columns, sums);
            for (long f = 0; f < filters; f++)
                for (long k = 0; k < n; k++) dw[(j + k) * dw_weight + o + f] += sums[f * n + k];
        }
}

// dw of one image, added to sums[(i * KW + j) * C + c][stride].
static void few_dw(const Layer& l, const FewGradients& dz, const Planes& x, double* dw, long stride) {
    const long PIXELS = 1024;    // of a sum in float32
    if (is_pointwise(l) && l.OH == 1) {
        for (long at = 0; at < l.OW; at += PIXELS)
            few_sums(l, Planes{dz.output_row(0) + at, dz.plane, 0}, Planes{x.data + at, x.plane, 0}, l.C, x.plane, 1,
                     l.OW - at < PIXELS ? l.OW - at : PIXELS, dw, stride);
        return;
    }
    const long strip = PIXELS / l.OW + 1;
    for (long y = 0; y < l.OH; y += strip)
        for (long c = 0; c < l.C; c++)
            for (long i = 0; i < l.KH; i++)
                few_sums(l, Planes{dz.output_row(y), dz.plane, dz.row},
                         Planes{x.data + c * x.plane + (y + i) * x.row, x.plane, x.row}, l.KW, 1,
                         l.OH - y < strip ? l.OH - y : strip, l.OW, dw + (i * l.KW * l.C + c) * stride, l.C * stride);
}

// dx of one image.
static void few_dx(const Layer& l, const FewGradients& dz, const float* weights, const Image& dx) {
    float* start = scratch().strip.get<float>(l.C);
    memset(start, 0, l.C * sizeof(float));
    const FewFilters f = {l.O, l.KH, l.KW, weights, start};
    Planes from = {dz.data + l.pad_top * dz.row + l.pad_left, dz.plane, dz.row};
    const Strips strips(l.W, l.O);
    for (long y = 0; y < l.H; y++, from.data += from.row)
        for (long i = 0; i < strips.count; i++) {
            const long at = strips.begin(i), columns = strips.begin(i + 1) - at;
            few_row(Planes{from.data + at, from.plane, from.row}, f, l.C, columns, dx.data + y * dx.h + at, dx.c);
        }
}

}    // namespace conv
