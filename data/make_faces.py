"""Draw grey faces with exactly known keypoints, in the format of Kaggle's facial-keypoints-detection.

Kaggle's files can only be downloaded with an account.  This program draws a data set of the same
shape instead, so that everything else runs at once, on any machine::

    python data/make_faces.py data/faces                  # 4,000 training rows, 500 test rows
    python data/make_faces.py /tmp/faces --train 200 --test 50 --seed 7

It writes four files into the folder:

    training.csv        30 columns of positions in pixels, then Image: 9,216 grey values, row by row
    test.csv            ImageId, Image
    IdLookupTable.csv   RowId, ImageId, FeatureName, Location (empty): what a submission must answer
    test-labels.csv     ImageId and the 30 true positions of the test faces, for scoring at home

As in Kaggle's files, about 30 % of the training rows have all 15 points and the others only the eye
centres, the nose tip and the bottom lip; `left` is the person's left, the larger x; pixel centres
have whole coordinates.  A net trained on these faces alone also finds the points of photographs.

How a face is drawn.  A head is a height field in its own frame: an oval whose outline and profile
are tables, with Gaussian bumps for brow ridge, sockets, nose, lips and chin.  It is turned, nodded
and rolled, and seen by an orthographic camera: for every pixel, `_cast` finds where the ray meets the
surface.  There the albedo is a sum of painted parts (beard, lips, lids, iris, brows, hair, ...), each
a formula of the position on the face in mm, and the light is a lamp with cast shadows plus a sky.
Background, neck and clothes lie behind, glasses and occluders in front; then come tone curve, blur
and noise.  The keypoints are points of the same surface sent through the same projection, and
therefore exact.  Every size, tone and angle is random (see `_parameters`); sizes are in mm.

Faces are drawn in blocks of `BLOCK`, and each block has a random generator of its own: a face depends
on the seed and its number, never on how many others are drawn.
"""
import argparse
import os
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from scipy.ndimage import gaussian_filter, uniform_filter
from tqdm import tqdm

SIZE = 96               # pixels
BLOCK = 8               # faces drawn together: enough to amortise NumPy's calls, few for the cache
MANY = 500              # faces from which on it pays to start a process for each core
COMPLETE = .3           # share of training rows with all points: 2,140 of 7,049 at Kaggle
MOSTLY = .8             # the same for a run of minutes: a whole row takes no longer to draw

NAMES = 'training.csv', 'test.csv', 'IdLookupTable.csv', 'test-labels.csv'

KEYPOINTS = (
    'left_eye_center', 'right_eye_center', 'left_eye_inner_corner', 'left_eye_outer_corner',
    'right_eye_inner_corner', 'right_eye_outer_corner', 'left_eyebrow_inner_end',
    'left_eyebrow_outer_end', 'right_eyebrow_inner_end', 'right_eyebrow_outer_end', 'nose_tip',
    'mouth_left_corner', 'mouth_right_corner', 'mouth_center_top_lip', 'mouth_center_bottom_lip')


def xy(*points):
    """Return the label columns of keypoints."""
    return tuple(f'{point}_{axis}' for point in points for axis in 'xy')


COLUMNS = xy(*KEYPOINTS)
ALWAYS = tuple(c for c in COLUMNS if c.startswith(
    ('left_eye_center', 'right_eye_center', 'nose_tip', 'mouth_center_bottom_lip')))

# The frame of the head, in mm: u to the person's left (right in the image), v down, w to the front,
# origin between the eyes.  The surface is tabulated at every STEP, about 1.4 pixels.
STEP = 2.5
U_MAX, V_MIN, V_MAX = 95., -142.5, 137.5
AXIS = -80.             # w of the axis of the head, halfway from its front to its back
BOUND = 98, 172, 130    # half axes (mm) of an ellipsoid about any head: rays begin on it
MARCH = 8               # steps of a ray from there to the middle of the head

# Profile (w) and half width (u) of a head at heights v, from crown to chin; the eyes are at v = 0.
PROFILE_V = -138, -132, -120, -100, -70, -40, -20, 0, 20, 45, 60, 75, 95, 110, 120, 128
PROFILE_W = -70, -50, -34, -17, -3, 4, 5, 0, 0, 2, 6, 7, 6, 4, -8, -45
PROFILE_U = 5, 36, 54, 67, 74, 76, 76, 75, 73, 69, 66, 61, 50, 38, 26, 8


def draw_faces(n, seed=0, part=0):
    """Draw n faces.

    Parameters
    ----------
    n : int
        Number of faces.
    seed : int
        The same seed gives the same faces; the first faces are the same for every n.
    part : int
        Number of an independent series of faces with this seed (0: training, 1: test).

    Returns
    -------
    images : uint8 array (n, 96, 96)
    labels : float32 array (n, 30)
        x and y in pixels of the 15 `KEYPOINTS`, in the order of `COLUMNS`.
    """
    images, labels = np.empty((n, SIZE, SIZE), np.uint8), np.empty((n, len(COLUMNS)), np.float32)
    starts = tqdm(range(0, n, BLOCK), 'drawing', unit=' faces', unit_scale=BLOCK, delay=1,
                  leave=False, disable=None)  # nothing but on a terminal
    blocks = Parallel(-1 if n >= MANY else 1, return_as='generator')(
        delayed(_draw_block)(seed, part, block) for block in range(len(starts)))
    for start, block in zip(starts, blocks):
        some = slice(start, min(start + BLOCK, n))      # blocks are whole, even if the last is cut
        images[some], labels[some] = (values[:some.stop - start] for values in block)
    return images, labels


