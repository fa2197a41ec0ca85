from .graph import PRIMITIVES as PRIMITIVES
from .graph import WEIGHTS as WEIGHTS
from .graph import Graph as Graph
from .graph import Node as Node
from .tracing import trace as trace
