import test from "ava";
import fc from "fast-check";
import { instantiate } from "#agent/backend/kernels/module.js";
import { StepVectors } from "#agent/backend/step-vectors.js";
import type { LaneGraphs } from "#common/graph/lanes.js";
import type { TrainGraphOptions } from "#common/graph/train.js";

const shape = { batch: 4, seqLen: 8, clipNorm: 0.5, weightDecay: 0.1 };
const adamw = { ...shape, optimizer: "adamw", beta1: 0.9, beta2: 0.95, eps: 1e-8 } as const;
const sgd = { ...shape, optimizer: "sgd", momentum: 0.9 } as const;

const KINDS: Readonly<Record<string, TrainGraphOptions>> = {
  adamw,
  "adamw to an anchor": { ...adamw, proximal: true },
  sgd,
  "sgd without momentum": { ...sgd, momentum: 0 },
  "sgd corrected": { ...sgd, corrected: true },
  "adamw unclipped": { ...adamw, clipNorm: 1e9 },
};

const MU = 0.3;
const LR = 0.01;
const STEP = 3;

interface Vectors {
  weights: number[];
  m: number[];
  v: number[];
}

/** The rules of Loshchilov and Hutter 2019 and of torch.optim.SGD, value by value in float64. */
function updated(
  options: TrainGraphOptions,
  { weights, m, v }: Vectors,
  gradients: number[],
  correction: number[],
  decays: boolean[],
): Vectors {
  const scale = Math.min(1, options.clipNorm / (Math.hypot(...gradients) + 1e-6));
  const next: Vectors = { weights: [], m: [], v: [] };
  weights.forEach((w, i) => {
    const [oldM, oldV] = [m[i] ?? 0, v[i] ?? 0];
    const decay = decays[i] === true ? options.weightDecay : 0;
    const g = scale * (gradients[i] ?? 0) + (options.corrected === true ? (correction[i] ?? 0) : 0);
    if (options.optimizer === "sgd") {
      const newM = options.momentum * oldM + g + decay * w;
      next.m.push(newM);
      next.weights.push(w - LR * newM);
      return;
    }
    const { beta1, beta2, eps } = options;
    const [newM, newV] = [beta1 * oldM + (1 - beta1) * g, beta2 * oldV + (1 - beta2) * g * g];
    next.m.push(newM);
    next.v.push(newV);
    const direction = newM / (1 - beta1 ** STEP) / (Math.sqrt(newV / (1 - beta2 ** STEP)) + eps);
    next.weights.push(w * (1 - LR * decay) - LR * direction);
  });
  return next;
}

const far = (got: ArrayLike<number>, expected: readonly number[]): number =>
  Math.max(0, ...expected.map((x, i) => Math.abs(x - (got[i] ?? NaN)) / (1e-3 + Math.abs(x))));

for (const [name, options] of Object.entries(KINDS)) {
  test(`${name}: the kernels follow the rule, however many lanes and values there are`, (t) => {
    const sizes = fc.array(fc.record({ size: fc.integer({ min: 1, max: 23 }), decay: fc.boolean() }), {
      minLength: 1,
      maxLength: 5,
    });
    const property = fc.property(sizes, fc.integer({ min: 1, max: 3 }), fc.nat(1000), (pieces, lanes, seed) => {
      const count = pieces.reduce((sum, { size }) => sum + size, 0);
      const wave = (phase: number): Float32Array =>
        Float32Array.from({ length: count }, (_, i) => Math.sin(seed + 7 * phase + i * (phase + 1)));
      const graphs: LaneGraphs = { lanes, gradient: new Uint8Array(), options, pieces };
      const vectors = new StepVectors(instantiate(), graphs);
      const keepsM = vectors.trained.kept.includes("m");
      const [weights, m, v] = [wave(1), wave(2), wave(3).map(Math.abs)];
      vectors.trained.load({ weights, m, v });
      const [anchor, correction] = [wave(4), wave(5)];
      if (options.proximal === true) vectors.setTerms({ anchor, mu: MU });
      if (options.corrected === true) vectors.setTerms({ correction });
      const parts = vectors.gradients.map((flat, lane) => {
        flat.set(wave(10 + lane));
        return [...flat];
      });
      const total = [...weights].map((w, i) => {
        const sum = parts.reduce((all, part) => all + (part[i] ?? 0), 0);
        return options.proximal === true ? sum + MU * (w - (anchor[i] ?? 0)) : sum;
      });
      const norm = vectors.reduce();
      vectors.update(LR, STEP, norm);
      const decays = pieces.flatMap(({ size, decay }) => Array.from({ length: size }, () => decay));
      const before = { weights: [...weights], m: keepsM ? [...m] : [], v: [...v] };
      const expected = updated(options, before, total, [...correction], decays);
      const got = vectors.trained.copy();
      t.true(far([norm], [Math.hypot(...total)]) < 1e-6);
      t.true(far(got.weights, expected.weights) < 1e-4);
      t.true(far(got.m, keepsM ? expected.m : []) < 1e-3);
      t.true(far(got.v, options.optimizer === "sgd" ? [] : expected.v) < 1e-3);
    });
    t.notThrows(() => {
      fc.assert(property, { numRuns: 40 });
    });
  });
}
