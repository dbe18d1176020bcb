"""Matrix products in float32, and products that go straight into an update rule.

Two Ops take the place of BLAS in the dense layers of a net:

`MatMul`
    is ``dot`` of two matrices.  Bias, nonlinearity and dropout stay stock elementwise code: they
    touch a batch of activations once, a thousandth of the work of the product.
`MatMulUpdate`
    is the product that gives a gradient of weights, followed by the update rule.  Gradients of
    large dense layers do not fit into a cache; written and read again they cost as much as the
    product itself.  So the rule (any elementwise expression of the gradient, of arrays of its shape
    and of scalars) is applied to a few rows of the gradient right after they have been computed, and
    the gradient never reaches memory. Where weights are used twice, as in an autoencoder with tied
    weights, their gradient is a sum of products, and the rule takes them all::

        dW = dot(X.T, dZ)                                  W, v = MatMulUpdate(X.T, dZ, W, v, mu, lr)
        v_new = mu * v - lr * dW              ──►              for some rows and columns of dot(X.T, dZ):
        W_new = W + mu * v_new - lr * dW                           v, W = rule(these, W, v)  in place

A factor that is mostly zeros, as the gradient of a layer with ReLU and dropout is, is noticed while
the function runs; its zeros are then not multiplied (matmul_sparse.hpp).

Both come into compiled functions by rewrites in Theano's `optdb`; float64, vectors and broadcast
matrices stay with stock Ops.
"""
import numpy as np
import theano.tensor as tt
from theano import gof, scalar
from theano.gof.graph import ancestors
from theano.tensor.elemwise import Elemwise

from .native import NativeOp
from .rewrites import register_rewrite

__all__ = ['MatMul', 'MatMulUpdate', 'install', 'local_dot_to_matmul']

# Just before BlasOpt (1.7), when transposes have been moved to the operands.
MATMUL_POSITION = 1.69
# After elementwise fusion (49) has made the update rules a few nodes each, before Theano's own
# in-place optimizers (from 49.5 on).
UPDATE_POSITION = 49.4
INPLACE_POSITION = 70

MOST_PRODUCTS = 8  # that a rule takes: as in matrix.hpp


class _Product(NativeOp):
    """What `MatMul` and `MatMulUpdate` share: two operands with any strides."""

    kernels = 'matmul'

    def c_support_code(self):
        return """
        static matmul::Matrix matrix_of(PyArrayObject* a) {
            return matmul::Matrix{(const float*)PyArray_DATA(a),
                                  PyArray_STRIDE(a, 0) / (npy_intp)sizeof(float),
                                  PyArray_STRIDE(a, 1) / (npy_intp)sizeof(float)};
        }

        static bool operands_agree(PyArrayObject* a, PyArrayObject* b) {
            if (PyArray_DIM(a, 1) == PyArray_DIM(b, 0)) return true;
            PyErr_Format(PyExc_ValueError, "Shape mismatch: %ld x %ld times %ld x %ld",
                         (long)PyArray_DIM(a, 0), (long)PyArray_DIM(a, 1),
                         (long)PyArray_DIM(b, 0), (long)PyArray_DIM(b, 1));
            return false;
        }

        static bool sizes_agree(npy_intp m, npy_intp n, npy_intp rows, npy_intp columns) {
            if (m == rows && n == columns) return true;
            PyErr_Format(PyExc_ValueError, "Input dimension mis-match: %ld x %ld and %ld x %ld",
                         (long)m, (long)n, (long)rows, (long)columns);
            return false;
        }

        // Make *c an m x n matrix whose rows follow each other, unless it is one already.
        static bool allocate(PyArrayObject** c, npy_intp m, npy_intp n) {
            if (*c && PyArray_DIM(*c, 0) == m && PyArray_DIM(*c, 1) == n && PyArray_IS_C_CONTIGUOUS(*c))
                return true;
            npy_intp shape[2] = {m, n};
            Py_XDECREF(*c);
            *c = (PyArrayObject*)PyArray_SimpleNew(2, shape, NPY_FLOAT32);
            return *c != NULL;
        }
        """


