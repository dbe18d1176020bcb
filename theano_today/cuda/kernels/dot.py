"""Matrix products and convolutions in TensorFloat-32, three for each: float32 to its last digits.

The matrix units of GPUs from Ampere on multiply numbers of 11 bits.  A float32 is the sum of such a
number and a small rest of the same kind, so three products of them make one of float32, but for the
product of the rests, and are still several times faster than the units for float32.  Triton calls it
``tf32x3``.  ``THEANO_TODAY_TF32=x3`` asks for it.

Long sums are cut into parts, for otherwise a product of few rows would keep few multiprocessors busy;
the parts are added in a fixed order, so that the same arguments give the same result.
"""
import torch
import triton
import triton.language as tl

from .run import cannot, launch

__all__ = ['conv_input_gradient', 'conv_weight_gradient', 'convolve', 'product']

ROWS, COLUMNS, DEPTH = 64, 64, 32  # a tile of the result, and how much of the sum is taken at a time
PROGRAMS = 264  # two for each multiprocessor of an H100
WORTH = 2 ** 22  # multiplications below which PyTorch's own call is as good


@triton.jit
def product_kernel(a, b, out, m, n, k, a0, a1, b0, b1, part, ROWS: tl.constexpr,
                   COLUMNS: tl.constexpr, DEPTH: tl.constexpr):
    """Tile of ``a @ b``, over `part` of the sum; parts lie one behind the other in `out`."""
    tiles = tl.cdiv(n, COLUMNS)
    row = (tl.program_id(0) // tiles) * ROWS + tl.arange(0, ROWS)
    column = (tl.program_id(0) % tiles) * COLUMNS + tl.arange(0, COLUMNS)
    first = tl.program_id(1) * part
    last = tl.minimum(first + part, k)
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(first, last, DEPTH):
        step = start + tl.arange(0, DEPTH)
        x = tl.load(a + row[:, None] * a0 + step[None, :] * a1,
                    mask=(row[:, None] < m) & (step[None, :] < last), other=0.0)
        y = tl.load(b + step[:, None] * b0 + column[None, :] * b1,
                    mask=(step[:, None] < last) & (column[None, :] < n), other=0.0)
        total = tl.dot(x, y, total, input_precision='tf32x3')
    tl.store(out + tl.program_id(1) * m * n + row[:, None] * n + column[None, :], total,
             mask=(row[:, None] < m) & (column[None, :] < n))


@triton.jit
def convolution_kernel(image, filters, out, batch, channels, count, height, width, rows, columns,
                       top, left, f0, f1, i0, i1, i2, i3, KH: tl.constexpr, KW: tl.constexpr,
                       ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr):
    """Tile of a correlation with filters (count, channels, KH, KW): places of the output by filters.

    `top` and `left` are zeros before the image; ``f0`` and ``f1`` the distances of filters and of
    channels in `filters`.
    """
    tiles = tl.cdiv(count, COLUMNS)
    place = (tl.program_id(0) // tiles) * ROWS + tl.arange(0, ROWS)
    filter = (tl.program_id(0) % tiles) * COLUMNS + tl.arange(0, COLUMNS)
    x = place % columns
    y = (place // columns) % rows
    n = place // (columns * rows)
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for i in tl.static_range(KH):
        for j in tl.static_range(KW):
            at_y = y + i - top
            at_x = x + j - left
            inside = (n < batch) & (at_y >= 0) & (at_y < height) & (at_x >= 0) & (at_x < width)
            source = image + n * i0 + at_y * i2 + at_x * i3
            for start in range(0, channels, DEPTH):
                c = start + tl.arange(0, DEPTH)
                u = tl.load(source[:, None] + c[None, :] * i1,
                            mask=inside[:, None] & (c[None, :] < channels), other=0.0)
                w = tl.load(filters + filter[None, :] * f0 + c[:, None] * f1 + i * KW + j,
                            mask=(c[:, None] < channels) & (filter[None, :] < count), other=0.0)
                total = tl.dot(u, w, total, input_precision='tf32x3')
    to = out + ((n[:, None] * count + filter[None, :]) * rows + y[:, None]) * columns + x[:, None]
    tl.store(to, total, mask=(n[:, None] < batch) & (filter[None, :] < count))


@triton.jit
def weight_gradient_kernel(image, gradient, out, batch, channels, count, rows, columns, i0, i1, i2, i3,
                           g0, g1, part, KH: tl.constexpr, KW: tl.constexpr, ROWS: tl.constexpr,
                           COLUMNS: tl.constexpr, DEPTH: tl.constexpr):
    """Tile of the gradient of filters, over `part` of all places: filters by channels and offsets."""
    weights = channels * KH * KW
    tiles = tl.cdiv(weights, COLUMNS)
    filter = (tl.program_id(0) // tiles) * ROWS + tl.arange(0, ROWS)
    weight = (tl.program_id(0) % tiles) * COLUMNS + tl.arange(0, COLUMNS)
    offset = weight // (KH * KW) * i1 + weight // KW % KH * i2 + weight % KW * i3
    first = tl.program_id(1) * part
    last = tl.minimum(first + part, batch * rows * columns)
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(first, last, DEPTH):
        place = start + tl.arange(0, DEPTH)
        x = place % columns
        y = (place // columns) % rows
        n = place // (columns * rows)
        g = tl.load(gradient + filter[:, None] * g1 + (n * g0 + y * columns + x)[None, :],
                    mask=(filter[:, None] < count) & (place[None, :] < last), other=0.0)
        u = tl.load(image + (n * i0 + y * i2 + x * i3)[:, None] + offset[None, :],
                    mask=(place[:, None] < last) & (weight[None, :] < weights), other=0.0)
        total = tl.dot(g, u, total, input_precision='tf32x3')
    tl.store(out + tl.program_id(1) * count * weights + filter[:, None] * weights + weight[None, :],
             total, mask=(filter[:, None] < count) & (weight[None, :] < weights))


def _parts(tiles, depth):
    """Into how many parts a sum is cut, and their length."""
    parts = max(1, min(PROGRAMS // max(tiles, 1), depth // (8 * DEPTH)))
    length = -(-depth // parts)
    length = -(-length // DEPTH) * DEPTH
    return -(-depth // length), length


def _tiles(rows, columns):
    return -(-rows // ROWS) * -(-columns // COLUMNS)


def _covers(*tensors):
    return all(t.dtype == torch.float32 and 0 < t.numel() < 2 ** 31 - 2 ** 20 for t in tensors)


def product(x, y):
    """``x @ y`` of two matrices."""
    (m, k), n = x.shape, y.shape[1]
    if not _covers(x, y) or m * n * k < WORTH:
        return cannot
    parts, length = _parts(_tiles(m, n), k)
    out = x.new_empty((parts, m, n))
    launch(product_kernel, (_tiles(m, n), parts), x, y, out, m, n, k, *x.stride(), *y.stride(), length,
           ROWS=ROWS, COLUMNS=COLUMNS, DEPTH=DEPTH, num_warps=4, num_stages=3, reads=[x, y],
           writes=[out], name='product')
    return out[0] if parts == 1 else out.sum(0)


def convolve(image, filters, padding):
    """The correlation of images with filters: stride 1, zeros before and after each axis."""
    (channels, height, width), (count, _, kh, kw) = image.shape[1:], filters.shape
    rows, columns = height + 2 * padding[0] - kh + 1, width + 2 * padding[1] - kw + 1
    if not _covers(image, filters) or rows <= 0 or columns <= 0 or kh * kw > 25 or channels < 8:
        return cannot
    return _correlate(image, filters.contiguous(), (filters.shape[1] * kh * kw, kh * kw), count,
                      (rows, columns), padding, (kh, kw))


def conv_input_gradient(gradient, filters, padding, shape):
    """The gradient of `convolve` with regard to the images, of this shape."""
    (count, channels, kh, kw), (height, width) = filters.shape, shape[2:]
    before = kh - 1 - padding[0], kw - 1 - padding[1]
    if not _covers(gradient, filters) or min(before) < 0 or kh * kw > 25 or count < 8 or \
            channels < 8:
        return cannot
    turned = filters.flip(2, 3)
    return _correlate(gradient, turned, (kh * kw, channels * kh * kw), channels, (height, width),
                      before, (kh, kw))


def _correlate(image, filters, steps, count, size, before, kernel):
    batch, channels, height, width = image.shape
    out = image.new_empty((batch, count) + size)
    if out.numel() >= 2 ** 31 - 2 ** 20:
        return cannot
    launch(convolution_kernel, (_tiles(batch * size[0] * size[1], count),), image, filters, out, batch,
           channels, count, height, width, *size, *before, *steps, *image.stride(), KH=kernel[0],
           KW=kernel[1], ROWS=ROWS, COLUMNS=COLUMNS, DEPTH=DEPTH, num_warps=4, num_stages=3,
           reads=[image, filters], writes=[out], name='convolution')
    return out


def conv_weight_gradient(image, gradient, size, padding):
    """The gradient of `convolve` with regard to the filters, of this size."""
    if any(padding):
        return cannot
    (batch, channels), (count, rows, columns) = image.shape[:2], gradient.shape[1:]
    gradient = gradient.contiguous()
    if not _covers(image, gradient) or channels < 8:
        return cannot
    tiles, places = _tiles(count, channels * size[0] * size[1]), batch * rows * columns
    parts, length = _parts(tiles, places)
    out = image.new_empty((parts, count, channels) + tuple(size))
    launch(weight_gradient_kernel, (tiles, parts), image, gradient, out, batch, channels, count, rows,
           columns, *image.stride(), *gradient.stride()[:2], length, KH=size[0], KW=size[1], ROWS=ROWS,
           COLUMNS=COLUMNS, DEPTH=DEPTH, num_warps=4, num_stages=3, reads=[image, gradient],
           writes=[out], name='gradient of filters')
    return out[0] if parts == 1 else out.sum(0)
