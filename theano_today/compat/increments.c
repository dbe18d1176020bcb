/* inplace_increment of Theano's AdvancedIncSubtensor1, for NumPy 2, whose C API has no
   PyArray_MapIter: a[index] += inc, or a[index] = inc, where index is a vector of integers and an
   index may be there several times.  inc is broadcast to the rows of a that index picks. */

#define THEANO_TODAY_INCREMENTS(TYPE)                                                             \
    static void increment_##TYPE(char *to, const char *from, npy_intp n, npy_intp to_stride,     \
                                 npy_intp from_stride)                                            \
    {                                                                                             \
        if (to_stride == sizeof(TYPE) && from_stride == sizeof(TYPE)) {                           \
            for (npy_intp i = 0; i < n; i++) ((TYPE *)to)[i] += ((const TYPE *)from)[i];          \
        } else {                                                                                  \
            for (npy_intp i = 0; i < n; i++, to += to_stride, from += from_stride)                \
                *(TYPE *)to += *(const TYPE *)from;                                               \
        }                                                                                         \
    }
THEANO_TODAY_INCREMENTS(npy_int8)
THEANO_TODAY_INCREMENTS(npy_int16)
THEANO_TODAY_INCREMENTS(npy_int32)
THEANO_TODAY_INCREMENTS(npy_int64)
THEANO_TODAY_INCREMENTS(npy_uint8)
THEANO_TODAY_INCREMENTS(npy_uint16)
THEANO_TODAY_INCREMENTS(npy_uint32)
THEANO_TODAY_INCREMENTS(npy_uint64)
THEANO_TODAY_INCREMENTS(npy_float32)
THEANO_TODAY_INCREMENTS(npy_float64)

#define THEANO_TODAY_COMPLEX(NAME, TYPE)                                                          \
    static void increment_##NAME(char *to, const char *from, npy_intp n, npy_intp to_stride,     \
                                 npy_intp from_stride)                                            \
    {                                                                                             \
        for (npy_intp i = 0; i < n; i++, to += to_stride, from += from_stride) {                  \
            ((TYPE *)to)[0] += ((const TYPE *)from)[0];                                           \
            ((TYPE *)to)[1] += ((const TYPE *)from)[1];                                           \
        }                                                                                         \
    }
THEANO_TODAY_COMPLEX(npy_complex64, npy_float32)
THEANO_TODAY_COMPLEX(npy_complex128, npy_float64)

typedef void (*increment_row)(char *, const char *, npy_intp, npy_intp, npy_intp);

static increment_row increment_of(int type_number)
{
    switch (type_number) {
    case NPY_INT8: return increment_npy_int8;
    case NPY_INT16: return increment_npy_int16;
    case NPY_INT32: return increment_npy_int32;
    case NPY_INT64: return increment_npy_int64;
    case NPY_UINT8: return increment_npy_uint8;
    case NPY_UINT16: return increment_npy_uint16;
    case NPY_UINT32: return increment_npy_uint32;
    case NPY_UINT64: return increment_npy_uint64;
    case NPY_FLOAT32: return increment_npy_float32;
    case NPY_FLOAT64: return increment_npy_float64;
    case NPY_COMPLEX64: return increment_npy_complex64;
    case NPY_COMPLEX128: return increment_npy_complex128;
    default: return NULL;
    }
}

/* Types without a loop above (float16): numpy.add.at. */
static int increment_by_numpy(PyArrayObject *a, PyObject *index, PyArrayObject *inc)
{
    PyObject *numpy = PyImport_ImportModule("numpy");
    PyObject *add = numpy ? PyObject_GetAttrString(numpy, "add") : NULL;
    PyObject *done = add ? PyObject_CallMethod(add, "at", "OOO", a, index, inc) : NULL;
    Py_XDECREF(numpy);
    Py_XDECREF(add);
    Py_XDECREF(done);
    return done ? 0 : -1;
}

