import test from "ava";
import fc from "fast-check";
import { Assignment, MemberUpdate, UpdateManifest } from "#proto/shoal/v1/round.js";
import { Device } from "#proto/shoal/v1/device.js";
import { accept, screen, type AcceptContext, type Commit, type PayloadFacts } from "#common/domain/accept.js";
import type { RefusalReason } from "#common/domain/refusal.js";
import { GATEWAY_LABEL, SITE_LABEL, summariseMembers } from "#common/domain/site.js";
import { updateBytes } from "#common/tensor/chunk.js";
import { codecByName, type Codec } from "#common/tensor/codec.js";
import { API_VERSION, newMeta } from "#common/domain/resources.js";
import { Round } from "#proto/shoal/v1/round.js";
import { acceptedDevices, emptyTally, withVerdict } from "#services/aggregator/tally.js";
import { commit, createWorld, draw, freeze, reconcile, resultOf, tallyOf, upload } from "./world.js";

const ROUND = Round.fromPartial({ metadata: { name: "tiny-1" }, spec: { job: "tiny" } });

const PARAMETERS = 1000;
const codec = codecByName("fp32") as Codec;
const at = (device: string, site: string, localSteps = 5): Assignment =>
  Assignment.fromPartial({ device, site, localSteps, batchSize: 2 });

const context: AcceptContext = {
  round: "tiny-1",
  open: true,
  evaluationOnly: false,
  assignments: [at("ann", "pier"), at("bob", "pier"), at("eve", "pier", 0), at("cyd", "dock"), at("dan", "")],
  acceptedDevices: new Set(),
  values: PARAMETERS,
  codec,
  jobUid: "uid-1",
  baseDigest: "sha256:base",
  seqLen: 8,
  referenceSteps: 5,
  maxUpdateNorm: 0,
  gatewaySite: "pier",
  siteWeighting: "tokens",
};

const member = (device: string, change: Partial<MemberUpdate> = {}): MemberUpdate =>
  MemberUpdate.fromPartial({
    device,
    digest: `sha256:${device}`,
    tokens: 80,
    localSteps: 5,
    trainLoss: 3,
    evalLossSum: 2,
    evalTokens: 1,
    ...change,
  });
const evaluated = (device: string): MemberUpdate =>
  member(device, { tokens: 0, localSteps: 0, trainLoss: 0, digest: "" });
const refused = (device: string, refusal = "NotFinite", message = "value 3"): MemberUpdate =>
  MemberUpdate.fromPartial({ device, refusal, message });

function siteCommit(members: MemberUpdate[], change: Partial<UpdateManifest> = {}, seq = 9): Commit {
  const manifest = UpdateManifest.fromPartial({
    device: "gate",
    site: "pier",
    round: "tiny-1",
    codec: "fp32",
    values: PARAMETERS,
    sizeBytes: updateBytes(PARAMETERS, codec),
    digest: "sha256:folded",
    chunkSeqs: [5],
    baseDigest: "sha256:base",
    members,
    ...summariseMembers(members),
    ...change,
  });
  return { seq, device: "gate", round: "tiny-1", manifest };
}
const nothing: Partial<UpdateManifest> = { values: 0, sizeBytes: 0, chunkSeqs: [], digest: "" };
const read = (digest = "sha256:folded"): PayloadFacts => ({ ok: true, digest, norm: 2 });

test("a site's update counts every member once, whatever the others did", (t) => {
  const verdict = accept(siteCommit([member("ann"), member("bob"), evaluated("eve")]), context, read());
  t.true(verdict.accepted, verdict.message);
  t.is(verdict.manifest?.tokens, 160);
  t.is(verdict.manifest?.evalLossSum, 6);
  const tally = withVerdict(emptyTally(ROUND), verdict);
  t.deepEqual([...acceptedDevices(tally)], ["ann", "bob", "eve"]);
});

test("what a gateway refused is told without counting, alone or beside others", (t) => {
  const beside = accept(siteCommit([member("ann"), member("bob"), refused("eve")]), context, read());
  t.true(beside.accepted, beside.message);
  const alone = accept(siteCommit([refused("ann")], nothing), context, undefined);
  t.true(alone.accepted, alone.message);
  t.deepEqual([...acceptedDevices(withVerdict(emptyTally(ROUND), alone))], []);
});

