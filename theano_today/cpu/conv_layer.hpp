// What forward and backward pass of a convolution layer share; see conv.hpp.
#pragma once
#include <float.h>
#include <math.h>
#include <stddef.h>
#include <stdlib.h>
#include "layer.hpp"
#include "parallel.hpp"
#include "simd.hpp"

namespace conv {

using namespace simd;

// A sum of many products is a sum of partial sums of at most about so many, which rounds less.
constexpr long PART = 64;

// ---- windows ----

// The rows (or columns) [begin, end) of the conv output that pooling window number i covers; `start` is where the
// window would begin without the image's border.
struct Span {
    long start, begin, end;
    Span(long i, long size, long stride, long pad, long n) {
        start = i * stride - pad;
        begin = start < 0 ? 0 : start;
        end = start + size > n ? n : start + size;
    }
};
static inline Span window_rows(const Layer& l, long y) {
    return Span(y, l.pool_h, l.pool_stride_h, l.pool_pad_h, l.OH);
}
static inline Span window_columns(const Layer& l, long x) {
    return Span(x, l.pool_w, l.pool_stride_w, l.pool_pad_w, l.OW);
}

// ---- bands ----

// Some rows of the layer's output, and what they need of its images: where there are more threads than images, each
// thread takes a band. (It is a layer of its own, with fewer rows.)
struct Band {
    Layer l;
    long input, output;    // its first rows

    explicit Band(const Layer& whole) : l(whole), input(0), output(0) {}

    // Rows [begin, end) of the output of `whole`.
    Band(const Layer& whole, long begin, long end) : l(whole), output(begin) {
        const long first = begin * whole.pool_stride_h, next = end * whole.pool_stride_h;
        long last = window_rows(whole, end - 1).end;    // conv outputs; those between windows are someone's, too
        if (last < next && next < whole.OH) last = next;
        if (end == whole.PH) last = whole.OH;
        const long top = first * whole.stride_h - whole.pad_top;
        const long bottom = (last - 1) * whole.stride_h + whole.KH - whole.pad_top;
        input = top > 0 ? top : 0;
        l.H = (bottom < whole.H ? bottom : whole.H) - input;
        l.pad_top = input - top, l.padded_h = bottom - top, l.pad_bottom = l.padded_h - l.pad_top - l.H;
        l.OH = last - first, l.PH = end - begin;
    }

    Image of_input(const Image& a) const { return Image{a.data + input * a.h, a.c, a.h, a.w}; }
    Image of_output(const Image& a) const { return Image{a.data + output * a.h, a.c, a.h, a.w}; }
    size_t masks() const { return output * l.PW * l.planes * l.plane_bytes; }
};

// Bands begin at even rows (see is_winograd).
static inline Band band(const Layer& l, long number, long bands) {
    const auto row = [&](long i) { return i == bands ? l.PH : l.PH * i / bands / 2 * 2; };
    return bands == 1 ? Band(l) : Band(l, row(number), row(number + 1));
}

// Multiplications that are worth a band.
#ifndef THEANO_TODAY_BAND
#define THEANO_TODAY_BAND 2e5
#endif

// Of an image.
static inline double multiplications(const Layer& l) { return (double)l.O * l.KH * l.segment * l.OH * l.OW; }

// How many threads there are for a layer: one where it is so small that others would not be awake in time.
static inline int threads_for(const Layer& l) {
    return l.N * multiplications(l) < 2 * THEANO_TODAY_BAND ? 1 : parallel::most_threads();
}

// How many bands an image is cut into.
static long bands_of(const Layer& l, int threads) {
    if (!l.N || threads < 2 * l.N || l.pool_pad_h) return 1;
    long bands = threads / l.N;
    const double most = multiplications(l) / THEANO_TODAY_BAND;
    if (bands > most) bands = (long)most;
    if (bands > l.PH / 2) bands = l.PH / 2;
    for (long b = 0; b < bands; b++)    // a band of zeros at the image's border is none
        if (band(l, b, bands).l.H < 1) return 1;
    return bands > 1 ? bands : 1;
}

// ---- memory ----

// Scratch memory that grows and is kept between calls. Throws std::bad_alloc: `forward` and `backward` catch it (within
// each thread: see parallel.hpp), and return false.
class Buffer {
    void* p = NULL;
    size_t size = 0;

