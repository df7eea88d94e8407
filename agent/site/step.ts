import type { SiteRound } from "#proto/shoal/v1/device_wire.js";
import { jobKeyOfRound } from "../round-key.js";
import { EXIT_REJECTED } from "../step.js";
import { dispensableRound } from "./log-space.js";
import {
  keyOf,
  type MemberCommit,
  type OpenRound,
  type SiteEffect,
  type SiteEvent,
  type SiteState,
  type SiteUpdate,
} from "./state.js";

const FIRST_RETRY_MS = 1_000;
const LONGEST_RETRY_MS = 30_000;
const LONGEST_HEARTBEAT_RETRY_MS = 8_000;
/** Share of the time left that folding and sending may take. */
const CUT_SHARE = 0.2;
const LEAST_CUT_MS = 1_000;
const MOST_CUT_MS = 300_000;
/** Refused updates of a round after which its members are left to the deadline. */
const MOST_REFUSALS = 3;

const backoffMs = (failures: number, longestMs: number): number =>
  Math.min(FIRST_RETRY_MS * 2 ** Math.min(failures, 16), longestMs);

/** A private copy of the state that one step changes, and what it wants done. */
class Draft {
  readonly state: SiteState;
  readonly rounds: Map<string, OpenRound>;
  readonly updates: SiteUpdate[];
  readonly effects: SiteEffect[] = [];

  constructor(state: SiteState) {
    this.rounds = new Map([...state.rounds].map(([key, round]) => [key, { ...round }]));
    this.updates = state.updates.map((update) => ({ ...update }));
    this.state = {
      ...state,
      work: state.work === undefined ? undefined : { ...state.work },
      heartbeat: { ...state.heartbeat },
      exit: { ...state.exit },
    };
  }

  /** Beats now, or once more after the one under way, whose request is older than what there is to ask. */
  beat(): void {
    if (this.state.heartbeat.inFlight) {
      this.state.heartbeat.again = true;
      return;
    }
    this.state.heartbeat.inFlight = true;
    this.effects.push({ type: "heartbeat" });
  }

  abort(): void {
    const { work } = this.state;
    if (work === undefined || work.aborting) return;
    work.aborting = true;
    this.effects.push({ type: "abort", work: work.id });
  }

  begin(kind: "judge" | "fold" | "upload" | "discard" | "purge", key: string): number {
    const id = this.state.nextWorkId++;
    this.state.work = { id, kind, key, aborting: false };
    return id;
  }

  update(key: string): SiteUpdate | undefined {
    return this.updates.find((update) => update.key === key);
  }

  drop(gone: SiteUpdate): void {
    this.updates.splice(this.updates.indexOf(gone), 1);
  }
}

/** Milliseconds from now at which the site stops waiting for its members, so that its own update comes in time. */
export function cutOffMs(deadlineAtMs: number, nowMs: number): number {
  const leftMs = Math.max(0, deadlineAtMs - nowMs);
  return Math.max(0, leftMs - Math.min(MOST_CUT_MS, Math.max(LEAST_CUT_MS, CUT_SHARE * leftMs)));
}

/** Takes over the registry's list: a round that is missing does not wait for this site any more. */
function adoptRounds(draft: Draft, told: readonly SiteRound[], nowMs: number): void {
  const wanted = new Map(told.map((round) => [keyOf(round), round]));
  for (const [key, round] of draft.rounds) {
    if (wanted.has(key)) continue;
    draft.rounds.delete(key);
    draft.state.over = [...draft.state.over, round.told.task?.round ?? ""];
  }
  const names = new Set(told.map(({ task }) => task?.round));
  draft.state.over = draft.state.over.filter((name) => !names.has(name));
  for (const [key, round] of wanted) {
    const before = draft.rounds.get(key);
    if (before?.told.deadlineAtMs !== round.deadlineAtMs) {
      draft.effects.push({ type: "sleep", timer: "cutOff", key, ms: cutOffMs(round.deadlineAtMs, nowMs) });
    }
    const isCut = before?.told.deadlineAtMs === round.deadlineAtMs && before.isCut;
    const fresh = { commits: new Map<string, MemberCommit>(), unread: true, reasons: [], failures: 0, waiting: false };
    // Whose commit came before the registry named him is judged now.
    const grown = round.assignments.some(
      ({ device }) => !(before?.told.assignments ?? []).some((one) => one.device === device),
    );
    draft.rounds.set(key, {
      ...fresh,
      ...before,
      unread: before === undefined || before.unread || grown,
      told: round,
      isCut,
    });
    if (before === undefined) draft.effects.push({ type: "nudgeMembers" });
  }
  for (const update of [...draft.updates]) settle(draft, update);
  const { work } = draft.state;
  if (work === undefined || work.kind === "discard" || work.kind === "purge") return;
  const update = draft.update(work.key);
  const unwanted =
    work.kind === "judge" ? !draft.rounds.has(work.key) : update !== undefined && isUnwanted(draft, update);
  if (unwanted) draft.abort();
}

