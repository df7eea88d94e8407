import test from "ava";
import fc from "fast-check";
import { readFileSync } from "node:fs";
import { decodeTrainingJob } from "#common/domain/manifest.js";
import { STRATEGIES, STRATEGY_PARAMETERS, strategyFacts } from "#common/domain/strategy-table.js";
import { completeTrainingJob } from "#common/domain/typed-job.js";
import { codecByName, codecNames } from "#common/tensor/codec.js";
import { readModel } from "#services/scheduler/model-reading.js";
import { jobOf, manifest, TINY } from "../scheduler/world.js";

type Plain = Record<string, unknown>;
const names = Object.keys(STRATEGIES);

/** What a strategy needs beside its name to be accepted. */
const needs = (name: string): Plain => ({
  strategy: { name },
  cohort: { min: 3 },
  ...(name === "sparseLoco" ? { codec: { name: "topk" } } : {}),
  ...(name === "streamingDiloco" ? { rounds: 4, model: { config: { ...TINY, n_layer: 4 } } } : {}),
  ...(name === "scaffold" ? { local: { steps: 10, optimizer: { name: "sgd" } } } : {}),
  ...(name === "fedprox" ? { local: { steps: 10, proximalMu: 0.01 } } : {}),
});

/** A streaming job over four layers. */
const streaming = (strategy: Plain): Plain => ({
  ...needs("streamingDiloco"),
  strategy: { name: "streamingDiloco", ...strategy },
});

/** A job with control variates. */
const controlled = (strategy: Plain, over: Plain = {}): Plain => ({
  ...needs("scaffold"),
  ...over,
  strategy: { name: "scaffold", ...strategy },
});

const buffered = (strategy: Plain, cohort: Plain = {}): Plain => ({
  strategy: { name: "fedbuff", ...strategy },
  cohort,
});

