"""Where the time of one private inference goes, on three links, by a measured profile and by layers alone."""

from deepreshape import architecture, build, count
from deepreshape.cost import read_link
from deepreshape.pricing.quote import Terms, quote_layers

resnet = architecture("resnet18-m16")
layers = count(build(resnet, "meta"), resnet.input).layers
for name in ("lan", "wan", "20mbit/100mbit/40ms"):
    quote = quote_layers(layers, Terms("gc-full", link=read_link(name)))
    print(
        f"{name}: {quote.seconds:.1f} s, of which {quote.online.seconds:.1f} online; {quote.report.bytes / 1e6:.0f} MB"
    )
    print(f"    {quote.advice}")
