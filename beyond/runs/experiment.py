"""Slide "Tips from Deep Learning Packages": a net and its constants as a short YAML file.

    python kfkd.py config experiment.yaml             write kfkd.py's constants and net
    python kfkd.py --config experiment.yaml fit       run them again, edited or not

A file has two parts, either of which may be missing; in each, what is missing stays as it is::

    constants:                  # of kfkd.py
      MAX_EPOCHS: 50
      AUGMENT: faces
    net:                        # arguments of NeuralNet
      layers:
      - {name: input, type: InputLayer, shape: [null, 1, 96, 96]}
      - {name: conv1, type: Conv2DLayer, num_filters: 16, filter_size: [3, 3], W: GlorotUniform}
      - {name: output, type: DenseLayer, num_units: 30, nonlinearity: null}
      objective_l2: 0.0001
      handlers:                 # at the end of an epoch, beside the net's own (beyond.handlers)
      - CosineAnnealing: {name: update_learning_rate, start: 0.2, stop: 0}

Layers, update rules, losses, nonlinearities and initialisations are named as in Lasagne, with
arguments as a mapping where needed: ``W: {Normal: {std: 0.01}}``.  Without `layers`, the layers are
the program's, and ``conv1_num_filters: 16`` is how one of them differs.  Files are data: nothing in
them is run, and a key or name that is not known is an error.
"""
import difflib
import inspect
import os

import numpy as np
import theano
import yaml
from lasagne import init, layers, nonlinearities, objectives, updates
from nolearn.lasagne import BatchIterator, NeuralNet, TrainSplit

from theano_today.nets.files import FileError, replacing

from ..augmentation import (
    AffineBatchIterator, mean_squared_error_of_known, squared_error_of_known)
from ..handlers import AverageWeights, CosineAnnealing
from ..layers import BatchNormLayer, ExpectedPositionLayer
from ..splits import LookalikeSplit


class ConfigError(FileError):
    """A file that cannot be used; the message says where, and what would be right."""


def _members(module, base=None):
    found = {}
    for name, value in vars(module).items():
        if base is None:
            if inspect.isfunction(value) and value.__module__ == module.__name__:
                found[name] = value
        elif inspect.isclass(value) and issubclass(value, base):
            found[name] = value
    return found


LAYERS = dict(_members(layers, layers.Layer), BatchNormLayer=BatchNormLayer,
              ExpectedPositionLayer=ExpectedPositionLayer)
INITS = _members(init, init.Initializer)
NONLINEARITIES = _members(nonlinearities)
UPDATES = _members(updates)
LOSSES = dict(_members(objectives), squared_error_of_known=squared_error_of_known,
              mean_squared_error_of_known=mean_squared_error_of_known)
ITERATORS = {'BatchIterator': BatchIterator, 'AffineBatchIterator': AffineBatchIterator}
SPLITS = {'TrainSplit': TrainSplit, 'LookalikeSplit': LookalikeSplit}
HANDLERS = {'AverageWeights': AverageWeights, 'CosineAnnealing': CosineAnnealing}

# What an argument of NeuralNet may name.
NAMED = {'update': UPDATES, 'objective_loss_function': LOSSES, 'batch_iterator_train': ITERATORS,
         'batch_iterator_test': ITERATORS, 'train_split': SPLITS}
PLAIN = 'regression', 'max_epochs', 'use_label_encoder', 'check_input', 'verbose'
OBJECTIVE = 'objective_l1', 'objective_l2'
# What a program makes of its constants: a file sets those instead.
DECIDED_BY_CONSTANTS = ('batch_iterator_train', 'batch_iterator_test', 'train_split', 'max_epochs',
                        'verbose', 'update_learning_rate', 'update_momentum')


# ---------------------------------------------------------------------------------------- reading

