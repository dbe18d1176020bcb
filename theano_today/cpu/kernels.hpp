// The kernels as the C code of the Ops calls them. Each .cpp file here is a library of its own, which g++ compiles once
// for all Ops and all shapes (libraries.py); the C code of an Op that calls it is compiled in a moment.
#pragma once
#include "layer.hpp"
#include "matrix.hpp"

#define KERNEL __attribute__((visibility("default")))

namespace kernels {

// ---- conv.cpp ----

// See conv::forward and conv::backward.
KERNEL bool convolve(const conv::Layer& l, const conv::Images& x, const conv::Images& w, const float* bias,
                     ptrdiff_t bias_step, const conv::Images& samples, const conv::Images& out, uint8_t* masks);
KERNEL bool convolve_back(const conv::Layer& l, const conv::Images& x, const conv::Images& w, const float* bias,
                          ptrdiff_t bias_step, const uint8_t* masks, const conv::Images& g, const conv::Images& dx,
                          float* dw, float* db);

// ---- matmul.cpp ----

// An update rule whose type the library does not know: `Rule` is what matmul::products_into_rule takes.
struct AnyRule {
    const void* rule;
    void (*prefetch_)(const void*, ptrdiff_t, ptrdiff_t, ptrdiff_t, ptrdiff_t);
    void (*apply_)(const void*, const float* const*, ptrdiff_t, ptrdiff_t, ptrdiff_t, ptrdiff_t, ptrdiff_t);

    template <class Rule>
    explicit AnyRule(const Rule* r) : rule(r), prefetch_(call_prefetch<Rule>), apply_(call<Rule>) {}

    void prefetch(ptrdiff_t i, ptrdiff_t j, ptrdiff_t rows, ptrdiff_t columns) const {
        prefetch_(rule, i, j, rows, columns);
    }
    void operator()(const float* const* products, ptrdiff_t ld, ptrdiff_t i, ptrdiff_t j, ptrdiff_t rows,
                    ptrdiff_t columns) const {
        apply_(rule, products, ld, i, j, rows, columns);
    }

    template <class Rule>
    static void call_prefetch(const void* r, ptrdiff_t i, ptrdiff_t j, ptrdiff_t rows, ptrdiff_t columns) {
        ((const Rule*)r)->prefetch(i, j, rows, columns);
    }
    template <class Rule>
    static void call(const void* r, const float* const* products, ptrdiff_t ld, ptrdiff_t i, ptrdiff_t j,
                     ptrdiff_t rows, ptrdiff_t columns) {
        (*(const Rule*)r)(products, ld, i, j, rows, columns);
    }
};

// See matmul::product_of and matmul::products_into_rule.
KERNEL bool multiply(matmul::Matrix a, matmul::Matrix b, ptrdiff_t m, ptrdiff_t n, ptrdiff_t depth, float* c);
KERNEL bool multiply_into(const matmul::Factors* products, int count, ptrdiff_t m, ptrdiff_t n, const AnyRule& rule);

// ---- mrg.cpp ----

// n samples from the streams whose states are the rows of `state`, six numbers each; uniform, or whether less than p.
KERNEL void draw_uniform(int32_t* state, ptrdiff_t streams, ptrdiff_t n, float* out);
KERNEL void draw_bernoulli(int32_t* state, ptrdiff_t streams, ptrdiff_t n, float p, float* out);
KERNEL void draw_bernoulli(int32_t* state, ptrdiff_t streams, ptrdiff_t n, float p, bool* out);

}    // namespace kernels
