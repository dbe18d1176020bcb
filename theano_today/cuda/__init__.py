"""Theano on today's NVIDIA GPUs: a linker that runs its graphs on PyTorch.

Theano's own backend for GPUs (libgpuarray, cuDNN up to 7) does not run with today's drivers.  The
flag keeps its meaning and gets a new engine::

    THEANO_FLAGS=device=cuda python kfkd.py       # or cuda0, cuda1, ..., gpu, gpu0, ...

Nothing else changes: the same script, the same random numbers, the same pickles.

==============  ==================================================================================
linker.py       the default mode of `theano.function`, and the way back to the CPU
placement.py    which variables live on the host: shapes apart from values
program.py      what a compiled function is: nodes that are run one by one, then straight lines
lines.py        straight lines of PyTorch calls, written down
graphs.py       lines recorded into CUDA graphs, and what these refer to
indices.py      indices and labels, checked before they reach the GPU
storage.py      where the values of shared variables live
convert.py      the registry of converters, from Ops to functions of tensors
ops_*.py        the converters
fused.py        rewrites of the graph: fewer, larger Ops
kernels/        these Ops in Triton
==============  ==================================================================================

Environment variables
---------------------
THEANO_TODAY_TORCH : ``cpu``
    Run the same programs on PyTorch's CPU device: for tests.
THEANO_TODAY_CUDA : ``graph`` (default), ``compile``, ``eager``
    How programs run on a GPU, see `program`.
THEANO_TODAY_TF32 : ``1``, ``x3``
    1: let matrix products and convolutions round their factors to 10 bits (TensorFloat-32): faster,
    and no longer equal to the CPU's results in the fourth digit.  x3: make each product of three such
    (kernels/dot.py): float32 to its last digits.
"""
import importlib.util
import os
import re

__all__ = ['asked_for', 'install']

INSTALL = 'pip install -r requirements/cuda.txt'


def asked_for(flag):
    """Whether the value of Theano's flag ``device`` is for this engine.

    Where pygpu is installed, Theano's own backend gets its flag.

    Parameters
    ----------
    flag : str or None

    Returns
    -------
    bool
    """
    return flag is not None and flag.startswith(('cuda', 'gpu')) and \
        importlib.util.find_spec('pygpu') is None


def torch_device(flag):
    """Return the name of PyTorch's device for a value of Theano's flag ``device``.

    Raises
    ------
    SetupError
        If PyTorch is not installed or has no such device; the message says what to do.
    """
    from .. import SetupError
    match = re.fullmatch(r'(?:cuda|gpu)(\d*)', flag)
    if not match:
        raise SetupError(
            f'device={flag}: write cuda, or cuda0, cuda1, ... for one of several GPUs.')
    try:
        import torch
    except ImportError as error:
        raise SetupError(f'device={flag} needs PyTorch, which cannot be imported ({error}). '
                         f'Run: {INSTALL}') from error
    stand_in = os.environ.get('THEANO_TODAY_TORCH', '')
    if stand_in == 'cpu':
        return 'cpu'
    if stand_in:
        raise SetupError(f'THEANO_TODAY_TORCH={stand_in}: the only value is cpu.')
    if not torch.cuda.is_available():
        why = f'this PyTorch ({torch.__version__}) is built without CUDA' \
            if torch.version.cuda is None else \
            f'PyTorch {torch.__version__} finds no NVIDIA GPU with a driver for CUDA ' \
            f'{torch.version.cuda}'
        raise SetupError(f'device={flag}: {why}. Run nvidia-smi to see GPU and driver, and: '
                         f'{INSTALL}. Without a GPU leave the flag device out.')
    index = int(match.group(1) or 0)
    if index >= torch.cuda.device_count():
        raise SetupError(
            f'device={flag}: there are {torch.cuda.device_count()} GPUs, counted from cuda0.')
    return f'cuda:{index}'


def install(name):
    """Make PyTorch's device `name` the place where functions of Theano's default mode run.

    To be called once, after Theano has been imported.
    """
    import torch

    from ..nets import batches
    from . import convert, linker, storage
    from .kernels import run
    convert.use_device(name)
    if name != 'cpu':
        torch.cuda.set_device(name)
        tf32 = run.precision() == 'tf32'
        torch.backends.cuda.matmul.allow_tf32 = tf32
        torch.backends.cudnn.allow_tf32 = tf32
        # The same seed gives the same weights.
        torch.backends.cudnn.deterministic = True
    storage.serve_host_programs(convert.device())
    linker.register()
    batches.run_ahead(storage.pinned if name != 'cpu' else lambda array: array)
