"""Theano's MRG31k3p random stream, vectorised: the same samples and the same state, bit for bit.

`MRGUniform` takes the place of Theano's `mrg_uniform`.  `MRGBernoulli` draws and compares at once, as
dropout needs it: the samples themselves never reach memory.
"""
import numpy as np
import theano
import theano.tensor as tt
from theano import gof
from theano.sandbox.rng_mrg import mrg_uniform, mrg_uniform_base
from theano.tensor.elemwise import Elemwise

from .native import NativeOp
from .rewrites import register_rewrite

__all__ = ['MRGBernoulli', 'MRGUniform', 'install']

# After canonicalize (1) and stabilize (1.5), which turn `uniform * (1 - 0) + 0 < p` into
# `uniform < p`; before elementwise fusion (49).
POSITION = 1.65
INPLACE_POSITION = 99  # that of Theano's own in-place rewrite of mrg_uniform


class MRGUniform(NativeOp, mrg_uniform):
    """Theano's `mrg_uniform` with another loop inside.

    Checks, allocation and the in-place variant are inherited.
    """

    kernels = 'mrg'

    def c_support_code(self):
        return '\n'.join("""
        static void cpu_rng_mrg_uniform_npy_{}(PyArrayObject* sample, PyArrayObject* state,
                                                npy_int64 n, int streams) {{
            {}
        }}""".format(dtype, code) for dtype, code in (
            ('float32', 'kernels::draw_uniform((int32_t*)PyArray_DATA(state), streams, n, '
                        '(float*)PyArray_DATA(sample));'),
            ('float64', ''),  # Theano's code refers to it; this Op is for float32 only
        ))

    __str__ = mrg_uniform_base.__str__


class MRGBernoulli(NativeOp):
    """``cast(uniform(size) < p, dtype)``, drawn from the MRG streams.

    Parameters
    ----------
    broadcastable : tuple of bool
        Which dimensions of the sample are known to be 1.
    dtype : {'bool', 'float32'}
    inplace : bool
        Whether the new state is written over the old one.
    """

    __props__ = ('broadcastable', 'dtype', 'inplace')
    kernels = 'mrg'

    def __init__(self, broadcastable, dtype='bool', inplace=False):
        self.broadcastable = tuple(broadcastable)
        self.dtype = dtype
        self.inplace = inplace
        if inplace:
            self.destroy_map = {0: [0]}

    def make_node(self, rstate, size, p):
        sample = tt.TensorType(self.dtype, self.broadcastable)
        return gof.Apply(self, [rstate, size, p], [rstate.type(), sample()])

    def infer_shape(self, node, shapes):
        return [shapes[0], [node.inputs[1][i] for i in range(len(self.broadcastable))]]

    def grad(self, inputs, output_grads):
        return [theano.gradient.grad_undefined(self, i, x, 'random sampling')
                for i, x in enumerate(inputs)]

    def R_op(self, inputs, eval_points):
        return [None for _ in eval_points]

    def perform(self, node, inputs, output_storage):
        state, size, p = inputs
        samples = mrg_uniform(tt.TensorType('float32', self.broadcastable), self.inplace)
        uniform = [None]
        samples.perform(node, [state, size], [output_storage[0], uniform], None)
        output_storage[1][0] = np.asarray(uniform[0] < p, dtype=self.dtype)

    def c_code(self, node, name, inputs, outputs, sub):
        return """
        {
            const int ndim = %(ndim)d;
            npy_intp shape[NPY_MAXDIMS], n = 1;
            if (PyArray_DIM(%(size)s, 0) != ndim) {
                PyErr_Format(PyExc_ValueError, "size must have length %%d (not %%d)", ndim,
                             (int)PyArray_DIM(%(size)s, 0));
                %(fail)s
            }
            bool keep = %(sample)s && PyArray_IS_C_CONTIGUOUS(%(sample)s);
            for (int i = 0; i < ndim; i++) {
                shape[i] = *(dtype_%(size)s*)PyArray_GETPTR1(%(size)s, i);
                n *= shape[i];
                keep = keep && PyArray_DIM(%(sample)s, i) == shape[i];
            }
            if (n > 2147483647) {
                PyErr_SetString(PyExc_ValueError, "rng_mrg cpu-implementation does not support "
                                                  "more than (2**31 -1) samples");
                %(fail)s
            }
            if (!keep) {
                Py_XDECREF(%(sample)s);
                %(sample)s = (PyArrayObject*)PyArray_SimpleNew(ndim, shape, %(type_num)s);
                if (!%(sample)s) { %(fail)s }
            }
            Py_XDECREF(%(new_state)s);
            %(new_state)s = (PyArrayObject*)PyArray_FromAny((PyObject*)%(state)s, NULL, 2, 2,
                                                            %(requirement)s, NULL);
            if (!%(new_state)s) { %(fail)s }
            if (PyArray_DIM(%(new_state)s, 1) != 6) {
                PyErr_SetString(PyExc_ValueError, "rstate must have 6 columns");
                %(fail)s
            }
            kernels::draw_bernoulli(
                (int32_t*)PyArray_DATA(%(new_state)s), PyArray_DIM(%(new_state)s, 0), n,
                *(const float*)PyArray_DATA(%(p)s), (%(ctype)s*)PyArray_DATA(%(sample)s));
        }
        """ % dict(
            ndim=len(self.broadcastable), state=inputs[0], size=inputs[1], p=inputs[2],
            new_state=outputs[0], sample=outputs[1], fail=sub['fail'],
            requirement='NPY_ARRAY_CARRAY' + ('' if self.inplace else ' | NPY_ARRAY_ENSURECOPY'),
            **dict(bool=dict(type_num='NPY_BOOL', ctype='bool'),
                   float32=dict(type_num='NPY_FLOAT32', ctype='float'))[self.dtype])


