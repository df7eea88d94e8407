import type { Backend } from "#agent/backend/backend.js";
import { importCheckpoint } from "#common/graph/checkpoint.js";
import type { ModelConfig } from "#common/graph/config.js";
import { buildEvalGraph } from "#common/graph/eval.js";
import { exportFiles } from "../fleet/export.js";
import type { Fleet } from "../fleet/fleet.js";

const EVAL_BATCH = 32;

/** Mean loss over all consecutive windows of the tokens, every target counted once, in nats per token. */
export async function heldOutLoss(
  backend: Backend,
  config: ModelConfig,
  weights: Float32Array,
  tokens: Int32Array,
  seqLen: number,
): Promise<number> {
  const session = await backend.eval(buildEvalGraph(config, { batch: EVAL_BATCH, seqLen }));
  let lossSum = 0;
  let counted = 0;
  for (let start = 0; start + 1 < tokens.length; start += EVAL_BATCH * seqLen) {
    const batch = {
      tokens: new Int32Array(EVAL_BATCH * seqLen),
      targets: new Int32Array(EVAL_BATCH * seqLen).fill(-100),
    };
    const length = Math.min(EVAL_BATCH * seqLen, tokens.length - 1 - start);
    batch.tokens.set(tokens.subarray(start, start + length));
    batch.targets.set(tokens.subarray(start + 1, start + 1 + length));
    const part = await session.evaluate(weights, batch);
    lossSum += part.lossSum;
    counted += part.tokens;
  }
  await session.dispose();
  return lossSum / counted;
}

/** Weights of a job's model as it is exported. */
export async function exportedWeights(fleet: Fleet, job: string): Promise<Float32Array> {
  const files = await fleet.withModels((models) => exportFiles(models, job));
  const empty = new Uint8Array();
  const checkpoint = importCheckpoint(files.get("config.json") ?? empty, files.get("model.safetensors") ?? empty);
  if (!checkpoint.ok) throw new Error(`the exported model is refused: ${JSON.stringify(checkpoint.violations)}`);
  return checkpoint.weights;
}
