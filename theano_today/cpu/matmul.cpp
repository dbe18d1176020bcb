// Matrix products for Ops: see kernels.hpp.
#include "kernels.hpp"
#include "matmul_update.hpp"

bool kernels::multiply(matmul::Matrix a, matmul::Matrix b, ptrdiff_t m, ptrdiff_t n, ptrdiff_t depth, float* c) {
    return matmul::product_of(a, b, m, n, depth, c);
}

bool kernels::multiply_into(const matmul::Factors* products, int count, ptrdiff_t m, ptrdiff_t n, const AnyRule& rule) {
    return matmul::products_into_rule(products, count, m, n, rule);
}
