"""A FunctionGraph as a program of PyTorch calls.

Theano's graphs compute shapes as they compute values: with integers that are variables.  A program
separates the two.  Every variable is either *on the device* (a tensor) or *on the host* (a NumPy
value that follows from the shapes of the inputs, from constants, and from integer inputs that are
used as indices or shapes).  For given shapes the values on the host are constants, and what remains
is a straight line of PyTorch calls:

1. The first call with new shapes *interprets* the graph: it runs each node in Python, those on the
   host with Theano's own Python code, and checks what Theano checks.
2. The second call with them writes that straight line down as a Python function (`_Line`), with all
   shapes, axes and indices in it as constants.
3. On a GPU the line is captured into a CUDA graph, after a warm-up: from then on a call is one
   launch.  ``THEANO_TODAY_CUDA=compile`` lets torch.compile fuse the line first,
   ``THEANO_TODAY_CUDA=eager`` does neither.

New values of shared variables are copied into their buffers at the end of the line, after
everything has been computed; thus no call changes what another node still reads.
"""
import collections
import logging
import os

import numpy as np
import torch
from theano import gof
from theano.compile.ops import Shape, Shape_i
from theano.gof import graph
from theano.tensor import TensorType, elemwise
from torch.fx.experimental.proxy_tensor import make_fx

from .convert import Unsupported, convert, device
from .ops_elemwise import check_elemwise
from .storage import DeviceStorage, from_numpy, to_numpy

_log = logging.getLogger('theano_today.cuda')

# Straight lines kept for one function: one for each combination of input shapes (and indices).
MAX_LINES = 32
# Calls of a line before a CUDA graph is captured: libraries choose and allocate in these.
WARM_UP = 3


def place(fgraph, order):
    """Decide which variables live on the host.

    Returns
    -------
    host : set of Variable
    converters : dict of Apply to Converter
        For the nodes on the device.

    Raises
    ------
    Unsupported
        If a node has no counterpart on the device, or its shape depends on values computed there.
    """
    host = set()

    def small(variable):
        """Whether a value that follows from shapes is kept on the host: it has few elements."""
        return not isinstance(variable.type, TensorType) or variable.type.ndim <= 1 or \
            all(variable.type.broadcastable)

    def on_host(variable):
        return isinstance(variable, graph.Constant) or variable in host

    def fetch(variable, node):
        """Move a variable that `node` needs on the host there, with all it is computed from."""
        if on_host(variable):
            return
        if variable.owner is None:
            if not isinstance(variable.type, TensorType) or variable.type.ndim > 1 or \
                    variable.type.dtype.startswith(('float', 'complex')):
                raise Unsupported('the Op {}, whose shape depends on {}'.format(node.op, variable))
        else:
            for v in variable.owner.inputs:
                fetch(v, node)
            host.update(variable.owner.outputs)
            return
        host.add(variable)

    for node in order:
        if isinstance(node.op, (Shape, Shape_i)) or (
                all(map(on_host, node.inputs)) and all(map(small, node.outputs))):
            host.update(node.outputs)

    converters = {}
    for node in order:
        if node.outputs[0] not in host:
            converter = convert(node)
            for i in sorted(converter.host):
                fetch(node.inputs[i], node)
    for node in order:  # once it is known what else went to the host
        if node.outputs[0] not in host:
            converter = convert(node)
            syncs = converter.syncs and not (
                len(node.inputs) > 1 and all(map(on_host, node.inputs[1:])))
            converters[node] = converter._replace(function=converter.function(node), syncs=syncs)
    return host, converters


class _HostNode:
    """A node on the host, run by Theano's own Python code."""

    def __init__(self, node):
        self.node = node
        if not isinstance(node.op, (Shape, Shape_i)):
            self.cells = {v: [None] for v in node.inputs + node.outputs}
            computed = {v: [True] for v in self.cells}
            self.thunk = node.op.make_thunk(node, self.cells, computed, [], impl='py')

    def __call__(self, values):
        op = self.node.op
        if isinstance(op, (Shape, Shape_i)):
            shape = np.array(values[0].shape, dtype='int64')
            return [shape if isinstance(op, Shape) else shape[op.i]]
        for variable, value in zip(self.node.inputs, values):
            self.cells[variable][0] = value
        for output in self.node.outputs:
            self.cells[output][0] = None
        self.thunk()
        return [self.cells[output][0] for output in self.node.outputs]