class MatMul(_Product):
    """The product of two float32 matrices."""

    __props__ = ()

    def make_node(self, a, b):
        a, b = tt.as_tensor_variable(a), tt.as_tensor_variable(b)
        if not (_is_matrix(a) and _is_matrix(b)):
            raise TypeError('MatMul takes two float32 matrices, got', a.type, b.type)
        return gof.Apply(self, [a, b], [tt.fmatrix()])

    def infer_shape(self, node, shapes):
        (m, _), (_, n) = shapes
        return [(m, n)]

    def grad(self, inputs, output_grads):
        (a, b), (g,) = inputs, output_grads
        return [tt.dot(g, b.T), tt.dot(a.T, g)]

    def R_op(self, inputs, eval_points):
        (a, b), (da, db) = inputs, eval_points
        terms = ([] if da is None else [tt.dot(da, b)]) + ([] if db is None else [tt.dot(a, db)])
        return [sum(terms[1:], terms[0]) if terms else None]

    def perform(self, node, inputs, output_storage):
        output_storage[0][0] = inputs[0].dot(inputs[1])

    def c_code(self, node, name, inputs, outputs, sub):
        return """
        {{
            if (!operands_agree({a}, {b})) {{ {fail} }}
            const npy_intp m = PyArray_DIM({a}, 0), n = PyArray_DIM({b}, 1);
            if (!allocate(&{c}, m, n)) {{ {fail} }}
            if (!kernels::multiply(matrix_of({a}), matrix_of({b}), m, n, PyArray_DIM({a}, 1),
                                   (float*)PyArray_DATA({c}))) {{
                PyErr_NoMemory();
                {fail}
            }}
        }}
        """.format(a=inputs[0], b=inputs[1], c=outputs[0], fail=sub['fail'])