def _draw_block(seed, part, block, marked=()):
    """Draw block number `block`: images (BLOCK, 96, 96) and labels (BLOCK, 30).

    `marked` keypoints (indices) get a bright spot on the skin: the tests compare where it appears
    in the image with the label.
    """
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(part, block)))
    p = _parameters(rng, BLOCK)
    height = _surface(p, rng)
    u, v = np.moveaxis(_keypoints(p), -1, 0)
    labels = _place(p, u, v, _lookup(height[..., None], u, v)[..., 0] + AXIS)

    rays = _rays(p)
    u_hit, v_hit, w_hit, hit = _cast(rays, height)
    noise = [_smooth_noise(rng, BLOCK, *cells) for cells in ((24, 60), (14, 18), (45, 45))]
    light, gloss = np.moveaxis(_lookup(_light(p, height, rng), u_hit, v_hit), -1, 0)
    albedo, hair, glint = _paint_head(p, u_hit, v_hit, w_hit, noise, labels)
    for k in marked:
        spot = np.hypot(u_hit - u[:, k, None, None], v_hit - v[:, k, None, None])
        albedo += .6 * _clip((3 - spot) / 1.5, 0, 1)
    head = albedo * light + .5 * p.shine * gloss * (1 - hair) + .5 * glint

    image = _paint_behind(p, rays, noise, rng)
    _mix(image, head, hit)
    _paint_glasses(p, image, rays)
    _paint_occluders(image, rng)
    return _photograph(image, rng), labels.reshape(BLOCK, -1)


def _parameters(rng, n):
    """Random parameters of n faces: arrays (n, 1, 1), so that they broadcast over pixels.

    Means and spreads aim at the statistics of labelled photographs: the mean positions of the points,
    their standard deviations (2 to 7 px), the brightness and contrast of the images.
    """
    p = SimpleNamespace()

    def normal(mean, std, low=-np.inf, high=np.inf):
        return np.clip(rng.normal(mean, std, (n, 1, 1)), low, high).astype('f4')

    def uniform(low, high):
        return rng.uniform(low, high, (n, 1, 1)).astype('f4')

    def chance(share):
        return (rng.random((n, 1, 1)) < share).astype('f4')

    # pose; p.x0, p.y0: where the crop wants the middle of the eyes
    p.yaw = normal(0, 17, -45, 45)
    p.rotation = _rotation(p.yaw, normal(0, 8, -22, 22), normal(0, 7.5, -25, 25))
    p.scale = normal(.545, .05, .42, .7)              # px per mm
    p.x0, p.y0 = normal(48, 2.), normal(38, 2.)

    # identity
    p.width, p.jaw = normal(1, .055, .85, 1.15), normal(1, .07, .82, 1.18)
    p.chin = normal(.94, .05, .82, 1.08)
    p.eye_u, p.eye_half = normal(31.5, 1.6), normal(12.6, 1.0)
    p.eye_tilt = normal(-.06, .06)
    p.brow_v = normal(-18.5, 2.6, -26, -12)
    p.brow_in, p.brow_out = normal(16.5, 2.5, 9, 24), normal(56, 3.3)
    p.brow_arch, p.brow_drop = normal(6, 2), normal(2.5, 2.5)
    p.brow_thick, p.brow_dark = uniform(3.5, 8), uniform(.5, 1)
    p.nose_v, p.nose_w = normal(40, 3, 32, 48), normal(22, 3.5, 13, 31)
    p.nose_wide = normal(1, .12, .75, 1.35)
    p.lip_v = normal(65, 2.5)
    p.lip_half = normal(25, 2.3)
    p.lip_up, p.lip_low = normal(5.3, 1.4, 2.5, 10), normal(10.2, 1.8, 5, 15)
    p.ridge, p.socket, p.cheek = normal(2.5, 2), normal(5.5, 2.2), normal(5, 2)

    # expression
    smile = np.clip(rng.normal(.25, .55, (n, 1, 1)), -.5, 1.3).astype('f4')
    p.smile = smile
    talk = chance(.45) * np.abs(normal(0, 8))
    p.gap = np.minimum(talk + chance(.6) * np.maximum(smile, 0) * uniform(1, 8), 24)
    p.lip_half = p.lip_half * (1 + .14 * np.maximum(smile, 0)) * (1 - .012 * talk)
    p.corner = -4.5 * smile + .1 * p.gap + normal(-.6, 1.2)
    p.jaw_drop = p.gap * .8
    p.lip_up = p.lip_up * (1 - .25 * np.maximum(smile, 0))
    p.lid = normal(4.6, 1.1, 1.5, 7.) * (1 - .25 * np.maximum(smile, 0))
    p.lid = np.where(rng.random((n, 1, 1)) < .06, np.float32(.4), p.lid)
    p.lid_low = .5 * p.lid + 1
    p.gaze_u, p.gaze_v = normal(0, 2.6, -6, 6), normal(0, 1.2, -2.5, 2.5)
    p.brow_v = p.brow_v + normal(0, 1.5)
    p.frown = normal(0, 1.8)

    # albedo (linear light)
    p.skin = np.clip(rng.lognormal(np.log(.36), .42, (n, 1, 1)), .06, .62).astype('f4')
    dark = chance(.6)
    p.hair = dark * uniform(.012, .06) + (1 - dark) * uniform(.05, .5)
    p.hair = np.where(p.skin < .2, np.minimum(p.hair, .05), p.hair)
    p.brow = .15 * np.minimum(p.hair, .3) + p.skin * uniform(.1, .5)
    p.lips = p.skin * uniform(.35, .85)
    p.iris = uniform(.01, .1)
    p.sclera = uniform(.28, .6)
    p.liner = uniform(.45, .97)
    p.crease, p.bag, p.fold = uniform(.05, .6), uniform(0, .4), uniform(0, .5)
    p.wrinkle = uniform(0, .3) * chance(.5)
    p.nostril = uniform(.4, .9)
    p.teeth = uniform(.3, .65)

    # hair
    kind = rng.random((n, 1, 1))
    p.long = (kind < .36).astype('f4')
    bald = (kind > .9).astype('f4')
    p.volume = (1 - bald) * np.abs(normal(6, 6, 0, 25))
    p.hair_v = normal(-69, 11, -95, -36) - 45 * bald
    p.hair_part, p.hair_bend = normal(0, .22), normal(.010, .008, -.004, .03)
    p.hair_side = normal(-38, 9, -60, -18) - 30 * bald
    p.hair_low = np.where(p.long > 0, np.float32(300), normal(5, 15))
    p.hair_end, p.hair_flare = uniform(30, 180), normal(88, 8) + normal(0, 5)
    p.hair_u = uniform(52, 78)                            # long hair falls over the cheeks from here
    p.streak = uniform(.15, .6)
    hat = chance(.04) > 0
    p.hair_v = np.where(hat, normal(-46, 8), p.hair_v)
    p.hair_bend = np.where(hat, np.float32(.002), p.hair_bend)
    p.hair = np.where(hat, uniform(.01, .6), p.hair)

    beard = chance(.28)
    p.beard = beard * uniform(.05, .95)
    p.beard_line = uniform(18, 50)
    p.beard_chin = chance(.35) * beard
    p.moustache = np.maximum(chance(.1), beard * chance(.8)) * uniform(.2, .95)

    p.glasses = chance(.2)
    p.shades = chance(.08)
    p.frame = uniform(.0, .25)
    p.frame_thick = uniform(.7, 2.4)
    p.lens_half_u, p.lens_half_v = uniform(19, 25), uniform(11, 20)
    p.lens_power = rng.choice([2., 3., 5.], (n, 1, 1)).astype('f4')
    p.lens_v, p.lens_shine = normal(3, 3), uniform(0, .35) * chance(.5)

    # light: a lamp, usually above the camera; shares of lamp and sky
    azimuth, elevation = np.radians(normal(0, 42, -95, 95)), np.radians(normal(32, 20, -15, 75))
    p.light = np.stack([np.sin(azimuth) * np.cos(elevation), -np.sin(elevation),
                        np.cos(azimuth) * np.cos(elevation)], -1)[:, 0, 0]
    p.key, p.shine = uniform(.4, 2.6), uniform(0, .22)
    p.fill = uniform(-.3, .3)
    p.occlusion = uniform(.03, .12)
    return p


