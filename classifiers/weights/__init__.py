"""Weights of classifiers in and out: files of transformers, timm and torchvision, local only."""

from classifiers.weights.config_files import build
from classifiers.weights.weight_files import load, save

__all__ = ["build", "load", "save"]
