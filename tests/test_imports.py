"""Arrows between the rooms of the house point one way."""
import ast
import graphlib
import os

import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
ROOMS = 'kfkd', 'beyond', 'data', 'theano_today'
# What a room may import of the others.
ALLOWED = {
    'kfkd': ('kfkd', 'beyond', 'data', 'theano_today'),
    'beyond': ('beyond', 'data', 'theano_today'),
    'data': ('data', 'theano_today.nets.files'),
    'theano_today': ('theano_today',),
}


def modules(root):
    """{name: path} of the project's own modules."""
    found = {}
    for folder, folders, fnames in os.walk(root):
        folders[:] = [name for name in folders if name.isidentifier() and name != 'tests']
        for fname in fnames:
            path = os.path.relpath(os.path.join(folder, fname), root)
            name = path[:-3].replace(os.sep, '.')
            if fname.endswith('.py') and name.split('.')[0] in ROOMS:
                found[name.removesuffix('.__init__')] = os.path.join(root, path)
    return found


def imports(name, path, known):
    """[(module, line, whether it is imported when `name` is)] of the project that one imports."""
    with open(path) as f:
        tree = ast.parse(f.read())
    package = name if os.path.basename(path) == '__init__.py' else name.rpartition('.')[0]
    late = {node for function in ast.walk(tree)
            if isinstance(function, (ast.FunctionDef, ast.Lambda)) for node in ast.walk(function)}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package.split('.')[:len(package.split('.')) - node.level + 1]
            base = '.'.join((above if node.level else []) + [node.module] * bool(node.module))
            targets = [base + '.' + alias.name if base + '.' + alias.name in known else base
                       for alias in node.names]
        else:
            continue
        found += [(target, node.lineno, node not in late) for target in targets
                  if target.split('.')[0] in ROOMS]
    return found


def forbidden(root):
    """['file:line imports module', ...] of arrows that point the wrong way, and circles."""
    known = modules(root)
    wrong, graph = [], {}
    for name, path in known.items():
        allowed = ALLOWED[name.split('.')[0]]
        for target, line, at_once in imports(name, path, known):
            if not any(target == one or target.startswith(one + '.') for one in allowed):
                wrong.append(f'{os.path.relpath(path, root)}:{line} imports {target}')
            if at_once and target in known and target != name:
                graph.setdefault(name, set()).add(target)
    try:
        list(graphlib.TopologicalSorter(graph).static_order())
    except graphlib.CycleError as error:
        wrong.append('a circle: ' + ' -> '.join(error.args[1]))
    return wrong


def test_arrows_point_one_way():
    assert len(modules(ROOT)) > 50
    assert forbidden(ROOT) == []


@pytest.mark.parametrize('fname, line, found', [
    ('beyond/runs/new.py', 'import kfkd', 'imports kfkd'),
    ('beyond/new.py', 'def f():\n    from kfkd import load', 'imports kfkd'),
    ('data/new.py', 'from beyond import figures', 'imports beyond.figures'),
    ('data/new.py', 'from theano_today import nets', 'imports theano_today.nets'),
    ('theano_today/cpu/new.py', 'import data.tables', 'imports data.tables'),
    ('theano_today/nets/new.py', 'from ...beyond import figures', 'imports beyond.figures'),
    ('beyond/figures.py', 'from . import other', 'a circle: '),
])
def test_a_wrong_arrow_is_found(tmp_path, fname, line, found):
    good = {'kfkd.py': 'import theano_today, data.tables\nfrom beyond import figures\nimport kfkd',
            'beyond/__init__.py': '', 'beyond/figures.py': 'import data.tables\n',
            'beyond/other.py': 'from .figures import draw', 'beyond/runs/__init__.py': '',
            'data/__init__.py': '', 'data/tables.py': 'from theano_today.nets.files import replacing',
            'theano_today/__init__.py': '', 'theano_today/cpu/__init__.py': '',
            'theano_today/nets/__init__.py': '', 'theano_today/nets/files.py': 'from .. import nets'}
    for name, content in good.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    assert forbidden(str(tmp_path)) == []
    (tmp_path / fname).write_text(line)
    wrong, = forbidden(str(tmp_path))
    assert found in wrong and (fname in wrong or 'circle' in found)
