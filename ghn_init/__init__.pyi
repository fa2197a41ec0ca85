from . import analysis as analysis
from . import compare as compare
from . import graph as graph
from . import hypernetwork as hypernetwork
from . import images as images
from . import loading as loading
from . import methods as methods
from . import timm_hook as timm_hook
from . import train as train
from . import weights as weights
from .api import apply as apply
from .api import export as export
from .api import predict as predict
from .errors import GHNInitError as GHNInitError
from .graph.graph import PRIMITIVES as PRIMITIVES
from .graph.graph import Graph as Graph
from .graph.graph import Node as Node
from .graph.tracing import trace as trace
from .hypernetwork.config import GHNConfig as GHNConfig
from .hypernetwork.ghn import GHN as GHN
from .loading.load import load_ghn as load_ghn
from .methods.registry import METHODS as METHODS
from .models import create_model as create_model
from .report import Report as Report
from .weights.calibration import calibrate as calibrate

__version__: str
