// The gradients of a convolution layer; see conv.hpp.
#pragma once
#include "conv_forward.hpp"

namespace conv {

// ---- lists of gradients that are not zero ----

// One gradient and where its partner lies: the row of a filter (for dx) or the window of the image (for dw).
struct Entry {
    float value;
    int32_t offset;
};

// The micro-kernel of both gradients: R rows x V vec, accumulated in registers over a list.
//
//     out[r][:]  +=  sum over the list:  value * base[offset + r * base_row + :]        r = 0 .. R - 1
//
// For dx, `out` is the window of the image's gradient that one conv output saw, and the list names the filters that
// were alive there. For dw, `out` is one filter's gradient, and the list names the windows where it was alive.
template <int R, int V>
struct ListKernel {
    typedef void (*Function)(const Entry*, long, const float*, long, float*, long);

    static void run(const Entry* list, long n, const float* base, long base_row, float* out, long out_row) {
        vec acc[R][V] = {};
        for (long e = 0; e < n; e++) {
            const vec g = broadcast(list[e].value);
            const float* p = base + list[e].offset;
#pragma GCC unroll 8
            for (int r = 0; r < R; r++)
#pragma GCC unroll 16
                for (int v = 0; v < V; v++) acc[r][v] = fma(g, load(p + r * base_row + v * LANES), acc[r][v]);
        }
        for (int r = 0; r < R; r++)
            for (int v = 0; v < V; v++) add_to(out + r * out_row + v * LANES, acc[r][v]);
    }
};

// The micro-kernel of dw for filters of a few floats only (a gray image's 3 x 3, say), which would leave the vec above
// half empty. Here the lanes are filters, and no gradient is left out: along a row of conv outputs,
//
//     out[r][s][:]  +=  sum over x:  image[x * image_pixel + r * image_row + s] * dz[x * dz_pixel + :]
//
// for R rows of the filter and S floats in each.
template <int R, int S>
struct RowKernel {
    typedef void (*Function)(const float*, long, const float*, long, long, long, float*, long, long);

    static void run(const float* dz, long dz_pixel, const float* image, long image_row, long image_pixel, long n,
                    float* out, long out_row, long out_float) {
        for (; n > 0; n -= PART) {
            vec acc[R][S] = {};
            for (long x = 0; x < n && x < PART; x++, dz += dz_pixel, image += image_pixel) {
                const vec g = load(dz);
#pragma GCC unroll 8
                for (int r = 0; r < R; r++)
#pragma GCC unroll 16
                    for (int s = 0; s < S; s++) acc[r][s] = fma(g, broadcast(image[r * image_row + s]), acc[r][s]);
            }
            for (int r = 0; r < R; r++)
                for (int s = 0; s < S; s++) add_to(out + r * out_row + s * out_float, acc[r][s]);
        }
    }
};

// Accumulators of these kernels: enough to hide the latency of fma, few enough to leave registers for the operands.
constexpr int ACCUMULATORS = REGISTERS * 3 / 4 > 12 ? 12 : REGISTERS * 3 / 4 < 1 ? 1 : REGISTERS * 3 / 4;
constexpr int MOST_ROWS = 5;
constexpr int most_columns(int rows) { return rows ? ACCUMULATORS / rows : 0; }

// Kernel<r, v>::run for r <= R and v <= most_columns(r) that are known at run time.
template <template <int, int> class Kernel, int R, int V>
struct Choice {
    static typename Kernel<1, 1>::Function find(int r, int v) {
        if (r < R) return Choice<Kernel, R - 1, most_columns(R - 1)>::find(r, v);
        return v == V ? Kernel<R, V>::run : Choice<Kernel, R, V - 1>::find(r, v);
    }
};
template <template <int, int> class Kernel, int R>
struct Choice<Kernel, R, 0> {
    static typename Kernel<1, 1>::Function find(int r, int v) {
        return Choice<Kernel, R - 1, most_columns(R - 1)>::find(r, v);
    }
};
template <template <int, int> class Kernel>
struct Choice<Kernel, 0, 0> {
    static typename Kernel<1, 1>::Function find(int, int) { return NULL; }
};

// A filter of rows x columns (vec or floats) cut into pieces that fit the accumulators.
template <template <int, int> class Kernel>
class Pieces {
    Buffer buffer;

   public:
    struct Piece {
        typename Kernel<1, 1>::Function run;
        long row, column;      // where it begins
        int rows, columns;
    };
    Piece* piece;
    int count;

