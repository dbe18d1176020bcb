"""What `import theano_today` sets up: packages as pip installed them, flags, BLAS, clear errors."""
import hashlib
import importlib.metadata
import os
import shutil
import subprocess
import sys
import sysconfig
import textwrap

import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def run(code, tmp_path, python=sys.executable, compiledir=None, **environment):
    """Run Python code in a fresh interpreter with an empty home; return the finished process.

    `environment` holds the variables to set; None removes one.
    """
    env = {name: value for name, value in os.environ.items()
           if name not in ('THEANO_FLAGS', 'THEANORC', 'LIBRARY_PATH')}
    flags = environment.pop('THEANO_FLAGS', '')
    if compiledir is None:
        compiledir = os.path.join(str(tmp_path), 'compiledir')
    env.update(HOME=str(tmp_path), PYTHONPATH=ROOT, PYTHONWARNINGS='ignore')
    env['THEANO_FLAGS'] = ','.join(filter(None, ['base_compiledir=' + str(compiledir), flags]))
    for name, value in environment.items():
        env.pop(name, None)
        if value is not None:
            env[name] = str(value)
    return subprocess.run([python, '-c', textwrap.dedent(code)], env=env, cwd=str(tmp_path),
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=600)


def config(tmp_path, names, before='', **environment):
    """Return Theano's settings `names` after ``import theano_today``."""
    process = run(before + 'import theano_today, theano\n' + ''.join(
        f'print(repr(theano.config.{name}))\n' for name in names), tmp_path, **environment)
    assert process.returncode == 0, process.stderr
    return [eval(line) for line in process.stdout.splitlines()]


# ------------------------------------------------------------------------------------ the packages

PACKAGES = {    # version, and a digest of the files that PyPI's sdist installs
    'Theano': ('1.0.5', '0469db69d73f855478b22ddaf298e715502f844b94bb67f88ba15d6f64e44696'),
    'Lasagne': ('0.1', '21f028500b0c86dbb2a934cc297a045e8ceda2235181b7f7ea1066c18e27b2ab'),
    'nolearn': ('0.6.1', 'd1901c391d1acedc2b89b5b990fc9a044f9de98ec5b5b800c68f3d4498c2c45e')}


@pytest.mark.parametrize('name', PACKAGES)
def test_package_is_pips_own(name):
    """Every file is PyPI's, to the byte, and there are no others.

    pip's own notes (RECORD) would not do: they have the hashes of what pip has found when it
    installed, and pip before 23.1 notes none for an sdist.
    """
    distribution = importlib.metadata.distribution(name)
    version, expected = PACKAGES[name]
    assert distribution.version == version
    package = str(distribution.locate_file(name.lower()))
    digest = hashlib.sha256()
    for folder, folders, files in os.walk(package):
        folders.sort()
        for path in [os.path.join(folder, file) for file in sorted(files) if not file.endswith('.pyc')]:
            with open(path, 'rb') as f:
                digest.update(os.path.relpath(path, package).encode() + b'\0'
                              + hashlib.sha256(f.read()).digest())
    assert digest.hexdigest() == expected


# --------------------------------------------------------------------------------------- the flags

def test_default_flags(tmp_path):
    floatx, ldflags, cxxflags = config(tmp_path, ['floatX', 'blas.ldflags', 'gcc.cxxflags'])
    assert floatx == 'float32'
    assert ldflags == '-lscipy_openblas'
    assert '-Dsgemm_=scipy_sgemm_' in cxxflags.split()


def test_each_numpy_has_a_folder_of_compiled_modules(tmp_path):
    import numpy
    folder, = config(tmp_path, ['compiledir'])
    assert folder.endswith('-numpy-' + numpy.__version__)
    folder, = config(tmp_path, ['compiledir'], THEANO_FLAGS='compiledir_format=mine')
    assert os.path.basename(folder) == 'mine'


