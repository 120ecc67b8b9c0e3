"""Methods of segmentation by name: one file each."""
