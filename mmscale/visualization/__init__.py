"""Pictures of networks, searches and sampling: data in, a matplotlib Figure out."""

from mmscale.visualization.archs import plot_arch, plot_archs
from mmscale.visualization.histograms import Histogram, plot_histograms
from mmscale.visualization.sampling import sampling_histograms
from mmscale.visualization.searches import (
    ChainPoint,
    FrontPoint,
    PopulationPoint,
    plot_chain,
    plot_front,
    plot_population,
)
from mmscale.visualization.structures import plot_structure

__all__ = [
    'ChainPoint',
    'FrontPoint',
    'Histogram',
    'PopulationPoint',
    'plot_arch',
    'plot_archs',
    'plot_chain',
    'plot_front',
    'plot_histograms',
    'plot_population',
    'plot_structure',
    'sampling_histograms',
]
