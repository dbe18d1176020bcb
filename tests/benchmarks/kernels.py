"""How many kernels does a training step launch on a GPU, and how many bytes do they move?

    python tests/benchmarks/kernels.py                  the deck's net, batches of 128; needs no GPU
    python tests/benchmarks/kernels.py --list           each of them

The function that nolearn trains with is compiled for the device and called until it is a straight line
of PyTorch calls (see theano_today/cuda/lines.py).  That line is then run on tensors without
elements, which say that they are on a GPU, and each operation is counted:

- a kernel for each operation that computes something, for each result of a gradient of a
  convolution, and two for a product that is added to a matrix; none for views;
- the bytes of the tensors that it reads, and of those that it writes.

So these are the launches that the line asks for.  Inside of them cuDNN and cuBLAS may do more than
one (NCHW to NHWC, sums of partial products): `cuda.py` shows what a GPU really did.
"""
import argparse
import collections
import os
import sys

import numpy as np

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
os.environ['THEANO_TODAY_TORCH'] = 'cpu'
os.environ['THEANO_FLAGS'] = ','.join(filter(None, [
    os.environ.get('THEANO_FLAGS'), 'device=cuda']))
sys.path[:0] = [ROOT, os.path.join(ROOT, 'tests', 'cuda')]

import theano_today  # noqa: E402, F401, before theano
import pretend  # noqa: E402
import torch  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

BATCH_SIZE = 128


def training_line(batch_size=BATCH_SIZE):
    """The training step of the deck's net as (line, values of its inputs, its updates)."""
    import kfkd
    kfkd.VERBOSE = 0
    net = kfkd.build_net()
    net.initialize()
    random = np.random.RandomState(0)
    X = random.rand(batch_size, 1, 96, 96).astype('float32')
    y = random.uniform(-1, 1, (batch_size, 30)).astype('float32')
    program = net.train_iter_.fn
    for _ in range(2):
        net.train_iter_(X, y)
    for storage, value in zip(program.input_storage, (X, y)):
        storage[0] = value
    line, = program.lines.values()
    values = [storage.tensor() if hasattr(storage, 'tensor') else storage[0]
              for storage in program.input_storage]
    values = [torch.from_numpy(v) if isinstance(v, np.ndarray) else v for v in values]
    return line, values, program.targets


class Count(TorchDispatchMode):
    """Note each operation as (name, kernels, bytes read, bytes written)."""

    def __init__(self):
        super().__init__()
        self.noted = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        results = function(*args, **(kwargs or {}))
        outputs = _tensors(results)
        schema = function._schema
        views = bool(schema.returns) and all(
            value.alias_info is not None and not value.alias_info.is_write
            for value in schema.returns)
        name = function.name().replace('aten::', '')
        if views or not outputs and not name.startswith('_foreach') or \
                name.split('.')[0] in ('empty', 'new_empty', 'empty_like', 'empty_strided', 'detach',
                                       '_unsafe_view', '_reshape_alias', 'lift_fresh'):
            return results
        inputs = _tensors((args, kwargs))
        count = 1
        if name.startswith('convolution_backward'):
            count = len(outputs)
        elif name.startswith('addmm') and inputs[0].dim() == 2:
            count = 2
        if name.startswith('_foreach_copy_'):
            outputs, inputs = _tensors(args[0]), _tensors(args[1])
        self.noted.append((name, count, _bytes(inputs), _bytes(outputs)))
        return results

    def launch(self, launch):
        """An observer of `theano_today.cuda.kernels.run`."""
        self.noted.append((launch.name, 1, _bytes(launch.reads), _bytes(launch.writes)))


def _tensors(tree):
    return [leaf for leaf in torch.utils._pytree.tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def _bytes(tensors):
    """What is in the memory of these tensors; what is broadcast is read once."""
    total, seen = 0, set()
    for tensor in tensors:
        if id(tensor) not in seen:
            seen.add(id(tensor))
            lengths = [n for n, step in zip(tensor.shape, tensor.stride()) if step]
            total += tensor.element_size() * int(np.prod(lengths, dtype='int64')) * bool(
                tensor.numel())
    return total


def count(line, values, targets):
    """Run a line on tensors without elements; return what `Count` has noted.

    New values of variables are copied into their buffers in the end, where the line has not put them.
    """
    counter = Count()
    namespace = line.function.__globals__
    with pretend.on_the_gpu():
        constants = {name: pretend.like(value) for name, value in namespace.items()}
        namespace.update(constants)
        fakes = [pretend.like(value) for value in values]
        line.function(*fakes)  # makes tables of constants
        observe(counter.launch)
        with counter:
            results = line.function(*fakes)
            copies = [(torch.empty_like(result), result) for result, target in zip(results, targets)
                      if target is not None and result is not None]
            torch._foreach_copy_(*map(list, zip(*copies)))
    return counter.noted


def observe(observer):
    try:
        from theano_today.cuda.kernels import run
    except ImportError:  # versions of the project without such kernels
        return
    run.observers.append(observer)


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--batch-size', type=int, default=BATCH_SIZE)
    parser.add_argument('--list', action='store_true', help='each kernel, in order')
    options = parser.parse_args()
    noted = count(*training_line(options.batch_size))
    if options.list:
        for name, kernels, read, written in noted:
            print(f'{name[:58]:60}{kernels:3}{read / 1e6:10.1f} MB read{written / 1e6:10.1f} written')
    by_name = collections.Counter()
    for name, kernels, *_ in noted:
        by_name[name.split(':')[0].split('.')[0]] += kernels
    print(', '.join(f'{kernels} {name}' for name, kernels in by_name.most_common()))
    read, written = [sum(entry[i] for entry in noted) / 1e9 for i in (2, 3)]
    print(f'{sum(entry[1] for entry in noted)} kernels, {read + written:.2f} GB '
          f'({read:.2f} read, {written:.2f} written)')


if __name__ == '__main__':
    main()
