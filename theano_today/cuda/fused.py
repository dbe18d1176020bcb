"""Rewrites of the graph of a function that runs on the device: fewer, larger Ops.

They work when a function is compiled, on its FunctionGraph, behind Theano's own rewrites (at 48.9 in
its `optdb`); graphs that are built, differentiated or cloned are the caller's.  Tag of all of them:
`TAG`.

`TurnFilters`
    takes the turning of filters out of convolutions, so that forward and backward pass share it.

`FuseElemwise`
    makes one `Elemwise` of all elementwise Ops between two others.  Unlike Theano's fusion it computes
    what several Ops need in each of them once more, if that reads less than writing it down; and it
    puts the updates of a parameter and of its velocity into one node with two outputs, which
    `lines` lets write where the old values are.  Gradients of filters are turned while it reads.

`FusePooling`
    makes one `MaxPool` or `MaxPoolGrad` of max-pooling and the elementwise Ops around it: bias, ReLU
    and dropout of a convolutional layer.

Elementwise Ops are only fused if kernels/scalar.py has them all, so that the result does not depend
on where a graph was cut.
"""
import collections
import copy

from theano import gof, scalar
from theano.compile import optdb
from theano.tensor import TensorConstant, TensorType, elemwise
from theano.tensor.nnet import abstract_conv
from theano.tensor.signal import pool

from .kernels.scalar import covers
from .placement import known_from_shapes

__all__ = ['TAG', 'FuseElemwise', 'FusePooling', 'Fused', 'MaxPool', 'MaxPoolGrad', 'Turn',
           'TurnFilters', 'register']

TAG = 'theano_today_cuda'

# What an elementwise node may become, in inputs: Triton takes more, but each is a register or two.
MAX_INPUTS = 24


class _Rewrite(gof.Optimizer):
    """What the rewrites share: they replace variables of a FunctionGraph."""

    def add_requirements(self, fgraph):
        fgraph.attach_feature(gof.toolbox.ReplaceValidate())


# ------------------------------------------------------------------------------------------ filters

class Turn(gof.Op):
    """``x[:, :, ::-1, ::-1]``, and so on for more axes."""

    __props__ = ()

    def make_node(self, x):
        return gof.Apply(self, [x], [x.type()])

    def perform(self, node, inputs, output_storage):
        x, = inputs
        output_storage[0][0] = x[(slice(None),) * 2 + (slice(None, None, -1),) * (x.ndim - 2)].copy()

    def infer_shape(self, node, shapes):
        return shapes


class TurnFilters(_Rewrite):
    """Let convolutions slide filters that are turned already, see the module."""

    def apply(self, fgraph):
        turned = {}
        for node in fgraph.toposort():
            op = node.op
            if not isinstance(op, abstract_conv.BaseAbstractConv) or not op.filter_flip or op.unshared:
                continue
            new = copy.copy(op)
            new.filter_flip = False
            inputs = list(node.inputs)
            if isinstance(op, abstract_conv.AbstractConv_gradWeights):
                result = Turn()(new(*inputs))
            else:
                position = 0 if isinstance(op, abstract_conv.AbstractConv_gradInputs) else 1
                filters = inputs[position]
                inputs[position] = turned.setdefault(filters, Turn()(filters))
                result = new(*inputs)
            if result.type == node.outputs[0].type:
                fgraph.replace_all_validate([(node.outputs[0], result)],
                                            reason='theano_today_cuda_turned')


# ----------------------------------------------------------------------------------------- Elemwise

class Fused(elemwise.Elemwise):
    """Several elementwise Ops.

    Parameters
    ----------
    scalar_op : Composite
    turned : tuple of int
        The inputs that are read as `Turn` would give them.
    """

    __props__ = ('scalar_op', 'inplace_pattern', 'turned')

    def __init__(self, scalar_op, turned=()):
        super().__init__(scalar_op)
        self.turned = turned

    def perform(self, node, inputs, output_storage):
        if self.turned:
            raise NotImplementedError('This Op is for the device.')
        super().perform(node, inputs, output_storage)


