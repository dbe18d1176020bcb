"""Where kernels are started.

A kernel has a reference in PyTorch's own calls beside it (`with_kernel`).  The reference runs where
there is no Triton, or no GPU, or where Triton finds no C compiler, cannot write its cache, or fails
otherwise: then with a warning, and for the rest of the process.
"""
import collections
import contextlib
import importlib.util
import linecache
import logging
import os

import torch
from torch._subclasses.fake_tensor import FakeTensor

__all__ = ['cannot', 'from_source', 'launch', 'observers', 'precision', 'references', 'usable', 'with_kernel']

_log = logging.getLogger('theano_today.cuda')

#: What a kernel returns for arguments that it does not cover.
cannot = object()

Launch = collections.namedtuple('Launch', 'kernel arguments options reads writes name')

#: Functions that see each `Launch`, before it happens.
observers = []

_installed = importlib.util.find_spec('triton') is not None
_failed = False
_only_references = 0
_sources = {}


def interpreted():
    """Whether kernels run in Triton's interpreter, hence on the CPU."""
    return os.environ.get('TRITON_INTERPRET') == '1'


def precision():
    """How products are rounded, from THEANO_TODAY_TF32: '' (float32), 'tf32' or 'tf32x3'."""
    asked = os.environ.get('THEANO_TODAY_TF32', '')
    choices = {'': '', '0': '', '1': 'tf32', 'x3': 'tf32x3'}
    if asked not in choices:
        raise ValueError(f'THEANO_TODAY_TF32={asked}: choose 0, 1 or x3.')
    return choices[asked]


def usable(tensors, traceable=False):
    """Whether kernels can run on these tensors, of which there must be one.

    Tensors without elements (`FakeTensor`) count as tensors of a GPU.
    """
    if not _installed or _failed or (_only_references and not traceable):
        return False
    return bool(tensors) and all(
        tensor.is_cuda or interpreted() or isinstance(tensor, FakeTensor) for tensor in tensors)


@contextlib.contextmanager
def references():
    """A context in which no kernel runs, for torch.compile, which would not see it."""
    global _only_references
    _only_references += 1
    try:
        yield
    finally:
        _only_references -= 1


def with_kernel(kernel, reference, traceable=False):
    """Return a function that does what both do, by the kernel if it can.

    Parameters
    ----------
    kernel : callable
        Returns `cannot` for what it does not cover, before it has done anything.
    reference : callable
        The same in PyTorch's own calls.
    traceable : bool
        Whether PyTorch knows the kernel as an operation of its own.
    """
    def run(*arguments, **kwargs):
        if usable([a for a in arguments if isinstance(a, torch.Tensor)], traceable):
            try:
                results = kernel(*arguments, **kwargs)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:
                give_up(error)
            else:
                if results is not cannot:
                    return results
        return reference(*arguments, **kwargs)
    return run


def give_up(error):
    """Run no kernel any more in this process; say so once."""
    global _failed
    if not _failed:
        _log.warning(
            'Triton cannot run kernels here (%s: %s); PyTorch\'s own calls do the work, which is '
            'slower. Triton needs a C compiler and a folder to write to (TRITON_CACHE_DIR).',
            type(error).__name__, str(error).strip().split('\n')[-1])
    _failed = True


def from_source(source):
    """Return the one function in `source`, of Triton's language, compiled for each use of it."""
    import triton
    import triton.language as tl
    if source not in _sources:
        name = f'<theano_today.cuda.kernels {len(_sources)}>'
        # Triton asks `inspect` for the text.
        linecache.cache[name] = len(source), None, source.splitlines(True), name
        namespace = {'tl': tl, 'triton': triton}
        exec(compile(source, name, 'exec'), namespace)
        _sources[source] = triton.jit(namespace['kernel'])
    return _sources[source]


def launch(kernel, grid, *arguments, reads, writes, name, **options):
    """Start a kernel.

    Parameters
    ----------
    kernel : triton.JITFunction
    grid : tuple of int
    arguments
        Of the kernel.
    reads, writes : list of tensors
        Those among the arguments that it reads and writes.
    name : str
        For those who count.
    options
        Constants of the kernel, and Triton's own such as ``num_warps``.
    """
    for observer in observers:
        observer(Launch(kernel, arguments, options, reads, writes, name))
    if not any(isinstance(tensor, FakeTensor) for tensor in writes):
        kernel[grid](*arguments, **options)
