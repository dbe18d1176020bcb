"""How fast and how exact is an affine warp of faces, and how long does training wait for it?

    python tests/benchmarks/augmentation.py                 OpenCV, SciPy, NumPy, scikit-image
    python tests/benchmarks/augmentation.py --faces 512 --threads 1

Random maps of the deck's ranges and of the preset for upright faces move drawn faces. "error" is
the root mean square difference from a reference that is 8 times as fine: cubic splines are
evaluated at 8x8 places of each target pixel and averaged, which is the antialiased picture; in grey
values of 255, of the pixels at which all methods look inside the image. Times are of one face, in
microseconds, the median of the rounds; "transform" is a whole batch of AffineBatchIterator, labels
included.
"""
import argparse
import os
import sys
import time

import numpy as np
from scipy import ndimage

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, ROOT)
FINE = 8


def drawn_faces(n):
    from data import make_faces
    images, labels = make_faces.draw_faces(n)
    return (images[:, None] / np.float32(255), ((labels - 48) / 48).astype(np.float32))


def sources(matrices):
    """Maps from target to source pixels, (x, y) counted from the top left: (n, 2, 3)."""
    inverse = np.linalg.inv(matrices[:, :, :2])
    shift = 48 - inverse @ (48 + matrices[:, :, 2])[:, :, None]
    return np.concatenate([inverse, shift], axis=2)


def rows_first(source):
    """Matrix and offset for SciPy, which counts (row, column)."""
    return source[::-1, 1::-1], source[::-1, 2]


def scipy_linear(images, matrices):
    return np.stack([ndimage.affine_transform(image[0], *rows_first(source), order=1,
                                              mode='nearest')
                     for image, source in zip(images, sources(matrices))])[:, None]


def skimage_warp(images, matrices):
    from skimage.transform import warp
    out = []
    for image, source in zip(images, sources(matrices)):
        factor = np.linalg.norm(source[:, :2], 2)
        if factor > 1:
            image = ndimage.gaussian_filter(image, (0, (factor - 1) / 2, (factor - 1) / 2))
        out.append(warp(image[0], np.vstack([source, [0, 0, 1]]), order=1, mode='edge'))
    return np.stack(out)[:, None]


def numpy_linear(images, matrices):
    """Bilinear interpolation of the whole batch by indexing."""
    n = len(images)
    grid = np.stack(np.meshgrid(np.arange(96.), np.arange(96.))).reshape(2, -1)
    x, y = np.moveaxis(np.einsum('nij,jp->nip', sources(matrices)[:, :, :2], grid) +
                       sources(matrices)[:, :, 2:], 1, 0).clip(0, 95).astype(np.float32)
    left, top = np.minimum(x.astype(int), 94), np.minimum(y.astype(int), 94)
    dx, dy = x - left, y - top
    flat, place = images.reshape(n, -1), top * 96 + left
    corner = [np.take_along_axis(flat, place + step, 1) for step in (0, 1, 96, 97)]
    upper = corner[0] + dx * (corner[1] - corner[0])
    lower = corner[2] + dx * (corner[3] - corner[2])
    return (upper + dy * (lower - upper)).reshape(images.shape)


def opencv_blurred(images, matrices):
    """OpenCV, with scikit-image's filter against aliasing."""
    import cv2
    blurred = images.copy()
    for image, source in zip(blurred, sources(matrices)):
        factor = np.linalg.norm(source[:, :2], 2)
        if factor > 1.25:
            image[0] = cv2.GaussianBlur(image[0], (0, 0), (factor - 1) / 2,
                                        borderType=cv2.BORDER_REPLICATE)
    return ours(blurred, matrices)


def opencv_twice(images, matrices):
    """OpenCV: twice the size, then the mean of 2x2."""
    import cv2
    double = sources(matrices)
    double[:, :, 2] += double[:, :, :2].sum(axis=2) * -.25
    double[:, :, :2] /= 2
    return np.stack([cv2.resize(cv2.warpAffine(
        image[0], source, (192, 192), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE), (96, 96), interpolation=cv2.INTER_AREA)
        for image, source in zip(images, double)])[:, None]


def ours(images, matrices):
    from beyond.augmentation import warp
    return warp(images, matrices, (48, 48))


METHODS = {'beyond.augmentation.warp': ours, 'OpenCV, blurred first': opencv_blurred,
           'OpenCV, 2x2 samples': opencv_twice, 'NumPy indexing': numpy_linear,
           'SciPy': scipy_linear, 'scikit-image, blurred first': skimage_warp}


def reference(images, matrices):
    """Antialiased warp, and where it looked inside the image only."""
    steps = (np.arange(96 * FINE) + .5) / FINE - .5
    x, y = np.meshgrid(steps, steps)
    out, inside = [], []
    for image, source in zip(images, sources(matrices)):
        u, v = (row[0] * x + row[1] * y + row[2] for row in source)
        fine = ndimage.map_coordinates(image[0], [v, u], order=3, mode='nearest')
        out.append(fine.reshape(96, FINE, 96, FINE).mean(axis=(1, 3)))
        ok = (u >= 2) & (u <= 93) & (v >= 2) & (v <= 93)
        inside.append(ok.reshape(96, FINE, 96, FINE).all(axis=(1, 3)))
    return np.stack(out)[:, None], np.stack(inside)[:, None]


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--faces', type=int, default=256)
    parser.add_argument('--rounds', type=int, default=7)
    parser.add_argument('--threads', type=int, help="OpenCV's; its own choice if not given")
    options = parser.parse_args()

    import cv2
    from beyond.augmentation import AffineBatchIterator, PRESETS, affine_matrices
    if options.threads is not None:
        cv2.setNumThreads(options.threads)
    X, y = drawn_faces(options.faces)
    for preset in PRESETS:
        iterator = AffineBatchIterator(128, **PRESETS[preset])
        matrices = affine_matrices(**iterator.draw(len(X)))
        few = slice(0, 24)
        truth, inside = reference(X[few], matrices[few])
        print(f"preset '{preset}', OpenCV {cv2.__version__} with {cv2.getNumThreads()} threads")
        print('{:28}{:>10}{:>10}'.format('', 'us/face', 'error'))
        for name, method in METHODS.items():
            try:
                warped = method(X, matrices)
            except ImportError:
                print(f'{name:28} not installed')
                continue
            error = 255 * np.sqrt(np.mean((warped[few] - truth)[inside] ** 2))
            seconds = timed(lambda: method(X, matrices), options.rounds)
            print(f'{name:28}{seconds / len(X) * 1e6:10.0f}{error:10.2f}')
        for outside in 'resample', 'nan':
            iterator.outside = outside
            seconds = timed(lambda: iterator.transform(X[:128], y[:128]), options.rounds)
            title = f"transform, outside='{outside}'"
            print(f'{title:28}{seconds / 128 * 1e6:10.0f}')
        print()


def timed(function, rounds):
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return float(np.median(times))


if __name__ == '__main__':
    main()
