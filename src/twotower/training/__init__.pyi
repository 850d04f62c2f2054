from twotower.training.callbacks import Callback as Callback
from twotower.training.callbacks import Callbacks as Callbacks
from twotower.training.checkpoints import Progress as Progress
from twotower.training.choices import resolve as resolve
from twotower.training.task import Task as Task
from twotower.training.trainer import Sides as Sides
from twotower.training.trainer import Trainer as Trainer
from twotower.training.trainer import TrainingDivergedError as TrainingDivergedError
