"""What do the monitors of beyond.monitors cost?

    python tests/benchmarks/monitors.py              the deck's net, all three at their default
    python tests/benchmarks/monitors.py --every 10 --rounds 5

Measured in one process, so that nothing else differs: the time of each training step without a
sample, and the time of each monitor's sample beside it (UpdateMonitor's copy of the weights
included). The cost is the sum of the samples over the time of `every` steps. The first step and
the first sample compile and are not counted.
"""
import argparse
import os
import sys
import time

import numpy as np

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, ROOT)


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--every', type=int, default=None, help="batches; the monitors' default")
    parser.add_argument('--rounds', type=int, default=7, help='samples measured')
    parser.add_argument('--steps', type=int, default=3, help='training steps between two samples')
    options = parser.parse_args()

    import kfkd
    from beyond.monitors import ActivationMonitor, GradientMonitor, UpdateMonitor
    random = np.random.RandomState(0)
    size = kfkd.BATCH_SIZE
    X = random.rand(size, 1, 96, 96).astype(np.float32)
    y = random.uniform(-1, 1, (size, 30)).astype(np.float32)
    kfkd.VERBOSE = 0
    net = kfkd.build_net()
    net.initialize()
    net.batch_iterator_train(X, y)
    # every=1: each call of on_batch_finished is a sample.
    monitors = [monitor(every=1) for monitor in (ActivationMonitor, GradientMonitor, UpdateMonitor)]
    every = options.every or ActivationMonitor().every
    for monitor in monitors:
        monitor.on_training_started(net, [])

    steps, samples = [], []
    for _ in range(options.rounds + 1):
        for _ in range(options.steps):
            steps.append(timed(lambda: net.train_iter_(X, y)))
        samples.append([timed(lambda: monitor.on_batch_finished(net, [])) for monitor in monitors])
        taken = ', '.join(f'{1e3 * sample:.0f}' for sample in samples[-1])
        print(f'round {len(samples) - 1}: step {1e3 * steps[-1]:.0f} ms, samples {taken} ms',
              file=sys.stderr)
    step = np.median(steps[options.steps:])
    medians = np.median(samples[1:], axis=0)
    print(f'a training step of {size} faces: {1e3 * step:.0f} ms')
    for monitor, median in zip(monitors, medians):
        print(f'{type(monitor).__name__:18} {1e3 * median:5.0f} ms a sample, '
              f'{median / (every * step):.2%} of the training at every={every}')
    print('{:18} {:5.0f} ms a sample, {:.2%} of the training'.format(
        'all three', 1e3 * medians.sum(), medians.sum() / (every * step)))


def timed(function):
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


if __name__ == '__main__':
    main()
