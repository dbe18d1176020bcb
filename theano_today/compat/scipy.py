"""What later versions of SciPy moved."""
from .mending import replace

# scipy.signal.signaltools and sigtools became private in SciPy 1.8.  Theano takes that for a SciPy
# that is not there, and has no Python code for convolutions any more: optimizer=None,
# compute_test_value, DebugMode and optimizer=fast_compile with a convolution end in an error.
_NAMES = {
    'from scipy.signal.signaltools import _valfrommode, _bvalfromboundary':
        'from {} import _valfrommode, _bvalfromboundary'.format(__name__),
    'from scipy.signal.sigtools import _convolve2d': 'from {} import _convolve2d'.format(__name__)}
replace('theano.tensor.nnet.conv', _NAMES)
replace('theano.tensor.nnet.abstract_conv', {
    'from scipy.signal.signaltools import _valfrommode, _bvalfromboundary, convolve':
        'from scipy.signal import convolve\n'
        '    from {} import _valfrommode, _bvalfromboundary'.format(__name__),
    'from scipy.signal.sigtools import _convolve2d': 'from {} import _convolve2d'.format(__name__)})


def _valfrommode(mode):
    return mode


def _bvalfromboundary(boundary):
    return boundary


def _convolve2d(image, kernel, flip, mode, boundary, fill):
    """Convolve; `mode` and `boundary` are what the two functions above have returned."""
    from scipy.signal import convolve2d
    return convolve2d(image, kernel if flip else kernel[::-1, ::-1], mode, boundary, fill)
