"""Theano 1.0.5 on today's Python and today's hardware.

    import theano_today          # before theano, lasagne or nolearn
    import theano, lasagne, nolearn.lasagne

Importing this package

1. puts back what the old packages miss in today's Python, NumPy and scikit-learn
   (`theano_today.compat`),
2. gives Theano the flags it needs: a BLAS from pip, float32, and so on (`default_flags`),
3. tells the C library to keep freed memory, which Theano frees and takes again in every step,
4. imports Theano and installs the CPU engine (`theano_today.cpu`).

A flag that you set in ``THEANO_FLAGS`` or in a ``.theanorc`` always wins over ours.
"""
import configparser
import ctypes
import ctypes.util
import hashlib
import os
import shutil
import sys
import sysconfig
import tempfile

from . import compat

__all__ = ['SetupError', 'default_flags']


class SetupError(ImportError):
    """The machine lacks something Theano needs; the message says what to install."""


# Names of the BLAS routines that Theano's C code calls.  pip's OpenBLAS exports each of them with
# the prefix `scipy_`, so that it can live in one process beside another OpenBLAS.
_BLAS_ROUTINES = ('dot', 'axpy', 'scal', 'copy', 'swap', 'nrm2', 'asum', 'gemv', 'ger', 'gemm',
                  'symm', 'symv', 'syrk', 'trsm')


def default_flags():
    """Theano flags that this machine and these package versions call for.

    Returns
    -------
    dict of str to str
        Flag names and values, without regard to what the user has set.
    """
    flags = {
        # What Lasagne's and nolearn's tutorials put into .theanorc; the engines work in float32.
        'floatX': 'float32',
        # Theano's look-up of numpy's BLAS crashes with NumPy >= 1.22, so name a library outright.
        'blas.ldflags': '',
        # GCC 10 and later turn code that Theano generates into warnings by the hundred.
        'gcc.cxxflags': '-w',
    }
    try:
        import scipy_openblas32
    except ImportError:
        return flags
    prefix = ''.join(' -D{0}_=scipy_{0}_'.format(kind + routine)
                     for kind in 'sd' for routine in _BLAS_ROUTINES)
    # Theano calls these two to give each OpenMP thread a single-threaded BLAS.
    prefix += ''.join(' -D{0}=scipy_{0}'.format(name) for name in
                      ('openblas_set_num_threads', 'openblas_get_num_threads'))
    flags['blas.ldflags'] = '-L{} -l{}'.format(
        _path_without_spaces(scipy_openblas32.get_lib_dir()), scipy_openblas32.get_library())
    flags['gcc.cxxflags'] += prefix
    return flags


def _path_without_spaces(path):
    """Return `path`, or a link to it when it has spaces: Theano splits its flags at spaces."""
    if ' ' not in path:
        return path
    name = 'theano_today-{}'.format(hashlib.sha256(path.encode()).hexdigest()[:16])
    link = os.path.join(tempfile.gettempdir(), name)
    if not os.path.islink(link):
        os.symlink(path, link)
    return link


def _user_flags():
    """Flags the user has set, in the order of precedence of Theano: THEANO_FLAGS, .theanorc."""
    files = os.environ.get('THEANORC', os.path.join('~', '.theanorc')).split(os.pathsep)
    parser = configparser.RawConfigParser()
    parser.optionxform = str  # Theano's flags are case-sensitive
    parser.read([os.path.expanduser(name) for name in files])
    flags = {}
    for section in parser.sections():
        for option, value in parser.items(section):
            flags[option if section == 'global' else section + '.' + option] = value
    for item in os.environ.get('THEANO_FLAGS', '').split(','):
        name, separator, value = item.partition('=')
        if separator:
            flags[name.strip()] = value.strip()
    return flags


def _set_flags():
    """Add our flags to THEANO_FLAGS where the user has not decided otherwise."""
    user, flags = _user_flags(), default_flags()
    if 'gcc.cxxflags' in user and 'blas.ldflags' not in user:
        # Our BLAS needs its renaming flags whatever else the user tells the compiler.
        flags['gcc.cxxflags'] += ' ' + user.pop('gcc.cxxflags')
    ours = ['{}={}'.format(name, value) for name, value in flags.items() if name not in user]
    theirs = os.environ.get('THEANO_FLAGS', '')
    # The last of two settings of the same flag wins in Theano: the user's stay last but for the
    # compiler flags, in which theirs are contained.
    theirs = [item for item in theirs.split(',') if item.strip() and not (
        item.partition('=')[0].strip() == 'gcc.cxxflags' and 'gcc.cxxflags' not in user)]
    os.environ['THEANO_FLAGS'] = ','.join(ours + theirs)


def _load_blas():
    """Load pip's OpenBLAS, so that modules Theano compiled earlier find it by name."""
    try:
        import scipy_openblas32
    except ImportError:
        return
    ctypes.CDLL(os.path.join(scipy_openblas32.get_lib_dir(),
                             'lib{}.so'.format(scipy_openblas32.get_library())),
                mode=ctypes.RTLD_GLOBAL)


def _keep_freed_memory():
    """Tell glibc to keep memory that Theano frees instead of giving it back to the kernel.

    Theano frees and takes hundreds of MB in each training step; faulting those pages in again was
    half of stock Theano's wall time in our measurements.
    """
    if not sys.platform.startswith('linux'):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # musl and others
        return
    M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3  # from glibc's malloc.h
    mallopt(M_MMAP_THRESHOLD, 1 << 30)  # take large arrays from the heap, not from mmap
    mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)  # never give the top of the heap back
    mallopt(M_TOP_PAD, 64 << 20)  # grow the heap in large steps


def _check_compiler():
    """Raise SetupError where Theano would fall back to Python code, hundreds of times slower."""
    user = _user_flags()
    if user.get('cxx') == '':
        return  # the user has asked for Theano without C code
    if shutil.which(user.get('cxx', 'g++')) is None:
        raise SetupError(
            'Theano needs the C++ compiler g++ and cannot find {!r}. Install it (Debian, Ubuntu: '
            'apt-get install g++; Fedora: dnf install gcc-c++; macOS: xcode-select --install).'
            .format(user.get('cxx', 'g++')))
    if not os.path.exists(os.path.join(sysconfig.get_paths()['include'], 'Python.h')):
        raise SetupError(
            'Theano compiles C++ code against the headers of Python, and Python.h is not in {}. '
            'Install them (Debian, Ubuntu: apt-get install python3-dev; Fedora: dnf install '
            'python3-devel).'.format(sysconfig.get_paths()['include']))


def _check_packages():
    """Raise SetupError for versions that are known to fail deep inside Theano."""
    import numpy
    if int(numpy.__version__.split('.')[0]) >= 2:
        raise SetupError(
            "NumPy {} is installed; Theano 1.0.5's C code needs NumPy 1.x. "
            'Run: pip install -r requirements.txt'.format(numpy.__version__))


def _set_up():
    if 'theano' in sys.modules:
        raise SetupError('Import theano_today before theano, lasagne and nolearn: '
                         'it sets the flags that Theano reads once, when it is imported.')
    _check_packages()
    _check_compiler()
    compat.install()
    _set_flags()
    _load_blas()
    _keep_freed_memory()
    import theano  # noqa: F401
    try:
        from . import cpu
    except ImportError:
        return
    cpu.install()


_set_up()
