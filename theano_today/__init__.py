"""Theano 1.0.5 on today's Python and today's hardware.

    import theano_today          # before theano, lasagne or nolearn
    import theano, lasagne, nolearn.lasagne

Importing this package

1. puts back what the old packages miss in today's Python, NumPy and scikit-learn
   (`theano_today.compat`),
2. gives Theano the flags it needs: a BLAS from pip, float32, and so on (`default_flags`),
3. imports Theano and installs the CPU engine (`theano_today.cpu`), and with the flag
   ``device=cuda`` the engine for NVIDIA GPUs (`theano_today.cuda`),
4. has g++ compile the headers of Theano's C modules once (`theano_today.headers`),
5. tells the C library to keep memory that compiled functions free, which they take again in every
   step (`theano_today.memory`),
6. has OpenBLAS's threads give their core back when a product is done (`theano_today.threads`).

A flag that you set in ``THEANO_FLAGS`` or in a ``.theanorc`` always wins over ours.

``python -m theano_today script.py`` runs a script that knows nothing of this package.  Steps 2 to 4
then wait until the script imports Theano: it may set flags before.
"""
import configparser
import contextlib
import ctypes
import functools
import os
import shlex
import shutil
import sys
import sysconfig
import warnings

from .threads import let_go_of_cores

let_go_of_cores()  # before NumPy is imported

from . import compat  # noqa: E402

__all__ = ['SetupError', 'default_flags']


class SetupError(ImportError):
    """The machine lacks something Theano needs; the message says what to install."""


# The BLAS routines that Theano's C code calls.  pip's OpenBLAS exports each of them with the prefix
# `scipy_`, so that it can live in one process beside another OpenBLAS.
_BLAS_ROUTINES = ('axpy', 'copy', 'dot', 'gemm', 'gemv', 'ger', 'scal', 'swap')


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
        # Theano's own folder name, and NumPy's version: the two modules that Theano compiles for
        # itself, once in a folder, do not work with another NumPy.
        'compiledir_format': 'compiledir_%(short_platform)s-%(processor)s-%(python_version)s-'
                             '%(python_bitwidth)s-numpy-%(numpy_version)s',
    }
    blas = _pip_blas()
    if blas is not None:
        # Only the name, not the folder: Theano splits its flags at spaces.  The linker finds the
        # folder in LIBRARY_PATH; at run time the library is there already (_load_blas).
        flags['blas.ldflags'] = '-l' + blas.get_library()
        names = [kind + routine + '_' for kind in 'sd' for routine in _BLAS_ROUTINES]
        # Theano calls these two to give each OpenMP thread a single-threaded BLAS.
        names += ['openblas_set_num_threads', 'openblas_get_num_threads']
        flags['gcc.cxxflags'] = ' '.join(f'-D{name}=scipy_{name}' for name in names)
    return flags


def _pip_blas():
    """Return the module scipy_openblas32 (OpenBLAS as a package on PyPI), or None without it."""
    try:
        import scipy_openblas32
    except ImportError:
        return None
    return scipy_openblas32


def _user_flag(name):
    """Look a flag up where Theano does: in THEANO_FLAGS, then in .theanorc; None if not set."""
    # Theano's own way of splitting, which allows quotes.
    items = shlex.shlex(os.environ.get('THEANO_FLAGS', ''), posix=True)
    items.whitespace, items.whitespace_split = ',', True
    flags = dict(item.strip().partition('=')[::2] for item in items)
    if name in flags:
        return flags[name]
    files = os.environ.get('THEANORC', os.path.join('~', '.theanorc')).split(os.pathsep)
    parser = configparser.RawConfigParser()
    parser.read([os.path.expanduser(path) for path in files])
    section, _, option = name.rpartition('.')
    return parser.get(section or 'global', option, fallback=None)


def _set_flags():
    """Add our flags to THEANO_FLAGS where the user has not decided otherwise."""
    flags = default_flags()
    theirs = {name: _user_flag(name) for name in flags}
    ours = flags.get('gcc.cxxflags')  # the names of the routines of our BLAS
    if theirs['blas.ldflags'] not in (None, flags['blas.ldflags']):
        flags.pop('gcc.cxxflags', None)
    elif ours and theirs['gcc.cxxflags'] is not None and ours not in theirs['gcc.cxxflags']:
        # Our BLAS needs these whatever else the user tells the compiler; also in a process that has
        # inherited our flags from another.
        flags['gcc.cxxflags'] += ' ' + theirs.pop('gcc.cxxflags')
    items = [name + '=' + shlex.quote(value) for name, value in flags.items()
             if theirs.get(name) is None]
    # See `rounds` there.
    compat.theano.FLOATX_IS_OURS[0] = theirs['floatX'] is None
    # The last of two settings of a flag wins in Theano; of ours only the compiler flags can meet a
    # setting of the user, and they contain it.
    os.environ['THEANO_FLAGS'] = ','.join(filter(None, [os.environ.get('THEANO_FLAGS')] + items))


def _load_blas():
    """Let the linker find pip's OpenBLAS, and load it for the modules that link it."""
    blas = _pip_blas()
    if blas is None or _user_flag('blas.ldflags') != default_flags()['blas.ldflags']:
        return
    folder = blas.get_lib_dir()
    paths = os.environ.get('LIBRARY_PATH', '').split(os.pathsep)
    os.environ['LIBRARY_PATH'] = os.pathsep.join(filter(None, [folder] + paths))
    ctypes.CDLL(os.path.join(folder, blas.get_library(fullname=True)), mode=ctypes.RTLD_GLOBAL)