const long = "x".repeat(2000);
const both = [member("ann"), member("bob")];
const refusals: [string, RefusalReason, Commit, Partial<AcceptContext>?][] = [
  ["from a device that is no gateway", "NotAssigned", siteCommit(both), { gatewaySite: undefined }],
  ["from the gateway of another site", "NotAssigned", siteCommit(both), { gatewaySite: "dock" }],
  ["that names no site", "NotAssigned", siteCommit(both, { site: "" })],
  ["that names another site", "NotAssigned", siteCommit(both, { site: "dock" })],
  ["for a device of another site", "NotAssigned", siteCommit([member("ann"), member("cyd")])],
  ["for a device of no site", "NotAssigned", siteCommit([member("ann"), member("dan")])],
  ["for a device that is not in the round", "NotAssigned", siteCommit([member("ann"), member("mal")])],
  ["with a member that counts already", "Duplicate", siteCommit(both), { acceptedDevices: new Set(["bob"]) }],
  ["that names a member twice", "Duplicate", siteCommit([member("ann"), member("ann")])],
  ["of no members", "BadPayload", siteCommit([])],
  ["of more members than the round has", "BadPayload", siteCommit("abcdef".split("").map((name) => member(name)))],
  ["from other weights", "WrongBase", siteCommit(both, { baseDigest: "sha256:old" })],
  ["with tokens that are not the sum", "BadPayload", siteCommit(both, { tokens: 161 })],
  ["with a loss that is not the mean", "BadPayload", siteCommit(both, { trainLoss: 2.9 })],
  ["with held-out losses that are not the sum", "BadPayload", siteCommit(both, { evalLossSum: 3 })],
  ["with held-out tokens that are not the sum", "BadPayload", siteCommit(both, { evalTokens: 3 })],
  [
    "with a member that claims too many tokens",
    "BadPayload",
    siteCommit([member("ann", { tokens: 81 }), member("bob")]),
  ],
  ["with a member that claims too many steps", "BadPayload", siteCommit([member("ann", { localSteps: 6 })])],
  ["with a member's NaN", "NotFinite", siteCommit([member("ann", { norm: NaN }), member("bob")])],
  ["with work of one that evaluates", "WrongShape", siteCommit([member("eve"), member("bob")])],
  ["without the work of one that trains", "BadPayload", siteCommit([evaluated("ann"), member("bob")])],
  ["with a payload where all evaluate", "WrongShape", siteCommit([evaluated("eve")])],
  ["folded where each is due by itself", "BadPayload", siteCommit(both), { siteWeighting: "" }],
  ["of one member with other bytes than that one's", "WrongDigest", siteCommit([member("ann")])],
  ["of too few values", "WrongShape", siteCommit(both, { values: 999 })],
  ["with a member's endless digest", "BadPayload", siteCommit([member("ann", { digest: long }), member("bob")])],
  ["with an endless digest of a refused one", "BadPayload", siteCommit([{ ...refused("ann"), digest: long }], nothing)],
  ["with an endless reason", "BadPayload", siteCommit([member("ann"), refused("bob", "NotFinite", "x".repeat(999))])],
  ["too late", "Late", siteCommit(both), { open: false }],
];
for (const [what, reason, commit, change] of refusals) {
  test(`a site's update is refused: ${what}`, (t) => {
    t.is(screen(commit, { ...context, ...change })?.reason, reason);
    const verdict = accept(commit, { ...context, ...change }, read());
    t.is(verdict.reason, reason);
    t.deepEqual(verdict.manifest?.members, []);
    t.true(verdict.message.length < 300);
  });
}

test("where updates are compared, a gateway hands on each by itself", (t) => {
  const strict = { ...context, siteWeighting: "" };
  const one = siteCommit([member("ann")], { digest: "sha256:ann" });
  t.true(accept(one, strict, read("sha256:ann")).accepted);
});

