import test from "ava";
import fc from "fast-check";
import { StrategySpec, TrainingJob } from "#proto/shoal/v1/job.js";
import { decodeDataset, decodeTrainingJob } from "#common/domain/manifest.js";
import { completeTrainingJob } from "#common/domain/typed-job.js";
import { readModel } from "#services/scheduler/model-reading.js";
import { jobOf, manifest, TINY } from "../scheduler/world.js";

type Plain = Record<string, unknown>;
const config = (over: Plain): Plain => ({ model: { config: { ...TINY, ...over } } });

test("a short manifest gets every default", (t) => {
  const { spec } = jobOf("first");
  t.deepEqual(spec?.cohort, { min: 1, target: 0, overCommit: 1, selector: {} });
  const strategy = { name: "diloco", outerLearningRate: 0.7, outerMomentum: 0.9, weighting: "tokens" };
  t.deepEqual(spec?.strategy, StrategySpec.fromPartial(strategy));
  const codec = {
    name: "int8",
    errorFeedback: true,
    topk: undefined,
    errorDecay: 1,
    stochasticRounding: false,
    down: "",
  };
  t.deepEqual(spec?.codec, codec);
  t.deepEqual(spec?.evaluation, { everyRounds: 1, finalRound: true });
  t.deepEqual(spec?.local?.optimizer, {
    name: "adamw",
    learningRate: 1e-3,
    beta1: 0.9,
    beta2: 0.99,
    eps: 1e-8,
    weightDecay: 0.1,
    clipNorm: 1,
    keepState: true,
    momentum: 0,
    schedule: { name: "cosine", warmupSteps: 10, minRatio: 0.1 },
  });
  t.is(spec?.data?.seqLen, 16, "no longer than the model's context");
  t.is(spec?.model?.tokenizer?.kind, "bytes");
  t.is(spec?.local?.stepPolicy, "proportional");
});