def test_theano_flags_of_the_user_win(tmp_path):
    values = config(tmp_path, ['floatX', 'gcc.cxxflags', 'blas.ldflags'],
                    THEANO_FLAGS='floatX=float64,gcc.cxxflags="-O1 -DMINE=1,2"')
    assert values[0] == 'float64'
    assert values[1].endswith('-O1 -DMINE=1,2')
    assert '-Dsgemm_=scipy_sgemm_' in values[1]  # which our BLAS needs
    values = config(tmp_path, ['floatX', 'gcc.cxxflags', 'blas.ldflags'],
                    THEANO_FLAGS='blas.ldflags=-lmyblas,gcc.cxxflags=-O1')
    assert values == ['float32', '-O1', '-lmyblas']
    assert config(tmp_path, ['blas.ldflags', 'gcc.cxxflags'],
                  THEANO_FLAGS='blas.ldflags=') == ['', '']


def test_theanorc_of_the_user_wins(tmp_path):
    rc = tmp_path / '.theanorc'
    rc.write_text('[global]\nfloatx = float64\n[gcc]\ncxxflags = -O1\n')
    floatx, cxxflags = config(tmp_path, ['floatX', 'gcc.cxxflags'])
    assert floatx == 'float64' and cxxflags.endswith(' -O1')
    assert '-Dsgemm_=scipy_sgemm_' in cxxflags
    other = tmp_path / 'other'
    other.write_text('[blas]\nldflags = -lmyblas\n')
    assert config(tmp_path, ['floatX', 'blas.ldflags', 'gcc.cxxflags'], THEANORC=other) == [
        'float32', '-lmyblas', '']
    # THEANO_FLAGS come before .theanorc, in Theano and here.
    assert config(tmp_path, ['floatX'], THEANO_FLAGS='floatX=float32') == ['float32']


# ---------------------------------------------------------------------------- compiling and linking

PRODUCT = '''
    import theano_today, theano, numpy as np, theano.tensor as T
    x = T.dmatrix()  # products of float32 would run on the engine's own kernels
    product = theano.function([x], T.dot(x, x.T))
    assert any('Dot22' in str(node.op) for node in product.maker.fgraph.toposort())
    assert product(np.eye(3)).sum() == 3
    print('right')
    '''


def test_products_call_pips_blas(tmp_path):
    process = run(PRODUCT + '''
    import os, subprocess
    modules = [os.path.join(folder, file) for folder, _, files in os.walk(theano.config.compiledir)
               for file in files if file.endswith('.so')]
    assert any(b'scipy_sgemm_' in open(module, 'rb').read() for module in modules)
    ''', tmp_path)
    assert process.stdout == 'right\n', process.stderr


CHILD = '''
import theano_today, theano, numpy as np, theano.tensor as T
x = T.dmatrix()
print(theano.config.gcc.cxxflags)
print(theano.function([x], T.dot(x, x))(np.eye(2) * 3).tolist())
'''


def test_a_process_that_inherits_our_flags_calls_pips_blas(tmp_path):
    """Also where the program that starts it has added a flag of its own."""
    (tmp_path / 'child.py').write_text(CHILD)
    process = run("""
        import os, subprocess, sys, theano_today, theano
        ours = theano.config.gcc.cxxflags
        for added, expected in ('', ours), (',gcc.cxxflags=-O0', (ours + ' -O0').strip()):
            env = dict(os.environ, THEANO_FLAGS=os.environ['THEANO_FLAGS'] + added)
            printed = subprocess.check_output([sys.executable, 'child.py'], env=env, text=True)
            assert printed.splitlines() == [expected, '[[9.0, 0.0], [0.0, 9.0]]'], printed
        print('right')
        """, tmp_path)
    assert process.stdout == 'right\n', process.stderr


