// The forward pass of a convolution layer: conv + bias, ReLU, max-pool, dropout; see conv.hpp.
#pragma once
#include "conv_few.hpp"
#include "conv_winograd.hpp"

namespace conv {

// ---- ReLU, max-pool, dropout ----

// Where one image's results go.
struct Pooled {
    float* out;             // [PH * PW][O], or of one strip only: from pixel `first` on
    long first;
    uint8_t* masks;         // see Layer, or NULL
    const uint8_t* keep;    // dropout's bits [PH * PW][plane_bytes]
};

// ReLU as the stock Ops compute it.
SIMD_INLINE vec relu_exact(int relu, vec z) {
    if (relu == RELU_HALF) return 0.5f * (z + abs(z));
    if (relu) {
        vec m = max(z, zero());
        return z == z ? m : z;
    }
    return z;
}

// One pooling window of one vec of filters: h x w positions from z[i * row + j * pixel], all finite. `plane` is the bit
// plane of the first of them.
SIMD_INLINE void pool_window(const Layer& l, const Pooled& o, const float* z, long row, long pixel, int h, int w,
                             uint8_t* plane, long at, int channel) {
    const int n = (int)(l.O - channel);    // filters from here on
    vec m = load(z);
    for (int i = 0; i < h; i++)
        for (int j = 0; j < w; j++) m = max(load(z + i * row + j * pixel), m);
    mask flows = to_mask(m >= (l.relu ? zero() : m));    // the gradients of these filters
    vec result = l.relu ? max(m, zero()) : m;
    if (l.dropout) {
        const mask keep = load_mask(o.keep + at * l.plane_bytes, channel);
        flows &= keep;
        result = select(keep, result * l.scale);
    }
    float* out = o.out + (at - o.first) * l.O + channel;
    if (n >= LANES) store(out, result);
    else store_first(out, result, n);
    if (!plane) return;
    const lanebits valid = n >= LANES ? (lanebits)((1ull << LANES) - 1) : (1u << n) - 1;
    for (int i = 0; i < h; i++)
        for (int j = 0; j < w; j++) {
            const mask is_max = h * w == 1 ? flows : to_mask(load(z + i * row + j * pixel) == m) & flows;
            store_bits(plane + (i * l.pool_w + j) * l.plane_bytes, channel, valid & to_bits(is_max));
        }
    uint8_t* planes = o.masks + at * l.planes * l.plane_bytes;
    if (l.relu) store_bits(planes + l.zero_plane * l.plane_bytes, channel, valid & to_bits(m == zero()));
    if (l.dropout)
        store_bits(planes + l.keep_plane * l.plane_bytes, channel, load_bits(o.keep + at * l.plane_bytes, channel));
}

// The same where NaN or infinity may occur, in the order of Theano's Ops. The only bits are dropout's: the gradient
// will compute everything else anew.
static void pool_window_exact(const Layer& l, const Pooled& o, const float* z, long row, long pixel, int h, int w,
                              long at, int channel) {
    vec m = relu_exact(l.relu, load(z));
    for (int i = 0; i < h; i++)
        for (int j = 0; j < w; j++) m = max(relu_exact(l.relu, load(z + i * row + j * pixel)), m);
    if (l.dropout) {
        const lanebits keep = load_bits(o.keep + at * l.plane_bytes, channel);
        m = m * l.scale * select(keep, broadcast(1.f));
        if (o.masks) store_bits(o.masks + (at * l.planes + l.keep_plane) * l.plane_bytes, channel, keep);
    }
    store_first(o.out + (at - o.first) * l.O + channel, m, l.O - channel < LANES ? (int)(l.O - channel) : LANES);
}

// Pooling windows of row y for one block of filters from conv rows z[row - first][column][width]. H and W are the
// size of all windows where it is known at compile time and they lie within the image, else 0.
template <int H, int W>
static void pool_row(const Layer& layer, const Pooled& pooled, const float* z, long first, long columns, long width,
                     long y, long channel, bool exact) {
    // Copies on the stack: the compiler must assume that storing a byte of the masks changes anything else.
    const Layer l = layer;
    const Pooled o = pooled;
    const Span rows = window_rows(l, y);
    const long row = columns * width;
    z += (rows.begin - first) * row;
    for (long x = 0; x < l.PW; x++) {
        const Span span = window_columns(l, x);
        const int h = H ? H : (int)(rows.end - rows.begin), w = W ? W : (int)(span.end - span.begin);
        const long at = y * l.PW + x;
        uint8_t* plane = NULL;
        if (o.masks && l.planes && !exact) {
            plane = o.masks + at * l.planes * l.plane_bytes;
            // Positions outside the image have no bits.
            if (!H && h * w != l.positions && channel % 8 == 0)
                for (long p = 0; p < l.positions; p++)
                    memset(plane + p * l.plane_bytes + channel / 8, 0, (width + 7) / 8);
            plane += ((rows.begin - rows.start) * l.pool_w + span.begin - span.start) * l.plane_bytes;
        }
        // A block's second vec may lie wholly beyond the last filter.
        for (long c = 0; c < width && channel + c < l.O; c += LANES) {
            const float* p = z + span.begin * width + c;
            if (exact) pool_window_exact(l, o, p, row, width, h, w, at, (int)(channel + c));
            else pool_window(l, o, p, row, width, h, w, plane, at, (int)(channel + c));
        }
    }
}

static void pool_row(const Layer& l, const Pooled& o, const float* z, long first, long columns, long width, long y,
                     long channel, bool exact) {
    const bool whole = has_whole_windows(l) && !exact;
    if (whole && l.pool_h == 2 && l.pool_w == 2) pool_row<2, 2>(l, o, z, first, columns, width, y, channel, false);
    else if (whole && l.pool_h == 1 && l.pool_w == 1) pool_row<1, 1>(l, o, z, first, columns, width, y, channel, false);
    else pool_row<0, 0>(l, o, z, first, columns, width, y, channel, exact);
}

// Columns of the conv output that pooling looks at.
static inline long used_columns(const Layer& l) { return l.PW ? window_columns(l, l.PW - 1).end : 0; }

// The bits of 8 x 8 bytes, rows and columns exchanged.
SIMD_INLINE uint64_t transpose_bits(uint64_t x) {
    uint64_t t = (x ^ (x >> 7)) & 0x00aa00aa00aa00aaull;    // 2 x 2 bits
    x ^= t ^ (t << 7);
    t = (x ^ (x >> 14)) & 0x0000cccc0000ccccull;            // 2 x 2 blocks of those
    x ^= t ^ (t << 14);
    t = (x ^ (x >> 28)) & 0x00000000f0f0f0f0ull;
    return x ^ t ^ (t << 28);
}

// Dropout's samples, channels first, to bits, channels last: [PH * PW][plane_bytes].
//
// 8 channels x 16 pixels at a time: comparing 16 samples of a channel gives 16 bits in the order of the pixels; two
// 8 x 8 transpositions put them into the order of the channels.
static void keep_bits(const Layer& l, const Image& u, uint8_t* keep) {
    const int PIXELS = 16;
    const long pixels = l.PH * l.PW;
    const bool plain = (l.PW == 1 || u.w == 1) && (l.PH == 1 || u.h == l.PW);
    const vec threshold = broadcast(l.threshold);
    float copy[PIXELS] = {};
    memset(keep, 0, pixels * l.plane_bytes);
    for (long c0 = 0; c0 < l.O; c0 += 8)
        for (long at = 0; at < pixels; at += PIXELS) {
            const long n = pixels - at < PIXELS ? pixels - at : PIXELS;
            uint64_t low = 0, high = 0;
            for (long c = c0; c < c0 + 8 && c < l.O; c++) {
                const float* p = u.data + c * u.c + at;
                if (!plain || n < PIXELS) {
                    for (long i = 0; i < n; i++)
                        copy[i] = u.data[c * u.c + (at + i) / l.PW * u.h + (at + i) % l.PW * u.w];
                    p = copy;
                }
                uint32_t bits = 0;
                for (int i = 0; i < PIXELS; i += LANES) bits |= to_bits(load(p + i) < threshold) << i;
                low |= (uint64_t)(bits & 0xff) << 8 * (c - c0);
                high |= (uint64_t)(bits >> 8) << 8 * (c - c0);
            }
            low = transpose_bits(low);
            high = transpose_bits(high);
            uint8_t* k = keep + at * l.plane_bytes + c0 / 8;
            for (long i = 0; i < n; i++, k += l.plane_bytes) *k = (uint8_t)((i < 8 ? low : high) >> 8 * (i % 8));
        }
}

static void forward_image(const Layer& l, const Filters& f, const Image& image, const Image& out, Pooled o) {
    Scratch& s = scratch();
    const bool exact = may_overflow(l, f, image), direct = is_channels_last(out, l.O, l.PH, l.PW);
    const long columns = used_columns(l), K = l.KH * l.segment;
    const bool one_row = is_one_row(l, image, out), few = f.few && !exact && (one_row || columns >= LANES);
    if (few && is_plain(l) && out.w == 1)
        return forward_few(one_row ? in_one_row(l) : l, f.few, f.bias, image, out, l.planes ? o.masks : NULL);
    const FewFilters few_filters = {l.C, l.KH, l.KW, f.few, f.bias};
    const Planes planes = few ? padded_planes(l, image, s.image) : Planes{NULL, 0, 0};
    if (few && !o.masks && !l.dropout && l.disjoint && has_whole_windows(l) && out.w == 1)
        return forward_few_pooled(l, planes, few_filters, columns, out);
    const float* x = few ? NULL : padded_image(l, image, s.image, false);
    // Windows that share conv outputs are pooled when all rows are there; others strip by strip, where a strip has as
    // many pixels as it takes to be worth the filters' coming and going.
    const bool winograd = f.winograd && !few && !exact;
    const long PIXELS = winograd ? 128 : 64;
    long rows_of_strip = l.disjoint && columns ? (PIXELS - 1) / (columns * l.pool_stride_h) + 1 : l.PH;
    if (winograd) rows_of_strip = round_up(rows_of_strip, 2);
    if (rows_of_strip > l.PH) rows_of_strip = l.PH;
    float* z = s.strip.get<float>((l.disjoint ? rows_of_strip * l.pool_stride_h : l.OH) * columns * BLOCK);
    o.out = direct ? out.data : s.out.get<float>(rows_of_strip * l.PW * l.O);
    o.first = 0;
    if (o.masks && l.O % 32) memset(o.masks, 0, l.masks_bytes());
    for (long y = 0; y < l.PH; y += rows_of_strip) {
        const long end = y + rows_of_strip < l.PH ? y + rows_of_strip : l.PH;
        const long first = window_rows(l, y).begin, last = window_rows(l, end - 1).end;
        if (!direct) o.first = y * l.PW;
        if (few) {
            conv_few_rows(l, planes, few_filters, first, last, columns, z);
            for (long yy = y; yy < end; yy++) pool_row(l, o, z, first, columns, l.O, yy, 0, false);
        }
        const Tiles tiles(first, last, columns);
        const float* const v = winograd ? transform_image(l, x, tiles) : NULL;
        for (long b = 0; b < l.O && !few; b += BLOCK) {
            const long width = l.O - b <= LANES ? LANES : BLOCK;
            if (winograd) winograd_rows(l, v, f.winograd + b * places(l) * l.C, f.bias + b, tiles, width, z);
            else conv_rows(l, x, first, last, columns, f.forward + b * K, f.bias + b, z, width);
            for (long yy = y; yy < end; yy++) pool_row(l, o, z, first, columns, width, yy, b, exact);
        }
        if (!direct) {
            const Image strip = {out.data + y * out.h, out.c, out.h, out.w};
            from_channels_last(o.out, l.PW * l.O, strip, l.O, end - y, l.PW);
        }
    }
}

// out and masks (one row of masks_bytes per image, or NULL) for a batch. Returns false when memory is short.
static bool forward(const Layer& l, const Images& x, const Images& w, const float* bias, ptrdiff_t bias_step,
                    const Images& samples, const Images& out, uint8_t* masks) {
    static thread_local Filters filters;
    try {
        filters.set(l, w, bias, bias_step);
        filters.pack_forward(l);
        if (is_few(l) && x.w == 1) filters.few = pack_few(l, w, false, filters.few_buffer);
        else if (is_winograd(l)) filters.winograd = transform_filters(l, filters.forward, filters.winograd_buffer);
    } catch (const std::bad_alloc&) {
        return false;
    }
    const Filters& f = filters;
    const int threads = threads_for(l);
    const long bands = bands_of(l, threads);
    return parallel::in_turn(threads, l.N * bands, [&](long t) {
        const long i = t / bands;
        const Band b = band(l, t % bands, bands);
        Pooled o;
        o.masks = masks ? masks + i * l.masks_bytes() + b.masks() : NULL;
        o.keep = NULL;
        if (l.dropout) {
            uint8_t* keep = scratch().keep.get<uint8_t>(b.l.PH * l.PW * l.plane_bytes);
            keep_bits(b.l, b.of_output(samples[i]), keep);
            o.keep = keep;
        }
        forward_image(b.l, f, b.of_input(x[i]), b.of_output(out[i]), o);
        return true;
    });
}

}    // namespace conv