class _Loader(yaml.SafeLoader):
    """Safe loading that does not swallow a key that is there twice."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key, (place, _) in zip(keys, node.value):
            if keys.count(key) > 1:
                raise ConfigError(f'line {place.start_mark.line + 1}: {key} is there twice.')
        return super().construct_mapping(node, deep)


def read(fname):
    """Read an experiment.

    Returns
    -------
    dict
        constants and net, mappings, as they stand in the file; empty where it has none.

    Raises
    ------
    ConfigError
        If the file is missing, is no YAML, or has other parts.
    """
    try:
        with open(fname, encoding='utf-8') as f:
            content = yaml.load(f, _Loader)
    except ConfigError as error:
        raise ConfigError(f'{fname}, {error}')
    except (OSError, UnicodeError) as error:
        raise ConfigError(f'{fname} cannot be read: {error}.')
    except yaml.YAMLError as error:
        raise ConfigError('{} is no YAML: {}.'.format(fname, ' '.join(str(error).split())))
    content = {} if content is None else content
    _mapping(content, fname)
    for name in content:
        _known(name, ('constants', 'net'), fname)
    return {name: _mapping(content.get(name) or {}, f'{fname}: {name}')
            for name in ('constants', 'net')}


def constants(fname, namespace, settings=(), net=None):
    """Read an experiment as constants of a program: those of the file, and NET for its net.

    Parameters
    ----------
    fname : str or None
        The file; None: no constants.
    namespace : dict
        That of the program.  What they replace are its names in capitals.
    settings : sequence of str
        Constants as on a command line, 'SEED=43', with values as in a file.  They replace the file's.
    net : NeuralNet, optional
        The program's, whose layers the file may change.

    Returns
    -------
    dict

    Raises
    ------
    ConfigError
    """
    defaults = {name: value for name, value in namespace.items() if name.isupper()}
    found = {}
    if fname is not None:
        described = read(fname)
        found = checked_constants(described['constants'], defaults, fname)
        net_settings(described['net'], fname, net)  # to name the file in what is wrong
        found['NET'] = described['net']
    for setting in settings:
        name, equals, value = setting.partition('=')
        try:
            value = yaml.load(value, _Loader)
        except yaml.YAMLError:
            equals = ''
        if not equals or name == 'NET':
            raise ConfigError(f'--set {setting}: a constant and its value are needed, as in SEED=43.')
        found.update(checked_constants({name: value}, defaults, '--set'))
    return found


def checked_constants(described, defaults, fname='constants'):
    """Return the `constants` part of a file as a program has them, tuples for lists.

    A value must be of the kind of the one it replaces: a number, true or false, text, a list as
    long as the tuple.  What replaces None may be anything.

    Parameters
    ----------
    described : dict
        As they stand in the file.
    defaults : dict
        What they replace: all constants of the program, by name.
    fname : str
        Where they are from, for messages.

    Raises
    ------
    ConfigError
        Before anything is set: all or nothing.
    """
    return {name: _like(defaults[_known(name, defaults, fname)], value, f'{fname}: {name}')
            for name, value in described.items()}


def net_settings(described, fname='net', net=None):
    """Turn the `net` part of a file into arguments of NeuralNet, and `handlers`, a list.

    Parameters
    ----------
    described : dict
    fname : str
        Where it is from, for messages.
    net : NeuralNet, optional
        The one that is to be changed: without layers of its own, the file may change its layers'.

    Raises
    ------
    ConfigError
        For an unknown key or name, by place.
    """
    settings = {}
    of_layers = {} if net is None or 'layers' in described else _layer_arguments(net)
    for key, value in described.items():
        place = f'{fname}: {key}'
        update = described.get('update', 'nesterov_momentum')
        if key == 'layers':
            settings[key] = [_layer(layer, f'{place}[{number}]')
                             for number, layer in enumerate(_sequence(value, place))]
        elif key == 'handlers':
            settings[key] = [_named(HANDLERS, handler, f'{place}[{number}]')
                             for number, handler in enumerate(_sequence(value, place))]
        elif key in NAMED:
            settings[key] = _named(NAMED[key], value, place)
        elif key in PLAIN or key in OBJECTIVE:
            settings[key] = value
        elif key.startswith('update_') and update in UPDATES and key[7:] in _arguments(
                UPDATES[update]):
            # Shared, so that handlers such as kfkd's AdjustVariable can change it.
            settings[key] = theano.shared(np.float32(_number(value, place)))
        elif key in of_layers:
            settings[key] = _layer_setting(of_layers[key], value, place)
        else:
            _known(key, ('layers', 'handlers') + tuple(NAMED) + PLAIN + OBJECTIVE + tuple(
                'update_' + name for name in _arguments(UPDATES.get(update, updates.sgd)))
                + tuple(of_layers), fname)
    return settings


def changed(net, described, fname='net'):
    """Return a net like `net` but for what the `net` part of a file says.

    Layers in the file take the place of all of the net's layers and their settings.  Handlers come
    in addition, before the first that sets the weights in the end, such as kfkd's EarlyStopping.
    What another update rule does not take, as Adam no momentum, goes, and handlers that change it.
    """
    if not described:
        return net
    settings = net_settings(described, fname, net)
    params = dict(net.get_params(deep=False))
    own = list(params['on_epoch_finished'])
    place = next((number for number, handler in enumerate(own)
                  if hasattr(handler, 'on_training_finished')), len(own))
    params['on_epoch_finished'] = own[:place] + settings.pop('handlers', []) + own[place:]
    if 'layers' in settings:
        for name in [layer[0] if isinstance(layer[0], str) else layer[1].get('name', '')
                     for layer in params['layers']]:
            for key in [key for key in net._kwarg_keys if key.startswith(name + '_')]:
                del params[key]
    if 'update' in settings:
        taken = ['update_' + name for name in _arguments(settings['update'])]
        gone = [key for key in params if key.startswith('update_') and key not in taken]
        for key in gone:
            del params[key]
        params['on_epoch_finished'] = [handler for handler in params['on_epoch_finished']
                                       if getattr(handler, 'name', None) not in gone]
    if net.verbose:  # the constructor adds its print handlers again
        for key in 'on_epoch_finished', 'on_training_started':
            params[key] = [handler for handler in params[key]
                           if type(handler).__name__ not in ('PrintLog', 'PrintLayerInfo')]
    params.update(settings)
    return type(net)(**params)


def _layer(described, place):
    described = dict(_mapping(described, place))
    name = described.pop('name', None)
    if not isinstance(name, str):
        raise ConfigError(f'{place}: a layer needs a name.')
    place = f'{place} ({name})'
    factory = LAYERS[_known(described.pop('type', None), LAYERS, place)]
    arguments = _arguments(factory)
    settings = {'name': name}
    for key, value in described.items():
        _known(key, arguments, place)
        settings[key] = _layer_setting(key, value, f'{place}.{key}')
    return factory, settings


def _layer_setting(argument, value, place):
    if argument == 'nonlinearity':
        return None if value is None else NONLINEARITIES[_known(value, NONLINEARITIES, place)]
    if isinstance(value, (str, dict)) and argument not in ('incoming', 'incomings', 'mask_input',
                                                           'pad', 'mode', 'border_mode'):
        return _named(INITS, value, place)
    return tuple(value) if isinstance(value, list) and argument != 'incomings' else value


def _layer_arguments(net):
    """What NeuralNet calls the arguments of a net's layers, and what the layers call them."""
    named = [(layer[1].get('name'), layer[0]) if isinstance(layer[1], dict) else layer
             for layer in net.layers if isinstance(layer, (tuple, list))]
    return {f'{name}_{argument}': argument for name, factory in named if name
            for argument in _arguments(factory) if argument not in ('incoming', 'name')}


