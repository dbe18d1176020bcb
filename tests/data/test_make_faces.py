"""The embedded data set: reproducible, in Kaggle's format, with Kaggle's statistics, labels exact."""
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from data import make_faces
from scipy.ndimage import center_of_mass

N_TRAIN, N_TEST = 72, 24


@pytest.fixture(scope='module')
def faces():
    return make_faces.draw_faces(160, seed=3)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('faces')
    make_faces.main([str(folder), '--train', str(N_TRAIN), '--test', str(N_TEST), '--seed', '5'])
    return folder


def points(labels):
    return {name: labels[:, 2 * i:2 * i + 2] for i, name in enumerate(make_faces.KEYPOINTS)}


def test_shapes_and_types(faces):
    images, labels = faces
    assert images.shape == (160, 96, 96) and images.dtype == np.uint8
    assert labels.shape == (160, 30) and labels.dtype == np.float32


def test_a_face_depends_on_seed_and_number_only(faces):
    for n in (3, 13):
        images, labels = make_faces.draw_faces(n, seed=3)
        assert np.array_equal(images, faces[0][:n]) and np.array_equal(labels, faces[1][:n])


def test_many_faces_are_drawn_on_all_cores(faces, monkeypatch):
    monkeypatch.setattr(make_faces, 'MANY', 20)
    images, labels = make_faces.draw_faces(21, seed=3)
    assert np.array_equal(images, faces[0][:21]) and np.array_equal(labels, faces[1][:21])


def test_as_a_program_it_draws_on_all_cores_too(tmp_path):
    many = str(make_faces.MANY)
    subprocess.run([sys.executable, make_faces.__file__, 'faces', '--train', many, '--test', '1'],
                   cwd=tmp_path, check=True)
    labels = pd.read_csv(tmp_path / 'faces' / 'training.csv', usecols=make_faces.ALWAYS)
    expected = make_faces.draw_faces(3)[1][:, :2]
    assert len(labels) == make_faces.MANY
    assert np.allclose(labels[['left_eye_center_x', 'left_eye_center_y']][:3], expected, atol=1e-4)


def test_seeds_and_parts_are_independent(faces):
    for seed, part in ((4, 0), (3, 1)):
        _, labels = make_faces.draw_faces(8, seed, part)
        # not even one face of the other series reappears, such as the next block's
        assert not (labels[:, None] == faces[1][None]).all(-1).any()


def test_no_faces():
    images, labels = make_faces.draw_faces(0)
    assert images.shape == (0, 96, 96) and labels.shape == (0, 30)


def test_labels_lie_in_the_image(faces):
    assert faces[1].min() >= 0 and faces[1].max() <= 95


def test_label_statistics(faces):
    mean = {name: xy.mean(0) for name, xy in points(faces[1]).items()}
    assert mean['left_eye_center'] == pytest.approx([65, 38], abs=2)
    assert mean['right_eye_center'] == pytest.approx([31, 38], abs=2)
    assert mean['nose_tip'] == pytest.approx([48, 60], abs=2.5)
    assert mean['mouth_center_bottom_lip'] == pytest.approx([48.5, 79], abs=2)
    assert 3.5 < np.sqrt(faces[1].var(0).mean()) < 4.5


def test_left_is_larger_x_and_faces_are_upright(faces):
    at = points(faces[1])
    for part in ('eye_center', 'eye_outer_corner', 'eyebrow_outer_end'):
        assert (at[f'left_{part}'][:, 0] > at[f'right_{part}'][:, 0]).all()
    assert (at['mouth_left_corner'][:, 0] > at['mouth_right_corner'][:, 0]).all()
    assert (at['left_eye_outer_corner'][:, 0] > at['left_eye_inner_corner'][:, 0]).mean() > .98
    eyes = (at['left_eye_center'] + at['right_eye_center']) / 2
    assert (eyes[:, 1] < at['nose_tip'][:, 1]).all()
    assert (at['mouth_center_top_lip'][:, 1] < at['mouth_center_bottom_lip'][:, 1]).all()


def test_images_vary_like_photographs(faces):
    images = faces[0].astype(float)
    brightness, contrast = images.mean((1, 2)), images.std((1, 2))
    assert 85 < brightness.mean() < 120 and 20 < brightness.std() < 45
    assert 35 < contrast.mean() < 55
    assert contrast.min() > 4                                       # no empty image


