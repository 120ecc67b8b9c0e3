"""Figures of segmentation: pure tensors in, figures out."""