    void plan(long rows, long columns) {
        count = 0;
        if (!columns) return;    // an image without channels
        const long cuts = (columns + ACCUMULATORS - 1) / ACCUMULATORS;
        long height = 1;
        if (cuts == 1) height = ACCUMULATORS / columns < MOST_ROWS ? ACCUMULATORS / columns : MOST_ROWS;
        piece = buffer.get<Piece>(rows * cuts);
        for (long i = 0; i < rows; i += height)
            for (long c = 0; c < cuts; c++) {
                const long begin = columns * c / cuts, end = columns * (c + 1) / cuts;
                const int h = (int)(rows - i < height ? rows - i : height);
                const auto run = Choice<Kernel, MOST_ROWS, most_columns(MOST_ROWS)>::find(h, (int)(end - begin));
                piece[count++] = Piece{run, i, begin, h, (int)(end - begin)};
            }
    }
};

// How the gradients of a layer are cut.
struct Plan {
    Pieces<ListKernel> lists;
    Pieces<RowKernel> rows;
    bool small;    // dw by RowKernel: a filter is so small that its lists would cost more than they save

    void make(const Layer& l, bool few_filters) {
        const bool half_empty = 2 * l.segment <= l.segment_stride && l.positions == 1;
        small = few_filters || l.KH * l.segment <= 32 || half_empty;
        lists.plan(l.KH, l.segment_stride / LANES);
        if (small) rows.plan(l.KH, l.segment);
    }
};

// out[rows][..out_row] += sum over the list: value * base[offset + [rows][..base_row]], both from where the piece begins.
SIMD_INLINE void accumulate(const Pieces<ListKernel>::Piece& p, const Entry* list, long n, const float* base,
                            long base_row, float* out, long out_row) {
    if (n <= PART) return p.run(list, n, base, base_row, out, out_row);
    const long width = p.columns * LANES;
    alignas(64) float sum[ACCUMULATORS * LANES] = {};
    for (; n > 0; n -= PART, list += PART) p.run(list, n < PART ? n : PART, base, base_row, sum, width);
    for (int r = 0; r < p.rows; r++)
        for (long k = 0; k < width; k += LANES) add_to(out + r * out_row + k, load(sum + r * width + k));
}

// The same of a whole filter, [KH].
static void accumulate(const Pieces<ListKernel>& pieces, const Entry* list, long n, const float* base, long base_row,
                       float* out, long out_row) {
    for (int i = 0; i < pieces.count; i++) {
        const Pieces<ListKernel>::Piece& p = pieces.piece[i];
        const long at = p.column * LANES;
        accumulate(p, list, n, base + p.row * base_row + at, base_row, out + p.row * out_row + at, out_row);
    }
}

// ---- from the layer's output to the conv output ----

// The gradient of the pooled output before dropout, and at an exact zero of ReLU its share.
SIMD_INLINE vec pooled_gradient(const Layer& l, const float* g, const uint8_t* planes, long channel) {
    vec v = load(g + channel);
    if (l.dropout) v = v * l.scale;
    if (l.relu && l.relu != RELU_MAXIMUM) {
        mask zeros = load_mask(planes + l.zero_plane * l.plane_bytes, (int)channel);
        v = select(zeros, v * l.slope_at_zero(), v);
    }
    return v;
}

// The gradient of every conv output, dz[OH][OW][O_stride], for overlapping pooling windows.
static void dense_gradient(const Layer& l, const float* g, const uint8_t* masks, float* dz) {
    memset(dz, 0, l.OH * l.OW * l.O_stride * sizeof(float));
    for (long y = 0; y < l.PH; y++)
        for (long x = 0; x < l.PW; x++) {
            const Span rows = window_rows(l, y), columns = window_columns(l, x);
            const long at = y * l.PW + x;
            const uint8_t* planes = masks + at * l.planes * l.plane_bytes;
            for (long c = 0; c < l.O; c += LANES) {
                const vec v = pooled_gradient(l, g + at * l.O, planes, c);
                for (long i = rows.begin; i < rows.end; i++)
                    for (long j = columns.begin; j < columns.end; j++) {
                        const long position = (i - rows.start) * l.pool_w + j - columns.start;
                        float* d = dz + (i * l.OW + j) * l.O_stride + c;
                        add_to(d, select(load_bits(planes + position * l.plane_bytes, (int)c), v));
                    }
            }
        }
}

// The same where NaN or infinity may occur: the conv output is computed anew and every step is Theano's.
static void dense_gradient_exact(const Layer& l, const Filters& f, const float* image, const float* g,
                                 const uint8_t* masks, float* dz) {
    Scratch& s = scratch();
    static thread_local Filters again;
    again.set(l, f.weights, f.bias, 1);
    again.pack_forward(l);
    const long K = l.KH * l.segment;
    float* z = s.strip.get<float>(l.OH * l.OW * BLOCK);
    memset(dz, 0, l.OH * l.OW * l.O_stride * sizeof(float));
    for (long c = 0; c < l.O; c += LANES) {
        const long b = c / BLOCK * BLOCK, width = l.O - b <= LANES ? LANES : BLOCK;
        if (c == b) conv_rows(l, image, 0, l.OH, l.OW, again.forward + b * K, f.bias + b, z, width);
        const float* zc = z + (c - b);
        for (long y = 0; y < l.PH; y++)
            for (long x = 0; x < l.PW; x++) {
                const Span rows = window_rows(l, y), columns = window_columns(l, x);
                const long at = y * l.PW + x;
                vec v = load(g + at * l.O + c);
                if (l.dropout) {
                    const uint8_t* keep = masks + (at * l.planes + l.keep_plane) * l.plane_bytes;
                    v = v * select(load_bits(keep, (int)c), broadcast(1.f)) * l.scale;
                }
                vec m = relu_exact(l.relu, load(zc + (rows.begin * l.OW + columns.begin) * width));
                for (long i = rows.begin; i < rows.end; i++)
                    for (long j = columns.begin; j < columns.end; j++)
                        m = max(relu_exact(l.relu, load(zc + (i * l.OW + j) * width)), m);
                for (long i = rows.begin; i < rows.end; i++)
                    for (long j = columns.begin; j < columns.end; j++) {
                        const vec r = relu_exact(l.relu, load(zc + (i * l.OW + j) * width));
                        float* d = dz + (i * l.OW + j) * l.O_stride + c;
                        add_to(d, l.positions == 1 ? v : select(to_bits(r == m), v));
                    }
            }
        if (l.relu)
            for (long p = 0; p < l.OH * l.OW; p++) {
                float* d = dz + p * l.O_stride + c;
                const vec zp = load(zc + p * width);
                const vec at_nan = l.relu == RELU_HALF ? zp : broadcast(l.relu == RELU_MAXIMUM ? 0.f : 1.f);
                vec slope = select(to_bits(zp > zero()), broadcast(1.f));
                slope = select(to_bits(zp == zero()), broadcast(l.slope_at_zero()), slope);
                slope = select(to_bits(zp != zp), at_nan, slope);
                store(d, load(d) * slope);
            }
    }
}

// ---- from the conv output to image, filters and bias ----
//
// A walk over one image goes through its conv outputs, a strip of rows at a time:
//
//     windows / dense ──► Strip: lists ──► add_to_image     dx
//            │                        └──► Sums::add        dw, where filters are large
//            └──── rows of gradients ────► Sums::add_row    dw, where they are small
//
// Garbage lanes: vectors of filters run over O rounded up to whole vec (O_stride), so reading a pixel's gradients may
// run into the next pixel's. The lanes from O on never count: in all bits they are zero, and sums of them are not read.

// The gradients of one conv output that are not zero, and the pixels that it saw.
struct Output {
    Entry *begin, *end;
    int32_t offset;
};

// The gradients of a strip that are not zero, in lists: by conv output for dx, by filter for dw.
class Strip {
    const long O, filter_capacity;
    const uint32_t* filter_offsets;    // of the filters in Filters::backward, [O_stride]

