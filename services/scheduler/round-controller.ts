import type { TrainingJob } from "#proto/shoal/v1/job.js";
import type { Exclusion, Round, RoundStatus } from "#proto/shoal/v1/round.js";
import { setCondition } from "#common/domain/condition.js";
import { nameLeftOut } from "#common/domain/left-out.js";
import { ownJob } from "#common/domain/own-record.js";
import { advance, byDevice, isCollecting, newRoundStatus, type RoundFacts, standingOf } from "#common/domain/round.js";
import { pauseBeforePlanMs } from "#common/domain/round-clock.js";
import { isAsynchronous } from "#common/domain/staleness.js";
import type { Clock } from "#common/ports/clock.js";
import type { Log } from "#common/ports/log.js";
import type { Metrics } from "#common/ports/metrics.js";
import type { ResourceStore } from "#common/ports/resource-store.js";
import type { UpdateLog } from "#common/ports/update-log.js";
import type { Outcome } from "#common/runtime/controller.js";
import { mustRecompute, nameOf, type Snapshot } from "./eligibility.js";
import { FleetHints } from "./fleet-hints.js";
import { gatherFacts, isFinal, takeSnapshot } from "./fleet-view.js";
import type { GraphLibrary } from "./graph-library.js";
import { DONE, requeue, type Step } from "./outcome.js";
import { type NoPlan, planRound, type RoundPlan, type TrainGraphs, verifyPlan } from "./plan.js";

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
const STALE_VIEW_MS = 1_000;

/** Moves rounds on: plans them, watches over training, freezes what is folded, and closes them. */
export class RoundController {
  /** Rounds that wait for devices, as far as this replica knows: a hint for wake-ups. */
  readonly waiting = new Set<string>();
  /** The open round of each asynchronous job, as far as this replica knows: a hint for wake-ups by its earlier rounds. */
  readonly collecting = new Map<string, string>();
  /** The fleet, as far as this replica's wake-ups have told. */
  readonly fleet = new FleetHints();
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
        const job = round?.spec?.job ?? "";
        if (this.collecting.get(job) === name) this.collecting.delete(job);
        return DONE;
      }
      this.noteCollecting(name, round);
      if ((round.status ?? newRoundStatus()).phase !== "Planning") this.waiting.delete(name);
      const step = await this.step(round);
      if (step !== "again") return step;
    }
    return requeue(0);
  }

  private noteCollecting(name: string, { spec, status }: Round): void {
    const isOpen = status?.phase === "Planning" || status?.phase === "Training";
    if (spec !== undefined && isAsynchronous(spec) && isOpen) this.collecting.set(spec.job, name);
  }

  private async step(round: Round): Promise<Step> {
    const { store, updates, clock } = this.parts;
    // To a round that an earlier job of the name left its job is gone.
    const job = ownJob(round, await store.get("TrainingJob", round.spec?.job ?? ""));
    const nowMs = clock.nowMs();
    const facts = await gatherFacts({ store, updates, hints: this.fleet }, job, round, nowMs);
    if (job !== undefined && isCollecting(round, facts, nowMs) && (await this.inviteIdle(job, round, facts)))
      return "again";
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

  private async plan(job: TrainingJob, stored: Round, facts: RoundFacts): Promise<Step> {
    const before = stored.status ?? newRoundStatus();
    const pauseMs = pauseBeforePlanMs(before, this.parts.clock.nowMs());
    if (pauseMs > 0) return requeue(pauseMs);
    // Before the fleet is looked at: a device that comes behind that look ends the wait.
    this.waiting.add(stored.metadata?.name ?? "");
    const round = { ...stored, status: { ...before, withdrawn: standingOf(before, facts).withdrawn } };
    const plan = await this.verifiedPlan(job, round, facts);
    if (plan === undefined) return requeue(STALE_VIEW_MS);
    return plan.ok ? this.commit(round, plan) : this.wait(round, plan.exclusions, plan.waitFor);
  }

  /**
   * Plans on a view of the fleet until a fresh one allows the plan; undefined if that did not come about.
   * @param without devices that are not to be drawn
   */
  private async verifiedPlan(
    job: TrainingJob,
    round: Round,
    facts: RoundFacts,
    without: readonly Exclusion[] = [],
  ): Promise<RoundPlan | NoPlan | undefined> {
    const seed = round.spec?.seed ?? 0;
    const gone = new Set(without.map(({ device }) => device));
    const look = async (): Promise<Snapshot | undefined> => {
      const { store, clock } = this.parts;
      const seen = await takeSnapshot(store, job, round, facts.tally, clock.nowMs());
      return seen && { ...seen, candidates: seen.candidates.filter((candidate) => !gone.has(nameOf(candidate))) };
    };
    let snapshot = await look();
    for (let tries = 0; tries < MAX_STALE_PLANS && snapshot !== undefined; tries++) {
      const graphs = await this.trainGraphs(job, round, snapshot);
      const plan = planRound(snapshot, job, round, seed, graphs);
      if (!plan.ok) return plan;
      // Building a graph or a slow store takes time in which devices come and go.
      const fresh = await look();
      if (fresh !== undefined && verifyPlan(plan, fresh, job, round).ok) return plan;
      this.plans.add(1, { outcome: "stale" });
      snapshot = fresh;
    }
    return undefined;
  }

  /**
   * Invites devices without work to a round that collects updates, so that they train from the newest weights; those that it
   * gave up are asked again by the next one. @returns whether the round was written, or another replica was quicker.
   */
  private async inviteIdle(job: TrainingJob, round: Round, facts: RoundFacts): Promise<boolean> {
    const before = round.status ?? newRoundStatus();
    const plan = await this.verifiedPlan(job, round, facts, before.withdrawn);
    if (plan?.ok !== true || plan.drawn.length === 0) return false;
    const drawn = new Set(plan.drawn);
    const assignments = plan.assignments.filter(({ device }) => drawn.has(device));
    const { spec } = round;
    if (spec?.task === undefined) return false;
    const status: RoundStatus = {
      ...before,
      assignments: [...before.assignments, ...assignments].sort(byDevice),
      ...nameLeftOut(plan.exclusions),
      target: plan.target,
      quorum: plan.quorum,
    };
    await this.write(
      { ...round, spec: { ...spec, task: { ...spec.task, cohortSize: plan.cohortSize } }, status },
      round,
    );
    this.plans.add(1, { outcome: "extended" });
    return true;
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
    const before = round.status ?? newRoundStatus();
    const generation = round.metadata?.generation ?? 1;
    const seen = { type: "Planned", status: false, reason: "WaitingForDevices", message: waitFor, generation };
    const conditions = setCondition(before.conditions, seen, this.parts.clock.nowMs());
    const status: RoundStatus = { ...before, conditions, ...nameLeftOut(exclusions) };
    const newsOf = (of: RoundStatus): string => JSON.stringify([of.exclusions, of.leftOut, of.conditions]);
    const isNews = newsOf(before) !== newsOf(status);
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
      assignments: [...plan.assignments, ...kept].sort(byDevice),
      ...nameLeftOut(plan.exclusions.filter(({ device }) => !withdrawn.some((one) => one.device === device))),
      plannedAtMs: nowMs,
      deadlineAtMs: nowMs + plan.deadlineMs,
      target: plan.target,
      quorum: plan.quorum,
      withdrawn,
    };
    const { spec } = round;
    if (spec?.task === undefined) return DONE;
    const task = { ...spec.task, cohortSize: plan.cohortSize };
    const step = await this.write({ ...round, spec: { ...spec, task }, status }, round);
    this.plans.add(1, { outcome: "committed" });
    return step;
  }
}
