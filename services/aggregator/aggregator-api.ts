import type {
  ReplayRoundRequest,
  ReplayRoundResponse,
  VerifyJobRequest,
  VerifyJobResponse,
} from "#proto/shoal/v1/aggregator_service.js";
import type { Round, RoundResult } from "#proto/shoal/v1/round.js";
import { answer, type Answer, invalid, refuse } from "#common/domain/answer.js";
import { ownRecord } from "#common/domain/own-record.js";
import { nameViolations, roundName, type Violation } from "#common/domain/resources.js";
import { Turns } from "#common/runtime/turns.js";
import { heritageOf } from "./lineage.js";
import { observedLog, type ReadCount } from "./observed.js";
import { narrated } from "./progress.js";
import { readFolded } from "./logged-commits.js";
import { isReplayOf, replayOrDamage } from "./replay.js";
import { verifyJob, type VerifyPorts } from "./verify.js";

/** Field violations of a round's number. */
const numberViolations = (field: string, value: number, least: number): Violation[] =>
  value >= least ? [] : [{ field, value: String(value), description: `must be ${least} or more` }];

/** AggregatorService without gRPC: reads, computes, and writes nothing. Any replica answers. */
export class AggregatorApi {
  /** Whole models are computed one at a time, beside whatever round the replica folds meanwhile. */
  private readonly turns = new Turns();

  constructor(private readonly ports: VerifyPorts) {}

  /** Folds a finished round again: progress, then the outcome. */
  async replayRound(
    { job, number }: ReplayRoundRequest,
    signal: AbortSignal,
  ): Promise<Answer<AsyncIterable<ReplayRoundResponse>>> {
    const violations = [...nameViolations("job", job), ...numberViolations("number", number, 1)];
    if (violations.length > 0) return invalid(...violations);
    const name = roundName(job, number);
    const { store, log } = this.ports;
    const round = await store.get("Round", name);
    if (round?.spec === undefined || round.spec.job !== job) return refuse("NOT_FOUND", `there is no round ${name}`);
    const result = ownRecord(round, await store.get("RoundResult", name));
    if (result === undefined) {
      const phase = round.status?.phase ?? "Planning";
      return refuse(
        "FAILED_PRECONDITION",
        `round ${name} is in phase ${phase} and has published nothing to compare with`,
      );
    }
    const foldSet = round.spec.evaluationOnly ? [] : (round.status?.foldSet ?? []);
    if (foldSet.length > 0 && (await readFolded(log, { name, spec: round.spec, entries: foldSet })).size === 0) {
      return refuse(
        "FAILED_PRECONDITION",
        `the update log does not hold round ${name} any more: of a job ${this.retention()} stay (SHOAL_LOG_RETAIN_ROUNDS), fewer when space is short`,
      );
    }
    return answer(this.replay(name, round, result, signal));
  }

  private retention(): string {
    const { retainRounds } = this.ports;
    return retainRounds === 0 ? "all rounds" : `the newest ${retainRounds} rounds`;
  }

  private async *replay(
    name: string,
    round: Round,
    result: RoundResult,
    signal: AbortSignal,
  ): AsyncGenerator<ReplayRoundResponse> {
    const { store, blobs, log, clock } = this.ports;
    const startedMs = clock.monotonicMs();
    const count: ReadCount = { bytes: 0 };
    const updateBytes = result.folded.reduce((sum, { manifest }) => sum + (manifest?.sizeBytes ?? 0), 0);
    const work = this.turns.take(() => replayOrDamage({ store, blobs, log: observedLog(log, count, signal) }, name));
    const progress = (): ReplayRoundResponse => ({
      part: { $case: "progress", value: { readBytes: count.bytes, updateBytes } },
    });
    const replayed = yield* narrated(work, progress, clock);
    const published = heritageOf(result);
    const { weightsDigest, outerDigest, damage } = replayed;
    const value = {
      round: name,
      equal: isReplayOf(replayed, published),
      weightsDigest,
      outerDigest,
      damage,
      publishedWeightsDigest: published.weights,
      publishedOuterDigest: published.outerState,
      updates: round.status?.foldSet.length ?? 0,
      readBytes: count.bytes,
      elapsedMs: Math.round(clock.monotonicMs() - startedMs),
    };
    yield { part: { $case: "outcome", value } };
  }

  /** Walks the lineage of a job's rounds. */
  async verifyJob(
    { job, firstRound, lastRound, replay }: VerifyJobRequest,
    signal: AbortSignal,
  ): Promise<Answer<AsyncIterable<VerifyJobResponse>>> {
    const violations = [
      ...nameViolations("job", job),
      ...numberViolations("first_round", firstRound, 0),
      ...numberViolations("last_round", lastRound, 0),
    ];
    if (violations.length > 0) return invalid(...violations);
    const stored = await this.ports.store.get("TrainingJob", job);
    if (stored === undefined) return refuse("NOT_FOUND", `no job is named "${job}": list jobs to see their names`);
    const newest = stored.status?.currentRound ?? 0;
    const first = Math.max(1, firstRound);
    const last = lastRound === 0 ? newest : lastRound;
    if (last > newest || (newest > 0 && first > last)) {
      return refuse(
        "OUT_OF_RANGE",
        `job "${job}" has rounds 1 to ${newest}; rounds ${first} to ${last} were asked for`,
      );
    }
    return answer(verifyJob(this.ports, { job: stored, first, last, replay }, this.turns, signal));
  }
}
