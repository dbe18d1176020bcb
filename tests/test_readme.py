"""What the README says of commands and lines is true."""
import os
import re

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

with open(os.path.join(ROOT, 'README.md')) as f:
    README = f.read()
with open(os.path.join(ROOT, 'kfkd.py')) as f:
    LINES = f.read().split('\n')


def test_first_two_code_blocks_are_one_line_each():
    blocks = re.findall(r'^```\n(.*?)^```', README, flags=re.S | re.M)
    assert [block.count('\n') for block in blocks[:2]] == [1, 1]
    assert blocks[0].rstrip().endswith('kfkd.py') and 'pytest' in blocks[1]


def test_slides_point_to_their_lines():
    rows = re.findall(r'^\| .* \| `(.*?)` \| \[(\d+)\]\(kfkd\.py#L(\d+)\)', README, flags=re.M)
    assert len(rows) >= 20
    for code, line, anchor in rows:
        there = [n for n, text in enumerate(LINES, 1) if code in text]
        assert line == anchor and int(line) in there, '{}: see line {}'.format(code, there)


def test_slides_of_part_2_point_to_their_code():
    table = README.split('<!-- slides of part 2 -->')[1].split('<!-- end of slides of part 2 -->')[0]
    rows = re.findall(r'^\| .* \| `(.*?)` \| \[.*?\]\((.*?)\) \|(.*)\|$', table, flags=re.M)
    assert len(rows) == table.count('\n') - 3
    with open(os.path.join(ROOT, 'beyond', 'experiments.py')) as f:
        experiments = f.read()
    for code, name, commands in rows:
        with open(os.path.join(ROOT, name)) as f:
            assert code in f.read(), '{} is not in {}'.format(code, name)
        for command in re.findall(r'-m beyond\.experiments ([\w-]+)', commands):
            function = 'def {}('.format(command.replace('-', '_'))
            assert '@experiment\n' + function in experiments, command


def test_files_named_are_there():
    for name in re.findall(r'\]\(((?!http)[^)#]+)', README):
        assert os.path.exists(os.path.join(ROOT, name)), name
