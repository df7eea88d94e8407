import { messageOf } from "#common/adapters/coded-error.js";
import { createRng, type Rng } from "#common/domain/rng.js";
import { deriveSeed } from "#common/domain/seed.js";
import type { DatasetFacts } from "#proto/shoal/v1/device.js";
import type { HeartbeatRequest, HeartbeatReply } from "#proto/shoal/v1/device_wire.js";
import { assignmentStatuses, initialState, roundOf, type AgentEvent, type AgentState, type Effect } from "../state.js";
import { step } from "../step.js";
import type { AgentParts } from "./parts.js";
import { Worker, type OverlapEffect, type WorkEffect } from "./worker.js";

export interface Exit {
  readonly code: number;
  readonly message: string;
}

const LEAST_HEARTBEAT_MS = 100;
const LONGEST_HEARTBEAT_MS = 60_000;
const DEFAULT_HEARTBEAT_MS = 5_000;
/** The registry's word that a device is not part of the fleet any more; other refusals pass. */
export const GONE = "UnknownDevice";

/** Drives the pure `step` with real effects: events in, effects out, one at a time; effects run beside each other. */
export class AgentLoop {
  readonly #parts: AgentParts;
  readonly #worker: Worker;
  readonly #events: AgentEvent[] = [];
  readonly #timers = new Map<string, AbortController>();
  #state: AgentState = initialState;
  #stepping = false;
  /** Works under way by id: one, and steps ahead beside it. */
  readonly #working = new Map<number, AbortController>();
  #datasets: DatasetFacts[] = [];
  #counting: Promise<void> | undefined;
  #renewDue = false;
  #random: Rng | undefined;
  #exit: (exit: Exit) => void = () => undefined;

  constructor(parts: AgentParts) {
    this.#parts = parts;
    this.#worker = new Worker(parts);
  }

