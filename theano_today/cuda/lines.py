"""Straight lines: the PyTorch calls that are left of a graph for given shapes, as a Python function.

`write_down` interprets a program once more and keeps the calls.  All shapes, axes and indices are
constants of the line; of the variables each has a name as long as somebody reads it.

New values of shared variables are copied into their buffers after the line, when everything has been
computed; or a node writes them there itself, if nothing that comes after it reads the old value.  Thus
no call changes what another node still reads.
"""
import torch
from theano.gof import graph

from .storage import DeviceStorage

__all__ = ['Line', 'copy', 'last_use', 'not_their_own', 'write_down']


class Line:
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


def write_down(program, inputs):
    """Interpret a program once more and keep the calls.

    Parameters
    ----------
    program : Program
    inputs : list of tensors and host values

    Returns
    -------
    line : Line
    results : list
        Of this call; no two of them share memory.
    """
    fgraph, record = program.fgraph, []
    results = program.interpret(inputs, record)
    limits = program.indices.limits(record)
    shared = not_their_own(results, inputs + list(program.constants.values()))
    record, in_place = _updates_last(program, record, results, shared)
    parameters = [f'input{i}' for i in range(len(inputs))]
    names = {variable: name for variable, name, on_device in zip(
        fgraph.inputs, parameters, program.on_device) if on_device}  # the others: constants
    namespace, calls = {'copy': copy}, []
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
        namespace[f'f{n}'] = program.indices.checked(node, program.converters[node].function)
        for k, output in enumerate(node.outputs):
            names[output] = f'v{n}_{k}'
        calls.append((n, node, texts))

    outputs = [names.get(output) if isinstance(result, torch.Tensor) else None
               for output, result in zip(fgraph.outputs, results)]
    for i, result in enumerate(results):
        if outputs[i] is None:  # known beforehand: from the host, or a constant
            outputs[i] = f'r{i}'
            namespace[outputs[i]] = result
        if i in shared:
            results[i] = copy(result)
            outputs[i] = f'copy({outputs[i]})'
    source = '\n'.join(
        _source(fgraph, function, parameters, names, calls, outputs, targets)
        for function, targets in (('pure', {}), ('line', in_place)))
    written = {i for _, places in in_place.items() for i, _ in places}
    capturable = not program.syncs and not program.indices.syncs
    shapes = [result.shape if isinstance(result, torch.Tensor) else None for result in results]
    return Line(source, namespace, written, shapes, limits, capturable), results


def _source(fgraph, function, parameters, names, calls, outputs, in_place):
    """The source of a line; nodes of `in_place` write into the buffers of its variables."""
    body, outputs = [], list(outputs)
    last = last_use(fgraph, [node for _, node, _ in calls])
    for n, node, texts in calls:
        if node in in_place:
            buffers = [names[fgraph.inputs[target]] for _, target in in_place[node]]
            texts = texts + [f'into=[{", ".join(buffers)}]']
            for i, _ in in_place[node]:
                outputs[i] = 'None'
        results = ', '.join(names[v] for v in node.outputs)
        comment = str(node.op).replace('\n', ' ')
        body.append(f'{results} = f{n}({", ".join(texts)})  # {comment}')
        done = [names[v] for v in last.get(node, ()) if v in names]
        if done:
            body.append('del ' + ', '.join(done))
    return '\n    '.join([f'def {function}({", ".join(parameters)}):'] + body +
                        [f'return [{", ".join(outputs)}]']) + '\n'


def _updates_last(program, record, results, shared):
    """Find the nodes that can write new values of variables where the old ones are.

    Parameters
    ----------
    program : Program
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
    fgraph = program.fgraph
    updates = {fgraph.outputs[i]: (i, target) for i, target in enumerate(program.targets)
               if target is not None and i not in shared and
               isinstance(program.input_storage[target], DeviceStorage)}
    kept = {_memory(results[i]) for i in shared}
    found, reads = {}, {}
    for node, arguments in record:
        reads[node] = {_memory(a) for a in arguments if isinstance(a, torch.Tensor)}
        if not program.converters[node].into or not all(
                v in updates and all(user == 'output' for user, _ in v.clients)
                for v in node.outputs):
            continue
        places = [updates[v] for v in node.outputs]
        arguments = dict(zip(node.inputs, arguments))
        buffers = [arguments.get(fgraph.inputs[target]) for _, target in places]
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


def not_their_own(results, others):
    """Positions of results whose memory others use too, inputs and constants or another result.

    The caller may change an output, and updates are written one after the other: both need memory
    of their own.
    """
    taken = {_memory(value) for value in others if isinstance(value, torch.Tensor)}
    positions = []
    for i, result in enumerate(results):
        if isinstance(result, torch.Tensor):
            if _memory(result) in taken or not result.is_contiguous():
                positions.append(i)
            taken.add(_memory(result))
    return positions


def last_use(fgraph, nodes):
    """For each of these nodes, the variables that none of them reads after it: a dict of lists."""
    last = {}
    for node in nodes:
        for variable in node.inputs + node.outputs:
            if not isinstance(variable, graph.Constant):
                last[variable] = node
    for variable in list(fgraph.outputs) + list(fgraph.inputs):
        last.pop(variable, None)
    result = {}
    for variable, node in last.items():
        result.setdefault(node, []).append(variable)
    return result


def copy(tensor):
    """A contiguous copy with memory of its own."""
    return tensor.clone(memory_format=torch.contiguous_format)


def _memory(tensor):
    """The address of the memory that a tensor uses, by which views of one another are known."""
    return tensor.untyped_storage().data_ptr()
