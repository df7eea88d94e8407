import { existsSync, readdirSync, readFileSync } from "node:fs";
import { basename, join } from "node:path";
import { argv, exit, stdout } from "node:process";
import type { Backend, TrainSession, TrainState } from "#agent/backend/backend.js";
import { openOnnxBackend } from "#agent/backend/onnx.js";
import { importAdapter } from "#common/graph/adapter.js";
import type { ModelConfig, Violation } from "#common/graph/config.js";
import { buildEvalGraph } from "#common/graph/eval.js";
import { importFolder } from "#common/graph/folder.js";
import { buildLogitsGraph } from "#common/graph/logits.js";
import { type NamedTensor, parseSafetensors } from "#common/graph/safetensors.js";
import { buildTrainGraph, type TrainGraphOptions } from "#common/graph/train.js";
import { type Variant, type VariantLayout, variantLayout } from "#common/graph/variant.js";

/**
 * Holds the engine against cases computed elsewhere: folders of a Hugging Face model, perhaps an adapter, batch.json
 * (tokens, targets, hyperparameters), and what should come out: expected.safetensors (`logits`, `grad.<tensor>`,
 * `step<n>.<tensor>`) and expected.json (losses and gradient norms of the steps, the loss after the last one).
 */

export interface Measurement {
  readonly case: string;
  readonly what: string;
  readonly error: number;
  readonly bound: number;
}

interface Batch {
  readonly tokens: number[][];
  readonly targets: number[][];
  readonly train: {
    readonly optimizer?: string;
    readonly lr: number;
    readonly beta1?: number;
    readonly beta2?: number;
    readonly eps?: number;
    readonly momentum?: number;
    readonly weight_decay?: number;
    readonly clip_global_norm?: number | null;
  };
}

interface Figures {
  readonly losses?: number[];
  readonly grad_norms?: number[];
  readonly [name: string]: unknown;
}

interface Case {
  readonly name: string;
  readonly config: ModelConfig;
  readonly variant: Variant;
  readonly layout: VariantLayout;
  readonly trainable: Float32Array;
  readonly frozen: Float32Array;
  readonly batch: Batch;
  readonly expected: ReadonlyMap<string, NamedTensor>;
  readonly figures: Figures;
}

const BOUNDS = { logits: 1e-5, gradients: 1e-5, losses: 1e-5, norms: 1e-5, weights: 1e-4 };
/** The largest float32: a norm that no finite gradient passes. */
const NO_CLIPPING = 3.4028234663852886e38;

class UnreadableCase extends Error {}

const refuse = (folder: string, violations: readonly Violation[]): never => {
  const list = violations.map(({ field, description }) => `${field} ${description}`).join("; ");
  throw new UnreadableCase(`${folder}: ${list}`);
};

function readModel(folder: string): { config: ModelConfig; weights: Float32Array } {
  const names = readdirSync(folder).filter((name) => name.startsWith("model") || name === "config.json");
  const imported = importFolder(new Map(names.map((name) => [name, readFileSync(join(folder, name))])));
  return imported.ok ? imported : refuse(folder, imported.violations);
}

function readVariant(
  folder: string,
  config: ModelConfig,
  base: Float32Array,
): Pick<Case, "variant" | "trainable" | "frozen"> {
  const adapter = join(folder, "adapter_config.json");
  if (!existsSync(adapter)) return { variant: {}, trainable: base, frozen: new Float32Array() };
  const imported = importAdapter(config, {
    "adapter_config.json": readFileSync(adapter),
    "adapter_model.safetensors": readFileSync(join(folder, "adapter_model.safetensors")),
  });
  if (!imported.ok) return refuse(folder, imported.violations);
  return { variant: { lora: imported.lora }, trainable: imported.weights, frozen: base };
}

/** Reads a case; throws for a folder that is none. */
export function readCase(folder: string): Case {
  const json = (name: string): unknown => JSON.parse(readFileSync(join(folder, name), "utf8"));
  const { config, weights } = readModel(folder);
  const variant = readVariant(folder, config, weights);
  const expected = parseSafetensors(readFileSync(join(folder, "expected.safetensors")));
  if (!expected.ok) throw new UnreadableCase(`${folder}: expected.safetensors ${expected.reason}`);
  const layout = variantLayout(config, variant.variant);
  const figures = existsSync(join(folder, "expected.json")) ? (json("expected.json") as Figures) : {};
  const batch = json("batch.json") as Batch;
  return { name: basename(folder), config, ...variant, layout, batch, expected: expected.tensors, figures };
}

/** Euclidean norm of the difference, relative to that of the expected values or, where it is greater, to `least`. */
export function relativeError(got: Float32Array, expected: Float32Array, least = 0): number {
  let [difference, size] = [0, 0];
  for (const [i, x] of expected.entries()) {
    difference += ((got[i] ?? NaN) - x) ** 2;
    size += x ** 2;
  }
  return got.length === expected.length ? Math.sqrt(difference / (Math.max(size, least ** 2) || 1)) : NaN;
}

