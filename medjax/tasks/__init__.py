"""Tasks: which networks there are, which part trains, and what the loss is."""

from medjax.tasks.base import Task
from medjax.tasks.controlnet import ControlNetConfig, make_controlnet_task
from medjax.tasks.trained import trained_controlnet

# One row a task: the dataclass of its `config.model`, the function that builds it, and
# the one that puts what it trained in its base.
TASKS = {"controlnet": (ControlNetConfig, make_controlnet_task, trained_controlnet)}

__all__ = ["TASKS", "Task"]
