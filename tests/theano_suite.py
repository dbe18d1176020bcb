"""Theano 1.0.5's own tests, run in two configurations: which of them end differently?

pip installs Theano's tests with it.  Many fail on today's Python and NumPy, whoever runs them; what
counts here is that nothing changes between one configuration and another::

    python tests/theano_suite.py                          with the CPU engine and without it
    python tests/theano_suite.py theano.tests.test_rop    some modules only
    python tests/theano_suite.py --sample 50              fifty tests of each, always the same
    python tests/theano_suite.py --floatX float64
    python tests/theano_suite.py --configuration new python3.13 '' --configuration old python3.11 ''

Each configuration is a Python, for which the packages are installed, and Theano flags; theano_today
is imported in both.  ('python -O' leaves out the assert statements, which mostly say which Op is in
the graph, so that the rest of a test runs, too.)  They take turns test by test, in processes of
their own, which are started anew when a test hangs, kills its process or takes too long.  A test
that ends differently is run again in new processes, where a test before it cannot be the cause and
what it compiles is there already; what happens then counts.  "Differently" means: passed, failed,
skipped, timeout or crash, and the class of the exception.

Results are written to a file as they come; the same command continues where it was interrupted. The
exit status is 0 if no test ends differently but those of `EXPLAINED` and `EXPLAINED_BY_VERSIONS`.
"""
import argparse
import atexit
import collections
import concurrent.futures
import importlib
import inspect
import json
import os
import random
import re
import selectors
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import types
import unittest
import zlib

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

MODULES = (
    'theano.tests.test_gradient', 'theano.tests.test_rop', 'theano.tests.test_2nd_order_grads',
    'theano.tensor.tests.test_blas', 'theano.tensor.tests.test_blas_c',
    'theano.tensor.tests.test_blas_scipy', 'theano.tensor.nnet.tests.test_abstract_conv',
    'theano.tensor.nnet.tests.test_conv', 'theano.tensor.signal.tests.test_pool',
    'theano.tensor.nnet.tests.test_nnet', 'theano.scan_module.tests.test_scan_opt',
    'theano.scan_module.tests.test_scan', 'theano.scan_module.tests.test_scan_checkpoints',
    'theano.scan_module.tests.test_scan_utils', 'theano.tensor.tests.test_elemwise',
    'theano.tensor.tests.test_opt', 'theano.tensor.tests.test_subtensor',
    'theano.tensor.tests.test_sharedvar', 'theano.tensor.tests.test_extra_ops',
    'theano.tensor.tests.test_basic', 'theano.compile.tests.*', 'theano.gof.tests.*')

# Tests that end differently with the engine, as they must: which Op they expect in the graph.
EXPLAINED = {
    'theano.tensor.tests.test_blas:test_gemm_unrolled':
        'counts the nodes of Dot, Dot22 and Gemm; products of float32 are the engine\'s',
    'theano.tensor.tests.test_blas:test_dot22':
        'expects Dot22; products of float32 are the engine\'s',
    'theano.tensor.tests.test_blas:test_dot22scalar_cast':
        'expects Dot22Scalar; products of float32 are the engine\'s',
    'theano.tensor.tests.test_opt:test_local_subtensor_of_dot':
        'expects Dot22; products of float32 are the engine\'s',
    'theano.scan_module.tests.test_scan:T_Scan.test_opt_order':
        'expects Dot22; products of float32 are the engine\'s',
    'theano.tensor.tests.test_sharedvar:test_shared_options.test_specify_shape_inplace':
        'expects Gemm; products of float32 that go into an update are the engine\'s',
}

