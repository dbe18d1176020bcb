// A convolution layer and its images, as they are given to a kernel; see conv.hpp.
#pragma once
#include <stddef.h>
#include <stdint.h>
#include "lanes.hpp"

namespace conv {

// ---- the layer ----

enum Relu {
    RELU_NONE,            // (the order is that of RELUS in conv.py)
    RELU_HALF,            // 0.5 * (z + |z|), Lasagne's and Theano's: the slope at 0 is 0.5, and -inf gives NaN
    RELU_MAXIMUM,         // maximum(z, 0): the slope at 0 is 1, at NaN 0
    RELU_MAXIMUM_FROM,    // maximum(0, z): the slope at 0 is 0, at NaN 1
};

// Sizes and options of one layer. The first block is set by the caller, the second by `complete`.
struct Layer {
    long N, C, H, W;                                                  // images, channels, rows, columns
    long O, KH, KW;                                                   // filters and their size
    long stride_h, stride_w, pad_top, pad_bottom, pad_left, pad_right;
    bool flip;                                                        // a true convolution; else a correlation
    long pool_h, pool_w, pool_stride_h, pool_stride_w, pool_pad_h, pool_pad_w;    // no pooling: 1, 1, 1, 1, 0, 0
    bool ignore_border;
    int relu;
    bool bias, dropout;
    float threshold, scale;                                           // keep where sample < threshold, times scale

    long padded_h, padded_w;                                          // the image with its borders
    long OH, OW;                                                      // conv output
    long PH, PW;                                                      // pooled output
    long segment;                                                     // floats in one row of a filter: KW * C
    long segment_stride;                                              // the same, rounded up to whole vec
    long O_stride;                                                    // O rounded up to whole vec
    long positions;                                                   // in a pooling window
    long zero_plane, keep_plane, planes;                              // numbers of bit planes, see `masks`
    long plane_bytes;                                                 // one bit per filter, in whole 32-bit words
    bool disjoint;                                                    // no conv output lies in two pooling windows

    // Bits saved for one image: [PH * PW pixels][planes][plane_bytes], where the planes are
    //   0 .. positions - 1   the gradient flows to this position of the window
    //   zero_plane           with ReLU: the maximum is exactly 0, where the slope is special
    //   keep_plane           with dropout: not dropped
    long masks_bytes() const { return PH * PW * planes * plane_bytes; }
    float slope_at_zero() const { return relu == RELU_HALF ? 0.5f : relu == RELU_MAXIMUM ? 1.f : 0.f; }
};

static inline long round_up(long n, long unit) { return (n + unit - 1) / unit * unit; }

static inline long pooled_size(long n, long size, long stride, long pad, bool ignore_border) {
    n += 2 * pad;
    if (ignore_border) return n < size ? 0 : (n - size) / stride + 1;
    if (stride >= size) return (n - 1) / stride + 1;
    long rest = n - 1 - size + stride;
    return (rest > 0 ? rest / stride : 0) + 1;
}

// Sets the second block of fields. Returns what is wrong with the first, or NULL.
static inline const char* complete(Layer& l) {
    l.padded_h = l.H + l.pad_top + l.pad_bottom;
    l.padded_w = l.W + l.pad_left + l.pad_right;
    if (l.KH < 1 || l.KW < 1) return "convolution with an empty filter";
    if (l.padded_h < l.KH || l.padded_w < l.KW) return "convolution with a filter larger than the image";
    l.OH = (l.padded_h - l.KH) / l.stride_h + 1;
    l.OW = (l.padded_w - l.KW) / l.stride_w + 1;
    l.PH = pooled_size(l.OH, l.pool_h, l.pool_stride_h, l.pool_pad_h, l.ignore_border);
    l.PW = pooled_size(l.OW, l.pool_w, l.pool_stride_w, l.pool_pad_w, l.ignore_border);
    l.segment = l.KW * l.C;
    l.segment_stride = round_up(l.segment, simd::LANES);
    l.O_stride = round_up(l.O, simd::LANES);
    l.positions = l.pool_h * l.pool_w;
    l.planes = l.positions > 1 || l.relu || l.dropout ? l.positions : 0;    // else all gradients flow: no masks
    l.zero_plane = l.planes;
    l.planes += l.relu != RELU_NONE;
    l.keep_plane = l.planes;
    l.planes += l.dropout;
    l.plane_bytes = round_up(l.O, 32) / 8;
    l.disjoint = l.pool_stride_h >= l.pool_h && l.pool_stride_w >= l.pool_w;
    if (l.padded_h * l.padded_w * l.C >= INT32_MAX / 2 || l.O * l.KH * l.segment_stride >= INT32_MAX / 2)
        return "convolution of an image or with filters too large for 32-bit offsets";
    return NULL;
}

// ---- images ----

// A strided 3-d array of floats: one image.
struct Image {
    float* data;
    ptrdiff_t c, h, w;    // distances between neighbours, in floats
};

// A strided batch of them.
struct Images {
    float* data;
    ptrdiff_t n, c, h, w;
    Image operator[](long i) const { return Image{data + i * n, c, h, w}; }
};

// Whether an image is channels last without gaps, so that kernels can use it as it is.
static inline bool is_channels_last(const Image& a, long C, long H, long W) {
    return (C == 1 || a.c == 1) && (W == 1 || a.w == C) && (H == 1 || a.h == W * C);
}

}    // namespace conv
