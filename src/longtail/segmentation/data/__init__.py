"""Images with masks: where they come from, how they become batches."""
