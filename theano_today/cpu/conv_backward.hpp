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
        vec acc[R][V];
        for (int r = 0; r < R; r++)
            for (int v = 0; v < V; v++) acc[r][v] = load(out + r * out_row + v * LANES);
        for (long e = 0; e < n; e++) {
            const vec g = broadcast(list[e].value);
            const float* p = base + list[e].offset;
#pragma GCC unroll 8
            for (int r = 0; r < R; r++)
#pragma GCC unroll 16
                for (int v = 0; v < V; v++) acc[r][v] = fma(g, load(p + r * base_row + v * LANES), acc[r][v]);
        }
        for (int r = 0; r < R; r++)
            for (int v = 0; v < V; v++) store(out + r * out_row + v * LANES, acc[r][v]);
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
        vec acc[R][S];
        for (int r = 0; r < R; r++)
            for (int s = 0; s < S; s++) acc[r][s] = load(out + r * out_row + s * out_float);
        for (long x = 0; x < n; x++, dz += dz_pixel, image += image_pixel) {
            const vec g = load(dz);
#pragma GCC unroll 8
            for (int r = 0; r < R; r++)
#pragma GCC unroll 16
                for (int s = 0; s < S; s++) acc[r][s] = fma(g, broadcast(image[r * image_row + s]), acc[r][s]);
        }
        for (int r = 0; r < R; r++)
            for (int s = 0; s < S; s++) store(out + r * out_row + s * out_float, acc[r][s]);
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
        long row, column;    // where it begins
    };
    Piece* piece;
    int count;

    void plan(long rows, long columns) {
        const long cuts = (columns + ACCUMULATORS - 1) / ACCUMULATORS;
        long height = 1;
        if (cuts == 1) height = ACCUMULATORS / columns < MOST_ROWS ? ACCUMULATORS / columns : MOST_ROWS;
        piece = buffer.get<Piece>(rows * cuts);
        count = 0;
        for (long i = 0; i < rows; i += height)
            for (long c = 0; c < cuts; c++) {
                const long begin = columns * c / cuts, end = columns * (c + 1) / cuts;
                const int h = (int)(rows - i < height ? rows - i : height);
                const auto run = Choice<Kernel, MOST_ROWS, most_columns(MOST_ROWS)>::find(h, (int)(end - begin));
                piece[count++] = Piece{run, i, begin};
            }
    }
};

// How the gradients of a layer are cut.
struct Plan {
    Pieces<ListKernel> lists;
    Pieces<RowKernel> rows;
    bool few;    // dw by RowKernel: a filter is so small that its lists would cost more than they save

    void make(const Layer& l) {
        few = l.KH * l.segment <= 32;
        lists.plan(l.KH, l.segment_stride / LANES);
        if (few) rows.plan(l.KH, l.segment);
    }
};

// out[KH][..out_row] += sum over the list: value * base[offset + [KH][..base_row]]
static void accumulate(const Pieces<ListKernel>& pieces, const Entry* list, long n, const float* base, long base_row,
                       float* out, long out_row) {
    for (int i = 0; i < pieces.count; i++) {
        const Pieces<ListKernel>::Piece& p = pieces.piece[i];
        const long at = p.column * LANES;
        p.run(list, n, base + p.row * base_row + at, base_row, out + p.row * out_row + at, out_row);
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
                        store(d, load(d) + select(load_bits(planes + position * l.plane_bytes, (int)c), v));
                    }
            }
        }
}

