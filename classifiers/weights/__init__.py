"""Weights of classifiers in and out: files of transformers, timm and torchvision, local ones."""

from classifiers.weights.configs import build
from classifiers.weights.loading import load, save

__all__ = ["build", "load", "save"]
