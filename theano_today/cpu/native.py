"""What all C Ops of the engine share: headers, compiler flags, and the key of Theano's module cache."""
import ctypes
import os
import sys

from theano import config, gof

from . import libraries

__all__ = ['NativeOp', 'survive_forks']


class NativeOp(gof.Op):
    """An Op whose C code calls kernels from the library of a .cpp file of this folder.

    Sizes reach the kernels at run time: the C code of an Op is the same for all shapes, so Theano
    compiles one module per Op and keeps it in its compile directory.

    Attributes
    ----------
    kernels : str
        Name of the .cpp file, without its ending.
    headers : tuple of str
        Header files of this folder that the C code includes.
    """

    kernels = None
    headers = ('kernels.hpp',)

    def __new__(cls, *args, **kwargs):
        op = super().__new__(cls)
        if libraries.supported() and config.cxx:
            libraries.start(cls.kernels, op._options())
        return op

    def _options(self):
        # Without -fno-math-errno, sqrt and others may not be vectorised.
        return ('-O3', '-fno-math-errno') + (('-fopenmp',) if _openmp() else ())

    def c_header_dirs(self):
        return [libraries.HERE]

    def c_headers(self):
        # Where there can be no library, its source becomes a part of each module.
        files = self.headers if libraries.supported() else self.headers + (self.kernels + '.cpp',)
        return [f'"{name}"' for name in files]

    def c_compile_args(self):
        return list(self._options())

    def c_lib_dirs(self):
        return [config.compiledir] if libraries.supported() else []

    def c_libraries(self):
        return [libraries.load(self.kernels, self._options())] if libraries.supported() else []

    def c_code_cache_version(self):
        # C code stands in the header files and in the modules of the class and its bases.
        modules = {sys.modules[cls.__module__].__file__ for cls in type(self).__mro__
                   if cls.__module__.startswith(__package__)}
        files = libraries.sources() + tuple(sorted(map(os.path.basename, modules)))
        return (int(libraries.digest(files), 16),)

    def __str__(self):
        props = ', '.join(f'{name}={getattr(self, name)}' for name in self.__props__)
        return type(self).__name__ + ('{' + props + '}' if props else '')


def _openmp():
    """Whether the compiler has OpenMP.  Without it, the kernels run in one thread."""
    if gof.OpenMPOp.gxx_support_openmp is None:
        gof.OpenMPOp.gxx_support_openmp = gof.OpenMPOp.test_gxx_support()
    return gof.OpenMPOp.gxx_support_openmp


def survive_forks():
    """Let kernels run in processes that are forked, as `multiprocessing` does on Linux (once).

    The threads of GCC's OpenMP are not there in the child of a fork, but it waits for them at the next
    parallel loop, forever.  So the forking thread ends its own before; the next loop, in parent or
    child, starts new ones, as many as before, hence results stay the same to the bit.  Before GCC 9
    threads cannot be ended: there the child goes on with one.
    """
    if not _fork_handlers and hasattr(os, 'register_at_fork'):
        _fork_handlers.append(os.register_at_fork(before=_end_threads, after_in_child=_without_threads))


_fork_handlers = []
_PAUSE_HARD = 2  # omp_pause_hard, from omp.h


def _libgomp():
    """GCC's OpenMP if this process has loaded it, else None.  (That of LLVM handles forks itself.)"""
    try:
        return ctypes.CDLL('libgomp.so.1', mode=os.RTLD_NOW | os.RTLD_NOLOAD)
    except (OSError, AttributeError):
        return None


def _end_threads():
    library = _libgomp()
    if hasattr(library, 'omp_pause_resource_all'):
        library.omp_pause_resource_all(_PAUSE_HARD)


def _without_threads():
    library = _libgomp()
    if library is not None and not hasattr(library, 'omp_pause_resource_all'):
        library.omp_set_num_threads(1)
