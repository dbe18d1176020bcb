"""Run a graph on the device and by Theano's C Ops, and compare."""
import numpy as np
import theano
import theano.tensor as tt
from theano_today.cuda.linker import host_mode
from theano_today.cuda.program import Program

# Stock Theano, without the CPU engine of this project: its C Ops, and the same Ops in Python, which
# need no compiling.
C = host_mode().excluding('theano_today_cpu')
PYTHON = theano.Mode(theano.gof.vm.VM_Linker(use_cloop=False, c_thunks=False),
                     C.provided_optimizer)


def on_device(function):
    return isinstance(function.fn, Program)


def assert_close(ours, theirs, rtol=1e-5, atol=1e-5):
    assert isinstance(ours, type(theirs)) and ours.dtype == theirs.dtype
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, rtol, atol)


def check(inputs, outputs, values, gradients=True, mode=PYTHON, **tolerance):
    """Compare the outputs, and the gradients of a cost in which they all have a part.

    Every function is called three times: Program interprets, writes down, and runs the line.
    """
    outputs = outputs if isinstance(outputs, list) else [outputs]
    if gradients:
        cost = sum(tt.sqr(o).sum() + 0.3 * (n + 1) * o.sum() for n, o in enumerate(outputs)
                   if o.dtype.startswith('float'))
        wrt = [i for i in inputs if i.dtype.startswith('float')]
        outputs = outputs + theano.grad(cost, wrt, disconnected_inputs='ignore')
    device = theano.function(inputs, outputs, on_unused_input='ignore')
    assert on_device(device)
    host = theano.function(inputs, outputs, mode=mode, on_unused_input='ignore')
    expected = host(*values)
    for _ in range(3):
        for ours, theirs in zip(device(*values), expected):
            assert_close(ours, theirs, **tolerance)
    return device
