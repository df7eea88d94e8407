"""Writes streaming.json: python3 test/aggregator/golden/streaming.py > test/aggregator/golden/streaming.json

An independent float64 reference of Streaming DiLoCo (Douillard 2025, arXiv 2501.18512, algorithm 2, no overlap) in plain
Python: devices with quadratic losses take plain SGD steps on weights of their own; after every H / P steps the next of P
fragments is synchronised by Nesterov SGD on the mean outer gradient (global - local), and each device mixes what comes
back with its own: theta = a local + (1 - a) global. Inputs are fp32 numbers; nothing is rounded in between.
"""

import json
import random
import struct


def fp32(x):
    return struct.unpack("<f", struct.pack("<f", x))[0]


random.seed(23)
SIZE, DEVICES, ROUNDS, STEPS, RATE = 11, 3, 7, 4, 0.05
FRAGMENTS = [[0, 1, 6, 7], [2, 3, 8], [4, 5, 9, 10]]
weights = [fp32(random.gauss(0, 0.5)) for _ in range(SIZE)]
devices = [
    {
        "curvature": [fp32(random.uniform(0.2, 2)) for _ in range(SIZE)],
        "minimum": [fp32(random.gauss(0, 1)) for _ in range(SIZE)],
    }
    for _ in range(DEVICES)
]


def run(fragments, mixing, rate, momentum):
    world, buf = list(weights), [0.0] * SIZE
    own = [list(weights) for _ in devices]
    path = []
    for n in range(ROUNDS):
        for w, d in zip(own, devices):
            for _ in range(STEPS):
                for i in range(SIZE):
                    w[i] -= RATE * d["curvature"][i] * (w[i] - d["minimum"][i])
        for i in fragments[n % len(fragments)]:
            g = world[i] - sum(w[i] for w in own) / DEVICES
            buf[i] = momentum * buf[i] + g
            world[i] -= rate * (g + momentum * buf[i])
            for w in own:
                w[i] = mixing * w[i] + (1 - mixing) * world[i]
        path.append({"weights": list(world), "state": list(buf), "own": [list(w) for w in own]})
    return {"fragments": fragments, "mixing": mixing, "rate": rate, "momentum": momentum, "path": path}


cases = [
    run(FRAGMENTS, 0.5, 0.7, 0.9),
    run(FRAGMENTS, 0.0, 0.7, 0.9),
    run(FRAGMENTS, 0.25, 1.0, 0.0),
    run([list(range(SIZE))], 0.5, 0.7, 0.9),
]
print(json.dumps({"weights": weights, "devices": devices, "steps": STEPS, "localRate": RATE, "cases": cases}))
