"""Writes scaffold.json: python3 test/aggregator/golden/scaffold.py > test/aggregator/golden/scaffold.json

A float64 reference of whole SCAFFOLD rounds (Karimireddy 2020, algorithm 1, option II) in plain Python: devices take local
steps y -= lr (g + c - c_k) on quadratic losses, two of five take part in a round, by turns. Server and devices keep fp32
numbers between rounds.
"""

import json
import random
import struct


def fp32(x):
    return struct.unpack("<f", struct.pack("<f", x))[0]


random.seed(3)
SIZE, DEVICES, ROUNDS, STEPS, RATE, ETA = 7, 5, 6, 4, 0.05, 0.9
curves = [[random.uniform(0.5, 3) for _ in range(SIZE)] for _ in range(DEVICES)]
optima = [[random.gauss(0, 1) for _ in range(SIZE)] for _ in range(DEVICES)]
w = [fp32(random.gauss(0, 0.5)) for _ in range(SIZE)]
c = [0.0] * SIZE
own = [[0.0] * SIZE for _ in range(DEVICES)]
start = w
rounds = []
for r in range(ROUNDS):
    updates = []
    for k in (r % DEVICES, (r + 2) % DEVICES):
        y = list(w)
        for _ in range(STEPS):
            y = [a - RATE * (h * (a - o) + b - d) for a, h, o, b, d in zip(y, curves[k], optima[k], c, own[k])]
        delta = [fp32(a - b) for a, b in zip(y, w)]
        after = [fp32(d - b - x / (STEPS * RATE)) for d, b, x in zip(own[k], c, delta)]
        change = [fp32(a - d) for a, d in zip(after, own[k])]
        updates.append({"device": k, "delta": delta, "before": own[k], "after": after, "change": change})
        own[k] = after
    w = [fp32(a + ETA * sum(u["delta"][i] for u in updates) / 2) for i, a in enumerate(w)]
    before = c
    c = [fp32(a + 2 / DEVICES * sum(u["change"][i] for u in updates) / 2) for i, a in enumerate(c)]
    rounds.append({"updates": updates, "commonBefore": before, "common": c, "weights": w})
options = {"steps": STEPS, "rate": RATE, "population": DEVICES, "outerLearningRate": ETA}
print(json.dumps({"start": start, "options": options, "rounds": rounds}, indent=1))
