r"""Lets pip build Theano's source package on Python 3.12 and later.

Theano's setup.py reads its setup.cfg with ``configparser.SafeConfigParser`` and its ``readfp``,
which Python 3.12 removed.  With this folder in ``PYTHONPATH``, Python imports this file when it
starts.  A sitecustomize that stood before it, such as pip's own of a build, is run after it.
"""
import configparser
import importlib.machinery
import importlib.util
import os
import sys

if not hasattr(configparser, 'SafeConfigParser'):
    class SafeConfigParser(configparser.ConfigParser):
        readfp = configparser.ConfigParser.read_file

    configparser.SafeConfigParser = SafeConfigParser

_here = os.path.dirname(os.path.abspath(__file__))
_spec = importlib.machinery.PathFinder.find_spec(
    'sitecustomize', [path for path in sys.path if os.path.abspath(path) != _here])
if _spec is not None:
    _spec.loader.exec_module(importlib.util.module_from_spec(_spec))
