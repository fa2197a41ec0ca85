from .assignment import assign as assign
from .postprocess import PostProcessing as PostProcessing
from .postprocess import classifier_weights as classifier_weights
from .postprocess import post_process as post_process
from .postprocess import weight_layers as weight_layers
from .tiling import repeated as repeated
