import test from "ava";
import fc from "fast-check";
import { Assignment, Round, UpdateManifest } from "#proto/shoal/v1/round.js";
import { chunkCount, updateBytes } from "#common/tensor/chunk.js";
import { codecByName, type Codec } from "#common/tensor/codec.js";
import {
  accept,
  NORM_CEILING,
  screen,
  type AcceptContext,
  type Commit,
  type PayloadFacts,
} from "#common/domain/accept.js";
import type { RefusalReason } from "#common/domain/refusal.js";
import { cutOffDevices, MOST_KEPT_REFUSALS, MOST_REFUSALS } from "#common/domain/cut-off.js";
import { acceptedDevices, emptyTally, withVerdict } from "#services/aggregator/tally.js";

const ROUND = Round.fromPartial({ metadata: { name: "tiny-1" }, spec: { job: "tiny" } });

const PARAMETERS = 600_000;
const codec = codecByName("int8") as Codec;
const assignment = (device: string, localSteps: number): Assignment =>
  Assignment.fromPartial({ device, localSteps, batchSize: 2 });

const context: AcceptContext = {
  round: "tiny-1",
  open: true,
  evaluationOnly: false,
  assignments: [assignment("ann", 5), assignment("eve", 0)],
  acceptedDevices: new Set(),
  values: PARAMETERS,
  codec,
  jobUid: "uid-1",
  baseDigest: "sha256:base",
  seqLen: 8,
  referenceSteps: 5,
  maxUpdateNorm: 10,
  gatewaySite: undefined,
  siteWeighting: "tokens",
};
const manifest: UpdateManifest = {
  device: "ann",
  round: "tiny-1",
  codec: "int8",
  values: PARAMETERS,
  sizeBytes: updateBytes(PARAMETERS, codec),
  digest: "sha256:chunks",
  chunkSeqs: [7, 5],
  tokens: 80,
  localSteps: 5,
  trainLoss: 3,
  evalLossSum: 12,
  evalTokens: 4,
  bytesDown: 1,
  fetchMs: 2,
  trainMs: 3,
  baseDigest: "sha256:base",
  members: [],
  site: "",
  jobUid: "uid-1",
};
const facts: PayloadFacts = { ok: true, digest: "sha256:chunks", norm: 2.5 };
const commitOf = (change: Partial<UpdateManifest>): Commit => ({
  seq: 9,
  device: "ann",
  round: "tiny-1",
  manifest: { ...manifest, ...change },
});
const nothing: Partial<UpdateManifest> = {
  values: 0,
  sizeBytes: 0,
  chunkSeqs: [],
  tokens: 0,
  localSteps: 0,
  digest: "",
};

test("an honest update is accepted with its norm", (t) => {
  t.is(chunkCount(PARAMETERS, codec), 2);
  const verdict = accept(commitOf({}), context, facts);
  const kept = { ...manifest, chunkSeqs: [] };
  t.deepEqual(verdict, {
    commitSeq: 9,
    accepted: true,
    reason: "",
    message: "",
    norm: 2.5,
    manifest: kept,
    staleness: 0,
    shardSums: [],
    shardChecksums: [],
  });
  t.true(accept(commitOf({ localSteps: 3, tokens: 48, evalTokens: 0, evalLossSum: 0 }), context, facts).accepted);
});

test("an honest evaluation is accepted without chunks, where only one is due", (t) => {
  const eve = { ...commitOf({ ...nothing, device: "eve" }), device: "eve" };
  t.true(accept(eve, context, undefined).accepted);
  t.true(accept(commitOf(nothing), { ...context, evaluationOnly: true }, undefined).accepted);
  t.is(accept(commitOf({}), { ...context, evaluationOnly: true }, facts).reason, "WrongShape");
  t.is(accept({ ...commitOf({ device: "eve" }), device: "eve" }, context, facts).reason, "WrongShape");
  t.is(accept(commitOf(nothing), context, undefined).reason, "WrongShape");
});

