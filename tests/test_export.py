"""A model in other programs' formats computes what Keras does and says what it needs; a package is a model to pass on."""

import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import zipfile
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import write_video

import action_attention as aa
from action_attention import exports, files, packages
from action_attention.clips import Clips
from action_attention.errors import UserError
from action_attention.evaluation import evaluate, predict_videos
from action_attention.features import FeatureCache
from action_attention.metrics import rank_classes
from action_attention.packages import PARTS
from action_attention.registry import model_names, register_backbone
from action_attention.runs import Run
from data_prep import sample
from data_prep.backbones import Backbone
from data_prep.backbones.base import compiled
from data_prep.extract import extract
from data_prep.flow import MotionMaps
from data_prep.recognizer import Recognizer
from data_prep.splits import read_lists, split_of
from experiments import export as program
from experiments import predict
from experiments.calibrate import calibrate_run
from experiments.export import export
from tests import forked, hostile
from tests.test_training import config, edit, make_run

ROOT = Path(__file__).parents[1]
ONNX = pytest.mark.skipif(not all(map(find_spec, exports.NEEDED["onnx"])), reason="needs the extra `export`")
CUBE = (3, 4, 8)
SMALL = {"lstm_units": 5, "hidden_units": 5, "filters": 4, "queries": 2, "value_units": 3}
