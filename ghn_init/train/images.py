"""The images to train on, from the room that reads them."""

from ghn_init.images.split import load_images as load_images
