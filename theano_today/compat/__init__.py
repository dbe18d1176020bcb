"""Mends that let pip's own Theano 1.0.5, Lasagne 0.1 and nolearn 0.6.1 run on today's Python.

The packages stay as pip installed them; nothing is written into their folders.  What they ask of
Python, NumPy or scikit-learn and no longer find there is put back here, in memory.  Each mend says
what broke and since which version; when the package or Python below mends it, delete the mend.

There is one module for each package that is mended or that broke another: `python`, `numpy`,
`scipy`, `theano` (and `gpu`, its old backends), `lasagne`, `sklearn` (and `sklearn_modules`, what it
removed), `nolearn`.  `python2`, `old_names` and `hints` are for ``python -m theano_today`` alone.

Mends that must be there before ``import theano`` are marked ``@beforehand``, those of a module of a
package ``@after_import('that.module')``; ``replace('that.module', {old: new})`` changes a line in the
middle of a function, and ``@stand_in('that.module')`` makes a module that is gone.
"""
from . import (  # noqa: F401
    gpu, lasagne, nolearn, numpy, python, scipy, sklearn, sklearn_modules, theano)
from .mending import after_import, around_import, before_theano, install
from .nolearn import new_net

__all__ = ['after_import', 'around_import', 'before_theano', 'install', 'new_net']
