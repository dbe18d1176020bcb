"""Run a graph on the device and by Theano's C Ops, and compare."""
import collections

import numpy as np
import theano
import theano.tensor as tt
import torch
from theano.gof.utils import MethodNotDefined
from theano_today.cuda.linker import host_mode
from theano_today.cuda.program import Program
from theano_today.cuda.storage import to_numpy

# Stock Theano, without the CPU engine of this project: its C Ops, and the same Ops in Python, which
# need no compiling.
C = host_mode().excluding('theano_today_cpu')
PYTHON = theano.Mode(theano.gof.vm.VM_Linker(use_cloop=False, c_thunks=False),
                     C.provided_optimizer)


# The nodes that programs have run, a sample of each kind, by Op and types.
Sample = collections.namedtuple('Sample', 'node values results tolerance')
samples = {}
tolerance_now = {}


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
    tolerance_now.clear()
    tolerance_now.update(tolerance)
    host = theano.function(inputs, outputs, mode=mode, on_unused_input='ignore')
    expected = host(*values)
    for _ in range(3):
        for ours, theirs in zip(device(*values), expected):
            assert_close(ours, theirs, **tolerance)
    return device


def collect_samples():
    """Keep a sample of each node that any program runs from now on."""
    original = Program._run_node

    def run_node(self, node, values, record):
        results = original(self, node, values, record)
        key = node.op, tuple(v.type for v in node.inputs)
        if key not in samples:
            samples[key] = Sample(
                node, [as_array(v.data if isinstance(v, theano.Constant) else values[v])
                       for v in node.inputs], list(map(as_array, results)), dict(tolerance_now))
        return results

    Program._run_node = run_node


def as_array(value):
    return to_numpy(value).copy() if isinstance(value, torch.Tensor) else value


def check_against_c(most=60):
    """Compare the samples with Theano's C code; return how many Ops those were, by class.

    A C module for each Op would take a quarter of an hour.  Here some sixty make one, without the
    compiler's optimisations.  Theano runs those without C code in Python, too: `check` did.
    """
    left = [sample for sample in samples.values() if has_c_code(sample.node)]
    compared = collections.Counter(type(sample.node.op).__name__ for sample in left)
    flags = theano.config.gcc.cxxflags
    theano.config.gcc.cxxflags = flags + ' -O0'
    try:
        while left:
            part, left = left[:most], left[most:]
            inputs, outputs, values = [], [], []
            for sample in part:
                arguments = []
                for variable, value in zip(sample.node.inputs, sample.values):
                    if isinstance(variable.type, tt.TensorType):
                        arguments.append(variable.type())
                        inputs.append(arguments[-1])
                        values.append(np.asarray(value, variable.type.dtype))
                    else:
                        arguments.append(theano.gof.Constant(variable.type, value))
                outputs += sample.node.op(*arguments, return_list=True)
            function = theano.function(inputs, outputs, on_unused_input='ignore',
                                       mode=theano.Mode('c', optimizer=None))
            expected = iter(function(*values))
            for sample in part:
                for ours, theirs in zip(sample.results, expected):
                    try:
                        assert_close(np.asarray(ours), np.asarray(theirs), **sample.tolerance)
                    except AssertionError as error:
                        raise AssertionError('{}{}: {}'.format(
                            sample.node, sample.values, error)) from None
    finally:
        theano.config.gcc.cxxflags = flags
    return compared


def has_c_code(node):
    try:
        node.op.c_code(node, 'name', ['x'] * len(node.inputs), ['z'] * len(node.outputs),
                       dict(fail='', params='p'))
    except (MethodNotDefined, NotImplementedError):
        return False
    except Exception:  # it has, but not with such names
        pass
    return True
