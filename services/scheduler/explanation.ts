import type { TrainingJob } from "#proto/shoal/v1/job.js";
import type { Round, RoundStatus, UpdateTally } from "#proto/shoal/v1/round.js";
import { countUnnamed } from "#common/domain/left-out.js";
import { standingOf } from "#common/domain/round.js";
import { roundName } from "#common/domain/resources.js";

const nobody = { lost: new Map<string, string[]>() };
const at = (ms: number): string => new Date(ms).toISOString();

function explainTraining(round: Round, tally: UpdateTally | undefined): string[] {
  const status = round.status;
  if (status === undefined) return [];
  const { accepted, outstanding } = standingOf(status, { tally, ...nobody });
  const lines = [
    `${accepted.length} of ${status.assignments.length} invited devices have an accepted update; ` +
      `${status.target} end the round at once, ${status.quorum} are enough at its deadline ${at(status.deadlineAtMs)}.`,
  ];
  for (const device of outstanding) {
    const steps = status.assignments.find((one) => one.device === device)?.localSteps ?? 0;
    lines.push(`Waiting for ${device}, which ${steps > 0 ? `trains ${steps} local steps` : "evaluates"}.`);
  }
  return lines;
}

function explainDamage({ conditions }: RoundStatus): string[] {
  const broken = conditions.find(({ type, status }) => type === "Completed" && status === "False");
  return broken === undefined ? [] : [`${broken.message}.`];
}

function explainRound(round: Round, tally: UpdateTally | undefined): string[] {
  const { number = 0, evaluationOnly = false } = round.spec ?? {};
  const status = round.status;
  const what = evaluationOnly ? `Round ${number}, which only evaluates,` : `Round ${number}`;
  const lines: string[] = [];
  switch (status?.phase) {
    case "Training":
      lines.push(`${what} is training.`, ...explainTraining(round, tally));
      break;
    case "Aggregating":
      lines.push(`${what} is being folded from ${status.foldSet.length} updates.`, ...explainDamage(status));
      break;
    case "Completed":
      lines.push(`${what} is complete; ${status.foldSet.length} updates were folded.`);
      break;
    default: {
      const type = status?.phase === "Failed" ? "Completed" : "Planned";
      const last = status?.conditions.find((condition) => condition.type === type);
      const why = last?.status === "False" ? `: ${last.message}` : "";
      lines.push(`${what} is ${status?.phase === "Failed" ? "failed" : "waiting for a plan"}${why}.`);
    }
  }
  if (status !== undefined && status.attempt > 0)
    lines.push(`It was planned again ${status.attempt} times for want of updates.`);
  for (const { device, reasons } of status?.withdrawn ?? [])
    lines.push(`${device} is not waited for: ${reasons.join("; ")}.`);
  for (const { device, reasons } of status?.exclusions ?? [])
    lines.push(`${device} is left out: ${reasons.join("; ")}.`);
  const unnamed = status === undefined ? 0 : countUnnamed(status);
  if (unnamed > 0) lines.push(`So are ${unnamed} more devices.`);
  return lines;
}

function explainJob(job: TrainingJob): string {
  const { phase = "", completedRounds = 0, conditions = [] } = job.status ?? {};
  const done = `${completedRounds} of ${job.spec?.rounds ?? 0} rounds are done`;
  const newest = [...conditions].sort((a, b) => b.lastTransitionAtMs - a.lastTransitionAtMs)[0];
  switch (phase) {
    case "":
    case "Pending":
      return newest === undefined ? "The job waits for the scheduler." : `The job cannot begin: ${newest.message}.`;
    case "Running":
      return `The job is running; ${done}.`;
    case "Suspended":
      return `The job is suspended; ${done}. Apply it with suspended: false to go on.`;
    default: {
      const why = conditions.find((condition) => condition.type === "Completed") ?? newest;
      return `The job is ${phase.toLowerCase()}; ${done}${why === undefined ? "" : `: ${why.message}`}.`;
    }
  }
}

/** Why a job is where it is, one sentence a line: what is waited for, who is left out and why. */
export function explain(job: TrainingJob, round: Round | undefined, tally: UpdateTally | undefined): string[] {
  const current = roundName(job.metadata?.name ?? "", job.status?.currentRound ?? 0);
  if (round === undefined) return [explainJob(job)];
  const lines = round.metadata?.name === current ? explainRound(round, tally) : [];
  return [explainJob(job), ...lines];
}