    // Calls f(filter) for each bit.
    template <class Function>
    SIMD_INLINE void for_each(const uint8_t* bytes, long filters, Function f) {
        for (long c = 0; c < filters; c += 32) {
            uint32_t bits;
            memcpy(&bits, bytes + c / 8, 4);
            for (; bits; bits &= bits - 1) f((int)c + __builtin_ctz(bits));
        }
    }

   public:
    const bool by_output, by_filter;
    Output *outputs, *outputs_end;
    Entry *output_entries, *filter_entries, **ends;    // ends[o]: of the list of filter o

    // For at most `most` conv outputs.
    Strip(const Layer& l, long most, bool by_output, bool by_filter)
        : O(l.O), filter_capacity(most + 8),    // + 8: lists do not all begin at the same place in the cache
          by_output(by_output), by_filter(by_filter) {
        Scratch& s = scratch();
        uint32_t* offsets = s.filter_offsets.get<uint32_t>(l.O_stride);
        for (long o = 0; o < l.O_stride; o++) offsets[o] = (uint32_t)(o * l.KH * l.segment_stride);
        filter_offsets = offsets;
        output_entries = s.output_entries.get<Entry>(by_output ? O * most + LANES : 0);
        outputs = s.outputs.get<Output>(most + 1) + 1;    // outputs[-1].end: where the first list begins
        filter_entries = s.filter_entries.get<Entry>(by_filter ? O * filter_capacity : 0);
        ends = s.ends.get<Entry*>(O);
        clear();
    }

    void clear() {
        outputs_end = outputs;
        outputs_end[-1].end = output_entries;
        for (long o = 0; o < O; o++) ends[o] = list(o);
    }

    Entry* list(long filter) const { return filter_entries + filter * filter_capacity; }

    // The list of one conv output: gradients `values` of the filters in `bits`.
    void add_output(const float* values, const uint8_t* bits, int32_t offset) {
        Entry* const first = outputs_end[-1].end;
        Entry* last = first;
        for (long c = 0; c < O; c += LANES)
            last += compress_pairs(load_bits(bits, (int)c), load(values + c), load(filter_offsets + c), last);
        if (last != first) *outputs_end++ = Output{first, last, offset};
    }