def _check_compiler():
    """Raise SetupError where Theano would fall back to Python code, hundreds of times slower."""
    compiler = _user_flag('cxx')
    if compiler == '':
        return  # the user has asked for Theano without C code
    if compiler is None:  # Theano's own choice
        compiler = 'clang++' if sys.platform == 'darwin' else 'g++'
    if shutil.which(compiler) is None:
        raise SetupError(
            f'Theano needs the C++ compiler {compiler} and cannot find it. Install it (Debian, '
            'Ubuntu: apt-get install g++; Fedora: dnf install gcc-c++; macOS: xcode-select '
            '--install).')
    include = sysconfig.get_paths()['include']
    if not os.path.exists(os.path.join(include, 'Python.h')):
        raise SetupError(
            'Theano compiles C++ code against the headers of Python, and Python.h is not in '
            f'{include}. Install them (Debian, Ubuntu: apt-get install python3-dev; Fedora: dnf '
            'install python3-devel).')


def _gpu():
    """Return PyTorch's name of the GPU that a flag asks for, or None; whether to take the CPU instead."""
    from . import cuda
    flag = _user_flag('device')
    if not cuda.asked_for(flag):
        return None, False
    try:
        return cuda.torch_device(flag), False
    except SetupError as error:
        if flag == _device_of_the_user or not _is_script:
            raise
        # The script's author had a GPU, its user has none.  Until 1.0 Theano told that and took the
        # CPU, unless force_device was set.
        if _user_flag('force_device') == 'True':
            raise
        warnings.warn(f'{error} The script asks for a GPU; it gets the CPU.', stacklevel=2)
        return None, True


@contextlib.contextmanager
def _around_theano():
    """Do what must be done before Theano is imported, and after."""
    _check_compiler()
    gpu, for_cpu = _gpu()
    _set_flags()
    _load_blas()
    flags = os.environ['THEANO_FLAGS']
    if gpu is not None or for_cpu:
        # Theano would look for its own backend; processes that we start shall see the user's flag.
        os.environ['THEANO_FLAGS'] = flags + ',device=cpu'
    try:
        yield
    except ValueError as error:
        if 'compiledir' not in str(error):
            raise
        raise SetupError(
            f'{error} Theano keeps the modules it compiles there; to name another folder, set the '
            'environment variable THEANO_FLAGS=base_compiledir=/a/folder.') from error
    finally:
        os.environ['THEANO_FLAGS'] = flags
    global _flags_read
    _flags_read = flags
    from . import cpu, cuda, headers, memory
    headers.install(sys.modules['theano'].gof.cmodule)
    cpu.install()
    memory.install(sys.modules['theano'].compile.Function)
    if gpu is not None:
        cuda.install(gpu)


@compat.after_import('theano.compile.function_module')
def _warn_of_late_flags(function_module):
    """Warn of flags that a script sets when Theano, which reads them once, is there already."""
    original = function_module.orig_function
    told = set()

    @functools.wraps(original)
    def orig_function(*args, **kwargs):
        text = os.environ.get('THEANO_FLAGS', '')
        if text != _flags_read and text not in told:
            told.add(text)
            for name in _late_flags(text):
                warnings.warn(
                    f'THEANO_FLAGS: {name} was set after theano_today had imported Theano, and '
                    'does nothing. Set it before, or run the script with python -m theano_today.',
                    stacklevel=4)
        return original(*args, **kwargs)

    function_module.orig_function = orig_function


def _late_flags(text):
    """The flags of `text` that are new and would have changed something: ['floatX=float64']."""
    from theano import config
    from theano.configparser import parse_config_string
    read = parse_config_string(_flags_read, issue_warnings=False)
    late = []
    for name, value in parse_config_string(text, issue_warnings=False).items():
        section, flag = config, name
        while '.' in flag:
            first, _, flag = flag.partition('.')
            section = getattr(section, first, None)
        option = getattr(type(section), flag, None)
        if read.get(name) == value or option is None:
            continue
        try:
            same = (option.filter(value) if option.filter else value) == getattr(section, flag)
        except Exception:  # not a value of this flag
            same = False
        if not same:
            late.append(f'{name}={value}')
    return late


_flags_read = ''  # THEANO_FLAGS when Theano was imported


def _runs_a_script():
    """Whether Python is about to run `__main__`: ``python -m theano_today script.py``."""
    # While runpy looks for the module, sys.argv[0] is '-m'.
    words = sys.orig_argv
    return sys.argv[:1] == ['-m'] and any(
        second == '-m' + __name__ or (first, second) == ('-m', __name__)
        for first, second in zip(words, words[1:]))


_device_of_the_user = _user_flag('device')  # before a script sets its own
_is_script = _runs_a_script()


def _set_up():
    if 'theano' in sys.modules:
        raise SetupError('Import theano_today before theano, lasagne and nolearn: '
                         'it sets the flags that Theano reads once, when it is imported.')
    compat.around_import('theano', _around_theano)
    compat.install()
    if not _is_script:
        import theano  # noqa: F401


_set_up()
