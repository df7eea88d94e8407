import type { RoundLineage, VerifyJobResponse } from "#proto/shoal/v1/aggregator_service.js";
import type { TrainingJob, WeightsDelta } from "#proto/shoal/v1/job.js";
import type { BlobRef } from "#proto/shoal/v1/meta.js";
import type { Model } from "#proto/shoal/v1/model.js";
import type { Round, RoundResult, Verdict } from "#proto/shoal/v1/round.js";
import { withoutChunks } from "#common/domain/accept.js";
import { ownRecord } from "#common/domain/own-record.js";
import { roundName } from "#common/domain/resources.js";
import type { BlobStore } from "#common/ports/blob-store.js";
import type { Clock } from "#common/ports/clock.js";
import type { ResourceStore } from "#common/ports/resource-store.js";
import type { CommitRecord, UpdateLog } from "#common/ports/update-log.js";
import { readEarlier } from "#common/runtime/earlier-rounds.js";
import type { Turns } from "#common/runtime/turns.js";
import { firstRoundKept } from "./blob-retention.js";
import { codecOf, taskOf } from "./fold-round.js";
import {
  broken,
  checkRecord,
  heritageOf,
  isSameManifest,
  judged,
  unverifiable,
  verified,
  type Finding,
  type Heritage,
  type RoundRecord,
} from "./lineage.js";
import { readFolded } from "./logged-commits.js";
import { digestBlob, observedLog, type ReadCount } from "./observed.js";
import { checkOrigin } from "./origin.js";
import { readPayload } from "#common/runtime/payload.js";
import { narrated } from "./progress.js";
import { isReplayOf, replayOrDamage } from "./replay.js";

/** What a walk reads; it writes nothing. */
export interface VerifyPorts {
  store: ResourceStore;
  blobs: BlobStore;
  log: UpdateLog;
  clock: Clock;
  /** Rounds of a job whose updates stay in the log; 0 keeps all. */
  retainRounds: number;
}

/** The part of a job that is walked. */
export interface Walk {
  job: TrainingJob;
  first: number;
  last: number;
  replay: boolean;
}

type Resources = Pick<VerifyPorts, "store" | "blobs" | "log">;

/** One walk through a job's rounds. */
class Walker {
  private readonly count: ReadCount = { bytes: 0 };
  /** Blobs whose bytes were read and found right: a round's weights are the next one's start. */
  private readonly sound = new Set<string>();
  private readonly ports: Resources;

  constructor(
    private readonly world: VerifyPorts,
    private readonly walk: Walk,
    private readonly turns: Turns,
    private readonly signal: AbortSignal,
  ) {
    this.ports = { store: world.store, blobs: world.blobs, log: observedLog(world.log, this.count, signal) };
  }

  async *run(): AsyncGenerator<VerifyJobResponse> {
    const { job, first, last } = this.walk;
    let heritage = await this.heritageBefore(first);
    for (let number = first; number <= last; number++) {
      this.signal.throwIfAborted();
      const checked = yield* this.narrate(number, this.checkRound(number, heritage));
      heritage = checked.heritage;
      yield { part: { $case: "round", value: checked.lineage } };
    }
    const checks = yield* this.narrate(0, this.checkJob());
    const weightsDigest = job.status?.weights?.digest ?? "";
    yield { part: { $case: "round", value: { number: 0, round: job.metadata?.name ?? "", weightsDigest, checks } } };
  }

  private async *narrate<T>(number: number, work: Promise<T>): AsyncGenerator<VerifyJobResponse, T, undefined> {
    const progress = (): VerifyJobResponse => {
      const value = { number, lastRound: this.walk.last, readBytes: this.count.bytes };
      return { part: { $case: "progress", value } };
    };
    return yield* narrated(work, progress, this.world.clock);
  }

  private async readRound(name: string): Promise<{ round: Round | undefined; result: RoundResult | undefined }> {
    const { store } = this.ports;
    const round = await store.get("Round", name);
    return { round, result: ownRecord(round, await store.get("RoundResult", name)) };
  }

  /** What the walk's first round must start from; undefined where that cannot be told. */
  private async heritageBefore(first: number): Promise<Heritage | undefined> {
    const { job } = this.walk;
    const { store } = this.ports;
    const name = job.metadata?.name ?? "";
    if (first > 1) {
      const { result } = await this.readRound(roundName(name, first - 1));
      return result && heritageOf(result);
    }
    // Whether this start is what the job names is told of the job itself.
    const round = await store.get("Round", roundName(name, 1));
    return {
      weights: round?.spec?.task?.weights?.digest ?? job.status?.weights?.digest ?? "",
      outerState: "",
      delta: "",
    };
  }

