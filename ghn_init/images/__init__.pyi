from .data import Images as Images
from .data import SmallImages as SmallImages
from .data import load_images as load_images
from .split import Split as Split
from .split import load_split as load_split
from .split import split_images as split_images
