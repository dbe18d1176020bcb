"""What the tests of the CPU engine share."""
import pytest

import theano_today  # noqa: F401
import theano
from theano.tensor.nnet.conv import ConvOp
from theano.tensor.nnet.corr import BaseCorrMM
from theano.tensor.signal.pool import MaxPoolGrad, Pool
from theano_today.cpu.native import NativeOp


@pytest.fixture
def few_modules(monkeypatch):
    """Compile convolutions, pooling and the engine's Ops only: the rest runs in Python just as well."""
    in_c = NativeOp, BaseCorrMM, Pool, MaxPoolGrad, ConvOp
    make_c_thunk = theano.gof.Op.make_c_thunk

    def chosen(self, *args, **kwargs):
        if not isinstance(self, in_c):
            raise NotImplementedError  # Theano's own way to say: in Python
        return make_c_thunk(self, *args, **kwargs)
    monkeypatch.setattr(theano.gof.Op, 'make_c_thunk', chosen)
