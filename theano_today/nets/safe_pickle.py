"""Load pickles of nolearn nets without running what else they may hold.

    net = safe_pickle.load(f)                         # nets of Lasagne's and nolearn's own classes
    net = safe_pickle.load(f, trusted=[MyIterator])   # and of these
    values = safe_pickle.load_arrays(f)               # no nets: arrays, also of Python 2

A pickle is a program: it may name any function of any module and call it.  Here it may only

- use the opcodes that today's pickle protocols write for plain data, arrays and objects;
- name what is in a table (`allowed`), which is made of classes and functions that are imported
  already: no pickle imports a module or looks an attribute up;
- call the few constructors of NumPy's arrays, types, scalars and random states, each with checks of
  its own, because NumPy trusts its arguments and a false one would reach beyond its memory;
- make instances of the classes in the table, without arguments, and give them attributes.

Lengths are checked against the file before memory is taken, keys of dictionaries are kept simple
(the hash of nested tuples that share parts takes for ever), and a net's layers must be classes:
nolearn imports whatever a layer's name in a string says.
"""
import inspect
import io
import os
import pickle
import struct
from collections import OrderedDict

import lasagne
import nolearn.lasagne
import numpy as np
from lasagne.layers import Layer
from nolearn.lasagne import NeuralNet
from theano.tensor import TensorType

from ..compat import new_net

__all__ = ['allowed', 'load', 'load_arrays', 'loads']

# The opcodes of protocols 2 to 5 for plain data, memo, globals, calls and objects.  Not among them:
# persistent ids, the extension registry, out-of-band buffers, sets, __newobj_ex__, and the text
# opcodes of the old protocols.
OPCODES = (
    'PROTO FRAME STOP MARK POP POP_MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 '
    'BINFLOAT SHORT_BINUNICODE BINUNICODE SHORT_BINBYTES BINBYTES BINBYTES8 BYTEARRAY8 EMPTY_TUPLE '
    'TUPLE1 TUPLE2 TUPLE3 TUPLE EMPTY_LIST APPEND APPENDS EMPTY_DICT SETITEM SETITEMS BINPUT '
    'LONG_BINPUT MEMOIZE BINGET LONG_BINGET GLOBAL STACK_GLOBAL REDUCE NEWOBJ BUILD')
# Those of protocols 0 and 1, and of Python 2's strings, in files of arrays.
OLD_OPCODES = 'INT LONG FLOAT STRING BINSTRING SHORT_BINSTRING UNICODE LIST DICT PUT GET'

# Methods that may be among a net's handlers: those named after the events of nolearn.
HANDLERS = ('on_batch_finished', 'on_epoch_finished', 'on_training_started', 'on_training_finished')

INSTRUCTIONS = 1 << 24  # bytes, arrays not counted; 3,000 epochs of history take half a million
DTYPES = {np.dtype(kind).str[1:] for kind in (
    'b1', 'i1', 'i2', 'i4', 'i8', 'u1', 'u2', 'u4', 'u8', 'f2', 'f4', 'f8')}


def _refuse(what):
    raise pickle.UnpicklingError(f'it holds {what}')


def _methods(opcodes):
    """What Python's own unpickler does with these, as `_Unpickler.dispatch` has it."""
    codes = [getattr(pickle, name)[0] for name in opcodes.split()]
    return {code: pickle._Unpickler.dispatch[code] for code in codes}


# ----------------------------------------------------------------- what a pickle may name and call

class _Call:
    """A name that may be called: the function that is called in its place."""

    def __init__(self, function):
        self.function = function


class _Name:
    """A name that may only be an argument of such a call."""


_NDARRAY, _MT19937 = _Name(), _Name()


def _dtype(kind, align=False, copy=False):
    if not isinstance(kind, str) or kind not in DTYPES:
        _refuse(f'an array of type {kind!r}')
    return np.dtype(kind)


def _size(shape, dtype):
    if not isinstance(dtype, np.dtype) or not isinstance(shape, tuple) or len(shape) > 32 or \
            not all(type(length) is int and length >= 0 for length in shape):
        _refuse('an array without a proper shape and type')
    size = dtype.itemsize
    for length in shape:
        size *= length
    return size


def _array(data, dtype, shape, order='C', axis_order=None):
    if not isinstance(data, (bytes, bytearray)) or _size(shape, dtype) != len(data):
        _refuse('an array whose size is not the one it claims')
    array = np.frombuffer(data, dtype)
    if order == 'K':  # axes in another order: from NumPy 2 on
        if not isinstance(axis_order, tuple) or \
                not all(type(axis) is int for axis in axis_order) or \
                sorted(axis_order) != list(range(len(shape))):
            _refuse('an array with its axes in an impossible order')
        return array.reshape(shape).transpose(axis_order)
    if order not in ('C', 'F') or axis_order is not None:
        _refuse(f'an array in the order {order!r}')
    return array.reshape(shape, order=order)


