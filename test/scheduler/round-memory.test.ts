import test from "ava";
import { TrainingJobSpec } from "#proto/shoal/v1/job.js";
import { roundBytes } from "#services/scheduler/round-memory.js";

/** A whole number of the codecs' chunks and blocks. */
const VALUES = 2 ** 20;
const vectorsOf = (spec: object): number => roundBytes({ spec: TrainingJobSpec.fromJSON(spec) }, VALUES) / (4 * VALUES);

const ADAMW = { optimizer: { name: "adamw", keepState: true } };
const SGD = { optimizer: { name: "sgd" } };
const FP32 = { name: "fp32" };

test("the vectors that a round holds beside its step are counted by hand", (t) => {
  // At the end the weights, those trained, and what became of them; their chunks take the place of those trained.
  t.is(vectorsOf({ codec: FP32, local: SGD }), 3);
  t.is(vectorsOf({ codec: FP32, local: { optimizer: { name: "sgd", momentum: 0.9 } } }), 4);
  // Two moments as the last round left them, and two as this one does.
  t.is(vectorsOf({ codec: FP32, local: ADAMW }), 1 + 2 + 1 + 2 + 1);
  t.is(vectorsOf({ codec: FP32, local: { ...ADAMW, proximalMu: 0.1 } }), 2 + 1 + 2 + 1);
  // Both residuals and the update lie beside the chunks, of a byte a value and some scales.
  const int8 = vectorsOf({ codec: { name: "int8", errorFeedback: true }, local: ADAMW });
  t.true(int8 > 8.25 && int8 < 8.26, `${int8}`);
  const scaffold = { strategy: { name: "scaffold" }, codec: FP32, local: SGD };
  t.is(vectorsOf(scaffold), 3 + 1 + 5);
  const streaming = { name: "streamingDiloco", fragments: 4 };
  t.is(vectorsOf({ strategy: streaming, codec: FP32, local: ADAMW }), 1 + 2 + 2 + 1 + 2 + 0.75);
  // Steps ahead wait with their moments until the round takes them in.
  const overlap = vectorsOf({ strategy: { ...streaming, overlapSteps: 2 }, codec: FP32, local: ADAMW });
  t.is(overlap, 1 + 2 + 2 + 3 + 1 + 2 + 0.75);
});

test("a codec that nobody knows counts as the largest", (t) => {
  t.is(vectorsOf({ codec: { name: "zip" }, local: ADAMW }), vectorsOf({ codec: FP32, local: ADAMW }));
  t.is(roundBytes({ spec: undefined }, VALUES), 0);
  t.is(roundBytes({ spec: TrainingJobSpec.fromJSON({ codec: FP32, local: SGD }) }, 0), 0);
});
