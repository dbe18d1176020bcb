"""Run a script of 2015 as it is: ``python -m theano_today old_script.py [its arguments]``.

The script finds what it would find if Python had started it: its own sys.argv, its own folder first in
sys.path, its own `__main__`, and it may set THEANO_FLAGS before it imports Theano.  What Python 2 had
by other names (`xrange`, `cPickle`) is there as well, and ``n / 2`` may be a size.  Python 2's syntax
is not: the error names file and line and a tool that mends it.
"""
import importlib.machinery
import importlib.util
import io
import os
import runpy
import sys
import types

from .compat import hints, old_names, python2

USAGE = '''\
usage: python -m theano_today [-m module | -c command | script.py] [arguments of the script]

Runs a script for Theano, Lasagne or nolearn without a change, on today's packages.  Put THEANO_FLAGS
before it as ever: THEANO_FLAGS=device=cuda python -m theano_today script.py'''


def main():
    """Run the script, the module or the command that the command line names."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ('-h', '--help'):
        print(USAGE, file=sys.stdout if arguments else sys.stderr)
        sys.exit(0 if arguments else 2)
    kind = arguments[0] if arguments[0] in ('-m', '-c') else 'script'
    if kind != 'script' and len(arguments) < 2 or kind == 'script' and arguments[0][0] == '-':
        print(f'theano_today: {arguments[0]}: an option without its argument, or an unknown one.\n'
              f'{USAGE}', file=sys.stderr)
        sys.exit(2)
    python2.install()
    old_names.install()
    sys.excepthook = _without_our_frames(sys.excepthook)
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    if kind == '-m':
        sys.argv[:] = arguments[1:]
        runpy.run_module(arguments[1], run_name='__main__', alter_sys=True)
    elif kind == '-c':
        sys.argv[:] = ['-c'] + arguments[2:]
        _set_first_folder('', root)
        _run(compile(arguments[1], '<string>', 'exec'))
    else:
        sys.argv[:] = arguments
        _run_script(arguments[0], root)


def _run_script(path, root):
    if os.path.isdir(path) or path.endswith('.zip'):  # with a __main__.py inside
        runpy.run_path(path, run_name='__main__')
        return
    try:
        with io.open_code(os.path.abspath(path)) as f:
            source = f.read()
    except OSError as error:
        print(f'theano_today: cannot open {path}: {error.strerror}', file=sys.stderr)
        sys.exit(2)
    _set_first_folder(os.path.dirname(os.path.realpath(path)), root)
    path = os.path.abspath(path)  # as Python has it since 3.9
    loader = importlib.machinery.SourceFileLoader('__main__', path)
    _run(python2.compile_script(source, path), __file__=path, __loader__=loader)


def _set_first_folder(folder, root):
    """Put the script's folder where ``python -m`` has put the current one."""
    if not getattr(sys.flags, 'safe_path', False):
        sys.path[0] = folder
    if root not in [os.path.abspath(path or os.curdir) for path in sys.path]:
        sys.path.append(root)  # processes that the script starts must find this package


def _run(code, **names):
    """Execute `code` as the module `__main__`, which stays: for pickles, threads, exit handlers."""
    module = types.ModuleType('__main__')
    vars(module).update(names, __builtins__=__builtins__, __spec__=None, __package__=None)
    sys.modules['__main__'] = module
    exec(code, vars(module))


def _without_our_frames(hook):
    """Return an excepthook that shows a traceback as it were without this module."""
    ours = __file__, runpy.__file__, runpy.run_path.__code__.co_filename

    def excepthook(kind, error, traceback):
        while traceback is not None and traceback.tb_frame.f_code.co_filename in ours:
            traceback = traceback.tb_next
        inner = traceback
        while inner is not None:
            if inner.tb_next is not None and inner.tb_next.tb_frame.f_code is python2.divide.__code__:
                inner.tb_next = inner.tb_next.tb_next
            inner = inner.tb_next
        # A syntax error of the script has no frame of its own.
        hook(kind, error.with_traceback(traceback), traceback)
        hint = hints.hint(error, traceback)
        if hint:
            print('theano_today: ' + hint, file=sys.stderr)

    return excepthook


if __name__ == '__main__':
    main()