class MatMulUpdate(_Product):
    """Products of two float32 matrices, all of one shape, put through an elementwise rule.

    Parameters
    ----------
    rule : theano.scalar.Composite
        The rule for one element.  Its inputs are an element of each product, then one of each
        matrix, then the scalars.
    matrices : int
        The number of matrices that the rule takes, all of the shape of the products.
    products : int
        The number of products.  Their factors are the Op's first inputs.
    inplace : tuple of (int, int)
        Pairs (output, matrix): the output is written over that matrix.
    """

    __props__ = ('rule', 'matrices', 'products', 'inplace')

    def __init__(self, rule, matrices, products=1, inplace=()):
        self.rule = rule
        self.matrices = matrices
        self.products = products
        self.inplace = inplace
        if inplace:
            self.destroy_map = {output: [2 * products + matrix] for output, matrix in inplace}

    def __str__(self):
        return 'MatMulUpdate{{{}}}{}'.format(self.rule, '[inplace]' if self.inplace else '')

    def make_node(self, *inputs):
        return gof.Apply(self, list(inputs), [tt.fmatrix() for _ in range(self.rule.nout)])

    def split(self, inputs):
        """The factors of the products in pairs, the matrices and the scalars among the inputs."""
        factors, arguments = inputs[:2 * self.products], inputs[2 * self.products:]
        return list(zip(factors[::2], factors[1::2])), arguments[:self.matrices], arguments[self.matrices:]

    def infer_shape(self, node, shapes):
        return [(shapes[0][0], shapes[1][1])] * len(node.outputs)

    def prepare_node(self, node, storage_map, compute_map, impl):
        self.rule.prepare_node(node, storage_map, compute_map, impl)

    def perform(self, node, inputs, output_storage):
        factors, matrices, scalars = self.split(inputs)
        rule = np.frompyfunc(self.rule.impl, self.rule.nin, self.rule.nout)
        results = rule(*[a.dot(b) for a, b in factors], *matrices, *scalars)
        inplace = dict(self.inplace)
        for i, result in enumerate([results] if self.rule.nout == 1 else results):
            if i in inplace:
                output_storage[i][0] = matrices[inplace[i]]
                output_storage[i][0][...] = result
            else:
                output_storage[i][0] = result.astype('float32')

    # ---- the rule as C code: a functor for matmul_update.hpp that sees some rows at a time ----

    def _rule_node(self):
        return self.rule.make_node(*[t() for t in self.rule.inputs_type])

    def c_support_code(self):
        return super(MatMulUpdate, self).c_support_code() + self.rule.c_support_code()

    def c_support_code_apply(self, node, name):
        products, matrices = range(self.products), range(self.matrices)
        scalars = range(self.rule.nin - self.products - self.matrices)
        outputs = range(self.rule.nout)
        rule_node = self._rule_node()
        code = self.rule.c_code(
            rule_node, name + '_rule',
            [f'g{i}' for i in products] + [f'x{i}' for i in matrices] + [f's{i}' for i in scalars],
            [f'y{i}' for i in outputs], {'fail': ''})

        def each(template, indices):
            return ' '.join(template.format(i) for i in indices)

        return self.rule.c_support_code_apply(rule_node, name + '_rule') + """
        struct Rule_%(name)s {
            %(members)s

            void prefetch(ptrdiff_t i, ptrdiff_t j, ptrdiff_t rows, ptrdiff_t columns) const {
                for (ptrdiff_t r = i; r < i + rows; r++) { %(prefetches)s }
            }

            // n elements of all products and matrices: those of row i from column j on.
            template <bool UNIT_STRIDES>
            void apply(const float* const* products, ptrdiff_t offset, ptrdiff_t i, ptrdiff_t j,
                       ptrdiff_t n) const {
                %(pointers)s
                #pragma GCC ivdep
                for (ptrdiff_t q = 0; q < n; q++) {
                    %(loads)s
                    float %(results)s;
                    %(code)s
                    %(stores)s
                }
            }

            void operator()(const float* const* products, ptrdiff_t ld, ptrdiff_t i, ptrdiff_t j,
                            ptrdiff_t rows, ptrdiff_t columns) const {
                for (ptrdiff_t r = 0; r < rows; r++)
                    if (!unit_strides)
                        apply<false>(products, r * ld, i + r, j, columns);
                    else if (columns == matmul::NR)    // as sparse_update has them: a loop that g++ unrolls
                        apply<true>(products, r * ld, i + r, j, matmul::NR);
                    else
                        apply<true>(products, r * ld, i + r, j, columns);
            }

            bool unit_strides;
        };
        """ % dict(
            name=name, code=code,
            members=each('matmul::Matrix m{0};', matrices) + each(' float s{0};', scalars) +
            each(' float* out{0}; ptrdiff_t ld{0}, step{0};', outputs),
            prefetches=each('__builtin_prefetch(m{0}.at(r, j));', matrices),
            pointers=each('const float* const t{0} = products[{0}] + offset;', products) +
            each(' const float* p{0} = m{0}.at(i, j);'
                 ' const ptrdiff_t c{0} = UNIT_STRIDES ? 1 : m{0}.column;', matrices) +
            each(' float* o{0} = out{0} + i * ld{0} + j * step{0};'
                 ' const ptrdiff_t d{0} = UNIT_STRIDES ? 1 : step{0};', outputs),
            loads=each('const float g{0} = t{0}[q];', products) +
            each(' const float x{0} = p{0}[q * c{0}];', matrices),
            results=', '.join(f'y{i}' for i in outputs),
            stores=each('o{0}[q * d{0}] = y{0};', outputs))

    def c_code(self, node, name, inputs, outputs, sub):
        factors, matrices, scalars = self.split(inputs)
        inplace = dict(self.inplace)
        fail = sub['fail']
        lines = ['const npy_intp m = PyArray_DIM({}, 0), n = PyArray_DIM({}, 1);'.format(*factors[0]),
                 'matmul::Factors products[{}];'.format(self.products),
                 'Rule_{} rule;'.format(name), 'rule.unit_strides = true;']
        for i, (a, b) in enumerate(factors):
            lines.append("""
            if (!operands_agree({a}, {b})) {{ {fail} }}
            if (!sizes_agree(m, n, PyArray_DIM({a}, 0), PyArray_DIM({b}, 1))) {{ {fail} }}
            products[{i}] = matmul::Factors{{matrix_of({a}), matrix_of({b}), PyArray_DIM({a}, 1)}};""".format(
                i=i, a=a, b=b, fail=fail))
        for i, x in enumerate(matrices):
            lines.append("""
            if (!sizes_agree(m, n, PyArray_DIM({x}, 0), PyArray_DIM({x}, 1))) {{ {fail} }}
            rule.m{i} = matrix_of({x});
            rule.unit_strides &= rule.m{i}.column == 1;""".format(i=i, x=x, fail=fail))
        for i, x in enumerate(scalars):
            lines.append('rule.s{} = *(const float*)PyArray_DATA({});'.format(i, x))
        for i, y in enumerate(outputs):
            if i in inplace:
                lines.append('Py_XDECREF({y}); {y} = {x}; Py_INCREF({y});'.format(
                    y=y, x=matrices[inplace[i]]))
            else:
                lines.append('if (!allocate(&{}, m, n)) {{ {} }}'.format(y, fail))
            lines.append("""
            rule.out{i} = (float*)PyArray_DATA({y});
            rule.ld{i} = matrix_of({y}).row;
            rule.step{i} = matrix_of({y}).column;
            rule.unit_strides &= rule.step{i} == 1;""".format(i=i, y=y))
        lines.append("""
            if (!kernels::multiply_into(products, {}, m, n, kernels::AnyRule(&rule))) {{
                PyErr_NoMemory();
                {}
            }}""".format(self.products, fail))
        return '{\n' + '\n'.join(lines) + '\n}\n'

    def c_code_cache_version_apply(self, node):
        rule_version = self.rule.c_code_cache_version()
        return self.c_code_cache_version() + (rule_version,) if rule_version else ()