// The same where NaN or infinity may occur: the conv output is computed anew and every step is Theano's.
static void dense_gradient_exact(const Layer& l, const Filters& f, const float* image, const float* g,
                                 const uint8_t* masks, float* dz) {
    Scratch& s = scratch();
    const long K = l.KH * l.segment;
    float* z = s.strip.get<float>(l.OH * l.OW * BLOCK);
    memset(dz, 0, l.OH * l.OW * l.O_stride * sizeof(float));
    for (long c = 0; c < l.O; c += LANES) {
        const long b = c / BLOCK * BLOCK, width = l.O - b <= LANES ? LANES : BLOCK;
        if (c == b) conv_rows(l, image, 0, l.OH, l.OW, f.forward + b * K, f.bias + b, z, width);
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
                        store(d, load(d) + (l.positions == 1 ? v : select(to_bits(r == m), v)));
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

// One thread's sums over its images.
struct Sums {
    float* dw;     // [O][KH][segment_stride]
    double* db;    // [O], in float64 as Theano sums
};

// Walks over the conv outputs of one image, a strip of rows at a time, and sorts the gradients that are not zero into
// lists: by conv output for dx, and by filter for dw. The gradients are computed from the lists when the strip is
// complete. A strip is as many rows as keep its part of the image in L1.
class Walk {
    struct Output {         // one conv output with its list
        Entry *begin, *end;
        int32_t offset;     // of the pixels it saw
    };

    const Layer& l;
    const Filters& f;
    const Plan& plan;
    const float* image;
    float* dx;
    const Sums& sums;
    const bool exact;
    const bool by_list, by_row;    // how to compute dw, if at all
    const long row;         // floats in a row of the padded image
    const long filter;      // floats of one filter in f.backward and dw
    Entry* output_entries;  // the lists of the strip's conv outputs, for dx
    Output *outputs, *outputs_end;
    Entry* filter_entries;  // the lists of the filters, for dw; each has room for `capacity` entries
    Entry** ends;           // of the filters' lists
    long capacity;
    float* values;          // of one pooling window, [O_stride]
    int32_t* offsets;       // of the pixels that the maxima saw, [O_stride]
    float* db;              // [O_stride]
    float* dw_rows;         // dw by RowKernel, [KH * segment][O_stride]
    uint8_t* alive;         // [plane_bytes]
    uint32_t* filter_offsets;    // of the filters in f.backward, [O_stride]

    int32_t offset_of(long y, long x) const { return (int32_t)(y * l.stride_h * row + x * l.stride_w * l.C); }

    // Calls f(filter) for each bit.
    template <class Function>
    SIMD_INLINE void for_each(const uint8_t* bytes, long filters, Function f) {
        for (long c = 0; c < filters; c += 32) {
            uint32_t bits;
            memcpy(&bits, bytes + c / 8, 4);
            for (; bits; bits &= bits - 1) f((int)c + __builtin_ctz(bits));
        }
    }

    // The list of one conv output: gradients `values` of the filters in `bits`.
    void add_output(const float* values, const uint8_t* bits, int32_t offset) {
        Entry* const first = outputs_end[-1].end;
        Entry* last = first;
        for (long c = 0; c < l.O; c += LANES)
            last += compress_pairs(load_bits(bits, (int)c), load(values + c), load(filter_offsets + c), last);
        if (last != first) *outputs_end++ = Output{first, last, offset};
    }

    // The same gradients for the lists of their filters.
    void add_to_filters(const float* values, const uint8_t* bits, int32_t offset) {
        Entry** const end = ends;
        for_each(bits, l.O, [=](int o) { *end[o]++ = Entry{values[o], offset}; });
    }

    void finish_strip() {
        if (dx && exact && l.segment != l.segment_stride) {
            add_exact();
        } else if (dx) {
            // Piece by piece: that part of all filters stays in L1.
            for (int i = 0; i < plan.lists.count; i++) {
                const Pieces<ListKernel>::Piece& p = plan.lists.piece[i];
                const float* base = f.backward + p.row * l.segment_stride + p.column * LANES;
                float* to = dx + p.row * row + p.column * LANES;
                for (const Output* o = outputs; o != outputs_end; o++)
                    p.run(o->begin, o->end - o->begin, base, l.segment_stride, to + o->offset, row);
            }
        }
        if (by_list)
            for (long o = 0; o < l.O; o++) {
                Entry* list = filter_entries + o * capacity;
                if (ends[o] != list)
                    accumulate(plan.lists, list, ends[o] - list, image, row, sums.dw + o * filter, l.segment_stride);
                ends[o] = list;
            }
        outputs_end = outputs;
        outputs_end[-1].end = output_entries;
    }

    // dx without the zeros that fill a row of the filter up to whole vectors: NaN * 0 must not reach the next pixel.
    void add_exact() {
        Buffer buffer;
        float* sum = buffer.get<float>(filter);
        for (const Output* o = outputs; o != outputs_end; o++) {
            memset(sum, 0, filter * sizeof(float));
            accumulate(plan.lists, o->begin, o->end - o->begin, f.backward, l.segment_stride, sum, l.segment_stride);
            for (long i = 0; i < l.KH; i++)
                for (long k = 0; k < l.segment; k++) dx[o->offset + i * row + k] += sum[i * l.segment_stride + k];
        }
    }

    // dw from one row of gradients, dz[columns][pixel floats].
    void add_row(long y, const float* dz, long columns, long pixel) {
        for (long c = 0; c < l.O; c += LANES)
            for (int i = 0; i < plan.rows.count; i++) {
                const Pieces<RowKernel>::Piece& p = plan.rows.piece[i];
                p.run(dz + c, pixel, image + offset_of(y, 0) + p.row * row + p.column, row, l.stride_w * l.C, columns,
                      dw_rows + (p.row * l.segment + p.column) * l.O_stride + c, l.segment * l.O_stride, l.O_stride);
            }
    }

    // Empty lists for a walk over rows x columns, of `height` conv rows and `positions` conv outputs each. Returns the
    // number of rows in a strip.
    long begin(long rows, long columns, long positions, long height) {
        const long L1 = 16 << 10;    // half of the usual 32 KB
        long strip = L1 / (row * (long)sizeof(float) * height * l.stride_h);
        if (strip * columns > 256) strip = 256 / columns;
        if (strip < 1) strip = 1;
        if (strip > rows) strip = rows;
        const long most = strip * columns * positions;
        capacity = most + 8;    // + 8: lists do not all begin at the same place in the cache
        Scratch& s = scratch();
        if (by_list) {
            filter_entries = s.filter_entries.get<Entry>(l.O * capacity);
            ends = s.ends.get<Entry*>(l.O);
            for (long o = 0; o < l.O; o++) ends[o] = filter_entries + o * capacity;
        }
        output_entries = s.output_entries.get<Entry>(dx ? l.O * most + LANES : 0);
        filter_offsets = s.filter_offsets.get<uint32_t>(l.O_stride);
        for (long o = 0; o < l.O_stride; o++) filter_offsets[o] = (uint32_t)(o * filter);
        outputs = s.outputs.get<Output>(most + 1) + 1;    // outputs[-1].end: where the first list begins
        outputs_end = outputs;
        outputs_end[-1].end = output_entries;
        if (by_row) {
            dw_rows = s.dw_rows.get<float>(l.KH * l.segment * l.O_stride);
            memset(dw_rows, 0, l.KH * l.segment * l.O_stride * sizeof(float));
        }
        values = s.values.get<float>(3 * l.O_stride + l.plane_bytes);
        offsets = (int32_t*)(values + l.O_stride);
        db = values + 2 * l.O_stride;
        alive = (uint8_t*)(values + 3 * l.O_stride);
        memset(values, 0, 3 * l.O_stride * sizeof(float) + l.plane_bytes);
        return strip;
    }

    void finish() {
        for (long o = 0; o < l.O; o++) sums.db[o] += db[o];
        if (by_row)
            for (long o = 0; o < l.O; o++)
                for (long i = 0; i < l.KH; i++)
                    for (long k = 0; k < l.segment; k++)
                        sums.dw[o * filter + i * l.segment_stride + k] += dw_rows[(i * l.segment + k) * l.O_stride + o];
    }

    // One vec of filters of a pooling window: values, offsets, alive and db, and the gradients of its conv outputs to
    // dz[row][column][O_stride] if dz is not NULL. Returns the filters that have more than one maximum. H and W are the
    // window's size where it is known at compile time and lies within the image, else 0.
    template <int H, int W>
    SIMD_INLINE mask window_vec(const Layer& l, const float* g, const uint8_t* planes, const Span& rows,
                                const Span& columns, long c, int32_t offset, int32_t pixel, int32_t line,
                                float* values, int32_t* offsets, uint8_t* alive, float* db, float* dz, long dz_line) {
        const int h = H ? H : (int)(rows.end - rows.begin), w = W ? W : (int)(columns.end - columns.begin);
        const vec v = pooled_gradient(l, g, planes, c);
        const long first = (rows.begin - rows.start) * l.pool_w + columns.begin - columns.start;    // position
        const uint8_t* plane = planes + first * l.plane_bytes;
        vec sum = load(db + c), to = {};
        mask any = {}, ties = {};
        if (dz) dz += columns.begin * l.O_stride + c;
        for (int i = 0; i < h; i++)
            for (int j = 0; j < w; j++) {
                const mask is_max = load_mask(plane + (i * (W ? W : l.pool_w) + j) * l.plane_bytes, (int)c);
                const vec here = select(is_max, v);
                sum += here;
                to = select(is_max, (vec)broadcast((uint32_t)(offset + i * line + j * pixel)), to);
                ties |= any & is_max;
                any |= is_max;
                if (dz) store(dz + i * dz_line + j * l.O_stride, here);
            }
        store(db + c, sum);
        if (!values) return ties;    // no lists
        store(values + c, v);
        store((float*)offsets + c, to);
        store_bits(alive, (int)c, to_bits(any));
        return ties;
    }

    template <int H, int W>
    void window_row(long y, const float* g, const uint8_t* masks, float* dz, long dz_line) {
        const Layer l = this->l;    // see pool_row
        const Span rows = window_rows(l, y);
        const int32_t pixel = offset_of(0, 1), line = offset_of(1, 0);
        float *const values = dx || by_list ? this->values : NULL, *const db = this->db;
        int32_t* const offsets = this->offsets;
        uint8_t* const alive = this->alive;
        Entry** const end = ends;
        for (long x = 0; x < l.PW; x++) {
            const Span columns = window_columns(l, x);
            const long at = y * l.PW + x;
            const uint8_t* planes = masks + at * l.planes * l.plane_bytes;
            const int32_t offset = offset_of(rows.begin, columns.begin);
            mask tie = {};
            for (long c = 0; c < l.O; c += LANES)
                tie |= window_vec<H, W>(l, g + at * l.O, planes, rows, columns, c, offset, pixel, line, values, offsets,
                                        alive, db, dz, dz_line);
            const bool ties = to_bits(tie) != 0;
            if (by_list && !ties) for_each(alive, l.O, [=](int o) { *end[o]++ = Entry{values[o], offsets[o]}; });
            if (!dx && !(by_list && ties)) continue;
            for (long i = rows.begin; i < rows.end; i++)
                for (long j = columns.begin; j < columns.end; j++) {
                    const uint8_t* plane = planes + ((i - rows.start) * l.pool_w + j - columns.start) * l.plane_bytes;
                    if (by_list && ties) add_to_filters(values, plane, offset_of(i, j));
                    if (dx) add_output(values, plane, offset_of(i, j));
                }
        }
    }

   public:
    Walk(const Layer& l, const Filters& f, const Plan& plan, const float* image, float* dx, const Sums& sums,
         bool with_dw, bool exact)
        : l(l), f(f), plan(plan), image(image), dx(dx), sums(sums), exact(exact), by_list(with_dw && !plan.few),
          by_row(with_dw && plan.few), row(l.padded_w * l.C), filter(l.KH * l.segment_stride) {}

    // Pooling windows that share no conv output, with their bits.
    void windows(const float* g, const uint8_t* masks) {
        const long strip = begin(l.PH, l.PW, l.positions, l.pool_stride_h);
        const long columns_used = used_columns(l), line = columns_used * l.O_stride;
        float* dz = NULL;
        if (by_row) {
            dz = scratch().dense.get<float>(l.pool_h * line);
            memset(dz, 0, l.pool_h * line * sizeof(float));    // where no window reaches, it stays zero
        }
        const bool whole = l.ignore_border && !l.pool_pad_h && !l.pool_pad_w;
        for (long y = 0; y < l.PH; y++) {
            const Span rows = window_rows(l, y);
            if (whole && l.pool_h == 2 && l.pool_w == 2) window_row<2, 2>(y, g, masks, dz, line);
            else window_row<0, 0>(y, g, masks, dz, line);
            if (by_row)
                for (long i = rows.begin; i < rows.end; i++)
                    add_row(i, dz + (i - rows.begin) * line, columns_used, l.O_stride);
            if ((y + 1) % strip == 0 || y + 1 == l.PH) finish_strip();
        }
        finish();
    }

    // Any gradient of the conv output, dz[OH][OW][pixel floats].
    void dense(const float* dz, long pixel) {
        const long strip = begin(l.OH, l.OW, 1, 1);
        for (long y = 0; y < l.OH; y++) {
            if (by_row) add_row(y, dz, l.OW, pixel);
            for (long x = 0; x < l.OW; x++, dz += pixel) {
                for (long c = 0; c < l.O; c += LANES) {
                    const lanebits valid = l.O - c >= LANES ? (lanebits)((1ull << LANES) - 1) : (1u << (l.O - c)) - 1;
                    const vec v = load(dz + c);
                    store_bits(alive, (int)c, exact ? valid : valid & to_bits(v != zero()));
                    store(db + c, load(db + c) + v);
                }
                if (by_list) add_to_filters(dz, alive, offset_of(y, x));
                if (dx) add_output(dz, alive, offset_of(y, x));
            }
            if ((y + 1) % strip == 0 || y + 1 == l.OH) finish_strip();
        }
        finish();
    }
};

// Adds one image to `sums` and writes its dx (unless dx.data is NULL).
static void backward_image(const Layer& l, const Filters& f, const Plan& plan, const Image& x, const uint8_t* masks,
                           const Image& g, const Image& dx, const Sums& sums, bool with_dw) {
    Scratch& s = scratch();
    const bool exact = may_overflow(l, f, x) || !isfinite(as_number(magnitude(g, l.O, l.PH, l.PW)));
    const float* image = padded_image(l, x, s.image, true);
    const float* gradient = g.data;
    if (l.O % LANES || !is_channels_last(g, l.O, l.PH, l.PW)) {
        float* p = s.gradient.get<float>(l.PH * l.PW * l.O + LANES);
        to_channels_last(g, l.O, l.PH, l.PW, p, l.PW * l.O);
        gradient = p;
    }
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
        if (exact) dense_gradient_exact(l, f, image, gradient, masks, dz);
        else dense_gradient(l, gradient, masks, dz);
        walk.dense(dz, l.O_stride);
    } else if (l.planes) {
        walk.windows(gradient, masks);
    } else {
        walk.dense(gradient, l.O);
    }
    if (dx.data && !direct) from_channels_last(to + l.pad_top * row + l.pad_left * l.C, row, dx, l.C, l.H, l.W);
}

// Gradients of a batch: dx (unless dx.data is NULL), dw[O][C][KH][KW] and db[O] (unless NULL).
//
// Each thread sums dw over its own images; the threads' sums are added in the order of the threads, so the result
// depends on their number, but not on who was first.
static void backward(const Layer& l, const Images& x, const Images& w, const float* bias, ptrdiff_t bias_step,
                     const uint8_t* masks, const Images& g, const Images& dx, float* dw, float* db) {
    static thread_local Filters filters;
    static thread_local Plan cuts;
    static thread_local Buffer buffer, db_buffer;
    pack(l, w, bias, bias_step, filters, true);
    cuts.make(l);
    const Filters& f = filters;
    const Plan& plan = cuts;
    const long size = l.O * l.KH * l.segment_stride;
    long threads = 1;
#ifdef _OPENMP
    threads = omp_get_max_threads();
#endif
    if (threads > l.N) threads = l.N ? l.N : 1;
    float* dw_sums = buffer.get<float>(threads * size);
    double* db_sums = db_buffer.get<double>(threads * l.O);
    memset(dw_sums, 0, threads * size * sizeof(float));
    memset(db_sums, 0, threads * l.O * sizeof(double));
#pragma omp parallel for schedule(static) num_threads(threads)
    for (long t = 0; t < threads; t++) {
        const Sums sums = {dw_sums + t * size, db_sums + t * l.O};
        for (long i = l.N * t / threads; i < l.N * (t + 1) / threads; i++)
            backward_image(l, f, plan, x[i], masks + i * l.masks_bytes(), g[i], dx.data ? dx[i] : Image{NULL, 0, 0, 0},
                           sums, dw != NULL);
    }
    if (!dw) return;
    for (long o = 0; o < l.O; o++) {
        for (long i = 0; i < l.KH; i++)
            for (long j = 0; j < l.KW; j++)
                for (long c = 0; c < l.C; c++) {
                    const float* p = dw_sums + (o * l.KH + i) * l.segment_stride + j * l.C + c;
                    float sum = 0;
                    for (long t = 0; t < threads; t++) sum += p[t * size];
                    const long ii = l.flip ? l.KH - 1 - i : i, jj = l.flip ? l.KW - 1 - j : j;
                    dw[((o * l.C + c) * l.KH + ii) * l.KW + jj] = sum;
                }
        double sum = 0;
        for (long t = 0; t < threads; t++) sum += db_sums[t * l.O + o];
        db[o] = (float)sum;
    }
}

}    // namespace conv
