import type { TrainingJob, TrainingJobStatus } from "#proto/shoal/v1/job.js";
import { TrainingJobStatus as JobStatus } from "#proto/shoal/v1/job.js";
import type { Model } from "#proto/shoal/v1/model.js";
import type { Round, RoundResult } from "#proto/shoal/v1/round.js";
import { findCondition, setCondition } from "#common/domain/condition.js";
import { ownJob, ownRecord } from "#common/domain/own-record.js";
import { roundName } from "#common/domain/resources.js";
import type { BlobStore } from "#common/ports/blob-store.js";
import type { Clock } from "#common/ports/clock.js";
import type { Log } from "#common/ports/log.js";
import type { ResourceStore } from "#common/ports/resource-store.js";
import type { Outcome } from "#common/runtime/controller.js";
import { type Admission, admit, publishModel } from "./admission.js";
import type { GraphLibrary } from "./graph-library.js";
import { configOf, fragmentsFor } from "./model-reading.js";
import { DONE, requeue, type Step } from "./outcome.js";
import { draftRound, isEvaluated, nextRound } from "./round-draft.js";

export interface JobControllerParts {
  store: ResourceStore;
  blobs: BlobStore;
  graphs: GraphLibrary;
  clock: Clock;
  log: Log;
}

const WAITING_MS = 15_000;
/** A reconcile ends after this many steps, so that one busy job does not hold a worker. */
const MAX_STEPS = 16;

type JobPhase = "Pending" | "Running" | "Suspended" | "Completed" | "Cancelled" | "Failed";

interface Fact {
  type: "Admitted" | "Progressing" | "Completed";
  status: boolean;
  reason: string;
  message: string;
}

/** Moves jobs on, one durable step at a time: admit, create the next round, take in its result, complete. */
export class JobController {
  constructor(private readonly parts: JobControllerParts) {}

  /**
   * Brings one job as far as it can go now. Level-triggered and idempotent: every step reads the world, and writes by
   * create-once or compare-and-set, so replicas may run it at the same time and a crash between steps loses nothing.
   */
  async reconcile(name: string): Promise<Outcome> {
    for (let steps = 0; steps < MAX_STEPS; steps++) {
      const job = await this.parts.store.get("TrainingJob", name);
      if (job === undefined) return DONE;
      const step = await this.step(job);
      if (step !== "again") return step;
    }
    return requeue(0);
  }

  private async step(job: TrainingJob): Promise<Step> {
    const status = job.status ?? JobStatus.fromPartial({});
    switch (status.phase) {
      case "":
      case "Pending":
        return this.admit(job, status);
      case "Running":
      case "Suspended":
        return (await this.publish(job, status)) ?? this.progress(job, status);
      case "Cancelled":
        return (await this.publish(job, status)) ?? this.windDown(job, status);
      default:
        return (await this.publish(job, status)) ?? DONE;
    }
  }

  /** Compare-and-set of the status; a lost race only means that the job is looked at again. */
  private async write(job: TrainingJob, status: TrainingJobStatus, phase: JobPhase, fact: Fact): Promise<Step> {
    const generation = job.metadata?.generation ?? 1;
    const nowMs = this.parts.clock.nowMs();
    const conditions = setCondition(status.conditions, { ...fact, generation }, nowMs);
    const next: TrainingJobStatus = { ...status, phase, conditions, observedGeneration: generation };
    if (JSON.stringify(JobStatus.toJSON(next)) === JSON.stringify(JobStatus.toJSON(job.status ?? status))) {
      return phase === "Pending" ? requeue(WAITING_MS) : DONE;
    }
    const written = await this.parts.store.update("TrainingJob", { ...job, status: next });
    if (written.ok && phase !== job.status?.phase) {
      this.parts.log.info("job changed phase", { job: job.metadata?.name, phase, reason: fact.reason });
    }
    return "again";
  }

  private async admit(job: TrainingJob, status: TrainingJobStatus): Promise<Step> {
    const admission: Admission = await admit(job, this.parts);
    if (!admission.ok) {
      const fact = { type: "Admitted", status: false, reason: admission.reason, message: admission.message } as const;
      const finishedAtMs = admission.final ? this.parts.clock.nowMs() : 0;
      return this.write(job, { ...status, finishedAtMs }, admission.final ? "Failed" : "Pending", fact);
    }
    const { model } = admission;
    if (!(await publishModel(job, model, this.parts.store))) return "again";
    const next: TrainingJobStatus = {
      ...status,
      weights: model.weights,
      outerState: { digest: "", sizeBytes: 0 },
      parameters: model.parameters,
      model: job.metadata?.name ?? "",
      frozen: admission.frozen,
      baseWeights: model.base?.weights,
      startedAtMs: this.parts.clock.nowMs(),
    };
    const message = `${model.parameters} trained parameters`;
    return this.write(job, next, "Running", { type: "Admitted", status: true, reason: "Ready", message });
  }

