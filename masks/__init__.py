"""Masks: the measured second moments of images, by frequency and by pixel, that preconditioners are made from."""