def _fusable(node):
    """Whether a node is an elementwise Op that kernels cover."""
    if node == 'output' or not isinstance(node.op, elemwise.Elemwise) or \
            node.op.inplace_pattern or len(node.outputs) > 1 or getattr(node.op, 'turned', ()):
        return False
    op = node.op.scalar_op
    if isinstance(op, scalar.Composite):  # made by us
        return all(covers(n.op, n.inputs, n.outputs[0]) for n in op.fgraph.apply_nodes)
    return covers(op, node.inputs, node.outputs[0])


def _pattern(variable):
    return variable.type.broadcastable


def _constant(variable):
    """Whether a variable is one number that never changes."""
    return isinstance(variable, TensorConstant) and variable.data.size == 1


class _Kernel:
    """Nodes that become one: some of them are its roots, the others are computed on the way."""

    def __init__(self, root, inner):
        self.roots, self.inner = [root], set(inner)

    def inputs(self):
        """Variables that the kernel reads, in the order in which it meets them."""
        nodes = self.inner | set(self.roots)
        found = collections.OrderedDict()
        seen = set()

        def visit(node):
            if node in seen:
                return
            seen.add(node)
            for variable in node.inputs:
                if variable.owner in nodes:
                    visit(variable.owner)
                elif not _constant(variable):
                    found[variable] = None
        for root in self.roots:
            visit(root)
        return list(found)

    def build(self):
        """Return the outputs of the new node, one for each root; None if there is nothing to fuse."""
        nodes = self.inner | set(self.roots)
        inputs = self.inputs()
        scalars = {variable: scalar.get_scalar_type(variable.dtype)() for variable in inputs}

        def value(variable):
            if variable not in scalars:
                if variable.owner in nodes:
                    node = variable.owner
                    scalars[variable] = node.op.scalar_op(*map(value, node.inputs))
                else:
                    scalars[variable] = scalar.ScalarConstant(
                        scalar.get_scalar_type(variable.dtype), variable.data.reshape(())[()])
            return scalars[variable]

        outputs = [value(root.outputs[0]) for root in self.roots]
        if [v.dtype for v in outputs] != [root.outputs[0].dtype for root in self.roots]:
            return None
        turned = tuple(k for k, v in enumerate(inputs) if v.owner and isinstance(v.owner.op, Turn) and
                       len(v.clients) == 1)
        if len(nodes) == 1 and not turned:
            return None  # it is one node already
        composite = scalar.Composite([scalars[v] for v in inputs], outputs)
        inputs = [v.owner.inputs[0] if k in turned else v for k, v in enumerate(inputs)]
        results = Fused(composite, turned)(*inputs, return_list=True)
        same = all(new.type == root.outputs[0].type for new, root in zip(results, self.roots))
        return results if same else None


class FuseElemwise(_Rewrite):
    """Make one node of elementwise Ops that follow one another, see the module."""

    def apply(self, fgraph):
        order = fgraph.toposort()
        host = known_from_shapes(order)
        fusable = {node for node in order if _fusable(node) and
                   not isinstance(node.op.scalar_op, scalar.Composite) and
                   node.outputs[0] not in host}
        place = {node: n for n, node in enumerate(order)}
        kernels = self._kernels(order, fusable)
        kernels = self._with_updates(fgraph, kernels, place)
        for kernel in sorted(kernels, key=lambda k: max(place[root] for root in k.roots)):
            new = kernel.build()
            if new is not None:
                fgraph.replace_all_validate(
                    list(zip([root.outputs[0] for root in kernel.roots], new)),
                    reason='theano_today_cuda_elemwise')

    def _kernels(self, order, fusable):
        """One kernel for each node whose result somebody else needs."""
        inlined = {}  # nodes computed in those that use them, with what that reads
        for node in order:
            out = node.outputs[0]
            if node not in fusable or not out.clients:
                continue
            users = {user for user, _ in out.clients}
            if not all(user in fusable and _pattern(user.outputs[0]) == _pattern(out)
                       for user in users):
                continue
            reads = set()
            for variable in node.inputs:
                if variable.owner in inlined and _pattern(variable) == _pattern(out):
                    reads |= inlined[variable.owner]
                elif not _constant(variable):
                    reads.add(variable)
            large = sum(_pattern(variable) == _pattern(out) for variable in reads)
            # Read once and written once, and read by each user; or read by each user.
            if large * len(users) <= large + 1 + len(users) and len(reads) <= MAX_INPUTS // 2:
                inlined[node] = reads
        kernels = []
        for node in order:
            if node in fusable and node not in inlined:
                inner, left = set(), list(node.inputs)
                while left:
                    owner = left.pop().owner
                    if owner in inlined and owner not in inner and \
                            _pattern(owner.outputs[0]) == _pattern(node.outputs[0]):
                        inner.add(owner)
                        left += owner.inputs
                kernels.append(_Kernel(node, inner))
        return kernels

    def _with_updates(self, fgraph, kernels, place):
        """Put updates that read the same into one kernel."""
        updates = {fgraph.outputs[i] for i in getattr(fgraph, 'update_mapping', None) or ()}
        result = []
        for kernel in kernels:
            root, = kernel.roots
            out = root.outputs[0]
            inputs = set(kernel.inputs())
            partner = None
            if out in updates:
                for other in result:
                    theirs = [r.outputs[0] for r in other.roots]
                    shared = {v for v in inputs & (set(other.inputs()) | set(theirs))
                              if _pattern(v) == _pattern(out)}
                    if shared and all(v in updates for v in theirs) and \
                            _pattern(theirs[0]) == _pattern(out) and \
                            len(inputs | set(other.inputs())) <= MAX_INPUTS and \
                            not _needs(inputs - set(theirs), other.roots, place):
                        partner = other
                        break
            if partner is None:
                result.append(kernel)
            else:
                partner.roots.append(root)
                partner.inner |= kernel.inner
        return result


