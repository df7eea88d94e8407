"""Writes strategies.json: python3 test/aggregator/golden/strategies.py > test/aggregator/golden/strategies.json

An independent float64 reference of the strategies in plain Python, after the papers' formulas (design: FedAdam, FedYogi,
FedAdagrad from Reddi 2021 with v = tau^2 at the start; median and trimmed mean from Yin 2018; Krum from Blanchard 2017;
centered clipping from Karimireddy 2021; norm bound from Sun 2019; SparseLoCo's outer step from Sarfi 2025). Vectors are
handled whole and distances taken straight from differences, where the aggregator works by pieces and inner products.
Inputs are fp32 numbers; states are rounded to fp32 between rounds, as the aggregator keeps them.
"""

import json
import math
import random
import statistics
import struct


def fp32(x):
    return struct.unpack("<f", struct.pack("<f", x))[0]


random.seed(11)
SIZE, DEVICES, ROUNDS = 9, 8, 3
weights = [fp32(random.gauss(0, 0.5)) for _ in range(SIZE)]
truth = [random.gauss(0, 0.02) for _ in range(SIZE)]
rounds = []
for _ in range(ROUNDS):
    deltas = [[fp32(t + random.gauss(0, 0.01)) for t in truth] for _ in range(DEVICES)]
    # Two that are far off, and a coordinate in which updates are equal.
    deltas[2] = [fp32(-5 * x) for x in deltas[2]]
    deltas[5] = [fp32(random.gauss(0, 3)) for _ in range(SIZE)]
    for k in (0, 1, 3):
        deltas[k][4] = deltas[0][4]
    rounds.append({"tokens": [random.randint(100, 9000) for _ in range(DEVICES)], "deltas": deltas})


def norm(x):
    return math.sqrt(math.fsum(v * v for v in x))


def minus(x, y):
    return [a - b for a, b in zip(x, y)]


def weighted(xs, ps):
    return [math.fsum(p * x[i] for p, x in zip(ps, xs)) for i in range(SIZE)]


def mean(xs, _tokens, o, _state):
    n = _tokens if o["weighting"] == "tokens" else [1.0] * len(xs)
    return weighted(xs, [t / math.fsum(n) for t in n])


def median(xs, _tokens, _o, _state):
    return [statistics.median(x[i] for x in xs) for i in range(SIZE)]


def trimmed(xs, _tokens, o, _state):
    drop = math.ceil(o["trim"] * len(xs) - 1e-9)
    return [statistics.fmean(sorted(x[i] for x in xs)[drop : len(xs) - drop]) for i in range(SIZE)]


def krum_order(xs, f):
    n = len(xs)
    score = [sum(sorted(norm(minus(xs[i], xs[j])) ** 2 for j in range(n) if j != i)[: n - f - 2]) for i in range(n)]
    return sorted(range(n), key=lambda i: (score[i], i))


