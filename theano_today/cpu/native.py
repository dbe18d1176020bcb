"""What all C Ops of the engine share: headers, compiler flags, and the key of Theano's module cache."""
import functools
import hashlib
import os
import sys

from theano import gof

__all__ = ['NativeOp']

_HERE = os.path.dirname(os.path.abspath(__file__))


class NativeOp(gof.Op):
    """An Op whose C code calls kernels from the header files of this folder.

    Sizes reach the kernels at run time: the C code of an Op is the same for all shapes, so Theano
    compiles one module per Op and keeps it in its compile directory.

    Attributes
    ----------
    headers : tuple of str
        Header files of this folder that the C code includes, with those that they include in turn:
        a change in any of them has to compile the Op anew.
    """

    headers = ('simd.hpp',)

    def c_header_dirs(self):
        return [_HERE]

    def c_headers(self):
        headers = ['"{}"'.format(name) for name in self.headers]
        return headers + ['<omp.h>'] if _openmp() else headers

    def c_compile_args(self):
        # Without -fno-math-errno, sqrt and others may not be vectorised.
        args = ['-O3', '-fno-math-errno']
        return args + ['-fopenmp'] if _openmp() else args

    def c_code_cache_version(self):
        # C code stands in the header files and in the modules of the class and its bases.
        modules = {sys.modules[cls.__module__].__file__ for cls in type(self).__mro__
                   if cls.__module__.startswith(__package__)}
        return (_digest(self.headers + tuple(sorted(map(os.path.basename, modules)))),)

    def __str__(self):
        props = ', '.join('{}={}'.format(name, getattr(self, name)) for name in self.__props__)
        return type(self).__name__ + ('{' + props + '}' if props else '')


def _openmp():
    """Whether the compiler has OpenMP.  Without it, the kernels run in one thread."""
    if gof.OpenMPOp.gxx_support_openmp is None:
        gof.OpenMPOp.gxx_support_openmp = gof.OpenMPOp.test_gxx_support()
    return gof.OpenMPOp.gxx_support_openmp


@functools.lru_cache(maxsize=None)
def _digest(names):
    digest = hashlib.sha256()
    for name in names:
        with open(os.path.join(_HERE, name), 'rb') as file:
            digest.update(file.read())
    return int(digest.hexdigest()[:12], 16)
