"""Look for the HybReNets that are likely most accurate within a minute of the published system's time."""

from deepreshape.design.search import PROXY, Limit, Space, search, undominated
from deepreshape.pricing.quote import Terms, quote_layers

limit = Limit("seconds", 60.0)
space = Space((3, 32, 32), 100, ("client-garbler+lphe+wsa",))
designs = list(
    search(space, lambda layers, protocol: quote_layers(layers, Terms(protocol)), [limit], trials=150, seed=0)
)
print(f"{len(designs)} designs keep the limit; the proxy's rank correlation with accuracy is {PROXY.correlation}")
for candidate in undominated(designs, limit)[:5]:
    cost = f"{candidate.score:6.1f} {candidate.seconds:5.1f} s {candidate.relus:>7,} ReLUs"
    print(f"{cost}  {candidate.network}: {candidate.plan}")
