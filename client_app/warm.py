"""What a ClientApp imports from others: read once, and shared by all processes forked from there.

Nothing of this project is imported here, since the bundle of a run brings its own; nothing here may
start a thread, touch a GPU or draw a random number.
"""
# ruff: noqa: F401

import logging

import highdicom
import monai.data
import monai.inferers
import monai.losses
import monai.metrics
import monai.networks.nets
import monai.transforms
import nibabel
import opacus.accountants
import pydantic
import pydicom.pixels
import safetensors.numpy
import safetensors.torch
import scipy.ndimage
import sklearn.metrics
import torch
import torch._dynamo  # PyTorch's optimisers import it when the first one is made
import torch.utils.data
from flwr.supernode.runtime import run_clientapp

# Opacus gives the root logger a handler that prints; what libraries say may hold what a header says.
logging.getLogger().handlers.clear()