  private async checkRound(
    number: number,
    heritage: Heritage | undefined,
  ): Promise<{ lineage: RoundLineage; heritage: Heritage | undefined }> {
    const { job } = this.walk;
    const { store } = this.ports;
    const name = roundName(job.metadata?.name ?? "", number);
    const { round, result } = await this.readRound(name);
    const lineage = { number, round: name, weightsDigest: "" };
    if (round?.spec === undefined || result === undefined) {
      return { lineage: { ...lineage, checks: [this.unfinished(round?.status?.phase)] }, heritage: undefined };
    }
    const tally = ownRecord(round, await store.get("UpdateTally", name));
    const earlier = await readEarlier(store, round.spec);
    const record: RoundRecord = { job, name, number, round, result, tally, earlier };
    const commits = await this.checkCommits(record);
    const checks = [...checkRecord(record, heritage), commits];
    const parameters = taskOf(round.spec).parameters;
    checks.push(await this.checkBlob("weights", number, result.weights, 4 * parameters));
    if ((result.outerState?.digest ?? "") !== "") {
      checks.push(await this.checkBlob("outerState", number, result.outerState));
    }
    if (result.delta !== undefined) checks.push(await this.checkDelta(record, result.delta));
    if (this.walk.replay && commits.outcome === "Verified") checks.push(await this.checkReplay(record));
    const next = heritageOf(result);
    return { lineage: { ...lineage, weightsDigest: next.weights, checks }, heritage: next };
  }

  /** A round without a result: the one under way, or one that failed. */
  private unfinished(phase: string | undefined): Finding {
    if (phase === undefined) return broken("start", "there is no such round");
    if (phase === "Completed") return broken("start", "it is completed, and its result is gone");
    return unverifiable("start", `it is in phase ${phase} and has published nothing`);
  }

  private isRetained(number: number): boolean {
    const { retainRounds } = this.world;
    const newest = this.walk.job.status?.currentRound ?? 0;
    return retainRounds === 0 || newest - number < retainRounds;
  }

  private async checkCommits(record: RoundRecord): Promise<Finding> {
    const { result, name, number } = record;
    if (result.folded.length === 0) return verified("commits", "nothing was folded");
    const logged = await readFolded(this.ports.log, { name, spec: result, entries: result.folded });
    // A round leaves the log as a whole, earlier than those that folded updates of it.
    const absent = result.folded.filter(({ commitSeq }) => !logged.has(commitSeq));
    const held = new Set(
      result.folded.filter(({ commitSeq }) => logged.has(commitSeq)).map(({ staleness }) => staleness),
    );
    if (absent.length > 0 && !absent.some(({ staleness }) => held.has(staleness))) {
      const why = this.isRetained(number)
        ? ", though it is among the newest: given up for want of space, or purged"
        : "";
      const what = held.size === 0 ? "the round" : "the rounds in which some of its updates began";
      return unverifiable("commits", `the log does not hold ${what} any more${why}`);
    }
    const faults: string[] = [];
    for (const folded of result.folded) {
      const fault = await this.commitFault(record, folded, logged.get(folded.commitSeq));
      if (fault !== undefined) faults.push(`commit ${folded.commitSeq} of ${folded.manifest?.device ?? ""}: ${fault}`);
    }
    const bytes = result.folded.reduce((sum, { manifest }) => sum + (manifest?.sizeBytes ?? 0), 0);
    return judged(
      "commits",
      faults,
      `${result.folded.length} commits and ${bytes} bytes are in the log as they were judged`,
    );
  }

  private async commitFault(
    { round }: RoundRecord,
    folded: Verdict,
    commit: CommitRecord | undefined,
  ): Promise<string | undefined> {
    if (commit?.manifest === undefined) return "the log does not hold it";
    if (commit.device !== folded.manifest?.device) return `the log holds one of ${commit.device}`;
    if (!isSameManifest(withoutChunks(commit.manifest), withoutChunks(folded.manifest)))
      return "the log holds another manifest";
    if (commit.manifest.values === 0 || round.spec === undefined) return undefined;
    const facts = await readPayload(this.ports.log, commit.manifest, codecOf(taskOf(round.spec)));
    if (!facts.ok) return facts.refusal.message;
    if (facts.digest !== commit.manifest.digest) return `its chunks are ${facts.digest}, not ${commit.manifest.digest}`;
    return facts.norm === folded.norm ? undefined : `its norm is ${facts.norm}, not ${folded.norm}`;
  }

  /** Of a round whose blobs do not stay, one that is gone says nothing: rounds begin while this walks. */
  private async absentBlob(name: string, number: number, digest: string): Promise<Finding> {
    const { job } = this.walk;
    const now = (await this.ports.store.get("TrainingJob", job.metadata?.name ?? "")) ?? job;
    if (number >= firstRoundKept(now, this.world.retainRounds)) return broken(name, `there is no blob ${digest}`);
    return unverifiable(name, `${digest} is not stored any more: blobs of old rounds are collected`);
  }

