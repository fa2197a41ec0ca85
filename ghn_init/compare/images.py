"""The images of a comparison, from the room that reads them."""

from ghn_init.images.split import Split as Split
from ghn_init.images.split import load_split as load_split
from ghn_init.images.split import split_images as split_images