def _named(registry, value, place):
    """A function or class by its name, or an object by ``Name: {argument: value}``."""
    arguments = {}
    if isinstance(value, dict):
        if len(value) != 1:
            raise ConfigError('{}: one name with its arguments is needed, not {}.'.format(
                place, ', '.join(map(str, value))))
        [(value, arguments)] = value.items()
        arguments = _mapping(arguments or {}, place)
    found = registry[_known(value, registry, place)]
    if inspect.isfunction(found):
        if arguments:
            raise ConfigError(f'{place}: {value} takes no arguments here.')
        return found
    for key in arguments:
        _known(key, _arguments(found), f'{place}.{value}')
    try:
        return found(**{key: tuple(map(_tuples, argument)) if isinstance(argument, list)
                        else argument for key, argument in arguments.items()})
    except (TypeError, ValueError) as error:
        raise ConfigError(f'{place}: {value}: {error}')


def _tuples(value):
    return tuple(value) if isinstance(value, list) else value


def _arguments(callable_):
    """Names of the arguments of a function or class, with those that **kwargs hand on upwards."""
    if inspect.isfunction(callable_):
        return [name for name in inspect.signature(callable_).parameters
                if name not in ('loss_or_grads', 'params')]
    names = []
    for cls in callable_.__mro__:
        if '__init__' not in vars(cls):
            continue
        parameters = inspect.signature(cls.__init__).parameters.values()
        names += [parameter.name for parameter in parameters
                  if parameter.kind == parameter.POSITIONAL_OR_KEYWORD]
        if not any(parameter.kind == parameter.VAR_KEYWORD for parameter in parameters):
            break
    return [name for name in dict.fromkeys(names) if name != 'self']