    // The same gradients for the lists of their filters: all from one conv output, or each from its own.
    void add_to_filters(const float* values, const uint8_t* bits, int32_t offset) {
        Entry** const end = ends;
        for_each(bits, O, [=](int o) { *end[o]++ = Entry{values[o], offset}; });
    }
    void add_to_filters(const float* values, const uint8_t* bits, const int32_t* offsets) {
        Entry** const end = ends;
        for_each(bits, O, [=](int o) { *end[o]++ = Entry{values[o], offsets[o]}; });
    }
};

// dx of a strip, added to an image with rows of `row` floats.
static void add_to_image(const Layer& l, const Filters& f, const Plan& plan, const Strip& strip, long row, float* dx) {
    // Piece by piece: that part of all filters stays in the cache.
    for (int i = 0; i < plan.lists.count; i++) {
        const Pieces<ListKernel>::Piece& p = plan.lists.piece[i];
        const float* base = f.backward + p.row * l.segment_stride + p.column * LANES;
        float* to = dx + p.row * row + p.column * LANES;
        for (const Output* o = strip.outputs; o != strip.outputs_end; o++)
            accumulate(p, o->begin, o->end - o->begin, base, l.segment_stride, to + o->offset, row);
    }
}

// The same without the zeros that fill a row of the filter up to whole vectors: NaN * 0 must not reach the next pixel.
static void add_to_image_exact(const Layer& l, const Filters& f, const Plan& plan, const Strip& strip, long row,
                               float* dx) {
    const long filter = l.KH * l.segment_stride;
    float* sum = scratch().exact.get<float>(filter);
    for (const Output* o = strip.outputs; o != strip.outputs_end; o++) {
        memset(sum, 0, filter * sizeof(float));
        accumulate(plan.lists, o->begin, o->end - o->begin, f.backward, l.segment_stride, sum, l.segment_stride);
        for (long i = 0; i < l.KH; i++)
            for (long k = 0; k < l.segment; k++) dx[o->offset + i * row + k] += sum[i * l.segment_stride + k];
    }
}

// One thread's sums over its images.
//
// The gradients of some conv outputs are added up in float32, then that part of the sum goes on to float64: the error
// does not grow with the number of images and pixels. (db is summed in float64 as Theano does.)
class Sums {
    const Layer& l;
    const Plan& plan;
    float* part;      // of dw: [O][KH][segment_stride], or with Plan::small [KH * segment][O_stride]
    double* whole;    // the same
    long outputs = 0;
    const long most;

   public:
    double* db;       // [O_stride]

    static long size(const Layer& l, const Plan& plan) {
        return plan.small ? l.KH * l.segment * l.O_stride : l.O * l.KH * l.segment_stride;
    }
    static long memory(const Layer& l, const Plan& plan) { return 3 * size(l, plan) + 2 * l.O_stride; }    // floats

    // Zeros, in `memory` floats.
    Sums(const Layer& l, const Plan& plan, double* memory)
        : l(l), plan(plan), most(plan.small ? 256 : size(l, plan) > 100000 ? 2048 : 1024) {    // conv outputs
        db = memory;
        whole = db + l.O_stride;
        part = (float*)(whole + size(l, plan));
        memset(memory, 0, Sums::memory(l, plan) * sizeof(float));
    }

    // The next `n` conv outputs are about to be added.
    void begin(long n) {
        outputs += n;
        if (outputs <= most) return;
        finish();
        outputs = n;
    }
    void finish() {
        const long n = size(l, plan);
        for (long i = 0; i < n; i++) whole[i] += part[i];
        memset(part, 0, n * sizeof(float));
    }

    // From the lists of a strip.
    void add(const Strip& strip, const float* image, long row) {
        const long filter = l.KH * l.segment_stride;
        for (long o = 0; o < l.O; o++)
            if (strip.ends[o] != strip.list(o))
                accumulate(plan.lists, strip.list(o), strip.ends[o] - strip.list(o), image, row, part + o * filter,
                           l.segment_stride);
    }

    // From one row of gradients, dz[columns][pixel floats], whose conv outputs saw `image`.
    void add_row(const float* dz, long columns, long pixel, const float* image, long row) {
        begin(columns);
        for (long c = 0; c < l.O; c += LANES)
            for (int i = 0; i < plan.rows.count; i++) {
                const Pieces<RowKernel>::Piece& p = plan.rows.piece[i];
                p.run(dz + c, pixel, image + p.row * row + p.column, row, l.stride_w * l.C, columns,
                      part + (p.row * l.segment + p.column) * l.O_stride + c, l.segment * l.O_stride, l.O_stride);
            }
    }

    // A whole image, or a band, of a layer of few filters.
    void add(const Layer& band, const FewGradients& dz, const Planes& image) {
        few_dw(band, dz, image, whole, l.O_stride);
    }

