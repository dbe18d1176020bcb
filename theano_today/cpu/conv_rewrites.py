"""Layers of stock Ops in compiled functions become `ConvPool`, their gradients `ConvPoolGrad`.

A layer is followed from its convolution to its output, as far as it is spelled in a way that is known
here: the zero padding or cropping by which Lasagne expresses its ``pad``, the bias, the ReLU, the
pooling, the dropout, each of which may be missing::

    x ──► pad ──► conv ──► crop ──► + b ──► ReLU ──► pool ──► dropout ──► out
         ╰────────── intermediate results: read by the layer and its gradients only ──────╯

Its gradients are found by `backward.find_gradients`.  Where anybody else reads an intermediate result
of either pass (a monitor, a second derivative, an R-operator, another spelling of the gradient), the
layer is tried without its last part, and so on.

A convolution with nothing but a bias stays with the stock Ops, which are products of large matrices
then: the engine gains by what it need not write down and by the gradients that are zero behind ReLU,
pooling and dropout.  What stays, too: float64, dilated, grouped and unshared convolutions, average
pooling, ReLUs with a slope for negative numbers, biases that differ from pixel to pixel, dropout with
a symbolic probability.  Theano's old `ConvOp`, many times slower than either, is always replaced.
"""
from collections import namedtuple

import numpy as np
import theano
import theano.tensor as tt
from theano import gof, scalar
from theano.gof.graph import ancestors
from theano.gradient import UndefinedGrad
from theano.tensor.elemwise import DimShuffle, Elemwise
from theano.tensor.nnet.abstract_conv import AbstractConv2d
from theano.tensor.nnet.conv import ConvOp
from theano.tensor.opt import Shape_i
from theano.tensor.signal.pool import Pool
from theano.tensor.subtensor import IncSubtensor, Subtensor

from .backward import find_gradients
from .conv import ConvPool, ConvPoolGrad, Dropout, Pooling, _Conv
from .rewrites import consumers, register_rewrite

__all__ = ['FuseConv', 'install']

# After Theano's first merge (0), which makes equal nodes one; before ShapeOpt (0.1), which then never
# sees the nodes that are taken away, and before canonicalize (1), which would tear the patterns apart.
FUSION_POSITION = 0.05

# When all rewrites that add or drop uses of variables are done, before those that work in place.
LEAN_POSITION = 49.3


# ---- reading graphs ----


def _constant(variable):
    """The Python number that a scalar (or a broadcast one) stands for, or None."""
    while variable.owner and isinstance(variable.owner.op, (DimShuffle, UndefinedGrad)):
        variable = variable.owner.inputs[0]
    if isinstance(variable, gof.Constant) and np.size(variable.data) == 1:
        return np.asarray(variable.data).item()


def _constant_pair(variable):
    """Two integers from a constant vector, or None."""
    if isinstance(variable, gof.Constant) and np.shape(variable.data) == (2,):
        return tuple(int(i) for i in variable.data)


def _is_elemwise(variable, operation):
    return bool(variable.owner and isinstance(variable.owner.op, Elemwise) and
                variable.owner.op.scalar_op == operation)


def _offset_from_size(variable, x, axis):
    """The integer c with ``variable == x.shape[axis] + c``, or None where there is no such."""
    node = variable.owner
    if node is None:
        return None
    if isinstance(node.op, (tt.ScalarFromTensor, tt.TensorFromScalar)):
        return _offset_from_size(node.inputs[0], x, axis)
    if isinstance(node.op, Shape_i):
        return 0 if node.inputs[0] is x and node.op.i == axis else None
    if isinstance(node.op, Subtensor):
        shape = node.inputs[0].owner
        if shape and isinstance(shape.op, tt.Shape) and shape.inputs[0] is x and \
                tt.subtensor.get_idx_list(node.inputs, node.op.idx_list) and \
                len(node.inputs) == 2 and _constant(node.inputs[1]) == axis:
            return 0
        return None
    if _is_elemwise(variable, scalar.add):
        total, found = 0, False
        for term in node.inputs:
            number = _constant(term)
            if number is None:
                number = None if found else _offset_from_size(term, x, axis)
                if number is None:
                    return None
                found = True
            total += number
        return total if found else None
    return None


def _window(node, first_index, x):
    """The rectangle ``[:, :, top:height + top + c, ...]`` that a (Inc)Subtensor addresses.

    Parameters
    ----------
    node : Apply
        Of a `Subtensor` or an `IncSubtensor`.
    first_index : int
        Where the indices begin in the inputs of `node`.
    x : TensorVariable
        The image whose height and width the indices refer to.

    Returns
    -------
    list of (int, int) or None
        For rows and columns, the start and what ``stop - x.shape[axis]`` is.
    """
    indices = node.op.idx_list
    everything = slice(None, None, None)
    if len(indices) != 4 or indices[0] != everything or indices[1] != everything:
        return None
    rest = list(node.inputs[first_index:])
    window = []
    for axis, index in ((2, indices[2]), (3, indices[3])):
        if not isinstance(index, slice) or index.step is not None or index.start is None or \
                index.stop is None or len(rest) < 2:
            return None
        start, stop = _constant(rest.pop(0)), _offset_from_size(rest.pop(0), x, axis)
        if start is None or stop is None or start < 0:
            return None
        window.append((start, stop))
    return None if rest else window


