import { openOnnxBackend } from "#agent/backend/onnx.js";
import { buildDecodeGraph, buildLogitsGraph } from "#common/graph/logits.js";
import { roughWeights, tinyModels, trainingCases } from "#test/backend/support/training-cases.js";
import { runTraining } from "#test/backend/support/training-run.js";

/** Numbers that two machines must agree on. */
export interface Figure {
  readonly what: "logits" | "cached logits" | "losses" | "weights";
  readonly of: string;
  readonly values: readonly number[];
}

export interface Figures {
  readonly arch: string;
  readonly figures: readonly Figure[];
}

/** What the agent's backend computes on this processor: logits of every family, and 20 steps of every kind of graph. */
async function computeFigures(): Promise<Figures> {
  const backend = await openOnnxBackend({ threads: 1 });
  const figures: Figure[] = [];
  const tokens = Int32Array.from({ length: 12 }, (_, i) => (i * 7 + 3) % 19);
  for (const [of, config] of Object.entries(tinyModels)) {
    const weights = roughWeights(config, 3);
    const whole = await backend.logits(buildLogitsGraph(config, { seqLen: 12 }));
    figures.push({ what: "logits", of, values: [...(await whole.logits(weights, tokens))] });
    await whole.dispose();
    const cached = await backend.decode(buildDecodeGraph(config, { capacity: 12, chunk: 4 }));
    figures.push({ what: "cached logits", of, values: [...(await cached.next(weights, tokens))] });
    await cached.dispose();
  }
  for (const one of trainingCases()) {
    const { losses, state } = await runTraining(backend, one);
    figures.push({ what: "losses", of: one.name, values: losses });
    figures.push({ what: "weights", of: one.name, values: [...state.weights] });
  }
  return { arch: process.arch, figures };
}

process.stdout.write(JSON.stringify(await computeFigures()));
