// Convolution with bias, ReLU, max-pooling and dropout in one go, and its gradients.
//
// One image at a time, or a band of it where there are more threads than images, goes through all steps, so that only
// the layer's input and output touch main memory:
//
//     x ──(channels last, padded)──► conv + bias ──► ReLU ──► max-pool ──► dropout ──► out
//                                    └─ some rows for one block of filters, in L1 ─┘
//
// Images are kept channels last inside ("NHWC": the channels of a pixel are neighbours). Then one row of a filter's
// window is KW * C consecutive floats, whatever the filter's size, and filters need no im2col. Arrays from Theano may
// have any strides; those that are channels last already are used where they lie.
//
// What the gradient needs of the forward pass is one bit per position of a pooling window and channel: "this one was
// the maximum, it passed the ReLU and was not dropped" (`masks`). All other gradients of conv outputs are zero, and
// the backward pass never touches them: it walks over lists of the few that are not.
//
// NaN and infinity need the exact order of operations of Theano's own Ops (0 * inf is NaN; a maximum skips a NaN that
// is not the first). The fast formulas assume finite numbers: images where |x| and |w| cannot rule out overflow take
// the exact ones instead (`exact`), at the cost of speed only.
//
//     layer.hpp           sizes and options, images
//     conv_layer.hpp      memory layout, packed filters
//     conv_few.hpp        layers of few filters
//     conv_tile.hpp       convolution and bias: conv_tile is the micro-kernel
//     conv_winograd.hpp   the same for filters of 2x2 and 3x3, with fewer multiplications
//     conv_forward.hpp    out and masks: pool_window is what follows them
//     conv_backward.hpp   dx, dw, db: Walk makes the lists, ListKernel is the micro-kernel
#pragma once
#include "conv_backward.hpp"
#include "conv_forward.hpp"
