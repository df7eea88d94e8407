"""Writes outer.json: python3 test/aggregator/golden/outer.py > test/aggregator/golden/outer.json

An independent float64 reference of the outer optimizers in plain Python, after the papers' formulas:
  FedAvg (McMahan 2017):    w += sum p_k Delta_k, p_k = n_k / sum n
  DiLoCo (Douillard 2023):  torch.optim.SGD(nesterov=True, dampening=0, weight_decay=0) on g = w - mean w_k:
                            buf = mu buf + g (the first time: buf = g); g = g + mu buf; w = w - lr g
Inputs are fp32 numbers; nothing is rounded in between, so the aggregator agrees to a few fp32 roundings.
"""

import json
import random
import struct


def fp32(x):
    return struct.unpack("<f", struct.pack("<f", x))[0]


random.seed(7)
SIZE, DEVICES, ROUNDS = 7, 3, 4
weights = [fp32(random.gauss(0, 0.5)) for _ in range(SIZE)]
rounds = [
    {
        "tokens": [random.randint(100, 9000) for _ in range(DEVICES)],
        "deltas": [[fp32(random.gauss(0, 0.02)) for _ in range(SIZE)] for _ in range(DEVICES)],
    }
    for _ in range(ROUNDS)
]


def mean(one, weighting):
    n = [float(t) for t in one["tokens"]] if weighting == "tokens" else [1.0] * DEVICES
    p = [x / sum(n) for x in n]
    return [sum(p[k] * one["deltas"][k][i] for k in range(DEVICES)) for i in range(SIZE)]


def fedavg(weighting):
    w, path = list(weights), []
    for one in rounds:
        w = [a + b for a, b in zip(w, mean(one, weighting))]
        path.append({"weights": list(w)})
    return path


def diloco(weighting, lr, mu):
    w, buf, path = list(weights), None, []
    for one in rounds:
        # w_k = w + Delta_k, so the outer gradient w - mean w_k is minus the mean update.
        g = [-x for x in mean(one, weighting)]
        buf = list(g) if buf is None else [mu * b + x for b, x in zip(buf, g)]
        step = [x + mu * b for x, b in zip(g, buf)]
        w = [a - lr * s for a, s in zip(w, step)]
        path.append({"weights": list(w), "state": list(buf)})
    return path


def case(name, weighting, lr, mu, path):
    return {"strategy": name, "weighting": weighting, "outerLearningRate": lr, "outerMomentum": mu, "path": path}


print(
    json.dumps(
        {
            "weights": weights,
            "rounds": rounds,
            "cases": [
                case("fedavg", "tokens", 0, 0, fedavg("tokens")),
                case("fedavg", "equal", 0, 0, fedavg("equal")),
                case("diloco", "tokens", 0.7, 0.9, diloco("tokens", 0.7, 0.9)),
                case("diloco", "equal", 0.7, 0.9, diloco("equal", 0.7, 0.9)),
                case("diloco", "tokens", 1.0, 0.0, diloco("tokens", 1.0, 0.0)),
            ],
        }
    )
)