def _is_matrix(variable):
    """Whether this is a float32 matrix, not a broadcast row or column."""
    return getattr(variable.type, 'dtype', None) == 'float32' and \
        getattr(variable.type, 'broadcastable', None) == (False, False)


def _is_scalar(variable):
    """Whether this is a float32 number, made a matrix for the sake of broadcasting."""
    return variable.type.dtype == 'float32' and variable.type.broadcastable == (True, True)


@gof.local_optimizer([tt.Dot])
def local_dot_to_matmul(node):
    """dot of two float32 matrices -> MatMul."""
    if isinstance(node.op, tt.Dot) and all(_is_matrix(x) for x in node.inputs):
        return [MatMul()(*node.inputs)]
    return False


class FuseUpdates(gof.Optimizer):
    """MatMuls whose results feed an update rule only -> MatMulUpdate.

    The elementwise nodes that become one with the product are its consumers, the consumers of those,
    and what is computed for them alone, as long as all work on matrices of the same shape.  One of
    them has to compute the new value of a shared variable: elsewhere, at activations for instance,
    the matrices are small, and nothing is gained that would be worth a compilation.
    """

    def add_requirements(self, fgraph):
        fgraph.attach_feature(gof.toolbox.ReplaceValidate())

    def apply(self, fgraph):
        updates = {fgraph.outputs[o] for o in fgraph.update_mapping or ()}
        for node in fgraph.toposort():
            if isinstance(node.op, MatMul) and node in fgraph.apply_nodes:  # not part of another's rule
                group = self._rule(fgraph, node)
                if any(updates.intersection(member.outputs) for member in group):
                    self._fuse(fgraph, node, group)

    def _rule(self, fgraph, product):
        """The elementwise nodes to fuse with `product`, in the order of computation."""
        gradient, = product.outputs
        order = fgraph.toposort()
        group = []
        for node in order:
            computed = {gradient}.union(*(member.outputs for member in group))
            if computed.intersection(node.inputs) and _is_rule(node) and \
                    not _depends_on(set(node.inputs) - computed, computed):
                group.append(node)
        if not {client for client, _ in gradient.clients} <= set(group):
            return []  # somebody else needs the gradient itself
        # What is computed for the rule alone, such as momentum * velocity, can be done on the way.
        for node in reversed(order):
            if node not in group and _is_rule(node) and \
                    {client for client, _ in node.outputs[0].clients} <= set(group):
                group.append(node)
        return sorted(group, key=order.index)

    def _fuse(self, fgraph, product, group):
        computed = product.outputs + [output for node in group for output in node.outputs]
        arguments = []
        for node in group:
            arguments += [x for x in node.inputs if x not in computed and x not in arguments]
        products = product.outputs + [x for x in arguments if self._is_for(x, group)][:MOST_PRODUCTS - 1]
        matrices = [x for x in arguments if _is_matrix(x) and x not in products]
        scalars = [x for x in arguments if not _is_matrix(x)]
        results = [y for node in group for y in node.outputs
                   if any(client == 'output' or client not in group for client, _ in y.clients)]

        element = {x: scalar.float32() for x in products + matrices + scalars}
        inputs = list(element.values())
        for node in group:
            outputs = node.op.scalar_op.make_node(*[element[x] for x in node.inputs]).outputs
            element.update(zip(node.outputs, outputs))
        rule = scalar.Composite(inputs, [element[y] for y in results])
        if not _has_c_code(rule):
            return

        op = MatMulUpdate(rule, len(matrices), len(products))
        factors = [x for product in products for x in product.owner.inputs]
        new = op(*factors + matrices + scalars, return_list=True)
        fgraph.replace_all_validate(list(zip(results, new)), reason='theano_today_fuse_updates')

    @staticmethod
    def _is_for(variable, group):
        """Whether this is a product that nobody but the nodes of `group` needs."""
        return variable.owner is not None and isinstance(variable.owner.op, MatMul) and \
            {client for client, _ in variable.clients} <= set(group)