/** What is put into spec, and the field, a piece of the value and a piece of the remedy that must come back. */
const clashes: [string, Plain, string, string, RegExp][] = [
  ["foreign momentum", { strategy: { name: "fedavg", outerMomentum: 0.5 } }, "strategy.outerMomentum", "0.5", /diloco/],
  ["foreign trim", { strategy: { trim: 0.1 } }, "strategy.trim", "0.1", /but to trimmedMean; leave it out/],
  ["trim of half", { strategy: { name: "trimmedMean", trim: 0.5 } }, "strategy.trim", "0.5", /0 to 0.49/],
  ["tau of 0", { strategy: { name: "fedadam", tau: 0 } }, "strategy.tau", "0", /above 0/],
  [
    "tokens weigh in a robust rule",
    { strategy: { name: "median", weighting: "tokens" }, cohort: { min: 3 } },
    "strategy.weighting",
    "tokens",
    /use "equal"/,
  ],
  [
    "a buffer below the quorum",
    buffered({ bufferSize: 3 }, { min: 4 }),
    "strategy.bufferSize",
    "3",
    /lower cohort.min/,
  ],
  ["the default buffer below the quorum", buffered({}, { min: 11 }), "strategy.bufferSize", "", /cohort.min \(11\)/],
  [
    "spare devices beside a buffer",
    buffered({}, { target: 4, overCommit: 1.3 }),
    "cohort.overCommit",
    "1.3",
    /leave it out/,
  ],
  ["nothing stale", buffered({ maxStaleness: 0 }), "strategy.maxStaleness", "0", /1 to 100/],
  ["a buffer with control variates", buffered({ population: 9 }), "strategy.population", "9", /scaffold; leave it out/],
  ["a buffer of fragments", buffered({ fragments: 2 }), "strategy.fragments", "2", /streamingDiloco; leave it out/],
  ["a robust buffer", buffered({ trim: 0.1 }), "strategy.trim", "0.1", /trimmedMean; leave it out/],
  ["a buffer without FedBuff", { strategy: { bufferSize: 3 } }, "strategy.bufferSize", "3", /to fedbuff; leave it out/],
  ["robust with two", { strategy: { name: "median" }, cohort: { min: 2 } }, "cohort.min", "2", /at least 3/],
  [
    "Krum with too few",
    { strategy: { name: "krum", byzantine: 2 }, cohort: { min: 6 } },
    "cohort.min",
    "6",
    /at least 7/,
  ],
  [
    "more selected than honest",
    { strategy: { name: "multiKrum", byzantine: 2, selected: 6 }, cohort: { min: 7 } },
    "strategy.selected",
    "6",
    /lower it/,
  ],
  ...(["median", "trimmedMean", "krum", "multiKrum"] as const).map((name): [string, Plain, string, string, RegExp] => [
    `${name} of sparse updates`,
    { strategy: { name }, cohort: { min: 3 }, codec: { name: "topk" } },
    "codec.name",
    "topk",
    /another codec/,
  ]),
  ["SparseLoCo of dense ones", { strategy: { name: "sparseLoco" } }, "codec.name", "int8", /needs "topk"/],
  [
    "top-k without feedback",
    { codec: { name: "topk", errorFeedback: false } },
    "codec.errorFeedback",
    "false",
    /must be true/,
  ],
  ["sizes of another codec", { codec: { topk: { keep: 3 } } }, "codec.topk", "keep", /only for the codec "topk"/],
  ["keep above block", { codec: { name: "topk", topk: { keep: 65, block: 64 } } }, "codec.topk.keep", "65", /\(64\)/],
  ["block below keep", { codec: { name: "topk", topk: { block: 63 } } }, "codec.topk.block", "63", /give keep too/],
  ["block too large", { codec: { name: "topk", topk: { block: 32769 } } }, "codec.topk.block", "32769", /to 32768/],
  ["3 bits", { codec: { name: "topk", topk: { valueBits: 3 } } }, "codec.topk.valueBits", "3", /one of 2, 4, 8/],
  ["decay of nothing", { codec: { name: "fp32", errorDecay: 0.9 } }, "codec.errorDecay", "0.9", /leave it out/],
  ["decay unfed", { codec: { errorFeedback: false, errorDecay: 0.9 } }, "codec.errorDecay", "0.9", /leave it out/],
  [
    "nothing to round",
    { codec: { name: "fp32", stochasticRounding: true } },
    "codec.stochasticRounding",
    "true",
    /nothing to round/,
  ],
  ["FedProx without its term", { strategy: { name: "fedprox" } }, "local.proximalMu", "0", /0\.01, or use "fedavg"/],
  ["more fragments than layers", streaming({ fragments: 5 }), "strategy.fragments", "5", /above the 4 layers/],
  [
    "more fragments than layers that are trained",
    {
      ...streaming({ fragments: 3 }),
      training: { trained: ["transformer.h.0.*", "transformer.h.2.*", "transformer.wte.weight"] },
    },
    "strategy.fragments",
    "3",
    /above the 2 layers that are trained/,
  ],
  ["more fragments than rounds", { ...streaming({ fragments: 4 }), rounds: 3 }, "rounds", "3", /raise rounds/],
  ["as many by default", { ...streaming({}), rounds: 3 }, "rounds", "3", /strategy.fragments \(4\)/],
  ["sparse fragments", { ...streaming({}), codec: { name: "topk" } }, "codec.name", "topk", /carry .* twice/],
  ["fragments of DiLoCo", { strategy: { fragments: 2 } }, "strategy.fragments", "2", /but to streamingDiloco/],
  [
    "a round that is all overlap",
    { ...streaming({ overlapSteps: 10 }), local: { steps: 10 } },
    "strategy.overlapSteps",
    "10",
    /local.steps \(10\).*raise local.steps/,
  ],
  ["half a step of overlap", streaming({ overlapSteps: 0.5 }), "strategy.overlapSteps", "0.5", /whole number from 0/],
  ["overlap before the start", streaming({ overlapSteps: -1 }), "strategy.overlapSteps", "-1", /whole number from 0/],
  [
    "overlap without fragments",
    { strategy: { name: "diloco", overlapSteps: 2 } },
    "strategy.overlapSteps",
    "2",
    /but to streamingDiloco; leave it out/,
  ],
  ["nothing global", streaming({ mixing: 1 }), "strategy.mixing", "1", /0 to 0.99/],
  ["SCAFFOLD over AdamW", { strategy: { name: "scaffold" } }, "local.optimizer.name", "adamw", /use "sgd"/],
  [
    "SCAFFOLD with momentum",
    controlled({}, { local: { optimizer: { name: "sgd", momentum: 0.9 } } }),
    "local.optimizer.momentum",
    "0.9",
    /in place of gradients/,
  ],
  [
    "SCAFFOLD with FedProx's term",
    controlled({}, { local: { proximalMu: 0.1, optimizer: { name: "sgd" } } }),
    "local.proximalMu",
    "0.1",
    /leave it out/,
  ],
  ["SCAFFOLD by tokens", controlled({ weighting: "tokens" }), "strategy.weighting", "tokens", /use "equal"/],
  ["SCAFFOLD, sparse", controlled({}, { codec: { name: "topk" } }), "codec.name", "topk", /use "int8" or "int4"/],
  ["SCAFFOLD, encoded down", controlled({}, { codec: { down: "int4" } }), "codec.down", "int4", /use "none"/],
  ["an unknown way down", { codec: { down: "topk" } }, "codec.down", "topk", /int8/],
  ["SCAFFOLD with a norm bound", controlled({ normBound: 1 }), "strategy.normBound", "1", /maxUpdateNorm/],
  ["a population below the cohort", controlled({ population: 2 }), "strategy.population", "2", /cohort \(3\)/],
  ["a population of FedAvg", { strategy: { population: 9 } }, "strategy.population", "9", /but to scaffold/],
  [
    "a bound that is never met",
    { strategy: { normBound: 5, maxUpdateNorm: 5 } },
    "strategy.normBound",
    "5",
    /maxUpdateNorm \(5\)/,
  ],
];

