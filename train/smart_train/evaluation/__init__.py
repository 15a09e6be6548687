"""Accuracy of each path, on clean images and under attack."""

from smart_train.evaluation.accuracy import Accuracy, PathAccuracy, evaluate_path

__all__ = ["Accuracy", "PathAccuracy", "evaluate_path"]
