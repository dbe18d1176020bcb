"""Services for any net of nolearn: checkpoints, pickles that run nothing, trainings side by side."""
