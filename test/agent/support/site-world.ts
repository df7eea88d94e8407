import { SiteRound } from "#proto/shoal/v1/device_wire.js";
import { UpdateManifest } from "#proto/shoal/v1/round.js";
import {
  initialSiteState,
  type MemberCommit,
  type SiteEffect,
  type SiteEvent,
  type SiteState,
  type SiteUpdate,
} from "#agent/site/state.js";
import { stepSite } from "#agent/site/step.js";

export const ROUND = "tiny-1";

/** A round that waits for these devices, as the registry tells it. */
export function siteRound(
  devices: readonly string[],
  over: { deadlineAtMs?: number; judgedSeq?: number; siteWeighting?: string } = {},
): SiteRound {
  const { deadlineAtMs = 100_000, judgedSeq = 0, siteWeighting = "tokens" } = over;
  const task = { job: "tiny", round: ROUND, siteWeighting };
  const assignments = devices.map((device) => ({ device, site: "pier", localSteps: 3 }));
  return SiteRound.fromPartial({ task, assignments, deadlineAtMs, judgedSeq });
}

/** A judged commit of a member. */
export function memberCommit(device: string, seq: number, refusal = ""): MemberCommit {
  return { device, seq, manifest: UpdateManifest.fromPartial({ device }), norm: 1, refusal, message: "" };
}

type Work = Extract<SiteEffect, { work: number }>;

interface HubCommit {
  readonly key: string;
  readonly members: readonly string[];
}

/**
 * A fleet around one gateway: the site's log, the fleet's log with its judge, and what the gateway has on disk. Work is done
 * in the pieces between which a process can die.
 */
export class SiteWorld {
  state: SiteState = initialSiteState;
  readonly siteLog: { device: string; seq: number }[] = [];
  readonly hubLog: HubCommit[] = [];
  /** How often each device's work went into the round. */
  readonly counted = new Map<string, number>();
  /** Members in accepted updates and in refused ones. */
  judged = 0;
  /** Message ids are remembered by the log: a commit that is sent again is the first one. */
  remembers = true;
  #ledger = new Map<string, { members: readonly string[]; seq: number }>();
  #spool = new Map<string, { commitSent: boolean }>();
  #marked = new Set<string>();
  #work: { effect: Work; at: number; aborted: boolean } | undefined;
  #beating = false;
  #retries: SiteEvent[] = [];

  constructor(readonly members: readonly string[]) {
    this.crash();
  }

  /** Devices of which nothing counts yet. */
  get awaited(): string[] {
    return this.members.filter((device) => !this.counted.has(device));
  }

  dispatch(event: SiteEvent): void {
    const { state, effects } = stepSite(this.state, event);
    this.state = state;
    for (const effect of effects) this.#take(effect);
    this.#check();
  }

  #take(effect: SiteEffect): void {
    if (effect.type === "heartbeat") this.#beating = true;
    else if (effect.type === "abort" && this.#work !== undefined) this.#work.aborted = true;
    else if (effect.type === "sleep" && effect.timer === "retry")
      this.#retries.push({ type: "timer", timer: "retry", key: effect.key });
    else if ("work" in effect && effect.type !== "abort") {
      if (this.#work !== undefined) throw new Error("two works at once");
      this.#work = { effect, at: 0, aborted: false };
    }
  }

  /** What must hold at every moment: no device in two updates that may both come to count. */
  #check(): void {
    const live = this.state.updates.filter(({ phase }) => phase !== "refused").flatMap(({ members }) => members);
    if (new Set(live).size < live.length) throw new Error(`a device is in two updates: ${live.join()}`);
  }

