import test from "ava";
import fc from "fast-check";
import { decodeTrainingJob } from "#common/domain/manifest.js";
import { parseModelConfig } from "#common/graph/config.js";
import { parameterLayout } from "#common/graph/layout.js";
import { RoundWithResult } from "#proto/shoal/v1/job_service.js";
import { joinStreams } from "#services/cli/demo/baseline.js";
import { planBaselines } from "#services/cli/demo/comparison.js";
import { roundLine } from "#services/cli/demo/display.js";
import { reportBytes, reportRound, stepsByDevice } from "#services/cli/demo/report.js";
import { demoManifest, huggingFaceConfig, speedOf } from "#services/cli/demo/settings.js";
import { deviceName, splitAddresses, type Address } from "#services/cli/demo/shards.js";

const ADDRESSES: Address[] = Array.from({ length: 43 * 4 }, (_, i) => ({
  year: 1790 + i,
  president: `President ${Math.floor(i / 4)}`,
  text: `${i} `.repeat(30_000 + 7 * i),
}));

test("every device has presidents of its own, unequal shares, nothing twice", (t) => {
  fc.assert(
    fc.property(fc.integer({ min: 1, max: 43 }), fc.nat(), (devices, seed) => {
      const shards = splitAddresses(ADDRESSES, devices, seed);
      t.is(shards.length, devices);
      t.is(new Set(shards.map(({ device }) => device)).size, devices);
      const presidents = shards.flatMap((shard) => shard.presidents);
      t.is(new Set(presidents).size, presidents.length);
      t.is(new Set(shards.map(({ bytes }) => bytes)).size, devices);
      for (const shard of shards) t.is(shard.bytes, shard.texts.join("").length);
    }),
    { numRuns: 20 },
  );
  t.deepEqual(splitAddresses(ADDRESSES, 8, 3), splitAddresses(ADDRESSES, 8, 3));
  t.throws(() => splitAddresses(ADDRESSES, 44, 1), { instanceOf: RangeError });
  t.is(deviceName("William J. Clinton"), "william-j-clinton");
});

test("the demo's manifest is one the scheduler takes, with three speed classes and at least a million parameters", (t) => {
  const config = parseModelConfig({ model_type: "gpt2", ...huggingFaceConfig() });
  t.true(config.ok);
  if (config.ok) t.true(parameterLayout(config.config).total >= 1e6);
  const decoded = decodeTrainingJob(JSON.parse(demoManifest(8, 3, 5)) as unknown, (_family, value) => {
    const parsed = parseModelConfig({ model_type: "gpt2", ...(value as object) });
    if (!parsed.ok) return parsed;
    return {
      ok: true,
      contextLength: parsed.config.contextLength,
      objections: () => [],
      trainedLayers: () => 4,
      vocabSize: parsed.config.vocabSize,
    };
  });
  t.deepEqual(decoded.ok ? [] : decoded.violations, []);
  t.is(new Set([0, 1, 2].map((i) => speedOf(i).throttle)).size, 3);
  t.is(speedOf(3).name, "fast");
});

function round(number: number, steps: readonly number[]): RoundWithResult {
  return RoundWithResult.fromPartial({
    round: {
      metadata: { createdAtMs: 1000 },
      status: { assignments: [{ device: "a" }, { device: "b" }, { device: "c" }] },
    },
    result: {
      number,
      metadata: { createdAtMs: 3500 },
      trainLoss: 2,
      bytesUp: 300,
      bytesDown: 100,
      folded: steps.map((localSteps, i) => ({
        manifest: {
          device: ["b", "a"][i] ?? "",
          localSteps,
          sizeBytes: 150,
          bytesDown: 50,
          fetchMs: 100,
          trainMs: 900,
        },
      })),
      refused: [{ reason: "NotFinite" }],
    },
  });
}

test("a round's figures come from its result", (t) => {
  t.is(reportRound(RoundWithResult.fromPartial({ round: {} })), undefined);
  const report = reportRound(round(2, [4, 6]));
  t.like(report, { round: 2, cohort: 3, folded: 2, refused: 1, evalLoss: null, seconds: 2.5, bytesUp: 300 });
  t.like(report?.devices[0], { device: "b", localSteps: 4, seconds: 1, bytesUp: 150 });
  if (report === undefined) return;
  t.regex(roundLine(report, 10), /^round {2}2\/10 {2}cohort 2\/3 \(1 refused\) .* 2\.5 s$/);
});

test("bytes are compared with fp32 gradients up and weights down at every step of every device", (t) => {
  const rounds = [round(1, [4, 6]), round(2, [5, 5])].flatMap((r) => reportRound(r) ?? []);
  t.deepEqual(
    [...stepsByDevice(rounds)],
    [
      ["a", 11],
      ["b", 9],
    ],
  );
  t.deepEqual(reportBytes(rounds, 10), { up: 600, down: 200, perStepFp32Ratio: 2, perStepFp32Bytes: 1600 });
  t.is(reportBytes([], 10).perStepFp32Ratio, 0);
});

test("the baselines do as many steps as the federation did", (t) => {
  const steps = new Map([
    ["a", 11],
    ["b", 9],
  ]);
  const { centralised, alone } = planBaselines({ a: "/a", b: "/b" }, steps, "/model", 1, 2);
  t.deepEqual(centralised.runs, [{ name: "centralised", devices: ["a", "b"], steps: 20 }]);
  t.deepEqual(
    alone.runs.map((run) => [run.devices, run.steps]),
    [
      [["a"], 11],
      [["b"], 9],
    ],
  );
  t.deepEqual([centralised.threads, alone.checkpoints], [1, { federated: "/model" }]);
});

test("streams are joined with a newline after each", (t) => {
  t.deepEqual([...joinStreams([Int32Array.of(1, 2), Int32Array.of(3)])], [1, 2, 10, 3, 10]);
});
