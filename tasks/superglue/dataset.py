"""Where the release's guide has the readers of tasks: ``from tasks.superglue.dataset import DataProcessor``."""

from tasks.superglue.readers import DataProcessor, InputExample

__all__ = ["DataProcessor", "InputExample"]