test("whichever commits come in whichever order, directly or through the gateway, no device counts twice", (t) => {
  const devices = ["ann", "bob"];
  const direct = fc.constantFrom(...devices).map((device): Commit => {
    const { manifest } = siteCommit([member(device)], { device, site: "", members: [], tokens: 80, localSteps: 5 });
    return { seq: 9, device, round: "tiny-1", manifest };
  });
  const through = fc.subarray(devices, { minLength: 1 }).map((names) =>
    siteCommit(
      names.map((name) => member(name)),
      names.length === 1 ? { digest: `sha256:${names[0] ?? ""}` } : {},
    ),
  );
  fc.assert(
    fc.property(fc.array(fc.oneof(direct, through), { maxLength: 8 }), (commits) => {
      let tally = emptyTally(ROUND);
      const counted: string[] = [];
      commits.forEach((commit, i) => {
        const now = { ...context, acceptedDevices: acceptedDevices(tally) };
        const verdict = accept({ ...commit, seq: 9 + i }, now, read(commit.manifest?.digest));
        tally = withVerdict(tally, verdict);
        if (verdict.accepted)
          counted.push(
            ...(commit.device === "gate" ? (verdict.manifest?.members ?? []) : [commit]).map(({ device }) => device),
          );
      });
      t.is(new Set(counted).size, counted.length);
      t.true(commits.length === 0 || counted.length > 0);
    }),
  );
});

test("the aggregator takes a site's word only from its gateway, and folds it with the weight of its members", async (t) => {
  const world = await createWorld({ strategy: "fedavg", sumsMaxBytes: 2 ** 20 });
  const round = (await world.store.get("Round", "tiny-1")) as Round;
  const assignments = (round.status?.assignments ?? []).map((one) =>
    one.device === "cyd" ? one : { ...one, site: "pier" },
  );
  const task = { ...round.spec?.task, siteWeighting: "tokens" };
  await world.store.update(
    "Round",
    Round.fromPartial({ ...round, spec: { ...round.spec, task }, status: { ...round.status, assignments } }),
  );
  const enrol = (name: string, labels: Record<string, string>): Promise<unknown> =>
    world.store.create(
      "Device",
      Device.fromPartial({ apiVersion: API_VERSION, kind: "Device", metadata: newMeta(name, labels) }),
    );
  await enrol("gate", { [SITE_LABEL]: "pier", [GATEWAY_LABEL]: "true" });
  await enrol("mole", { [SITE_LABEL]: "pier" });

  const site = draw(600, 1);
  const members = ["ann", "bob"].map((name) => member(name, { tokens: 640, localSteps: 10 }));
  const folded = async (gateway: string): Promise<UpdateManifest> => ({
    ...(await upload(world, gateway, site)),
    members,
    site: "pier",
    ...summariseMembers(members),
  });
  await commit(world, await folded("mole"));
  const direct = draw(600, 2);
  await commit(world, await upload(world, "cyd", direct, 5));
  await commit(world, await folded("gate"));
  const ann = await upload(world, "ann", draw(600, 3));
  await commit(world, ann);
  await reconcile(world);
  t.deepEqual(
    (await tallyOf(world)).verdicts.map(({ accepted, reason }) => (accepted ? "Accepted" : reason)),
    ["NotAssigned", "Accepted", "Accepted", "Duplicate"],
  );
  await freeze(world);
  // What was read for the verdicts is summed, a site's update between devices' own too.
  world.log.readChunk = () => Promise.reject(new Error("read again"));
  await reconcile(world);
  const result = await resultOf(world);
  t.is(result?.tokens, 1280 + 320);
  t.deepEqual(
    result?.folded.map(({ manifest }) => manifest?.members.map(({ device }) => device)),
    [[], ["ann", "bob"]],
  );
  const weights = new Float32Array(
    ((await world.blobs.get(result?.weights?.digest ?? "")) as Uint8Array).slice().buffer,
  );
  for (let i = 0; i < 600; i++) {
    const mean = ((site[i] as number) * 1280 + (direct[i] as number) * 320) / 1600;
    t.true(Math.abs((weights[i] as number) - ((world.base[i] as number) + mean)) <= 2 ** -23);
  }
});
