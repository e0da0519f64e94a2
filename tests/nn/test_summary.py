"""Networks as text."""

import numpy as np
import pytest

import fgrad_nn as nn
from fgrad import random


class LeNet(nn.Module):
    def __init__(self):
        self.conv1 = nn.Conv2d(3, 6, 5)
        self.pool = nn.MaxPool2d(2)
        self.conv2 = nn.Conv2d(6, 16, 5, bias=False)
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(400, 84), nn.relu, nn.Linear(84, 10))

    def forward(self, p, x):
        x = self.pool(nn.relu(self.conv1(p["conv1"], x)))
        x = self.pool(nn.relu(self.conv2(p["conv2"], x)))
        return self.head(p["head"], x)


TEXT = """\
LeNet(
  (conv1): Conv2d(3, 6, 5)
  (pool): MaxPool2d(2)
  (conv2): Conv2d(6, 16, 5, bias=False)
  (head): Sequential(
    (0): Flatten()
    (1): Linear(400, 84)
    (2): relu
    (3): Linear(84, 10)
  )
)"""

PRINTED = """\
LeNet(                                   parameters
  (conv1): Conv2d(3, 6, 5)                      456  weight (6, 3, 5, 5), bias (6,)
  (pool): MaxPool2d(2)
  (conv2): Conv2d(6, 16, 5, bias=False)       2,400  weight (16, 6, 5, 5)
  (head): Sequential(
    (0): Flatten()
    (1): Linear(400, 84)                     33,684  weight (84, 400), bias (84,)
    (2): relu
    (3): Linear(84, 10)                         850  weight (10, 84), bias (10,)
  )                                          34,534
)                                            37,390"""

SUMMARY = """\
layer   kind                          output           parameters
-----------------------------------------------------------------
conv1   Conv2d(3, 6, 5)               (4, 6, 28, 28)          456
pool    MaxPool2d(2)                  (4, 6, 14, 14)
conv2   Conv2d(6, 16, 5, bias=False)  (4, 16, 10, 10)       2,400
pool    MaxPool2d(2)                  (4, 16, 5, 5)
head.0  Flatten()                     (4, 400)
head.1  Linear(400, 84)               (4, 84)              33,684
head.3  Linear(84, 10)                (4, 10)                 850
head    Sequential                    (4, 10)              34,534
-----------------------------------------------------------------
output (4, 10); 37,390 parameters, 146.1 KiB"""


def test_repr_and_print():
    assert repr(LeNet()) == TEXT
    assert str(LeNet()) == PRINTED


def test_summary():
    net = LeNet()
    params = net.init(random.key(0))
    assert nn.summary(net, params, (4, 3, 32, 32)) == SUMMARY
    assert nn.summary(net, None, np.zeros((4, 3, 32, 32), np.float32)) == SUMMARY
    assert nn.count_params(params) == 37_390


@pytest.mark.parametrize(
    "layer, text",
    [
        (nn.Linear(3, 4), "Linear(3, 4)"),
        (nn.Conv2d(1, 2, (3, 5), stride=2, padding="same"), "Conv2d(1, 2, (3, 5), stride=2, padding='same')"),
        (nn.Dropout(), "Dropout(0.5)"),
        (nn.ReLU(), "ReLU()"),
        (nn.LayerNorm((3, 4), eps=1e-6), "LayerNorm((3, 4), eps=1e-06)"),
        (nn.Linear(3, 4, weight_init=nn.init.xavier_uniform), "Linear(3, 4, weight_init=xavier_uniform)"),
    ],
)
def test_layer_text(layer, text):
    assert repr(layer) == text


def test_one_layer_prints_its_parameters():
    assert str(nn.Linear(3, 4)) == "Linear(3, 4)  16  weight (4, 3), bias (4,)".replace(
        "  16", "          16"
    )


def test_own_parameters_are_listed():
    class Scale(nn.Module):
        def __init__(self):
            self.fc = nn.Linear(2, 2)

        def init(self, key):
            return {**super().init(key), "scale": np.ones(3, np.float32)}

    assert "scale" in str(Scale()) and "9" in str(Scale()).splitlines()[-1]


def test_summary_of_a_network_with_state():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout(0.1))
    text = nn.summary(net, net.init(random.key(0)), (2, 1, 8, 8))
    assert "BatchNorm2d(2)" in text and "(2, 2, 6, 6)" in text