def _known(name, names, place):
    if name not in names:
        close = difflib.get_close_matches(str(name), names, 1) or sorted(names)[:12]
        raise ConfigError('{}: {!r} is not known. {}{}?'.format(
            place, name, 'Is it one of ' if len(close) > 1 else 'Did you mean ', ', '.join(close)))
    return name


def _mapping(value, place):
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise ConfigError(f'{place}: names with values are needed, not {value!r}.')
    return value


def _sequence(value, place):
    if not isinstance(value, list) or not value:
        raise ConfigError(f'{place}: a list is needed, not {value!r}.')
    return value


def _number(value, place):
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        hint = ' (YAML 1.1 reads 1e-4 as text: write 1.0e-4)' if isinstance(value, str) else ''
        raise ConfigError(f'{place}: a number is needed, not {value!r}{hint}.')
    return value


def _like(old, value, place):
    """Return `value` if it is of the kind of `old`."""
    if old is None:
        return value
    if isinstance(old, bool):
        if not isinstance(value, bool):
            raise ConfigError(f'{place}: true or false is needed, not {value!r}.')
    elif isinstance(old, (int, float)):
        _number(value, place)
    elif isinstance(old, str):
        if not isinstance(value, str):
            raise ConfigError(f'{place}: text is needed, not {value!r}.')
    elif isinstance(old, tuple):
        if len(_sequence(value, place)) != len(old):
            raise ConfigError(f'{place}: {len(old)} values are needed, not {len(value)}.')
        return tuple(_like(a, b, place) for a, b in zip(old, value))
    else:
        raise ConfigError(f'{place}: this constant cannot be set in a file.')
    return value


# ---------------------------------------------------------------------------------------- writing

class _Line(dict):
    """A mapping that is written on one line."""


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data):  # (3, 3) twice is written twice, not as &id001 and *id001
        return True


_Dumper.add_representer(_Line, lambda dumper, line: dumper.represent_mapping(
    'tag:yaml.org,2002:map', line.items(), flow_style=True))


def describe_constants(constants, leave_out=()):
    """Return those constants, of a dictionary, that a file can hold, tuples as lists."""
    return {name: list(value) if isinstance(value, tuple) else value
            for name, value in constants.items() if name not in leave_out
            and (value is None or isinstance(value, (bool, int, float, str)) or isinstance(
                value, tuple) and value and all(isinstance(part, (int, float)) for part in value)
                or name != 'NET' and _is_name_with_arguments(value))}


def _is_name_with_arguments(value):
    """Tell whether a constant is as ``{'faces': {'middle': 47, 'rotation': [-5, 5]}}``."""
    return isinstance(value, dict) and len(value) == 1 and all(
        isinstance(name, str) and isinstance(arguments, dict) and all(
            argument is None or isinstance(argument, (bool, int, float, str))
            or isinstance(argument, (list, tuple)) and all(
                isinstance(part, (int, float)) for part in argument)
            for argument in arguments.values()) for name, arguments in value.items())


def described(constants, folder):
    """Return the constants that a record has of a program: all but paths in the program's folder."""
    return describe_constants(constants, paths_in(folder, constants))


