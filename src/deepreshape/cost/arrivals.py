"""Queries keep coming, and offline work is not free: how many an hour a client and a server can answer.

The setting is that of Garimella et al. (ASPLOS 2023): queries arrive at random (Poisson), each uses up one offline
batch, batches are made ahead as far as both parties' storage goes, and the same machines do both. Online work goes
first; offline work is put aside for it and goes on afterwards. A query that finds no batch waits until one is made.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from math import ceil
from random import Random
from statistics import mean, quantiles

__all__ = ["QueryService", "Served", "simulate", "sustainable"]

HOUR = 3600.0
QUERIES = 50_000
"""About the most that one simulation of a sustainable rate serves."""


@dataclass(frozen=True)
class QueryService:
    """One query's work, and how many batches can lie ready.

    Attributes:
        offline, online: seconds of work.
        buffer: batches that fit both parties' storage; with 0 each query has its batch made while it waits.
    """

    offline: float
    online: float
    buffer: int

    @property
    def limit(self) -> float:
        """Queries an hour beyond which the queue grows without end, whatever is stored."""
        return HOUR / (self.offline + self.online)

    @classmethod
    def of(cls, offline: float, online: float, stored: tuple[int, int], storage: tuple[float, float]) -> QueryService:
        """As many batches as fit: ``stored`` bytes of each at (client, server) into ``storage``."""
        fits = [int(room // need) for need, room in zip(stored, storage, strict=True) if need]
        return cls(offline, online, min(fits, default=0))


@dataclass(frozen=True)
class Served:
    """What became of the queries.

    Attributes:
        queries: how many there were.
        mean, worst: seconds from arrival to answer: the mean, and what 95 of 100 stay below.
        ready: share that found a batch when their turn came.
    """

    queries: int
    mean: float
    worst: float
    ready: float


def simulate(service: QueryService, an_hour: float, *, hours: float = 24.0, seed: int = 0) -> Served:
    """Serve ``hours`` of random arrivals, from a full buffer on.

    Raises:
        ValueError: if no query arrives.
    """
    draw = Random(seed)  # noqa: S311 - a simulation, no secret
    arrivals: deque[float] = deque()
    at = draw.expovariate(an_hour / HOUR) if an_hour > 0 else hours * HOUR
    while at < hours * HOUR:
        arrivals.append(at)
        at += draw.expovariate(an_hour / HOUR)
    if not arrivals:
        raise ValueError(f"{an_hour} queries an hour: none arrives in {hours:g} hours")
    now, done, stock = 0.0, 0.0, service.buffer
    waiting: deque[float] = deque()
    answered: list[float] = []
    ready = 0
    seen = False
    while arrivals or waiting:
        while arrivals and arrivals[0] <= now:
            waiting.append(arrivals.popleft())
        if waiting and not seen:
            seen = True
            ready += stock > 0
        if waiting and stock:
            stock, seen = stock - 1, False
            now += service.online
            answered.append(now - waiting.popleft())
        elif waiting or stock < service.buffer:
            finished = now + service.offline - done
            if arrivals and arrivals[0] < finished:
                done, now = done + arrivals[0] - now, arrivals[0]
            else:
                done, now, stock = 0.0, finished, stock + 1
        else:
            now = arrivals[0]
    worst = quantiles(answered, n=20, method="inclusive")[-1] if len(answered) > 1 else answered[0]
    return Served(len(answered), mean(answered), worst, ready / len(answered))


def sustainable(service: QueryService, *, hours: float = 24.0, seeds: int = 10, patience: float = 2.0) -> float:
    """Queries an hour at which the mean time to an answer reaches ``patience`` times that of one query from scratch.

    Of more than :data:`QUERIES` a part is served, in as much less time and from as many fewer batches (a number too
    small to matter among so many stays).
    """
    queries = service.limit * hours
    if queries > QUERIES:
        part = QUERIES / queries
        hours *= part
        service = replace(service, buffer=max(min(service.buffer, QUERIES // 1000), ceil(part * service.buffer)))
    runs = range(max(1, min(seeds, int(QUERIES / queries))))
    bound = patience * (service.offline + service.online)
    low, high = 0.0, 2 * service.limit
    for _ in range(12):
        rate = (low + high) / 2
        if rate * hours < 1:
            break
        waited = mean(simulate(service, rate, hours=hours, seed=seed).mean for seed in runs)
        low, high = (rate, high) if waited <= bound else (low, rate)
    return low
