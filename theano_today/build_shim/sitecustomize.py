r"""Lets pip build Theano's source package on Python 3.12 and later.

Theano's setup.py reads its setup.cfg with ``configparser.SafeConfigParser`` and its ``readfp``,
which Python 3.12 removed.  With this folder in ``PYTHONPATH``, Python imports this file when it
starts:

    PYTHONPATH=$PWD/theano_today/build_shim \
        venv/bin/pip install --no-build-isolation -r requirements.txt
"""
import configparser

if not hasattr(configparser, 'SafeConfigParser'):
    class SafeConfigParser(configparser.ConfigParser):
        readfp = configparser.ConfigParser.read_file

    configparser.SafeConfigParser = SafeConfigParser
