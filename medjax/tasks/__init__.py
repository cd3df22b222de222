"""Tasks: which networks there are, which part trains, and what the loss is."""

from medjax.tasks.base import Task
from medjax.tasks.controlnet import ControlNetConfig, make_controlnet_task

# One row a task: the dataclass of its `config.model`, and the function that builds it.
TASKS = {"controlnet": (ControlNetConfig, make_controlnet_task)}

__all__ = ["TASKS", "Task"]
