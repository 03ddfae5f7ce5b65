"""The whole way, for a network and data of your own: count, train, remove ReLUs, price, run privately, save.

`EPOCHS=1` in the environment makes it short.
"""

import os
from tempfile import TemporaryDirectory

from torch import nn

import deepreshape as dr
from deepreshape.removal import SNL

data = dr.Dataset.load("digits")  # or Dataset.from_folder("photos", side=64), or Dataset.from_loader(a_torch_dataset)
recipe = dr.Recipe(epochs=int(os.environ.get("EPOCHS", "6")), batch=64, lr=0.1, crop=1, flip=False, precision="float32")


def block(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(), nn.AvgPool2d(2)
    )


net = nn.Sequential(block(1, 32), block(32, 64), block(64, 64), nn.Flatten(), nn.Linear(64, 10))
trained = dr.train(net, data, recipe, seed=0)
print(f"validation top-1 {trained.top1_validation} %")
print(dr.count(net, data.shape))

small, record = dr.linearize(net, SNL(budget=2_000), data, recipe=recipe)
print(f"{record.relus_before:,} -> {record.relus:,} ReLUs, validation top-1 {record.top1_validation} %")
print(dr.price(small, data.shape, link="wan"))  # seconds and bytes by phase, with advice

program = dr.lower(small, data)  # formats from data
answer = dr.run_private(program, data.test.images[0])  # both parties in two processes
print(f"{answer}; the label says {data.class_names[data.test.labels[0]]}")

with TemporaryDirectory() as folder:
    dr.save(small, f"{folder}/small")
    again = dr.load(f"{folder}/small")
print(f"saved and loaded: {dr.count(again, data.shape).total.relus:,} ReLUs")
