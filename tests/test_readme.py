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


def test_files_named_are_there():
    for name in re.findall(r'\]\(((?!http)[^)#]+)', README):
        assert os.path.exists(os.path.join(ROOT, name)), name
