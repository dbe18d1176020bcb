"""Tests of theano_today.cuda: they need the flag device=cuda, which Theano reads when imported.

`tests/test_cuda.py` runs them in a process of their own, on PyTorch's CPU device.  On a GPU:

    THEANO_FLAGS=device=cuda python -m pytest tests/cuda
"""
import os

if 'device=cuda' not in os.environ.get('THEANO_FLAGS', ''):
    collect_ignore_glob = ['test_*.py']
else:
    import theano_today  # noqa: F401, before theano
    from theano_today.cuda import convert, graphs
    graphs.WARM_UP = 0  # the tests call each function a few times only
    if convert.device().type == 'cpu':
        import pretend
        pretend.install()
