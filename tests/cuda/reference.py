"""Run a graph on the device and by Theano's C Ops, and compare."""
import collections
import contextlib

import numpy as np
import theano
import theano.tensor as tt
import torch
from theano.gof.utils import MethodNotDefined
from theano_today.cuda.linker import host_mode
from theano_today.cuda.program import Program
from theano_today.cuda.storage import to_numpy

# Stock Theano, without the CPU engine of this project.  Graphs stay as they are written, but for the
# few rewrites that give a convolution C code.  The same Ops in Python need no compiling.
C = theano.Mode('cvm', 'fast_compile')
_IN_PYTHON = theano.gof.vm.VM_Linker(use_cloop=False, c_thunks=False)
PYTHON = theano.Mode(_IN_PYTHON, None)
# With the rewrites that the device's graphs see, too, but for those that its mode leaves out.
REWRITTEN = theano.Mode(_IN_PYTHON, host_mode().excluding(
    'theano_today_cpu', 'fusion', 'elemwise_fusion', 'inplace').provided_optimizer)


# The nodes that programs have run, a sample of each `kind`.
Sample = collections.namedtuple('Sample', 'node values results tolerance')
samples = {}
tolerance_now = {}


def on_device(function):
    return isinstance(function.fn, Program)


def assert_close(ours, theirs, rtol=1e-5, atol=1e-5, name=''):
    assert isinstance(ours, type(theirs)) and ours.dtype == theirs.dtype, name
    assert ours.shape == theirs.shape, name
    np.testing.assert_allclose(ours, theirs, rtol, atol, err_msg=name)


def check(inputs, outputs, values, gradients=True, mode=PYTHON, **tolerance):
    """Compare the outputs, and the gradients of a cost in which they all have a part.

    Every function is called three times: Program interprets, writes down, and runs the line.
    """
    return check_all({'': (inputs, outputs, values)}, gradients, mode, **tolerance)


def check_all(cases, gradients=True, mode=PYTHON, **tolerance):
    """`check` for many graphs in one function, since compiling takes longer than running.

    Parameters
    ----------
    cases : dict of str to (inputs, outputs, values)
        By name; no two have an input in common.
    """
    inputs, outputs, values, names = [], [], [], []
    for name, (case_inputs, case_outputs, case_values) in cases.items():
        if not isinstance(case_outputs, list):
            case_outputs = [case_outputs]
        if gradients:
            cost = sum(tt.sqr(o).sum() + 0.3 * (n + 1) * o.sum() for n, o in enumerate(case_outputs)
                       if o.dtype.startswith('float'))
            wrt = [i for i in case_inputs if i.dtype.startswith('float')]
            case_outputs = case_outputs + theano.grad(cost, wrt, disconnected_inputs='ignore')
        inputs += case_inputs
        outputs += case_outputs
        values += case_values
        names += [name] * len(case_outputs)
    device = theano.function(inputs, outputs, on_unused_input='ignore')
    assert on_device(device)
    tolerance_now.clear()
    tolerance_now.update(tolerance)
    host = theano.function(inputs, outputs, mode=mode, on_unused_input='ignore')
    expected = host(*values)
    for _ in range(3):
        results = device(*values)
        assert len(results) == len(expected) == len(names)
        for name, ours, theirs in zip(names, results, expected):
            assert_close(ours, theirs, name=name, **tolerance)
    return device


def kind(node):
    """Nodes of one kind have the same C code.

    That of an Elemwise is its scalar Op's, in loops that are the same for all of them: how it broadcasts
    has been compared with Python.
    """
    if isinstance(node.op, tt.Elemwise):
        return node.op.scalar_op, tuple(v.dtype for v in node.inputs)
    return node.op, tuple(v.type for v in node.inputs)


@contextlib.contextmanager
def collect_samples():
    """Keep a sample of each node that any program runs meanwhile."""
    original = Program._run_node

    def run_node(self, node, values, record):
        results = original(self, node, values, record)
        if kind(node) not in samples:
            samples[kind(node)] = Sample(
                node, [as_array(v.data if isinstance(v, theano.Constant) else values[v])
                       for v in node.inputs], list(map(as_array, results)), dict(tolerance_now))
        return results

    Program._run_node = run_node
    try:
        yield
    finally:
        Program._run_node = original


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
                        raise AssertionError(f'{sample.node}{sample.values}: {error}') from None
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
