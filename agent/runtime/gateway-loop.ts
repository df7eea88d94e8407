import { codeOf, CodedError, messageOf } from "#common/adapters/coded-error.js";
import type { Clock } from "#common/ports/clock.js";
import type { Log } from "#common/ports/log.js";
import type { CollectableLog, UpdateUplink } from "#common/ports/update-log.js";
import { DataPolicy, type DeviceFacts } from "#proto/shoal/v1/device.js";
import { type HeartbeatReply, HeartbeatRequest } from "#proto/shoal/v1/device_wire.js";
import type { Outbox } from "../outbox/outbox.js";
import { siteNeed } from "../outbox/room.js";
import { jobKey } from "../round-key.js";
import { foldSite, MemberDamage } from "../site/fold.js";
import { judgeMembers, taskOf } from "../site/judge.js";
import type { SiteLedger } from "../site/ledger.js";
import type { SiteRelay } from "../site/relay.js";
import { initialSiteState, siteStatuses, type SiteEffect, type SiteEvent, type SiteState } from "../site/state.js";
import { stepSite } from "../site/step.js";
import type { Retry } from "../state.js";
import type { GatewayPlane } from "../transport/control-plane.js";
import { GONE, heartbeatMs, type Exit } from "./loop.js";
import type { AgentParts } from "./parts.js";

/** Everything a running gateway is made of. */
export interface GatewayParts extends Pick<AgentParts, "nonce" | "credential"> {
  readonly device: string;
  readonly clock: Clock;
  readonly log: Log;
  readonly plane: GatewayPlane;
  readonly outbox: Outbox;
  readonly ledger: SiteLedger;
  readonly relay: SiteRelay;
  /** The site's log. */
  readonly updates: CollectableLog;
  readonly facts: DeviceFacts;
}

type WorkEffect = Extract<SiteEffect, { work: number }>;
type SiteWorkEffect = Exclude<WorkEffect, { type: "abort" }>;

/** Failures that a person has to look at, tried again in a while. */
const LATER = new Set(["SpoolFull", "OutboxFull", "DiskLow", "ENOSPC", "EDQUOT", "EACCES", "EROFS", "BadTask"]);
/** The site's log is short of space above this share of its limit. */
const PRESSURE_SHARE = 0.7;
/** A log that does not answer holds no heartbeat up. */
const LOG_READ_MS = 1_000;
const NEVER = new Set(["SPOOL_CORRUPT"]);

/** Drives the pure `stepSite` with real effects: events in, effects out, one at a time. */
export class GatewayLoop {
  readonly #parts: GatewayParts;
  readonly #events: SiteEvent[] = [];
  readonly #timers = new Map<string, AbortController>();
  #state: SiteState = initialSiteState;
  #site = "";
  #stepping = false;
  #working: { id: number; controller: AbortController } | undefined;
  #renewDue = false;
  #exit: (exit: Exit) => void = () => undefined;

  constructor(parts: GatewayParts) {
    this.#parts = parts;
  }

