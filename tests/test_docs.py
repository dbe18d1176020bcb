"""What README.md and docs/ say of commands, code and files is true."""
import ast
import glob
import os
import re
import subprocess

import kfkd
import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PAGES = ['README.md', 'CONTRIBUTING.md', 'data/README.md'] + sorted(
    os.path.relpath(path, ROOT) for path in glob.glob(os.path.join(ROOT, 'docs', '*.md')))


def read(name):
    with open(os.path.join(ROOT, name)) as f:
        return f.read()


def test_first_two_code_blocks_are_one_line_each():
    blocks = re.findall(r'^```\n(.*?)^```', read('README.md'), flags=re.S | re.M)
    assert [block.count('\n') for block in blocks[:2]] == [1, 1]
    assert blocks[0].rstrip().endswith('kfkd.py') and 'pytest' in blocks[1]


@pytest.mark.parametrize('name, most', [
    ('kfkd.py', 500), ('README.md', 150), ('CONTRIBUTING.md', 60)] + [
    (page, 200) for page in PAGES if page.startswith('docs')])
def test_lengths(name, most):
    assert read(name).count('\n') <= most


def table(marker):
    """Rows of the table between the comments `marker` and 'end of ' + `marker` of slides.md."""
    text = read('docs/slides.md').split(f'<!-- {marker} -->')[1].split(f'<!-- end of {marker} -->')[0]
    rows = re.findall(r'^\| .* \| `(.*?)` \| \[.*?\]\((.*?)\) \|(.*)\|$', text, flags=re.M)
    assert len(rows) == text.count('\n') - 3
    return rows


@pytest.mark.parametrize('marker, least', [('slides', 20), ('slides of part 2', 20)])
def test_slides_point_to_their_code(marker, least):
    rows = table(marker)
    assert len(rows) >= least
    experiments = read('beyond/experiments.py')
    for code, name, commands in rows:
        assert code in read(os.path.normpath(os.path.join('docs', name))), f'{code} is not in {name}'
        for command in re.findall(r'-m beyond\.experiments ([\w-]+)', commands):
            function = f'def {command.replace("-", "_")}('
            assert '@experiment\n' + function in experiments, command


@pytest.mark.parametrize('page', PAGES)
def test_files_named_are_there(page):
    for name in re.findall(r'\]\(((?!http)[^)#]+)', read(page)):
        assert os.path.exists(os.path.join(ROOT, os.path.dirname(page), name)), name


def named_tests(page):
    """[(file of tests, words of the names of tests in it), ...] as a page names them."""
    return [(name, re.findall(r'`(\w+)`', words)) for name, words in
            re.findall(r'((?:\w+/)?test_\w+\.py)(?:\]\([^)]*\))?:((?:\s+`\w+`,?)+)', read(page))]


def test_tests_named_are_there():
    named = [pair for page in PAGES for pair in named_tests(page)]
    assert len(named) >= 100
    for fname, words in named:
        path, = glob.glob(os.path.join(ROOT, 'tests', '**', fname), recursive=True)
        functions = [node.name for node in ast.walk(ast.parse(read(path)))
                     if isinstance(node, ast.FunctionDef) and node.name.startswith('test_')]
        for word in words:
            assert any(word in function for function in functions), f'{word} in {fname}'


@pytest.mark.parametrize('page', PAGES)
def test_commands_named_are_there(page, capsys):
    """`python kfkd.py STEP` and `python -m MODULE`, `python FILE` in a page."""
    text = read(page)
    for words in re.findall(r'python kfkd\.py ((?:--config \S+ )?[a-z_]+)', text):
        with pytest.raises(SystemExit) as done:
            kfkd.main([*words.split(), '-h'])
        assert done.value.code == 0, words
        capsys.readouterr()
    for module in re.findall(r'python -m ([\w.]+)', text):
        if module.split('.')[0] in ('beyond', 'theano_today'):
            path = os.path.join(ROOT, module.replace('.', '/'))
            assert os.path.exists(path + '.py') or os.path.exists(path + '/__main__.py'), module
    for fname in re.findall(r'python ((?:tests|data)/[\w/]+\.py)', text):
        assert os.path.exists(os.path.join(ROOT, fname)), fname


@pytest.mark.parametrize('page', PAGES)
def test_constants_named_are_there(page):
    for name in re.findall(r'`(?:kfkd\.)?([A-Z][A-Z_]{3,})(?: = [^`]*)?`', read(page)):
        assert hasattr(kfkd, name) or name in ENVIRONMENT, name


ENVIRONMENT = {'THEANO_FLAGS', 'OMP_NUM_THREADS', 'THEANO_TODAY_CUDA', 'THEANO_TODAY_TORCH',
               'PYTHONPATH', 'KILLS', 'PIP_INDEX_URL', 'PIP_PROXY'}


def test_the_root_has_what_is_needed_and_nothing_else():
    """Of what is in the repository: no file that a tool has left, no list that belongs elsewhere."""
    done = subprocess.run(['git', 'ls-files', '--cached', '--others', '--exclude-standard'], cwd=ROOT,
                          capture_output=True, text=True)
    if done.returncode:
        pytest.skip('no repository')
    assert {name.split('/')[0] for name in done.stdout.split('\n') if name} - {'.ci', '.gitignore'} == {
        'kfkd.py', 'README.md', 'CONTRIBUTING.md', 'pyproject.toml', 'requirements.txt',
        'requirements', 'beyond', 'data', 'docs', 'tests', 'theano_today'}