    // What is in the memory of sums that are finished: dw of a filter, from where `step` and Filters' places lead, and db.
    static const double* dw(const Layer& l, const Plan& plan, const double* memory, long o) {
        return memory + l.O_stride + (plan.small ? o : o * l.KH * l.segment_stride);
    }
    static long step(const Layer& l, const Plan& plan) { return plan.small ? l.O_stride : 1; }
    static double db_of(const double* memory, long o) { return memory[o]; }
};

// The gradient of an image's output, [PH][PW][O] with whole vectors to be read, some rows at a time.
class GradientRows {
    const Layer& l;
    const Image g;
    const bool as_it_is;
    long begin = 0, end = 0;    // of the rows in `copy`
    float* copy = NULL;

   public:
    GradientRows(const Layer& l, const Image& g)
        : l(l), g(g), as_it_is(l.O % LANES == 0 && is_channels_last(g, l.O, l.PH, l.PW)) {}

    // Row y; rows are asked for in their order.
    const float* row(long y) {
        if (as_it_is) return g.data + y * l.PW * l.O;
        if (y == end) {
            const long FLOATS = 16 << 10;
            const long rows = FLOATS / (l.PW * l.O + 1) + 1;
            begin = y, end = y + rows < l.PH ? y + rows : l.PH;
            copy = scratch().gradient.get<float>((end - begin) * l.PW * l.O + LANES);
            to_channels_last(Image{g.data + y * g.h, g.c, g.h, g.w}, l.O, end - begin, l.PW, copy, l.PW * l.O);
        }
        return copy + (y - begin) * l.PW * l.O;
    }

    // All rows.
    const float* all() {
        if (as_it_is) return g.data;
        copy = scratch().gradient.get<float>(l.PH * l.PW * l.O + LANES);
        to_channels_last(g, l.O, l.PH, l.PW, copy, l.PW * l.O);
        return copy;
    }
};

// The walk over the conv outputs of one image.
class Walk {
    const Layer& l;
    const Filters& f;
    const Plan& plan;
    const float* image;
    float* const dx;        // or NULL
    Sums& sums;
    const bool with_dw;
    const bool exact;
    const long row;         // floats in a row of the padded image

    // Of one pooling window, for all filters:
    struct Window {
        float* values;      // the gradient, [O_stride]
        int32_t* offsets;   // of the pixels that the maximum saw, [O_stride]
        double* db;         // sums of the gradients, [O_stride]
        uint8_t* alive;     // the filters whose gradient is not zero, [plane_bytes]
        float* part;        // a part of db, [O_stride]
    };

    int32_t offset_of(long y, long x) const { return (int32_t)(y * l.stride_h * row + x * l.stride_w * l.C); }

    Strip strip(long most) const { return Strip(l, most, dx != NULL, with_dw && !plan.small); }

    Window window() const {
        float* p = scratch().window.get<float>(3 * l.O_stride + l.plane_bytes);
        memset(p, 0, 3 * l.O_stride * sizeof(float) + l.plane_bytes);
        return Window{p, (int32_t*)(p + l.O_stride), sums.db, (uint8_t*)(p + 3 * l.O_stride), p + 2 * l.O_stride};
    }

    // How many rows of `columns` windows, of `height` conv rows each, make a strip. That
    // part of the image shall stay in the first-level cache, but lists that are short are not worth their filter's
    // coming and going.
    long strip_rows(long rows, long columns, long height) const {
        const long L1 = 16 << 10, SHORT = 64, MOST = 256;
        const long bytes = row * (long)sizeof(float) * height * l.stride_h;
        long n = bytes ? L1 / bytes : rows;
        if (n * columns < SHORT && columns) n = (SHORT + columns - 1) / columns;
        if (n * columns > MOST) n = MOST / columns;
        return n < 1 ? 1 : n > rows ? rows : n;
    }

    void finish_strip(Strip& strip, long outputs) {
        if (dx) {
            if (exact && l.segment != l.segment_stride) add_to_image_exact(l, f, plan, strip, row, dx);
            else add_to_image(l, f, plan, strip, row, dx);
        }
        if (strip.by_filter) {
            sums.begin(outputs);
            sums.add(strip, image, row);
        }
        strip.clear();
    }

    // One vec of filters of a pooling window, for `w` (without `lists` for its db only), and the gradients of its conv
    // outputs to dz[row][column][O_stride] if dz is not NULL. Returns the filters that have more than one maximum. H
    // and W are the window's size where it is known at compile time and lies within the image, else 0.
    template <int H, int W>
    SIMD_INLINE mask window_vec(const Layer& l, const float* g, const uint8_t* planes, const Span& rows,
                                const Span& columns, long c, int32_t offset, int32_t pixel, int32_t line,
                                const Window& to, bool lists, float* dz, long dz_line) {
        const int h = H ? H : (int)(rows.end - rows.begin), w = W ? W : (int)(columns.end - columns.begin);
        const vec v = pooled_gradient(l, g, planes, c);
        const long first = (rows.begin - rows.start) * l.pool_w + columns.begin - columns.start;    // position
        const uint8_t* plane = planes + first * l.plane_bytes;
        vec sum = {}, offsets = {};
        mask any = {}, ties = {};
        if (dz) dz += columns.begin * l.O_stride + c;
        for (int i = 0; i < h; i++)
            for (int j = 0; j < w; j++) {
                const mask is_max = load_mask(plane + (i * (W ? W : l.pool_w) + j) * l.plane_bytes, (int)c);
                const vec here = select(is_max, v);
                sum += here;
                offsets = select(is_max, (vec)broadcast((uint32_t)(offset + i * line + j * pixel)), offsets);
                ties |= any & is_max;
                any |= is_max;
                if (dz) store(dz + i * dz_line + j * l.O_stride, here);
            }
        add_to(to.db + c, sum);
        if (!lists) return ties;
        store(to.values + c, v);
        store((float*)to.offsets + c, offsets);
        store_bits(to.alive, (int)c, to_bits(any));
        return ties;
    }