def _rotation(yaw, pitch, roll):
    """Rotation matrices (n, 3, 3) from the head's frame to the camera's.

    The camera has x to the right, y down, and z towards itself; angles are degrees, (n, 1, 1).
    """
    a, b, c = (np.radians(angle[:, 0, 0].astype('f8')) for angle in (yaw, pitch, roll))
    one, zero = np.ones_like(a), np.zeros_like(a)

    def matrix(*rows):
        return np.array(rows).transpose(2, 0, 1)
    yaw = matrix([np.cos(a), zero, np.sin(a)], [zero, one, zero], [-np.sin(a), zero, np.cos(a)])
    pitch = matrix([one, zero, zero], [zero, np.cos(b), np.sin(b)], [zero, -np.sin(b), np.cos(b)])
    roll = matrix([np.cos(c), -np.sin(c), zero], [np.sin(c), np.cos(c), zero], [zero, zero, one])
    return (roll @ pitch @ yaw).astype('f4')


def _keypoints(p):
    """u and v in mm of the `KEYPOINTS`, (n, 15, 2)."""
    e, half, lift = p.eye_u, p.eye_half, p.eye_tilt * p.eye_half
    zero = 0 * e
    inner_v, outer_v = p.brow_v + p.frown, p.brow_v + p.brow_drop
    top, bottom = p.lip_v - p.gap / 2 - p.lip_up, p.lip_v + p.gap / 2 + p.lip_low
    corner = p.lip_v + p.corner
    mid = (p.lid_low - p.lid) / 2
    points = [(e, mid), (-e, mid), (e - half, -lift), (e + half, lift), (half - e, -lift),
              (-e - half, lift), (p.brow_in, inner_v), (p.brow_out, outer_v),
              (-p.brow_in, inner_v), (-p.brow_out, outer_v), (zero, p.nose_v),
              (p.lip_half, corner), (-p.lip_half, corner), (zero, top), (zero, bottom)]
    return np.array(points, 'f4')[..., 0, 0].transpose(2, 0, 1)


def _surface(p, rng):
    """How far the surface is before the axis of the head, (n, rows, cols) in mm; negative outside."""
    u = np.arange(0, U_MAX + STEP / 2, STEP, dtype='f4')[None, None]        # one half of the face
    v = np.arange(V_MIN, V_MAX + STEP / 2, STEP, dtype='f4')[None, :, None]
    # v in the tables: the jaw drops with the open mouth, hair raises the crown
    vn = np.where(v > 0, v / (p.chin + p.jaw_drop / 115 * _clip((v - 40) / 60, 0, 1)), v)
    vn = np.where(v < -40, -40 + (v + 40) * 98 / (98 + .7 * p.volume), vn)
    base = np.interp(vn, PROFILE_V, PROFILE_W).astype('f4') - AXIS
    half = np.interp(vn, PROFILE_V, PROFILE_U).astype('f4') * p.width
    half *= 1 + (p.jaw - 1) * _clip(v / 60, 0, 1)
    half += p.volume * _clip((-v - 30) / 40, 0, 1) * (vn > PROFILE_V[0])
    # a horizontal cut is a superellipse; linear outside, so that the outline can be interpolated
    q = 1 - (u / half) ** 2.4
    h = base * np.where(q > 0, np.abs(q) ** (1 / 2.4), q)

    tip, lip, k = p.nose_v, p.lip_v, p.nose_wide
    # brows, sockets, eyeballs, cheekbones
    h += p.ridge * _bump(u, v, 20, p.brow_v + 1, 20, 9)
    h -= p.socket * _bump(u, v, p.eye_u - 2, -2, 16, 11)
    h += 5 * _bump(u, v, p.eye_u, 1, 11, 8)
    h += p.cheek * (1 + .5 * p.smile) * _bump(u, v, 44, 30 - 4 * p.smile, 20, 15)
    # nose: bridge, tip, wings, base
    t = np.maximum((v + 14) / (tip + 14), 0)
    ridge = np.where(v < tip, t ** 1.5, np.exp(-((v - tip) / 8) ** 2))
    h += p.nose_w * ridge * np.exp(-(u / ((6 + 4.5 * np.minimum(t, 1)) * k)) ** 2)
    h += 5 * _bump(u, v, 0, tip - 1, 9 * k, 8)
    h += 9 * _bump(u, v, 13.5 * k, tip + 3, 6, 6.5)
    h += 6 * _bump(u, v, 0, tip + 9, 13, 7)
    # the teeth's arch, upper lip, lower lip, the hollow below it, chin; folds beside the mouth
    h += 6 * _bump(u, v, 0, lip, 30, 18)
    h += 3.5 * _bump(u, v, 0, lip - 3.5 - p.gap / 2, 17, 4)
    low_v = lip + p.gap / 2
    h += 4.5 * _bump(u, v, 0, low_v + 4, 15, 4.5)
    h -= 2 * _bump(u, v, 0, low_v + 17, 16, 5)
    h += 4 * _bump(u, v, 0, 106 * p.chin + p.jaw_drop, 17, 11)
    fold_u = 15 + (v - tip) * .45 * (1 + .3 * p.smile)
    h -= (1 + 2.5 * np.maximum(p.smile, 0)) * np.exp(-((u - fold_u) / 4) ** 2
                                                     - ((v - (tip + 16)) / 16) ** 2)
    h = np.concatenate([h[..., :0:-1], h], -1)
    h += .8 * _smooth_noise(rng, len(h), 7, 5, *h.shape[1:])              # no face is symmetric
    return np.ascontiguousarray(h)


