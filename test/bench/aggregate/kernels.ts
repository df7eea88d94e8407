import { median } from "#agent/backend/node-timing.js";
import { createRng } from "#common/domain/rng.js";
import { chunkCount, chunkRange, encodeUpdate } from "#common/tensor/chunk.js";
import { codecByName, type Codec } from "#common/tensor/codec.js";
import { inspectChunk, openChunkFold } from "#common/tensor/kernels/kernels.js";
import type { BenchResult } from "../report.js";

/** Values of an update; all of them together are more than any cache holds: 480 MB in fp32. */
const VALUES = 12_000_000;
const UPDATES = 10;
/** Chunks that the aggregator adds at a time. */
const AT_ONCE = 8;
/** Of them, for what is slow. */
const FEW = 2;
const WARM_UP = 2;
const TURNS = 7;
const QUICK_TURNS = 3;
/** Of the memory bound. */
const BAR = 0.7;
const BARRED: ReadonlySet<string> = new Set(["fp32", "int8"]);
const NAMES = ["fp32", "bf16", "int8", "int4", "topk"] as const;

const WEIGHTS = Array.from({ length: UPDATES }, (_, k) => 1000 + 37 * k);
const TOTAL = WEIGHTS.reduce((sum, weight) => sum + weight, 0);

/** Updates in JavaScript's memory, cut into chunks as the log hands them over. */
interface Encoded {
  readonly codec: Codec;
  readonly updates: readonly (readonly Uint8Array[])[];
}

/** Updates of codecs without a bar are few different ones. */
function encode(codec: Codec, deltas: readonly Float32Array[]): Encoded {
  const different = BARRED.has(codec.name) ? deltas : deltas.slice(0, FEW);
  const updates = different.map((delta) => encodeUpdate(delta, codec));
  return { codec, updates: deltas.map((_, k) => updates[k % updates.length] ?? []) };
}

/** The mean of the updates by the kernels, chunk by chunk: what the aggregator's fold does between its reads. */
function foldByKernels({ codec, updates }: Encoded, mean: Float64Array): void {
  const fold = openChunkFold(codec);
  for (let chunk = 0; chunk < chunkCount(VALUES, codec); chunk++) {
    const { start, end } = chunkRange(VALUES, codec, chunk);
    fold.begin(end - start);
    for (let first = 0; first < UPDATES; first += AT_ONCE) {
      const some = updates.slice(first, first + AT_ONCE);
      const chunks = some.map((each, k) => ({
        bytes: each[chunk] as Uint8Array,
        factor: WEIGHTS[first + k] as number,
      }));
      if (fold.add(chunks) !== undefined) throw new Error(`chunk ${chunk} is refused`);
    }
    mean.set(fold.mean(TOTAL), start);
  }
}

/** The same by the definition: the codec's decode and a plain loop, one update after the other. */
function foldPlainly({ codec, updates }: Encoded, count: number, mean: Float64Array): void {
  mean.fill(0);
  updates.slice(0, count).forEach((chunks, k) => {
    const weight = WEIGHTS[k] as number;
    chunks.forEach((bytes, chunk) => {
      const { start, end } = chunkRange(VALUES, codec, chunk);
      const decoded = codec.decode(bytes, end - start);
      if (!decoded.ok) throw new Error(`chunk ${chunk}: ${decoded.reason}`);
      const { values } = decoded;
      for (let i = 0; i < values.length; i++) {
        mean[start + i] = (mean[start + i] as number) + weight * (values[i] as number);
      }
    });
  });
  for (let i = 0; i < mean.length; i++) mean[i] = (mean[i] as number) / TOTAL;
}

/** A plain loop over decoded fp32 vectors and nothing else. */
function loopOnly(deltas: readonly Float32Array[], sums: Float64Array): void {
  deltas.slice(0, FEW).forEach((values, k) => {
    const weight = WEIGHTS[k] as number;
    for (let i = 0; i < values.length; i++) sums[i] = (sums[i] as number) + weight * (values[i] as number);
  });
}

