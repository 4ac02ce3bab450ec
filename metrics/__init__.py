"""How good are these images? Pure functions from images (or features of them) to numbers; no network, no files but one.

Images are NHWC, uint8 or float in [0, 1] (`inputs`), whatever range the model works in. All arithmetic is float64 on
the host. A number that depends on how many images went in says so: quote n with it.
"""