    // A row of windows of one position each, for what `window_row` does: without pooling.
    void plain_row(long y, const float* g, const uint8_t* masks, const Window& window, Strip& strip, float* dz) const {
        const Layer l = this->l;    // see pool_row
        const bool by_output = strip.by_output, by_filter = strip.by_filter;
        for (long begin = 0; begin < l.PW; begin += PART) {
            const long end = begin + PART < l.PW ? begin + PART : l.PW;
            memset(window.part, 0, l.O_stride * sizeof(float));
            for (long x = begin; x < end; x++) {
                const uint8_t* planes = masks + (y * l.PW + x) * l.planes * l.plane_bytes;
                float* values = dz ? dz + x * l.O_stride : window.values;
                for (long c = 0; c < l.O; c += LANES) {
                    const mask flows = load_mask(planes, (int)c);
                    const vec here = select(flows, pooled_gradient(l, g + x * l.O, planes, c));
                    add_to(window.part + c, here);
                    store(values + c, here);
                }
                if (by_filter) strip.add_to_filters(values, planes, offset_of(y, x));
                if (by_output) strip.add_output(values, planes, offset_of(y, x));
            }
            for (long c = 0; c < l.O; c += LANES) add_to(window.db + c, load(window.part + c));
        }
    }

    template <int H, int W>
    void window_row(long y, const float* g, const uint8_t* masks, const Window& window, Strip& strip, float* dz,
                    long dz_line) const {
        const Layer l = this->l;    // see pool_row
        const Window w = window;
        const Span rows = window_rows(l, y);
        const int32_t pixel = offset_of(0, 1), line = offset_of(1, 0);
        const bool by_output = strip.by_output, by_filter = strip.by_filter;
        for (long x = 0; x < l.PW; x++) {
            const Span columns = window_columns(l, x);
            const long at = y * l.PW + x;
            const uint8_t* planes = masks + at * l.planes * l.plane_bytes;
            const int32_t offset = offset_of(rows.begin, columns.begin);
            mask tie = {};
            for (long c = 0; c < l.O; c += LANES)
                tie |= window_vec<H, W>(l, g + x * l.O, planes, rows, columns, c, offset, pixel, line, w,
                                        by_output || by_filter, dz, dz_line);
            const bool ties = to_bits(tie) != 0;
            if (by_filter && !ties) strip.add_to_filters(w.values, w.alive, w.offsets);
            if (!by_output && !(by_filter && ties)) continue;
            for (long i = rows.begin; i < rows.end; i++)
                for (long j = columns.begin; j < columns.end; j++) {
                    const uint8_t* plane = planes + ((i - rows.start) * l.pool_w + j - columns.start) * l.plane_bytes;
                    if (by_filter && ties) strip.add_to_filters(w.values, plane, offset_of(i, j));
                    if (by_output) strip.add_output(w.values, plane, offset_of(i, j));
                }
        }
    }

   public:
    Walk(const Layer& l, const Filters& f, const Plan& plan, const float* image, float* dx, Sums& sums, bool with_dw,
         bool exact)
        : l(l), f(f), plan(plan), image(image), dx(dx), sums(sums), with_dw(with_dw), exact(exact),
          row(l.padded_w * l.C) {}

