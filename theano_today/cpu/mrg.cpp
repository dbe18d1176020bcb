// Random numbers for Ops: see kernels.hpp.
#include "kernels.hpp"
#include "mrg.hpp"

void kernels::draw_uniform(int32_t* state, ptrdiff_t streams, ptrdiff_t n, float* out) {
    mrg::draw(state, streams, n, mrg::Uniform{out});
}

void kernels::draw_bernoulli(int32_t* state, ptrdiff_t streams, ptrdiff_t n, float p, float* out) {
    mrg::draw(state, streams, n, mrg::BernoulliFloat{out, p});
}

void kernels::draw_bernoulli(int32_t* state, ptrdiff_t streams, ptrdiff_t n, float p, bool* out) {
    mrg::draw(state, streams, n, mrg::BernoulliBool{out, p});
}
