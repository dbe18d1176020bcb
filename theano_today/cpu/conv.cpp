// Convolution layers for Ops: see kernels.hpp.
#include "kernels.hpp"
#include "conv.hpp"

bool kernels::convolve(const conv::Layer& l, const conv::Images& x, const conv::Images& w, const float* bias,
                       ptrdiff_t bias_step, const conv::Images& samples, const conv::Images& out, uint8_t* masks) {
    return conv::forward(l, x, w, bias, bias_step, samples, out, masks);
}

bool kernels::convolve_back(const conv::Layer& l, const conv::Images& x, const conv::Images& w, const float* bias,
                            ptrdiff_t bias_step, const uint8_t* masks, const conv::Images& g, const conv::Images& dx,
                            float* dw, float* db) {
    return conv::backward(l, x, w, bias, bias_step, masks, g, dx, dw, db);
}
