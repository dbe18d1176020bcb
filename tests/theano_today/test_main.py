"""`python -m theano_today script.py` runs a script as Python would."""
import os
import pickle
import subprocess
import sys

from theano_today.compat import hints

import numpy as np
import pytest

ROOT = os.path.abspath(os.path.join(os.path.dirname(__file__), *[os.pardir] * 2))


def run(tmp_path, *arguments, script=None, **environment):
    """Run ``python -m theano_today``, in a folder other than the script's."""
    if script is not None:
        (tmp_path / 'old').mkdir(exist_ok=True)
        (tmp_path / 'old' / 'script.py').write_text(script)
    return subprocess.run([sys.executable, '-W', 'ignore', '-m', 'theano_today', *arguments], text=True,
                          env=dict(os.environ, PYTHONPATH=ROOT, **environment), cwd=tmp_path,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL)


def test_a_script_finds_what_python_gives_it(tmp_path):
    """The same as with Python itself: arguments, folders, names, pickles, exit."""
    (tmp_path / 'old').mkdir()
    (tmp_path / 'old' / 'helper.py').write_text('x = 1\n')
    script = '''
import atexit, helper, pickle, sys
SOME = {'__annotations__', '__cached__'}  # names that not all Pythons have
class A: pass
assert isinstance(pickle.loads(pickle.dumps(A())), A)
assert sys.modules['__main__'].A is A
atexit.register(lambda: print('end of', A.__module__))
print(sys.argv, sys.path[0], sorted(set(globals()) - SOME), __file__, __name__, __spec__)
sys.exit(7)
'''
    ours = run(tmp_path, 'old/script.py', '--epochs', '3', script=script)
    pythons = subprocess.run([sys.executable, 'old/script.py', '--epochs', '3'], cwd=tmp_path, text=True,
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert ours.returncode == 7, ours.stderr
    assert ours.stdout == pythons.stdout


def test_a_traceback_is_the_scripts_own(tmp_path):
    done = run(tmp_path, 'old/script.py', script='def f():\n    1 / 0\n\n\nf()\n')
    lines = done.stderr.splitlines()
    assert lines[0] == 'Traceback (most recent call last):' and 'script.py", line 5' in lines[1]
    assert lines[-1] == 'ZeroDivisionError: division by zero' and done.returncode == 1
    assert 'theano_today' not in done.stderr.replace(ROOT, '')


def test_modules_commands_and_folders(tmp_path):
    package = tmp_path / 'package'
    package.mkdir()
    (package / '__init__.py').touch()
    (package / '__main__.py').write_text('import sys; print(__name__, len(sys.argv))')
    assert run(tmp_path, '-m', 'package', 'a').stdout == '__main__ 2\n'
    assert run(tmp_path, 'package', 'a').stdout == '__main__ 2\n'
    assert run(tmp_path, '-c', 'import sys; print(__name__, sys.argv)', 'a').stdout == (
        "__main__ ['-c', 'a']\n")


@pytest.mark.parametrize('arguments, message', [
    ([], 'usage: '), (['-m'], '-m: an option without its argument'), (['-x', 'a'], '-x: an option'),
    (['missing.py'], 'cannot open missing.py: No such file')])
def test_wrong_calls(tmp_path, arguments, message):
    done = run(tmp_path, *arguments)
    assert done.returncode == 2 and message in done.stderr and 'Traceback' not in done.stderr


def test_theano_comes_when_the_script_imports_it(tmp_path):
    """With the flags that the script sets before."""
    done = run(tmp_path, 'old/script.py', script='''
import os, sys
assert 'theano' not in sys.modules
os.environ['THEANO_FLAGS'] += ',floatX=float64'
import theano.tensor as T
import theano
assert T.matrix().dtype == 'float64'
assert sys.modules['theano_today.cpu'].rewrites
assert theano.__spec__.name == 'theano'
''', THEANO_FLAGS=','.join(filter(None, [os.environ.get('THEANO_FLAGS'), 'exception_verbosity=low'])))
    assert done.returncode == 0, done.stderr


def test_a_gpu_that_the_script_asks_for_and_the_user_has_not(tmp_path):
    """As with Theano until 1.0: a warning, and the CPU."""
    script = '''
import os
os.environ['THEANO_FLAGS'] = 'device=gpu0' + SETTINGS
import lasagne, theano
assert theano.config.device == 'cpu'
assert os.environ['THEANO_FLAGS'].startswith('device=gpu0')
print(theano.function([], theano.shared(2) * 3)())
'''
    def ask(**environment):
        return subprocess.run([sys.executable, '-m', 'theano_today', 'old/script.py'], cwd=tmp_path,
                              text=True, env={
                                  **os.environ, 'PYTHONPATH': ROOT, 'CUDA_VISIBLE_DEVICES': '',
                                  'THEANO_TODAY_TORCH': '', **environment},
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    (tmp_path / 'old').mkdir()
    path = tmp_path / 'old' / 'script.py'
    flags = os.environ.get('THEANO_FLAGS', '')
    path.write_text(script.replace('SETTINGS', repr(',optimizer=None,cxx=,' + flags)))
    done = ask()
    assert done.stdout == '6\n', done.stderr
    assert 'device=gpu0' in done.stderr and 'it gets the CPU' in done.stderr
    path.write_text(script.replace('SETTINGS', repr(',force_device=True,' + flags)))
    assert 'SetupError: device=gpu0' in ask().stderr
    path.write_text('import theano')  # what the user asks for is an error where it is not there
    assert 'SetupError: device=gpu0' in ask(THEANO_FLAGS=flags + ',device=gpu0').stderr


def test_names_of_python_2(tmp_path):
    # A list with one string of bytes, as Python 2 pickles it.
    (tmp_path / 'data.pkl').write_bytes(b"(lp0\nS'\\xe9'\np1\na.")
    assert pickle.loads((tmp_path / 'data.pkl').read_bytes(), encoding='latin1') == ['\xe9']
    np.savez(tmp_path / 'data.npz', objects=np.array([None, 'a'], object))
    done = run(tmp_path, 'old/script.py', script='''
import numpy as np
assert np.load('data.npz')['objects'][1] == 'a'
assert np.load('data.pkl') == ['\\xe9']
assert list(xrange(1, 7 / 2.)) == [1, 2]
import cPickle, urllib, urllib2, Queue, StringIO, itertools
assert list(xrange(3)) == [0, 1, 2] and reduce(lambda a, b: a + b, [1, 2]) == 3
assert isinstance('', unicode) and isinstance('', basestring) and long(3) == 3
import pickle
for load in cPickle.load, pickle.load:
    assert load(open('data.pkl', 'rb')) == ['\\xe9']
assert pickle.loads(open('data.pkl', 'rb').read()) == ['\\xe9']
assert cPickle.loads(cPickle.dumps({'a': 1}, cPickle.HIGHEST_PROTOCOL)) == {'a': 1}
assert [urllib2.urlopen, urllib.urlretrieve, Queue.Queue, StringIO.StringIO]
assert list(itertools.izip([1], [2])) == [(1, 2)]
''')
    assert done.returncode == 0, done.stderr


def test_quotients_of_whole_numbers_may_be_sizes(tmp_path):
    """As in Python 2; as numbers they are Python 3's."""
    done = run(tmp_path, 'old/script.py', script='''
import copy, pickle
import numpy as np
n, x = 37, np.arange(40)
assert len(np.random.choice(n, n / 2, replace=False)) == len(x[:n / 2]) == len(range(n / 2)) == 18
assert np.zeros((n / 4 / 2, 2)).shape == (4, 2) and list(range(-7 / 2, 0))[0] == -4
assert n / 2 == 18.5 and repr(n / 2) == '18.5' and 1 / 2 * 4 == 2 and (x / 2).dtype == float
assert type(pickle.loads(pickle.dumps(n / 2))) is type(copy.deepcopy(n / 2)) is float
assert np.asarray(1 / 2).dtype == float and isinstance(n / 2, float)
x = x.astype(float)
y = x
y /= 2
assert x[1] == .5
try:
    n / 0
except ZeroDivisionError as error:
    assert error.__traceback__.tb_lineno == 15
else:
    raise AssertionError
''')
    assert done.returncode == 0, done.stderr
    done = run(tmp_path, 'old/script.py',
               script='"""Doc."""\nfrom __future__ import division\nrange(4 / 2)\n')
    assert "'float' object cannot be interpreted" in done.stderr


def test_old_names_of_pandas_matplotlib_and_scipy(tmp_path):
    done = run(tmp_path, 'old/script.py', script='''
import pandas
from matplotlib import pyplot
frame = pandas.DataFrame({'a': [3, 1, 2], 'b': [4, 5, 6]}, index=list('xyz'))
assert frame.ix[1]['b'] == frame.ix['y', 'b'] == frame.ix[1, 1] == 5
assert frame.ix[:2, 'a'].tolist() == [3, 1] and frame.ix[[0, 2], 'b'].tolist() == [4, 6]
assert frame.ix['x':'y'].shape == (2, 2) and frame.ix[frame.a > 1, 'b'].tolist() == [4, 6]
assert frame.reset_index().ix[2]['b'] == 6 and frame.a.ix[2] == 2
frame.ix['y', 'b'] = 7
assert frame.b.tolist() == [4, 7, 6] and frame.sort('a').b.tolist() == [7, 6, 4]
assert frame.sort(['a'], ascending=False).a.as_matrix().tolist() == [3, 2, 1]
assert frame.as_matrix(['b']).shape == (3, 1)
assert frame[[1, 0]].values.tolist() == [[4, 3], [7, 1], [6, 2]] and frame[['b']].shape == (3, 1)
for key in [2], [True, 'a'], ['c'], 0, [0, 'a']:
    try:
        frame[key]
    except (KeyError, IndexError):
        continue
    raise AssertionError(key)
assert pandas.DataFrame([[1, 2]], columns=[1, 0])[[0]].values.tolist() == [[2]]
import scipy.stats
assert scipy.stats.itemfreq([3, 1, 3]).tolist() == [[1, 1], [3, 2]]
axis = pyplot.gca()
axis.set_color_cycle(['r', 'g'])
assert axis.plot([1, 2])[0].get_color() == 'r'
''', MPLBACKEND='agg')
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize('script, line, hint', [
    ('import os\nprint "a"\n', 2, '-w {file} mends the whole file'),
    ('x = 1\nif x:\n        x = 2\n\tx = 3\n', 4, 'expand -t 8 {file}'),
    ('x = {}\nx.iteritems()\n', 2, '-w FILE mends the whole file'),
    ('x = [1] + map(str, [2])\n', 1, '-w FILE mends the whole file'),
    ('x = {}\ny = x.keys()[0]\n', 2, '-w FILE mends the whole file'),
    ('x = range(3)\nzip(x, x)[0]\n', 2, 'was a list'),
    ('n = 4.0\nrange(n)\n', 2, 'write // for /'), ('[1, 2][:2.0]\n', 1, 'write // for /'),
    ('b"1,2".split(",")\n', 1, "'r' in place of 'rb'"), ('b"1" + ","\n', 1, '.decode()'),
    ('"," + b"1"\n', 1, '.decode()'), ('import re\nre.compile("a").match(b"1")\n', 2, '.decode()'),
    ('import pickle\npickle.loads(b"S\'\\\\xe9\'\\n.")\n', 2, "encoding='latin1'")])
def test_what_to_do_about_python_2(tmp_path, script, line, hint):
    file = str(tmp_path / 'script.py')
    try:
        exec(compile(script, file, 'exec'), {})
    except Exception as error:
        said = hints.hint(error, error.__traceback__.tb_next)
    assert said.startswith(f'{file}, line {line}: ')
    assert hint.format(file=file) in said


def test_python_2_in_a_script(tmp_path):
    done = run(tmp_path, 'old/script.py', script='import os\nprint "a"\n')
    last = done.stderr.splitlines()[-1]
    file = tmp_path / 'old' / 'script.py'
    assert last.startswith(f'theano_today: {file}, line 2: if this is the syntax of Python 2, ')
    assert done.returncode == 1


@pytest.mark.parametrize('code', [
    'from lasagne.layers import batch_norm', 'import lasagne; lasagne.layers.BatchNormLayer',
    'import lasagne.layers.special', 'import lasagne; lasagne.layers.DenseLayer((1, 2), 3, axis=1)'])
def test_scripts_for_later_versions_of_lasagne(code):
    import theano_today  # noqa: F401  (before lasagne)

    import lasagne
    try:
        exec(code)
    except Exception as error:
        said = hints.hint(error, error.__traceback__)
    assert "Lasagne's master has this" in said and 'pip install https://' in said
    assert lasagne.__version__ == '0.1'


@pytest.mark.parametrize('error', [
    SyntaxError('f-string: empty expression not allowed'), AttributeError("'A' object has no x"),
    TypeError('unhashable'), ValueError('x')])
def test_other_errors_speak_for_themselves(error):
    assert hints.hint(error, None) is None
