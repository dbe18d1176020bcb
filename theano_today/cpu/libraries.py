"""The kernels as libraries, which g++ compiles once and not once for each Op that calls them.

A kernel takes g++ five to ten seconds, and what calls it half a second.  So the kernels stand in three
libraries in Theano's compile directory, named after a digest of their source and of the compiler's
options.  g++ begins with one when a rewrite makes the first Op that calls it, while Theano goes on with
the graph.
"""
import atexit
import ctypes
import functools
import hashlib
import os
import subprocess
import sys
import tempfile
import threading

from theano import config
from theano.gof import cmodule

__all__ = ['HERE', 'digest', 'load', 'sources', 'start', 'supported']

HERE = os.path.dirname(os.path.abspath(__file__))

_lock = threading.Lock()
_compilers = {}     # path of a library -> the g++ that makes it, its output
_loaded = {}        # path of a library -> ctypes.CDLL


def supported():
    """Whether modules find a library by its name once it is loaded, wherever it is: ELF's way."""
    return sys.platform.startswith('linux')


@functools.cache
def digest(names):
    """A digest of files in this folder."""
    total = hashlib.sha256()
    for name in names:
        with open(os.path.join(HERE, name), 'rb') as file:
            total.update(file.read())
    return total.hexdigest()[:12]


@functools.cache
def sources():
    """The names of all files with C++ code."""
    return tuple(sorted(name for name in os.listdir(HERE) if name.endswith(('.hpp', '.cpp'))))


def _command(kind, options):
    return [config.cxx, '-shared', *options, *cmodule.GCC_compiler.compile_args(),
            '-fvisibility=hidden', os.path.join(HERE, kind + '.cpp')]


@functools.cache
def _name(kind, options):
    key = repr((_command(kind, options), cmodule.gcc_version(), digest(sources())))
    return f'theano_today_{kind}-{hashlib.sha256(key.encode()).hexdigest()[:12]}'


def _path(name):
    return os.path.join(config.compiledir, f'lib{name}.so')


def start(kind, options):
    """Begin to compile a library, unless it is there.

    Parameters
    ----------
    kind : str
        Name of the .cpp file.
    options : tuple of str
        For the compiler, beside Theano's.
    """
    name = _name(kind, options)
    path = _path(name)
    with _lock:
        if path in _compilers or path in _loaded or os.path.exists(path):
            return
        handle, temporary = tempfile.mkstemp('.so', f'{name}-', config.compiledir)
        os.close(handle)
        _compilers[path] = temporary, subprocess.Popen(
            _command(kind, options) + [f'-Wl,-soname,lib{name}.so', '-o', temporary],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def load(kind, options):
    """Load a library into this process, compiled first where it is not there; return its name.

    Raises
    ------
    OSError
        The compiler has failed; the message has what it said.
    """
    name = _name(kind, options)
    path = _path(name)
    if path in _loaded and os.path.exists(path):
        return name
    start(kind, options)
    with _lock:
        if path in _compilers:
            temporary, compiler = _compilers.pop(path)
            _, errors = compiler.communicate()
            if compiler.returncode:
                os.unlink(temporary)
                raise OSError(f'{config.cxx} could not compile {kind}.cpp:\n{errors}')
            os.replace(temporary, path)
        if path not in _loaded:
            _loaded[path] = ctypes.CDLL(path)
    return name


@atexit.register
def _stop():
    """Nobody waits for what is still being compiled."""
    for temporary, compiler in _compilers.values():
        compiler.kill()
        compiler.wait()
        if os.path.exists(temporary):
            os.unlink(temporary)