/** What the registry's list says of an update of the site. */
function settle(draft: Draft, update: SiteUpdate): void {
  const round = draft.rounds.get(update.round)?.told;
  if (round === undefined) {
    // One that is spooled, or is about to be, is discarded by `schedule`, unless its commit may be in the log.
    if (draft.state.isTold && (update.phase === "committed" || update.phase === "refused")) draft.drop(update);
    return;
  }
  if (update.phase !== "committed" || update.commitSeq === 0 || update.commitSeq > round.judgedSeq) return;
  const awaited = round.assignments.some(({ device }) => update.members.includes(device));
  if (awaited) update.phase = "refused";
}

const isUnwanted = ({ state, rounds }: Draft, update: SiteUpdate): boolean =>
  state.isTold && !rounds.has(update.round) && !update.commitSent;

/** The members whose commits are to be folded now; none if there is reason to wait. */
function due(draft: Draft, key: string, round: OpenRound): MemberCommit[] {
  const own = draft.updates.filter((update) => update.round === key);
  if (own.filter(({ phase }) => phase === "refused").length >= MOST_REFUSALS) return [];
  const taken = new Set(own.flatMap(({ phase, members }) => (phase === "refused" ? [] : members)));
  const pending = round.told.assignments.map(({ device }) => device).filter((device) => !taken.has(device));
  const here = pending.flatMap((device) => round.commits.get(device) ?? []).sort((a, b) => a.seq - b.seq);
  if (round.told.task?.siteWeighting === "") {
    // Each by itself, as soon as it is there; what was refused is told with the next.
    const first = here.find(({ refusal }) => refusal === "");
    return here.filter((commit) => commit.refusal !== "" || commit === first);
  }
  return here.length === pending.length || round.isCut ? here : [];
}

/** Whether an update of the round's job is not sent yet: what its codec lost, from which the next one starts, is not the job's yet. */
function hasUnsent({ updates }: Draft, key: string): boolean {
  const job = jobKeyOfRound(key);
  return updates.some(({ phase, round }) => phase === "spooled" && jobKeyOfRound(round) === job);
}

function beginFold(draft: Draft, key: string, round: OpenRound, commits: readonly MemberCommit[]): void {
  const numbers = draft.updates.filter((one) => one.round === key).map((one) => Number(one.key.split("+").at(-1)));
  const update: SiteUpdate = {
    key: `${key}+${Math.max(-1, ...numbers) + 1}`,
    round: key,
    members: commits.map(({ device }) => device),
    phase: "folding",
    commitSent: false,
    commitSeq: 0,
    failures: 0,
    waiting: false,
  };
  draft.updates.push(update);
  const work = draft.begin("fold", update.key);
  draft.effects.push({ type: "fold", work, update: { ...update }, round: round.told, commits });
}

/** Starts the next work if none is under way: what is spooled first, then new commits, then folding, then tidying up. */
function schedule(draft: Draft): void {
  const { state } = draft;
  if (state.lifecycle === "stopping" && state.work === undefined) {
    state.lifecycle = "stopped";
    draft.effects.push({ type: "exit", ...state.exit });
  }
  if (state.lifecycle !== "running" || state.work !== undefined) return;
  const spooled = draft.updates.find(({ phase, waiting }) => phase === "spooled" && !waiting);
  if (spooled !== undefined) {
    const kind = isUnwanted(draft, spooled) ? "discard" : "upload";
    draft.effects.push({ type: kind, work: draft.begin(kind, spooled.key), key: spooled.key });
    return;
  }
  const open = [...draft.rounds].filter(([, { waiting }]) => !waiting);
  const unread = open.find(([, round]) => round.unread);
  if (unread !== undefined) {
    const [key, round] = unread;
    round.unread = false;
    draft.effects.push({ type: "judge", work: draft.begin("judge", key), round: round.told, known: round.commits });
    return;
  }
  for (const [key, round] of open) {
    const commits = due(draft, key, round);
    if (commits.length === 0 || hasUnsent(draft, key)) continue;
    beginFold(draft, key, round, commits);
    return;
  }
  const name = dispensableRound(state.over, roundNames(draft), state.isPressed);
  if (name === undefined) return;
  state.over = state.over.filter((each) => each !== name);
  draft.effects.push({ type: "purge", work: draft.begin("purge", name), name });
}

