import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { codeOf } from "#common/adapters/coded-error.js";
import { credsPaths } from "#common/adapters/nats/keys.js";
import { NatsLink } from "#common/adapters/nats/connection.js";
import { NatsBlobStore } from "#common/adapters/nats/blob-store.js";
import { NatsResourceStore } from "#common/adapters/nats/kv-store.js";
import { NatsUpdateLog } from "#common/adapters/nats/update-log.js";
import { SystemClock } from "#common/adapters/memory/clock.js";
import { MemoryLog } from "#common/adapters/memory/log.js";
import { replayRound } from "#services/aggregator/replay.js";
import { lastTakerOf, acceptedVerdicts, isAsynchronous } from "#common/domain/staleness.js";
import type { Round, RoundResult, Verdict } from "#proto/shoal/v1/round.js";

/** What a run left behind, counted from the log itself. */
export interface Verified {
  rounds: number;
  commits: number;
  folded: number;
  refused: Record<string, number>;
  /** Commits without a verdict, or refused as unreadable, or receipts on a device without a counted update. */
  lost: string[];
  /** Updates that count twice: in one round, or in two. */
  doubled: string[];
  /** Rounds whose published weights are not those of the replay. */
  mismatched: string[];
}

/** Refusals that say nothing against an update: the rounds that would take it were over, or planned without the device, or had it. */
const HONEST = new Set(["Late", "Duplicate", "NotAssigned", "TooStale"]);

async function verifyRound(
  ports: { store: NatsResourceStore; blobs: NatsBlobStore; log: NatsUpdateLog },
  result: RoundResult,
  verified: Verified,
): Promise<void> {
  const name = result.metadata?.name ?? "";
  const commits = await ports.log.commits(name);
  verified.rounds++;
  verified.commits += commits.length;
  verified.folded += result.folded.length;
  const counted = new Map<number, number>();
  const inResult = [...result.folded, ...result.refused];
  // What came after the result was written has its verdict in the tally only.
  const tally = await ports.store.get("UpdateTally", name);
  const later = (tally?.verdicts ?? []).filter((v) => !inResult.some((r) => r.commitSeq === v.commitSeq));
  for (const verdict of [...inResult, ...later]) {
    counted.set(verdict.commitSeq, (counted.get(verdict.commitSeq) ?? 0) + 1);
  }
  for (const { reason, manifest } of result.refused) {
    // An honest device's update that was committed and then could not be read, or not be used.
    if (!HONEST.has(reason)) verified.lost.push(`${name}/${manifest?.device ?? "?"} refused as ${reason}`);
    verified.refused[reason] = (verified.refused[reason] ?? 0) + 1;
  }
  for (const { seq, device } of commits) {
    const times = counted.get(seq) ?? 0;
    if (times === 0) verified.lost.push(`${name}/${device}@${seq}`);
    if (times > 1) verified.doubled.push(`${name}/${device}@${seq}`);
  }
  const updates = result.folded.map((v) => `${v.manifest?.device ?? ""} for ${v.manifest?.round ?? ""}`);
  if (new Set(updates).size !== updates.length) verified.doubled.push(name);
  try {
    const { weightsDigest, outerDigest } = await replayRound(ports, name);
    const isEqual = weightsDigest === result.weights?.digest && outerDigest === (result.outerState?.digest ?? "");
    if (!isEqual) verified.mismatched.push(name);
  } catch (error) {
    if (codeOf(error) !== "LOG_CORRUPT") throw error;
    verified.lost.push(...(await damageOf(ports.log, result)));
  }
}

/** Where the log does not hold any more what a round counted. */
async function damageOf(log: NatsUpdateLog, { metadata, folded }: RoundResult): Promise<string[]> {
  const name = metadata?.name ?? "";
  const damage: string[] = [];
  for (const { manifest, commitSeq } of folded) {
    const commits = await log.commits(manifest?.round ?? name, commitSeq - 1);
    // The manifest of a verdict does not say where the chunks are.
    const seqs = commits.find(({ seq }) => seq === commitSeq)?.manifest?.chunkSeqs;
    const chunks = await Promise.all((seqs ?? []).map((seq) => log.readChunk(seq)));
    const absent = seqs?.filter((_seq, i) => chunks[i] === undefined) ?? [];
    const update = `${name}/${manifest?.device ?? "?"}@${commitSeq}`;
    if (seqs === undefined) damage.push(`${update}: no commit`);
    else if (absent.length > 0) damage.push(`${update}: no chunk at ${absent.join(", ")}`);
  }
  return damage.length > 0 ? damage : [`${name}: a chunk is not what was judged`];
}

