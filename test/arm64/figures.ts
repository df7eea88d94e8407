import type { Backend } from "#agent/backend/backend.js";
import { openOnnxBackend } from "#agent/backend/onnx.js";
import { runLocalRound } from "#agent/train/local-round.js";
import { Sessions } from "#agent/train/sessions.js";
import { createThrottle } from "#agent/train/throttle.js";
import { SystemClock } from "#common/adapters/memory/clock.js";
import { buildDecodeGraph, buildLogitsGraph } from "#common/graph/logits.js";
import { tinyAssignment, tinyModel, tinyTask } from "#test/agent/support/tiny-model.js";
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

/** A round as the agent trains it: batches drawn from its text, a schedule, clipping, and the difference at the end. */
async function localRound(backend: Backend): Promise<Figure[]> {
  const clock = new SystemClock();
  const sessions = new Sessions(backend);
  const text = (length: number): Int32Array => Int32Array.from({ length }, (_, i) => 97 + ((i * i) % 11));
  const { trainGraph, evalGraph, weights } = tinyModel;
  const result = await runLocalRound(
    {
      task: tinyTask("job-1"),
      assignment: tinyAssignment(30),
      ...{ weights, trainGraph, evalGraph },
      shard: { train: text(300), heldOut: text(45), starts: Int32Array.of(0, 120, 200) },
      inner: undefined,
    },
    {
      ...{ sessions, clock, throttle: createThrottle(1, clock), onStep: () => undefined },
      signal: new AbortController().signal,
    },
  );
  if (result.status !== "done") throw new Error(JSON.stringify(result));
  const { delta, trainLoss } = result.outcome;
  // Not the weights themselves: a key's bias has no gradient but rounding, of which AdamW makes whole steps. What the
  // model says does not depend on it.
  const trained = weights.map((w, i) => w + (delta?.[i] ?? NaN));
  const after = await (
    await sessions.eval(evalGraph)
  ).evaluate(trained, { tokens: text(16), targets: text(17).slice(1) });
  await sessions.close();
  return [{ what: "losses", of: "a local round of 30 steps", values: [trainLoss, after.lossSum / after.tokens] }];
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
  figures.push(...(await localRound(backend)));
  return { arch: process.arch, figures };
}

process.stdout.write(JSON.stringify(await computeFigures()));