@pytest.fixture(scope='module')
def block():
    return make_faces._draw_block(0, 0, 0)


@pytest.mark.parametrize('point', range(len(make_faces.KEYPOINTS)), ids=make_faces.KEYPOINTS)
def test_labels_are_where_the_surface_is(block, point):
    """A bright spot on the skin at the keypoint appears in the image at the label."""
    plain, labels = block
    marked, same = make_faces._draw_block(0, 0, 0, marked=[point])
    assert np.array_equal(labels, same)
    errors = []
    for change, label in zip(marked.astype(float) - plain, labels):
        change = np.maximum(change - 4, 0)
        if change.sum() > 150:                  # elsewhere it is hidden, or the picture too dark
            y, x = center_of_mass(change)
            errors.append(np.hypot(x - label[2 * point], y - label[2 * point + 1]))
    assert len(errors) >= 3
    assert np.median(errors) < .5


def test_training_csv(folder):
    table = pd.read_csv(folder / 'training.csv')
    assert list(table.columns) == list(make_faces.COLUMNS) + ['Image']
    assert len(table) == N_TRAIN
    counts = table[list(make_faces.COLUMNS)].notna().sum(axis=1)
    assert set(counts) == {8, 30}
    assert .2 < (counts == 30).mean() < .4
    always = table.columns[table.notna().all()]
    assert set(always) == set(make_faces.ALWAYS) | {'Image'}

    images, labels = make_faces.draw_faces(N_TRAIN, seed=5)
    read = np.stack([np.array(row.split(), int) for row in table['Image']])
    assert np.array_equal(read.reshape(-1, 96, 96), images)
    error = np.abs(table[list(make_faces.COLUMNS)].to_numpy() - labels)
    assert np.nanmax(error) < 1e-4


@pytest.mark.parametrize('complete, expected', [(0, 0), (1, 20)])
def test_share_of_rows_with_all_points(tmp_path, complete, expected):
    make_faces.main([str(tmp_path), '--train', '20', '--test', '1', '--complete', str(complete)])
    table = pd.read_csv(tmp_path / 'training.csv')
    assert len(table) == 20 and len(table.dropna()) == expected
    assert table[list(make_faces.ALWAYS)].notna().all(axis=None)
    # Which points are given is all that differs: the faces are the same.
    images, labels = make_faces.draw_faces(20)
    assert table['Image'][19] == ' '.join(map(str, images[19].ravel()))
    np.testing.assert_allclose(table['nose_tip_x'], labels[:, 20], atol=1e-3)


def test_test_csv_and_true_labels(folder):
    table, truth = pd.read_csv(folder / 'test.csv'), pd.read_csv(folder / 'test-labels.csv')
    assert list(table.columns) == ['ImageId', 'Image']
    assert list(truth.columns) == ['ImageId'] + list(make_faces.COLUMNS)
    assert list(table['ImageId']) == list(truth['ImageId']) == list(range(1, N_TEST + 1))
    assert truth.notna().all().all()
    _, labels = make_faces.draw_faces(N_TEST, seed=5, part=1)
    assert np.allclose(truth[list(make_faces.COLUMNS)], labels, atol=1e-4)


def test_lookup_table(folder):
    table = pd.read_csv(folder / 'IdLookupTable.csv')
    assert list(table.columns) == ['RowId', 'ImageId', 'FeatureName', 'Location']
    assert list(table['RowId']) == list(range(1, len(table) + 1))
    assert table['Location'].isna().all()
    asked = table.groupby('ImageId')['FeatureName'].apply(list)
    assert list(asked.index) == list(range(1, N_TEST + 1))
    everything, sure = list(make_faces.COLUMNS), list(make_faces.ALWAYS)
    assert all(names in (everything, sure) for names in asked)
    assert everything in list(asked) and sure in list(asked)


def test_the_same_seed_writes_the_same_bytes(folder, tmp_path):
    make_faces.write_csvs(tmp_path, N_TRAIN, N_TEST, seed=5)
    names = sorted(path.name for path in folder.iterdir())
    assert names == ['IdLookupTable.csv', 'test-labels.csv', 'test.csv', 'training.csv']
    for name in names:
        assert (folder / name).read_bytes() == (tmp_path / name).read_bytes()
