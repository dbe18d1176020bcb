"""What is old in Lasagne 0.1."""
import warnings

from .mending import beforehand


@beforehand
def _hide_warning_of_conv2d():
    """Lasagne gives conv2d the shape by a name that Theano renamed in 0.8: a warning a layer."""
    warnings.filterwarnings('ignore', 'The `image_shape` keyword argument', UserWarning,
                            r'lasagne\.')