const roundNames = ({ rounds }: Draft): string[] => [...rounds.values()].map(({ told }) => told.task?.round ?? "");

/** Takes note of what lies in the site's log. A round is over that nobody told of in two answers. */
function onLogRead(draft: Draft, { logged, isPressed }: Extract<SiteEvent, { type: "logRead" }>): void {
  const { state } = draft;
  state.isPressed = isPressed;
  const known = new Set([...state.over, ...roundNames(draft)]);
  const unknown = logged.filter((name) => !known.has(name));
  const twice = unknown.filter((name) => state.strangers.includes(name));
  state.over = [...twice, ...state.over];
  state.strangers = unknown.filter((name) => !twice.includes(name));
}

type Ending = Extract<
  SiteEvent,
  { type: "judged" | "folded" | "damaged" | "uploaded" | "done" | "failed" | "aborted" }
>;

function retryLater(draft: Draft, key: string, holder: { failures: number; waiting: boolean }, retry: string): void {
  holder.waiting = true;
  const ms = retry === "soon" ? backoffMs(holder.failures, LONGEST_RETRY_MS) : LONGEST_RETRY_MS;
  holder.failures++;
  draft.effects.push({ type: "sleep", timer: "retry", key, ms });
}

function fail(draft: Draft, kind: string, key: string, event: Extract<SiteEvent, { type: "failed" }>): void {
  const { retry } = event;
  const update = draft.update(key);
  const round = draft.rounds.get(kind === "fold" ? (update?.round ?? "") : key);
  // The members are in the site's log still: what could not be folded or sent is folded anew.
  if (update !== undefined && (kind === "fold" || retry === "never")) draft.drop(update);
  else if (update !== undefined) retryLater(draft, key, update, retry);
  if (kind === "judge" && round !== undefined) round.unread = true;
  if ((kind === "fold" || kind === "judge") && round !== undefined)
    retryLater(draft, update?.round ?? key, round, retry);
  if (kind !== "fold" || round === undefined || retry !== "later") return;
  // Told at once: the devices of the site did their part, and only this gateway's owner can help.
  round.reasons = [`${event.reason}: ${event.message}`];
  draft.beat();
}

function endWork(draft: Draft, event: Ending): void {
  const { work } = draft.state;
  if (work?.id !== event.work) return;
  draft.state.work = undefined;
  const update = draft.update(work.key);
  const round = draft.rounds.get(work.key);
  if (event.type === "judged" && round !== undefined) {
    round.failures = 0;
    round.commits = new Map([...round.commits, ...event.commits.map((commit) => [commit.device, commit] as const)]);
  }
  if (event.type === "damaged" && update !== undefined) {
    const holder = draft.rounds.get(update.round);
    // Told with its reason like any that is refused, in the update that is now folded from the rest.
    if (holder !== undefined) holder.commits = new Map([...holder.commits, [event.commit.device, event.commit]]);
    draft.drop(update);
  }
  if (event.type === "folded" && update !== undefined) {
    update.phase = "spooled";
    const folded = draft.rounds.get(update.round);
    if (folded !== undefined) folded.reasons = [];
  }
  if (event.type === "uploaded" && update !== undefined) {
    update.phase = "committed";
    update.commitSeq = event.commitSeq;
    settle(draft, update);
  }
  if (event.type === "done" && work.kind === "discard" && update !== undefined) draft.drop(update);
  if (event.type === "aborted" && work.kind === "fold" && update !== undefined) draft.drop(update);
  if (event.type === "aborted" && work.kind === "judge" && round !== undefined) round.unread = true;
  if (event.type === "failed") fail(draft, work.kind, work.key, event);
}