    // Pooling windows that share no conv output, with their bits. With `few`, all there is to do is to write its rows.
    void windows(GradientRows gradient, const uint8_t* masks, const FewGradients* few = NULL) {
        const long rows_of_strip = strip_rows(l.PH, l.PW, l.pool_stride_h);
        Strip strip = this->strip(rows_of_strip * l.PW * l.positions);
        const Window window = this->window();
        const long columns_used = used_columns(l), line = columns_used * l.O_stride;
        float* dz = NULL;
        if (few || (with_dw && plan.small)) {
            dz = scratch().dense.get<float>(l.pool_h * line);
            memset(dz, 0, l.pool_h * line * sizeof(float));    // where no window reaches, it stays zero
        }
        const bool whole = has_whole_windows(l);
        for (long y = 0, in_strip = 0; y < l.PH; y++) {
            const Span rows = window_rows(l, y);
            const float* g = gradient.row(y);
            if (whole && l.pool_h == 2 && l.pool_w == 2) window_row<2, 2>(y, g, masks, window, strip, dz, line);
            else if (whole && l.positions == 1) plain_row(y, g, masks, window, strip, dz);
            else window_row<0, 0>(y, g, masks, window, strip, dz, line);
            for (long i = rows.begin; dz && i < rows.end; i++) {
                const float* from = dz + (i - rows.begin) * line;
                if (few) transpose(from, l.O_stride, columns_used, l.O, few->output_row(i), few->plane);
                else sums.add_row(from, columns_used, l.O_stride, image + offset_of(i, 0), row);
            }
            if (++in_strip == rows_of_strip || y + 1 == l.PH) {
                finish_strip(strip, in_strip * l.PW);    // as a rule a filter has one maximum in a window
                in_strip = 0;
            }
        }
    }

    // Any gradient of the conv output, dz[OH][OW][pixel floats].
    void dense(const float* dz, long pixel) {
        const long rows_of_strip = strip_rows(l.OH, l.OW, 1);
        Strip strip = this->strip(rows_of_strip * l.OW);
        const Window window = this->window();
        for (long y = 0, in_strip = 0; y < l.OH; y++) {
            if (with_dw && plan.small) sums.add_row(dz, l.OW, pixel, image + offset_of(y, 0), row);
            for (long x = 0; x < l.OW; x++, dz += pixel) {
                for (long c = 0; c < l.O; c += LANES) {
                    const lanebits valid = l.O - c >= LANES ? (lanebits)((1ull << LANES) - 1) : (1u << (l.O - c)) - 1;
                    const vec v = load(dz + c);
                    store_bits(window.alive, (int)c, exact ? valid : valid & to_bits(v != zero()));
                    add_to(window.db + c, v);
                }
                if (strip.by_filter) strip.add_to_filters(dz, window.alive, offset_of(y, x));
                if (strip.by_output) strip.add_output(dz, window.alive, offset_of(y, x));
            }
            if (++in_strip == rows_of_strip || y + 1 == l.OH) {
                finish_strip(strip, in_strip * l.OW);
                in_strip = 0;
            }
        }
    }
};

// Whether a gradient times a filter could be anything but finite.
static bool gradient_may_overflow(const Layer& l, const Filters& f, const Image& g) {
    double bound = as_number(magnitude(g, l.O, l.PH, l.PW)) * (l.dropout && l.scale > 1 ? l.scale : 1);
    bound *= (f.largest > 1 ? f.largest : 1) * l.O * l.KH * l.KW * l.positions;
    return !(bound < FLT_MAX / 4);
}

// Adds one image of a layer of few filters to `sums`, and writes its dx (unless dx.data is NULL).
static void backward_few(const Layer& l, const Filters& f, const Plan& plan, const Image& x, const uint8_t* masks,
                         const Image& g, const Image& dx, Sums& sums, bool with_dw) {
    const FewGradients dz(l);
    if (is_plain(l))
        for (long y = 0; y < l.OH; y++) {
            const Image row = {g.data + y * g.h, g.c, 0, 1};
            few_gradient(l, row, masks + y * l.OW * FEW_MASKS, dz.output_row(y), dz.plane, sums.db);
        }
    else Walk(l, f, plan, NULL, NULL, sums, false, false).windows(GradientRows(l, g), masks, &dz);
    if (with_dw) sums.add(l, dz, padded_planes(l, x, scratch().image));
    if (dx.data) few_dx(l, dz, f.few, dx);
}

// The same of any layer.
static void backward_image(const Layer& l, const Filters& f, const Plan& plan, const Image& x, const uint8_t* masks,
                           const Image& g, const Image& dx, Sums& sums, bool with_dw) {
    Scratch& s = scratch();
    const bool exact = may_overflow(l, f, x) || gradient_may_overflow(l, f, g);
    if (f.few && !exact) {
        if (is_one_row(l, x, g) && (!dx.data || l.H == 1 || dx.h == l.W))
            return backward_few(in_one_row(l), f, plan, x, masks, g, dx, sums, with_dw);
        if (l.OW >= LANES) return backward_few(l, f, plan, x, masks, g, dx, sums, with_dw);
    }
    const float* image = padded_image(l, x, s.image, true);
    GradientRows gradient(l, g);
    const bool padded = l.padded_h != l.H || l.padded_w != l.W;
    const bool direct = !padded && l.segment == l.segment_stride && is_channels_last(dx, l.C, l.H, l.W);
    const long row = l.padded_w * l.C;
    float* to = NULL;
    if (dx.data) {
        to = direct ? dx.data : s.dx.get<float>(l.padded_h * row + LANES);
        memset(to, 0, l.padded_h * row * sizeof(float));
    }
    Walk walk(l, f, plan, image, to, sums, with_dw, exact);
    if (exact || !l.disjoint) {
        float* dz = s.dense.get<float>(l.OH * l.OW * l.O_stride);
        if (exact) dense_gradient_exact(l, f, image, gradient.all(), masks, dz);
        else dense_gradient(l, gradient.all(), masks, dz);
        walk.dense(dz, l.O_stride);
    } else if (l.planes) {
        walk.windows(gradient, masks);
    } else {
        walk.dense(gradient.all(), l.O);
    }
    if (dx.data && !direct) from_channels_last(to + l.pad_top * row + l.pad_left * l.C, row, dx, l.C, l.H, l.W);
}

// dx of bands of images: they overlap, so each has memory of its own, channels first, until all are added.
struct BandsOfDx {
    const Layer& l;
    const long bands;
    float* const memory;