/** An update is folded by one round, and what an asynchronous round accepted is folded, or refused with the reason, by the last that takes it. */
async function verifyFolds(
  store: NatsResourceStore,
  rounds: readonly Round[],
  results: Map<string, RoundResult>,
  verified: Verified,
): Promise<void> {
  const takers = new Map<number, string>();
  const told = new Set<number>();
  for (const [name, result] of results) {
    for (const { commitSeq } of result.refused) told.add(commitSeq);
    for (const { commitSeq, manifest } of result.folded) {
      if (takers.has(commitSeq)) verified.doubled.push(`${manifest?.device ?? "?"}@${commitSeq} in ${name}`);
      takers.set(commitSeq, name);
    }
  }
  for (const round of rounds.filter(({ spec }) => isAsynchronous(spec))) {
    const name = round.metadata?.name ?? "";
    const { job = "", number = 0 } = round.spec ?? {};
    const last = lastTakerOf(round, (await store.get("TrainingJob", job))?.spec?.rounds ?? 0);
    const lastName = name.slice(0, -String(number).length) + String(last);
    if (!results.has(lastName)) continue;
    for (const { commitSeq, manifest } of acceptedVerdicts(await store.get("UpdateTally", name))) {
      if (!takers.has(commitSeq) && !told.has(commitSeq))
        verified.lost.push(`${name}/${manifest?.device ?? "?"}@${commitSeq} in no round`);
    }
  }
}

/** Devices whose updates were judged, by round: what came after the result was written has its verdict in the tally only. */
async function judgedDevices(
  store: NatsResourceStore,
  results: Map<string, RoundResult>,
): Promise<Map<string, Set<string>>> {
  const judged = new Map<string, Set<string>>();
  for (const [name, { folded, refused }] of results) {
    const verdicts = [...folded, ...refused, ...((await store.get("UpdateTally", name))?.verdicts ?? [])];
    judged.set(name, new Set(verdicts.filter((v) => isOf(v, name)).map((v) => v.manifest?.device ?? "")));
  }
  return judged;
}

const isOf = ({ manifest }: Verdict, round: string): boolean => manifest?.round === round;

/** Devices' own receipts: every round a device holds a committed marker of must have judged its update. */
function verifyReceipts(
  dir: string,
  devices: readonly string[],
  judged: Map<string, Set<string>>,
  verified: Verified,
): void {
  for (const device of devices) {
    const markers = readdirSync(join(dir, `state-${device}`, "outbox", "committed")).filter((m) => !m.startsWith("."));
    if (markers.length === 0) verified.lost.push(`${device} holds no receipt at all`);
    for (const marker of markers) {
      // A marker is named "<round>@<start of the job's uid>".
      const round = marker.replace(/@.*/, "");
      if (judged.get(round)?.has(device) !== true) verified.lost.push(`receipt ${round}/${device}`);
    }
  }
}

/**
 * Reads the update log, the results and the devices' receipts and holds them against each other and against a replay
 * of every round, which folds the same commits in the same order without a disturbance.
 */
export async function verify(
  dir: string,
  natsUrls: readonly string[],
  devices: readonly string[],
  jobs: readonly string[],
): Promise<Verified> {
  const clock = new SystemClock();
  const journal = new MemoryLog();
  const creds = readFileSync(credsPaths(join(dir, "keys")).service, "utf8");
  const link = await NatsLink.connect({ servers: [...natsUrls], creds, name: "chaos-verify", log: journal, clock });
  const verified: Verified = { rounds: 0, commits: 0, folded: 0, refused: {}, lost: [], doubled: [], mismatched: [] };
  try {
    const store = await NatsResourceStore.open(link);
    const ports = { store, blobs: new NatsBlobStore(link), log: new NatsUpdateLog(link) };
    const { items } = await store.list("RoundResult");
    const results = new Map(items.filter((r) => jobs.includes(r.job)).map((r) => [r.metadata?.name ?? "", r]));
    for (const result of results.values()) await verifyRound(ports, result, verified);
    const rounds = (await store.list("Round", {})).items.filter(({ spec }) => jobs.includes(spec?.job ?? ""));
    await verifyFolds(store, rounds, results, verified);
    verifyReceipts(dir, devices, await judgedDevices(store, results), verified);
    verifyLineage(rounds, results, jobs, verified);
  } finally {
    await link.close();
  }
  return verified;
}

/** Each round must start from exactly what the round before it published. */
function verifyLineage(
  rounds: readonly Round[],
  results: Map<string, RoundResult>,
  jobs: readonly string[],
  verified: Verified,
): void {
  for (const job of jobs) {
    const own = rounds.filter((r) => r.spec?.job === job).sort((a, b) => (a.spec?.number ?? 0) - (b.spec?.number ?? 0));
    let before: string | undefined;
    for (const round of own) {
      const name = round.metadata?.name ?? "";
      if (before !== undefined && round.spec?.task?.weights?.digest !== before)
        verified.mismatched.push(`lineage ${name}`);
      before = results.get(name)?.weights?.digest;
    }
  }
}
