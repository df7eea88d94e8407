import { CodedError, codeOf, messageOf } from "#common/adapters/coded-error.js";
import { changedFragments } from "#common/domain/fragment.js";
import { viewFloats } from "#common/tensor/flat.js";
import type { AssignedTask } from "#proto/shoal/v1/device_wire.js";
import type { BlobRef } from "#proto/shoal/v1/meta.js";
import type { Assignment, RoundTask } from "#proto/shoal/v1/round.js";
import type { FrozenBase } from "#proto/shoal/v1/job.js";
import type { FrozenTensors } from "../backend/backend.js";
import type { Shard } from "../data/split.js";
import { fetchBlob, fetchChanges, fetchStep, type RangeSource } from "../fetch.js";
import { guardTask, type Guarded } from "../guard.js";
import type { InnerState } from "../outbox/inner-state.js";
import { updateNeed } from "../outbox/room.js";
import { overlapSteps } from "../overlap.js";
import { jobKey } from "../round-key.js";
import { roundOf, type AgentEvent, type Effect, type Retry } from "../state.js";
import { openFrozen } from "../train/frozen-base.js";
import { runLocalRound } from "../train/local-round.js";
import { createThrottle } from "../train/throttle.js";
import { encodeOutcome } from "../train/update.js";
import { weightsStep } from "../weights-step.js";
import { Ahead } from "./ahead.js";
import { LinkSpeed } from "./link-speed.js";
import type { AgentParts } from "./parts.js";

export type OverlapEffect = Extract<Effect, { type: "overlap" }>;
export type WorkEffect = Extract<Effect, { type: "fetch" | "read" | "train" | "upload" | "discard" }>;

/** What the steps of one round hand on in memory. */
interface Material {
  round: string;
  weights?: Float32Array;
  control?: Float32Array | undefined;
  trainGraph?: Uint8Array | undefined;
  evalGraph?: Uint8Array | undefined;
  tokenizer?: Uint8Array | undefined;
  shard?: Shard;
  /** What the job's last round left here. */
  inner?: InnerState | undefined;
  bytesDown: number;
  fetchMs: number;
}

const FLOAT_BYTES = 4;

type Emit = (event: AgentEvent) => void;

const isSet = (ref: BlobRef | undefined): ref is BlobRef => ref !== undefined && ref.digest !== "";

/** How a failure is named that has no code. */
const UNCODED = {
  fetch: "FetchFailed",
  read: "ReadFailed",
  train: "TrainingFailed",
  upload: "UploadFailed",
  discard: "DiscardFailed",
} as const;
const STEP = {
  fetch: "fetching",
  read: "reading the data",
  train: "training",
  upload: "the upload",
  discard: "dropping the update",
} as const;

/** Whether the message is one of this project's own, made to be told. */
const isSpoken = (error: unknown): error is CodedError => error instanceof CodedError;

/** Failures that a person has to look at, tried again in a while. */
const LATER = new Set(["SpoolFull", "OutboxFull", "DiskLow", "CacheFull", "ENOSPC", "EDQUOT", "EACCES", "EROFS"]);
/** Failures that trying again cannot mend. */
const NEVER = new Set(["SPOOL_CORRUPT", "BAD_DIGEST"]);

/** Carries out one work effect at a time. */
export class Worker {
  readonly #parts: AgentParts;
  readonly up = new LinkSpeed();
  readonly down = new LinkSpeed();
  /** Kept from round to round: it is the largest part of a model, and it does not change. */
  #frozen: { digest: string; tensors: FrozenTensors } | undefined;
  #material: Material = { round: "", bytesDown: 0, fetchMs: 0 };
  readonly #ahead = new Ahead();

  constructor(parts: AgentParts) {
    this.#parts = parts;
  }

  /** Judges a task by the device's policy at this moment. */
  guard(task: AssignedTask): Guarded {
    return this.#guard(task, 0);
  }