def _border_mode(mode):
    """The padding of an `AbstractConv2d` as `_Conv` has it."""
    if mode in ('full', 'half'):
        return mode
    if mode == 'valid':
        mode = 0
    if not isinstance(mode, (tuple, list)):
        mode = (mode, mode)
    return tuple(tuple(int(i) for i in side) if isinstance(side, (tuple, list))
                 else (int(side), int(side)) for side in mode)


def _padding(padded):
    """The image in the middle of zeros, and their widths as a border_mode.

    This is how Lasagne pads::

        padded = T.zeros((n, c, height + top + bottom, ...))
        padded = T.set_subtensor(padded[:, :, top:top + height, ...], x)

    Returns
    -------
    TensorVariable, border_mode
        (`padded`, no padding) where the graph is another.
    """
    none = padded, ((0, 0), (0, 0))
    node = padded.owner
    if not (node and isinstance(node.op, IncSubtensor) and node.op.set_instead_of_inc):
        return none
    zeros, x = node.inputs[:2]
    if not (zeros.owner and isinstance(zeros.owner.op, tt.Alloc) and x.ndim == zeros.ndim == 4 and
            x.type == padded.type and _constant(zeros.owner.inputs[0]) == 0):
        return none
    window = _window(node, 2, x)
    growth = [_offset_from_size(size, x, axis) for axis, size in enumerate(zeros.owner.inputs[1:])]
    if window is None or growth[:2] != [0, 0] or None in growth:
        return none
    (top, shift_down), (left, shift_right) = window
    bottom, right = growth[2] - top, growth[3] - left
    if (top, left) != (shift_down, shift_right) or min(bottom, right) < 0:
        return none
    return x, ((top, bottom), (left, right))


def _uncast(mask):
    """What a cast to float32 is applied to, or None."""
    if mask.owner and isinstance(mask.owner.op, Elemwise) and mask.dtype == 'float32' and \
            isinstance(mask.owner.op.scalar_op, scalar.Cast):
        return mask.owner.inputs[0]


# ---- following a layer from part to part ----


class _Layer(namedtuple('_Layer', 'op x W b u nodes out')):
    """What has been read of a layer so far.

    Attributes
    ----------
    op : ConvPool
        What computes it.
    x, W, b, u : TensorVariable or None
        The inputs of `op`.
    nodes : frozenset of Apply
        The stock nodes that it consists of.
    out : TensorVariable
        Their result.
    """

    def grown(self, out, nodes, u=None, b=None, **changes):
        """The layer with one part more, which ends in `out` and consists of `nodes`."""
        return self._replace(op=self.op._with(**changes), out=out, nodes=self.nodes.union(nodes),
                             u=self.u if u is None else u, b=self.b if b is None else b)

    @property
    def inputs(self):
        return [variable for variable in (self.x, self.W, self.b, self.u) if variable is not None]

    @property
    def intermediate(self):
        """The results that only exist within the layer."""
        return {output for node in self.nodes for output in node.outputs} - {self.out}


def _users(variable, op_class):
    """The nodes with an Op of this class (or equal to this Op) that use `variable`, each once."""
    nodes = []
    for node, _ in variable.clients:
        if node != 'output' and node not in nodes and (
                isinstance(node.op, op_class) if isinstance(op_class, type) else node.op == op_class):
            nodes.append(node)
    return nodes


def _other(node, variable):
    """The other of two inputs; None if there are not two, or both are `variable`."""
    if len(node.inputs) == 2:
        left, right = node.inputs
        if left is not right:
            return right if left is variable else left
    return None


def _abstract_conv(node):
    """``conv2d(x, W)``, and before it the same with the zero padding of ``x``."""
    op = node.op
    x, W = node.inputs
    if op.unshared or op.num_groups != 1 or tuple(op.filter_dilation) != (1, 1) or W.ndim != 4:
        return []
    kernel_shape = tuple(op.kshp[-2:]) if op.kshp else (None, None)
    if not all(isinstance(size, (int, np.integer)) for size in kernel_shape):
        kernel_shape = None
    border_mode = _border_mode(op.border_mode)
    conv = ConvPool(border_mode=border_mode, subsample=tuple(int(s) for s in op.subsample),
                    filter_flip=bool(op.filter_flip), kernel_shape=kernel_shape)
    plain = _Layer(conv, x, W, None, None, frozenset([node]), node.outputs[0])
    if border_mode == ((0, 0), (0, 0)):
        inner, border_mode = _padding(x)
        if inner is not x:
            nodes = frozenset([node, x.owner, x.owner.inputs[0].owner])
            return [plain._replace(op=conv._with(border_mode=border_mode), x=inner, nodes=nodes), plain]
    return [plain]