def _project(p, u, v, w):
    """Pixels x, y of points in the frame of the head."""
    r = p.rotation[..., None, None]
    x = (r[:, 0, 0] * u + r[:, 0, 1] * v + r[:, 0, 2] * w) * p.scale + p.x0
    y = (r[:, 1, 0] * u + r[:, 1, 1] * v + r[:, 1, 2] * w) * p.scale + p.y0
    return x, y


def _place(p, u, v, w):
    """Put the face into the frame, as a face detector would; returns the labels (n, 15, 2) in pixels.

    The eyes' midpoint is where p.x0, p.y0 want it, whatever the pose, unless a point of the face would
    leave the image: the face is shifted then.
    """
    x, y = _project(p, u[:, None], v[:, None], w[:, None])
    for origin, value in ((p.x0, x), (p.y0, y)):
        shift = origin - value[..., :2].mean(-1, keepdims=True)
        value += shift
        back = np.maximum(2 - value.min(-1, keepdims=True), 0) \
            - np.maximum(value.max(-1, keepdims=True) - (SIZE - 3), 0)
        value += back
        origin += shift + back
    return np.stack([x[:, 0], y[:, 0]], -1)


def _rays(p):
    """Rays of the pixels in the frame of the head: the points o + t d, for t in mm.

    Returns the origins ou, ov, ow (n, 96, 96) and the directions du, dv, dw (n, 1, 1), to the camera.
    """
    y, x = np.mgrid[:SIZE, :SIZE].astype('f4')
    x, y = (x - p.x0) / p.scale, (y - p.y0) / p.scale
    r = p.rotation[..., None, None]
    return [r[:, 0, i] * x + r[:, 1, i] * y for i in range(3)] + [r[:, 2, i] for i in range(3)]


def _on_plane(rays, w):
    """Where rays meet the plane at w: u, v (n, 96, 96)."""
    ou, ov, ow, du, dv, dw = rays
    t = (w - ow) / dw
    return ou + t * du, ov + t * dv


def _cast(rays, height):
    """Where the rays meet the head: u, v, w and the mask of the head, (n, 96, 96) each.

    A point is inside if it is nearer to the plane w = AXIS than the height there; so the back of the
    head mirrors its front.  March to the first point inside, halve the last step four times using
    the nearest height, then mend the rest using the interpolated one.
    """
    n, rows, cols = height.shape
    ou, ov, ow, du, dv, dw = rays
    # A little more than the head: the outline is found by interpolation, below.
    flat = np.where(height > -8, np.maximum(height, 8), height).ravel()
    first = (np.arange(n, dtype='i4') * (rows * cols))[:, None, None]
    su, sv = ou * (1 / STEP) + (U_MAX / STEP + .5), ov * (1 / STEP) - (V_MIN / STEP - .5)

    def inside(t):
        iu = _clip(su + t * (du / STEP), 0, cols - 1).astype('i4')
        iv = _clip(sv + t * (dv / STEP), 0, rows - 1).astype('i4')
        iv *= cols
        iv += iu
        iv += first
        return np.abs(ow + t * dw - AXIS) < flat.take(iv)

    # From the bounding ellipsoid to the middle of the ray's chord: |o + t d| = 1 in its units.
    ax, ay, az = (np.float32(1 / length) for length in BOUND)
    dd = (du * ax) ** 2 + (dv * ay) ** 2 + (dw * az) ** 2
    od = ou * (du * ax * ax) + ov * (dv * ay * ay) + (ow - AXIS) * (dw * az * az)
    oo = (ou * ax) ** 2 + (ov * ay) ** 2 + ((ow - AXIS) * az) ** 2 - 1
    step = np.sqrt(np.maximum(od * od - dd * oo, 0)) * (1 / (MARCH * dd))
    t = MARCH * step - od / dd
    hit = np.zeros(ou.shape, bool)
    for _ in range(MARCH):
        t -= step * ~hit
        hit |= inside(t)
    for _ in range(4):                 # t is inside, t + step outside: halve the step
        step *= .5
        t += step * inside(t + step)
    t += .5 * step
    there = _lookup(height[..., None], ou + t * du, ov + t * dv)[..., 0]
    t -= np.abs(ow + t * dw - AXIS) - np.maximum(there, 0)
    # A pixel belongs to the head by the share of hits about it; at its rim, by the height.
    around = uniform_filter(hit.astype('f4'), (0, 5, 5))
    rim = np.maximum(_clip(.5 + there / 18, 0, 1), around > .999)
    return ou + t * du, ov + t * dv, ow + t * dw, hit * rim * _clip(2.2 * around - .6, 0, 1)


