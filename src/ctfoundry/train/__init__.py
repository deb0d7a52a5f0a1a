"""The one training loop: tasks, data in order, schedules, exact checkpoints, monitors.

Imports with torch, numpy and safetensors alone, so that a bare GPU machine can train from a store.
"""

from ctfoundry.train.loop import LoopSettings, Summary, fit
from ctfoundry.train.schedule import Schedule
from ctfoundry.train.task import Draws, Entry, Source, Task
from ctfoundry.train.update import Optimiser

__all__ = ["Draws", "Entry", "LoopSettings", "Optimiser", "Schedule", "Source", "Summary", "Task", "fit"]
