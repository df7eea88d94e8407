import type { TrainingJob } from "#proto/shoal/v1/job.js";
import type { BlobRef } from "#proto/shoal/v1/meta.js";
import type { Model } from "#proto/shoal/v1/model.js";
import type { Fragment, Round, RoundTask } from "#proto/shoal/v1/round.js";
import { fragmentOfRound } from "#common/domain/fragment.js";
import { foldShardValues, newRoundStatus } from "#common/domain/round.js";
import { API_VERSION, newMeta, roundName } from "#common/domain/resources.js";
import { deriveSeed } from "#common/domain/seed.js";
import { siteWeighting } from "#common/domain/site.js";
import { strategyFacts } from "#common/domain/strategy-table.js";

/** What comes after the rounds that are durable: a training round, the evaluation-only round at the end, or nothing. */
export function nextRound(job: TrainingJob): { number: number; evaluationOnly: boolean } | undefined {
  const { rounds = 0, evaluation } = job.spec ?? {};
  const number = (job.status?.completedRounds ?? 0) + 1;
  if (number <= rounds) return { number, evaluationOnly: false };
  return evaluation?.finalRound === true ? { number, evaluationOnly: true } : undefined;
}

/** Whether the starting weights of a round are evaluated: of the first, and of every `everyRounds`-th after it. */
export function isEvaluated(job: TrainingJob, number: number, evaluationOnly: boolean): boolean {
  const every = job.spec?.evaluation?.everyRounds ?? 0;
  return evaluationOnly || (every > 0 && (number - 1) % every === 0);
}

/** A job's outer state is its common control variate, if devices keep variates. */
function controlOf({ spec, status }: TrainingJob): Pick<RoundTask, "controlVariates" | "control"> {
  const controlVariates = strategyFacts(spec?.strategy?.name ?? "")?.controlled === true;
  return { controlVariates, control: controlVariates ? status?.outerState : undefined };
}

/**
 * A round to be created. It follows from the job and its newest weights alone, so that whichever replica creates it, after
 * whichever crash, creates the same one. Devices are not chosen here.
 * @param evalGraph needed if the round is evaluated
 * @param fragments in which the weights are synchronised; none if every round synchronises all
 * @param shardValues about how many values a shard of its fold holds, if that is given
 */
export function draftRound(
  job: TrainingJob,
  model: Pick<Model, "family" | "tokenizer">,
  { number, evaluationOnly }: { number: number; evaluationOnly: boolean },
  evalGraph: BlobRef | undefined,
  fragments: Fragment[] = [],
  shardValues?: number,
): Round {
  const { spec, status } = job;
  const name = job.metadata?.name ?? "";
  const steps = spec?.local?.steps ?? 0;
  const task: RoundTask = {
    job: name,
    jobUid: job.metadata?.uid ?? "",
    round: roundName(name, number),
    number,
    purpose: spec?.data?.purpose ?? "",
    modelFamily: model.family,
    cohortSize: 0,
    dataset: spec?.data?.dataset ?? "",
    tokenizer: model.tokenizer,
    heldOutFraction: spec?.data?.heldOutFraction ?? 0,
    seqLen: spec?.data?.seqLen ?? 0,
    weights: status?.weights,
    delta: status?.delta,
    parameters: status?.parameters ?? 0,
    optimizer: spec?.local?.optimizer,
    totalSteps: (spec?.rounds ?? 0) * steps,
    stepOffset: (number - 1) * steps,
    referenceSteps: evaluationOnly ? 0 : steps,
    codec: spec?.codec,
    evaluate: isEvaluated(job, number, evaluationOnly),
    evalGraph,
    evalBatchSize: spec?.local?.batchSize ?? 0,
    frozen: status?.frozen,
    packing: spec?.local?.packing ?? false,
    proximalMu: spec?.local?.proximalMu ?? 0,
    siteWeighting: siteWeighting(spec?.strategy),
    maxUpdateNorm: spec?.strategy?.maxUpdateNorm ?? 0,
    fragments,
    fragment: fragmentOfRound(number, fragments.length),
    mixing: spec?.strategy?.mixing ?? 0,
    // After the last round that trains there is none to work ahead for.
    overlapSteps: number < (spec?.rounds ?? 0) ? (spec?.strategy?.overlapSteps ?? 0) : 0,
    ...controlOf(job),
  };
  return {
    apiVersion: API_VERSION,
    kind: "Round",
    metadata: newMeta(task.round, { job: name }),
    spec: {
      job: name,
      number,
      evaluationOnly,
      seed: deriveSeed(spec?.seed ?? 0, "round", number),
      task,
      outerState: status?.outerState,
      // A round of evaluation stands by itself.
      maxStaleness: evaluationOnly ? 0 : (spec?.strategy?.maxStaleness ?? 0),
      foldShardValues: shardValues ?? foldShardValues(task.parameters),
    },
    status: newRoundStatus(),
  };
}
