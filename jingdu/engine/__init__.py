"""How anything trains: the loop, precision, checkpoints, resume, several processes, logging."""

from jingdu.engine.contracts import Batch, Fitted, Objective, Recipe, Rollout, Stage, System
from jingdu.engine.loop import Run, load_system, read_recipe, train
from jingdu.engine.run import read_log
from jingdu.engine.training import evaluate_system

__all__ = [
    "Batch",
    "Fitted",
    "Objective",
    "Recipe",
    "Rollout",
    "Run",
    "Stage",
    "System",
    "evaluate_system",
    "load_system",
    "read_log",
    "read_recipe",
    "train",
]