def _lookup(maps, u, v):
    """Bilinear values of maps (n, rows, cols, k) at u, v (n, ...): (n, ..., k)."""
    n, rows, cols, k = maps.shape
    fu = _clip((u + U_MAX) * (1 / STEP), 0, cols - 1.001)
    fv = _clip((v - V_MIN) * (1 / STEP), 0, rows - 1.001)
    iu, iv = fu.astype('i4'), fv.astype('i4')
    fu, fv = (fu - iu)[..., None], (fv - iv)[..., None]
    first = (np.arange(n, dtype='i4') * (rows * cols)).reshape((n,) + (1,) * (u.ndim - 1))
    i = iv * cols + iu + first
    flat = maps.reshape(-1, k)
    a, b = flat.take(i, 0), flat.take(i + 1, 0)
    c, d = flat.take(i + cols, 0), flat.take(i + cols + 1, 0)
    a += (b - a) * fu
    c += (d - c) * fu
    return a + (c - a) * fv


def _light(p, h, rng):
    """Light that arrives at the surface, and its gloss: (n, rows, cols, 2)."""
    n = len(h)
    height = np.maximum(h, -5)
    gv, gu = np.gradient(height, STEP, axis=(1, 2))
    norm = 1 / np.sqrt(1 + gu * gu + gv * gv)
    light = np.einsum('nji,nj->ni', p.rotation, p.light)[..., None, None]
    view = p.rotation[:, 2][..., None, None]
    lamb = (light[:, 2] - light[:, 0] * gu - light[:, 1] * gv) * norm
    half = light + view
    half = half / np.sqrt((half ** 2).sum(1, keepdims=True))
    spec = np.maximum((half[:, 2] - half[:, 0] * gu - half[:, 1] * gv) * norm, 0) ** 14
    # hollows get less of the sky: compare the surface with a smoother one
    coarse = height[:, ::2, ::2]
    smooth, wide = (np.stack([gaussian_filter(a, sigma, mode='nearest', truncate=2) for a in coarse])
                    .repeat(2, 1).repeat(2, 2)[:, :h.shape[1], :h.shape[2]] for sigma in (1.5, 7))
    hollow = np.maximum(smooth - height, -2) + .35 * np.maximum(wide - height, -6)
    occl = np.exp(-p.occlusion * _clip(hollow, -3, 20))
    # cast shadows: is anything between here and the light?
    rows, cols = h.shape[1:]
    iv, iu = np.mgrid[:rows, :cols]
    shade = np.zeros_like(h)
    first = np.arange(n)[:, None, None] * (rows * cols)
    lw = np.maximum(light[:, 2], .15)
    for reach in (6, 11, 18, 28):                # mm
        su = np.clip(iu + np.rint(light[:, 0] * reach / STEP).astype('i4'), 0, cols - 1)
        sv = np.clip(iv + np.rint(light[:, 1] * reach / STEP).astype('i4'), 0, rows - 1)
        other = height.ravel().take(sv * cols + su + first)
        shade = np.maximum(shade, _clip((other - height - lw * reach) / 4, 0, 1))
    lamb = np.maximum(lamb, 0) * (1 - .85 * shade)
    sky = 1 + norm * (.4 * gv - p.fill * gu)                  # brighter from above and from one side
    total = (sky * occl + p.key * 1.3 * lamb * np.sqrt(occl)) / (1 + p.key)
    total *= 1 + .06 * _smooth_noise(rng, n, 14, 10, rows, cols) \
        + .05 * _smooth_noise(rng, n, 40, 30, rows, cols)
    return np.stack([total, spec * (1 - shade) * p.key], -1).astype('f4')


def _paint_lower(p, a, u, v, noise):
    """Beard, nose and mouth, painted into the albedo a."""
    au = np.abs(u)
    tip, lip = p.nose_v, p.lip_v
    grain = 1 + .5 * p.streak * noise[0]
    # beard and moustache
    hair = p.hair * np.maximum(grain, .2)
    upper = lip - p.gap / 2 - p.lip_up
    line = p.beard_line + 20 + np.maximum(32 - au, 0) * 1.1
    m = _clip((v - line) / 12 + .5 + .15 * noise[0], 0, 1)
    m = np.where(p.beard_chin > 0, m * _clip((28 - au) / 5, 0, 1), m)
    _mix(a, hair, m * p.beard)
    m = _inside(np.abs(v - (upper - 4 + .006 * u * u)) - 4.5) * _clip((31 - au) / 4, 0, 1)
    _mix(a, hair, m * p.moustache)

    # nose: nostrils and the crease around the wings
    d = ((au - 7.5 * p.nose_wide) / 5.) ** 2 + ((v - tip - 7) / 2.8) ** 2
    a *= 1 - p.nostril * np.exp(-d * d)
    d = ((au - 19 * p.nose_wide) / 2.2) ** 2 + ((v - tip - 2) / 7) ** 2
    a *= 1 - .3 * np.exp(-d)
    # folds from the nose to the mouth
    fold_u = 18 + (v - tip) * .5 * (1 + .3 * p.smile)
    a *= 1 - (p.fold + .2 * np.maximum(p.smile, 0)) * np.exp(-((au - fold_u) / 2.5) ** 2
                                                            - ((v - tip - 15) / 14) ** 2)
    # mouth
    t2 = np.minimum((u / p.lip_half) ** 2, 1)
    arch = 1 - t2
    bend = lip + p.corner * t2
    open_ = .5 * p.gap * np.sqrt(arch)
    bow = 1.14 - .14 * np.exp(-(u / 4) ** 2)
    top = bend - open_ - p.lip_up * arch ** .8 * bow
    bottom = bend + open_ + p.lip_low * arch ** .7
    within = _clip((p.lip_half + 1 - au) / 2, 0, 1)
    m = _inside(top - v) * _inside(v - bottom) * within
    tone = p.lips * np.where(v < bend, np.float32(.8), np.float32(1.3))
    _mix(a, tone * (1 + .04 * noise[2]), m * (1 - .6 * p.moustache * (v < bend)))
    inner = _inside(bend - open_ - v) * _inside(v - bend - open_) * within * _clip(p.gap - .5, 0, 1)
    cavity = np.where(v < bend - open_ + 7.5, p.teeth * _clip(1.2 - t2, 0, 1), np.float32(.02))
    cavity = np.where(p.smile < .15, np.minimum(cavity, .12), cavity)
    _mix(a, cavity, inner)
    a *= 1 - .85 * np.exp(-((v - bend + open_) / 1.6) ** 2) * within
    a *= 1 - .1 * np.exp(-((v - bottom - 3) / 3) ** 2) * arch * within     # below the lower lip
    a *= 1 - .45 * _bump(au, v, p.lip_half + .5, lip + p.corner, 3, 2.5)