const refusals: [string, RefusalReason, Partial<UpdateManifest>][] = [
  ["another round", "WrongRound", { round: "tiny-2" }],
  ["another device in the manifest", "BadPayload", { device: "bob" }],
  ["other weights", "WrongBase", { baseDigest: "sha256:old" }],
  ["an earlier job of this name", "WrongRound", { jobUid: "uid-0" }],
  ["too few values", "WrongShape", { values: PARAMETERS - 1 }],
  ["a giant size", "WrongShape", { values: 2 ** 52, sizeBytes: 2 ** 52 }],
  ["another codec", "WrongShape", { codec: "fp32" }],
  ["a codec with an endless name", "WrongShape", { codec: "x".repeat(100_000) }],
  ["a chunk too few", "WrongShape", { chunkSeqs: [5] }],
  ["a million chunks", "WrongShape", { chunkSeqs: new Array<number>(1_000_000).fill(1) }],
  ["other bytes", "WrongShape", { sizeBytes: 12 }],
  ["a chunk after the commit", "BadPayload", { chunkSeqs: [5, 10] }],
  ["the commit as its own chunk", "BadPayload", { chunkSeqs: [5, 9] }],
  ["a chunk at sequence 0", "BadPayload", { chunkSeqs: [0, 5] }],
  ["a chunk at half a sequence", "BadPayload", { chunkSeqs: [5, 5.5] }],
  ["a NaN training loss", "NotFinite", { trainLoss: NaN }],
  ["an infinite training loss", "NotFinite", { trainLoss: Infinity }],
  ["a NaN evaluation loss", "NotFinite", { evalLossSum: NaN }],
  ["a negative training loss", "BadPayload", { trainLoss: -1 }],
  ["a negative evaluation loss", "BadPayload", { evalLossSum: -0.1 }],
  ["negative tokens", "BadPayload", { tokens: -80 }],
  ["no tokens", "BadPayload", { tokens: 0 }],
  ["more tokens than the steps hold", "BadPayload", { tokens: 81 }],
  ["tokens of steps not done", "BadPayload", { tokens: 80, localSteps: 4 }],
  ["more steps than assigned", "BadPayload", { localSteps: 6 }],
  ["no steps", "BadPayload", { localSteps: 0 }],
  ["half a step", "BadPayload", { localSteps: 4.5 }],
  ["negative evaluation tokens", "BadPayload", { evalTokens: -1 }],
  ["negative bytes", "BadPayload", { bytesDown: -1 }],
  ["NaN milliseconds", "BadPayload", { trainMs: NaN }],
  ["negative milliseconds", "BadPayload", { fetchMs: -2 }],
];
for (const [what, reason, change] of refusals) {
  test(`refused before its chunks are read: ${what}`, (t) => {
    t.is(screen(commitOf(change), context)?.reason, reason);
    const verdict = accept(commitOf(change), context, facts);
    t.false(verdict.accepted);
    t.is(verdict.reason, reason);
    const kept = verdict.manifest as UpdateManifest;
    t.is(kept.device, "ann");
    t.is(kept.round, "tiny-1");
    t.true(UpdateManifest.encode(kept).finish().length < 40, "keeps nothing of what the device sent");
    t.true(verdict.message.length < 300);
  });
}

test("a device that was planned again with fewer steps may bring the work of its first plan, and no more", (t) => {
  const again = { ...context, assignments: [assignment("ann", 2)] };
  t.true(accept(commitOf({}), again, facts).accepted);
  t.is(accept(commitOf({ localSteps: 6, tokens: 96 }), again, facts).reason, "BadPayload");
  t.is(accept(commitOf({}), { ...again, referenceSteps: 2 }, facts).reason, "BadPayload");
});

test("who and when: not assigned, duplicate, late, no manifest", (t) => {
  const reasonOf = (commit: Commit, changed: Partial<AcceptContext> = {}): string =>
    accept(commit, { ...context, ...changed }, facts).reason;
  const stranger = { ...commitOf({ device: "mal" }), device: "mal" };
  t.is(reasonOf(stranger), "NotAssigned");
  t.is(reasonOf(commitOf({}), { acceptedDevices: new Set(["ann"]) }), "Duplicate");
  t.is(reasonOf(commitOf({}), { acceptedDevices: new Set(["eve"]) }), "");
  t.is(reasonOf(commitOf({}), { open: false }), "Late");
  t.is(reasonOf({ ...commitOf({}), round: "tiny-7" }), "WrongRound");
  t.is(reasonOf({ ...commitOf({}), manifest: undefined }), "BadPayload");
  t.is(reasonOf({ ...commitOf({}), manifest: undefined }, { open: false }), "Late");
});