/** What is put into spec, and the field, a piece of the value and a piece of the remedy that must come back. */
const refusals: [string, Plain, string, string, RegExp][] = [
  ["unknown field", { lokal: { steps: 3 } }, "spec.lokal", "steps", /did you mean "local"/],
  ["unknown nested field", { local: { step: 3 } }, "spec.local.step", "3", /did you mean "steps"/],
  ["snake case", { local: { batch_size: 3 } }, "spec.local.batch_size", "3", /did you mean "batchSize"/],
  ["foreign field", { xyzzy: 1 }, "spec.xyzzy", "1", /use one of model, data/],
  ["wrong type", { rounds: "many" }, "spec.rounds", "many", /whole number from 1 to 100000/],
  ["fraction", { rounds: 2.5 }, "spec.rounds", "2.5", /whole number/],
  ["zero", { local: { steps: 0 } }, "spec.local.steps", "0", /from 1/],
  ["negative", { cohort: { min: -1 } }, "spec.cohort.min", "-1", /from 1/],
  ["NaN", { local: { optimizer: { learningRate: NaN } } }, "spec.local.optimizer.learningRate", "NaN", /above 0/],
  ["Infinity", { local: { optimizer: { eps: Infinity } } }, "spec.local.optimizer.eps", "Infinity", /at most 1/],
  ["huge", { rounds: 1e9 }, "spec.rounds", "1000000000", /100000/],
  ["not a map", { cohort: [1] }, "spec.cohort", "[1]", /map of fields/],
  ["unknown strategy", { strategy: { name: "dilocco" } }, "spec.strategy.name", "dilocco", /did you mean "diloco"/],
  ["unknown codec", { codec: { name: "int7" } }, "spec.codec.name", "int7", /did you mean "int8"/],
  [
    "unknown schedule",
    { local: { optimizer: { schedule: { name: "cosinus" } } } },
    "spec.local.optimizer.schedule.name",
    "cosinus",
    /"cosine"/,
  ],
  ["unknown optimizer", { local: { optimizer: { name: "adam" } } }, "spec.local.optimizer.name", "adam", /"adamw"/],
  [
    "sgd with betas",
    { local: { optimizer: { name: "sgd", beta1: 0.5 } } },
    "spec.local.optimizer.beta1",
    "0.5",
    /only for/,
  ],
  ["momentum of adamw", { local: { optimizer: { momentum: 0.5 } } }, "spec.local.optimizer.momentum", "0.5", /"sgd"/],
  ["uneven parts", { local: { batchSize: 8, accumulate: 3 } }, "spec.local.accumulate", "3", /one of its divisors/],
  ["negative mu", { local: { proximalMu: -1 } }, "spec.local.proximalMu", "-1", /from 0/],
  ["adapters on nothing", { training: { mode: "lora" } }, "spec.training.mode", "lora", /spec\.model\.base/],
  ["adapters in full mode", { training: { lora: { rank: 4 } } }, "spec.training.lora", "4", /only for mode "lora"/],
  ["rank 0", { training: { mode: "lora", lora: { rank: 0 } } }, "spec.training.lora.rank", "0", /from 1 to 4096/],
  [
    "no targets",
    { training: { mode: "lora", lora: { targets: [] } } },
    "spec.training.lora.targets",
    "[]",
    /at least 1/,
  ],
  ["integers that train", { training: { base: "int4" } }, "spec.training.base", "int4", /frozen/],
  ["foreign base", { training: { base: "int2" } }, "spec.training.base", "int2", /"int[48]"/],
  ["foreign tensor", { training: { trained: ["*.wte"] } }, "spec.training.trained", "*.wte", /matches no tensor/],
  ["foreign recompute", { training: { recompute: true } }, "spec.training.recompute", "", /auto, always, never/],
  ["unknown step policy", { local: { stepPolicy: "even" } }, "spec.local.stepPolicy", "even", /fixed, proportional/],
  [
    "unknown tokenizer",
    { model: { config: TINY, tokenizer: { kind: "byte" } } },
    "spec.model.tokenizer.kind",
    "byte",
    /"bytes"/,
  ],
  ["min above target", { cohort: { min: 5, target: 3 } }, "spec.cohort.min", "5", /above target \(3\)/],
  ["minSteps above steps", { local: { steps: 5, minSteps: 6 } }, "spec.local.minSteps", "6", /above steps \(5\)/],
  ["long sequence", { data: { dataset: "speeches", seqLen: 17 } }, "spec.data.seqLen", "17", /context length \(16\)/],
  [
    "long warm-up",
    { local: { steps: 2, optimizer: { schedule: { warmupSteps: 7 } } } },
    "spec.local.optimizer.schedule.warmupSteps",
    "7",
    /longer than the job/,
  ],
  ["no dataset", { data: {} }, "spec.data.dataset", "", /is missing/],
  ["no model", { model: {} }, "spec.model.config", "", /is missing.*base/],
  [
    "base and config",
    { model: { base: "m", config: TINY } },
    "spec.model.config",
    "vocab",
    /comes with the base model "m"/,
  ],
  ["heads", config({ n_head: 3 }), "spec.model.config.n_embd", "8", /multiple of n_head/],
  ["missing size", { model: { config: { vocab_size: 256 } } }, "spec.model.config.n_layer", "", /whole number/],
  ["config that is no JSON", config({ n_layer: undefined }), "spec.model.config.n_layer", "", /finite number/],
  ["unknown family", { model: { family: "gpt3", config: TINY } }, "spec.model.family", "gpt3", /gpt2/],
  ["two families", config({ model_type: "llama" }), "spec.model.family", "", /is not the family "gpt2"/],
  ["small vocabulary", config({ vocab_size: 255 }), "spec.model.tokenizer", "bytes", /256 tokens/],
  [
    "alphabet size",
    { model: { config: { ...TINY, vocab_size: 4 }, tokenizer: { kind: "chars", chars: "abc" } } },
    "spec.model.tokenizer.chars",
    "abc",
    /3 characters.*4 tokens/,
  ],
  [
    "letter twice",
    { model: { config: { ...TINY, vocab_size: 3 }, tokenizer: { kind: "chars", chars: "aba" } } },
    "spec.model.tokenizer.chars",
    "aba",
    /"a" more than once/,
  ],
  [
    "alphabet of bytes",
    { model: { config: TINY, tokenizer: { chars: "abc" } } },
    "spec.model.tokenizer.chars",
    "abc",
    /only for kind "chars"/,
  ],
  [
    "blob of bytes",
    { model: { config: TINY, tokenizer: { blob: { digest: `sha256:${"0".repeat(64)}`, sizeBytes: 1 } } } },
    "spec.model.tokenizer.blob",
    "sha256",
    /only for kind "huggingface"/,
  ],
  [
    "no tokenizer.json",
    { model: { config: TINY, tokenizer: { kind: "huggingface" } } },
    "spec.model.tokenizer.blob",
    "",
    /tokenizer.json/,
  ],
  [
    "long label value",
    { cohort: { selector: { site: "x".repeat(64) } } },
    "spec.cohort.selector.site",
    "xxx",
    /63 characters/,
  ],
  ["status", { status: {} }, "spec.status", "{}", /not a field/],
];

for (const [what, spec, field, value, remedy] of refusals) {
  test(`refused: ${what}`, (t) => {
    const decoded = decodeTrainingJob(manifest("first", spec), readModel);
    if (decoded.ok) return t.fail("was accepted");
    const found = decoded.violations.find((violation) => violation.field === field);
    t.truthy(found, JSON.stringify(decoded.violations));
    t.true(found?.value.includes(value), found?.value);
    t.regex(found?.description ?? "", remedy);
  });
}

