"""Stages, the one loop that trains them, checkpoints, and what a person sees meanwhile."""