# Those that end differently with today's Python, NumPy 2 and SciPy, where two Pythons are compared:
# by what the tests do themselves, not by what Theano does.
EXPLAINED_BY_VERSIONS = {
    'theano.tensor.nnet.tests.test_conv:TestConv2D.test_gcc_crash':
        'its reference adds 128 to an int8 of NumPy: an error there, no longer an int16',
    **dict.fromkeys(
        [f'theano.tensor.tests.test_elemwise:test_CAReduce.{name}' for name in ('test_perform', 'test_c')],
        'its reference asks NumPy for -1 as uint8'),
    'theano.tensor.tests.test_extra_ops:test_Unique.test_basic_matrix':
        'expects what np.unique returns, whose inverse has the shape of the matrix now; the Op\'s '
        'is a vector, as its type says',
    'theano.scan_module.tests.test_scan:test_mintap_onestep':
        'prints a vector of one element with %f, before it looks at the result',
    **dict.fromkeys(
        [f'theano.tensor.tests.test_basic:{name}Tester.test_good' for name in (
            'Ceil', 'Floor', 'Trunc')],
        'expects what NumPy says of integers: integers from 2.1 on; the Op\'s are floats'),
    **dict.fromkeys(
        [f'theano.tensor.tests.test_basic:{name}Tester.test_good' for name in (
            'Gamma', 'Gammaln', 'Psi', 'J0', 'J1', 'I0', 'I1')],
        'fails with the old SciPy, which makes float64 of uint8 (1.15.3: the loop "d->d" comes '
        'first); the Op\'s is float32 with both'),
    **dict.fromkeys(
        ['theano.tensor.tests.test_basic:test_arithmetic_cast.test_arithmetic_cast',
         'theano.tensor.tests.test_basic:test_numpy_assumptions.test_dtype_equality'],
        'lists the types with np.dtype(np.floating), which NumPy 2 refuses'),
    'theano.compile.tests.test_function_module:T_picklefunction.test_broken_pickle_with_shared':
        'sets persistent_id of a Pickler, which Python 3.13 does not let it',
}

Configuration = collections.namedtuple('Configuration', 'name python flags')

WITH_ENGINE = Configuration('engine', shlex.quote(sys.executable), '')
WITHOUT_ENGINE = Configuration(
    'stock', shlex.quote(sys.executable), 'optimizer_excluding=theano_today_cpu')

STATUSES = 'passed', 'failed', 'skipped', 'timeout', 'crash'

# What a module may take to be imported beyond the limit of a test: it may compile something.
SECONDS_TO_START = 120


# ---- in the process that runs tests: packages that Theano's tests import and may be missing ----


def _to_safe_name(s):
    return re.sub('[^a-zA-Z0-9_]+', '_', str(s))


class _Parameterized:
    """`parameterized.expand` as far as Theano's tests use it."""

    to_safe_name = staticmethod(_to_safe_name)

    @staticmethod
    def expand(cases, name_func=None, testcase_func_name=None):
        name_func = name_func or testcase_func_name
        cases = [case if isinstance(case, tuple) else (case,) for case in cases]

        def default_name(function, number, param):
            first = param.args[0] if param.args else None
            suffix = '_' + _to_safe_name(first) if isinstance(first, str) else ''
            return f'{function.__name__}_{number}{suffix}'

        def decorate(function):
            namespace = inspect.currentframe().f_back.f_locals
            for number, case in enumerate(cases):
                def test(*args, case=case):
                    return function(*args, *case)
                param = types.SimpleNamespace(args=case, kwargs={})
                test.__name__ = (name_func or default_name)(function, str(number), param)
                test.__module__ = function.__module__
                namespace[test.__name__] = test
        return decorate


def _raises(*exceptions):
    def decorate(function):
        def test(*args):
            try:
                function(*args)
            except exceptions:
                return
            raise AssertionError(f'{function.__name__} did not raise {exceptions}')
        test.__name__, test.__module__ = function.__name__, function.__module__
        return test
    return decorate


def _find_common_type(array_types, scalar_types):
    """`numpy.find_common_type`: a scalar counts where its kind is higher than the arrays'."""
    import numpy
    arrays, scalars = (numpy.result_type(*each) for each in (array_types, scalar_types))
    kinds = 'buifc'
    if kinds.index(scalars.kind) > kinds.index(arrays.kind):
        return numpy.result_type(arrays, scalars)
    return arrays


