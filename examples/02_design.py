"""From a network to its HybReNets: ReLU equalization, by hand and for another order."""

from deepreshape import architecture, equalize

for design in equalize(architecture("resnet18-m16")):
    print(f"{design.architecture.name:16} {design.relus:>8,} ReLUs {design.macs / 1e6:>8,.1f} M MACs")

print("with alpha = 2, which leaves the first stage largest, to be culled:")
for design in equalize(architecture("resnet18-m32"), fixed={"alpha": 2}):
    print(f"{design.architecture.name:16} {design.relus:>8,} ReLUs {design.macs / 1e6:>8,.1f} M MACs")

try:
    equalize(architecture("resnet18"), bounds=(2, 3))
except ValueError as error:
    print(error)