class _Line:
    """The straight line of calls for one combination of input shapes.

    Attributes
    ----------
    function : callable
        From the tensors of the inputs to a list of outputs and new values.
    source : str
        Its Python source.
    """

    def __init__(self, source, namespace, capturable):
        exec(compile(source, '<theano_today.cuda>', 'exec'), namespace)
        self.function, self.source = namespace['line'], source
        self.capturable = capturable
        self.calls, self.graph, self.inputs, self.epoch = 0, None, None, None


class Program:
    """What `theano.function` calls: reads the inputs from their storage, runs, writes the updates.

    Parameters
    ----------
    fgraph : FunctionGraph
    order : list of Apply
    host, converters
        From `place`.
    updated : dict of Variable to Variable
        From shared variables to their new values.
    input_storage, output_storage : list of list
    """
    need_update_inputs = False  # Theano leaves the updates to us
    allow_gc = True  # there is nothing that Function.free() could free

    def __init__(self, fgraph, order, host, converters, updated, input_storage, output_storage):
        self.fgraph, self.nodes = fgraph, order
        self.host, self.converters = host, converters
        self.input_storage, self.output_storage = input_storage, output_storage
        self.storage_map = dict(zip(fgraph.inputs, input_storage))
        self.host_nodes = {node: _HostNode(node) for node in order if node not in converters}
        self.lines = collections.OrderedDict()
        self.syncs = any(converter.syncs for converter in converters.values())
        self.constants = {}
        self.device = device()

        new_values = {new: old for old, new in updated.items()}
        # Position in the inputs of the shared variable that output i updates, or None.
        self.targets = [None] * len(fgraph.outputs)
        position = {v: i for i, v in enumerate(fgraph.inputs)}
        for i in range(len(fgraph.outputs) - len(updated), len(fgraph.outputs)):
            self.targets[i] = position[new_values[fgraph.outputs[i]]]
        used = {v for node in order for v in node.inputs} | set(fgraph.outputs)
        self.used = [v in used for v in fgraph.inputs]
        self.on_device = [use and v not in host for v, use in zip(fgraph.inputs, self.used)]
        self._staging = {}

    # -------------------------------------------------------------------------------- calls

    def __call__(self, output_subset=None):
        try:
            return self._call()
        except torch.OutOfMemoryError as error:
            raise self._out_of_memory(error) from error
        except RuntimeError as error:
            if 'allocate memory' not in str(error):
                raise
            raise self._out_of_memory(error) from error

    def _call(self):
        values, key = [], []
        for storage, on_device, used in zip(self.input_storage, self.on_device, self.used):
            if on_device:
                if isinstance(storage, DeviceStorage):
                    value = storage.tensor()
                else:
                    value = storage[0]
                key.append(value.shape)
            elif used:
                value = storage[0]
                key.append(value.tobytes())
            else:
                value = None
            values.append(value)
        key = tuple(key)
        line = self.lines.get(key)
        if line is None:
            values = [self._to_device(v, i) for i, v in enumerate(values)]
            if key not in self.lines:
                self._remember(key, None)
                results = self._interpret(values)
                for i in self._not_their_own(results, values):
                    results[i] = _copy(results[i])
                return self._finish(results)
            line, results = self._write_down(values)
            self._remember(key, line)
            return self._finish(results)
        self.lines.move_to_end(key)
        if line.graph is not None and self._in_place(line, values):
            return self._replay(line, values)
        values = [self._to_device(v, i) for i, v in enumerate(values)]
        line.calls += 1
        if line.calls > WARM_UP and line.capturable and _mode(self.device) != 'eager':
            return self._capture(line, values)
        return self._finish(line.function(*values))

    def _remember(self, key, line):
        self.lines[key] = line
        self.lines.move_to_end(key)
        while len(self.lines) > MAX_LINES:
            self.lines.popitem(last=False)

    def _to_device(self, value, position):
        """An input as a tensor; values for the host stay as they are."""
        if value is None or isinstance(value, torch.Tensor) or not self.on_device[position]:
            return value
        tensor = from_numpy(value)
        if self.device.type == 'cpu':
            return tensor
        return self._staged(tensor, position).to(self.device, non_blocking=True)

    def _staged(self, tensor, position):
        """Copy `tensor` into memory from which the device can copy while the host goes on."""
        if self.device.type == 'cpu' or tensor.is_pinned():
            return tensor
        key = position, tensor.shape
        if key not in self._staging:
            if len(self._staging) >= MAX_LINES:
                self._staging.clear()
            self._staging[key] = (torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True),
                                  torch.cuda.Event())
        staging, done = self._staging[key]
        done.synchronize()  # the copy of the call before this one
        staging.copy_(tensor)
        return staging

    def _mark_copied(self):
        for _, done in self._staging.values():
            done.record()

    def _finish(self, results):
        """Write the updates and bring the outputs to the host."""
        if self._staging:
            self._mark_copied()
        for result, target in zip(results, self.targets):
            if target is not None:
                storage = self.input_storage[target]
                if isinstance(storage, DeviceStorage):
                    storage.write(self._as_tensor(result, self.fgraph.inputs[target]))
                else:
                    storage[0] = self._as_array(result, self.fgraph.inputs[target])
        return self._outputs(results)

    def _outputs(self, results, copy=False):
        """The results as arrays; None for updates, which Theano does not look at."""
        arrays = [self._as_array(result, output) if target is None else None
                  for result, target, output in zip(results, self.targets, self.fgraph.outputs)]
        return [array.copy() if copy and array is not None else array for array in arrays]

    def _as_array(self, result, variable):
        if isinstance(result, torch.Tensor):
            return to_numpy(result)
        return variable.type.filter(np.array(result), allow_downcast=True) \
            if isinstance(variable.type, TensorType) else result

    def _as_tensor(self, result, variable):
        if isinstance(result, torch.Tensor):
            return result
        return from_numpy(np.asarray(result, dtype=variable.type.dtype)).to(self.device)

    def _out_of_memory(self, error):
        shapes = ', '.join('{} {}'.format(variable.name or variable, tuple(storage[0].shape))
                           for variable, storage in zip(self.fgraph.inputs, self.input_storage)
                           if not isinstance(storage, DeviceStorage) and
                           hasattr(storage[0], 'shape'))
        return MemoryError('The device {} is out of memory in a function called with {}. Call it '
                           'with smaller batches. ({})'.format(
                               self.device, shapes or 'no arrays', str(error).split('\n')[0]))

    # ----------------------------------------------------------------------- interpretation

    def _constant(self, variable):
        """A constant on the device, made once for all lines."""
        if variable not in self.constants:
            self.constants[variable] = from_numpy(np.asarray(variable.data)).to(self.device)
        return self.constants[variable]

    def _argument(self, variable, values, as_number, on_host):
        """The value of a node's input in the form that its converter wants."""
        if isinstance(variable, graph.Constant):
            value = variable.data
        else:
            value = values[variable]
        if on_host:
            return value
        if isinstance(value, torch.Tensor):
            return value
        if as_number and np.size(value) == 1:
            return np.asarray(value).item()
        if isinstance(variable, graph.Constant):
            return self._constant(variable)
        return from_numpy(np.asarray(value)).to(self.device)

    def _interpret(self, inputs, record=None):
        """Run the nodes one by one.

        Parameters
        ----------
        inputs : list of tensors and host values
        record : list, optional
            Gets ``(node, arguments)`` for each node on the device.
        """
        values = dict(zip(self.fgraph.inputs, inputs))
        last_use = self._last_use()
        for node in self.nodes:
            try:
                if node in self.host_nodes:
                    results = self.host_nodes[node]([
                        v.data if isinstance(v, graph.Constant) else values[v]
                        for v in node.inputs])
                else:
                    results = self._run_node(node, values, record)
            except torch.OutOfMemoryError:
                raise
            except Exception:
                gof.link.raise_with_op(node)
            values.update(zip(node.outputs, results))
            for variable in last_use.get(node, ()):
                del values[variable]
        return [output.data if isinstance(output, graph.Constant) else values[output]
                for output in self.fgraph.outputs]

    def _last_use(self):
        """For each node, the variables that nobody reads after it."""
        last = {}
        for node in self.nodes:
            for variable in node.inputs + node.outputs:
                if not isinstance(variable, graph.Constant):
                    last[variable] = node
        for variable in list(self.fgraph.outputs) + list(self.fgraph.inputs):
            last.pop(variable, None)
        result = {}
        for variable, node in last.items():
            result.setdefault(node, []).append(variable)
        return result

    def _run_node(self, node, values, record):
        converter = self.converters[node]
        arguments = [self._argument(v, values, converter.numbers, i in converter.host)
                     for i, v in enumerate(node.inputs)]
        if converter.numbers and isinstance(node.op, elemwise.Elemwise):
            check_elemwise(node, arguments)
            if not any(isinstance(a, torch.Tensor) for a in arguments):
                # Sizes unknown to Theano turned out to be one.
                arguments = [self._argument(v, values, False, False) for v in node.inputs]
        if record is not None:
            record.append((node, arguments))
        results = converter.function(*arguments)
        return results if isinstance(results, (tuple, list)) else (results,)

    # ---------------------------------------------------------------------- straight lines

    def _write_down(self, inputs):
        """Interpret once more and keep the calls; return the line and the results."""
        record = []
        results = self._interpret(inputs, record)
        names, namespace, body = {}, {'copy': _copy}, []
        parameters = ['input{}'.format(i) for i in range(len(inputs))]
        for variable, name, on_device in zip(self.fgraph.inputs, parameters, self.on_device):
            if on_device:  # the others are constants of this line
                names[variable] = name
        last_use = self._last_use()
        for n, (node, arguments) in enumerate(record):
            texts = []
            for i, (variable, argument) in enumerate(zip(node.inputs, arguments)):
                if variable in names and isinstance(argument, torch.Tensor):
                    texts.append(names[variable])
                elif isinstance(argument, (bool, int, float)) and argument == argument and \
                        abs(argument) != float('inf'):
                    texts.append(repr(argument))
                else:
                    texts.append('c{}_{}'.format(n, i))
                    namespace[texts[-1]] = argument
            function = 'f{}'.format(n)
            namespace[function] = self.converters[node].function
            for k, output in enumerate(node.outputs):
                names[output] = 'v{}_{}'.format(n, k)
            body.append('{} = {}({})  # {}'.format(
                ', '.join(names[v] for v in node.outputs), function, ', '.join(texts),
                str(node.op).replace('\n', ' ')))
            done = [names[v] for v in last_use.get(node, ()) if v in names]
            if done:
                body.append('del ' + ', '.join(done))

        texts = [names.get(output) if isinstance(result, torch.Tensor) else None
                 for output, result in zip(self.fgraph.outputs, results)]
        for i, result in enumerate(results):
            if texts[i] is None:  # known beforehand: from the host, or a constant
                texts[i] = 'r{}'.format(i)
                namespace[texts[i]] = result
        for i in self._not_their_own(results, inputs):
            results[i] = _copy(results[i])
            texts[i] = 'copy({})'.format(texts[i])
        source = 'def line({}):\n    {}\n'.format(', '.join(parameters), '\n    '.join(
            body + ['return [{}]'.format(', '.join(texts))]))
        return _Line(source, namespace, not self.syncs), results

    def _not_their_own(self, results, inputs):
        """Positions of results whose memory others use too.

        The caller may change an output, and updates are written one after the other: both need
        memory that no input, constant or other result shares.
        """
        tensors = list(inputs) + list(self.constants.values())
        taken = {_memory(value) for value in tensors if isinstance(value, torch.Tensor)}
        positions = []
        for i, result in enumerate(results):
            if isinstance(result, torch.Tensor):
                if _memory(result) in taken or not result.is_contiguous():
                    positions.append(i)
                taken.add(_memory(result))
        return positions

    # ----------------------------------------------------------------------- CUDA graphs

    def _capture(self, line, values):
        """Record the line into a CUDA graph and run it; without success, go on as before."""
        mode = _mode(self.device)
        targets = [(i, self.input_storage[target]) for i, target in enumerate(self.targets)
                   if target is not None]
        function = line.function
        try:
            if mode == 'compile':
                function = _compiled(function, values)
                function(*values)  # this compiles
            stay = all(isinstance(storage, DeviceStorage) for _, storage in targets)
            if not stay or (mode == 'compile' and self.device.type == 'cpu'):
                line.function, line.capturable = function, False
                return self._finish(function(*values))
            # Inputs of the call get fixed addresses; shared variables have theirs.
            line.inputs = [
                value.clone() if isinstance(value, torch.Tensor) and not isinstance(
                    storage, DeviceStorage) else value
                for value, storage in zip(values, self.input_storage)]

            def step():
                results = function(*line.inputs)
                for i, storage in targets:
                    storage.tensor().copy_(results[i])
                return results

            line.graph = (CudaGraph if self.device.type == 'cuda' else Rerun)(step)
            line.epoch = DeviceStorage.epoch
        except torch.OutOfMemoryError:
            raise
        except Exception:
            _log.warning('A function could not be captured for the GPU; its PyTorch calls run one '
                         'by one, which is slower.', exc_info=True)
            line.inputs, line.capturable = None, False
            return self._finish(line.function(*values))
        return self._replay(line, values)

    def _in_place(self, line, values):
        """Whether the buffers that a captured graph reads and writes are still the current ones."""
        if line.epoch != DeviceStorage.epoch:
            moved = any(value is not fixed for value, fixed, storage in zip(
                values, line.inputs, self.input_storage)
                if isinstance(storage, DeviceStorage) and isinstance(fixed, torch.Tensor))
            if moved:
                line.graph = line.inputs = None
                return False
            line.epoch = DeviceStorage.epoch
        return True

    def _replay(self, line, values):
        for i, (value, fixed) in enumerate(zip(values, line.inputs)):
            if value is not fixed and fixed is not None and self.on_device[i]:
                if not isinstance(value, torch.Tensor):
                    value = self._staged(from_numpy(value), i)
                fixed.copy_(value, non_blocking=True)
        self._mark_copied()
        line.graph.replay()
        for target in self.targets:
            if target is not None:
                self.input_storage[target].changed()
        return self._outputs(line.graph.results, copy=self.device.type == 'cpu')