def _old_conv(node):
    """``theano.tensor.nnet.conv.conv2d(x, W)``, the name before Theano 0.8, still Lasagne 0.1's."""
    op = node.op
    if op.imshp_logical != op.imshp or op.kshp_logical != op.kshp or op.out_mode not in ('valid', 'full'):
        return []
    kernel_shape = op.kshp if None not in op.kshp else None
    conv = ConvPool(border_mode='full' if op.out_mode == 'full' else ((0, 0), (0, 0)),
                    subsample=(op.dx, op.dy), kernel_shape=kernel_shape,
                    promised=(op.bsize,) + op.imshp + (op.nkern,) + op.kshp)
    return [_Layer(conv, node.inputs[0], node.inputs[1], None, None, frozenset([node]),
                   node.outputs[0])]


def _crop(layer):
    """``conv2d(x, W, border_mode='full')[:, :, i:height + i, ...]``: Lasagne's pad='same'."""
    op = layer.op
    if op.border_mode != 'full' or op.subsample != (1, 1) or not op.kernel_shape:
        return
    for node in _users(layer.out, Subtensor):
        window = _window(node, 1, layer.x) if node.inputs[0] is layer.out else None
        if window is not None and all(start == shift and start < size
                                      for (start, shift), size in zip(window, op.kernel_shape)):
            # The full convolution has size - 1 rows of zeros above the image; the first `start`
            # rows of its result are cut off.
            border_mode = tuple((size - 1 - start, start)
                                for (start, _), size in zip(window, op.kernel_shape))
            yield layer.grown(node.outputs[0], [node], border_mode=border_mode,
                              promised=(op.promised or (None,) * 7)[:5] + tuple(op.kernel_shape))


def _bias(layer):
    """``conv + b.dimshuffle('x', 0, 'x', 'x')``"""
    for node in _users(layer.out, tt.add):
        bias = _other(node, layer.out)
        if bias is not None and bias.owner and isinstance(bias.owner.op, DimShuffle) and \
                bias.owner.op.new_order == ('x', 0, 'x', 'x') and bias.dtype == 'float32':
            yield layer.grown(node.outputs[0], [node], b=bias.owner.inputs[0], bias=True)


def _relu(layer):
    """``0.5 * (conv + abs(conv))``, ``maximum(conv, 0)`` and ``maximum(0, conv)``"""
    conv = layer.out
    for absolute in _users(conv, tt.abs_):
        for total in _users(absolute.outputs[0], tt.add):
            if _other(total, absolute.outputs[0]) is conv:
                for node in _users(total.outputs[0], tt.mul):
                    half = _other(node, total.outputs[0])
                    if half is not None and _constant(half) == 0.5:
                        yield layer.grown(node.outputs[0], [absolute, total, node], relu='half')
    for node in _users(conv, tt.maximum):
        zero = _other(node, conv)
        if zero is not None and _constant(zero) == 0:
            relu = 'maximum' if node.inputs[0] is conv else 'maximum_0'
            yield layer.grown(node.outputs[0], [node], relu=relu)


def _pool(layer):
    """``pool_2d(conv, ..., mode='max')``"""
    for node in _users(layer.out, Pool):
        size, stride, pad = [_constant_pair(i) for i in node.inputs[1:]]
        if node.inputs[0] is layer.out and node.op.mode == 'max' and node.op.ndim == 2 and \
                None not in (size, stride, pad) and size != (1, 1) and \
                min(size) > 0 and min(stride) > 0 and min(pad) >= 0 and \
                all(p < s for p, s in zip(pad, size)) and \
                (node.op.ignore_border or pad == (0, 0)):
            yield layer.grown(node.outputs[0], [node], pooling=Pooling(
                size, stride, pad, bool(node.op.ignore_border)))


def _dropout(layer):
    """``conv / retain * cast(samples < retain)``, the division optional"""
    scaled = [(layer.out, 1., [])]
    for node in _users(layer.out, tt.true_div):
        retain = _constant(node.inputs[1]) if node.inputs[0] is layer.out else None
        if retain is not None and retain > 0 and np.isfinite(np.float32(1) / np.float32(retain)):
            scaled.append((node.outputs[0], retain, [node]))
    for conv, retain, division in scaled:
        for node in _users(conv, tt.mul):
            mask = _other(node, conv)
            below = _uncast(mask) if mask is not None else None
            if below is None or not _is_elemwise(below, scalar.lt):
                continue
            samples, threshold = below.owner.inputs
            threshold = _constant(threshold)
            if threshold is None or not np.isfinite(np.float32(threshold)) or \
                    samples.type != layer.out.type:
                continue
            # The least float32 not less than the threshold: samples are float32, which leaves no
            # number between the two.
            bound = np.float32(threshold)
            if bound < threshold:
                bound = np.nextafter(bound, np.float32(np.inf))
            yield layer.grown(node.outputs[0], division + [node], u=samples, dropout=Dropout(
                float(bound), float(np.float32(1) / np.float32(retain))))


