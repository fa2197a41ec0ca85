from .config import Defaults as Defaults
from .config import GHNConfig as GHNConfig
from .config import Origin as Origin
from .encoding import shape4 as shape4
from .ghn import GHN as GHN
from .graphormer import Graphormer as Graphormer
from .graphormer import GraphormerLayer as GraphormerLayer
from .prediction import predict_graphs as predict_graphs