   public:
    template <class T>
    T* get(size_t n) {
        size_t bytes = n * sizeof(T) + 256;    // whole vectors may be read past the end
        if (bytes > size) {
            free(p);
            p = NULL, size = 0;
            if (posix_memalign(&p, 64, bytes)) {
                p = NULL;
                throw std::bad_alloc();
            }
            size = bytes;
        }
        return (T*)p;
    }
    Buffer() {}
    ~Buffer() { free(p); }
    Buffer(const Buffer&) = delete;
};

// Each thread's own.
struct Scratch {
    Buffer image, strip, keep, out, planes, tiles, products;    // forward
    Buffer gradient, dense, dx, window, outputs, output_entries, filter_entries, ends, filter_offsets, exact;
};
static inline Scratch& scratch() {
    static thread_local Scratch s;
    return s;
}

// Copies an image to channels-last rows of `row` floats.
static void to_channels_last(const Image& a, long C, long H, long W, float* out, long row) {
    if (a.c == 1 || C == 1) {
        for (long y = 0; y < H; y++) {
            const float* p = a.data + y * a.h;
            if (a.w == C) memcpy(out + y * row, p, W * C * sizeof(float));
            else
                for (long x = 0; x < W; x++) memcpy(out + y * row + x * C, p + x * a.w, C * sizeof(float));
        }
        return;
    }
    if (a.w == 1 && a.h == W && row == W * C) return transpose(a.data, a.c, C, H * W, out, C);
    for (long y = 0; y < H; y++)
        if (a.w == 1) transpose(a.data + y * a.h, a.c, C, W, out + y * row, C);
        else
            for (long x = 0; x < W; x++)
                for (long c = 0; c < C; c++) out[y * row + x * C + c] = a.data[c * a.c + y * a.h + x * a.w];
}

// The way back.
static void from_channels_last(const float* in, long row, const Image& a, long C, long H, long W) {
    if (a.c == 1 && a.w == C) {
        for (long y = 0; y < H; y++) memcpy(a.data + y * a.h, in + y * row, W * C * sizeof(float));
        return;
    }
    if (a.w == 1 && a.h == W && row == W * C) return transpose(in, C, H * W, C, a.data, a.c);
    for (long y = 0; y < H; y++)
        if (a.w == 1) transpose(in + y * row, C, W, C, a.data + y * a.h, a.c);
        else
            for (long x = 0; x < W; x++)
                for (long c = 0; c < C; c++) a.data[c * a.c + y * a.h + x * a.w] = in[y * row + x * C + c];
}

// The layer's input image channels last, with its borders: where it lies if that will do, else a copy.
static const float* padded_image(const Layer& l, const Image& a, Buffer& buffer, bool whole_vectors) {
    bool padded = l.padded_h != l.H || l.padded_w != l.W;
    bool overrun = whole_vectors && l.segment % LANES;    // the last segment would be read past the array's end
    if (!padded && !overrun && is_channels_last(a, l.C, l.H, l.W)) return a.data;
    long row = l.padded_w * l.C;
    float* p = buffer.get<float>(l.padded_h * row + LANES);
    if (padded) memset(p, 0, l.padded_h * row * sizeof(float));
    memset(p + l.padded_h * row, 0, LANES * sizeof(float));
    to_channels_last(a, l.C, l.H, l.W, p + l.pad_top * row + l.pad_left * l.C, row);
    return p;
}

// ---- finite or not ----

// The largest absolute value, with NaN above infinity above all numbers, as the bits of a float (which, without the
// sign, order as integers do).
static uint32_t magnitude(const float* p, long n) {
    ivec m = {};
    long i = 0;
    for (; i + LANES <= n; i += LANES) {
        ivec v = (ivec)abs(load(p + i));
        m = v > m ? v : m;
    }
    uint32_t result = 0;
    for (int lane = 0; lane < LANES; lane++) result = (uint32_t)m[lane] > result ? m[lane] : result;
    for (; i < n; i++) {
        uint32_t v;
        memcpy(&v, p + i, 4);
        v &= 0x7fffffffu;
        result = v > result ? v : result;
    }
    return result;
}

static uint32_t magnitude(const Image& a, long C, long H, long W) {
    bool channels_first = (W == 1 || a.w == 1) && (H == 1 || a.h == W) && (C == 1 || a.c == H * W);
    if (channels_first || is_channels_last(a, C, H, W)) return magnitude(a.data, C * H * W);
    uint32_t result = 0;
    for (long c = 0; c < C; c++)
        for (long y = 0; y < H; y++)
            for (long x = 0; x < W; x++) {
                uint32_t v = magnitude(a.data + c * a.c + y * a.h + x * a.w, 1);
                result = v > result ? v : result;
            }
    return result;
}

static inline double as_number(uint32_t magnitude_bits) {
    float f;
    memcpy(&f, &magnitude_bits, 4);
    return f;
}

// ---- filters, packed ----

// For the forward pass: blocks of NR vec of filters, each [KH][KW][C][NR * LANES], so that the micro-kernel reads them
// in order. Missing filters at the end are zero.
//
// For the backward pass: rows [O][KH][segment_stride].
struct Filters {
    Images weights;         // [O][C][KH][KW] as they are given
    const float* few;       // see conv_few.hpp, or NULL
    const float* winograd;  // see conv_winograd.hpp, or NULL
    float *forward, *backward, *bias;
    double largest, largest_bias;
    Buffer forward_buffer, backward_buffer, bias_buffer, few_buffer, winograd_buffer, contiguous, places;

