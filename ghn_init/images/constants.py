"""Sizes of images that several rooms share; importing it is free."""

LARGE_IMAGES = 96
"""Height and width from which images are handled as ImageNet's are: they stay on the disk, and the
stems of training networks reduce them (stride 4, patches of 16)."""
