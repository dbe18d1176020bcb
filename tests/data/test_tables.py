"""Tables of faces by themselves; what is wrong in a file is tested through kfkd (test_bad_input.py)."""
import io
import zipfile

import numpy as np
import pandas as pd
import pytest
from data import make_faces, tables
from theano_today.nets.files import FileError


@pytest.fixture
def training(tmp_path, monkeypatch):
    """A file of three faces, and a function that changes one of its cells."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.RandomState(0)
    table = pd.DataFrame(rng.uniform(10, 86, (3, 30)).round(1), columns=tables.COLUMNS)
    table['Image'] = [' '.join(map(str, image)) for image in rng.randint(0, 256, (3, 9216))]

    def write(row=None, column=None, value=None):
        changed = table.astype(object)
        if column:
            changed.loc[row, column] = value
        changed.to_csv('training.csv', index=False)
        tables._tables.clear()

    write()
    return write


def test_columns_of_points():
    assert tables.xy('nose_tip', 'left_eye_center') == (
        'nose_tip_x', 'nose_tip_y', 'left_eye_center_x', 'left_eye_center_y')
    assert len(tables.COLUMNS) == 30 and tables.COLUMNS == make_faces.COLUMNS


def test_the_farthest_cell_is_named_if_it_is_absurdly_far(training):
    assert tables.farthest_cell('training.csv') is None
    training(1, 'nose_tip_x', 1e6)
    assert tables.farthest_cell('training.csv') == \
        'training.csv, line 3, column nose_tip_x: 1e+06'
    training(2, 'Image', ' '.join(['5000'] * 9216))
    assert tables.farthest_cell('training.csv') == 'training.csv, line 4, column Image: 5000'


def test_what_is_read_is_the_callers_own(training):
    tables.read_faces('training.csv').loc[0, 'nose_tip_x'] = -1
    assert tables.read_faces('training.csv').loc[0, 'nose_tip_x'] >= 10


@pytest.mark.parametrize('faces, share, words', [
    (4, 0.2, '4 rows of f.csv are too few to keep 20% for validation'),
    (0, 0, 'too few'), (10, 0.7, 'EVAL_SIZE is the share'), (10, -1, 'EVAL_SIZE is the share')])
def test_too_few_faces(faces, share, words):
    with pytest.raises(FileError, match=words):
        tables.check_enough(range(faces), share, 'f.csv')


def test_enough_faces():
    for faces, share in (5, 0.2), (1, 0), (2, 0.5), (3, 0.4):
        tables.check_enough(range(faces), share, 'f.csv')


def test_rows_without_ids_are_numbered(training):
    table = pd.read_csv('training.csv')
    table[['Image']].to_csv('test.csv', index=False)
    assert list(tables.image_ids('test.csv')) == [1, 2, 3]
    table[['Image']].assign(ImageId=[7, 5, 9]).to_csv('test.csv', index=False)
    tables._tables.clear()
    assert list(tables.image_ids('test.csv')) == [7, 5, 9]


def test_score_is_the_error_beside_that_of_the_mean(training, capsys):
    predictions = pd.DataFrame({'nose_tip_x': [3., 5.], 'nose_tip_y': [1., 1.]}, index=[1, 2])
    pd.DataFrame({'ImageId': [2, 1, 1], 'nose_tip_x': [2., 3., 99.], 'nose_tip_y': [5., np.nan, 0]}
                 ).to_csv('truth.csv', index=False)
    mean = pd.read_csv('training.csv')[['nose_tip_x', 'nose_tip_y']].mean()
    found = tables.score(predictions, 'truth.csv', 'test.csv', 'training.csv')
    of_mean = np.sqrt(((mean.iloc[0] - 3) ** 2 + (mean.iloc[0] - 2) ** 2 + (mean.iloc[1] - 5) ** 2) / 3)
    assert found == dict(test_rmse=round(np.sqrt((0 + 9 + 16) / 3), 4),
                         test_rmse_of_mean=round(of_mean, 4))
    assert f'Test RMSE: {found["test_rmse"]:.3f} pixels' in capsys.readouterr().out
    with pytest.raises(FileError, match='has no row for the ImageId 3 of test.csv'):
        tables.score(predictions.set_axis([1, 3]), 'truth.csv', 'test.csv', 'training.csv')


def test_drawn_faces_are_drawn_once(tmp_path):
    files = make_faces.drawn(str(tmp_path / 'faces'), 9, 3)
    assert [len(pd.read_csv(fname)) for fname in files[:2]] == [9, 3]
    before = [open(fname).read() for fname in files]
    assert make_faces.drawn(str(tmp_path / 'faces'), 50, 50) == files
    assert [open(fname).read() for fname in files] == before


def pack(path, **members):
    """Write a zip file; the names of its members have _ in place of their dot."""
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name.replace('_', '.'), content)


@pytest.mark.parametrize('packed', ['training.zip', 'training.csv.zip', tables.ALL_IN_ONE, 'twice'])
def test_kaggles_zip_files_are_read_as_they_are(training, tmp_path, packed):
    expected = tables.read_faces('training.csv')
    content = (tmp_path / 'training.csv').read_bytes()
    (tmp_path / 'training.csv').unlink()
    assert not tables.are_there('training.csv', 'test.csv')
    if packed == 'twice':
        inner = io.BytesIO()
        pack(inner, training_csv=content)
        pack(tables.ALL_IN_ONE, test_zip=b'', training_zip=inner.getvalue())
    else:
        pack(packed, training_csv=content)
    assert tables.are_there('training.csv')
    found = tables.read_faces(str(tmp_path / 'training.csv'))
    pd.testing.assert_frame_equal(found, expected)
    with tables.open_table('training.csv') as (f, size):
        assert f.read() == content and size == len(content)


def test_what_lies_unpacked_beside_a_zip_file_is_taken(training):
    pack('training.zip', training_csv=b'another')
    assert tables.zip_of('training.csv') is None and len(tables.read_faces('training.csv')) == 3


def test_zip_files_that_cannot_be_used(training, tmp_path):
    content = (tmp_path / 'training.csv').read_bytes()
    (tmp_path / 'training.csv').unlink()
    pack('training.zip', training_csv=content)
    with pytest.raises(FileError, match='training.csv in .*training.zip has .* GB'):
        tables.read_table('training.csv', ['Image'], largest=1000)
    whole = (tmp_path / 'training.zip').read_bytes()
    for broken in whole[:len(whole) // 2], whole[:300] + bytes(2000) + whole[2300:], b'', b'<html>':
        (tmp_path / 'training.zip').write_bytes(broken)
        with pytest.raises(FileError, match='training.zip cannot be unpacked: .*again'):
            tables.read_table('training.csv', ['Image'])
    pack('training.zip', readme_txt=b'')
    with pytest.raises(FileError, match='training.zip has no training.csv in it'):
        tables.read_table('training.csv', ['Image'])
    pack(tables.ALL_IN_ONE, readme_txt=b'')
    (tmp_path / 'training.zip').unlink()
    with pytest.raises(FileError, match='training.csv is not there'):
        tables.read_table('training.csv', ['Image'])
