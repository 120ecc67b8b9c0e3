"""Encoders with a decoder, the pixel classifier, and what is deployed."""
