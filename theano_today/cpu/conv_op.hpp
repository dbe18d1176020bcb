// Between Theano's arrays and the kernels: what the C code of the Ops in conv.py calls.
#pragma once
#include <Python.h>
#include <numpy/arrayobject.h>
#include "kernels.hpp"

static conv::Images images_of(PyArrayObject* a) {
    const ptrdiff_t size = sizeof(float);
    return conv::Images{(float*)PyArray_DATA(a), PyArray_STRIDE(a, 0) / size, PyArray_STRIDE(a, 1) / size,
                        PyArray_STRIDE(a, 2) / size, PyArray_STRIDE(a, 3) / size};
}

// Zeros at one border, where -1 stands for 'half' and -2 for 'full' of a filter's size.
static long padding(long pad, long filter) { return pad == -1 ? filter / 2 : pad == -2 ? filter - 1 : pad; }

static bool as_promised(long size, long promised) { return promised < 0 || size == promised; }

// Sizes and options of the layer. Returns false with a Python exception where they do not fit.
template <class Params>
static bool layer_of(const Params* p, PyArrayObject* x, PyArrayObject* W, PyArrayObject* b, conv::Layer* l) {
    l->N = PyArray_DIM(x, 0), l->C = PyArray_DIM(x, 1), l->H = PyArray_DIM(x, 2), l->W = PyArray_DIM(x, 3);
    l->O = PyArray_DIM(W, 0), l->KH = PyArray_DIM(W, 2), l->KW = PyArray_DIM(W, 3);
    l->stride_h = p->stride_h, l->stride_w = p->stride_w;
    l->pad_top = padding(p->pad_top, l->KH);
    l->pad_bottom = padding(p->pad_bottom, l->KH);
    l->pad_left = padding(p->pad_left, l->KW);
    l->pad_right = padding(p->pad_right, l->KW);
    l->flip = p->flip;
    l->pool_h = p->pool_h, l->pool_w = p->pool_w;
    l->pool_stride_h = p->pool_stride_h, l->pool_stride_w = p->pool_stride_w;
    l->pool_pad_h = p->pool_pad_h, l->pool_pad_w = p->pool_pad_w;
    l->ignore_border = p->ignore_border;
    l->relu = p->relu, l->bias = p->bias;
    l->dropout = p->dropout, l->threshold = p->threshold, l->scale = p->scale;
    const char* problem = conv::complete(*l);
    if (!problem && PyArray_DIM(W, 1) != l->C)
        problem = "convolution of an image with other channels than the filters";
    if (!problem && !(as_promised(l->N, p->promised_N) && as_promised(l->C, p->promised_C) &&
                      as_promised(l->H, p->promised_H) && as_promised(l->W, p->promised_W) &&
                      as_promised(l->O, p->promised_O) && as_promised(l->KH, p->promised_I) &&
                      as_promised(l->KW, p->promised_J)))
        problem = "convolution of other shapes than conv2d was given as image_shape and filter_shape";
    if (!problem && l->bias && PyArray_DIM(b, 0) != l->O)
        problem = "convolution with more or fewer biases than filters";
    if (problem)
        PyErr_Format(PyExc_ValueError, "%s: image %ld x %ld x %ld x %ld, filters %ld x %ld x %ld x %ld", problem, l->N,
                     l->C, l->H, l->W, l->O, (long)PyArray_DIM(W, 1), l->KH, l->KW);
    return !problem;
}

static bool has_shape(PyArrayObject* a, const char* name, npy_intp n, npy_intp c, npy_intp h, npy_intp w) {
    const npy_intp* d = PyArray_DIMS(a);
    if (d[0] == n && d[1] == c && d[2] == h && d[3] == w) return true;
    PyErr_Format(PyExc_ValueError,
                 "%s of a convolution layer: shape %ld x %ld x %ld x %ld, expected %ld x %ld x %ld x %ld", name,
                 (long)d[0], (long)d[1], (long)d[2], (long)d[3], (long)n, (long)c, (long)h, (long)w);
    return false;
}

// Makes *out a float32 array of this shape, channels last or not in memory; keeps the one that is there if it
// is the same. Returns false with a Python exception when there is no memory.
//
// NumPy aligns to 16 bytes; wider vectors would lie across two cache lines, which costs the gradients 8 %.
static bool allocate(PyArrayObject** out, npy_intp n, npy_intp c, npy_intp h, npy_intp w, bool channels_last) {
    npy_intp dims[4] = {n, c, h, w}, size = sizeof(float);
    npy_intp plain[4] = {c * h * w * size, h * w * size, w * size, size};
    npy_intp last[4] = {h * w * c * size, size, w * c * size, c * size};
    npy_intp* strides = channels_last ? last : plain;
    if (*out) {
        bool same = PyArray_NDIM(*out) == 4;
        for (int i = 0; i < 4 && same; i++)
            same = PyArray_DIM(*out, i) == dims[i] && PyArray_STRIDE(*out, i) == strides[i];
        if (same) return true;
        Py_CLEAR(*out);
    }
    const npy_intp line = 64;
    npy_intp bytes = n * c * h * w * size + line;
    PyObject* memory = PyArray_SimpleNew(1, &bytes, NPY_UINT8);
    if (!memory) return false;
    char* data = PyArray_BYTES((PyArrayObject*)memory);
    data += (line - (npy_intp)((uintptr_t)data % line)) % line;
    *out = (PyArrayObject*)PyArray_New(&PyArray_Type, 4, dims, NPY_FLOAT32, strides, data, 0, NPY_ARRAY_BEHAVED,
                                       NULL);
    if (*out && PyArray_SetBaseObject(*out, memory) == 0) return true;    // takes over `memory`
    if (!*out) Py_DECREF(memory);
    Py_CLEAR(*out);
    return false;
}

static bool allocate_masks(PyArrayObject** out, npy_intp rows, npy_intp bytes) {
    npy_intp dims[2] = {rows, bytes};
    if (*out && PyArray_DIM(*out, 0) == rows && PyArray_DIM(*out, 1) == bytes && PyArray_IS_C_CONTIGUOUS(*out))
        return true;
    Py_XDECREF(*out);
    *out = (PyArrayObject*)PyArray_SimpleNew(2, dims, NPY_UINT8);
    return *out != NULL;
}
