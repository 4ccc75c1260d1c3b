"""Weight normalisation, batch and mean-only statistics, and data-dependent initialisation.

The subject of the project, a package that needs torch alone. Section and equation numbers are those of
Salimans & Kingma (2016), arXiv 1602.07868. ::

    layer = NormalizedLayer(nn.Linear(784, 256), init="data")    # weight normalisation
    y = data_dependent_init(layer, x)    # where init="data": once, before training
    y = layer(x)

    model = normalize(model, direction="row", gain="free", statistics="mean_only")    # a whole model
    plain = fold(model)    # ordinary layers, the same function
"""

from wn.grammar import properties
from wn.norm.convert import fold, normalize, parameter_groups
from wn.norm.coverage import summary
from wn.norm.direction import held_layers, project_
from wn.norm.initialization import data_dependent_init, initializing
from wn.norm.layer import NormalizedLayer, normalized_layers
from wn.norm.statistics import NormalizedSite, NormSite
from wn.norm.weight import weight_norm

__all__ = [
    "NormSite",
    "NormalizedLayer",
    "NormalizedSite",
    "data_dependent_init",
    "fold",
    "held_layers",
    "initializing",
    "normalize",
    "normalized_layers",
    "parameter_groups",
    "project_",
    "properties",
    "summary",
    "weight_norm",
]