function onReply(draft: Draft, event: Extract<SiteEvent, { type: "heartbeatReplied" }>): void {
  const { heartbeat } = draft.state;
  heartbeat.inFlight = false;
  if (heartbeat.failures > 0) for (const update of draft.updates) update.waiting = false;
  heartbeat.failures = 0;
  draft.state.isTold = true;
  adoptRounds(draft, event.rounds, event.atMs);
  if (heartbeat.again) {
    heartbeat.again = false;
    draft.beat();
    return;
  }
  draft.effects.push({ type: "sleep", timer: "heartbeat", ms: event.nextHeartbeatMs });
}

function onTimer(draft: Draft, event: Extract<SiteEvent, { type: "timer" }>): void {
  if (event.timer === "heartbeat") {
    draft.beat();
    return;
  }
  const round = draft.rounds.get(event.key);
  if (event.timer === "cutOff") {
    if (round !== undefined) round.isCut = true;
    return;
  }
  const update = draft.update(event.key);
  if (update !== undefined) update.waiting = false;
  if (round !== undefined) round.waiting = false;
}

function onCommitted(draft: Draft, name: string): void {
  let known = false;
  for (const round of draft.rounds.values()) {
    if (round.told.task?.round !== name) continue;
    known = true;
    round.unread = true;
  }
  // The member was told of the round before the gateway was.
  if (!known) draft.beat();
}

function apply(draft: Draft, event: Exclude<SiteEvent, { type: "stop" | "rejected" }>): void {
  switch (event.type) {
    case "started":
      draft.state.lifecycle = "running";
      draft.updates.push(...event.updates.map((update) => ({ ...update })));
      draft.beat();
      break;
    case "heartbeatReplied":
      onReply(draft, event);
      break;
    case "heartbeatFailed": {
      const { heartbeat } = draft.state;
      heartbeat.inFlight = false;
      heartbeat.again = false;
      const ms = backoffMs(heartbeat.failures++, LONGEST_HEARTBEAT_RETRY_MS);
      draft.effects.push({ type: "sleep", timer: "heartbeat", ms });
      break;
    }
    case "logRead":
      onLogRead(draft, event);
      break;
    case "nudged":
      draft.effects.push({ type: "nudgeMembers" });
      draft.beat();
      break;
    case "committedAtSite":
      onCommitted(draft, event.name);
      break;
    case "timer":
      onTimer(draft, event);
      break;
    case "commitSending": {
      const { work } = draft.state;
      const update = work?.id === event.work ? draft.update(work.key) : undefined;
      if (update !== undefined && work?.aborting !== true) update.commitSent = true;
      break;
    }
    default:
      endWork(draft, event);
  }
}

function stop(draft: Draft, code: number, message: string): void {
  draft.state.lifecycle = "stopping";
  draft.state.exit = { code, message };
  draft.abort();
}

/**
 * A gateway's whole behaviour as a pure function, as `step` is a device's: what it knows, one thing that happened -> what it
 * knows then, and what is to be done. Never changes its arguments.
 *
 * The registry's list says which devices of the site a round still waits for; the site's log says who committed. When all
 * of them have, or at the cut-off before the deadline, what is there is folded into one update, spooled, sent and
 * committed; who comes later goes into a further one. A device is in one update at a time, and in another only after the
 * aggregator has refused that one and waits for the device still.
 */
export function stepSite(state: SiteState, event: SiteEvent): { state: SiteState; effects: SiteEffect[] } {
  const { lifecycle } = state;
  if (lifecycle === "stopped") return { state, effects: [] };
  const draft = new Draft(state);
  if (event.type === "stop") {
    if (lifecycle !== "stopping") stop(draft, 0, "stopped");
  } else if (event.type === "rejected") {
    if (lifecycle !== "stopping") stop(draft, EXIT_REJECTED, event.message);
  } else if (lifecycle !== "stopping" || "work" in event) {
    apply(draft, event);
  }
  schedule(draft);
  const effects = lifecycle === "stopping" ? draft.effects.filter((effect) => effect.type === "exit") : draft.effects;
  return { state: { ...draft.state, rounds: draft.rounds, updates: draft.updates }, effects };
}
