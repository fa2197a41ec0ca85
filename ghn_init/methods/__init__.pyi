from .method import Job as Job
from .method import Method as Method
from .registry import METHODS as METHODS
from .registry import find_method as find_method
from .registry import register as register
from .variants import Variant as Variant
from .variants import parse_method as parse_method
from .variants import parse_methods as parse_methods