def paths_in(folder, constants):
    """Names of the constants that are paths in a folder of this machine: not for other machines."""
    inside = os.path.join(os.path.abspath(folder), '')
    return [name for name, value in constants.items()
            if isinstance(value, str) and os.path.join(value, '').startswith(inside)]


def describe_net(net, leave_out=()):
    """Return what `net_settings` makes the same net of (but for handlers and its weights).

    Parameters
    ----------
    net : NeuralNet
    leave_out : sequence of str
        Arguments of NeuralNet that are not to be described.

    Raises
    ------
    ConfigError
        If the net has something that a file cannot name, such as a function of your own.
    """
    described = {'layers': []}
    own = {}
    for position, layer in enumerate(net.layers):
        if not isinstance(layer, (tuple, list)):
            raise ConfigError('layers: Lasagne objects cannot be written, only (name, class) and '
                              '(class, settings).')
        factory, settings = layer if isinstance(layer[1], dict) else (layer[1], {'name': layer[0]})
        settings = dict(settings)
        name = settings.pop('name', None) or net._layer_name(factory, position)
        own[name] = None
        settings.update(net._get_params_for(name))
        _member(LAYERS, factory, name)
        entry = {'name': name, 'type': factory.__name__}
        for key, value in settings.items():
            place = f'{name}.{key}'
            entry[key] = None if value is None else _name_of(
                NONLINEARITIES if key == 'nonlinearity' else INITS, value, place)
        described['layers'].append(_Line(entry))
    defaults = {name: parameter.default for name, parameter in
                inspect.signature(NeuralNet.__init__).parameters.items()}
    defaults['objective_loss_function'] = (  # the constructor has None for it
        objectives.squared_error if net.regression else objectives.categorical_crossentropy)
    always = set(NAMED) - {'objective_loss_function'}
    for key in tuple(NAMED) + PLAIN:
        value = getattr(net, key)
        if key not in leave_out and (key in always or value != defaults[key]):
            described[key] = _name_of(NAMED.get(key, {}), value, key)
    for key in net._kwarg_keys:
        if key.startswith(('update_', 'objective_')) and key not in leave_out:
            described[key] = _name_of({}, getattr(net, key), key)
    return described


def _member(registry, value, place):
    for name, member in registry.items():
        if member is value:
            return name
    raise ConfigError(f'{place}: {value!r} has no name that a file can hold.')


def _name_of(registry, value, place):
    if isinstance(value, theano.compile.SharedVariable):
        value = value.get_value()
    if isinstance(value, (np.generic, np.ndarray)) and value.ndim == 0:
        value = value.item()
        # The shortest number that is the same float32: 0.03, not 0.029999999329447746.
        return float(str(np.float32(value))) if isinstance(value, float) else value
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (tuple, list)):
        return [_name_of({}, part, place) for part in value]
    if inspect.isfunction(value):
        return _member(registry, value, place)
    name = _member(registry, type(value), place)
    arguments = {}
    for key in _arguments(type(value)):
        if hasattr(value, key):
            arguments[key] = _name_of({}, getattr(value, key), f'{place}.{key}')
    return {name: arguments} if arguments else name


def text(constants=None, net=None):
    """Return the text of an experiment, as `read` reads it.

    Parameters
    ----------
    constants : dict, optional
        As `describe_constants` returns them.
    net : dict, optional
        As `describe_net` returns it.
    """
    content = {name: part for name, part in (('constants', constants), ('net', net)) if part}
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, default_flow_style=None, width=1000)


def write_program(fname, constants, net):
    """Write the constants and the net of a program to a file that `constants` reads."""
    values = vars(constants)
    # What constants do not decide, for once: it stands in the file that they are from.
    own = {name: part for name, part in (values.get('NET') or {}).items()
           if name in ('train_split', 'handlers')}
    content = text(describe_constants({name: value for name, value in values.items() if name != 'NET'},
                                      paths_in(constants.DATA, values)),
                   dict(describe_net(net, DECIDED_BY_CONSTANTS), **own))
    with replacing(fname) as f:
        f.write(content.encode())
    print(f'Wrote {fname}.')
