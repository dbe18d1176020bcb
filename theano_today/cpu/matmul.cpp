// Matrix products for Ops: see kernels.hpp.
#include "kernels.hpp"
#include "matmul_sparse.hpp"

bool kernels::multiply(matmul::Matrix a, matmul::Matrix b, ptrdiff_t m, ptrdiff_t n, ptrdiff_t depth, float* c) {
    return matmul::product_of(a, b, m, n, depth, c);
}

bool kernels::multiply_into(matmul::Matrix a, matmul::Matrix b, ptrdiff_t m, ptrdiff_t n, ptrdiff_t depth,
                            const AnyRule& rule) {
    return matmul::product_into_rule(a, b, m, n, depth, rule);
}
