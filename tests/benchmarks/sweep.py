"""Is the engine slower than stock Theano anywhere, and is it less accurate?

    python tests/benchmarks/sweep.py                    speed: 150 shapes of each kind, all threads
    python tests/benchmarks/sweep.py --threads 1        on one thread
    python tests/benchmarks/sweep.py --kinds dot conv   some kinds only
    python tests/benchmarks/sweep.py --accuracy         distance from float64, relative to the largest

Shapes are drawn at random, evenly on a logarithmic scale, within what takes less than a second. Both
contenders run in this process, in turn, on the same arrays; the least of several times counts. Shapes
where the engine takes more than `--limit` times stock's time are printed and make the exit status 1;
the summary gives the distribution of all ratios.
"""
import argparse
import os
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, ROOT)


def parse():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--kinds', nargs='+', default=list(KINDS), choices=list(KINDS))
    parser.add_argument('--shapes', type=int, default=150, help='how many shapes of each kind')
    parser.add_argument('--threads', type=int, help='OpenMP threads (default: all cores)')
    parser.add_argument('--limit', type=float, default=1.2, help='ratio above which a shape is printed')
    parser.add_argument('--seconds', type=float, default=.4, help='time for each shape and contender')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--accuracy', action='store_true', help='compare with float64 instead of timing')
    parser.add_argument('--verbose', action='store_true', help='print every shape')
    return parser.parse_args()


# ---- functions, for arrays of any shape ----

def convolution(T, x, W, b, g, parts=(), conv=None):
    h = (conv or T.nnet.conv2d)(x, W)
    if 'bias' in parts:
        h = h + b.dimshuffle('x', 0, 'x', 'x')
    if 'relu' in parts:
        h = 0.5 * (h + abs(h))
    if 'pool' in parts:
        from theano.tensor.signal.pool import pool_2d
        h = pool_2d(h, (2, 2), ignore_border=True)
    return h


def forward(*parts):
    return lambda T, x, W, b, g: [convolution(T, x, W, b, g, parts)]


def gradients(*parts, wrt='xWb', conv=None):
    def build(T, x, W, b, g):
        variables = [dict(x=x, W=W, b=b)[name] for name in wrt if name != 'b' or 'bias' in parts]
        out = convolution(T, x, W, b, g, parts, conv)
        return [out] + T.grad((out * g).sum(), variables)
    return build


def old_name(T, x, W, b, g):
    from theano.tensor.nnet.conv import conv2d
    return gradients('bias', 'relu', conv=conv2d)(T, x, W, b, g)


KINDS = {
    'dot': lambda T, a, b: [T.dot(a, b)],
    'dot-transposed': lambda T, a, b: [T.dot(a.T.copy().T, b)],
    'conv': forward(),
    'conv-relu-pool': forward('bias', 'relu', 'pool'),
    'gradients': gradients(),
    'gradients-relu': gradients('bias', 'relu'),
    'gradients-relu-pool': gradients('bias', 'relu', 'pool'),
    'gradients-of-weights': gradients('bias', 'relu', wrt='Wb'),
    'old-name': old_name,
}


def functions(kind, dtypes=('float32', 'float32')):
    """The function with the engine and without."""
    import theano
    import theano.tensor as T
    from theano_today import cpu
    result = []
    for switch, dtype in zip((cpu.enable, cpu.disable), dtypes):
        dims = (2, 2) if kind.startswith('dot') else (4, 4, 1, 4)
        inputs = [T.TensorType(dtype, (False,) * ndim)() for ndim in dims]
        switch()
        result.append(theano.function(inputs, KINDS[kind](T, *inputs), on_unused_input='ignore'))
    cpu.enable()
    return result


# ---- shapes ----

def logarithmic(random, low, high):
    import numpy as np
    return int(round(np.exp(random.uniform(np.log(low), np.log(high)))))


def draw_arrays(kind, random):
    """Arrays of a random shape, and the multiplications that they ask for."""
    import numpy as np
    while True:
        if kind.startswith('dot'):
            m, k, n = [1 if random.rand() < .15 else logarithmic(random, 1, 4096) for _ in range(3)]
            work, shapes, label = m * k * n, [(m, k), (k, n)], f'{m} x {k} times {k} x {n}'
            size = max(m * k, k * n, m * n)
        else:
            batch, channels, filters = [logarithmic(random, 1, high) for high in (512, 1024, 1024)]
            if random.rand() < .2:
                channels = random.choice([1, 3])
            kernel = random.choice([1, 2, 3, 3, 3, 5, 7, 11])
            side = logarithmic(random, kernel + 1, 512)
            out = side - kernel + 1
            pooled = out // 2 if 'pool' in kind else out
            if not pooled:
                continue
            work = batch * channels * filters * kernel ** 2 * out ** 2
            size = batch * max(channels * side ** 2, filters * out ** 2)
            shapes = [(batch, channels, side, side), (filters, channels, kernel, kernel), (filters,),
                      (batch, filters, pooled, pooled)]
            label = (f'batch {batch} of {channels} x {side} x {side}, '
                     f'{filters} filters {kernel} x {kernel}')
        if work < 4e9 and size < 3e7:
            return [random.standard_normal(s).astype(np.float32) for s in shapes], label


# ---- measuring ----

def seconds(function, arrays):
    begin = time.perf_counter()
    function(*arrays)
    return time.perf_counter() - begin