    static size_t floats(const Layer& l, long bands) { return l.N * bands * l.C * l.H * l.W; }

    // Of band t % bands of image t / bands, which has H rows.
    Image of(long t, long H) const { return Image{memory + t * l.C * l.H * l.W, H * l.W, l.W, 1}; }

    void add_to(const Images& dx) const {
        parallel::in_shares(parallel::most_threads(), l.N * l.C, 1, [&](long q) {
            const long i = q / l.C, c = q % l.C;
            float* const plane = dx.data + i * dx.n + c * dx.c;
            for (long y = 0; y < l.H; y++)
                for (long x = 0; x < l.W; x++) plane[y * dx.h + x * dx.w] = 0;
            for (long b = 0; b < bands; b++) {
                const Band part = band(l, b, bands);
                const Image from = of(i * bands + b, part.l.H);
                for (long y = 0; y < part.l.H; y++)
                    for (long x = 0; x < l.W; x++)
                        plane[(part.input + y) * dx.h + x * dx.w] += from.data[c * from.c + y * l.W + x];
            }
            return true;
        });
    }
};

// Gradients of a batch: dx (unless dx.data is NULL), dw[O][C][KH][KW] and db[O] (unless NULL). Returns false when
// memory is short.
//
// Each thread sums dw over its own images, or bands of images; the threads' sums are added in the order of the threads,
// so the result depends on their number, but not on who was first.
static bool backward(const Layer& l, const Images& x, const Images& w, const float* bias, ptrdiff_t bias_step,
                     const uint8_t* masks, const Images& g, const Images& dx, float* dw, float* db) {
    static thread_local Filters filters;
    static thread_local Plan cuts;
    static thread_local Buffer buffer, dx_buffer;
    int threads = threads_for(l);
    const long bands = bands_of(l, threads), tasks = l.N * bands;
    if (threads > tasks) threads = tasks ? (int)tasks : 1;
    double* memory;
    float* dx_memory = NULL;
    long size;
    try {
        const bool few = is_few(l) && x.w == 1 && (!dx.data || dx.w == 1) &&
                         (is_plain(l) ? g.w == 1 : l.disjoint && l.planes && l.segment <= LANES);
        filters.set(l, w, bias, bias_step);
        filters.pack_backward(l);
        if (few) filters.few = pack_few(l, w, true, filters.few_buffer);
        cuts.make(l, few);
        size = Sums::memory(l, cuts) / 2 + 1;
        memory = buffer.get<double>(threads * size);
        if (dx.data && bands > 1) dx_memory = dx_buffer.get<float>(BandsOfDx::floats(l, bands));
    } catch (const std::bad_alloc&) {
        return false;
    }
    const Filters& f = filters;
    const Plan& plan = cuts;
    const BandsOfDx parts = {l, bands, dx_memory};
    const bool done = parallel::in_shares(threads, threads, 1, [&](long t) {
        Sums sums(l, plan, memory + t * size);
        for (long k = tasks * t / threads; k < tasks * (t + 1) / threads; k++) {
            const long i = k / bands;
            const Band b = band(l, k % bands, bands);
            const Image to = !dx.data ? Image{NULL, 0, 0, 0} : bands > 1 ? parts.of(k, b.l.H) : dx[i];
            backward_image(b.l, f, plan, b.of_input(x[i]), masks + i * l.masks_bytes() + b.masks(), b.of_output(g[i]),
                           to, sums, dw != NULL);
        }
        sums.finish();
        return true;
    });
    if (dx_memory && done) parts.add_to(dx);
    if (!dw || !done) return done;
    const long K = l.KH * l.segment, step = Sums::step(l, plan);
    const int32_t* place = places_of_weights(l, plan.small ? l.segment : l.segment_stride, filters.places);
    for (long o = 0; o < l.O; o++) {
        for (long k = 0; k < K; k++) {
            double sum = 0;
            for (long t = 0; t < threads; t++) sum += Sums::dw(l, plan, memory + t * size, o)[place[k] * step];
            dw[o * K + k] = (float)sum;
        }
        double sum = 0;
        for (long t = 0; t < threads; t++) sum += Sums::db_of(memory + t * size, o);
        db[o] = (float)sum;
    }
    return true;
}

}    // namespace conv