def _is_float32_draw(variable):
    """Whether this is the sample (not the state) of Theano's `mrg_uniform`, in float32."""
    node = variable.owner
    return node is not None and type(node.op) is mrg_uniform and variable.dtype == 'float32' and \
        variable is node.outputs[1] and node.inputs[0].dtype == 'int32'


@gof.local_optimizer([Elemwise])
def local_mrg_bernoulli(node):
    """uniform < p -> MRGBernoulli, where nobody else looks at the uniform sample."""
    if node.op != tt.lt:
        return False
    uniform, p = node.inputs
    if not _is_float32_draw(uniform) or len(uniform.clients) != 1:
        return False
    if p.dtype != 'float32' or not all(p.broadcastable) or \
            node.outputs[0].broadcastable != uniform.broadcastable:
        return False
    state, size = uniform.owner.inputs
    p = p.dimshuffle() if p.ndim else p
    new_state, sample = MRGBernoulli(uniform.broadcastable)(state, size, p)
    return {uniform.owner.outputs[0]: new_state, node.outputs[0]: sample}


@gof.local_optimizer([Elemwise])
def local_cast_mrg_bernoulli(node):
    """MRGBernoulli, cast to float32 -> MRGBernoulli in float32."""
    if not (isinstance(node.op.scalar_op, theano.scalar.Cast) and node.outputs[0].dtype == 'float32'):
        return False
    sample, = node.inputs
    draw = sample.owner
    if draw is None or not isinstance(draw.op, MRGBernoulli) or len(sample.clients) != 1:
        return False
    new_state, new_sample = MRGBernoulli(draw.op.broadcastable, 'float32')(*draw.inputs)
    return {draw.outputs[0]: new_state, node.outputs[0]: new_sample}


@gof.local_optimizer([mrg_uniform])
def local_mrg_uniform(node):
    """mrg_uniform in float32 -> MRGUniform."""
    if type(node.op) is not mrg_uniform or not _is_float32_draw(node.outputs[1]):
        return False
    return MRGUniform(node.op.output_type, node.op.inplace).make_node(*node.inputs).outputs


@gof.local_optimizer([MRGBernoulli])
def local_mrg_bernoulli_inplace(node):
    """MRGBernoulli writes its state over the old one."""
    if not isinstance(node.op, MRGBernoulli) or node.op.inplace:
        return False
    op = MRGBernoulli(node.op.broadcastable, node.op.dtype, inplace=True)
    return op.make_node(*node.inputs).outputs


def install():
    """Register the rewrites with Theano."""
    register_rewrite(
        gof.opt.TopoOptimizer(
            gof.opt.LocalOptGroup(local_mrg_bernoulli, local_cast_mrg_bernoulli),
            order='in_to_out', failure_callback=gof.opt.NavigatorOptimizer.warn_inplace),
        'theano_today_mrg_bernoulli', POSITION)
    register_rewrite(gof.opt.in2out(local_mrg_uniform), 'theano_today_mrg_uniform', POSITION + .01)
    register_rewrite(gof.opt.in2out(local_mrg_bernoulli_inplace, ignore_newtrees=True),
                     'theano_today_mrg_inplace', INPLACE_POSITION, 'inplace')
