"""Theano's own tests end the same with the engine and without it: those that take a moment.

All of them: ``python tests/theano_suite.py``.
"""
import os
import signal

import numpy as np
import pytest
import theano_suite

TESTS = """
    theano.tests.test_gradient:test_grad.test_grad_quadratic_vector
    theano.tests.test_gradient:test_subgraph_grad
    theano.tests.test_2nd_order_grads:test004_hessian
    theano.tests.test_rop:test_RopLop.test_conv
    theano.tensor.tests.test_blas:TestSgemv.test_simple_transpose
    theano.tensor.tests.test_blas:TestGer.test_f32_0_1
    theano.tensor.tests.test_blas:TestBlasStrides.test_dot22
    theano.tensor.nnet.tests.test_abstract_conv:TestConvTypes.test_grad_types
    theano.tensor.nnet.tests.test_abstract_conv:TestConv2dTranspose.test_interface
    theano.tensor.nnet.tests.test_conv:TestConv2D.test_uint_filter_shape_datatype
    theano.tensor.nnet.tests.test_conv:test_broadcast_grad
    theano.tensor.signal.tests.test_pool:TestDownsampleFactorMax.test_DownsampleFactorMax_hessian
    theano.scan_module.tests.test_scan:T_Scan.test_grad_one_output
""".split()


def compare(path, tests, seconds=600):
    """Run tests as `theano_suite.py` does, without what g++ takes to optimise."""
    configurations = [
        configuration._replace(flags=','.join(filter(None, [configuration.flags, 'gcc.cxxflags=-O0'])))
        for configuration in (theano_suite.WITH_ENGINE, theano_suite.WITHOUT_ENGINE)]
    results = theano_suite.Results(str(path), {})
    comparison = theano_suite.Comparison(
        configurations, 'float32', seconds, os.cpu_count(), results)
    comparison.run({'sample': tests})
    return comparison


@pytest.fixture(scope='module')
def sample(tmp_path_factory):
    return compare(tmp_path_factory.mktemp('suite') / 'results.jsonl', TESTS)


@pytest.mark.parametrize('test', TESTS)
def test_ends_the_same_with_the_engine_and_without(sample, test):
    assert not sample.differs(test), '\n'.join(sample.describe(test))


def test_most_pass(sample):
    """Not all: T_Scan's own numeric gradient is too coarse with NumPy 2 (float32 stays float32)."""
    failing = [test for test in TESTS if sample.entries(test)[0]['status'] != 'passed']
    assert set(failing) <= {'theano.scan_module.tests.test_scan:T_Scan.test_grad_one_output'}


ODD_TESTS = """
import os, time, unittest
import theano

calls = open({calls!r}, 'a')
engine = 'theano_today_cpu' not in theano.config.optimizer_excluding

class Odd(unittest.TestCase):
    def setUp(self):
        print(self.id(), file=calls, flush=True)
    def test_differs(self):
        self.assertTrue(engine, 'only with the engine')
    def test_other_exception(self):
        raise (TypeError if engine else ValueError)('no')
    def test_fails(self):
        raise ValueError(str(engine))
    def test_skips(self):
        self.skipTest('never')
    def test_hangs(self):
        if not engine:
            while True:
                time.sleep(1)
    def test_kills(self):
        if engine:
            os.abort()

def test_function():
    pass

def helper():
    raise AssertionError('no test')
"""


def test_what_the_runner_says(tmp_path, monkeypatch):
    (tmp_path / 'odd.py').write_text(ODD_TESTS.format(calls=str(tmp_path / 'calls')))
    monkeypatch.setenv('PYTHONPATH', str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(theano_suite, 'SECONDS_TO_START', 30)
    tests = ['odd:Odd.test_differs', 'odd:Odd.test_fails', 'odd:Odd.test_hangs',
             'odd:Odd.test_kills', 'odd:Odd.test_other_exception', 'odd:Odd.test_skips',
             'odd:test_function']
    path = tmp_path / 'results.jsonl'
    comparison = compare(path, tests, seconds=5)
    assert comparison.find(['odd', 'nowhere'])['odd'] == tests
    statuses = [[entry['status'] for entry in comparison.entries(test)] for test in tests]
    assert statuses == [['passed', 'failed'], ['failed', 'failed'], ['passed', 'timeout'],
                        ['crash', 'passed'], ['failed', 'failed'], ['skipped', 'skipped'],
                        ['passed', 'passed']]
    assert comparison.differences({'odd': tests}) == [tests[i] for i in (0, 2, 3, 4)]
    assert 'SIGABRT' in '\n'.join(comparison.describe(tests[3]))
    assert 'only with the engine' in '\n'.join(comparison.describe(tests[0]))

    calls = (tmp_path / 'calls').read_text()
    again = compare(path, tests, seconds=5)  # continues: all is known
    assert (tmp_path / 'calls').read_text() == calls
    assert again.differences({'odd': tests}) == comparison.differences({'odd': tests})
    again.results.finish()
    assert path.exists()
    with pytest.raises(SystemExit, match='other settings'):
        os.rename(path, str(path) + '.part')
        theano_suite.Results(str(path), {'floatX': 'float64'})


def test_a_worker_that_somebody_kills_is_replaced():
    worker = theano_suite.Worker(theano_suite.WITH_ENGINE, 'float32')
    worker.start()
    os.killpg(worker.process.pid, signal.SIGKILL)
    os.waitid(os.P_PID, worker.process.pid, os.WEXITED | os.WNOWAIT)
    assert worker.ask('run', TESTS[0], 60) == ('crash', 'SIGKILL: ')
    assert worker.process is None  # the next request starts another


def test_sample_is_the_same_whatever_else_there_is():
    tests = [f'module:test_{i}' for i in range(50)]
    chosen = theano_suite.sample(tests, 10)
    assert len(chosen) == 10 and set(chosen) < set(tests)
    others = [test for test in tests if test not in chosen]
    assert theano_suite.sample(others[:20] + chosen, 10) == chosen
    assert theano_suite.sample(tests, 100) == tests


def test_what_versions_explain():
    """Only where two Pythons are compared: the engine has no such excuse."""
    new, old = (theano_suite.Configuration(name, name, '') for name in ('new', 'old'))
    same = theano_suite.Configuration('same', 'new', 'cxx=')
    for configurations, explains in (((new, old), True), ((new, same), False)):
        comparison = theano_suite.Comparison(configurations, 'float32', 1, 1, results=None)
        for test in theano_suite.EXPLAINED_BY_VERSIONS:
            assert bool(comparison.explanation(test)) == explains
        for test in theano_suite.EXPLAINED:
            assert comparison.explanation(test)
        assert comparison.explanation(TESTS[0]) is None


@pytest.mark.parametrize('arrays, scalars, common', [
    (['int8'], ['float16'], 'float16'), (['int16'], ['float16'], 'float32'),
    (['int64'], ['float16'], 'float64'), (['float32'], ['float64'], 'float32'),
    (['float32', 'float64'], ['float16'], 'float64'), (['complex64'], ['float64'], 'complex64'),
    (['uint8', 'int8'], ['int64'], 'int16'), (['bool'], ['uint8'], 'uint8')])
def test_common_types_are_those_of_numpy_1(arrays, scalars, common):
    def find(function):
        return function([np.dtype(name) for name in arrays], [np.dtype(name) for name in scalars])
    assert find(theano_suite._find_common_type) == common
    if np.__version__.startswith('1.'):
        assert find(np.find_common_type) == common
