"""Tests of theano_today.cuda: they need the flag device=cuda, which Theano reads when imported.

`tests/test_cuda.py` runs them in a process of their own, on PyTorch's CPU device.  On a GPU:

    THEANO_FLAGS=device=cuda python -m pytest tests/cuda

Each file names the values of THEANO_TODAY_CUDA that its tests run with, in ``MODES``; where the
variable is set they run with that value alone.
"""
import os

import pytest

if 'device=cuda' not in os.environ.get('THEANO_FLAGS', ''):
    collect_ignore_glob = ['test_*.py']
else:
    import theano_today  # noqa: F401, before theano
    from theano_today.cuda import convert, graphs
    graphs.WARM_UP = 0  # the tests call each function a few times only
    if convert.device().type == 'cpu':
        import pretend
        pretend.install()

ASKED = os.environ.get('THEANO_TODAY_CUDA')


def pytest_generate_tests(metafunc):
    metafunc.parametrize('cuda_mode', [ASKED] if ASKED else metafunc.module.MODES, indirect=True)


@pytest.fixture(autouse=True)
def cuda_mode(request):
    """The value of THEANO_TODAY_CUDA."""
    with pytest.MonkeyPatch.context() as patch:  # of its own: tests undo what `monkeypatch` has done
        patch.setenv('THEANO_TODAY_CUDA', request.param)
        yield request.param


@pytest.fixture
def recorded(cuda_mode):
    """What is tested happens in CUDA graphs only."""
    if cuda_mode != 'graph':
        pytest.skip('THEANO_TODAY_CUDA=graph only')