def _paint_upper(p, a, u, v, noise):
    """Forehead, eyes and brows; returns the light reflected by the eyes."""
    au, side = np.abs(u), np.sign(u)
    grain = 1 + .5 * p.streak * noise[0]
    # forehead wrinkles and a frown
    wave = np.cos((v + .004 * u * u) * .75)
    a *= 1 - p.wrinkle * _clip(wave, 0, 1) * _bump(u, v, 0, p.brow_v - 22, 40, 12)
    a *= 1 - _clip(p.frown * .12, 0, .4) * _bump(au, v, 6, p.brow_v + 2, 2, 7)

    # eyes
    x = (au - p.eye_u) / p.eye_half
    e2 = np.minimum(x * x, 1)
    y = v - p.eye_tilt * (au - p.eye_u)
    lid, low = -p.lid * (1 - e2) ** .6, p.lid_low * (1 - e2) ** .7
    at = _clip((1.08 - np.abs(x)) * 6, 0, 1)
    d = ((au - p.eye_u) / 17) ** 2 + ((y + 1.5) / 9) ** 2
    a *= 1 - (.04 + .3 * p.bag) * np.exp(-d) - .25 * _bump(au, y, p.eye_u - 13, -5, 8, 9)
    ball = _inside(lid - y) * _inside(y - low) * at
    white = p.sclera * (1 - .35 * e2) * _clip(.62 + (y - lid) * .13, .4, 1)
    du, dv = au - p.eye_u - side * p.gaze_u, y + .6 - p.gaze_v
    rr = np.sqrt(du * du + dv * dv)
    iris = p.iris * (.45 + .55 * _inside(2.4 - rr))
    _mix(white, iris, _inside(rr - 5.9))
    _mix(a, white, ball)
    glint = np.exp(-((side * du - 1.5) ** 2 + (dv + 2) ** 2) / 1.6) * ball
    a *= 1 - p.liner * np.exp(-((y - lid + .7) / 1.9) ** 2) * at
    a *= 1 - .25 * p.liner * np.exp(-((y - low - .4) / 1.1) ** 2) * at
    crease = lid - 3.2 - .2 * p.lid
    a *= 1 - p.crease * np.exp(-((y - crease) / 1.4) ** 2) * _clip((1.25 - np.abs(x)) * 4, 0, 1)
    a *= 1 - p.bag * np.exp(-((y - low - 5 + 2 * e2) / 2.2) ** 2) * _clip(1.1 - np.abs(x), 0, 1)

    # brows
    t = (au - p.brow_in) / (p.brow_out - p.brow_in)
    tc = _clip(t, 0, 1)
    curve = p.brow_v + p.frown * (1 - tc) ** 2 + p.brow_drop * tc ** 2 - p.brow_arch * 4 * tc * (1 - tc)
    thick = p.brow_thick * (1 - .65 * tc ** 2) * .5
    beyond = np.maximum(np.abs(t - .5) - .5, 0) * (p.brow_out - p.brow_in)
    d = np.sqrt((v - curve) ** 2 + beyond ** 2) - thick + .5 * noise[0]
    _mix(a, p.brow * grain, _clip(.5 - d * .4, 0, 1) * p.brow_dark)
    return glint


def _paint_head(p, u, v, w, noise, labels):
    """Albedo of the head, the mask of its hair, and the glint of the eyes, (n, 96, 96) each."""
    au = np.abs(u)
    a = p.skin * (1 + .05 * noise[2])
    glint = np.zeros_like(a)
    # Eyes and mouths need not be painted everywhere: only in the rows (of the block) where they are.
    y = labels[..., 1]
    upper = slice(max(int(y[:, :10].min()) - 12, 0), int(y[:, :10].max()) + 10)
    lower = slice(max(int(y[:, 10].min()) - 6, 0), SIZE)
    _paint_lower(p, *(f[:, lower] for f in (a, u, v)), [f[:, lower] for f in noise])
    glint[:, upper] = _paint_upper(p, *(f[:, upper] for f in (a, u, v)), [f[:, upper] for f in noise])
    hair = p.hair * np.maximum(1 + .5 * p.streak * noise[0], .2)

    # hair on the head
    edge = p.hair_v + p.hair_part * u + 1.6 * p.hair_bend * np.maximum(au - 18, 0) ** 2 + 3.5 * noise[1]
    m = _clip((edge - v) / 4 + .5, 0, 1)
    m = np.maximum(m, _clip((p.hair_side + 3 * noise[1] - w) / 5, 0, 1)
                   * _clip((p.hair_low - v) / 6, 0, 1))
    m = np.maximum(m, p.long * _clip((au - p.hair_u + 2 * noise[1]) / 3, 0, 1))
    m = np.where((p.hair_v < -97) & (w > -45), np.float32(0), m)
    _mix(a, hair, m)
    return a, m, glint


def _paint_glasses(p, image, rays):
    """Glasses or sunglasses for those who wear them, in place."""
    worn = np.flatnonzero(np.maximum(p.glasses, p.shades))
    if not len(worn):
        return
    p = SimpleNamespace(**{name: value[worn] for name, value in vars(p).items()})
    everyone, image = image, image[worn]
    u, v = _on_plane([ray[worn] for ray in rays], 16)
    au = np.abs(u)
    k = p.lens_power
    x, y = np.abs(au - 33) / p.lens_half_u, np.abs(v - p.lens_v) / p.lens_half_v
    d = ((x ** k + y ** k) ** (1 / k) - 1) * np.minimum(p.lens_half_u, p.lens_half_v)
    _mix(image, .03 + .3 * p.frame, _inside(d) * p.shades * .93)
    _mix(image, np.float32(.8), _inside(d) * p.lens_shine * _clip((u + v) * .05 % 2 - .8, 0, 1))
    bridge = np.abs(v - p.lens_v + 4 - .01 * au * au)
    rim = np.maximum(_inside(np.abs(d) - p.frame_thick),
                     _inside(bridge - p.frame_thick) * (au < 33 - p.lens_half_u))
    # the arm, on the side that is turned to us
    side = -np.sign(p.yaw)
    x1, y1 = _project(p, side * (33 + p.lens_half_u), p.lens_v - 5, 14)
    x2, y2 = _project(p, side * 76, p.lens_v - 5, -75)
    gy, gx = np.mgrid[:SIZE, :SIZE].astype('f4')
    ex, ey = x2 - x1, y2 - y1
    s = _clip(((gx - x1) * ex + (gy - y1) * ey) / (ex * ex + ey * ey + 1e-3), 0, 1)
    d = np.sqrt((gx - x1 - s * ex) ** 2 + (gy - y1 - s * ey) ** 2)
    rim = np.maximum(rim, _clip(.5 + p.frame_thick * p.scale - d, 0, 1))
    _mix(image, p.frame, rim * np.float32(.9))
    everyone[worn] = image