# The parts that may follow a convolution, in their order.
_PARTS = (_crop, _bias, _relu, _pool, _dropout)


def _layers(node):
    """What a convolution may be the beginning of, the longest first."""
    starts = _abstract_conv(node) if type(node.op) is AbstractConv2d else _old_conv(node)
    layers = []
    for start in starts:
        growing = [start]
        for part in _PARTS:
            ways = list(part(growing[-1]))
            if len(ways) > 1:
                break  # two biases or two poolings of the same: none of them is the layer's own
            growing += ways
        layers += reversed(growing)
    if type(node.op) is AbstractConv2d:
        layers = [layer for layer in layers if layer.op.relu or layer.op.pooling or layer.op.dropout]
    float32 = (variable.dtype == 'float32' for variable in node.inputs + node.outputs)
    return layers if all(float32) else []


# ---- replacing it ----


class FuseConv(gof.Optimizer):
    """Make one node of each convolution layer and one of each of its gradients."""

    def add_requirements(self, fgraph):
        fgraph.attach_feature(gof.toolbox.ReplaceValidate())

    def apply(self, fgraph):
        # With test values, Theano would run each new node as soon as it is made.
        with theano.change_flags(compute_test_value='off'):
            for node in fgraph.toposort():
                if node in fgraph.apply_nodes and type(node.op) in (AbstractConv2d, ConvOp):
                    self._fuse(fgraph, node)

    def _fuse(self, fgraph, node):
        for layer in _layers(node):
            replacements = _replacements(layer)
            if replacements:
                fgraph.replace_all_validate(replacements, reason='theano_today_conv')
                return


def _replacements(layer):
    """Pairs of old and new variables for a layer and its gradients; None where somebody minds."""
    wrt = [variable for variable in (layer.x, layer.W, layer.b) if variable is not None]
    gradients = [gradient for gradient in find_gradients(layer.inputs, wrt, layer.out)
                 if layer.x in gradient.wanted or layer.W in gradient.wanted]
    together = layer.nodes.union(*(gradient.nodes for gradient in gradients))
    inner = layer.intermediate.union(*(gradient.inner for gradient in gradients))
    if not inner.isdisjoint(layer.inputs) or \
            any(user not in together for variable in inner for user, _ in consumers(variable)):
        return None
    results = {result for gradient in gradients for result in gradient.wanted.values()}
    if results and not results.isdisjoint(
            ancestors(layer.inputs + [gradient.given for gradient in gradients])):
        return None  # a result is a way to an input: the new nodes would depend on themselves

    x, W, b = layer.x, layer.W, layer.b
    if b is not None and b.broadcastable == (True,):
        b = tt.alloc(b, W.shape[0])  # one number for all filters
    op = layer.op._with(save_masks=bool(gradients))
    outputs = op(x, W, b, layer.u, return_list=True)
    pairs = [(layer.out, outputs[0])]
    for gradient in gradients:
        dx, dw, db = [gradient.wanted.get(v) for v in (layer.x, layer.W, layer.b)]
        op = layer.op._with(ConvPoolGrad, compute_dx=dx is not None,
                            compute_dw=dw is not None or db is not None)
        new = op(x, W, b, outputs[1], gradient.given, return_list=True)
        if dx is not None:
            pairs.append((dx, new.pop(0)))
        if dw is not None:
            pairs.append((dw, new[0]))
        if db is not None:
            pairs.append((db, new[1] if layer.b.type == new[1].type else new[1].sum(keepdims=True)))
    return pairs if all(old.type == new.type for old, new in pairs) else None


@gof.local_optimizer([ConvPool])
def local_conv_channels_last(node):
    """Leave channels last what only convolutions read."""
    out = node.outputs[0]
    if not isinstance(node.op, ConvPool) or node.op.channels_last or not out.clients or not all(
            user != 'output' and isinstance(user.op, _Conv) and i == 0 for user, i in out.clients):
        return False
    return node.op._with(channels_last=True)(*node.inputs, return_list=True)


def install():
    """Register the rewrites with Theano."""
    register_rewrite(FuseConv(), 'theano_today_conv', FUSION_POSITION)
    register_rewrite(gof.opt.in2out(local_conv_channels_last), 'theano_today_conv_channels_last',
                     LEAN_POSITION)
