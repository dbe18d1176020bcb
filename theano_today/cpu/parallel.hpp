// Loops that several threads share. (To start a team of one costs as much as a small layer: one thread is none.)
#pragma once
#include <stddef.h>
#include <new>
#ifdef _OPENMP
#include <omp.h>
#endif

namespace parallel {

// How many threads there are.
static inline int most_threads() {
#ifdef _OPENMP
    return omp_get_max_threads();
#else
    return 1;
#endif
}

// body(i), which returns false, or throws, when memory is short.
template <class Body>
static bool attempt(const Body& body, ptrdiff_t i) {
    try {
        return body(i);
    } catch (const std::bad_alloc&) {
        return false;
    }
}

// One thread's way: body(i) for i = 0, step, 2 step, ... below n. Returns whether memory was there for all.
template <class Body>
static bool alone(ptrdiff_t n, ptrdiff_t step, const Body& body) {
    bool done = true;
    for (ptrdiff_t i = 0; i < n; i += step) done = attempt(body, i) && done;
    return done;
}

// The same in equal shares.
template <class Body>
static bool in_shares(int threads, ptrdiff_t n, ptrdiff_t step, const Body& body) {
    if (threads == 1) return alone(n, step, body);
    bool done = true;
#ifdef _OPENMP
#pragma omp parallel for schedule(static) num_threads(threads) reduction(&& : done)
#endif
    for (ptrdiff_t i = 0; i < n; i += step) done = attempt(body, i) && done;
    return done;
}

// The same, where whoever is free takes the next: another program on one of the cores then slows that core's share only.
// Not for sums, which have to be cut in the same way each time.
template <class Body>
static bool in_turn(int threads, ptrdiff_t n, const Body& body) {
    if (threads == 1) return alone(n, 1, body);
    bool done = true;
#ifdef _OPENMP
#pragma omp parallel for schedule(dynamic) num_threads(threads) reduction(&& : done)
#endif
    for (ptrdiff_t i = 0; i < n; i++) done = attempt(body, i) && done;
    return done;
}

}    // namespace parallel
