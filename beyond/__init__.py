"""Part 2 of the deck, "Beyond Training": analysis of nets that nolearn trains.

    beyond.augmentation   images and their points turned, moved and scaled together
    beyond.monitors       activations, gradients and updates of every layer while a net trains
    beyond.curves         what a learning curve says: converged, still falling, jitter, overfitting
    beyond.pictures       forward path, backward path and saliency of a trained net
    beyond.nets           the starter net, VGG-16
    beyond.config         an experiment as a YAML file
    beyond.records        a record of every run, and what differs between runs
    beyond.tensorboard    event files for TensorBoard
    beyond.experiments    the experiments of the slides, one command each

All of it works on any NeuralNet of nolearn; nothing here knows kfkd.py, but for the experiments
that train on faces.  requirements-beyond.txt lists the packages that it needs beside
requirements.txt.
"""
import theano_today  # noqa: F401  (before theano)
