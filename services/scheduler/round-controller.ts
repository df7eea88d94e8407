import type { TrainingJob } from "#proto/shoal/v1/job.js";
import type { Exclusion, Round, RoundStatus } from "#proto/shoal/v1/round.js";
import { findCondition, setCondition } from "#common/domain/condition.js";
import { advance, newRoundStatus, type RoundFacts, standingOf } from "#common/domain/round.js";
import type { Clock } from "#common/ports/clock.js";
import type { Log } from "#common/ports/log.js";
import type { Metrics } from "#common/ports/metrics.js";
import type { ResourceStore } from "#common/ports/resource-store.js";
import type { UpdateLog } from "#common/ports/update-log.js";
import type { Outcome } from "#common/runtime/controller.js";
import { mustRecompute, type Snapshot } from "./eligibility.js";
import { gatherFacts, isFinal, takeSnapshot } from "./fleet-view.js";
import type { GraphLibrary } from "./graph-library.js";
import { DONE, requeue, type Step } from "./outcome.js";
import { planRound, type RoundPlan, type TrainGraphs, verifyPlan } from "./plan.js";

export interface RoundControllerParts {
  store: ResourceStore;
  updates: UpdateLog;
  graphs: GraphLibrary;
  clock: Clock;
  log: Log;
  metrics: Metrics;
}

/** Policies depend on the time of day, so a round that waits is looked at even if no device changes. */
const WAITING_MS = 15_000;
const MAX_STEPS = 8;
const MAX_STALE_PLANS = 3;
const LEAST_BACKOFF_MS = 1_000;
const MOST_BACKOFF_MS = 60_000;

/** Moves rounds on: plans them, watches over training, freezes what is folded, and closes them. */
export class RoundController {
  /** Rounds that wait for devices, as far as this replica knows: a hint for wake-ups. */
  readonly waiting = new Set<string>();
  private readonly plans;
  private readonly lostRaces;

  constructor(private readonly parts: RoundControllerParts) {
    this.plans = parts.metrics.counter("shoal_scheduler_plans_total", "Round plans by outcome.", ["outcome"]);
    this.lostRaces = parts.metrics.counter(
      "shoal_scheduler_lost_races_total",
      "Writes that another replica was quicker with.",
    );
  }

  /** Brings one round as far as it can go now; level-triggered, idempotent, safe in any number of replicas. */
  async reconcile(name: string): Promise<Outcome> {
    for (let steps = 0; steps < MAX_STEPS; steps++) {
      const round = await this.parts.store.get("Round", name);
      if (round === undefined || isFinal(round)) {
        this.waiting.delete(name);
        return DONE;
      }
      const step = await this.step(round);
      if (step !== "again") return step;
    }
    return requeue(0);
  }

  private async step(round: Round): Promise<Step> {
    const { store, updates, clock } = this.parts;
    const job = await store.get("TrainingJob", round.spec?.job ?? "");
    const nowMs = clock.nowMs();
    const facts = await gatherFacts(store, updates, job, round, nowMs);
    const next = advance(round, facts, nowMs);
    if (next.changed) return this.write({ ...round, status: next.status }, round);
    if (job !== undefined && round.status?.phase === "Planning" && next.wakeAtMs === undefined) {
      return this.plan(job, round, facts);
    }
    return next.wakeAtMs === undefined ? DONE : requeue(Math.max(0, next.wakeAtMs - nowMs));
  }

  private async write(next: Round, before: Round): Promise<Step> {
    const written = await this.parts.store.update("Round", next);
    if (!written.ok) this.lostRaces.add(1);
    else if (next.status?.phase !== before.status?.phase) {
      this.parts.log.info("round changed phase", { round: next.metadata?.name, phase: next.status?.phase });
    }
    return "again";
  }

  /** After a lost round of training the next plan comes later and later, in case devices fail at once every time. */
  private backoffMs(status: RoundStatus, nowMs: number): number {
    const since = findCondition(status.conditions, "Planned");
    if (status.attempt === 0 || since === undefined) return 0;
    const wait = Math.min(MOST_BACKOFF_MS, LEAST_BACKOFF_MS * 2 ** Math.min(20, status.attempt - 1));
    return Math.max(0, since.lastTransitionAtMs + wait - nowMs);
  }

