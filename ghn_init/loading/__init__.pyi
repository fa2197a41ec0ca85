from .checkpoint import DEFAULTS as DEFAULTS
from .checkpoint import KNOWN as KNOWN
from .checkpoint import convert as convert
from .checkpoint import list_cached as list_cached
from .checkpoint import save_checkpoint as save_checkpoint
from .load import load_ghn as load_ghn
