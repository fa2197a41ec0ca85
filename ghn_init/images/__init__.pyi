from .batches import Batch as Batch
from .batches import Images as Images
from .memory import SmallImages as SmallImages
from .split import Split as Split
from .split import count_images as count_images
from .split import load_images as load_images
from .split import load_split as load_split
from .split import split_images as split_images