def stand_in():
    """Put small stand-ins for nose and parameterized where the real ones cannot be imported.

    And for what Python 3.12 has removed from unittest, NumPy 1.25 from numpy.testing and 2.0 from
    numpy (Theano's tests compute what they expect with it; without it no value would be compared).
    """
    import numpy.testing
    if not hasattr(numpy.testing, 'dec'):
        numpy.testing.dec = types.SimpleNamespace(skipif=lambda condition, message='': (
            unittest.skipIf(condition() if callable(condition) else condition, message)))
    if not hasattr(numpy, 'find_common_type'):
        numpy.find_common_type = _find_common_type
    case = unittest.TestCase()
    for old, new in (('assert_', 'assertTrue'), ('assertEquals', 'assertEqual'),
                     ('assertNotEquals', 'assertNotEqual'), ('failUnless', 'assertTrue'),
                     ('assertAlmostEquals', 'assertAlmostEqual'),
                     ('assertRaisesRegexp', 'assertRaisesRegex'),
                     ('failUnlessRaises', 'assertRaises'), ('failIf', 'assertFalse')):
        if not hasattr(unittest.TestCase, old):
            setattr(unittest.TestCase, old, getattr(unittest.TestCase, new))
    contents = {
        'nose': {},
        'nose.plugins': {},
        'nose.plugins.skip': dict(SkipTest=unittest.SkipTest),
        'nose.plugins.attrib': dict(attr=lambda *names: lambda function: function),
        'nose.tools': dict(
            assert_equal=case.assertEqual, assert_equals=case.assertEqual, raises=_raises,
            assert_raises=case.assertRaises, assert_true=case.assertTrue),
        'parameterized': dict(parameterized=_Parameterized)}
    for name in 'nose.plugins.skip', 'parameterized':
        try:
            importlib.import_module(name)
        except Exception:  # not there, or too old for this Python
            package = name.partition('.')[0]
            for part, attributes in contents.items():
                if part.partition('.')[0] == package:
                    module = types.ModuleType(part, 'Stand-in made by theano_suite.')
                    vars(module).update(attributes)
                    sys.modules[part] = module


# ---- in the process that runs tests: finding them the way nose does ----

_TEST = re.compile(r'(?:^|[\b_./-])[Tt]est')


def _is_test_case(thing):
    return inspect.isclass(thing) and issubclass(thing, unittest.TestCase)


def _is_elsewhere(thing, name, module):
    """Whether a module has only imported a thing, whose own module has it, too."""
    home = sys.modules.get(getattr(thing, '__module__', None))
    return home is not module and getattr(home, name, None) is thing


def find_tests(module):
    """The tests of a module.

    Returns
    -------
    list of str
        'function' or 'class.method', in the order of the module.
    """
    tests = []
    for name, thing in vars(module).items():
        if not getattr(thing, '__test__', True) or _is_elsewhere(thing, name, module):
            continue
        if inspect.isclass(thing) and (_is_test_case(thing) or _TEST.search(name)):
            if not issubclass(thing, BaseException):
                tests += [f'{name}.{method}' for method in dir(thing)
                          if _TEST.search(method) and callable(getattr(thing, method))]
        elif inspect.isfunction(thing) and _TEST.search(name):
            tests.append(name)
    return tests


# ---- in the process that runs tests: running them ----


def _call(thing, *names):
    for name in names:
        function = getattr(thing, name, None)
        if callable(function):
            return function()


class Runner:
    """Runs tests by name; sets modules and classes up before their first test."""

    def __init__(self):
        self.module = self.class_ = None

    def enter(self, module_name, class_name):
        module = importlib.import_module(module_name)
        if module is not self.module:
            self.module, self.class_ = module, None
            _call(module, 'setup_module', 'setUpModule', 'setUp', 'setup')
        class_ = getattr(module, class_name) if class_name else None
        if class_ is not self.class_:
            self.leave_class()
            if class_ is not None:
                _call(class_, 'setUpClass', 'setup_class')
            self.class_ = class_

    def leave_class(self):
        class_, self.class_ = self.class_, None
        if class_ is not None:
            _call(class_, 'tearDownClass', 'teardown_class')

    def run(self, test):
        """Run a test ('module:function', 'module:class.method').

        Returns
        -------
        status, reason : str
        """
        import numpy
        module_name, _, name = test.partition(':')
        class_name, _, method = name.rpartition('.')
        random.seed(0)
        numpy.random.seed(0)
        try:
            self.enter(module_name, class_name)
            if self.class_ is None:
                getattr(self.module, name)()
            elif _is_test_case(self.class_):
                case = self.class_(method)
                self.around(case.setUp, getattr(case, method), case.tearDown)
                case.doCleanups()
            else:
                case = self.class_()
                self.around(lambda: _call(case, 'setUp', 'setup', 'setup_method'),
                            getattr(case, method),
                            lambda: _call(case, 'tearDown', 'teardown', 'teardown_method'))
        except unittest.SkipTest as skip:
            return 'skipped', str(skip)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            return 'failed', _short(error, module_name)
        return 'passed', ''

    @staticmethod
    def around(set_up, test, tear_down):
        set_up()
        try:
            test()
        finally:
            tear_down()