def time_shapes(kind, args):
    """Prints slow shapes; returns all ratios."""
    import numpy as np
    pair = functions(kind)
    random = np.random.RandomState(args.seed)
    ratios = []
    for _ in range(args.shapes):
        arrays, label = draw_arrays(kind, random)
        times = [[], []]
        spent = 0
        while spent < 2 * args.seconds and len(times[0]) < 50 or len(times[0]) < 3:
            for function, list_ in zip(pair, times):
                list_.append(seconds(function, arrays))
                spent += list_[-1]
        ours, stock = min(times[0]), min(times[1])
        ratios.append(ours / stock)
        if args.verbose or ours / stock > args.limit:
            print(f'{ours / stock:6.2f} times stock: {1e3 * ours:9.3f} ms, '
                  f'stock {1e3 * stock:9.3f} ms   {kind} {label}', flush=True)
    return ratios


# Where long sums are: shapes that the random ones rarely reach.
LONG = {
    'dot': [((3, 1000000), (1000000, 40)), ((40, 1000000), (1000000, 3)), ((2, 300000), (300000, 2))],
    'dot-transposed': [((3, 1000000), (1000000, 40)), ((2, 300000), (300000, 2))],
    'conv': [((1, 1024, 14, 14), (64, 1024, 3, 3))],
    'gradients': [((1, 512, 14, 14), (512, 512, 3, 3))],
    'gradients-relu': [((2, 1, 1000, 1000), (3, 1, 3, 3)), ((1, 2, 2000, 2000), (2, 2, 3, 3)),
                       ((512, 8, 30, 30), (8, 8, 3, 3)), ((1, 64, 14, 14), (1024, 64, 5, 5)),
                       ((1, 512, 14, 14), (512, 512, 3, 3))],
    'gradients-relu-pool': [((64, 32, 47, 47), (64, 32, 2, 2)), ((2, 1, 1000, 1000), (3, 1, 3, 3)),
                            ((1, 512, 28, 28), (512, 512, 3, 3)), ((1, 32, 32, 32), (64, 32, 11, 11))],
}


# Numbers of which nothing cancels, and numbers of both signs. Where ReLU's and the pool's gradients flow
# must not depend on rounding: there the convolution's output is exact in float32, and never zero.

def positive(shapes, random, exact):
    import numpy as np
    arrays = [random.random_sample(shape).astype(np.float32) for shape in shapes]
    if exact:
        arrays[:3] = [np.float32(random.randint(1, 9, shape) / 8) for shape in shapes[:3]]
    return arrays


def signed(shapes, random, exact):
    import numpy as np
    arrays = [random.standard_normal(shape).astype(np.float32) for shape in shapes]
    if exact:
        arrays[:2] = [np.float32(random.randint(-8, 9, shape) / 8) for shape in shapes[:2]]
        arrays[2][...] = 1 / 128
    return arrays


def accuracy(args):
    """Prints results that are further from float64 than three times stock's; returns how many."""
    import numpy as np
    bad = 0
    for kind in args.kinds:
        pair, (_, exact) = functions(kind), functions(kind, ('float64', 'float64'))
        random = np.random.RandomState(args.seed)
        worst = 0
        for i in range(args.shapes):
            if i < len(LONG.get(kind, ())):
                shapes, label = list(LONG[kind][i]), str(LONG[kind][i])
                if len(shapes[0]) == 4:
                    (n, _, h, w), (o, _, k, _) = shapes
                    pool = 2 if 'pool' in kind else 1
                    shapes += [(o,), (n, o, (h - k + 1) // pool, (w - k + 1) // pool)]
            else:
                arrays, label = draw_arrays(kind, random)
                shapes = [a.shape for a in arrays]
            for numbers in positive, signed:
                arrays = numbers(shapes, random, kind.startswith('gradients-') or kind == 'old-name')
                if kind == 'dot' and i % 2:
                    arrays[0][random.random_sample(arrays[0].shape) < .7] = 0  # for the sparse products
                truth = exact(*[a.astype(np.float64) for a in arrays])
                results = [function(*arrays) for function in pair]
                for number, (t, ours, stock) in enumerate(zip(truth, *results)):
                    if t.size:
                        errors = [abs(v - t).max() / abs(t).max() for v in (ours, stock)]
                        # Below two units in the last place there is nothing to compare.
                        ratio = errors[0] / max(errors[1], 8e-8)
                        worst = max(worst, ratio)
                        if ratio > 3:
                            bad += 1
                            print("{:5.1f} times stock's error: {:.1e}, stock {:.1e}   {} {}, {}, result {}"
                                  .format(ratio, *errors, kind, label, numbers.__name__, number), flush=True)
        print(f"{kind}: {args.shapes} shapes, at worst {worst:.1f} times stock's error", flush=True)
    return int(bad > 0)


def main():
    args = parse()
    if args.threads:
        os.environ['OMP_NUM_THREADS'] = os.environ['OPENBLAS_NUM_THREADS'] = str(args.threads)
    import theano_today  # noqa: F401
    import numpy as np
    if args.accuracy:
        raise SystemExit(accuracy(args))
    slow = 0
    for kind in args.kinds:
        ratios = np.array(time_shapes(kind, args))
        above = (ratios > args.limit).sum()
        slow += above
        print(f'{kind}: {len(ratios)} shapes, engine / stock least {ratios.min():.2f}, '
              f'median {np.median(ratios):.2f}, 90 % {np.percentile(ratios, 90):.2f}, '
              f'most {ratios.max():.2f}; {above} above {args.limit}', flush=True)
    raise SystemExit(int(slow > 0))


if __name__ == '__main__':
    main()