class CudaGraph:
    """The kernels of one call of `step`, to be launched again all at once.

    Attributes
    ----------
    results : list
        What `step` returned; `replay` computes the tensors in it anew.
    """

    #: All graphs work in the same memory: they run one after the other, and what one computes is
    #: copied before the next one runs.
    pool = None

    def __init__(self, step):
        torch.cuda.synchronize()
        if CudaGraph.pool is None:
            CudaGraph.pool = torch.cuda.graph_pool_handle()
        self._graph = torch.cuda.CUDAGraph()
        # thread_local: the thread that prepares batches may allocate page-locked memory meanwhile.
        with torch.cuda.graph(self._graph, pool=CudaGraph.pool,
                              capture_error_mode='thread_local'):
            self.results = step()
        self.replay = self._graph.replay


class Rerun:
    """What stands in for `CudaGraph` on PyTorch's CPU device, for tests: the same addresses."""

    def __init__(self, step):
        self._step, self.results = step, None

    def replay(self):
        results = self._step()
        if self.results is None:
            self.results = results
        for fixed, result in zip(self.results, results):
            if isinstance(fixed, torch.Tensor):
                fixed.copy_(result)


def _compiled(function, values):
    """Let torch.compile fuse the calls of a line.

    The line is traced first, so that torch.compile sees PyTorch's own operations and nothing of the
    Python around them.
    """
    places = [i for i, value in enumerate(values) if isinstance(value, torch.Tensor)]
    constants = []

    def of_tensors(*tensors):
        arguments = [None] * len(values)
        for i, tensor in zip(places, tensors):
            arguments[i] = tensor
        results = function(*arguments)
        constants[:] = [None if isinstance(r, torch.Tensor) else r for r in results]
        return [r for r in results if isinstance(r, torch.Tensor)]

    traced = make_fx(of_tensors)(*[values[i] for i in places])
    compiled = torch.compile(traced, fullgraph=True, dynamic=False)

    def run(*arguments):
        tensors = iter(compiled(*[arguments[i] for i in places]))
        return [next(tensors) if constant is None else constant for constant in constants]
    return run


def _copy(tensor):
    return tensor.clone(memory_format=torch.contiguous_format)


def _memory(tensor):
    """The address of the memory that a tensor uses, by which views of one another are known."""
    return tensor.untyped_storage().data_ptr()


def _mode(device):
    """How lines run: 'graph', 'compile' or 'eager', from the environment."""
    # Without a GPU there is nothing to gain; the tests ask for it.
    mode = os.environ.get('THEANO_TODAY_CUDA', 'graph' if device.type == 'cuda' else 'eager')
    if mode not in ('graph', 'compile', 'eager'):
        raise ValueError('THEANO_TODAY_CUDA={}: choose graph, compile or eager.'.format(mode))
    return mode