  private async plan(job: TrainingJob, stored: Round, facts: RoundFacts): Promise<Step> {
    const { store, clock } = this.parts;
    const before = stored.status ?? newRoundStatus();
    const pauseMs = this.backoffMs(before, clock.nowMs());
    if (pauseMs > 0) return requeue(pauseMs);
    const round = { ...stored, status: { ...before, withdrawn: standingOf(before, facts).withdrawn } };
    const seed = round.spec?.seed ?? 0;
    let snapshot = await takeSnapshot(store, job, round, facts.tally, clock.nowMs());
    for (let tries = 0; tries < MAX_STALE_PLANS && snapshot !== undefined; tries++) {
      const graphs = await this.trainGraphs(job, round, snapshot);
      const plan = planRound(snapshot, job, round, seed, graphs);
      if (!plan.ok) return this.wait(round, plan.exclusions, plan.waitFor);
      // Building a graph or a slow store takes time in which devices come and go.
      const fresh = await takeSnapshot(store, job, round, facts.tally, clock.nowMs());
      if (fresh !== undefined && verifyPlan(plan, fresh, job, round).ok) return this.commit(round, plan);
      this.plans.add(1, { outcome: "stale" });
      snapshot = fresh;
    }
    return requeue(LEAST_BACKOFF_MS);
  }

  /** The graphs that devices of this fleet need: most fleets need one of the two. */
  private async trainGraphs(job: TrainingJob, round: Round, snapshot: Snapshot): Promise<TrainGraphs | undefined> {
    const { spec } = job;
    if (round.spec?.evaluationOnly === true || spec === undefined) return undefined;
    const { config, candidates } = snapshot;
    const frugal = candidates.map((candidate) => mustRecompute(candidate, job, config));
    const { graphs } = this.parts;
    return {
      keeping: frugal.includes(false) ? await graphs.train(config, spec, false) : undefined,
      recomputing: frugal.includes(true) ? await graphs.train(config, spec, true) : undefined,
    };
  }

  /** Notes why the round cannot be planned; writes only if that is new. */
  private async wait(round: Round, exclusions: Exclusion[], waitFor: string): Promise<Step> {
    const name = round.metadata?.name ?? "";
    this.waiting.add(name);
    const before = round.status ?? newRoundStatus();
    const generation = round.metadata?.generation ?? 1;
    const seen = { type: "Planned", status: false, reason: "WaitingForDevices", message: waitFor, generation };
    const conditions = setCondition(before.conditions, seen, this.parts.clock.nowMs());
    const status: RoundStatus = { ...before, conditions, exclusions };
    const isNews =
      JSON.stringify([before.exclusions, before.conditions]) !== JSON.stringify([status.exclusions, status.conditions]);
    if (!isNews) return requeue(WAITING_MS);
    this.plans.add(1, { outcome: "waiting" });
    const written = await this.parts.store.update("Round", { ...round, status });
    return written.ok ? requeue(WAITING_MS) : "again";
  }

  /** Commits a verified plan by compare-and-set: of several replicas that planned, one wins and the others look again. */
  private async commit(round: Round, plan: RoundPlan): Promise<Step> {
    const nowMs = this.parts.clock.nowMs();
    const before = round.status ?? newRoundStatus();
    const drawn = new Set(plan.drawn);
    const withdrawn = before.withdrawn.filter(({ device }) => !drawn.has(device));
    const planned = new Set(plan.assignments.map(({ device }) => device));
    // A withdrawn device keeps its assignment, so that a commit that was under way when it fell silent still counts.
    const kept = before.assignments.filter(({ device }) => !planned.has(device));
    const message = `${plan.assignments.length} devices, ${plan.target} updates wanted, ${plan.quorum} needed`;
    const generation = round.metadata?.generation ?? 1;
    const seen = { type: "Planned", status: true, reason: "Committed", message, generation };
    const status: RoundStatus = {
      ...before,
      phase: "Training",
      conditions: setCondition(before.conditions, seen, nowMs),
      assignments: [...plan.assignments, ...kept].sort((a, b) => (a.device < b.device ? -1 : 1)),
      exclusions: plan.exclusions.filter(({ device }) => !withdrawn.some((one) => one.device === device)),
      plannedAtMs: nowMs,
      deadlineAtMs: nowMs + plan.deadlineMs,
      target: plan.target,
      quorum: plan.quorum,
      withdrawn,
    };
    const { spec } = round;
    if (spec?.task === undefined) return DONE;
    const task = { ...spec.task, cohortSize: plan.assignments.length };
    const step = await this.write({ ...round, spec: { ...spec, task }, status }, round);
    this.waiting.delete(round.metadata?.name ?? "");
    this.plans.add(1, { outcome: "committed" });
    return step;
  }
}