  /** Runs until the signal aborts or the credential is rejected; what is under way goes on at the next start. */
  async run(signal: AbortSignal): Promise<Exit> {
    const { plane, outbox, ledger } = this.#parts;
    const ended = new Promise<Exit>((resolve) => (this.#exit = resolve));
    const stopped = new AbortController();
    plane.onNudge(() => this.#dispatch({ type: "nudged" }));
    void plane.closed.then(({ rejected }) => {
      this.#dispatch(rejected === undefined ? { type: "stop" } : { type: "rejected", message: rejected });
    });
    signal.addEventListener("abort", () => this.#dispatch({ type: "stop" }), { once: true });
    const spooled = new Map((await outbox.spooled()).map((entry) => [entry.round, entry]));
    const updates = await ledger.recover(spooled, new Set(outbox.committed));
    for (const key of spooled.keys()) if (!ledger.keys.includes(key)) await outbox.discard(key);
    if (signal.aborted) return { code: 0, message: "stopped" };
    void this.#watch(stopped.signal);
    this.#dispatch({ type: "started", updates });
    const exit = await ended;
    stopped.abort();
    for (const timer of this.#timers.values()) timer.abort();
    return exit;
  }

  /** A member was given this round: if the gateway does not know it yet, it asks. */
  onRound(key: string): void {
    if (!this.#state.rounds.has(key)) this.#dispatch({ type: "nudged" });
  }

  async #watch(signal: AbortSignal): Promise<void> {
    const { updates, clock, log } = this.#parts;
    while (!signal.aborted) {
      try {
        for await (const { round } of updates.watchCommits(signal))
          this.#dispatch({ type: "committedAtSite", name: round });
      } catch (error) {
        log.warn("the site's log cannot be followed; trying again", { error: messageOf(error) });
        await clock.sleep(1_000, signal);
      }
    }
  }

  #dispatch(event: SiteEvent): void {
    this.#events.push(event);
    if (this.#stepping) return;
    this.#stepping = true;
    for (let next = this.#events.shift(); next !== undefined; next = this.#events.shift()) {
      const before = this.#state.updates;
      const { state, effects } = stepSite(this.#state, next);
      this.#state = state;
      const kept = new Set(state.updates.map(({ key }) => key));
      for (const { key } of before) if (!kept.has(key)) void this.#forget(key);
      for (const effect of effects) this.#perform(effect);
    }
    this.#stepping = false;
  }

  async #forget(key: string): Promise<void> {
    const { ledger, log } = this.#parts;
    await ledger
      .forget(key)
      .catch((error: unknown) => log.warn("a note could not be removed", { key, error: messageOf(error) }));
  }

  #perform(effect: SiteEffect): void {
    switch (effect.type) {
      case "heartbeat":
        this.#timers.get("heartbeat")?.abort();
        void this.#heartbeat();
        return;
      case "nudgeMembers":
        this.#parts.relay.nudge();
        return;
      case "sleep":
        if (effect.timer === "heartbeat") this.#sleep("heartbeat", effect.ms, { type: "timer", timer: "heartbeat" });
        else {
          const { timer, key, ms } = effect;
          this.#sleep(`${timer}:${key}`, ms, { type: "timer", timer, key });
        }
        return;
      case "abort":
        if (this.#working?.id === effect.work) this.#working.controller.abort();
        return;
      case "exit":
        this.#exit({ code: effect.code, message: effect.message });
        return;
      default:
        void this.#work(effect);
    }
  }

  #sleep(key: string, ms: number, event: SiteEvent): void {
    this.#timers.get(key)?.abort();
    const controller = new AbortController();
    this.#timers.set(key, controller);
    void this.#parts.clock.sleep(ms, controller.signal).then(() => {
      if (controller.signal.aborted) return;
      this.#timers.delete(key);
      this.#dispatch(event);
    });
  }

  async #work(effect: SiteWorkEffect): Promise<void> {
    const controller = new AbortController();
    this.#working = { id: effect.work, controller };
    this.#dispatch(await this.#run(effect, controller.signal));
  }

  async #run(effect: SiteWorkEffect, signal: AbortSignal): Promise<SiteEvent> {
    const { work } = effect;
    try {
      switch (effect.type) {
        case "judge":
          return await this.#judge(effect, signal);
        case "fold":
          return await this.#fold(effect, signal);
        case "upload":
          return await this.#upload(work, effect.key, signal);
        case "discard":
          await this.#parts.outbox.discard(effect.key);
          return { type: "done", work };
        case "purge":
          await this.#parts.updates.purgeRound(effect.name);
          return { type: "done", work };
      }
    } catch (error) {
      if (signal.aborted) return { type: "aborted", work };
      if (error instanceof MemberDamage) return this.#damaged(work, error);
      const code = codeOf(error) ?? "";
      const retry: Retry = NEVER.has(code) ? "never" : LATER.has(code) ? "later" : "soon";
      this.#parts.log.warn("work failed", { step: effect.type, code, error: messageOf(error), retry });
      // As on any device: text of the system stays in the local log.
      const message = error instanceof CodedError ? error.message : "the site's gateway has failed; see its log";
      return { type: "failed", work, reason: code, message, retry };
    }
  }