    // Weights, bias and what bounds them; the rest is packed where it is needed.
    void set(const Layer& l, const Images& w, const float* given_bias, ptrdiff_t bias_step);
    void pack_forward(const Layer& l);
    void pack_backward(const Layer& l);
};

constexpr int BLOCK = 2 * LANES;    // filters in a block of the micro-kernel, NR = 2 (the last block may have NR = 1)

static inline float weight(const Layer& l, const Images& w, long o, long c, long i, long j) {
    if (l.flip) i = l.KH - 1 - i, j = l.KW - 1 - j;
    return w.data[o * w.n + c * w.c + i * w.h + j * w.w];
}

// Where the weights of a filter lie in its packed rows: weight (c * KH + i) * KW + j at places[that], in rows of `row`.
static int32_t* places_of_weights(const Layer& l, long row, Buffer& buffer) {
    int32_t *places = buffer.get<int32_t>(l.C * l.KH * l.KW), *place = places;
    for (long c = 0; c < l.C; c++)
        for (long i = 0; i < l.KH; i++)
            for (long j = 0; j < l.KW; j++)
                *place++ = (int32_t)((l.flip ? l.KH - 1 - i : i) * row + (l.flip ? l.KW - 1 - j : j) * l.C + c);
    return places;
}

inline void Filters::set(const Layer& l, const Images& w, const float* given_bias, ptrdiff_t bias_step) {
    weights = w;
    few = winograd = forward = backward = NULL;
    const long K = l.KH * l.segment;
    const bool whole_rows = (l.KW == 1 || w.w == 1) && (l.KH == 1 || w.h == l.KW) && (l.C == 1 || w.c == l.KH * l.KW);
    if (!whole_rows || w.n < K) {
        float *copy = contiguous.get<float>(l.O * K), *to = copy;
        for (long o = 0; o < l.O; o++)
            for (long c = 0; c < l.C; c++)
                for (long i = 0; i < l.KH; i++)
                    for (long j = 0; j < l.KW; j++) *to++ = w.data[o * w.n + c * w.c + i * w.h + j * w.w];
        weights = Images{copy, K, l.KH * l.KW, l.KW, 1};
    }
    bias = bias_buffer.get<float>(round_up(l.O, BLOCK));
    for (long o = 0; o < round_up(l.O, BLOCK); o++) bias[o] = l.bias && o < l.O ? given_bias[o * bias_step] : 0.f;
    uint32_t m = 0;
    for (long o = 0; o < l.O; o++) {
        const uint32_t v = magnitude(weights.data + o * weights.n, K);
        m = v > m ? v : m;
    }
    largest = as_number(m);
    largest_bias = as_number(magnitude(bias, l.O));
}

inline void Filters::pack_forward(const Layer& l) {
    const long K = l.KH * l.segment;
    const int32_t* place = places_of_weights(l, l.segment, places);
    float* fw = forward = forward_buffer.get<float>(round_up(l.O, BLOCK) * K);
    alignas(32) float eight[64];
    for (long b = 0; b < l.O; b += BLOCK, fw += K * BLOCK) {
        const long width = l.O - b <= LANES ? LANES : BLOCK;
        for (long o = 0; o < width; o += 8) {
            const long filters = l.O - b - o < 8 ? l.O - b - o : 8, to = width - o < 8 ? width - o : 8;
            const float* from = weights.data + (b + o) * weights.n;
            for (long k = 0; k < K; k += 8) {
                const long n = K - k < 8 ? K - k : 8;
                if (filters == 8 && n == 8) transpose_8x8(from + k, weights.n, eight, 8);
                else
                    for (long i = 0; i < n; i++)
                        for (long f = 0; f < 8; f++) eight[8 * i + f] = f < filters ? from[f * weights.n + k + i] : 0.f;
                for (long i = 0; i < n; i++) memcpy(fw + place[k + i] * width + o, eight + 8 * i, to * sizeof(float));
            }
        }
    }
}

inline void Filters::pack_backward(const Layer& l) {
    const long K = l.KH * l.segment, filter = l.KH * l.segment_stride;
    const int32_t* place = places_of_weights(l, l.segment_stride, places);
    backward = backward_buffer.get<float>(l.O * filter);
    if (l.segment != l.segment_stride) memset(backward, 0, l.O * filter * sizeof(float));
    for (long o = 0; o < l.O; o++)
        for (long k = 0; k < K; k++) backward[o * filter + place[k]] = weights.data[o * weights.n + k];
}

// Whether the conv outputs of an image could be anything but finite.
static bool may_overflow(const Layer& l, const Filters& f, const Image& x) {
    double bound = as_number(magnitude(x, l.C, l.H, l.W)) * f.largest * l.KH * l.segment + f.largest_bias;
    return !(bound < FLT_MAX / 64);    // also where the bound is NaN; 64: what is summed on the way may be larger
}

}    // namespace conv
