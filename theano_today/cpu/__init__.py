"""The CPU engine: graph rewrites and C Ops that make unchanged Theano programs fast.

`install()` registers everything; ``import theano_today`` calls it.  `disable()` and `enable()` switch
the rewrites off and on for functions compiled from then on; the same can be had for a whole run with
``THEANO_FLAGS=optimizer_excluding=theano_today_cpu``.

================  ================================================================================
rewrites.py       the mechanism: rewrites of compiled functions in Theano's `optdb`
backward.py       finds the gradient that Theano has written down for a piece of a graph
native.py         what all C Ops share: headers, compiler flags, versions
libraries.py      the kernels as libraries, compiled once (kernels.hpp: what is in them)
simd.hpp          vectors of the widest kind the compiler has, in a dozen inline functions
conv.py/.hpp      convolution with bias, pooling, ReLU and dropout, and its gradients
conv_rewrites.py  how they get into graphs
matmul.py/.hpp    matrix products, and products that go straight into an update rule
mrg.py/.hpp       Theano's MRG31k3p random stream, vectorised
================  ================================================================================
"""
from . import conv_rewrites, matmul, mrg, native
from .rewrites import disable, enable

__all__ = ['disable', 'enable', 'install']


def install():
    """Register the rewrites of the engine with Theano.  Does nothing the second time."""
    for module in (conv_rewrites, mrg, matmul):
        module.install()
    native.survive_forks()
