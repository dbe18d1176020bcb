// A matrix and the tiles of a product, as an update rule sees them; see matmul.hpp.
#pragma once
#include <stddef.h>
#include "lanes.hpp"

namespace matmul {

typedef ptrdiff_t Index;

// A tile: MR rows of NV vectors. Its sums stay in registers, beside a row of B (NV) and an element of A; compilers
// start to spill when they cannot have one more.
constexpr Index NV = 2;
constexpr Index NR = NV * simd::LANES;
constexpr Index MR = (simd::REGISTERS - NV - 2) / NV;

// Element (i, j) is at data[i * row + j * column].
struct Matrix {
    const float* data;
    Index row, column;
    const float* at(Index i, Index j) const { return data + i * row + j * column; }
};

// A[m x depth] B[depth x n], one of the products that an update rule takes.
struct Factors {
    Matrix a, b;
    Index depth;
};

constexpr int MOST_PRODUCTS = 8;

}    // namespace matmul