function trainOptions({ batch, variant }: Case, change: { plain: boolean }): TrainGraphOptions {
  const { optimizer = "adamw", beta1, beta2 = 0.999, eps = 1e-8, weight_decay: weightDecay = 0 } = batch.train;
  const clip = batch.train.clip_global_norm ?? 0;
  const shape = { batch: batch.tokens.length, seqLen: batch.tokens[0]?.length ?? 0, variant };
  const clipNorm = clip > 0 && !change.plain ? clip : NO_CLIPPING;
  // Without momentum and clipping, AdamW's first moment after a step is the gradient itself.
  if (change.plain) return { ...shape, clipNorm, beta1: 0, beta2, eps, weightDecay };
  if (optimizer === "sgd") {
    return { ...shape, clipNorm, optimizer, momentum: batch.train.momentum ?? 0, weightDecay };
  }
  if (optimizer !== "adamw") throw new UnreadableCase(`optimizer ${optimizer} is not known`);
  return { ...shape, clipNorm, beta1: beta1 ?? 0.9, beta2, eps, weightDecay };
}

const flatBatch = ({ batch }: Case): { tokens: Int32Array; targets: Int32Array } => ({
  tokens: Int32Array.from(batch.tokens.flat()),
  targets: Int32Array.from(batch.targets.flat()),
});

async function openTraining(backend: Backend, one: Case, change: { plain: boolean }): Promise<TrainSession> {
  const session = await backend.train(buildTrainGraph(one.config, trainOptions(one, change)));
  const zeros = new Float32Array(session.parameters);
  if (one.frozen.length > 0) session.loadFrozen(one.frozen);
  session.load({ weights: one.trainable, m: zeros, v: zeros });
  return session;
}

/** Of a tensor that is next to nothing beside the others, only rounding could be compared. */
const LEAST_SHARE = 1e-3;

/** Errors of all tensors of a kind (`grad.`, `step1.`): all together, and the worst single one. */
function compareTensors(one: Case, prefix: string, flat: Float32Array, bound: number): Measurement[] {
  const names = [...one.expected.keys()].filter((name) => name.startsWith(prefix));
  const all: { got: number[]; expected: number[] } = { got: [], expected: [] };
  const squares = names.map((name) => one.expected.get(name)?.data.reduce((sum, x) => sum + x * x, 0) ?? 0);
  const least = LEAST_SHARE * Math.sqrt(squares.reduce((sum, x) => sum + x, 0));
  let worst = { name: "", error: 0 };
  for (const name of names) {
    const short = name.slice(prefix.length);
    const place = one.layout.trainable.tensors.find(
      (tensor) => tensor.name === short || tensor.name.endsWith(`.${short}`),
    );
    const expected = one.expected.get(name)?.data ?? new Float32Array();
    const got = place === undefined ? new Float32Array() : flat.subarray(place.offset, place.offset + place.size);
    for (const x of got) all.got.push(x);
    for (const x of expected) all.expected.push(x);
    const error = relativeError(got, expected, least);
    if (!(error <= worst.error)) worst = { name: short, error };
  }
  const what = prefix.slice(0, -1);
  const together = relativeError(Float32Array.from(all.got), Float32Array.from(all.expected));
  return [
    { case: one.name, what: `${what} (${names.length} tensors)`, error: together, bound },
    { case: one.name, what: `${what}, worst: ${worst.name}`, error: worst.error, bound },
  ];
}

async function measureLogits(backend: Backend, one: Case): Promise<Measurement[]> {
  const expected = one.expected.get("logits");
  if (expected === undefined) return [];
  const seqLen = one.batch.tokens[0]?.length ?? 0;
  const session = await backend.logits(buildLogitsGraph(one.config, { seqLen, variant: one.variant }));
  if (one.frozen.length > 0) session.loadFrozen(one.frozen);
  const got = new Float32Array(expected.data.length);
  let offset = 0;
  for (const row of one.batch.tokens) {
    for (let end = 1; end <= seqLen; end++) {
      const logits = await session.logits(one.trainable, Int32Array.from(row.slice(0, end)));
      got.set(logits, offset);
      offset += logits.length;
    }
  }
  await session.dispose();
  return [{ case: one.name, what: "logits", error: relativeError(got, expected.data), bound: BOUNDS.logits }];
}

async function measureGradients(backend: Backend, one: Case): Promise<Measurement[]> {
  if (![...one.expected.keys()].some((name) => name.startsWith("grad."))) return [];
  const session = await openTraining(backend, one, { plain: true });
  await session.step(flatBatch(one), 0, 1);
  const { m } = session.state();
  await session.dispose();
  return compareTensors(one, "grad.", m, BOUNDS.gradients);
}

