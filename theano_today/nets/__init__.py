"""Services for any nolearn net: checkpoints, pickles that run nothing, trainings side by side."""