  #damaged(work: number, { commit, message }: MemberDamage): SiteEvent {
    this.#parts.log.warn("a member's update is damaged", { round: commit.manifest.round, member: commit.device });
    return { type: "damaged", work, commit: { ...commit, refusal: "BadPayload", message } };
  }

  async #judge(effect: Extract<SiteEffect, { type: "judge" }>, signal: AbortSignal): Promise<SiteEvent> {
    const { updates, log } = this.#parts;
    const commits = await judgeMembers(updates, effect.round, effect.known, signal);
    for (const { device, manifest, refusal, message } of commits) {
      const facts = { round: manifest.round, member: device };
      if (refusal === "") log.info("a member's update is here", facts);
      else log.warn("a member's update is refused", { ...facts, reason: refusal, message });
    }
    return signal.aborted ? { type: "aborted", work: effect.work } : { type: "judged", work: effect.work, commits };
  }

  async #fold(effect: Extract<SiteEffect, { type: "fold" }>, signal: AbortSignal): Promise<SiteEvent> {
    const { work, update, round, commits } = effect;
    const { device, outbox, ledger, relay, updates, nonce, clock, log } = this.#parts;
    if (this.#site === "") throw new CodedError("NO_SITE", "the registry does not call this device a gateway");
    const task = taskOf(round);
    // Not in vain, and before anything is noted: the members' updates stay in the site's log until there is room.
    await outbox.makeRoom(siteNeed(task, commits.length), jobKey(task), clock.nowMs());
    const inner = await outbox.innerState(jobKey(task));
    const folded = await foldSite(updates, round, commits, {
      gateway: device,
      site: this.#site,
      key: update.key,
      residual: inner?.residual,
      bytesDown: relay.takeBytesDown(),
    });
    if (signal.aborted) return { type: "aborted", work };
    // First who is in it: whatever is spooled is then known not to be folded anew.
    await ledger.note(update.key, { round: update.round, members: update.members, commitSeq: 0 });
    const { residual } = folded;
    const kept = residual === undefined ? undefined : { steps: 0, moments: undefined, residual };
    await outbox.put(folded.draft, kept, nonce());
    log.info("the site's update is spooled", { update: update.key, members: update.members });
    return { type: "folded", work };
  }

  async #upload(work: number, key: string, signal: AbortSignal): Promise<SiteEvent> {
    const { outbox, ledger, plane, clock, log } = this.#parts;
    // Noted before the outbox forgets the update, so that a restart knows which verdict is its own.
    const uplink: UpdateUplink = {
      appendChunk: (round, id, bytes) => plane.uplink.appendChunk(round, id, bytes),
      appendCommit: async (round, id, manifest) => {
        const { seq } = await plane.uplink.appendCommit(round, id, manifest);
        await ledger.noteSeq(key, seq);
        return { seq };
      },
    };
    const sent = await outbox.upload(key, uplink, () => clock.nowMs(), {
      signal,
      monotonicMs: () => clock.monotonicMs(),
      chunkSent: () => undefined,
      commitSending: () => this.#dispatch({ type: "commitSending", work }),
    });
    if (!sent) return { type: "aborted", work };
    log.info("the site's update is committed", { update: key });
    return { type: "uploaded", work, commitSeq: ledger.seqOf(key) };
  }

  /** What lies in the site's log, by the names of rounds; undefined if it cannot be told now. */
  async #readLog(): Promise<Extract<SiteEvent, { type: "logRead" }> | undefined> {
    try {
      const { bytes, maxBytes = Infinity } = await this.#parts.updates.usage();
      const { parts } = await this.#parts.updates.parts();
      const logged = [...new Set(parts.map(({ round }) => round))].sort();
      return { type: "logRead", logged, isPressed: bytes > PRESSURE_SHARE * maxBytes };
    } catch (error) {
      this.#parts.log.warn("the site's log cannot be read", { error: messageOf(error) });
      return undefined;
    }
  }

  async #heartbeat(): Promise<void> {
    const { plane, log, clock, facts } = this.#parts;
    let reply: HeartbeatReply;
    // First the log: a round that has a part in it was given out, so it is in the answer unless it is over.
    const read = await Promise.race([this.#readLog(), clock.sleep(LOG_READ_MS).then(() => undefined)]);
    try {
      const policy = DataPolicy.fromPartial({});
      const assignments = siteStatuses(this.#state);
      const beat = { atMs: clock.nowMs(), facts, policy, assignments, renewCredential: this.#renewDue };
      reply = await plane.heartbeat(HeartbeatRequest.fromPartial(beat));
    } catch (error) {
      log.warn("no answer to the heartbeat", { error: messageOf(error) });
      this.#dispatch({ type: "heartbeatFailed" });
      return;
    }
    const { refusal } = reply;
    if (refusal?.reason === GONE) this.#dispatch({ type: "rejected", message: refusal.message });
    else if (refusal !== undefined) {
      log.warn("the heartbeat was refused", { reason: refusal.reason, detail: refusal.message });
      this.#dispatch({ type: "heartbeatFailed" });
    } else {
      await this.#adopt(reply);
      if (read !== undefined) this.#dispatch(read);
    }
  }

  async #adopt(reply: HeartbeatReply): Promise<void> {
    const { credential, plane, log } = this.#parts;
    if (reply.jwt !== "") {
      plane.renew(reply.jwt);
      await credential.store(reply.jwt).catch((error: unknown) => {
        log.error("the renewed credential could not be stored", { error: messageOf(error) });
      });
    }
    this.#renewDue = credential.isDue(reply.atMs);
    if (reply.site !== this.#site) log.info("gateway of a site", { site: reply.site });
    if (reply.site === "") {
      const remedy = "join with a token of `shoal token issue --site NAME --gateway`";
      log.error("the registry does not call this device a gateway", { remedy });
    }
    this.#site = reply.site;
    const { siteRounds: rounds, atMs } = reply;
    this.#dispatch({ type: "heartbeatReplied", rounds, atMs, nextHeartbeatMs: heartbeatMs(reply) });
  }
}