test("what the chunks hold decides last", (t) => {
  const reasonOf = (payload: PayloadFacts | undefined, maxUpdateNorm = 10): string =>
    accept(commitOf({}), { ...context, maxUpdateNorm }, payload).reason;
  t.is(reasonOf({ ok: true, digest: "sha256:other", norm: 1 }), "WrongDigest");
  t.is(reasonOf({ ok: true, digest: "sha256:chunks", norm: NaN }), "NotFinite");
  t.is(reasonOf({ ok: true, digest: "sha256:chunks", norm: 10 }), "");
  t.is(reasonOf({ ok: true, digest: "sha256:chunks", norm: 10.001 }), "NormExceeded");
  t.is(reasonOf({ ok: true, digest: "sha256:chunks", norm: 1e20 }, 0), "");
  t.is(reasonOf({ ok: true, digest: "sha256:chunks", norm: 2 * NORM_CEILING }, 0), "NormExceeded");
  t.is(reasonOf({ ok: true, digest: "sha256:chunks", norm: 2 * NORM_CEILING }, 1e300), "NormExceeded");
  t.is(reasonOf({ ok: false, refusal: { reason: "NotFinite", message: "chunk 0" } }), "NotFinite");
  t.is(reasonOf(undefined), "BadPayload");
});

test("judging is total: any manifest gets a verdict, and what counts is bounded and finite", (t) => {
  const anyNumber = fc.oneof(fc.double(), fc.integer(), fc.constantFrom(0, 5, 80, PARAMETERS, manifest.sizeBytes));
  const change = fc.record(
    {
      values: anyNumber,
      sizeBytes: anyNumber,
      tokens: anyNumber,
      localSteps: anyNumber,
      trainLoss: anyNumber,
      evalLossSum: anyNumber,
      evalTokens: anyNumber,
      bytesDown: anyNumber,
      chunkSeqs: fc.array(anyNumber, { maxLength: 4 }),
      codec: fc.string(),
    },
    { requiredKeys: [] },
  );
  fc.assert(
    fc.property(change, fc.double(), (changed, norm) => {
      const verdict = accept(commitOf(changed), context, { ok: true, digest: "sha256:chunks", norm });
      if (!verdict.accepted) return verdict.reason !== "" && verdict.norm === 0;
      const { tokens, trainLoss, evalLossSum } = verdict.manifest as UpdateManifest;
      return verdict.norm <= 10 && tokens > 0 && tokens <= 80 && [trainLoss, evalLossSum].every(Number.isFinite);
    }),
    { numRuns: 500 },
  );
  t.pass();
});

test("nobody writes more into a tally than it has room for", (t) => {
  const long = "x".repeat(2000);
  const eve = (change: Partial<UpdateManifest>) =>
    accept({ ...commitOf({ ...nothing, device: "eve", ...change }), device: "eve" }, context, undefined);
  for (const verdict of [
    eve({ digest: long }),
    eve({ codec: long }),
    accept(commitOf({ digest: long }), context, facts),
  ]) {
    t.false(verdict.accepted);
    t.true(verdict.message.length < 200);
  }
  let tally = emptyTally(ROUND);
  const closed = { ...context, open: false };
  for (let seq = 1; seq <= 2000; seq++) {
    const device = `d${seq % 900}`;
    tally = withVerdict(tally, accept({ ...commitOf({ device }), device, seq }, closed, undefined));
  }
  t.is(tally.verdicts.length, MOST_KEPT_REFUSALS);
  t.true(cutOffDevices(tally).has("d5"), "one refusal is enough in a round that has hundreds");
  t.false(cutOffDevices(tally).has("d899"));
  t.is(tally.lastSeq, 2000);
});

test("a tally keeps every accepted verdict and a few refusals a device", (t) => {
  let tally = emptyTally(ROUND);
  const late = { ...context, open: false };
  for (let seq = 1; seq <= 100; seq++) tally = withVerdict(tally, accept({ ...commitOf({}), seq }, late, undefined));
  t.is(tally.verdicts.length, MOST_REFUSALS);
  t.is(tally.lastSeq, 100);
  t.is(acceptedDevices(tally).size, 0);
  const stranger = { ...commitOf({ device: "mal" }), device: "mal", seq: 101 };
  tally = withVerdict(tally, accept(stranger, context, undefined));
  tally = withVerdict(tally, accept({ ...commitOf({}), seq: 102 }, context, facts));
  t.is(tally.verdicts.length, MOST_REFUSALS + 2);
  t.deepEqual([...acceptedDevices(tally)], ["ann"]);
});