test("all violations come at once", (t) => {
  const decoded = decodeTrainingJob(
    { ...manifest("Bad_Name", { rounds: 0, xyzzy: 1 }), status: {}, kind: "Job" },
    readModel,
  );
  const fields = decoded.ok ? [] : decoded.violations.map(({ field }) => field).sort();
  t.deepEqual(fields, ["kind", "metadata.name", "spec.rounds", "spec.xyzzy", "status"]);
});

test("no document is accepted by accident, and none throws", (t) => {
  fc.assert(
    fc.property(fc.anything(), (document) => {
      const decoded = decodeTrainingJob(document, readModel);
      return !decoded.ok && decoded.violations.length > 0;
    }),
  );
  t.pass();
});

test("an alphabet counts characters, not UTF-16 units", (t) => {
  const spec = { model: { config: { ...TINY, vocab_size: 2 }, tokenizer: { kind: "chars", chars: "a\u{1F41F}" } } };
  t.is(jobOf("fish", spec).spec?.model?.tokenizer?.chars, "a\u{1F41F}");
});

test("the typed form has the same defaults and rules", (t) => {
  const typed = TrainingJob.fromPartial({
    metadata: { name: "first" },
    spec: { model: { config: TINY }, data: { dataset: "speeches" }, rounds: 3, local: { steps: 10, batchSize: 2 } },
  });
  const decoded = completeTrainingJob(typed, readModel);
  t.deepEqual(decoded, { ok: true, value: jobOf("first") });
  const wrong = completeTrainingJob({ ...typed, kind: "Job" }, readModel);
  t.deepEqual(wrong.ok ? [] : wrong.violations.map(({ field }) => field), ["kind"]);
});

test("a job as it is stored, applied in the typed form, is the same job, zeros included", (t) => {
  const stored = jobOf("zeros", {
    local: { steps: 10, optimizer: { clipNorm: 0, keepState: false } },
    evaluation: { everyRounds: 0, finalRound: false },
  });
  t.deepEqual(completeTrainingJob(stored, readModel, stored.spec), { ok: true, value: stored });
  const bare = TrainingJob.fromPartial({ metadata: { name: "zeros" }, spec: { rounds: 9 } });
  const merged = completeTrainingJob(bare, readModel, stored.spec);
  t.is(merged.ok && merged.value.spec?.rounds, 9);
  t.is(merged.ok && merged.value.spec?.local?.optimizer?.clipNorm, 0);
  t.deepEqual(completeTrainingJob(bare, readModel).ok, false);
});

test("adapters get alpha of twice their rank and every projection; sgd gets momentum and no betas", (t) => {
  const { spec } = jobOf("tuned", {
    model: { base: "first" },
    training: { mode: "lora", lora: { rank: 4 }, base: "int8" },
    local: { optimizer: { name: "sgd" } },
  });
  const lora = { rank: 4, alpha: 8, targets: ["all-linear"], rankStabilized: false };
  t.deepEqual(spec?.training, { mode: "lora", lora, base: "int8", trained: [], recompute: "auto" });
  const { momentum, beta1, beta2, eps } = spec?.local?.optimizer ?? {};
  t.deepEqual([momentum, beta1, beta2, eps], [0.9, 0, 0, 0]);
  const stored = jobOf("tuned", {
    model: { base: "first" },
    training: { mode: "lora", lora: { alpha: 1, targets: ["c_attn"] } },
    local: { optimizer: { name: "sgd", momentum: 0 } },
  });
  const again = completeTrainingJob(stored, readModel, stored.spec);
  t.deepEqual(again.ok ? again.value : again.violations, stored);
});

test("a base model brings its own family and tokenizer", (t) => {
  const { spec } = jobOf("next", { model: { base: "first" } });
  t.deepEqual(spec?.model, { base: "first", family: "", config: undefined, tokenizer: undefined });
  t.is(spec?.data?.seqLen, 64);
});

test("datasets", (t) => {
  const document = { apiVersion: "shoal.dev/v1alpha1", kind: "Dataset", metadata: { name: "speeches" } };
  const decoded = decodeDataset({ ...document, spec: { purposes: ["research"], minCohort: 3 } });
  t.deepEqual(decoded.ok && decoded.value.spec, {
    description: "",
    steward: "",
    purposes: ["research"],
    minCohort: 3,
    licence: "",
  });
  const wrong = decodeDataset({ ...document, spec: { minCohorts: 3 } });
  t.regex(wrong.ok ? "" : (wrong.violations[0]?.description ?? ""), /did you mean "minCohort"/);
});