  /** @param number of the round that refers to it; Infinity for what stays as long as the job. */
  private async checkBlob(name: string, number: number, ref: BlobRef | undefined, dueBytes?: number): Promise<Finding> {
    const digest = ref?.digest ?? "";
    if (digest === "") return broken(name, "the result names no blob");
    if (dueBytes !== undefined && ref?.sizeBytes !== dueBytes) {
      return broken(name, `${ref?.sizeBytes ?? 0} bytes where ${dueBytes} are due`);
    }
    if (this.sound.has(digest)) return verified(name, `${digest}, read before`);
    const state = await digestBlob(this.ports.blobs, digest, this.count, this.signal);
    if (!state.present) return this.absentBlob(name, number, digest);
    if (state.digest !== digest) return broken(name, `the blob ${digest} holds bytes of ${state.digest}`);
    if (state.sizeBytes !== ref?.sizeBytes) return broken(name, `${digest} has ${state.sizeBytes} bytes`);
    this.sound.add(digest);
    return verified(name, `${digest}, ${state.sizeBytes} bytes`);
  }

  /** The change that devices add to the round's starting weights. */
  private async checkDelta({ number, round }: RoundRecord, { blob, baseDigest }: WeightsDelta): Promise<Finding> {
    const start = round.spec?.task?.weights?.digest ?? "";
    if (baseDigest !== start)
      return broken("delta", `it is added to ${baseDigest}, and the round starts from ${start}`);
    return this.checkBlob("delta", number, blob);
  }

  private async checkReplay({ name, result }: RoundRecord): Promise<Finding> {
    const replayed = await this.turns.take(() => replayOrDamage(this.ports, name));
    if (replayed.damage !== "") return broken("replay", replayed.damage);
    const published = heritageOf(result);
    const isSame = isReplayOf(replayed, published);
    const message = `folded again from the log it comes to ${replayed.weightsDigest}`;
    return isSame ? verified("replay", message) : broken("replay", `${message}, not ${published.weights}`);
  }

  /** The job as a whole: where it began, what stays frozen, and that its status and Model hold the last weights. */
  private async checkJob(): Promise<Finding[]> {
    const { job, last } = this.walk;
    const { store } = this.ports;
    const name = job.metadata?.name ?? "";
    const first = await store.get("Round", roundName(name, 1));
    const start = first?.spec?.task?.weights ?? job.status?.weights;
    if (start === undefined) return [unverifiable("origin", "the job has not begun")];
    const model = await this.modelNamed(job.status?.model);
    const checks = [await this.turns.take(() => this.checkStart(start, model))];
    const frozen = first?.spec?.task?.frozen?.blob;
    if (frozen !== undefined) checks.push(await this.checkBlob("frozen", Infinity, frozen));
    // A walk that ends early says nothing of the end.
    if (last < (job.status?.currentRound ?? 0)) return checks;
    const { result } = await this.readRound(roundName(name, job.status?.completedRounds ?? 0));
    const due = result?.weights?.digest ?? start.digest;
    const held = job.status?.weights?.digest ?? "";
    const faults = held === due ? [] : [`the job's newest weights are ${held}, and its last round published ${due}`];
    const isOwn = model?.origin?.job === name && model.origin.round === job.status?.completedRounds;
    if (isOwn && model.weights?.digest !== held) {
      faults.push(`the model "${name}" holds ${model.weights?.digest ?? "nothing"}, and the job ${held}`);
    }
    const message = isOwn ? `the model "${name}" and the job hold the last weights` : "the job holds the last weights";
    return [...checks, judged("model", faults, message)];
  }

  /** A new model has no base, and a job that has not begun no model. */
  private async modelNamed(name = ""): Promise<Model | undefined> {
    return name === "" ? undefined : this.ports.store.get("Model", name);
  }

  private async checkStart(start: BlobRef, model: Model | undefined): Promise<Finding> {
    const { job } = this.walk;
    const blob = await this.checkBlob("origin", 1, start);
    // What is collected is drawn again all the same, and has its digest or not.
    if (blob.outcome === "Broken") return blob;
    const { blobs } = this.ports;
    const base = await this.modelNamed(job.spec?.model?.base);
    const kept = job.status?.baseWeights?.digest ?? "";
    const whole = kept === "" ? undefined : await blobs.get(kept);
    return checkOrigin({ job, start: start.digest, base, model, whole });
  }
}

/**
 * Walks a job's lineage round by round: every round's resources against one another and against the round before, its
 * commits in the log while they are retained, its blobs byte by byte. Holds one update's chunk or blob's piece at a time,
 * and a model where it is drawn or folded again.
 * @param turns what takes a whole model's memory waits in it.
 */
export function verifyJob(
  ports: VerifyPorts,
  walk: Walk,
  turns: Turns,
  signal: AbortSignal,
): AsyncGenerator<VerifyJobResponse> {
  return new Walker(ports, walk, turns, signal).run();
}
