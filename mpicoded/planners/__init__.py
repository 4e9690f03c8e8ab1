"""Planners: how a network is shared out. One file each, and one line here; all give a Plan."""

from functools import partial

from mpicoded.planners.adcnn import adcnn
from mpicoded.planners.aofl import aofl
from mpicoded.planners.auto import auto
from mpicoded.planners.base import Planner, Problem, fitting
from mpicoded.planners.coedge import coedge
from mpicoded.planners.deepslicing import deepslicing
from mpicoded.planners.early_fused import early_fused
from mpicoded.planners.layerwise import layerwise
from mpicoded.planners.mednn import mednn
from mpicoded.planners.modnn import modnn
from mpicoded.planners.ocbp import ocbp
from mpicoded.planners.pico import pico
from mpicoded.planners.replicas import replicas
from mpicoded.planners.single import single

BY_NAME: dict[str, Planner] = {
    "single": fitting(single),
    "layerwise": fitting(layerwise),
    "early_fused": fitting(early_fused),
    "aofl": fitting(aofl),
    "modnn": fitting(modnn),
    "mednn": fitting(mednn),
    "ocbp": fitting(ocbp),
    "adcnn": fitting(adcnn),
    "coedge": fitting(coedge),
    "deepslicing": fitting(deepslicing),
    "pico": fitting(pico),
    "replicas": fitting(replicas),
}
PLANNERS: dict[str, Planner] = {**BY_NAME, "auto": partial(auto, planners=BY_NAME)}

__all__ = ["BY_NAME", "PLANNERS", "Planner", "Problem"]