def _paint_behind(p, rays, noise, rng):
    """What is behind the face: background, long hair, neck, clothes, ears."""
    n = len(noise[0])
    y, x = np.mgrid[:SIZE, :SIZE].astype('f4')
    level = rng.lognormal(np.log(.15), 1.1, (n, 1, 1)).astype('f4')
    g = rng.normal(0, .012, (2, n, 1, 1)).astype('f4')
    a = rng.uniform(0, .8, (3, n, 1, 1)).astype('f4')
    field = g[0] * (x - 48) + g[1] * (y - 48) + a[0] * _smooth_noise(rng, n, 3, 3) \
        + .6 * a[1] * _smooth_noise(rng, n, 9, 9) + .3 * a[2] * _smooth_noise(rng, n, 30, 30)
    for _ in range(3):                                                      # furniture, windows
        c = rng.uniform(-30, 126, (4, n, 1, 1)).astype('f4')
        m = (np.abs(x - c[0]) < np.abs(c[2]) / 2) & (np.abs(y - c[1]) < np.abs(c[3]))
        step = rng.normal(0, .6, (n, 1, 1)) * (rng.random((n, 1, 1)) < .5)
        field += m * step.astype('f4')
    image = _clip(level * np.exp(field), .003, 1.2).astype('f4')

    u, v = _on_plane(rays, -75)
    au = np.abs(u)
    edge = p.hair_flare + 3 * noise[1] + p.volume * .7 - _clip(-v - 70, 0, 99) ** 2 * .012
    m = p.long * _inside(au - edge) * _clip((p.hair_end - v) / 8, 0, 1) \
        * _clip((v + 130 + p.volume) / 3, 0, 1)
    _mix(image, p.hair * .55 * np.maximum(1 + .7 * p.streak * noise[0], .1), m)

    cloth = rng.lognormal(np.log(.11), 1.3, (n, 1, 1)).clip(.005, .9).astype('f4')
    collar = rng.uniform(0, 1, (n, 1, 1)).astype('f4')
    neck = _inside(au - 55 * p.width) * _inside(70 - v)
    shade = .35 + .3 * _clip(1 - (u / 60) ** 2, 0, 1)
    _mix(image, p.skin * shade, neck)
    sv = 128 + 30 * collar + .0045 * (u * u) * (1 - .8 * collar) - 25 * _clip(au / 60 - .5, 0, 1)
    _mix(image, cloth * (1 + .15 * noise[1]), _inside(sv - v))
    shirt = _inside(np.abs(au - 30) - 16 + (v - 110) * .3) * _inside(115 - v) * (collar > .6)
    _mix(image, np.minimum(cloth * 6, .85), shirt * .9)

    u, v = _on_plane(rays, -68)
    d = ((np.abs(u) - 76 * p.width) / 11) ** 2 + ((v - 12) / 28) ** 2
    ear = _clip((1 - d) * 4, 0, 1) * (1 - p.long * .9)
    _mix(image, p.skin * (.75 - .35 * np.exp(-((d - .35) / .2) ** 2)), ear)
    return image


def _paint_occluders(image, rng):
    """A microphone, a finger or a bar before some faces, in place."""
    n = len(image)
    y, x = np.mgrid[:SIZE, :SIZE].astype('f4')
    for share, low in ((.07, 62), (.04, 0)):
        on = np.flatnonzero(rng.random(n) < share)
        draw = rng.random((5, n, 1, 1), dtype='f4')[:, on]
        shade = .02 * 30 ** draw[4]
        cx, cy = 10 + 76 * draw[0], low + (110 - low) * draw[1]
        angle, width = .6 + 1.9 * draw[2], 3 + 8 * draw[3]
        d = np.abs((x - cx) * np.sin(angle) - (y - cy) * np.cos(angle))
        far = (x - cx) * np.cos(angle) + (y - cy) * np.sin(angle)
        d = np.where(far < 0, np.hypot(d, far), d)
        part = image[on]
        _mix(part, shade * (1 - .5 * np.minimum(d / width, 1) ** 2), _clip(width - d + .5, 0, 1))
        image[on] = part


def _photograph(image, rng):
    """Exposure, tone curve, blur and noise: linear light to grey levels, uint8 (n, 96, 96)."""
    n = len(image)
    mean = image[:, 16:92, 16:80].mean((1, 2), keepdims=True)
    gamma = rng.uniform(.48, .9, (n, 1, 1)).astype('f4')
    image = np.maximum(image / mean, 1e-4) ** gamma
    gain = np.clip(rng.lognormal(np.log(116), .28, (n, 1, 1)), 40, 200)
    lift = rng.uniform(-22, 22, (n, 1, 1))
    image = image * gain.astype('f4') + lift.astype('f4')
    over = np.maximum(image - 190, 0)                               # highlights are compressed
    image += 65 * (1 - np.exp(-over / 65)) - over
    sigma = np.minimum(rng.gamma(2., .3, n) + .35, 2.)
    motion = np.where(rng.random(n) < .15, rng.uniform(0, 2.0, n), 0)
    for face, down, across in zip(image, sigma, np.hypot(sigma, motion)):
        gaussian_filter(face, (down, across), output=face, mode='nearest', truncate=2.5)
    grain = rng.gamma(1.2, 1., (n, 1, 1)).astype('f4')
    image += grain * (.6 * _smooth_noise(rng, n, 60, 60)
                      + .7 * rng.standard_normal(image.shape, dtype='f4'))
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


