"""Writes fedbuff.json: python3 test/aggregator/golden/fedbuff.py > test/aggregator/golden/fedbuff.json

A float64 reference of FedBuff (Nguyen 2022, algorithm 1) in plain Python: devices of different speed take local steps on
quadratic losses from the weights that were newest when they began; the server applies the first K updates that arrive, each times
1 / sqrt(1 + staleness), and every device begins anew as soon as it is done. The server keeps fp32 numbers.
"""

import json
import random
import struct


def fp32(x):
    return struct.unpack("<f", struct.pack("<f", x))[0]


random.seed(5)
SIZE, STEPS, RATE, ETA, K, FOLDS = 6, 3, 0.1, 0.8, 3, 7
SECONDS = [1.0, 1.3, 1.7, 4.1, 9.7]
curves = [[random.uniform(0.5, 3) for _ in range(SIZE)] for _ in SECONDS]
optima = [[random.gauss(0, 1) for _ in range(SIZE)] for _ in SECONDS]
w = [fp32(random.gauss(0, 0.5)) for _ in range(SIZE)]
start, version, buffer, folds = w, 0, [], []
# Each: when it is done, device, version and weights it began with.
work = [(seconds, k, 0, w) for k, seconds in enumerate(SECONDS)]
while len(folds) < FOLDS:
    work.sort(key=lambda one: one[0])
    at, k, began, base = work.pop(0)
    y = list(base)
    for _ in range(STEPS):
        y = [a - RATE * h * (a - o) for a, h, o in zip(y, curves[k], optima[k])]
    buffer.append({"device": k, "began": began, "delta": [fp32(a - b) for a, b in zip(y, base)]})
    if len(buffer) == K:
        shares = [(1 + version - u["began"]) ** -0.5 for u in buffer]
        w = [fp32(a + ETA / K * sum(s * u["delta"][i] for s, u in zip(shares, buffer))) for i, a in enumerate(w)]
        folds.append({"updates": buffer, "shares": shares, "weights": w})
        version, buffer = version + 1, []
    work.append((at + SECONDS[k], k, version, w))
print(json.dumps({"start": start, "outerLearningRate": ETA, "folds": folds}, indent=1))
