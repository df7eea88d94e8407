import test from "ava";
import * as ort from "onnxruntime-node";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { openOnnxBackend } from "#agent/backend/onnx.js";
import { decodeModel } from "#common/graph/decoding.js";
import { exportInferenceGraph, type InferenceExport } from "#common/graph/inference-export.js";
import { interpret } from "#common/graph/interpreter/interpreter.js";
import { buildLogitsGraph } from "#common/graph/logits.js";
import { roughWeights, tinyModels } from "./support/training-cases.js";
import { distance } from "./support/training-run.js";

const LENGTH = 7;
const TOKENS = Int32Array.from([3, 1, 4, 1, 5, 9, 2]);

/** Runs an exported model as a stranger would: from its files, by its names. */
async function runFiles({ model, data }: InferenceExport, batch: number): Promise<ort.Tensor> {
  const folder = await mkdtemp(join(tmpdir(), "shoal-onnx-"));
  try {
    await writeFile(join(folder, "model.onnx"), model);
    if (data !== undefined) await writeFile(join(folder, data.name), data.bytes);
    const session = await ort.InferenceSession.create(join(folder, "model.onnx"), { intraOpNumThreads: 1 });
    const ids = BigInt64Array.from(Array.from({ length: batch }, () => [...TOKENS]).flat(), BigInt);
    const results = await session.run({ input_ids: new ort.Tensor("int64", ids, [batch, LENGTH]) });
    await session.release();
    return results["logits"] as ort.Tensor;
  } finally {
    await rm(folder, { recursive: true });
  }
}

for (const [family, config] of Object.entries(tinyModels)) {
  test(`${family}: an exported model gives the logits of our own session, weights inside or beside`, async (t) => {
    const weights = roughWeights(config, 3);
    const session = await (await openOnnxBackend({ threads: 1 })).logits(buildLogitsGraph(config, { seqLen: LENGTH }));
    const inside = exportInferenceGraph(config, weights, { seqLen: LENGTH });
    const beside = exportInferenceGraph(config, weights, { seqLen: LENGTH, batch: 2, inlineBytes: 0 });
    t.is(inside.data, undefined);
    t.true(beside.model.length < inside.model.length - weights.byteLength / 2);
    for (const [exported, batch] of [
      [inside, 1],
      [beside, 2],
    ] as const) {
      const logits = await runFiles(exported, batch);
      t.deepEqual(logits.dims, [batch, LENGTH, config.vocabSize]);
      for (let end = 1; end <= LENGTH; end++) {
        const row = (batch - 1) * LENGTH + end - 1;
        const got = (logits.data as Float32Array).slice(row * config.vocabSize, (row + 1) * config.vocabSize);
        const apart = distance(got, await session.logits(weights, TOKENS.slice(0, end)));
        t.true(apart < 1e-5, `${end}: ${apart}`);
      }
    }
    await session.dispose();
  });
}

test("an exported file has one input, and the interpreter runs it too", (t) => {
  const config = tinyModels.qwen2;
  const graph = decodeModel(exportInferenceGraph(config, roughWeights(config, 3), { seqLen: LENGTH }).model);
  t.deepEqual(
    graph.inputs.map(({ name }) => name),
    ["input_ids"],
  );
  const ids = { type: "int64", shape: [1, LENGTH], data: Float64Array.from(TOKENS) } as const;
  t.deepEqual(interpret(graph, new Map([["input_ids", ids]])).get("logits")?.shape, [1, LENGTH, config.vocabSize]);
});

test("weights of another model and sequences beyond the context are refused", (t) => {
  const config = tinyModels.gpt2;
  const range = { instanceOf: RangeError };
  t.throws(() => exportInferenceGraph(config, new Float32Array(3), { seqLen: LENGTH }), range);
  t.throws(() => exportInferenceGraph(config, roughWeights(config, 1), { seqLen: 17 }), range);
});