def _scalar(dtype, data):
    return _array(_bytes(data), dtype, ())[()]


def _bytes(data):
    """The content of an array, which Python 2 has as a string."""
    return data.encode('latin1') if isinstance(data, str) else data


def _latin1(text, encoding):
    if not isinstance(text, str) or encoding != 'latin1':
        _refuse('text in another encoding than Latin-1')
    return _bytes(text)


def _reconstruct(subtype, shape, kind):
    if subtype is not _NDARRAY or shape != (0,):
        _refuse('an array of another kind')
    return np.empty((0,), np.int8)  # BUILD brings the content


def _random_state(kind='MT19937', bit_generator=_MT19937):
    if kind != 'MT19937' or bit_generator is not _MT19937:
        _refuse('a random generator of another kind')
    return np.random.RandomState()


def _net(cls):
    if not inspect.isclass(cls) or not issubclass(cls, NeuralNet):
        _refuse('a net of another kind')
    return new_net(cls)


def _handler(owner, name):
    # Methods are pickled as getattr(object, name).
    if name not in HANDLERS or not inspect.isfunction(getattr(type(owner), str(name), None)):
        _refuse(f'the attribute {name!r:.100} of a {type(owner).__name__}')
    return getattr(owner, name)


_ARRAYS = {('numpy', 'dtype'): _Call(_dtype), ('numpy', 'ndarray'): _NDARRAY}
for _core in ('numpy.core', 'numpy._core'):  # NumPy 2 has renamed it
    _ARRAYS.update({(_core + '.numeric', '_frombuffer'): _Call(_array),
                    (_core + '.multiarray', '_reconstruct'): _Call(_reconstruct),
                    (_core + '.multiarray', 'scalar'): _Call(_scalar)})
_CALLS = {**_ARRAYS,
          ('builtins', 'getattr'): _Call(_handler),
          ('collections', 'OrderedDict'): _Call(OrderedDict),
          ('theano_today.compat', 'new_net'): _Call(_net),
          (new_net.__module__, new_net.__name__): _Call(_net),
          ('numpy.random._pickle', '__randomstate_ctor'): _Call(_random_state),
          ('numpy.random._pickle', '__bit_generator_ctor'): _MT19937}


def allowed(trusted=()):
    """The table of what a pickle may name.

    Parameters
    ----------
    trusted : iterable of classes and functions
        To be added to those of Lasagne and nolearn.  A pickle can neither call these functions nor
        the constructors of these classes, but it can hand them to the program as attributes of a
        net.

    Returns
    -------
    dict
        (module, name) -> class or function
    """
    things = [TensorType]
    things += [nolearn.lasagne.NeuralNet, nolearn.lasagne.BatchIterator, nolearn.lasagne.TrainSplit,
               nolearn.lasagne.base.objective, nolearn.lasagne.base.Layers,
               nolearn.lasagne.base._list, nolearn.lasagne.handlers.PrintLog,
               nolearn.lasagne.handlers.PrintLayerInfo,
               nolearn.lasagne.handlers.RememberBestWeights]
    things += [thing for thing in vars(lasagne.layers).values()
               if inspect.isclass(thing) and thing.__module__.startswith('lasagne.layers.')]
    for module in (lasagne.init, lasagne.nonlinearities, lasagne.objectives, lasagne.updates):
        things += [thing for thing in vars(module).values()
                   if (inspect.isclass(thing) or inspect.isfunction(thing))
                   and thing.__module__ == module.__name__]
    things += trusted
    return {(thing.__module__, thing.__qualname__): thing for thing in things}


# -------------------------------------------------------------------------- what objects may become

def _check_key(key):
    if not (key is None or type(key) in (str, int) or type(key) is tuple and
            all(type(part) is str for part in key)):
        _refuse(f'a dictionary with a key of type {type(key).__name__}')


def _build_dtype(dtype, state):
    # (version, byte order, ...): what follows says that the type has no parts.
    if not isinstance(state, tuple) or len(state) != 8 or state[1] not in ('<', '|', '=') or \
            state[2:] != (None, None, None, -1, -1, 0):
        _refuse('an array type with parts or of another byte order')


def _build_array(array, state):
    if not isinstance(state, tuple) or len(state) != 5:
        _refuse('an array without content')
    _, shape, dtype, fortran, data = state
    data = _bytes(data)
    if not isinstance(data, bytes) or _size(shape, dtype) != len(data) or array.shape != (0,):
        _refuse('an array whose size is not the one it claims')
    array.__setstate__((1, shape, dtype, bool(fortran), data))


