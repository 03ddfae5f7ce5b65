"""Train a small network on the digits, remove three quarters of its ReLUs, and train on with its own help."""

from deepreshape import Dataset, Recipe, architecture, build, count, train
from deepreshape.removal import apply, plan
from deepreshape.training import accuracy

data = Dataset.load("digits")
recipe = Recipe(epochs=3, batch=64, lr=0.1, crop=1, flip=False, precision="float32")

whole = build(architecture("resnet18-m4", data.shape, 10), seed=0)
train(whole, data, recipe, seed=0)

chosen = plan(architecture("resnet18-m4", data.shape, 10), budget=500)
reduced, record = apply(chosen, whole)
train(reduced, data, recipe, seed=0, teacher=whole)

print(f"{chosen}: {record.relus_before:,} -> {count(reduced, data.shape).total.relus:,} ReLUs")
for name, model in (("whole", whole), ("reduced", reduced)):
    print(f"{name:8} {accuracy(model, data, data.test):.1f} % on the test split")