def _is_rule(node):
    """Whether this is an elementwise node of float32 matrices and scalars, with one float32 result."""
    return type(node.op) is Elemwise and not node.op.inplace_pattern and \
        len(node.outputs) == 1 and _is_matrix(node.outputs[0]) and \
        all(_is_matrix(x) or _is_scalar(x) for x in node.inputs)


def _has_c_code(rule):
    """Whether all parts of a rule can be compiled: a few, such as erfinv, exist in Python only."""
    inputs, outputs = [[f'{name}{i}' for i in range(n)] for name, n in
                       (('x', rule.nin), ('y', rule.nout))]
    try:
        rule.c_code(rule.make_node(*[t() for t in rule.inputs_type]), 'rule', inputs, outputs, {'fail': ''})
    except (NotImplementedError, gof.utils.MethodNotDefined):
        return False
    return True


def _depends_on(variables, others):
    """Whether any of `variables` is computed from any of `others`."""
    return not others.isdisjoint(ancestors(list(variables)))


class UpdateInplace(gof.Optimizer):
    """MatMulUpdate writes its results over the arrays that they replace."""

    def add_requirements(self, fgraph):
        fgraph.attach_feature(gof.toolbox.ReplaceValidate())
        fgraph.attach_feature(gof.destroyhandler.DestroyHandler())

    def apply(self, fgraph):
        replaced = {fgraph.outputs[o]: fgraph.inputs[i]
                    for o, i in (fgraph.update_mapping or {}).items()}
        for node in fgraph.toposort():
            if not isinstance(node.op, MatMulUpdate) or node.op.inplace:
                continue
            _, matrices, _ = node.op.split(node.inputs)
            inplace = tuple((o, matrices.index(replaced[y])) for o, y in enumerate(node.outputs)
                            if replaced.get(y) in matrices)
            if inplace:
                op = MatMulUpdate(node.op.rule, node.op.matrices, node.op.products, inplace)
                new = op(*node.inputs, return_list=True)
                try:
                    fgraph.replace_all_validate(list(zip(node.outputs, new)),
                                                reason='theano_today_update_inplace')
                except gof.InconsistencyError:
                    pass  # somebody still needs the old arrays


def install():
    """Register the rewrites with Theano."""
    register_rewrite(gof.opt.in2out(local_dot_to_matmul), 'theano_today_matmul', MATMUL_POSITION)
    register_rewrite(FuseUpdates(), 'theano_today_fuse_updates', UPDATE_POSITION)
    register_rewrite(UpdateInplace(), 'theano_today_update_inplace', INPLACE_POSITION, 'inplace')