def _build_random_state(random, state):
    try:
        key, pos = state['state']['key'], state['state']['pos']
        if state['bit_generator'] != 'MT19937' or key.dtype != np.uint32 or key.shape != (624,) or \
                type(pos) is not int or not 0 <= pos <= 624:  # NumPy would read beyond its memory
            raise ValueError
        random.set_state(('MT19937', key, pos, int(state['has_gauss']), float(state['gauss'])))
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError):
        _refuse('a random generator in an impossible state')


def _build_tensor_type(tensor_type, state):
    # Theano writes these into the C code it compiles.
    if not isinstance(state, dict) or state.get('dtype') not in ('float32', 'float64', 'int32',
                                                                  'int64') or \
            not isinstance(state.get('broadcastable'), tuple) or \
            not all(isinstance(flag, bool) for flag in state['broadcastable']):
        _refuse('a Theano type that is not a simple one')
    tensor_type.__init__(state['dtype'], state['broadcastable'])


def _build_object(thing, state):
    if not isinstance(state, dict) or not all(
            type(name) is str and not name.startswith('__') for name in state):
        _refuse(f'an object of the class {type(thing).__name__} with odd attributes')
    if isinstance(thing, NeuralNet):
        _check_net(state)
        thing.__setstate__(state)
    else:
        vars(thing).update(state)


def _check_net(state):
    """Raise UnpicklingError if building the net of these attributes would import or run something.
    """
    layers = state.get('layers', ())
    if not isinstance(layers, (list, tuple)):
        _refuse('a net without a list of layers')
    for layer in layers:
        pair = layer if isinstance(layer, tuple) and len(layer) == 2 else ('', None)
        factory, settings = pair if isinstance(pair[1], dict) else (pair[1], {})
        if not (inspect.isclass(factory) and issubclass(factory, Layer)) or \
                'layer_wrapper' in settings:
            _refuse('a net with a layer that is not one of the classes allowed')
    weights, shared = state.get('_saved_weights', {}), state.get('_shared', {})
    if not isinstance(weights, dict) or not all(
            isinstance(values, list) and all(isinstance(value, np.ndarray) for value in values)
            for values in weights.values()):
        _refuse('a net with weights that are no arrays')
    if not isinstance(shared, dict) or not all(
            isinstance(value, (np.ndarray, np.number)) for value in shared.values()):
        _refuse('a net with shared variables that are no arrays')


_BUILDERS = ((np.dtype, _build_dtype), (np.ndarray, _build_array), (TensorType, _build_tensor_type),
             (np.random.RandomState, _build_random_state))


# ------------------------------------------------------------------------------------- the machine

class _Reader:
    """A file that is asked for no more than it has, and for no more instructions than a net needs.

    One byte can make an object of a hundred, so that a large file could fill the memory.
    """

    def __init__(self, f, size, longest_line=1000):
        self.file, self.left, self.longest_line = f, size, longest_line
        self.instructions = INSTRUCTIONS

    def count(self, size):
        self.instructions -= size
        if self.instructions < 0:
            _refuse('more instructions than a net needs')

    def read(self, size):
        if not 0 <= size <= self.left:
            raise EOFError('it ends too early')
        self.left -= size
        self.count(min(size, 64))
        return self.file.read(size)

    def readline(self):
        line = self.file.readline(min(self.left, self.longest_line))
        self.left -= len(line)
        self.count(min(len(line), 64))
        return line


