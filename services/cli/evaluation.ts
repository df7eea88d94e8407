import { openOnnxBackend } from "#agent/backend/onnx.js";
import { evaluationBatches } from "#agent/data/batches.js";
import { buildEvalGraph } from "#common/graph/eval.js";
import { CliError, EXIT } from "./exit.js";
import { readSource, type Source } from "./generation.js";

export interface EvaluationOptions {
  /** Longest context; the model's own limits it. */
  readonly context: number;
  readonly threads: number;
}

export interface TextEvaluation {
  /** Mean, nats per token. */
  readonly loss: number;
  readonly perplexity: number;
  /** Tokens that were predicted: all but the first. */
  readonly tokens: number;
}

/** Tokens of a batch, about: enough to keep the cores busy. */
const BATCH_TOKENS = 1024;

/**
 * How well a model predicts a text: the text is cut into windows that do not overlap, so that every token but the first is
 * predicted once, from those before it in its window.
 * @param onProgress told the tokens done after each batch
 * @throws CliError (invalid) for a model that cannot be used and a text that is too short
 */
export async function evaluateText(
  source: Source,
  text: string,
  { context, threads }: EvaluationOptions,
  signal: AbortSignal,
  onProgress: (done: number, total: number) => void,
): Promise<TextEvaluation> {
  const { config, weights } = readSource(source);
  const stream = source.tokenizer.encode(text);
  const total = stream.length - 1;
  if (total < 1) throw new CliError("the text has less than two tokens of this model: give a longer one", EXIT.invalid);
  const seqLen = Math.min(config.contextLength, context, total);
  const batch = Math.max(1, Math.min(Math.floor(BATCH_TOKENS / seqLen), Math.ceil(total / seqLen)));
  const backend = await openOnnxBackend({ threads });
  const session = await backend.eval(buildEvalGraph(config, { batch, seqLen }));
  let lossSum = 0;
  let tokens = 0;
  try {
    for (const window of evaluationBatches(stream, batch, seqLen, Infinity)) {
      if (signal.aborted) throw new CliError("the evaluation was stopped before its end", EXIT.failed);
      const result = await session.evaluate(weights, window);
      lossSum += result.lossSum;
      tokens += result.tokens;
      onProgress(tokens, total);
    }
  } finally {
    await session.dispose();
  }
  const loss = lossSum / tokens;
  return { loss, perplexity: Math.exp(loss), tokens };
}
