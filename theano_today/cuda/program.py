"""What `theano.function` calls: a FunctionGraph as a program of PyTorch calls.

1. The first call with new shapes *interprets* the graph: it runs each node in Python, those on the
   host (`placement`) with Theano's own Python code, and checks what Theano checks.
2. The second call with them writes the nodes on the device down as a straight line (`lines`).
3. On a GPU the line is captured into a CUDA graph, after a warm-up: from then on a call is one
   launch (`graphs`).  ``THEANO_TODAY_CUDA=compile`` lets torch.compile fuse the line first,
   ``THEANO_TODAY_CUDA=eager`` does neither.
"""
import collections
import logging

import numpy as np
import torch
from theano import gof
from theano.gof import graph
from theano.tensor import TensorType, elemwise

from . import graphs, indices, lines
from .convert import device
from .ops_elemwise import check_elemwise
from .placement import HostNode
from .storage import LOCK, DeviceStorage, Staging, from_numpy, to_numpy

__all__ = ['Program']

_log = logging.getLogger('theano_today.cuda')

# Straight lines kept for one function: one for each combination of input shapes (and indices).
MAX_LINES = 32


class Program:
    """What `theano.function` calls: reads the inputs from their storage, runs, writes the updates.

    Parameters
    ----------
    fgraph : FunctionGraph
    order : list of Apply
    host, converters
        From `placement.place`.
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
        self.host_nodes = {node: HostNode(node) for node in order if node not in converters}
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
        self._staging = Staging(MAX_LINES)

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
                results = self.interpret(values)
                others = values + list(self.constants.values())
                for i in lines.not_their_own(results, others):
                    results[i] = lines.copy(results[i])
                return self._finish(results)
            line, results = lines.write_down(self, values)
            self._remember(key, line)
            return self._finish(results)
        self.lines.move_to_end(key)
        if line.limits and not indices.within(line.limits, self.input_storage):
            # Where nodes run one by one, each looks at its indices and says what is wrong.
            return self._finish(self.interpret(
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
        return self._staged(value, position).to(self.device, non_blocking=True)

    def _staged(self, value, position):
        """An array as a tensor from which the device can copy while the host goes on."""
        tensor = from_numpy(value)
        return tensor if self.device.type == 'cpu' else self._staging(tensor, position)

    def _finish(self, results, in_place=()):
        """Write the updates that are not in place yet, and bring the outputs to the host."""
        self._staging.mark_copied()
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
        shapes = ', '.join(f'{variable.name or variable} {tuple(storage[0].shape)}'
                           for variable, storage in zip(self.fgraph.inputs, self.input_storage)
                           if not isinstance(storage, DeviceStorage) and
                           hasattr(storage[0], 'shape'))
        said = str(error).split('\n')[0]
        return MemoryError(f'The device {self.device} is out of memory in a function called with '
                           f'{shapes or "no arrays"}. Call it with smaller batches. ({said})')

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

    def interpret(self, inputs, record=None):
        """Run the nodes one by one.

        Parameters
        ----------
        inputs : list of tensors and host values
        record : list, optional
            Gets ``(node, arguments)`` for each node on the device.
        """
        values = dict(zip(self.fgraph.inputs, inputs))
        last_use = lines.last_use(self.fgraph, self.nodes)
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
            return value if isinstance(value, torch.Tensor) else self._staged(value, i)

        results = line.recording.replay(values, to_tensor)
        self._staging.mark_copied()
        return self._outputs(results, copy=self.device.type == 'cpu')

    def captured(self):
        """Whether each line that has been called often enough is a CUDA graph now: a list."""
        return [line.recording is not None for line in self.lines.values()
                if line is not None and line.calls > graphs.WARM_UP]
