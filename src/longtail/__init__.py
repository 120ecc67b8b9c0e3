"""Train image classifiers that are good on rare classes too.

    import longtail

    result = longtail.train("digits-lt", method="gml", epochs=20)   # teacher, student, figures, report
    model = longtail.load(result.folder)                            # a torch module that predicts
    probabilities = model.predict(images)                           # uint8 [B, C, H, W] -> [B, classes]

Losses and memory are plain torch modules for any other loop: ``longtail.losses``, ``longtail.memory``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from longtail.api import load, train
    from longtail.config import TrainConfig
    from longtail.deployment.embed import embed
    from longtail.deployment.evaluate import evaluate
    from longtail.deployment.export import export
    from longtail.deployment.predict import Predictions, predict
    from longtail.deployment.push import push_to_hub
    from longtail.deployment.result import Result
    from longtail.errors import UserError
    from longtail.estimators import CosineClassifier, GMLClassifier, LogitAdjustedClassifier
    from longtail.models import Classifier
    from longtail.planning.plan import plan
    from longtail.reporting.compare import compare
    from longtail.reporting.inspection import inspect
    from longtail.studies.study import StudyResult, study
    from longtail.training.guard import Diverged, Interrupted

__version__ = "0.1.0"

# Imported on first use: torch takes seconds to load, and `longtail --help` must not wait for it.
_HOMES = {
    "Classifier": "models",
    "CosineClassifier": "estimators",
    "Diverged": "training.guard",
    "GMLClassifier": "estimators",
    "Interrupted": "training.guard",
    "LogitAdjustedClassifier": "estimators",
    "Predictions": "deployment.predict",
    "Result": "deployment.result",
    "StudyResult": "studies.study",
    "TrainConfig": "config",
    "UserError": "errors",
    "compare": "reporting.compare",
    "embed": "deployment.embed",
    "evaluate": "deployment.evaluate",
    "export": "deployment.export",
    "inspect": "reporting.inspection",
    "load": "api",
    "plan": "planning.plan",
    "predict": "deployment.predict",
    "push_to_hub": "deployment.push",
    "study": "studies.study",
    "train": "api",
}

__all__ = [
    "Classifier",
    "CosineClassifier",
    "Diverged",
    "GMLClassifier",
    "Interrupted",
    "LogitAdjustedClassifier",
    "Predictions",
    "Result",
    "StudyResult",
    "TrainConfig",
    "UserError",
    "compare",
    "embed",
    "evaluate",
    "export",
    "inspect",
    "load",
    "plan",
    "predict",
    "push_to_hub",
    "study",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'longtail' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"longtail.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
