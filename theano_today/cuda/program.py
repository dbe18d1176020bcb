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
   launch (`graphs`).  ``THEANO_TODAY_CUDA=compile`` lets torch.compile fuse the line first,
   ``THEANO_TODAY_CUDA=eager`` does neither.

New values of shared variables are copied into their buffers at the end of the line, after
everything has been computed; or a node writes them there itself, if nothing that comes after it
reads the old value.  Thus no call changes what another node still reads.
"""
import collections
import logging

import numpy as np
import torch
from theano import gof
from theano.compile.ops import Shape, Shape_i
from theano.gof import graph
from theano.tensor import TensorType, elemwise

from . import graphs, indices
from .convert import Unsupported, convert, device
from .ops_elemwise import check_elemwise
from .storage import LOCK, DeviceStorage, from_numpy, to_numpy

_log = logging.getLogger('theano_today.cuda')

# Straight lines kept for one function: one for each combination of input shapes (and indices).
MAX_LINES = 32


def known_from_shapes(order):
    """Variables that follow from shapes and constants alone and have few elements: a set.

    Parameters
    ----------
    order : list of Apply
        All nodes of a graph, each behind those that it needs.
    """
    known = set()

    def small(variable):
        return not isinstance(variable.type, TensorType) or variable.type.ndim <= 1 or \
            all(variable.type.broadcastable)

    for node in order:
        if isinstance(node.op, (Shape, Shape_i)) or (
                all(isinstance(v, graph.Constant) or v in known for v in node.inputs) and
                all(map(small, node.outputs))):
            known.update(node.outputs)
    return known


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
    host = known_from_shapes(order)

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
            return [shape if isinstance(op, Shape) else np.array(shape[op.i])]  # not a NumPy scalar
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
    source : str
        The Python source of two functions from the values of the inputs to the list of results.
    pure : callable
        The one that changes none of its arguments.
    function : callable
        The one that writes new values of shared variables where the old ones are, if it can.
    in_place : set of int
        The results that it writes so; it returns None for them.
    shapes : list of tuple or None
        Of the results that are tensors.
    late : set of int
        Results whose variable changes its buffer from call to call, see `graphs.Recording`.
    limits : dict of int to (int, int)
        For inputs that hold indices: from where to where these may go.
    """

    def __init__(self, source, namespace, in_place, shapes, limits, capturable):
        exec(compile(source, '<theano_today.cuda>', 'exec'), namespace)
        self.pure, self.function, self.source = namespace['pure'], namespace['line'], source
        self.in_place, self.shapes, self.late, self.limits = in_place, shapes, set(), limits
        self.capturable = capturable
        self.calls, self.captures, self.recording = 0, 0, None


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
        self.indices = indices.Indices(fgraph, converters, host)
        self._staging = {}

    # -------------------------------------------------------------------------------- calls

    def __call__(self, output_subset=None):
        try:
            with LOCK:
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
        if line.limits and not indices.within(line.limits, self.input_storage):
            # Where nodes run one by one, each looks at its indices and says what is wrong.
            return self._finish(self._interpret(
                [self._to_device(v, i) for i, v in enumerate(values)]))
        if line.recording is not None:
            if line.recording.current():
                return self._replay(line, values)
            line.late |= line.recording.moved
            line.recording = None
        values = [self._to_device(v, i) for i, v in enumerate(values)]
        line.calls += 1
        if line.calls > graphs.WARM_UP and line.capturable and \
                line.captures < graphs.MAX_CAPTURES and graphs.mode(self.device) != 'eager':
            return self._capture(line, values)
        return self._finish(line.function(*values), line.in_place)

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

    def _finish(self, results, in_place=()):
        """Write the updates that are not in place yet, and bring the outputs to the host."""
        if self._staging:
            self._mark_copied()
        for i, (result, target) in enumerate(zip(results, self.targets)):
            if target is not None:
                storage = self.input_storage[target]
                if i in in_place:
                    storage.changed()
                elif isinstance(storage, DeviceStorage):
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
        last_use = self._last_use(self.nodes)
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

    def _last_use(self, nodes):
        """For each of these nodes, the variables that none of them reads after it."""
        last = {}
        for node in nodes:
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
        self.indices.check(node, arguments)
        if record is not None:
            record.append((node, arguments))
        results = converter.function(*arguments)
        return results if isinstance(results, (tuple, list)) else (results,)

    # ---------------------------------------------------------------------- straight lines

    def _write_down(self, inputs):
        """Interpret once more and keep the calls; return the line and the results."""
        record = []
        results = self._interpret(inputs, record)
        limits = self.indices.limits(record)
        shared = self._not_their_own(results, inputs)
        record, in_place = self._updates_last(record, results, shared)
        parameters = [f'input{i}' for i in range(len(inputs))]
        names = {variable: name for variable, name, on_device in zip(
            self.fgraph.inputs, parameters, self.on_device) if on_device}  # the others: constants
        namespace, calls = {'copy': _copy}, []
        for n, (node, arguments) in enumerate(record):
            texts = []
            for i, (variable, argument) in enumerate(zip(node.inputs, arguments)):
                if variable in names and isinstance(argument, torch.Tensor):
                    texts.append(names[variable])
                elif isinstance(argument, (bool, int, float)) and argument == argument and \
                        abs(argument) != float('inf'):
                    texts.append(repr(argument))
                else:
                    texts.append(f'c{n}_{i}')
                    namespace[texts[-1]] = argument
            namespace[f'f{n}'] = self.indices.checked(node, self.converters[node].function)
            for k, output in enumerate(node.outputs):
                names[output] = f'v{n}_{k}'
            calls.append((n, node, texts))

        outputs = [names.get(output) if isinstance(result, torch.Tensor) else None
                   for output, result in zip(self.fgraph.outputs, results)]
        for i, result in enumerate(results):
            if outputs[i] is None:  # known beforehand: from the host, or a constant
                outputs[i] = f'r{i}'
                namespace[outputs[i]] = result
            if i in shared:
                results[i] = _copy(result)
                outputs[i] = f'copy({outputs[i]})'
        source = '\n'.join(
            self._source(function, parameters, names, calls, outputs, targets)
            for function, targets in (('pure', {}), ('line', in_place)))
        written = {i for _, places in in_place.items() for i, _ in places}
        capturable = not self.syncs and not self.indices.syncs
        shapes = [result.shape if isinstance(result, torch.Tensor) else None for result in results]
        return _Line(source, namespace, written, shapes, limits, capturable), results

    def _source(self, function, parameters, names, calls, outputs, in_place):
        """The source of a line; nodes of `in_place` write into the buffers of its variables."""
        body, outputs = [], list(outputs)
        last_use = self._last_use([node for _, node, _ in calls])
        for n, node, texts in calls:
            if node in in_place:
                buffers = [names[self.fgraph.inputs[target]] for _, target in in_place[node]]
                texts = texts + [f'into=[{", ".join(buffers)}]']
                for i, _ in in_place[node]:
                    outputs[i] = 'None'
            results = ', '.join(names[v] for v in node.outputs)
            comment = str(node.op).replace('\n', ' ')
            body.append(f'{results} = f{n}({", ".join(texts)})  # {comment}')
            done = [names[v] for v in last_use.get(node, ()) if v in names]
            if done:
                body.append('del ' + ', '.join(done))
        return '\n    '.join([f'def {function}({", ".join(parameters)}):'] + body +
                            [f'return [{", ".join(outputs)}]']) + '\n'

    def _updates_last(self, record, results, shared):
        """Find the nodes that can write new values of variables where the old ones are.

        Parameters
        ----------
        record : list of (node, arguments)
        results : list
        shared : list of int
            Results that the line copies in the end, since others use their memory.

        Returns
        -------
        record : list
            With these nodes behind all those that read the old values.
        in_place : dict of node to list of (int, int)
            For each output of the node the result and the input that it updates.
        """
        updates = {self.fgraph.outputs[i]: (i, target) for i, target in enumerate(self.targets)
                   if target is not None and i not in shared and
                   isinstance(self.input_storage[target], DeviceStorage)}
        kept = {_memory(results[i]) for i in shared}
        found, reads = {}, {}
        for node, arguments in record:
            reads[node] = {_memory(a) for a in arguments if isinstance(a, torch.Tensor)}
            if not self.converters[node].into or not all(
                    v in updates and all(user == 'output' for user, _ in v.clients)
                    for v in node.outputs):
                continue
            places = [updates[v] for v in node.outputs]
            arguments = dict(zip(node.inputs, arguments))
            buffers = [arguments.get(self.fgraph.inputs[target]) for _, target in places]
            if all(buffer is not None and buffer.shape == results[i].shape and
                   buffer.dtype == results[i].dtype and _memory(buffer) not in kept and
                   all(_memory(a) != _memory(buffer) or a is buffer
                       for a in arguments.values() if isinstance(a, torch.Tensor))
                   for buffer, (i, _) in zip(buffers, places)):
                found[node] = places, {_memory(buffer) for buffer in buffers}
        # In the order of the record, but for those whose variable somebody reads later.
        early, late = [], []
        for n, item in enumerate(record):
            busy = item[0] in found and any(
                found[item[0]][1] & reads[other] for other, _ in record[n + 1:])
            (late if busy else early).append(item)
        record = early + late
        return record, {
            node: found[node][0] for n, (node, _) in enumerate(record) if node in found and
            not any(found[node][1] & reads[other] for other, _ in record[n + 1:])}

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
        line.captures += 1
        function, in_place = line.function, line.in_place
        targets = [self.input_storage[target] for target in self.targets if target is not None]
        try:
            if graphs.mode(self.device) == 'compile':
                function, in_place = graphs.compiled(line.pure, values), set()
                function(*values)  # this compiles
                if self.device.type == 'cpu':  # the compiled function itself is what tests look at
                    line.function, line.in_place, line.capturable = function, in_place, False
                    return self._finish(function(*values))
            if not all(isinstance(storage, DeviceStorage) for storage in targets):
                line.function, line.in_place, line.capturable = function, in_place, False
                return self._finish(function(*values), in_place)
            recording = graphs.Recording(function, values, self.input_storage, self.targets,
                                         in_place, line.late, line.shapes, self.device)
        except torch.OutOfMemoryError:
            raise
        except Exception:
            _log.warning('A function could not be captured for the GPU; its PyTorch calls run one '
                         'by one, which is slower.', exc_info=True)
            line.capturable = False
            return self._finish(line.function(*values), line.in_place)
        line.recording = recording
        return self._replay(line, values)

    def _replay(self, line, values):
        def to_tensor(value, i):
            return value if isinstance(value, torch.Tensor) else self._staged(from_numpy(value), i)

        results = line.recording.replay(values, to_tensor)
        self._mark_copied()
        return self._outputs(results, copy=self.device.type == 'cpu')

    def captured(self):
        """Whether each line that has been called often enough is a CUDA graph now: a list."""
        return [line.recording is not None for line in self.lines.values()
                if line is not None and line.calls > graphs.WARM_UP]


def _copy(tensor):
    return tensor.clone(memory_format=torch.contiguous_format)


def _memory(tensor):
    """The address of the memory that a tensor uses, by which views of one another are known."""
    return tensor.untyped_storage().data_ptr()