static int inplace_increment(PyArrayObject *a, PyObject *index, PyArrayObject *inc, int inc_or_set)
{
    const int nd = PyArray_NDIM(a);
    PyArrayObject *rows = NULL, *add = NULL;
    npy_intp shape[NPY_MAXDIMS], strides[NPY_MAXDIMS], place[NPY_MAXDIMS];
    int result = -1;

    if (PyArray_FailUnlessWriteable(a, "input/output array") < 0) return -1;
    if (nd == 0) {
        PyErr_SetString(PyExc_IndexError, "0-d arrays can't be indexed.");
        return -1;
    }
    if (!inc_or_set) return PyObject_SetItem((PyObject *)a, index, (PyObject *)inc);
    const increment_row increment = increment_of(PyArray_TYPE(a));
    if (!increment) return increment_by_numpy(a, index, inc);

    rows = (PyArrayObject *)PyArray_FROMANY(index, NPY_INTP, 1, 1,
                                            NPY_ARRAY_CARRAY_RO | NPY_ARRAY_FORCECAST);
    add = rows ? (PyArrayObject *)PyArray_FROMANY(
        (PyObject *)inc, PyArray_TYPE(a), 0, 0,
        NPY_ARRAY_ALIGNED | NPY_ARRAY_NOTSWAPPED | NPY_ARRAY_FORCECAST) : NULL;
    if (add) {
        const npy_intp n = PyArray_DIM(rows, 0), length = PyArray_DIM(a, 0);
        const npy_intp *const row = (const npy_intp *)PyArray_DATA(rows);
        const int missing = nd - PyArray_NDIM(add);
        npy_intp size = 1;
        int fits = missing >= 0;
        for (int axis = 0; fits && axis < nd; axis++) {  // broadcast: a stride of 0
            shape[axis] = axis ? PyArray_DIM(a, axis) : n;
            place[axis] = 0;
            const npy_intp dim = axis < missing ? 1 : PyArray_DIM(add, axis - missing);
            strides[axis] = dim == 1 ? 0 : PyArray_STRIDE(add, axis - missing);
            fits = dim == 1 || dim == shape[axis];
            if (axis) size *= shape[axis];
        }
        npy_intp wrong = 0;  // all indices are looked at before anything is changed
        while (wrong < n && row[wrong] >= -length && row[wrong] < length) wrong++;
        if (!fits) {
            PyErr_SetString(PyExc_ValueError,
                            "array is not broadcastable to correct shape");
        } else if (wrong < n) {
            PyErr_Format(PyExc_IndexError, "index %zd is out of bounds for axis 0 with size %zd",
                         row[wrong], length);
        } else {
            result = 0;
            const int last = nd - 1;  // the axis of the inner loop; for a vector, one element
            const npy_intp inner = last ? shape[last] : 1;
            const npy_intp to_stride = last ? PyArray_STRIDE(a, last) : 0;
            const npy_intp from_stride = last ? strides[last] : 0;
            for (npy_intp i = 0; size && i < n; i++) {
                char *to = PyArray_BYTES(a)
                    + (row[i] < 0 ? row[i] + length : row[i]) * PyArray_STRIDE(a, 0);
                const char *from = PyArray_BYTES(add) + i * strides[0];
                for (;;) {
                    increment(to, from, inner, to_stride, from_stride);
                    int axis = last - 1;  // the next row of the inner loop
                    for (; axis > 0; axis--) {
                        to += PyArray_STRIDE(a, axis);
                        from += strides[axis];
                        if (++place[axis] < shape[axis]) break;
                        to -= place[axis] * PyArray_STRIDE(a, axis);
                        from -= place[axis] * strides[axis];
                        place[axis] = 0;
                    }
                    if (axis <= 0) break;
                }
            }
        }
    }
    Py_XDECREF(rows);
    Py_XDECREF(add);
    return result;
}