  /** Makes the job's Model hold its newest weights; undefined when it does. */
  private async publish(job: TrainingJob, status: TrainingJobStatus): Promise<"again" | undefined> {
    if (status.weights === undefined) return undefined;
    const origin = { job: job.metadata?.name ?? "", round: status.completedRounds };
    const stored = await this.parts.store.get("Model", status.model);
    if (stored?.origin?.job === origin.job && stored.origin.round >= origin.round) return undefined;
    // Deleted by somebody: rebuilt from what the job says.
    const source = stored ?? (await this.rebuilt(job, status));
    if (source === undefined) return undefined;
    const model: Model = { ...source, weights: status.weights, origin };
    return (await publishModel(job, model, this.parts.store)) ? undefined : "again";
  }

  /** The base may have got other weights since, or be another model: the job's own stay what devices trained on. */
  private async rebuilt(job: TrainingJob, status: TrainingJobStatus): Promise<Model | undefined> {
    const admission = await admit(job, this.parts);
    if (!admission.ok) return undefined;
    const { model } = admission;
    const { base } = model;
    const { baseWeights } = status;
    if (model.parameters !== status.parameters) return undefined;
    if (base === undefined || baseWeights === undefined) return model;
    const isSameSize = base.weights?.sizeBytes === baseWeights.sizeBytes;
    return isSameSize ? { ...model, base: { ...base, weights: baseWeights } } : undefined;
  }

  private async progress(job: TrainingJob, status: TrainingJobStatus): Promise<Step> {
    const next = nextRound(job);
    if (next === undefined) return this.complete(job, status);
    const name = roundName(job.metadata?.name ?? "", next.number);
    const round = await this.parts.store.get("Round", name);
    if (round !== undefined && ownJob(round, job) === undefined) return this.clearEarlier(job, round);
    if (round !== undefined) return this.follow(job, status, round);
    if (job.spec?.suspended === true) {
      const message = `round ${next.number} begins when suspended is false`;
      return this.write(job, status, "Suspended", { type: "Progressing", status: false, reason: "Suspended", message });
    }
    if (status.currentRound !== next.number || status.phase !== "Running") {
      // The intent comes first: from here on Apply refuses to change what the round is made from.
      const message = `round ${next.number} begins`;
      const fact = { type: "Progressing", status: true, reason: "RoundBegins", message } as const;
      return this.write(job, { ...status, currentRound: next.number }, "Running", fact);
    }
    return this.begin(job, next);
  }

  /** Removes a round that a replica, which was held up meanwhile, created for an earlier job of the name. */
  private async clearEarlier(job: TrainingJob, { metadata }: Round): Promise<Step> {
    const { store } = this.parts;
    // Read after the round: while the job is there none that comes after it has created any.
    const current = await store.get("TrainingJob", job.metadata?.name ?? "");
    const isCurrent = current?.metadata?.uid === job.metadata?.uid;
    if (isCurrent) await store.delete("Round", metadata?.name ?? "", metadata?.resourceVersion);
    return "again";
  }

  private async begin(job: TrainingJob, next: { number: number; evaluationOnly: boolean }): Promise<Step> {
    const model = await this.parts.store.get("Model", job.status?.model ?? "");
    if (model === undefined) return requeue(WAITING_MS);
    const shape = { batch: job.spec?.local?.batchSize ?? 1, seqLen: job.spec?.data?.seqLen ?? 1 };
    const evaluated = isEvaluated(job, next.number, next.evaluationOnly);
    const evalGraph = evaluated
      ? await this.parts.graphs.evaluation(configOf(model), shape, job.spec?.training)
      : undefined;
    const draft = draftRound(
      job,
      model,
      next,
      evalGraph,
      fragmentsFor(job, model),
      await this.foldShardValues(job, next),
    );
    const created = await this.parts.store.create("Round", draft);
    if (created.ok) this.parts.log.info("round created", { job: job.metadata?.name, round: next.number });
    return DONE;
  }

