"""What networks would have cost in the published study, offline work included."""

from deepreshape import architecture, build, price

for name in ("resnet18", "hrn-5x5x3x", "hrn-2x5x2x-m32", "wideresnet22-8"):
    design = architecture(name)
    report = price(build(design, "meta"), design.input, protocol="server-garbler+lphe+wsa").report
    by_kind = {kind: report.only(kind=kind).seconds for kind in ("he", "garble", "evaluate", "send")}
    parts = ", ".join(f"{kind} {seconds:,.0f}" for kind, seconds in by_kind.items())
    print(f"{name:16} {report.seconds:>6,.0f} s ({parts}); the client stores {report.stored_client / 1e9:.1f} GB")