def _needs(variables, nodes, place):
    """Whether some of the variables are computed from what the nodes compute."""
    first = min(place[node] for node in nodes)
    left, seen = [v.owner for v in variables], set()
    while left:
        node = left.pop()
        if node is None or node in seen or place[node] < first:
            continue
        if node in nodes:
            return True
        seen.add(node)
        left += [v.owner for v in node.inputs]
    return False


# ------------------------------------------------------------------------------------------ pooling

class _Pooling(gof.Op):
    """What the two Ops below share.

    Parameters
    ----------
    window : (int, int)
        Height and width of a window, and the distance to the next.
    n_picture : int
        The first inputs of the Op have the size of the picture or are broadcast to it, the others
        have the size of the output.
    before : ScalarOp or None
        Computes the elements of the windows from the inputs at the positions `before_inputs`.
    after : ScalarOp or None
        Computes the results from the inputs at the positions `after_inputs`, in which -1 stands for
        the maximum (`MaxPool`) or for the gradient of an element (`MaxPoolGrad`).
    dtype : str
        Of the elements.
    out_type : TensorType
    """

    def __init__(self, window, n_picture, before, before_inputs, after, after_inputs, dtype, out_type):
        self.window, self.n_picture = window, n_picture
        self.before, self.before_inputs = before, before_inputs
        self.after, self.after_inputs = after, after_inputs
        self.dtype, self.out_type = dtype, out_type

    def make_node(self, *inputs):
        return gof.Apply(self, list(inputs), [self.out_type()])

    def counts(self, shape):
        """The numbers of windows down and across a picture of this shape."""
        return tuple(size // window for size, window in zip(shape[2:], self.window))

    def __str__(self):
        parts = [name for name in ('before', 'gradient', 'after') if getattr(self, name, None)]
        return '{}{{{}}}'.format(type(self).__name__, ', '.join(
            ['x'.join(map(str, self.window))] + [f'{name}={getattr(self, name)}' for name in parts]))

    def elements(self):
        """A variable of the type of the elements."""
        return TensorType(self.dtype, (False,) * 4)()

    def perform(self, node, inputs, output_storage):
        raise NotImplementedError('This Op is for the device.')


class MaxPool(_Pooling):
    """Elementwise Ops, the maximum of each window, and elementwise Ops."""

    __props__ = ('window', 'n_picture', 'before', 'before_inputs', 'after', 'after_inputs', 'dtype',
                 'out_type')


class MaxPoolGrad(_Pooling):
    """The gradient of max-pooling with regard to its elements, and elementwise Ops around it.

    `gradient` computes the gradient of the maxima from the inputs at the positions `gradient_inputs`.
    """

    __props__ = MaxPool.__props__ + ('gradient', 'gradient_inputs')

    def __init__(self, *shared, gradient, gradient_inputs):
        super().__init__(*shared)
        self.gradient, self.gradient_inputs = gradient, gradient_inputs


class FusePooling(_Rewrite):
    """Make one node of max-pooling and what is before and after it, see the module."""

    def apply(self, fgraph):
        for node in fgraph.toposort():
            if isinstance(node.op, pool.Pool) and node in fgraph.apply_nodes:
                window = _window(node.op, node.inputs[1:4])
                x = node.inputs[0]
                if window is not None and x.ndim == 4 and x.dtype in ('float32', 'float64'):
                    self._fuse(fgraph, node, window)

    def _fuse(self, fgraph, node, window):
        x, maxima = node.inputs[0], node.outputs[0]
        gradients = [user for user, i in x.clients if user != 'output' and i == 0 and
                     isinstance(user.op, pool.MaxPoolGrad) and user.inputs[1] is maxima and
                     _window(user.op, user.inputs[3:6]) == window]
        pictures, before = [x], None
        if all(user is node or user in gradients for user, _ in x.clients):
            pictures, before = _taken(x)
        before_inputs = tuple(range(len(pictures)))

        def replace(old, op, inputs):
            fgraph.replace_all_validate([(old, op(*inputs))], reason='theano_today_cuda_pooling')

        for user in gradients:
            inputs = list(pictures)
            rows, gradient = [user.inputs[2]], None
            if len(rows[0].clients) == 1:
                rows, gradient = _taken(rows[0])
            out, after, after_inputs = user.outputs[0], None, ()
            last = _only_user(out)
            if last is not None and _pattern(last.outputs[0]) == _pattern(out):
                after, out = last.op.scalar_op, last.outputs[0]
                for variable in last.inputs:
                    if variable is not user.outputs[0] and variable not in inputs:
                        inputs.append(variable)
                after_inputs = tuple(-1 if v is user.outputs[0] else inputs.index(v)
                                     for v in last.inputs)
            n_picture = len(inputs)
            replace(out, MaxPoolGrad(
                window, n_picture, before, before_inputs, after, after_inputs, x.dtype, out.type,
                gradient=gradient, gradient_inputs=tuple(range(n_picture, n_picture + len(rows)))),
                inputs + rows)

        inputs, out, after, after_inputs = list(pictures), maxima, None, ()
        last = _only_user(maxima)
        if last is not None and _pattern(last.outputs[0]) == _pattern(maxima):
            after, out = last.op.scalar_op, last.outputs[0]
            inputs += [v for v in last.inputs if v is not maxima]
            numbers = iter(range(len(pictures), len(inputs)))
            after_inputs = tuple(-1 if v is maxima else next(numbers) for v in last.inputs)
        replace(out, MaxPool(window, len(pictures), before, before_inputs, after, after_inputs,
                             x.dtype, out.type), inputs)


def _window(op, parameters):
    """The size of the windows if they lie side by side and nothing overhangs; else None."""
    if op.mode != 'max' or op.ndim != 2 or not op.ignore_border or not all(
            isinstance(v, gof.Constant) for v in parameters):
        return None
    ws, stride, pad = [tuple(int(n) for n in v.data) for v in parameters]
    return ws if ws == stride and pad == (0, 0) and ws[0] * ws[1] <= 16 else None


def _taken(variable):
    """The inputs of the elementwise Op that computes a variable, and its scalar Op."""
    node = variable.owner
    if node is None or not _fusable(node):
        return [variable], None
    return list(node.inputs), node.op.scalar_op


def _only_user(variable):
    """The elementwise node that alone uses a variable, or None."""
    users = {user for user, _ in variable.clients}
    if len(users) != 1:
        return None
    user, = users
    return user if _fusable(user) else None


def register():
    """Put the rewrites into Theano's `optdb`, for the modes that ask for `TAG`."""
    for n, optimizer in enumerate([TurnFilters(), FuseElemwise(), FusePooling()]):
        name = f'theano_today_cuda_{type(optimizer).__name__}'
        if name not in optdb.__db__:
            optdb.register(name, optimizer, 48.9 + n / 100, TAG)