  /** Of an asynchronous job as in its last round: a round folds updates whose checksums were taken by the cut of an earlier one. */
  private async foldShardValues(job: TrainingJob, { number }: { number: number }): Promise<number | undefined> {
    if ((job.spec?.strategy?.maxStaleness ?? 0) === 0) return undefined;
    const last = await this.parts.store.get("Round", roundName(job.metadata?.name ?? "", number - 1));
    return last?.spec?.foldShardValues;
  }

  private async follow(job: TrainingJob, status: TrainingJobStatus, round: Round): Promise<Step> {
    const number = round.spec?.number ?? 0;
    if (round.status?.phase === "Completed") return this.takeIn(job, status, round, "Running");
    if (round.status?.phase === "Failed") {
      const why = findCondition(round.status.conditions, "Completed");
      const message = `round ${number} failed${why === undefined ? "" : `: ${why.message}`}`;
      const failed = { ...status, finishedAtMs: this.parts.clock.nowMs() };
      return this.write(job, failed, "Failed", { type: "Completed", status: false, reason: "RoundFailed", message });
    }
    const conditions = round.status?.conditions ?? [];
    const planned = round.status?.phase === "Planning" ? findCondition(conditions, "Planned") : undefined;
    // Of an open round: what is stored of it is damaged.
    const broken = findCondition(conditions, "Completed");
    const obstacle = [broken, planned].find((condition) => condition?.status === "False");
    const fact: Fact = obstacle
      ? { type: "Progressing", status: false, reason: obstacle.reason, message: obstacle.message }
      : { type: "Progressing", status: true, reason: "RoundUnderWay", message: `round ${number} is under way` };
    return this.write(job, { ...status, currentRound: number }, "Running", fact);
  }

  /** Adds a durable result to the status: once, since the same write moves completedRounds. */
  private async takeIn(job: TrainingJob, status: TrainingJobStatus, round: Round, phase: JobPhase): Promise<Step> {
    const result = ownRecord(round, await this.parts.store.get("RoundResult", round.metadata?.name ?? ""));
    if (result === undefined) return requeue(WAITING_MS);
    const next = withResult(status, round, result);
    const number = round.spec?.number ?? 0;
    if (round.spec?.evaluationOnly === true && phase === "Running") return this.complete(job, next);
    const message = `round ${number} is durable`;
    return this.write(job, next, phase, { type: "Progressing", status: true, reason: "RoundCompleted", message });
  }

  private complete(job: TrainingJob, status: TrainingJobStatus): Promise<Step> {
    const message = `${status.completedRounds} rounds; the weights are in the model "${status.model}"`;
    const finished = { ...status, finishedAtMs: this.parts.clock.nowMs() };
    return this.write(job, finished, "Completed", {
      type: "Completed",
      status: true,
      reason: "AllRoundsDone",
      message,
    });
  }

  /** A cancelled job still takes in the round that was being folded when it was cancelled. */
  private async windDown(job: TrainingJob, status: TrainingJobStatus): Promise<Step> {
    if (status.finishedAtMs > 0) return DONE;
    const name = roundName(job.metadata?.name ?? "", status.currentRound);
    const round = status.currentRound > 0 ? await this.parts.store.get("Round", name) : undefined;
    const phase = round?.status?.phase;
    const isTaken = (round?.spec?.number ?? 0) <= status.completedRounds;
    if (phase === "Completed" && round !== undefined && !isTaken && round.spec?.evaluationOnly !== true) {
      return this.takeIn(job, status, round, "Cancelled");
    }
    if (phase !== undefined && phase !== "Completed" && phase !== "Failed") return requeue(WAITING_MS);
    const message = `cancelled after ${status.completedRounds} rounds; the weights so far are in the model "${status.model}"`;
    const finished = { ...status, finishedAtMs: this.parts.clock.nowMs() };
    return this.write(job, finished, "Cancelled", { type: "Completed", status: false, reason: "Cancelled", message });
  }
}

function withResult(status: TrainingJobStatus, round: Round, result: RoundResult): TrainingJobStatus {
  const next: TrainingJobStatus = {
    ...status,
    bytesUp: status.bytesUp + result.bytesUp,
    bytesDown: status.bytesDown + result.bytesDown,
  };
  if (result.evalLoss !== undefined) next.evalLoss = result.evalLoss;
  if (round.spec?.evaluationOnly === true) return next;
  return {
    ...next,
    completedRounds: result.number,
    weights: result.weights,
    outerState: result.outerState,
    delta: result.delta,
    trainLoss: result.trainLoss,
  };
}
