import test from "ava";
import { MemberUpdate, Round, RoundSpec, UpdateManifest, type UpdateTally } from "#proto/shoal/v1/round.js";
import { encodeResource } from "#common/adapters/resource-codecs.js";
import { accept, type AcceptContext } from "#common/domain/accept.js";
import { foldShardValues } from "#common/domain/round.js";
import { summariseMembers } from "#common/domain/site.js";
import { chunkCount, updateBytes } from "#common/tensor/chunk.js";
import { codecByName, type Codec } from "#common/tensor/codec.js";
import { composeResult, partVerdicts } from "#services/aggregator/finalize.js";
import { cutShards } from "#services/aggregator/shards.js";
import { emptyTally, withVerdict } from "#services/aggregator/tally.js";

const DEVICES = 1000;
const codec = codecByName("fp32") as Codec;
/** As long as names can be. */
const nameOf = (index: number): string => `d${index}`.padEnd(63, "x");
const ROUND = "r".repeat(63);
const DIGEST = `sha256:${"9".repeat(64)}`;
const UID = "01234567-89ab-cdef-0123-456789abcdef";
/** Figures with as many digits as float64 writes. */
const LOSS = 1234.567890123456;

const work = {
  tokens: 123_456_789,
  localSteps: 99_999,
  trainLoss: LOSS,
  evalLossSum: LOSS,
  evalTokens: 1_234_567,
  bytesDown: 4_000_000_000,
  fetchMs: 10_000_000,
  trainMs: 100_000_000,
};

function contextOf(values: number): AcceptContext {
  return {
    round: ROUND,
    open: true,
    evaluationOnly: false,
    assignments: Array.from({ length: DEVICES }, (_, index) => ({
      device: nameOf(index),
      localSteps: 99_999,
      batchSize: 1024,
      seed: 1,
      trainGraph: undefined,
      predictedMs: 1,
      site: "pier",
    })),
    acceptedDevices: new Set(),
    values,
    codec,
    jobUid: UID,
    baseDigest: DIGEST,
    seqLen: 4096,
    referenceSteps: 99_999,
    maxUpdateNorm: 0,
    gatewaySite: "pier",
    siteWeighting: "tokens",
  };
}

/** A commit late in a log that has seen billions of messages. */
const seqOf = (index: number): number => 9_000_000_000 + index * 10_000;

function manifestOf(index: number, values: number): UpdateManifest {
  const first = seqOf(index) - 9_999;
  return UpdateManifest.fromPartial({
    device: nameOf(index),
    round: ROUND,
    codec: codec.name,
    values,
    sizeBytes: updateBytes(values, codec),
    digest: DIGEST,
    chunkSeqs: Array.from({ length: chunkCount(values, codec) }, (_, chunk) => first + chunk),
    baseDigest: DIGEST,
    jobUid: UID,
    ...work,
  });
}

const spec = RoundSpec.fromPartial({ job: "j".repeat(56), number: 999_999 });
const round = Round.fromPartial({ metadata: { name: ROUND, uid: UID }, spec });

/** The tally of these manifests as judging writes it. */
function tallyOf(manifests: readonly UpdateManifest[], values: number): UpdateTally {
  const context = contextOf(values);
  const sums = cutShards(values, codec, foldShardValues(values)).map(() => 4_294_967_295);
  return manifests.reduce((tally, manifest, index) => {
    const commit = { seq: seqOf(index), device: manifest.device, round: ROUND, manifest };
    const verdict = accept(commit, context, { ok: true, digest: DIGEST, norm: LOSS });
    if (!verdict.accepted) throw new Error(verdict.message);
    return withVerdict(tally, { ...verdict, shardChecksums: sums });
  }, emptyTally(round));
}

const blob = { digest: DIGEST, sizeBytes: 1e12 };

/** Bytes of the stored tally and of the result that folds all of it; both throw if the store would not take them. */
function storedBytes(tally: UpdateTally): number[] {
  const foldSet = tally.verdicts.map(({ manifest, commitSeq }) => ({ device: manifest?.device ?? "", commitSeq }));
  const delta = { blob, baseDigest: blob.digest, partValues: [8_388_608], fragment: 0 };
  const outcome = { weights: blob, outerState: blob, delta, updateNorm: LOSS, foldMs: 1_000_000 };
  const verdicts = partVerdicts(Round.fromPartial({ ...round, status: { foldSet } }), tally, [], 1_000_000);
  const result = composeResult({ ...round, spec }, verdicts, outcome);
  return [encodeResource("UpdateTally", tally), encodeResource("RoundResult", result)].map((text) =>
    Buffer.byteLength(text),
  );
}

for (const values of [1_000, 124_439_808, 1_100_000_000]) {
  test(`the verdicts of 1000 devices on ${values} values fit one message of the store`, (t) => {
    const manifests = Array.from({ length: DEVICES }, (_, index) => manifestOf(index, values));
    const bytes = storedBytes(tallyOf(manifests, values));
    t.true(Math.max(...bytes) <= 1024 ** 2, `${bytes.join(" and ")} bytes`);
    t.log(`${values} values: tally and result ${bytes.join(" and ")} bytes`);
  });
}

test("so do those on the updates of ten sites with all their members", (t) => {
  const values = 124_439_808;
  const manifests = Array.from({ length: 10 }, (_, site) => {
    const members = Array.from({ length: DEVICES / 10 }, (__, k) =>
      MemberUpdate.fromPartial({
        device: nameOf(site * 100 + k),
        commitSeq: seqOf(k),
        digest: DIGEST,
        sizeBytes: updateBytes(values, codec),
        norm: LOSS,
        ...work,
      }),
    );
    const folded = { ...manifestOf(site, values), site: "pier", members };
    return { ...folded, ...summariseMembers(members) };
  });
  const bytes = storedBytes(tallyOf(manifests, values));
  t.true(Math.max(...bytes) <= 1024 ** 2, `${bytes.join(" and ")} bytes`);
  t.log(`sites: tally and result ${bytes.join(" and ")} bytes`);
});
