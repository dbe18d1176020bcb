// How wide a vector of floats is: what simd.hpp has vectors of, for those who need no more than the number.
#pragma once

#ifndef THEANO_TODAY_LANES
#if defined(__AVX512F__)
#define THEANO_TODAY_LANES 16
#elif defined(__AVX__)
#define THEANO_TODAY_LANES 8
#else
#define THEANO_TODAY_LANES 4
#endif
#endif

namespace simd {

constexpr int LANES = THEANO_TODAY_LANES;
static_assert(LANES == 1 || LANES == 4 || LANES == 8 || LANES == 16, "no such vector width");

// How many `vec` the machine holds in registers; micro-kernels choose their tiles by it. A width beyond the machine's
// own takes several registers per vec.
#if defined(__AVX512F__)
constexpr int REGISTERS = 32;
#elif defined(__aarch64__)
constexpr int REGISTERS = LANES > 4 ? 32 * 4 / LANES : 32;
#elif defined(__AVX__)
constexpr int REGISTERS = LANES > 8 ? 8 : 16;
#else
constexpr int REGISTERS = LANES > 4 ? 16 * 4 / LANES : 16;
#endif

}    // namespace simd
