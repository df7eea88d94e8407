import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { credsPaths } from "#common/adapters/nats/keys.js";
import { NatsLink } from "#common/adapters/nats/connection.js";
import { NatsBlobStore } from "#common/adapters/nats/blob-store.js";
import { NatsResourceStore } from "#common/adapters/nats/kv-store.js";
import { NatsUpdateLog } from "#common/adapters/nats/update-log.js";
import { SystemClock } from "#common/adapters/memory/clock.js";
import { MemoryLog } from "#common/adapters/memory/log.js";
import { replayRound } from "#services/aggregator/replay.js";
import type { RoundResult } from "#proto/shoal/v1/round.js";

/** What a run left behind, counted from the log itself. */
export interface Verified {
  rounds: number;
  commits: number;
  folded: number;
  refused: Record<string, number>;
  /** Commits without a verdict, or refused as unreadable, or receipts on a device without a counted update. */
  lost: string[];
  /** Updates of one device counted twice in a round. */
  doubled: string[];
  /** Rounds whose published weights are not those of the replay. */
  mismatched: string[];
}

/** Refusals that say nothing against an update: the round was over, or had planned without the device, or had it. */
const HONEST = new Set(["Late", "Duplicate", "NotAssigned"]);

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
  const devices = result.folded.map((v) => v.manifest?.device ?? "");
  if (new Set(devices).size !== devices.length) verified.doubled.push(name);
  const replayed = await replayRound(ports, name);
  if (replayed.weightsDigest !== result.weights?.digest || replayed.outerDigest !== (result.outerState?.digest ?? "")) {
    verified.mismatched.push(name);
  }
}

/** Devices' own receipts: every round a device holds a committed marker of must have counted its update. */
function verifyReceipts(
  dir: string,
  devices: readonly string[],
  results: Map<string, RoundResult>,
  verified: Verified,
): void {
  for (const device of devices) {
    const markers = readdirSync(join(dir, `state-${device}`, "outbox", "committed")).filter((m) => !m.startsWith("."));
    if (markers.length === 0) verified.lost.push(`${device} holds no receipt at all`);
    for (const marker of markers) {
      // A marker is named "<round>@<start of the job's uid>".
      const round = marker.replace(/@.*/, "");
      const { folded = [], refused = [] } = results.get(round) ?? {};
      if (![...folded, ...refused].some((v) => v.manifest?.device === device)) {
        verified.lost.push(`receipt ${round}/${device}`);
      }
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
    verifyReceipts(dir, devices, results, verified);
    await verifyLineage(store, jobs, verified);
  } finally {
    await link.close();
  }
  return verified;
}

/** Each round must start from exactly what the round before it published. */
async function verifyLineage(store: NatsResourceStore, jobs: readonly string[], verified: Verified): Promise<void> {
  for (const job of jobs) {
    const { items } = await store.list("Round", { prefix: `${job}-` });
    const rounds = items
      .filter((r) => r.spec?.job === job)
      .sort((a, b) => (a.spec?.number ?? 0) - (b.spec?.number ?? 0));
    let before: string | undefined;
    for (const round of rounds) {
      const name = round.metadata?.name ?? "";
      if (before !== undefined && round.spec?.task?.weights?.digest !== before)
        verified.mismatched.push(`lineage ${name}`);
      before = (await store.get("RoundResult", name))?.weights?.digest;
    }
  }
}