def test_paths_with_spaces(tmp_path):
    """A compile directory and a virtual environment in folders with spaces in their names."""
    folder = tmp_path / 'my programs'
    folder.mkdir()
    # What pip installed, seen through a link with a space in its path.
    os.symlink(sysconfig.get_paths()['purelib'], str(folder / 'site'))
    process = run(f'import sys; sys.path.insert(0, {str(folder / "site")!r})\n'
                  + textwrap.dedent(PRODUCT) + 'print(theano.__file__)\n', tmp_path,
                  compiledir=folder / 'compiled here')
    assert process.stdout.splitlines()[0] == 'right', process.stderr
    assert 'my programs' in process.stdout and os.listdir(str(folder / 'compiled here'))


def test_two_programs_may_start_at_once(tmp_path):
    command = [sys.executable, '-c', textwrap.dedent(PRODUCT)]
    env = dict(os.environ, HOME=str(tmp_path), PYTHONPATH=ROOT,
               THEANO_FLAGS=f'base_compiledir={tmp_path}/compiledir')
    programs = [subprocess.Popen(command, env=env, stdout=subprocess.PIPE,
                                 stderr=subprocess.DEVNULL) for _ in range(2)]
    assert [program.communicate(timeout=600)[0] for program in programs] == [b'right\n'] * 2


# --------------------------------------------------------------------------------- errors that help

def error(process):
    assert process.returncode == 1
    last = process.stderr.strip().splitlines()[-1]
    assert last.startswith('theano_today.SetupError: '), process.stderr
    return last


def test_no_compiler(tmp_path):
    message = error(run('import theano_today', tmp_path, PATH=str(tmp_path)))
    assert 'g++' in message and 'apt-get install' in message
    # Asked for, Theano without a compiler is fine.
    process = run('import theano_today', tmp_path, PATH=str(tmp_path), THEANO_FLAGS='cxx=')
    assert process.returncode == 0, process.stderr


def test_no_python_headers(tmp_path):
    message = error(run('''
        import sysconfig
        paths = sysconfig.get_paths()
        sysconfig.get_paths = lambda: dict(paths, include='/nowhere')
        import theano_today
        ''', tmp_path))
    assert 'Python.h' in message and '/nowhere' in message and 'python3-dev' in message


def test_theano_was_imported_before(tmp_path):
    message = error(run('''
        import sys, types
        sys.modules['theano'] = types.ModuleType('theano')
        import theano_today
        ''', tmp_path))
    assert 'before theano' in message


def test_compile_directory_that_cannot_be_written(tmp_path):
    message = error(run('import theano_today', tmp_path, compiledir='/proc/nowhere'))
    assert '/proc/nowhere' in message and 'base_compiledir' in message


@pytest.mark.skipif(shutil.which('g++') is None, reason='no g++')
def test_other_compiler_of_the_user(tmp_path):
    message = error(run('import theano_today', tmp_path, THEANO_FLAGS='cxx=/nowhere/c++'))
    assert '/nowhere/c++' in message


COUNT_MODULES = """
    import theano_today, theano, numpy as np
    from theano.gof.cmodule import GCC_compiler
    original, compiled = GCC_compiler.compile_str, []
    GCC_compiler.compile_str = staticmethod(
        lambda *args, **kwargs: compiled.append(1) or original(*args, **kwargs))
    x = theano.tensor.matrix()
    f = theano.function([x], [x.T, x[x.shape[0] - 1]])  # DimShuffle, ScalarFromTensor, DeepCopyOp
    assert f(np.eye(3, dtype='float32'))[1].tolist() == [0, 0, 1]
    print(len(compiled))
"""


def test_a_second_process_compiles_nothing(tmp_path):
    """Theano 1.0.5 compiled these three again in each process."""
    first = run(COUNT_MODULES, tmp_path, PYTHONHASHSEED='1')
    second = run(COUNT_MODULES, tmp_path, PYTHONHASHSEED='2')
    assert first.returncode == 0 and int(first.stdout) >= 3, first.stderr
    assert second.stdout == '0\n', second.stderr
