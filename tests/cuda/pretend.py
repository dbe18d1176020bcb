"""A GPU that is not there: converters run on PyTorch's fake tensors as well, on the device cuda.

A fake tensor has a device, a shape and a dtype, but no elements.  What PyTorch's CPU device hides
shows on it: a converter that mixes tensors of the host and of the GPU, that looks at elements (on a
GPU it would wait for them, in a CUDA graph it must not), or that copies from one to the other.
"""
import contextlib
import weakref

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from theano_today.cuda import convert, program

GPU = torch.device('cuda:0')
fake_mode = FakeTensorMode()
checked = 0  # nodes


class NothingCrosses(TorchDispatchMode):
    """Refuse operations whose tensors are not all on the GPU; a number in a tensor is none."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        results = function(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves((args, kwargs, results)):
            if isinstance(tensor, torch.Tensor) and tensor.device != GPU:
                raise AssertionError(f'{function} has a tensor on {tensor.device}')
        return results


class WithoutGuards(TorchFunctionMode):
    """What PyTorch does under a guard of the device, which one without CUDA lacks, without it."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.Tensor.__getitem__:
            return get(*args)
        if function is torch.Tensor.__setitem__:
            return torch.ops.aten.copy_(get(*args[:2]), args[2])
        if function is torch.Tensor.copy_:
            function = torch.ops.aten.copy_
        return function(*args, **(kwargs or {}))


def get(x, index):
    index = list(index) if isinstance(index, tuple) else [index]
    taken = sum(entry is not None and entry is not Ellipsis for entry in index)
    rest = [slice(None)] * (x.dim() - taken)
    place = next((i for i, entry in enumerate(index) if entry is Ellipsis), None)
    index = index + rest if place is None else index[:place] + rest + index[place + 1:]
    axis, tensors = 0, []
    for entry in index:
        if isinstance(entry, int):
            x = torch.ops.aten.select(x, axis, entry)
            continue
        if isinstance(entry, slice):
            x = torch.ops.aten.slice(x, axis, entry.start, entry.stop, entry.step or 1)
        elif entry is None:
            x = x.unsqueeze(axis)
        axis += 1
        tensors.append(entry if isinstance(entry, torch.Tensor) else None)
    return torch.ops.aten.index(x, tensors) if any(t is not None for t in tensors) else x


@contextlib.contextmanager
def on_the_gpu():
    real, convert._device = convert._device, GPU
    try:
        with fake_mode, WithoutGuards():
            yield
    finally:
        convert._device = real


def like(value):
    """A fake tensor of the same shape, strides and dtype; other values stay."""
    if not isinstance(value, torch.Tensor):
        return value
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=GPU)


def check(node, converter, arguments, results):
    """Run a converter on the pretended GPU; compare what it gives with the real results."""
    global checked
    with on_the_gpu():
        fakes = [like(value) for value in arguments]
        if converter.syncs:
            return
        converter.function(*fakes)  # may make constants, which it then keeps
        with NothingCrosses():
            answers = converter.function(*fakes)
    answers = answers if isinstance(answers, (tuple, list)) else (answers,)
    assert len(answers) == len(results)
    for answer, result in zip(answers, results):
        assert isinstance(answer, torch.Tensor) == isinstance(result, torch.Tensor)
        if isinstance(result, torch.Tensor):
            assert (answer.device, answer.shape, answer.dtype) == (
                GPU, result.shape, result.dtype), (node.op, answer, result.shape, result.dtype)
    checked += 1


def description(value):
    """All that a converter on the pretended GPU sees of an argument."""
    if isinstance(value, torch.Tensor):
        return value.shape, value.stride(), value.dtype
    return (value.dtype, value.shape, value.tobytes()) if isinstance(value, np.ndarray) else repr(value)


def install():
    """Check every node that any program runs from now on, once for arguments that look the same."""
    original = program.Program._run_node
    checked_with = weakref.WeakKeyDictionary()

    def run_node(self, node, values, record):
        seen = [] if record is None else record
        results = original(self, node, values, seen)
        arguments = seen[-1][1]
        looks = tuple(map(description, arguments))
        if looks not in checked_with.setdefault(node, set()):
            check(node, self.converters[node], arguments, results)
            checked_with[node].add(looks)
        return results

    program.Program._run_node = run_node