async function evaluate(backend: Backend, one: Case, weights: Float32Array): Promise<number> {
  const shape = { batch: one.batch.tokens.length, seqLen: one.batch.tokens[0]?.length ?? 0, variant: one.variant };
  const session = await backend.eval(buildEvalGraph(one.config, shape));
  if (one.frozen.length > 0) session.loadFrozen(one.frozen);
  const { lossSum, tokens } = await session.evaluate(weights, flatBatch(one));
  await session.dispose();
  return lossSum / tokens;
}

const isNumber = (value: unknown): value is number => typeof value === "number";

async function measureSteps(backend: Backend, one: Case): Promise<Measurement[]> {
  const { losses = [], grad_norms: norms = [] } = one.figures;
  const stepOf = (name: string): number => Number(/^step(\d+)\./.exec(name)?.[1] ?? 0);
  const kept = new Set([...one.expected.keys()].map(stepOf).filter((step) => step > 0));
  const after = Object.keys(one.figures).map((name) => Number(/^loss_after_(\d+)$/.exec(name)?.[1] ?? 0));
  const steps = Math.max(losses.length, norms.length, ...kept, ...after);
  const session = await openTraining(backend, one, { plain: false });
  const measured: Measurement[] = [];
  const errors = { loss: 0, norm: 0 };
  const state = (): TrainState["weights"] => session.state().weights;
  for (let step = 1; step <= steps; step++) {
    const { loss, gradNorm } = await session.step(flatBatch(one), one.batch.train.lr, step);
    const [wantedLoss, wantedNorm] = [losses[step - 1], norms[step - 1]];
    if (wantedLoss !== undefined) errors.loss = Math.max(errors.loss, Math.abs(loss - wantedLoss));
    if (wantedNorm !== undefined) errors.norm = Math.max(errors.norm, Math.abs(gradNorm / wantedNorm - 1));
    if (kept.has(step)) measured.push(...compareTensors(one, `step${step}.`, state(), BOUNDS.weights).slice(0, 1));
    const wanted = one.figures[`loss_after_${step}`];
    if (!isNumber(wanted)) continue;
    const error = Math.abs((await evaluate(backend, one, state())) - wanted);
    measured.push({ case: one.name, what: `loss after ${step} (absolute)`, error, bound: BOUNDS.losses });
  }
  await session.dispose();
  const row = (what: string, error: number, bound: number): Measurement => ({ case: one.name, what, error, bound });
  if (losses.length > 0) measured.unshift(row(`${losses.length} losses (absolute)`, errors.loss, BOUNDS.losses));
  if (norms.length > 0) measured.unshift(row(`${norms.length} gradient norms`, errors.norm, BOUNDS.norms));
  return measured;
}

/** All that a case says should come out, against what does. */
export async function measureCase(backend: Backend, one: Case): Promise<Measurement[]> {
  return [
    ...(await measureLogits(backend, one)),
    ...(await measureGradients(backend, one)),
    ...(await measureSteps(backend, one)),
  ];
}

export const holds = ({ error, bound }: Measurement): boolean => error <= bound;

function printTable(rows: readonly Measurement[]): void {
  const cells = rows.map((row) => [
    row.case,
    row.what,
    row.error.toExponential(2),
    row.bound.toExponential(0),
    holds(row) ? "ok" : "MISS",
  ]);
  const table = [["case", "what", "relative error", "bound", ""], ...cells];
  const widths = [0, 1, 2, 3].map((i) => Math.max(...table.map((row) => row[i]?.length ?? 0)));
  for (const row of table)
    stdout.write(
      `${row
        .map((cell, i) => cell.padEnd(widths[i] ?? 0))
        .join("  ")
        .trimEnd()}\n`,
    );
}

async function main(folders: readonly string[]): Promise<number> {
  if (folders.length === 0) {
    stdout.write("usage: npm run parity -- DIR...   (each a case folder, or a folder of them)\n");
    return 2;
  }
  const cases = folders.flatMap((folder) =>
    existsSync(join(folder, "batch.json"))
      ? [folder]
      : readdirSync(folder)
          .map((name) => join(folder, name))
          .sort(),
  );
  const backend = await openOnnxBackend({ threads: 1 });
  const rows: Measurement[] = [];
  let unreadable = 0;
  for (const folder of cases) {
    try {
      const measured = await measureCase(backend, readCase(folder));
      if (measured.length === 0) throw new UnreadableCase(`${folder}: nothing is expected of it`);
      rows.push(...measured);
    } catch (error) {
      unreadable++;
      stdout.write(`${folder}: ${error instanceof Error ? error.message : String(error)}\n`);
    }
  }
  printTable(rows);
  const misses = rows.filter((row) => !holds(row)).length;
  stdout.write(
    `${rows.length - misses} hold, ${misses} missed${unreadable > 0 ? `, ${unreadable} cases could not be run` : ""}\n`,
  );
  return misses === 0 && unreadable === 0 && rows.length > 0 ? 0 : 1;
}

if (argv[1]?.endsWith("parity.js") === true) exit(await main(argv.slice(2)));