/** What accepting reads of every chunk beside its digest. */
function inspect({ codec, updates }: Encoded): void {
  for (const chunks of updates) {
    chunks.forEach((bytes, chunk) => {
      const { start, end } = chunkRange(VALUES, codec, chunk);
      if (!inspectChunk(codec, bytes, end - start).ok) throw new Error(`chunk ${chunk}`);
    });
  }
}

function timeMs(work: () => void): number {
  const startedMs = performance.now();
  work();
  return performance.now() - startedMs;
}

/** GB/s of updates, counted as fp32 whatever their codec. */
const gigabytes = (elapsedMs: number, updates = UPDATES): number => (4 * VALUES * updates) / elapsedMs / 1e6;

/**
 * Folds updates on one thread, in turns with Buffer.copy of vectors of the same size beyond every cache. The bound is the time in
 * which memory at the speed of that copy (one read and one write of each byte) serves a sum that is read, an update that is read
 * and a sum that is written, all of them fp32: 1.5 copies of the updates. Ratios are medians over the turns.
 */
export function benchKernels(quick: boolean): BenchResult[] {
  const rng = createRng(7);
  const noise = Float32Array.from({ length: 1 << 16 }, () => 0.01 * rng.normal());
  const deltas = Array.from({ length: UPDATES }, (_, k) =>
    new Float32Array(VALUES).map((__, i) => noise[(i * (2 * k + 1)) & 0xffff] as number),
  );
  const encoded = NAMES.map((name) => encode(codecByName(name) as Codec, deltas));
  const mean = new Float64Array(VALUES);
  const target = Buffer.alloc(4 * VALUES);
  const sources = deltas.map(({ buffer }) => Buffer.from(buffer));
  const cases = new Map<string, () => void>([["copy", () => sources.forEach((source) => source.copy(target))]]);
  cases.set("loop", () => {
    loopOnly(deltas, mean);
  });
  for (const each of encoded) {
    const { name } = each.codec;
    cases.set(`${name} kernels`, () => {
      foldByKernels(each, mean);
    });
    if (BARRED.has(name)) {
      cases.set(`${name} plain`, () => {
        foldPlainly(each, FEW, mean);
      });
    }
    cases.set(`${name} inspect`, () => {
      inspect(each);
    });
  }
  const turns: Map<string, number>[] = [];
  for (let turn = 0; turn < WARM_UP + (quick ? QUICK_TURNS : TURNS); turn++) {
    const elapsed = new Map([...cases].map(([name, work]) => [name, timeMs(work)]));
    if (turn >= WARM_UP) turns.push(elapsed);
  }
  return resultsOf(turns);
}

function resultsOf(turns: readonly Map<string, number>[]): BenchResult[] {
  const of = (name: string): number[] => turns.map((turn) => turn.get(name) ?? NaN);
  const speed = (name: string): number => median(of(name).map((elapsedMs) => gigabytes(elapsedMs)));
  const slowly = (name: string): number => median(of(name).map((elapsedMs) => gigabytes(elapsedMs, FEW)));
  const figure = (what: string, metric: string, value: number): BenchResult => ({
    case: what,
    metric,
    value: Number(value.toFixed(2)),
    unit: "GB/s of fp32 updates",
  });
  const results = [
    figure("memory", "Buffer.copy", speed("copy")),
    figure("memory", "bound", speed("copy") / 1.5),
    figure("fp32", "plain loop, decoded", slowly("loop")),
  ];
  for (const name of NAMES) {
    results.push(figure(name, "fold by kernels", speed(`${name} kernels`)));
    if (BARRED.has(name)) results.push(figure(name, "fold by definition", slowly(`${name} plain`)));
    results.push(figure(name, "inspect", speed(`${name} inspect`)));
    const shares = turns.map((turn) => (1.5 * (turn.get("copy") ?? NaN)) / (turn.get(`${name} kernels`) ?? NaN));
    results.push({
      case: name,
      metric: "share of the bound",
      value: Number(median(shares).toFixed(3)),
      unit: "",
      ...(BARRED.has(name) ? { least: BAR } : {}),
    });
  }
  return results;
}