class _Unpickler(pickle._Unpickler):
    """Python's own unpickler, written in Python, with stricter opcodes."""

    dispatch = dict.fromkeys(range(256), lambda self: _refuse(
        'an instruction that such a file does not need'))
    dispatch.update(_methods(OPCODES))
    unknown = 'it holds the class or function {}, which is none of those that belong to a net'

    def __init__(self, reader, table):
        super().__init__(reader, encoding='latin1')  # of Python 2's strings
        self.reader, self.table = reader, table

    def find_class(self, module, name):
        try:
            return self.table[module, name]
        except (KeyError, TypeError):
            named = '.'.join(str(part)[:200] for part in (module, name))
            raise pickle.UnpicklingError(self.unknown.format(
                named.encode('unicode_escape').decode())) from None

    def load_frame(self):
        size, = struct.unpack('<Q', self.read(8))
        self.reader.count(size)
        self._unframer.load_frame(size)

    def load_bytearray8(self):
        size, = struct.unpack('<Q', self.read(8))
        self.append(bytearray(self.read(size)))

    def load_reduce(self):
        args = self.stack.pop()
        call = self.stack[-1]
        if not isinstance(call, _Call) or not isinstance(args, tuple):
            name = getattr(call, '__name__', type(call).__name__)
            _refuse(f'a call of {name}')
        if call.function is OrderedDict and args:
            _refuse('a call of OrderedDict with arguments')
        self.stack[-1] = call.function(*args)

    def load_newobj(self):
        args = self.stack.pop()
        cls = self.stack.pop()
        if not inspect.isclass(cls) or args != () or issubclass(cls, Layer):
            name = getattr(cls, '__name__', type(cls).__name__)
            _refuse(f'an object of the class {name}')
        self.append(cls.__new__(cls))

    def load_build(self):
        state = self.stack.pop()
        thing = self.stack[-1]
        builder = next((builder for kind, builder in _BUILDERS if isinstance(thing, kind)),
                       _build_object)
        if builder is _build_object and type(thing) not in self.table.values():
            _refuse(f'attributes for a {type(thing).__name__}')
        builder(thing, state)

    def load_append(self):
        value = self.stack.pop()
        self._extend([value])

    def load_appends(self):
        items = self.pop_mark()
        self._extend(items)

    def _extend(self, items):
        if not isinstance(self.stack[-1], list):
            _refuse(f'items for a {type(self.stack[-1]).__name__}')
        list.extend(self.stack[-1], items)

    def load_setitem(self):
        value, key = self.stack.pop(), self.stack.pop()
        self._update([key, value])

    def load_setitems(self):
        items = self.pop_mark()
        self._update(items)

    def _update(self, items):
        if not isinstance(self.stack[-1], dict):
            _refuse(f'items for a {type(self.stack[-1]).__name__}')
        for key, value in zip(items[::2], items[1::2]):
            _check_key(key)
            self.stack[-1][key] = value

    for _opcode, _method in ((pickle.FRAME, load_frame), (pickle.BYTEARRAY8, load_bytearray8),
                             (pickle.REDUCE, load_reduce), (pickle.NEWOBJ, load_newobj),
                             (pickle.BUILD, load_build),
                             (pickle.APPEND, load_append), (pickle.APPENDS, load_appends),
                             (pickle.SETITEM, load_setitem), (pickle.SETITEMS, load_setitems)):
        dispatch[_opcode[0]] = _method
    del _opcode, _method


class _ArraysUnpickler(_Unpickler):
    """The same for files of arrays, of all protocols."""

    dispatch = {**_Unpickler.dispatch, **_methods(OLD_OPCODES)}
    unknown = 'it asks for {}'

    def load_dict(self):
        items = self.pop_mark()
        self.append({})
        self._update(items)

    dispatch[pickle.DICT[0]] = load_dict


def load(f, trusted=(), renamed=()):
    """Load a pickle from an open file, or raise.

    Parameters
    ----------
    f : file
        Opened for reading in binary mode.
    trusted : iterable of classes and functions
        See `allowed`.
    renamed : dict of (str, str) to class or function, optional
        More of these, by the module and the name that they had when the file was written.

    Raises
    ------
    pickle.UnpicklingError
        If it holds something else than nets of known classes, or is damaged.  Nothing of it has
        been run then.
    """
    return _load(_Reader(f, os.fstat(f.fileno()).st_size), trusted, renamed)


def loads(data, trusted=(), renamed=()):
    """Load a pickle from bytes, as `load` does."""
    return _load(_Reader(io.BytesIO(data), len(data)), trusted, renamed)


def load_arrays(f):
    """Load a pickle of arrays, numbers, strings, lists, tuples and dictionaries, or raise.

    Parameters
    ----------
    f : file
        Opened for reading in binary mode.  It may be of any protocol, and of Python 2, whose strings
        are read as Latin-1.

    Raises
    ------
    pickle.UnpicklingError
        If it holds something else, or is damaged.  Nothing of it has been run then.
    """
    size = os.fstat(f.fileno()).st_size
    table = {**_ARRAYS, ('_codecs', 'encode'): _Call(_latin1)}  # bytes that Python 2 can read, too
    return _run(_ArraysUnpickler(_Reader(f, size, longest_line=size), table))


def _load(reader, trusted, renamed):
    return _run(_Unpickler(reader, {**allowed(trusted), **dict(renamed), **_CALLS}))


def _run(unpickler):
    try:
        return unpickler.load()
    except (EOFError, IndexError, KeyError, TypeError, ValueError, AttributeError, OverflowError,
            RecursionError, MemoryError, struct.error) as error:
        raise pickle.UnpicklingError(
            f'it is damaged: {str(error) or type(error).__name__}') from error
