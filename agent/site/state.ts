import { AssignmentStatus } from "#proto/shoal/v1/device.js";
import type { SiteRound } from "#proto/shoal/v1/device_wire.js";
import type { UpdateManifest } from "#proto/shoal/v1/round.js";
import { roundKey } from "../round-key.js";
import type { Retry } from "../state.js";

// A `round` in state, events and effects is the key of a round (round-key.ts).

/** A member's commit in the site's log, judged. */
export interface MemberCommit {
  readonly device: string;
  readonly seq: number;
  readonly manifest: UpdateManifest;
  /** L2 norm of the decoded update. */
  readonly norm: number;
  /** Why it does not count, as in Verdict.reason; empty if it does. */
  readonly refusal: string;
  readonly message: string;
}

/** One update of the site, from the decision to fold it on. */
export interface SiteUpdate {
  /** "<round>+<n>": its name in outbox and ledger. */
  readonly key: string;
  readonly round: string;
  /** Whose work is in it, or whose refusal it tells. */
  readonly members: readonly string[];
  /** "refused": the aggregator judged it and still waits for its members. */
  phase: "folding" | "spooled" | "committed" | "refused";
  /** The commit may have reached the log, so it is not taken back any more. */
  commitSent: boolean;
  /** Sequence of its commit in the fleet's log; 0 while unknown. */
  commitSeq: number;
  failures: number;
  waiting: boolean;
}

/** A round that waits for devices of the site. */
export interface OpenRound {
  /** As the registry last told. */
  told: SiteRound;
  /** Judged commits by device. */
  commits: ReadonlyMap<string, MemberCommit>;
  /** Something may be in the log that is not judged. */
  unread: boolean;
  /** Whoever has not committed is not waited for any more. */
  isCut: boolean;
  /** Why it is not folded, where a person has to look at that; empty once it is. */
  reasons: readonly string[];
  failures: number;
  waiting: boolean;
}

/** The one piece of work under way. */
export interface SiteWork {
  readonly id: number;
  readonly kind: "judge" | "fold" | "upload" | "discard" | "purge";
  /** Key of the round, or of the update of an upload or discard. */
  readonly key: string;
  aborting: boolean;
}

export interface SiteState {
  lifecycle: "starting" | "running" | "stopping" | "stopped";
  /** The registry has told its rounds since the start: before that, none is known to be unwanted. */
  isTold: boolean;
  /** Oldest first. */
  rounds: ReadonlyMap<string, OpenRound>;
  /** Oldest first. */
  updates: readonly SiteUpdate[];
  /** Names of rounds that are over, whose part of the site's log is still there, oldest first. */
  over: readonly string[];
  /** Names in the log that the last look knew no round of: of rounds that ended while the gateway was away. */
  strangers: readonly string[];
  /** The site's log is short of space. */
  isPressed: boolean;
  work: SiteWork | undefined;
  nextWorkId: number;
  heartbeat: { inFlight: boolean; again: boolean; failures: number };
  exit: { code: number; message: string };
}

export type SiteEvent =
  | { type: "started"; updates: readonly SiteUpdate[] }
  | { type: "heartbeatReplied"; rounds: readonly SiteRound[]; atMs: number; nextHeartbeatMs: number }
  | { type: "heartbeatFailed" }
  /** What lay in the site's log before the heartbeat that was answered last: names of rounds. */
  | { type: "logRead"; logged: readonly string[]; isPressed: boolean }
  | { type: "rejected"; message: string }
  | { type: "nudged" }
  /** A commit came into the site's log; `name` is the bare name of its round. */
  | { type: "committedAtSite"; name: string }
  | { type: "timer"; timer: "heartbeat" }
  | { type: "timer"; timer: "cutOff" | "retry"; key: string }
  | { type: "judged"; work: number; commits: readonly MemberCommit[] }
  | { type: "folded"; work: number }
  /** Nothing was folded, because of this member's update, which is refused now. */
  | { type: "damaged"; work: number; commit: MemberCommit }
  | { type: "commitSending"; work: number }
  | { type: "uploaded"; work: number; commitSeq: number }
  | { type: "done"; work: number }
  | { type: "failed"; work: number; reason: string; message: string; retry: Retry }
  | { type: "aborted"; work: number }
  | { type: "stop" };

export type SiteEffect =
  | { type: "heartbeat" }
  | { type: "nudgeMembers" }
  | { type: "sleep"; timer: "heartbeat"; ms: number }
  | { type: "sleep"; timer: "cutOff" | "retry"; key: string; ms: number }
  | { type: "judge"; work: number; round: SiteRound; known: ReadonlyMap<string, MemberCommit> }
  | { type: "fold"; work: number; update: SiteUpdate; round: SiteRound; commits: readonly MemberCommit[] }
  | { type: "upload"; work: number; key: string }
  | { type: "discard"; work: number; key: string }
  | { type: "purge"; work: number; name: string }
  | { type: "abort"; work: number }
  | { type: "exit"; code: number; message: string };

export const initialSiteState: SiteState = {
  lifecycle: "starting",
  isTold: false,
  rounds: new Map(),
  updates: [],
  over: [],
  strangers: [],
  isPressed: false,
  work: undefined,
  nextWorkId: 1,
  heartbeat: { inFlight: false, again: false, failures: 0 },
  exit: { code: 0, message: "" },
};

/** What the gateway tells of the rounds that it cannot fold. */
export function siteStatuses({ rounds }: Pick<SiteState, "rounds">): AssignmentStatus[] {
  return [...rounds.values()].flatMap(({ told, reasons }) =>
    reasons.length === 0
      ? []
      : AssignmentStatus.fromPartial({ round: told.task?.round ?? "", phase: "Failed", reasons: [...reasons] }),
  );
}

/** Key of a round that the registry told of. */
export function keyOf({ task }: SiteRound): string {
  return task === undefined ? "" : roundKey(task);
}