  #guard(task: AssignedTask, moreToday: number): Guarded {
    const { policy, datasets, outbox, clock } = this.#parts;
    const nowMs = clock.nowMs();
    return guardTask(policy, datasets.names, task, { roundsToday: outbox.committedOn(nowMs) + moreToday, nowMs });
  }

  /** Does the work and says how it ended. Never throws. */
  async run(effect: WorkEffect, signal: AbortSignal, emit: Emit): Promise<AgentEvent> {
    // Steps ahead begin at once or not at all.
    this.#ahead.forgetEnd();
    try {
      return await this.#perform(effect, signal, emit);
    } catch (error) {
      if (signal.aborted) return { type: "aborted", work: effect.work };
      return this.#failure(effect, error);
    }
  }

  /** Takes steps ahead of the next round for as long as the policy allows this one. Never throws. */
  async overlap({ work, task }: OverlapEffect, signal: AbortSignal): Promise<AgentEvent> {
    const { clock, sessions, throttle, outbox, log } = this.#parts;
    const monotonicMs = (): number => clock.monotonicMs();
    const tools = { sessions, signal, monotonicMs, throttle: createThrottle(throttle, clock, signal) };
    const mayGoOn = (): boolean => {
      // The update on its way is one of today's rounds before its commit is acknowledged.
      const more = outbox.committed.includes(roundOf(task)) ? 0 : 1;
      return this.#guard(task, more).allowed;
    };
    await this.#ahead.run({ ...tools, mayGoOn }, log);
    return { type: "overlapped", work };
  }

  #failure({ type, work }: WorkEffect, error: unknown): AgentEvent {
    const code = codeOf(error) ?? "";
    const passing = type !== "train" && type !== "read";
    let retry: Retry = passing ? "soon" : "never";
    if (LATER.has(code)) retry = "later";
    if (NEVER.has(code)) retry = "never";
    if (isSpoken(error)) return { type: "failed", work, reason: code, message: error.message, retry };
    // Text of the tensor runtime or the system may hold values or names of the data: it stays in the local log.
    this.#parts.log.error("a step of the round failed", { step: type, code, detail: messageOf(error) });
    const reason = code === "" ? UNCODED[type] : code;
    return { type: "failed", work, reason, message: `${STEP[type]} failed on this device; see the agent's log`, retry };
  }

  #perform(effect: WorkEffect, signal: AbortSignal, emit: Emit): Promise<AgentEvent> {
    switch (effect.type) {
      case "fetch":
        return this.#fetch(effect.work, effect.task, signal);
      case "read":
        return this.#read(effect.work, effect.task);
      case "train":
        return this.#train(effect.work, effect.task, signal, emit);
      case "upload":
        return this.#upload(effect.work, effect.round, signal, emit);
      case "discard":
        return this.#discard(effect.work, effect.round);
    }
  }

  async #fetch(work: number, assigned: AssignedTask, signal: AbortSignal): Promise<AgentEvent> {
    const { task, assignment } = complete(assigned);
    const { outbox } = this.#parts;
    const round = roundOf(assigned);
    // Not in vain: before anything is fetched, and again when that lies on the disk too.
    await this.#makeRoom(task, assignment);
    // A retry of the same round adds to what it has cost so far.
    if (this.#material.round !== round) this.#material = { round, bytesDown: 0, fetchMs: 0 };
    const material = this.#material;
    const startMs = this.#parts.clock.monotonicMs();
    const before = material.bytesDown;
    const get = async (ref: BlobRef | undefined): Promise<Uint8Array | undefined> =>
      isSet(ref) ? this.#blob(ref, material, signal) : undefined;
    try {
      material.inner = await outbox.innerState(jobKey(task));
      const weights = await this.#weights(task, material, signal);
      if (weights === undefined) throw new CodedError("BAD_DIGEST", "the task names no weights");
      material.weights = viewFloats(weights);
      await this.#fetchFrozen(task.frozen, get);
      const control = assignment.localSteps > 0 ? await get(task.control) : undefined;
      material.control = control && viewFloats(control);
      material.trainGraph = assignment.localSteps > 0 ? await get(assignment.trainGraph) : undefined;
      material.evalGraph = task.evaluate ? await get(task.evalGraph) : undefined;
      material.tokenizer = task.tokenizer?.kind === "huggingface" ? await get(task.tokenizer.blob) : undefined;
    } finally {
      const tookMs = this.#parts.clock.monotonicMs() - startMs;
      material.fetchMs += tookMs;
      this.down.add(material.bytesDown - before, tookMs);
    }
    return signal.aborted ? { type: "aborted", work } : { type: "fetched", work };
  }

  #makeRoom(task: RoundTask, assignment: Assignment): Promise<void> {
    return this.#parts.outbox.makeRoom(updateNeed(task, assignment), jobKey(task), this.#parts.clock.nowMs());
  }

  async #fetchFrozen(
    frozen: FrozenBase | undefined,
    get: (ref: BlobRef | undefined) => Promise<Uint8Array | undefined>,
  ): Promise<void> {
    const digest = frozen?.blob?.digest ?? "";
    if ((this.#frozen?.digest ?? "") === digest) return;
    // The open graphs hold the last one: two of them may not fit.
    await this.#parts.sessions.close();
    this.#frozen = undefined;
    const bytes = await get(frozen?.blob);
    if (frozen !== undefined && bytes !== undefined) this.#frozen = { digest, tensors: openFrozen(frozen, bytes) };
  }

  #source(material: Material): RangeSource {
    return async (digest, offset, length) => {
      const bytes = await this.#parts.plane.blobRange(digest, offset, length);
      material.bytesDown += bytes.length;
      return bytes;
    };
  }

  #blob(ref: BlobRef, material: Material, signal: AbortSignal): Promise<Uint8Array> {
    return fetchBlob(ref, this.#parts.cache, this.#source(material), signal);
  }

  /**
   * The global weights: of those before them and their encoded change, where there is one; of a job that synchronises
   * fragments else those alone that changed since the device's last round.
   */
  async #weights(task: RoundTask, material: Material, signal: AbortSignal): Promise<Uint8Array | undefined> {
    if (!isSet(task.weights)) return undefined;
    const step = weightsStep(task);
    const stepped = step && (await fetchStep(task.weights, step, this.#parts.cache, this.#source(material), signal));
    if (stepped !== undefined) return stepped;
    const local = material.inner?.local;
    if (local === undefined) return this.#blob(task.weights, material, signal);
    const changed = changedFragments(task, local.round)
      .flatMap(({ ranges }) => ranges)
      .map(({ start, length }) => ({ offset: FLOAT_BYTES * start, length: FLOAT_BYTES * length }));
    const earlier = { digest: local.base, changed };
    return fetchChanges(task.weights, earlier, this.#parts.cache, this.#source(material), signal);
  }

  async #read(work: number, assigned: AssignedTask): Promise<AgentEvent> {
    const { task } = complete(assigned);
    // Asked again: hours may have passed since the assignment came.
    const guarded = this.guard(assigned);
    if (!guarded.allowed) return { type: "refused", work, reasons: guarded.reasons };
    const read = await this.#parts.datasets.read(guarded.permit, {
      tokenizer: task.tokenizer,
      tokenizerBlob: this.#material.tokenizer,
      heldOutFraction: task.heldOutFraction,
    });
    if (!read.ok) return { type: "failed", work, reason: "NoData", message: read.problem, retry: "never" };
    this.#material.shard = read.shard;
    return { type: "read", work };
  }

  async #train(work: number, assigned: AssignedTask, signal: AbortSignal, emit: Emit): Promise<AgentEvent> {
    const { task, assignment } = complete(assigned);
    const { clock, sessions, outbox, throttle } = this.#parts;
    const { weights, control, shard, trainGraph, evalGraph, inner, bytesDown, fetchMs } = this.#material;
    if (weights === undefined || shard === undefined) throw new Error("training began before its material was fetched");
    // Asked again: steps ahead may have held it up, and their end may be that of the hours in which the policy allows any.
    const guarded = this.guard(assigned);
    if (!guarded.allowed) return { type: "refused", work, reasons: guarded.reasons };
    await this.#makeRoom(task, assignment);
    const frozen = this.#frozen?.tensors;
    const ahead = this.#ahead.for(task, assignment);
    const result = await runLocalRound(
      { task, assignment, weights, control, shard, trainGraph, evalGraph, inner, ahead, frozen },
      {
        sessions,
        clock,
        signal,
        throttle: createThrottle(throttle, clock, signal),
        onStep: (step, loss) => emit({ type: "trainingProgress", work, step, loss }),
      },
    );
    if (result.status === "aborted") return { type: "aborted", work };
    if (result.status === "failed") {
      this.#ahead.forgetSteps();
      return { type: "failed", work, reason: result.reason, message: result.message, retry: "never" };
    }
    const encoded = encodeOutcome(task, assignment, result.outcome, inner, { bytesDown, fetchMs });
    if (!encoded.ok) return { type: "failed", work, reason: "BadTask", message: encoded.message, retry: "never" };
    if (signal.aborted) return { type: "aborted", work };
    await outbox.put(encoded.draft, encoded.inner, this.#parts.nonce());
    const { order, next } = result.outcome;
    if (next !== undefined && order !== undefined && trainGraph !== undefined) {
      const end = { task, assignment, weights, trainGraph, frozen, shard, order, next };
      this.#ahead.spooled(overlapSteps(assigned) > 0 ? end : undefined);
    }
    this.#material = { round: "", bytesDown: 0, fetchMs: 0 };
    return { type: "trained", work };
  }

  async #upload(work: number, round: string, signal: AbortSignal, emit: Emit): Promise<AgentEvent> {
    const { outbox, plane, clock } = this.#parts;
    const startMs = clock.monotonicMs();
    let bytesUp = 0;
    const committed = await outbox.upload(round, plane.uplink, () => clock.nowMs(), {
      signal,
      monotonicMs: () => clock.monotonicMs(),
      chunkSent: (bytes) => {
        bytesUp += bytes;
        emit({ type: "uploadProgress", work });
      },
      commitSending: () => emit({ type: "commitSending", work }),
    });
    this.up.add(bytesUp, clock.monotonicMs() - startMs);
    return { type: committed ? "committed" : "aborted", work };
  }

  async #discard(work: number, round: string): Promise<AgentEvent> {
    await this.#parts.outbox.discard(round);
    return { type: "discarded", work };
  }
}

/** The guard let no incomplete task pass. */
function complete(assigned: AssignedTask): { task: RoundTask; assignment: Assignment } {
  const { task, assignment } = assigned;
  if (task === undefined || assignment === undefined) throw new Error(`the task ${roundOf(assigned)} is incomplete`);
  return { task, assignment };
}
