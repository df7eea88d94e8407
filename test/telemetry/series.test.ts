import test from "ava";
import fc from "fast-check";
import { newMeta } from "#common/domain/resources.js";
import { Round, RoundResult } from "#proto/shoal/v1/round.js";
import { matchesFilter, METRICS, pointsOf } from "#services/telemetry/series.js";

const BEGAN = 1_700_000_000_000;
const round = Round.fromPartial({ metadata: { ...newMeta("tale-3"), createdAtMs: BEGAN } });
const result = RoundResult.fromPartial({
  metadata: { ...newMeta("tale-3"), createdAtMs: BEGAN + 12_500 },
  job: "tale",
  number: 3,
  folded: [
    {
      commitSeq: 9,
      accepted: true,
      manifest: {
        device: "a",
        sizeBytes: 400,
        tokens: 5000,
        localSteps: 50,
        trainLoss: 3.5,
        evalLossSum: 30,
        evalTokens: 10,
        bytesDown: 900,
        trainMs: 8000,
      },
    },
  ],
  refused: [{ commitSeq: 10, manifest: { device: "b", sizeBytes: 77 } }],
  trainLoss: 3.4,
  evalLoss: 3,
  evalTokens: 10,
  tokens: 5000,
  bytesUp: 400,
  bytesDown: 900,
  foldMs: 250,
});
const values = (of: RoundResult, device: string, within: Round | undefined = round): Record<string, number> =>
  Object.fromEntries(
    pointsOf(within, of).flatMap((point) => (point.device === device ? [[point.metric, point.value]] : [])),
  );

test("a round's own points", (t) => {
  t.deepEqual(values(result, ""), {
    train_loss: 3.4,
    eval_loss: 3,
    bytes_up: 400,
    bytes_down: 900,
    round_seconds: 12.5,
    tokens: 5000,
    fold_seconds: 0.25,
  });
});

test("a device's points", (t) => {
  t.deepEqual(values(result, "a"), {
    train_loss: 3.5,
    eval_loss: 3,
    bytes_up: 400,
    bytes_down: 900,
    train_seconds: 8,
    local_steps: 50,
    tokens: 5000,
  });
});

test("a refused update has no points", (t) => {
  t.deepEqual(values(result, "b"), {});
});

test("all points carry job, round and the time of the result", (t) => {
  for (const point of pointsOf(round, result)) {
    t.deepEqual([point.job, point.round, point.atMs], ["tale", 3, BEGAN + 12_500]);
  }
});

test("a round that is gone has no length", (t) => {
  t.is(
    pointsOf(undefined, result).find(({ metric }) => metric === "round_seconds"),
    undefined,
  );
});

test("an evaluation has no training loss, a round without evaluation no held-out loss", (t) => {
  const evaluation = values({ ...result, tokens: 0, trainLoss: 0 }, "");
  t.false("train_loss" in evaluation);
  const unevaluated = values({ ...result, evalLoss: undefined }, "");
  t.false("eval_loss" in unevaluated);
});

test("whatever devices claim, points are finite and of known metrics, and each key comes once", (t) => {
  const number = fc.oneof(fc.double(), fc.constantFrom(NaN, Infinity, -Infinity));
  const manifest = fc.record({ device: fc.string(), trainLoss: number, evalLossSum: number, evalTokens: fc.nat() });
  fc.assert(
    fc.property(fc.uniqueArray(manifest, { selector: ({ device }) => device }), number, (manifests, trainLoss) => {
      fc.pre(manifests.every(({ device }) => device !== ""));
      const folded = manifests.map((claim) => ({ accepted: true, manifest: { ...claim, localSteps: 1 } }));
      const points = pointsOf(round, RoundResult.fromPartial({ ...result, trainLoss, folded }));
      const keys = new Set(points.map(({ metric, device }) => `${metric}|${device}`));
      const known: readonly string[] = METRICS;
      return keys.size === points.length && points.every((p) => Number.isFinite(p.value) && known.includes(p.metric));
    }),
  );
  t.pass();
});

const [first] = pointsOf(round, result);
const FILTERS: [string, Parameters<typeof matchesFilter>[1], boolean][] = [
  ["everything", { metrics: [], device: "", fromRound: 0 }, true],
  ["its metric", { metrics: ["eval_loss", "train_loss"], device: "", fromRound: 3 }, true],
  ["another metric", { metrics: ["eval_loss"], device: "", fromRound: 0 }, false],
  ["later rounds", { metrics: [], device: "", fromRound: 4 }, false],
  ["a device", { metrics: [], device: "a", fromRound: 0 }, false],
];
for (const [what, filter, wanted] of FILTERS) {
  test(`a filter for ${what} ${wanted ? "takes" : "leaves"} a round's training loss`, (t) => {
    t.is(first !== undefined && matchesFilter(first, filter), wanted);
  });
}