@lru_cache(None)
def _spline(fine, coarse):
    """(fine, coarse + 3) weights of cubic B-splines, scaled so that unit variance stays."""
    x = np.linspace(1.5, coarse + .5, fine)[:, None] - np.arange(coarse + 3)[None]
    t = np.abs(x)
    spline = np.where(t < 1, 2 / 3 - t ** 2 + t ** 3 / 2, np.clip(2 - t, 0, 2) ** 3 / 6)
    return (spline / np.sqrt((spline ** 2).sum(1, keepdims=True))).astype('f4')


def _smooth_noise(rng, n, rows, cols, height=SIZE, width=SIZE):
    """Smooth noise of unit variance: (n, height, width) from a coarse field of rows x cols."""
    field = rng.standard_normal((n, rows + 3, cols + 3), dtype='f4')
    return _spline(height, rows) @ field @ _spline(width, cols).T


def _bump(u, v, cu, cv, su, sv):
    """A Gaussian hill of height 1 about (cu, cv), of widths su, sv."""
    return np.exp(-((u - cu) / su) ** 2 - ((v - cv) / sv) ** 2)


def _clip(x, low, high):
    """np.clip for float arrays, at twice its speed."""
    x = np.maximum(x, low)
    return np.minimum(x, high, out=x)


def _inside(distance):
    """Coverage of a shape from the signed distance to its edge in mm; edges are a pixel wide."""
    return _clip(.5 - distance * .55, 0, 1)


def _mix(a, b, m):
    """Paint b over a where the mask m says so, in place."""
    a += (b - a) * m


def write_csvs(outdir, n_train=4000, n_test=500, seed=0, complete=COMPLETE):
    """Write training.csv, test.csv, IdLookupTable.csv and test-labels.csv into `outdir`.

    Parameters
    ----------
    outdir : str or Path
        A folder; it is made if need be.  Each file appears under its name when it is complete.
    n_train, n_test : int
        Numbers of rows.
    seed : int
        See `draw_faces`.
    complete : float
        Share of the training rows with all points.
    """
    outdir = Path(outdir)
    outdir.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(2,)))

    images, labels = draw_faces(n_train, seed, part=0)
    table = pd.DataFrame(labels, columns=COLUMNS)
    gaps = rng.random(n_train) >= complete
    table.loc[gaps, [c for c in COLUMNS if c not in ALWAYS]] = np.nan
    table['Image'] = _image_column(images)
    _write(table, outdir / 'training.csv')

    images, labels = draw_faces(n_test, seed, part=1)
    ids = np.arange(1, n_test + 1)
    _write(pd.DataFrame({'ImageId': ids, 'Image': _image_column(images)}), outdir / 'test.csv')
    truth = pd.DataFrame(labels, columns=COLUMNS)
    truth.insert(0, 'ImageId', ids)
    _write(truth, outdir / 'test-labels.csv')

    # About three faces of ten are asked for everything, as at Kaggle, the others for the 8 sure columns.
    asked = [(i, name) for i, everything in zip(ids, rng.random(n_test) < COMPLETE)
             for name in (COLUMNS if everything else ALWAYS)]
    lookup = pd.DataFrame(asked, columns=['ImageId', 'FeatureName'])
    lookup.insert(0, 'RowId', np.arange(1, len(lookup) + 1))
    lookup['Location'] = np.nan
    _write(lookup, outdir / 'IdLookupTable.csv')


def in_place_of_kaggles(constants):
    """Let the constants of a program be those for drawn faces; draw these, where there are none.

    Parameters
    ----------
    constants : object
        As attributes: DRAWN, the folder; DRAWN_ROWS, how many faces for training and for testing;
        DRAWN_CONSTANTS, those for these faces, where the others are still those of DECK; FTRAIN,
        FTEST, FLOOKUP, FTESTLABELS, the names of the files.

    Returns
    -------
    object
        `constants`.
    """
    ours = {name: value for name, value in constants.DRAWN_CONSTANTS.items()
            if getattr(constants, name) == constants.DECK[name]}
    _say_once(f'{constants.FTRAIN} is not there: using drawn faces in {constants.DRAWN}' + ''.join(
        f', {name} = {value}' for name, value in ours.items()) + '.')
    names = 'FTRAIN', 'FTEST', 'FLOOKUP', 'FTESTLABELS'
    files = drawn(constants.DRAWN, *constants.DRAWN_ROWS)
    vars(constants).update(zip(names, files), **ours)
    return constants


_say_once = lru_cache(print)  # not again for each step


def drawn(folder, n_train, n_test):
    """Return the names of the four files in `folder`; draw them first where one is missing.

    The order is that of `NAMES`.  `MOSTLY` of the training rows have all points.
    """
    files = [os.path.join(folder, name) for name in NAMES]
    if not all(map(os.path.exists, files)):
        write_csvs(folder, n_train, n_test, complete=MOSTLY)
    return files


def _image_column(images):
    names = np.array([str(value) for value in range(256)], object)
    return [' '.join(names[image.ravel()]) for image in images]


def _write(table, path):
    """Write under another name first: what bears the right name is complete."""
    part = path.with_name(path.name + '.part')
    table.to_csv(part, index=False, float_format='%.4f')
    os.replace(part, path)


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('outdir', help='folder for the four files')
    parser.add_argument('--train', type=int, default=4000, metavar='N', help='training rows (4000)')
    parser.add_argument('--test', type=int, default=500, metavar='N', help='test rows (500)')
    parser.add_argument('--seed', type=int, default=0, help='of the random faces (0)')
    parser.add_argument('--complete', type=float, default=COMPLETE, metavar='SHARE',
                        help=f'of the training rows that have all points ({COMPLETE})')
    args = parser.parse_args(argv)
    write_csvs(args.outdir, args.train, args.test, args.seed, args.complete)


if __name__ == '__main__':
    import make_faces   # by its name, under which the other processes find it
    make_faces.main()