  /** The process dies and starts again from what is on disk. */
  crash(): void {
    this.#work = undefined;
    this.#beating = false;
    this.#retries = [];
    const updates: SiteUpdate[] = [];
    for (const [key, { members, seq }] of [...this.#ledger]) {
      const rest = { key, round: ROUND, members, commitSeq: seq, failures: 0, waiting: false };
      const spooled = this.#spool.get(key);
      if (this.#marked.has(key)) updates.push({ ...rest, phase: "committed", commitSent: true });
      else if (spooled !== undefined) updates.push({ ...rest, phase: "spooled", commitSent: spooled.commitSent });
      else this.#ledger.delete(key);
    }
    this.state = initialSiteState;
    this.dispatch({ type: "started", updates });
  }

  commitAtSite(device: string): void {
    if (this.siteLog.some((one) => one.device === device)) return;
    this.siteLog.push({ device, seq: this.siteLog.length + 1 });
    this.dispatch({ type: "committedAtSite", name: ROUND });
  }

  /** The device was connected directly, and is counted by itself. */
  commitDirectly(device: string): void {
    if (!this.counted.has(device)) this.counted.set(device, 1);
  }

  /** The aggregator judges the next commit. */
  judge(): void {
    const commit = this.hubLog[this.judged];
    if (commit === undefined) return;
    this.judged++;
    if (commit.members.some((device) => this.counted.has(device))) return;
    for (const device of commit.members) this.counted.set(device, (this.counted.get(device) ?? 0) + 1);
  }

  answer(): void {
    if (!this.#beating) {
      this.dispatch({ type: "timer", timer: "heartbeat" });
      return;
    }
    this.#beating = false;
    const { awaited, judged: judgedSeq } = this;
    const rounds = awaited.length === 0 ? [] : [siteRound(awaited, { judgedSeq })];
    this.dispatch({ type: "heartbeatReplied", rounds, atMs: 0, nextHeartbeatMs: 500 });
  }

  cut(): void {
    for (const key of this.state.rounds.keys()) this.dispatch({ type: "timer", timer: "cutOff", key });
  }

  retry(): void {
    const [event] = this.#retries.splice(0, 1);
    if (event !== undefined) this.dispatch(event);
  }

  /** The work under way fails. */
  fail(): void {
    const work = this.#work;
    if (work === undefined) return;
    this.#work = undefined;
    this.dispatch({ type: "failed", work: work.effect.work, reason: "TIMEOUT", message: "no answer", retry: "soon" });
  }

  /** Does the next piece of the work under way. */
  work(): void {
    const work = this.#work;
    if (work === undefined) return;
    const { effect, at } = work;
    const end = (event: SiteEvent): void => {
      this.#work = undefined;
      this.dispatch(event);
    };
    work.at++;
    const id = effect.work;
    if (work.aborted && (effect.type !== "upload" || at === 0)) {
      end({ type: "aborted", work: id });
      return;
    }
    switch (effect.type) {
      case "judge": {
        const fresh = this.siteLog.filter(
          ({ device }) => !effect.known.has(device) && effect.round.assignments.some((one) => one.device === device),
        );
        end({ type: "judged", work: id, commits: fresh.map(({ device, seq }) => memberCommit(device, seq)) });
        return;
      }
      case "fold":
        if (at === 0) this.#ledger.set(effect.update.key, { members: effect.update.members, seq: 0 });
        else if (at === 1) this.#spool.set(effect.update.key, { commitSent: false });
        else end({ type: "folded", work: id });
        return;
      case "upload": {
        this.#upload(effect.key, id, at, end);
        return;
      }
      case "discard":
        this.#spool.delete(effect.key);
        {
          end({ type: "done", work: id });
          return;
        }
      default: {
        end({ type: "done", work: id });
        return;
      }
    }
  }

  #upload(key: string, work: number, at: number, end: (event: SiteEvent) => void): void {
    const entry = this.#ledger.get(key);
    if (entry === undefined) throw new Error(`${key} is not in the ledger`);
    if (at === 0) {
      this.dispatch({ type: "commitSending", work });
      this.#spool.set(key, { commitSent: true });
    } else if (at === 1) {
      if (!this.remembers || !this.hubLog.some((one) => one.key === key))
        this.hubLog.push({ key, members: entry.members });
    } else if (at === 2) {
      const seq = this.hubLog.map((one) => one.key).lastIndexOf(key) + 1;
      this.#ledger.set(key, { ...entry, seq });
    } else if (at === 3) {
      this.#marked.add(key);
      this.#spool.delete(key);
    } else end({ type: "uploaded", work, commitSeq: this.#ledger.get(key)?.seq ?? 0 });
  }
}
