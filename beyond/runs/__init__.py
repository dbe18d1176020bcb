"""What a run leaves behind, and what it shows: records, experiments as files, TensorBoard."""