def _short(error, module_name=None):
    """'Class: what it says (line of the test: source)', in one line."""
    text = '{}: {}'.format(type(error).__name__, ' '.join(str(error).split())[:200])
    fname = getattr(sys.modules.get(module_name), '__file__', None)
    frames = traceback.extract_tb(error.__traceback__)
    for frame in [frame for frame in frames if frame.filename == fname][-1:]:
        text += f' ({os.path.basename(fname)}:{frame.lineno}: {frame.line})'
    return text


def work(stream):
    """Answer requests, each a line of JSON: ['find', module] or ['run', test]."""
    sys.path.insert(0, ROOT)
    import theano_today  # noqa: F401
    stand_in()
    runner = Runner()
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    os.chdir(folder.name)  # some tests write files
    for line in sys.stdin:
        what, name = json.loads(line)
        if what == 'find':
            try:
                answer = find_tests(importlib.import_module(name))
            except BaseException as error:
                answer = _short(error)
        else:
            answer = runner.run(name)
        stream.write(json.dumps(answer) + '\n')
        stream.flush()


# ---- in the process that asks ----


class Worker:
    """A process with a configuration, which runs tests until it has to be replaced."""

    def __init__(self, configuration, floatX):
        self.configuration, self.floatX, self.process = configuration, floatX, None

    def start(self):
        flags = ','.join(filter(None, [os.environ.get('THEANO_FLAGS'), 'floatX=' + self.floatX,
                                       self.configuration.flags]))
        self.errors = tempfile.TemporaryFile('w+', errors='replace')
        self.process = subprocess.Popen(
            shlex.split(self.configuration.python) + [os.path.abspath(__file__), '--worker'],
            env=dict(os.environ, THEANO_FLAGS=flags), start_new_session=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors,
            bufsize=0)  # or `close` would write to a process that is gone
        self.buffer = b''

    def stop(self):
        if self.process is not None:
            try:  # with the compiler, if one is running
                os.killpg(self.process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            self.process.wait()
            self.process.stdin.close()
            self.process.stdout.close()
            self.errors.close()
            self.process = None

    def ask(self, what, name, seconds):
        """Send a request.

        Returns
        -------
        answer, or ('timeout' or 'crash', reason)
        """
        if self.process is None:
            self.start()
            seconds += SECONDS_TO_START
        try:
            self.process.stdin.write(json.dumps([what, name]).encode() + b'\n')
        except BrokenPipeError:
            pass  # noticed below
        deadline = time.monotonic() + seconds
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            while b'\n' not in self.buffer:
                if not selector.select(max(0, deadline - time.monotonic())):
                    self.stop()
                    return 'timeout', ''
                chunk = os.read(self.process.stdout.fileno(), 1 << 16)
                if not chunk:
                    return 'crash', self.last_words()
                self.buffer += chunk
        line, _, self.buffer = self.buffer.partition(b'\n')
        return json.loads(line)

    def last_words(self):
        code = self.process.wait()
        self.errors.seek(0)
        lines = [line.strip() for line in self.errors if line.strip()]
        self.stop()
        name = signal.Signals(-code).name if code < 0 else f'exit {code}'
        last = lines[-1][:300] if lines else ''
        return f'{name}: {last}'


class Results:
    """What has been found out, kept in a file of JSON lines.

    Parameters
    ----------
    path : str
        Lines go to `path`.part, which gets its name when all is done.
    settings : dict
        What the results depend on; another run's are not continued.
    """

    def __init__(self, path, settings):
        self.path, self.part = path, path + '.part'
        self.lock, self.found = threading.Lock(), {}
        if os.path.exists(self.part):
            with open(self.part) as f:
                lines = f.read().split('\n')
            complete = [json.loads(line) for line in lines[:-1]]  # the last may be cut off
            if not complete or complete[0] != settings:
                sys.exit(f'{self.part} is of a run with other settings: {complete[:1]}. Delete it, '
                         'or name another file with --output.')
            for entry in complete[1:]:
                self.found[entry['configuration'], entry['test']] = entry
            with open(self.part, 'w') as f:
                f.writelines(json.dumps(entry) + '\n' for entry in complete)
        else:
            with open(self.part, 'w') as f:
                f.write(json.dumps(settings) + '\n')
        self.file = open(self.part, 'a')

    def add(self, configuration, test, status, reason, seconds, **more):
        entry = dict(configuration=configuration, test=test, status=status, reason=reason,
                     seconds=round(seconds, 2), **more)
        with self.lock:
            self.found[configuration, test] = entry
            self.file.write(json.dumps(entry) + '\n')
            self.file.flush()

    def finish(self):
        self.file.close()
        os.replace(self.part, self.path)


class Comparison:
    """Runs tests in two configurations.

    Parameters
    ----------
    configurations : two of Configuration
    floatX : str
    seconds : float
        The limit for one test; what it compiles counts.
    processes : int
        How many tests run at the same time.
    results : Results
    report : callable
        Called with a line of text, now and then.
    """

    def __init__(self, configurations, floatX, seconds, processes, results, report=print):
        self.configurations, self.floatX, self.seconds = configurations, floatX, seconds
        self.processes, self.results, self.report = processes, results, report

    def workers(self):
        return [Worker(configuration, self.floatX) for configuration in self.configurations]

    def find(self, module_names):
        """{module: tests} in the order of the first configuration."""
        workers = self.workers()
        tests = {}
        for name in module_names:
            found = {}
            for worker in workers:
                answer = worker.ask('find', name, SECONDS_TO_START)
                if isinstance(answer, list):
                    found.update(dict.fromkeys(f'{name}:{test}' for test in answer))
                else:  # the module cannot be imported: one test, named after it
                    if isinstance(answer, str):
                        answer = 'failed', answer
                    self.results.add(worker.configuration.name, name + ':', *answer, seconds=0)
                    found[name + ':'] = None
            tests[name] = list(found)
        for worker in workers:
            worker.stop()
        return tests

    def run(self, tests):
        """Run tests, and those that end differently once more in processes of their own.

        Parameters
        ----------
        tests : dict of str to list of str
            As from `find`.
        """
        runs = collections.deque()
        for names in tests.values():
            classes = collections.defaultdict(list)
            for test in names:
                classes[test.rpartition('.')[0]].append(test)
            for members in classes.values():
                for start in range(0, len(members), 25):
                    runs.append(members[start:start + 25])
        with concurrent.futures.ThreadPoolExecutor(self.processes) as pool:
            jobs = [pool.submit(self._lane, runs) for _ in range(self.processes)]
            try:
                for job in jobs:
                    job.result()
            finally:  # interrupted, or one lane has failed: let the others end
                runs.clear()

    def _lane(self, runs):
        workers = self.workers()
        try:
            while True:
                try:
                    members = runs.popleft()
                except IndexError:
                    return
                for test in members:
                    for worker in workers:
                        if (worker.configuration.name, test) not in self.results.found:
                            self._run(worker, test)
                    if self.differs(test) and not (
                            test.endswith(':') or self.entries(test)[1].get('alone')):
                        for worker in self.workers():
                            self._run(worker, test, alone=True)
                            worker.stop()
                    if self.differs(test):
                        self.report('\n'.join(self.describe(test)))
        finally:
            for worker in workers:
                worker.stop()

    def _run(self, worker, test, **more):
        start = time.monotonic()
        # A module that could not be imported in one configuration, and was in the other.
        answer = ('passed', '') if test.endswith(':') else worker.ask('run', test, self.seconds)
        self.results.add(worker.configuration.name, test, *answer,
                         seconds=time.monotonic() - start, **more)

    def entries(self, test):
        return [self.results.found.get((configuration.name, test))
                for configuration in self.configurations]

    def differs(self, test):
        """Whether the outcomes of a test differ: in kind, or in the class of the exception."""
        return len({(entry['status'], entry['status'] == 'failed' and entry['reason'].split(':')[0])
                    for entry in self.entries(test)}) > 1

    def explanation(self, test):
        """Why a test must end differently, or None."""
        one_python = len({configuration.python for configuration in self.configurations}) == 1
        return EXPLAINED.get(test) or (None if one_python else EXPLAINED_BY_VERSIONS.get(test))

    def describe(self, test):
        """Lines about a test."""
        yield test
        if self.explanation(test):
            yield '    (explained) ' + self.explanation(test)
        for entry in self.entries(test):
            yield '    {:<8} {:<8} {:6.1f} s  {}'.format(
                entry['configuration'], entry['status'], entry['seconds'], entry['reason'])

    def differences(self, tests):
        return [test for names in tests.values() for test in names if self.differs(test)]

    def summary(self, tests):
        """Lines of a table: how many tests of each module ended how."""
        row = '{:<45} {:<8}' + ' {:>8}' * len(STATUSES)
        yield row.format('', '', *STATUSES)
        total = collections.Counter()
        for name, names in tests.items():
            for i, configuration in enumerate(self.configurations):
                counts = collections.Counter(self.entries(test)[i]['status'] for test in names)
                total.update({(configuration.name, status): n for status, n in counts.items()})
                yield row.format('' if i else name, configuration.name,
                                 *(counts[status] for status in STATUSES))
        for configuration in self.configurations:
            yield row.format('all', configuration.name,
                             *(total[configuration.name, status] for status in STATUSES))


def module_names(patterns):
    """The modules that are meant, with 'package.*' resolved."""
    import importlib.util
    folder = os.path.dirname(importlib.util.find_spec('theano').origin)
    for pattern in patterns:
        if pattern.endswith('.*'):
            package = pattern[:-2]
            files = os.listdir(os.path.join(folder, *package.split('.')[1:]))
            for fname in sorted(files):
                if re.fullmatch(r'test_\w+\.py', fname):
                    yield f'{package}.{fname[:-3]}'
        else:
            yield pattern


def sample(tests, number):
    """The `number` tests of a module whose names have the least checksums, or all."""
    chosen = set(sorted(tests, key=lambda test: zlib.crc32(test.encode()))[:number])
    return [test for test in tests if test in chosen]


def parse(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('modules', nargs='*', default=MODULES, metavar='MODULE',
                        help='such as theano.tests.test_rop or theano.gof.tests.* '
                             '(default: those that say something about the engine)')
    parser.add_argument('--configuration', nargs=3, action='append',
                        metavar=('NAME', 'PYTHON', 'FLAGS'),
                        help='give two (default: with the engine and without it)')
    parser.add_argument('--floatX', default='float32', choices=['float32', 'float64'])
    parser.add_argument('--seconds', type=float, default=120,
                        help='limit for one test (default: 120)')
    parser.add_argument('--processes', type=int, default=os.cpu_count(), metavar='N',
                        help='how many tests to run at the same time (default: as many as cores)')
    parser.add_argument('--sample', type=int, metavar='N', help='so many tests of each module')
    parser.add_argument('--test', action='append', metavar='REGEX',
                        help='only tests whose name has this in it; may be given several times')
    parser.add_argument('--output', default='theano_suite.jsonl', metavar='FILE',
                        help='where the results go (default: theano_suite.jsonl)')
    options = parser.parse_args(arguments)
    if options.configuration is None:
        options.configuration = [WITH_ENGINE, WITHOUT_ENGINE]
    options.configuration = [Configuration(*three) for three in options.configuration]
    if len({configuration.name for configuration in options.configuration}) != 2:
        parser.error('two configurations with different names are compared')
    return options


def main(arguments=None):
    options = parse(arguments)
    os.environ.setdefault('OMP_NUM_THREADS', str(max(1, os.cpu_count() // options.processes)))
    settings = dict(floatX=options.floatX, seconds=options.seconds, sample=options.sample,
                    configurations=[list(three) for three in options.configuration])
    results = Results(options.output, settings)
    comparison = Comparison(
        options.configuration, options.floatX, options.seconds, options.processes, results)
    tests = comparison.find(module_names(options.modules))
    if options.test:
        tests = {name: [test for test in names if re.search('|'.join(options.test), test)]
                 for name, names in tests.items()}
    if options.sample:
        tests = {name: sample(names, options.sample) for name, names in tests.items()}
    comparison.run(tests)
    results.finish()
    differences = comparison.differences(tests)
    print('\n'.join(comparison.summary(tests)))
    print(f'\n{len(differences)} tests end differently; all results are in {results.path}')
    for test in differences:
        print('\n'.join(comparison.describe(test)))
    return int(any(not comparison.explanation(test) for test in differences))


if __name__ == '__main__':
    if sys.argv[1:] == ['--worker']:
        # Whatever tests print, from C too, must not get in the way of the answers.
        answers = os.fdopen(os.dup(1), 'w')
        os.dup2(2, 1)
        work(answers)
    else:
        sys.exit(main())