for (const [what, spec, field, value, remedy] of clashes) {
  test(`refused: ${what}`, (t) => {
    const decoded = decodeTrainingJob(manifest("first", spec), readModel);
    if (decoded.ok) return t.fail("was accepted");
    const found = decoded.violations.filter((violation) => violation.field === `spec.${field}`);
    t.is(found.length, 1, JSON.stringify(decoded.violations));
    t.true(found[0]?.value.includes(value), found[0]?.value);
    t.regex(found[0]?.description ?? "", remedy);
  });
}

for (const name of names) {
  test(`${name} is accepted with what it needs, with its own parameters and no others`, (t) => {
    const stored = jobOf("first", needs(name));
    const { strategy } = stored.spec ?? {};
    const own = strategyFacts(name)?.parameters ?? {};
    for (const key of STRATEGY_PARAMETERS) {
      t.is(strategy?.[key], own[key] ?? (key === "biasCorrection" ? false : 0), key);
    }
    const isEqual = strategyFacts(name)?.robust !== undefined || name === "scaffold" || name === "fedbuff";
    t.is(strategy?.weighting, isEqual ? "equal" : "tokens");
    if (name === "scaffold") t.is(stored.spec?.local?.optimizer?.momentum, 0, "not SGD's own default");
    // What is stored is also what is understood when it comes back in the typed form.
    t.deepEqual(completeTrainingJob(stored, readModel, stored.spec), { ok: true, value: stored });
  });
}

test("steps overlap up to all but one of a round", (t) => {
  const job = jobOf("first", { ...streaming({ overlapSteps: 9 }), local: { steps: 10 } });
  t.is(job.spec?.strategy?.overlapSteps, 9);
});

test("every strategy with every codec is either accepted or refused for a field of its own", (t) => {
  const verdicts = new Map<string, string[]>();
  for (const strategy of names) {
    for (const codec of codecNames) {
      const spec = { ...needs(strategy), codec: { name: codec } };
      const decoded = decodeTrainingJob(manifest("first", spec), readModel);
      verdicts.set(`${strategy} ${codec}`, decoded.ok ? [] : decoded.violations.map(({ field }) => field));
    }
  }
  const refused = [...verdicts].filter(([, fields]) => fields.length > 0);
  t.true(refused.every(([, fields]) => fields.join() === "spec.codec.name"));
  t.deepEqual(refused.map(([pair]) => pair).sort(), [
    "krum topk",
    "median topk",
    "multiKrum topk",
    "scaffold topk",
    "sparseLoco bf16",
    "sparseLoco fp32",
    "sparseLoco int4",
    "sparseLoco int8",
    "streamingDiloco topk",
    "trimmedMean topk",
  ]);
});

test("codecs get their own sizes and decay", (t) => {
  const codec = (of: Plain): unknown => jobOf("first", { codec: of }).spec?.codec;
  const none = { errorFeedback: true, topk: undefined, stochasticRounding: false, down: "" };
  t.deepEqual(codec({ name: "fp32" }), { ...none, name: "fp32", errorDecay: 0 });
  t.deepEqual(codec({ name: "int4" }), { ...none, name: "int4", errorDecay: 1 });
  t.deepEqual(codec({ name: "int8", errorFeedback: false }), {
    ...none,
    name: "int8",
    errorFeedback: false,
    errorDecay: 0,
  });
  const topk = { keep: 64, block: 4096, valueBits: 2 };
  t.deepEqual(codec({ name: "topk" }), { ...none, name: "topk", topk, errorDecay: 0.95 });
  t.deepEqual(codec({ name: "topk", topk: { keep: 8, valueBits: 4 }, errorDecay: 1 }), {
    ...none,
    name: "topk",
    topk: { keep: 8, block: 4096, valueBits: 4 },
    errorDecay: 1,
  });
});

test("sizes that are accepted are sizes the codec takes", (t) => {
  const sizes = fc.record(
    { keep: fc.nat(300), block: fc.nat(40_000), valueBits: fc.constantFrom(1, 2, 4, 8) },
    { requiredKeys: [] },
  );
  fc.assert(
    fc.property(sizes, (topk) => {
      const decoded = decodeTrainingJob(manifest("first", { codec: { name: "topk", topk } }), readModel);
      return !decoded.ok || codecByName("topk", decoded.value.spec?.codec?.topk) !== undefined;
    }),
  );
  t.pass();
});

test("every strategy and codec has its line in the manifest's documentation", (t) => {
  const text = readFileSync("docs/manifest.md", "utf8");
  for (const name of [...names, ...codecNames]) t.true(text.includes(`\`${name}\``), name);
  for (const key of STRATEGY_PARAMETERS) t.true(text.includes(`\`${key}\``) || text.includes(`.${key}\``), key);
});
