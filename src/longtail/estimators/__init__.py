"""scikit-learn estimators on feature matrices: frozen embeddings, or any other numbers."""

from longtail.estimators.classifiers import CosineClassifier, GMLClassifier, LogitAdjustedClassifier

__all__ = ["CosineClassifier", "GMLClassifier", "LogitAdjustedClassifier"]