def krum(xs, _tokens, o, _state):
    return xs[krum_order(xs, o["byzantine"] or (len(xs) - 3) // 2)[0]]


def multi_krum(xs, _tokens, o, _state):
    f = o["byzantine"] or (len(xs) - 3) // 2
    m = o["selected"] or len(xs) - f
    return weighted([xs[k] for k in krum_order(xs, f)[:m]], [1 / m] * m)


def centered(xs, _tokens, o, state):
    v = [0.0] * SIZE if state is None else state
    for _ in range(o["clipIterations"]):
        gaps = [minus(x, v) for x in xs]
        lengths = [norm(g) for g in gaps]
        tau = o["clipRadius"] or statistics.median(lengths)
        pulls = [[min(1, tau / d) * c for c in g] for g, d in zip(gaps, lengths)]
        v = [a + b for a, b in zip(v, weighted(pulls, [1 / len(xs)] * len(xs)))]
    return v


def plain(w, d, _state, o):
    return [a + o.get("outerLearningRate", 1) * b for a, b in zip(w, d)], None


def nesterov(w, d, state, o):
    buf = [o["outerMomentum"] * b - x for b, x in zip(state or [0.0] * SIZE, d)]
    return [a - o["outerLearningRate"] * (o["outerMomentum"] * b - x) for a, b, x in zip(w, buf, d)], buf


def remember(w, d, _state, o):
    return plain(w, d, None, o)[0], d


def adaptive(kind):
    def step(w, d, state, o):
        b1, b2, tau, fix = o["beta1"], o.get("beta2"), o["tau"], o.get("biasCorrection", False)
        if state is None:
            state = [0.0] * SIZE + [0.0 if fix else tau * tau] * SIZE + [0]
        m = [b1 * a + (1 - b1) * x for a, x in zip(state[:SIZE], d)]
        v = state[SIZE : 2 * SIZE]
        if kind == "adam":
            v = [b2 * a + (1 - b2) * x * x for a, x in zip(v, d)]
        elif kind == "yogi":
            v = [a - (1 - b2) * x * x * ((a > x * x) - (a < x * x)) for a, x in zip(v, d)]
        else:
            v = [a + x * x for a, x in zip(v, d)]
        t = state[-1] + 1
        hm = [a / (1 - b1**t) for a in m] if fix else m
        hv = [a / (1 - b2**t) for a in v] if fix else v
        next_w = [a + o["outerLearningRate"] * x / (math.sqrt(y) + tau) for a, x, y in zip(w, hm, hv)]
        return next_w, m + v + [t]

    return step


def case(name, rule, step, **options):
    o = {"weighting": "equal", **options}
    w, state, path = list(weights), None, []
    for one in rounds:
        xs = one["deltas"]
        if o.get("normBound"):
            xs = [[fp32(min(1, o["normBound"] / norm(x)) * v) for v in x] for x in xs]
        d = rule(xs, one["tokens"], o, state)
        w, state = step(w, d, state, o)
        w = [fp32(x) for x in w]
        state = None if state is None else [fp32(x) for x in state]
        path.append({"direction": d, "weights": w, **({} if state is None else {"state": state})})
    return {"options": {"name": name, **o}, "path": path}


adam = {"beta1": 0.9, "beta2": 0.99, "tau": 1e-3}
cases = [
    case("fedavg", mean, plain, weighting="tokens"),
    case("fedavg", mean, plain, normBound=0.05),
    case("fedprox", mean, plain, weighting="tokens"),
    case("sparseLoco", mean, plain, outerLearningRate=0.9, weighting="tokens"),
    case("streamingDiloco", mean, nesterov, outerLearningRate=0.7, outerMomentum=0.9, weighting="tokens"),
    case("fedadam", mean, adaptive("adam"), outerLearningRate=0.1, **adam),
    case("fedadam", mean, adaptive("adam"), outerLearningRate=0.1, biasCorrection=True, weighting="tokens", **adam),
    case("fedyogi", mean, adaptive("yogi"), outerLearningRate=0.01, weighting="tokens", **adam),
    case("fedyogi", mean, adaptive("yogi"), outerLearningRate=0.01, **{**adam, "beta2": 0.5, "tau": 0.3}),
    case("fedadagrad", mean, adaptive("adagrad"), outerLearningRate=0.1, beta1=0.9, tau=1e-3),
    case("median", median, plain, outerLearningRate=1),
    case("median", median, nesterov, outerLearningRate=0.7, outerMomentum=0.9),
    case("trimmedMean", trimmed, plain, outerLearningRate=1, trim=0.2),
    case("trimmedMean", trimmed, plain, outerLearningRate=1, trim=0.1, normBound=0.05),
    case("krum", krum, plain, outerLearningRate=1, byzantine=0),
    case("krum", krum, nesterov, outerLearningRate=0.5, outerMomentum=0.5, byzantine=1),
    case("multiKrum", multi_krum, plain, outerLearningRate=1, byzantine=2, selected=0),
    case("multiKrum", multi_krum, plain, outerLearningRate=1, byzantine=0, selected=3),
    case("centeredClipping", centered, remember, outerLearningRate=1, clipRadius=0, clipIterations=5),
    case("centeredClipping", centered, remember, outerLearningRate=0.5, clipRadius=0.03, clipIterations=1),
]
print(json.dumps({"weights": weights, "rounds": rounds, "cases": cases}))
