// The random stream of Theano's MRG_RandomStreams: MRG31k3p of L'Ecuyer and Touzin, many streams side by side.
//
// A stream is six 31-bit numbers, two recurrences of order three modulo M1 and M2. Sample i of an array comes from
// stream i % streams, so neighbouring streams make neighbouring samples and a vector holds one stream per lane:
//
//             stream 0   1   2   3  ...
//     round 0        0   1   2   3  ...  streams - 1      <- samples, in memory order
//     round 1    streams ...                              Every thread advances some columns through all rounds,
//       ...                                               their state in registers. The last round may end early.
//
// The samples and the state left behind are those of Theano's own code, bit for bit.
#pragma once
#include <stddef.h>
#include <algorithm>
#include "parallel.hpp"
#include "simd.hpp"

namespace mrg {

using simd::uvec;
using simd::ivec;
using simd::vec;
using simd::LANES;

typedef ptrdiff_t Index;

constexpr uint32_t M1 = 2147483647;    // 2^31 - 1
constexpr uint32_t M2 = 2147462579;    // 2^31 - 21069
constexpr float NORM = 4.6566126e-10f;    // 2^-31, as Theano writes it

// y modulo m for y < 2 m: y - m wraps around to a large number where y < m.
SIMD_INLINE uvec reduce(uvec y, uint32_t m) {
    const uvec less = y - m;
    return less < y ? less : y;
}

// One stream per lane.
struct Streams {
    uvec x1, x2, x3;    // the last three numbers of the recurrence modulo M1, the newest first
    uvec y1, y2, y3;    // the same modulo M2

    // 2^15 y modulo M2 + something that y needs: (y % 2^16) 2^15 + (y / 2^16) 2^31, and 2^31 = 21069 modulo M2.
    SIMD_INLINE uvec times_2_15(uvec y) { return reduce(((y & 0xffffu) << 15) + (y >> 16) * 21069u, M2); }

    // Advance all lanes, and return their samples in (0, 1).
    inline __attribute__((always_inline)) vec next() {
        // x = 2^22 x2 + (2^7 + 1) x3 modulo M1; multiplying by 2^k rotates a number of 31 bits.
        uvec x = reduce(((x2 & 0x1ffu) << 22) + (x2 >> 9) + ((x3 & 0xffffffu) << 7) + (x3 >> 24), M1);
        x = reduce(x + x3, M1);
        x3 = x2;
        x2 = x1;
        x1 = x;
        // y = 2^15 y1 + (2^15 + 1) y3 modulo M2
        uvec y = reduce(times_2_15(y3) + y3, M2);
        y = reduce(y + times_2_15(y1), M2);
        y3 = y2;
        y2 = y1;
        y1 = y;
        // The difference modulo M1, from 1 to M1.
        const ivec difference = (ivec)(x1 - y1 + ((uvec)((ivec)x1 <= (ivec)y1) & M1));
        return simd::to_floats(difference) * NORM;
    }

    // From and to rows of six numbers; of the lanes, the first `lanes` exist.
    void read(const int32_t* state, Index lanes) {
        uvec* const part[6] = {&x1, &x2, &x3, &y1, &y2, &y3};
        for (int k = 0; k < 6; k++)
            for (int l = 0; l < LANES; l++) (*part[k])[l] = l < lanes ? (uint32_t)state[l * 6 + k] : 1;
    }

    void write(int32_t* state, Index lanes) const {
        const uvec part[6] = {x1, x2, x3, y1, y2, y3};
        for (int k = 0; k < 6; k++)
            for (int l = 0; l < lanes; l++) state[l * 6 + k] = (int32_t)part[k][l];
    }
};

// ---- what becomes of the samples ----
//
// put(i, u) takes the samples i, i + 1, ... of a vector, put.first(i, u, n) the first n of them.

struct Uniform {
    float* out;
    inline __attribute__((always_inline)) void operator()(Index i, vec u) const { simd::store(out + i, u); }
    void first(Index i, vec u, Index n) const { simd::store_first(out + i, u, (int)n); }
};

// 1 where the sample is less than p, as a byte (numpy's bool) or as a float.
struct BernoulliBool {
    bool* out;
    float p;
    inline __attribute__((always_inline)) void operator()(Index i, vec u) const { simd::store_bools(out + i, u < p); }
    void first(Index i, vec u, Index n) const {
        for (Index l = 0; l < n; l++) out[i + l] = u[l] < p;
    }
};

struct BernoulliFloat {
    float* out;
    float p;
    inline __attribute__((always_inline)) vec keep(vec u) const {
        return (vec)((uvec)(u < p) & (uvec)simd::broadcast(1.0f));
    }
    inline __attribute__((always_inline)) void operator()(Index i, vec u) const { simd::store(out + i, keep(u)); }
    void first(Index i, vec u, Index n) const { simd::store_first(out + i, keep(u), (int)n); }
};

// ---- all streams ----

// Draw n samples and hand them to `put`; `state` is a row of six numbers for each stream.
template <class Put>
static void draw(int32_t* state, Index streams, Index n, const Put& put) {
    const Index rounds = n / streams, rest = n % streams;
    const int threads = n > 100000 ? parallel::most_threads() : 1;
    parallel::in_shares(threads, streams, LANES, [=, &put](Index s) {
        Streams lanes;
        const Index exist = std::min<Index>(LANES, streams - s);
        lanes.read(state + s * 6, exist);
        if (exist == LANES)
            for (Index i = s; i < rounds * streams; i += streams) put(i, lanes.next());
        else
            for (Index i = s; i < rounds * streams; i += streams) put.first(i, lanes.next(), exist);
        lanes.write(state + s * 6, exist);
        // The last round may end before the last stream: only those that take part get a new state.
        const Index last = std::min(exist, rest - s);
        if (last > 0) {
            put.first(rounds * streams + s, lanes.next(), last);
            lanes.write(state + s * 6, last);
        }
        return true;
    });
}

}    // namespace mrg
