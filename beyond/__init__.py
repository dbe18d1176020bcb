"""Part 2 of the deck, "Beyond Training": analysis of nets that nolearn trains.

    beyond.augmentation   images and their points turned, moved and scaled together; standardised
    beyond.monitors       activations, gradients and updates of every layer while a net trains
    beyond.curves         what a learning curve says: converged, still falling, jitter, overfitting
    beyond.pictures       forward path, backward path and saliency of a trained net
    beyond.nets           the starter net, VGG-16
    beyond.figures        what all figures share
    beyond.experiments    the experiments of the slides, one command each
    beyond.runs           what a run leaves and shows: records, experiments as files, TensorBoard

Augmentation, monitors, curves, pictures and nets work on any NeuralNet of nolearn; the experiments
and what a run leaves are about faces.  Nothing here knows kfkd.py.
"""
import theano_today  # noqa: F401  (before theano)
