import { ownRecord } from "#common/domain/own-record.js";
import type { CollectableBlobs } from "#common/ports/blob-store.js";
import type { Clock } from "#common/ports/clock.js";
import type { Log } from "#common/ports/log.js";
import type { ResourceStore } from "#common/ports/resource-store.js";
import {
  blobDigests,
  isSettled,
  judgeContents,
  roundsKept,
  type BlobNeeds,
  type Grace,
  type Suspicion,
} from "./blob-retention.js";
import { stagesOf } from "./fold-records.js";
import type { BlobMeters } from "./meters.js";

/** The world of the blobs' collection. */
export interface BlobCollectorPorts {
  store: ResourceStore;
  blobs: CollectableBlobs;
  clock: Clock;
  journal: Log;
  meters: BlobMeters;
  /** Rounds of a job whose weights and state stay, as their updates do; 0 keeps all. */
  retainRounds: number;
  /** Milliseconds that a blob of no use stays at least. */
  graceMs: number;
}

const LEAST_SCANS = 3;
const SCANS_IN_GRACE = 10;
const MOST_PERIOD_MS = 60_000;
const LEAST_PERIOD_MS = 500;

/** What a round refers to, and whether that may still change. */
interface RoundDigests {
  digests: readonly string[];
  isSettled: boolean;
}

/** Milliseconds between scans. */
export function scanPeriodMs(graceMs: number): number {
  return Math.min(MOST_PERIOD_MS, Math.max(LEAST_PERIOD_MS, graceMs / SCANS_IN_GRACE));
}

/**
 * Collects blobs that nothing refers to. What it remembers from scan to scan lies in this process alone: after a restart
 * the grace begins again. Safe to run beside itself and to be killed anywhere.
 */
export class BlobCollector {
  private suspicion: Suspicion | undefined;
  /** What settled rounds refer to, by the job's uid and the round's name: they do not change, and results are long. */
  private settled = new Map<string, RoundDigests>();
  private readonly grace: Grace;

  constructor(private readonly ports: BlobCollectorPorts) {
    const { graceMs } = ports;
    this.grace = { graceMs, leastScans: LEAST_SCANS, mostPauseMs: Math.max(3 * scanPeriodMs(graceMs), graceMs / 2) };
  }

  /** Looks once, and removes what was of no use for long enough. Throws on IO failures, after which nothing is forgotten. */
  async scan(): Promise<void> {
    const { blobs, clock, meters } = this.ports;
    // What lies there first, who needs it afterwards.
    const contents = await blobs.contents();
    meters.holds(contents.bytes, contents.blobs.length);
    const needs = await this.needs();
    const { next, doomed } = judgeContents(this.suspicion, contents, needs, clock.monotonicMs(), this.grace);
    this.suspicion = next;
    let bytes = 0;
    let count = 0;
    for (const { digest, version, sizeBytes } of doomed.blobs) {
      if (!(await blobs.collect(digest, version))) continue;
      meters.collected("Blob", sizeBytes);
      bytes += sizeBytes;
      count += 1;
    }
    for (const { digest, upToVersion } of doomed.partial) {
      await blobs.collectPartial(digest, upToVersion);
      meters.collected("Partial", 0);
    }
    for (const name of doomed.stages) {
      await blobs.unstage(name);
      meters.collected("Stage", 0);
    }
    const { partial, stages } = doomed;
    if (count + partial.length + stages.length === 0) return;
    const what = { blobs: count, bytes, partial: partial.length, stages: stages.length };
    this.ports.journal.info("blobs that nobody needs were collected", what);
  }

  private async needs(): Promise<BlobNeeds> {
    const { store, retainRounds } = this.ports;
    const jobs = (await store.list("TrainingJob")).items;
    const others = [...(await store.list("Model")).items, ...(await store.list("Dataset")).items];
    const digests = new Set(blobDigests([...jobs, ...others]));
    const stages = new Set<string>();
    const settled = new Map<string, RoundDigests>();
    for (const job of jobs) {
      for (const name of roundsKept(job, retainRounds)) {
        const key = `${job.metadata?.uid ?? ""}/${name}`;
        const known = this.settled.get(key);
        const needed = known ?? (await this.readRound(name, stages));
        for (const digest of needed.digests) digests.add(digest);
        if (needed.isSettled) settled.set(key, needed);
      }
    }
    this.settled = settled;
    return { digests, stages };
  }

  /** What a round refers to; of an open one the names of what its fold stages go to `stages`. */
  private async readRound(name: string, stages: Set<string>): Promise<RoundDigests> {
    const { store } = this.ports;
    const [round, stored] = await Promise.all([store.get("Round", name), store.get("RoundResult", name)]);
    const result = ownRecord(round, stored);
    const isOver = isSettled(round, result);
    if (round !== undefined && !isOver) {
      for (const stage of Object.values(stagesOf(round.metadata?.uid ?? ""))) stages.add(stage);
    }
    return { digests: blobDigests([round, result]), isSettled: isOver };
  }
}

/** Collects until the signal aborts. Failures are logged. */
export async function keepCollectingBlobs(ports: BlobCollectorPorts, signal: AbortSignal): Promise<void> {
  const { clock, journal, graceMs } = ports;
  const collector = new BlobCollector(ports);
  const isOver = (): boolean => signal.aborted;
  while (!isOver()) {
    try {
      await collector.scan();
    } catch (error) {
      if (!isOver()) journal.warn("blobs could not be collected; it is tried again", { error });
    }
    await clock.sleep(scanPeriodMs(graceMs), signal);
  }
}