  /** Runs until the signal aborts or the credential is rejected; everything durable is left so that a restart goes on. */
  async run(signal: AbortSignal): Promise<Exit> {
    const { plane, outbox } = this.#parts;
    const ended = new Promise<Exit>((resolve) => (this.#exit = resolve));
    await this.#countData();
    plane.onNudge(() => this.#dispatch({ type: "nudged" }));
    void plane.closed.then(({ rejected }) => {
      this.#dispatch(rejected === undefined ? { type: "stop" } : { type: "rejected", message: rejected });
    });
    signal.addEventListener("abort", () => this.#dispatch({ type: "stop" }), { once: true });
    const spooled = await outbox.spooled();
    if (signal.aborted) return { code: 0, message: "stopped" };
    this.#dispatch({ type: "started", committed: outbox.committed, spooled });
    const exit = await ended;
    for (const timer of this.#timers.values()) timer.abort();
    return exit;
  }

  #dispatch(event: AgentEvent): void {
    this.#events.push(event);
    if (this.#stepping) return;
    this.#stepping = true;
    for (let next = this.#events.shift(); next !== undefined; next = this.#events.shift()) {
      this.#report(next);
      const { state, effects } = step(this.#state, next);
      this.#state = state;
      for (const effect of effects) this.#perform(effect);
    }
    this.#stepping = false;
  }

  #perform(effect: Effect): void {
    switch (effect.type) {
      case "heartbeat":
        this.#timers.get("heartbeat")?.abort();
        void this.#heartbeat();
        return;
      case "sleep":
        if (effect.timer === "heartbeat") this.#sleep("heartbeat", effect.ms, { type: "timer", timer: "heartbeat" });
        else
          this.#sleep(effect.round, this.#scatter(effect.ms), { type: "timer", timer: "retry", round: effect.round });
        return;
      case "guard": {
        const guarded = this.#worker.guard(effect.task);
        const reasons = guarded.allowed ? [] : guarded.reasons;
        this.#dispatch({ type: "guarded", round: roundOf(effect.task), reasons });
        return;
      }
      case "abort":
        this.#working.get(effect.work)?.abort();
        return;
      case "exit":
        this.#exit({ code: effect.code, message: effect.message });
        return;
      default:
        void this.#work(effect);
    }
  }

  async #work(effect: WorkEffect | OverlapEffect): Promise<void> {
    const controller = new AbortController();
    this.#working.set(effect.work, controller);
    const { signal } = controller;
    const ended =
      effect.type === "overlap"
        ? await this.#worker.overlap(effect, signal)
        : await this.#worker.run(effect, signal, (event) => this.#dispatch(event));
    this.#working.delete(effect.work);
    this.#dispatch(ended);
  }

  /** A time drawn from the upper half: devices that failed together, as at a full log, must not return together. */
  #scatter(ms: number): number {
    this.#random ??= createRng(deriveSeed(0, "retry", this.#parts.nonce()));
    return Math.round(ms * (0.5 + this.#random.uniform() / 2));
  }

  #sleep(key: string, ms: number, event: AgentEvent): void {
    this.#timers.get(key)?.abort();
    const controller = new AbortController();
    this.#timers.set(key, controller);
    void this.#parts.clock.sleep(ms, controller.signal).then(() => {
      if (controller.signal.aborted) return;
      this.#timers.delete(key);
      this.#dispatch(event);
    });
  }

  /** Counts the data again if files changed; heartbeats do not wait for it. */
  #countData(): Promise<void> {
    this.#counting ??= this.#parts.datasets
      .facts()
      .then((facts) => void (this.#datasets = facts))
      .finally(() => (this.#counting = undefined));
    return this.#counting;
  }

  async #heartbeat(): Promise<void> {
    const { plane, log } = this.#parts;
    void this.#countData();
    let reply: HeartbeatReply;
    try {
      reply = await plane.heartbeat(await this.#request());
    } catch (error) {
      log.warn("no answer to the heartbeat", { error: messageOf(error) });
      this.#dispatch({ type: "heartbeatFailed" });
      return;
    }
    const { refusal } = reply;
    if (refusal?.reason === GONE) {
      this.#dispatch({ type: "rejected", message: refusal.message });
    } else if (refusal !== undefined) {
      log.warn("the heartbeat was refused", { reason: refusal.reason, detail: refusal.message });
      this.#dispatch({ type: "heartbeatFailed" });
    } else {
      await this.#renew(reply);
      const { tasks, cordoned } = reply;
      this.#dispatch({ type: "heartbeatReplied", tasks, nextHeartbeatMs: heartbeatMs(reply), cordoned });
    }
  }

  async #request(): Promise<HeartbeatRequest> {
    const { clock, facts, policy, outbox } = this.#parts;
    // A disk that cannot be read is no reason to fall silent.
    const waiting = await outbox.usage().catch(() => undefined);
    const atMs = clock.nowMs();
    return {
      atMs,
      facts: {
        ...facts,
        upBytesPerSecond: this.#worker.up.bytesPerSecond,
        downBytesPerSecond: this.#worker.down.bytesPerSecond,
      },
      policy,
      datasets: this.#datasets,
      assignments: assignmentStatuses(this.#state),
      roundsToday: outbox.committedOn(atMs),
      renewCredential: this.#renewDue,
      outbox: waiting,
    };
  }

  async #renew({ jwt, atMs }: HeartbeatReply): Promise<void> {
    const { credential, plane, log } = this.#parts;
    if (jwt !== "") {
      plane.renew(jwt);
      try {
        await credential.store(jwt);
        log.info("the credential was renewed");
      } catch (error) {
        log.error("the renewed credential could not be stored", { error: messageOf(error) });
      }
    }
    this.#renewDue = credential.isDue(atMs);
  }

  /** One line for what a person wants to follow. */
  #report(event: AgentEvent): void {
    const { log } = this.#parts;
    const round = "work" in event && this.#state.work?.id === event.work ? this.#state.work.round : undefined;
    if (event.type === "guarded" && event.reasons.length === 0) log.info("assignment accepted", { round: event.round });
    if (event.type === "guarded" && event.reasons.length > 0) {
      log.warn("assignment refused", { round: event.round, reasons: event.reasons });
    }
    if (event.type === "refused") log.warn("assignment refused", { round, reasons: event.reasons });
    if (event.type === "trained") log.info("update spooled", { round });
    if (event.type === "committed") log.info("update committed", { round });
    if (event.type === "discarded") log.info("update discarded, its round does not want it", { round });
    if (event.type === "aborted") log.info("work abandoned", { round });
    if (event.type === "failed") {
      log.warn("work failed", { round, reason: event.reason, detail: event.message, retry: event.retry });
    }
  }
}

/** Milliseconds until the next heartbeat, as the registry says, within bounds. */
export function heartbeatMs({ nextHeartbeatMs }: HeartbeatReply): number {
  if (!(nextHeartbeatMs > 0)) return DEFAULT_HEARTBEAT_MS;
  return Math.min(Math.max(nextHeartbeatMs, LEAST_HEARTBEAT_MS), LONGEST_HEARTBEAT_MS);
}
