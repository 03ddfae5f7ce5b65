"""Offline work is not free when queries keep coming: how many an hour the study's two protocols sustain."""

from deepreshape import architecture, build, price
from deepreshape.cost import QueryService, simulate, sustainable

resnet = architecture("resnet18", (3, 32, 32), classes=10)
network = build(resnet, "meta")
for name in ("server-garbler", "client-garbler+lphe+wsa"):
    report = price(network, resnet.input, protocol=name).report
    online = report.only(phase="online").seconds
    stored = report.stored_client, report.stored_server
    service = QueryService.of(report.seconds - online, online, stored, storage=(16e9, 10e12))
    served = simulate(service, an_hour=4, hours=240)
    print(f"{name}: {service.buffer} batches fit; at 4 an hour a query takes {served.mean:.0f} s in the mean")
    print(f"    {sustainable(service, seeds=3):.1f} queries an hour are sustained, {service.limit:.1f} is the limit")
