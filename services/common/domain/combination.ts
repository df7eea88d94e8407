import { type CodecSpec, StrategySpec } from "#proto/shoal/v1/job.js";
import { codecByName } from "../tensor/codec.js";
import { SPARSE_LOCO } from "../tensor/codecs/topk.js";
import { encodesDown } from "./down-link.js";
import type { JobManifest } from "./job-schema.js";
import { JOB_DEFAULTS } from "./job-schema.js";
import type { Violation } from "./resources.js";
import { STRATEGIES, STRATEGY_PARAMETERS, strategyFacts, type StrategyFacts } from "./strategy-table.js";
import { showValue } from "./violation.js";

type Spec = JobManifest["spec"];

/** The entries of a map that are set. */
type Given<T> = { [K in keyof T]?: Exclude<T[K], undefined> };
const given = <T extends object>(map: T): Given<T> =>
  Object.fromEntries(Object.entries(map).filter(([, value]) => value !== undefined)) as Given<T>;

/** A strategy with its own parameters filled in; those of others are zero. */
export function completedStrategy({ strategy }: Spec): StrategySpec {
  const { parameters, robust, controlled, asynchronous }: StrategyFacts = STRATEGIES[strategy.name];
  const isEqual = robust !== undefined || controlled === true || asynchronous === true;
  const weighting = strategy.weighting ?? (isEqual ? "equal" : JOB_DEFAULTS.strategy.weighting);
  return StrategySpec.fromPartial({ ...parameters, ...given(strategy), weighting });
}

const isLossy = (codec: Spec["codec"]): boolean => codecByName(codec.name)?.lossless === false;

/** A codec with its own sizes filled in. The residual of top-k decays, as in SparseLoCo; that of others does not. */
export function completedCodec({ codec }: Spec): CodecSpec {
  const sparse = codec.name === "topk";
  const { keep = SPARSE_LOCO.keep, block = SPARSE_LOCO.block, valueBits = SPARSE_LOCO.valueBits } = codec.topk ?? {};
  const errorDecay = codec.errorDecay ?? (sparse ? JOB_DEFAULTS.topk.errorDecay : 1);
  return {
    ...codec,
    topk: sparse ? { keep, block, valueBits } : undefined,
    // As jobs say that know of no way down.
    down: encodesDown(codec) ? codec.down : "",
    errorDecay: codec.errorFeedback && isLossy(codec) ? errorDecay : 0,
  };
}

/** A pair of choices that cannot be: the field to change, and what to do instead. */
interface Clash {
  readonly field: `spec.${string}`;
  readonly value: (spec: Spec) => unknown;
  readonly when: (spec: Spec, facts: StrategyFacts) => boolean;
  readonly description: (spec: Spec, facts: StrategyFacts) => string;
}

/** Updates that Krum needs to withstand `byzantine` malicious ones: n >= 2f + 3 (Blanchard 2017). */
const krumLeast = ({ strategy }: Spec): number => 2 * (strategy.byzantine ?? 0) + 3;

const fragmentCount = ({ strategy }: Spec): number =>
  strategy.fragments ?? STRATEGIES.streamingDiloco.parameters.fragments;

const bufferSize = ({ strategy }: Spec): number => strategy.bufferSize ?? STRATEGIES.fedbuff.parameters.bufferSize;

/** All pairs of strategy, codec, cohort and local training that cannot be. */
const CLASHES: readonly Clash[] = [
  {
    field: "spec.strategy.weighting",
    value: ({ strategy }) => strategy.weighting,
    when: ({ strategy }, { robust }) => robust !== undefined && strategy.weighting === "tokens",
    description: ({ strategy }) =>
      `would let a malicious device choose its own weight, against which "${strategy.name}" is to protect; use "equal"`,
  },
  {
    field: "spec.codec.name",
    value: ({ codec }) => codec.name,
    when: ({ codec }, { dense }) => dense === true && codec.name === "topk",
    description: ({ strategy }) =>
      `leaves nearly every value out, and "${strategy.name}" would take the absent ones for zeros; use another codec, ` +
      'or the strategy "centeredClipping"',
  },
  {
    field: "spec.codec.name",
    value: ({ codec }) => codec.name,
    when: ({ codec, strategy }) => strategy.name === "sparseLoco" && codec.name !== "topk",
    description: () => 'is not sparse; strategy "sparseLoco" needs "topk", or use "fedavg" or "diloco"',
  },
  {
    field: "spec.codec.name",
    value: ({ codec }) => codec.name,
    when: ({ codec }, { streaming }) => streaming === true && codec.name === "topk",
    description: ({ strategy }) =>
      `would carry what it leaves out twice: as its residual, and in the weights that devices keep under "${strategy.name}"; ` +
      'use "int4" or "int8", or the strategy "sparseLoco"',
  },
  {
    field: "spec.rounds",
    value: ({ rounds }) => rounds,
    when: (spec, { streaming }) => streaming === true && spec.rounds < fragmentCount(spec),
    description: (spec) =>
      `is below strategy.fragments (${fragmentCount(spec)}): of a fragment that no round synchronises nothing would be learnt; ` +
      "raise rounds or lower fragments",
  },
  {
    field: "spec.strategy.overlapSteps",
    value: ({ strategy }) => strategy.overlapSteps,
    when: ({ strategy, local }, { streaming }) => streaming === true && (strategy.overlapSteps ?? 0) >= local.steps,
    description: ({ local }) =>
      `is not below local.steps (${local.steps}), of which a round would have none left; lower it or raise local.steps`,
  },
  {
    field: "spec.codec.errorFeedback",
    value: ({ codec }) => codec.errorFeedback,
    when: ({ codec }) => codec.name === "topk" && !codec.errorFeedback,
    description: () => 'must be true: without it all that "topk" does not send is lost for ever; or use another codec',
  },
  {
    field: "spec.codec.topk",
    value: ({ codec }) => codec.topk,
    when: ({ codec }) => codec.topk !== undefined && codec.name !== "topk",
    description: () => 'is only for the codec "topk"; leave it out or change the name',
  },
  {
    field: "spec.codec.topk.keep",
    value: ({ codec }) => codec.topk?.keep,
    when: ({ codec }) => (codec.topk?.keep ?? 0) > (codec.topk?.block ?? SPARSE_LOCO.block),
    description: ({ codec }) =>
      `is above block (${codec.topk?.block ?? SPARSE_LOCO.block}); a block cannot keep more values than it has`,
  },
  {
    field: "spec.codec.topk.block",
    value: ({ codec }) => codec.topk?.block,
    when: ({ codec: { topk } }) => topk?.keep === undefined && (topk?.block ?? Infinity) < SPARSE_LOCO.keep,
    description: () => `is below keep, which is ${SPARSE_LOCO.keep} unless given; give keep too`,
  },
  {
    field: "spec.codec.errorDecay",
    value: ({ codec }) => codec.errorDecay,
    when: ({ codec }) => codec.errorDecay !== undefined && !(codec.errorFeedback && isLossy(codec)),
    description: () => "decays what error feedback carries, and here it carries nothing; leave it out",
  },
  {
    field: "spec.codec.stochasticRounding",
    value: ({ codec }) => codec.stochasticRounding,
    when: ({ codec }) => codec.stochasticRounding && !isLossy(codec),
    description: ({ codec }) => `has nothing to round: codec "${codec.name}" sends values as they are; leave it out`,
  },
  {
    field: "spec.local.proximalMu",
    value: ({ local }) => local.proximalMu,
    when: ({ local, strategy }) => strategy.name === "fedprox" && local.proximalMu === 0,
    description: () => 'is 0, and "fedprox" without its term is "fedavg"; set it, e.g. to 0.01, or use "fedavg"',
  },
  {
    field: "spec.cohort.min",
    value: ({ cohort }) => cohort.min,
    when: (spec, { robust }) => robust !== undefined && spec.cohort.min < Math.max(robust.least, krumLeast(spec)),
    description: (spec, { robust }) =>
      `is too small for "${spec.strategy.name}" to outvote a malicious update; set it to at least ` +
      `${Math.max(robust?.least ?? 0, krumLeast(spec))}, or use "fedavg"`,
  },
  {
    field: "spec.strategy.selected",
    value: ({ strategy }) => strategy.selected,
    when: ({ strategy, cohort }) => (strategy.selected ?? 0) > cohort.min - (strategy.byzantine ?? 0),
    description: () =>
      "is more than a round's honest updates (cohort.min less byzantine); lower it or raise cohort.min",
  },
  {
    field: "spec.strategy.normBound",
    value: ({ strategy }) => strategy.normBound,
    when: ({ strategy: { normBound, maxUpdateNorm } }) => maxUpdateNorm > 0 && normBound >= maxUpdateNorm,
    description: ({ strategy }) =>
      `is not below maxUpdateNorm (${strategy.maxUpdateNorm}), which refuses such updates first; lower it or leave one out`,
  },
  {
    field: "spec.strategy.weighting",
    value: ({ strategy }) => strategy.weighting,
    when: ({ strategy }, { controlled }) => controlled === true && strategy.weighting === "tokens",
    description: ({ strategy }) =>
      `is not for "${strategy.name}", whose common control variate is the plain mean of the devices'; use "equal"`,
  },
  {
    field: "spec.local.optimizer.name",
    value: ({ local }) => local.optimizer.name,
    when: ({ local }, { controlled }) => controlled === true && local.optimizer.name !== "sgd",
    description: ({ strategy }) =>
      `is not for "${strategy.name}": its control variates are means of the gradients that local steps took, which only ` +
      'plain steps tell; use "sgd", or the strategy "diloco"',
  },
  {
    field: "spec.local.optimizer.momentum",
    value: ({ local }) => local.optimizer.momentum,
    when: ({ local }, { controlled }) => controlled === true && (local.optimizer.momentum ?? 0) > 0,
    description: ({ strategy }) =>
      `would enter the control variates of "${strategy.name}" in place of gradients; leave it out`,
  },
  {
    field: "spec.local.proximalMu",
    value: ({ local }) => local.proximalMu,
    when: ({ local }, { controlled }) => controlled === true && local.proximalMu > 0,
    description: ({ strategy }) =>
      `pulls against the same drift that "${strategy.name}" corrects, and would enter its control variates; leave it out`,
  },
  {
    field: "spec.codec.name",
    value: ({ codec }) => codec.name,
    when: ({ codec }, { controlled }) => controlled === true && codec.name === "topk",
    description: ({ strategy }) =>
      `leaves nearly every value out, and "${strategy.name}" corrects every step by control variates that would be rounds ` +
      'behind; use "int8" or "int4"',
  },
  {
    field: "spec.codec.down",
    value: ({ codec }) => codec.down,
    when: ({ codec }, { controlled }) => controlled === true && encodesDown(codec),
    description: ({ strategy }) =>
      `is not for "${strategy.name}", whose common control variate travels down whole beside the weights; use "none"`,
  },
  {
    field: "spec.strategy.normBound",
    value: ({ strategy }) => strategy.normBound,
    when: ({ strategy }, { controlled }) => controlled === true && strategy.normBound > 0,
    description: ({ strategy }) =>
      `would scale down what devices already added to their own control variates, and "${strategy.name}" would drift; ` +
      "leave it out, or use maxUpdateNorm",
  },
  {
    field: "spec.strategy.population",
    value: ({ strategy }) => strategy.population,
    when: ({ strategy, cohort }) =>
      (strategy.population ?? 0) > 0 && (strategy.population ?? 0) < Math.max(cohort.min, cohort.target),
    description: ({ cohort }) =>
      `is smaller than a round's cohort (${Math.max(cohort.min, cohort.target)}); give the number of devices that take part in the job`,
  },
  {
    field: "spec.strategy.bufferSize",
    value: ({ strategy }) => strategy.bufferSize,
    when: (spec, { asynchronous }) => asynchronous === true && bufferSize(spec) < spec.cohort.min,
    description: ({ cohort }) =>
      `is below cohort.min (${cohort.min}), without which no round is folded; raise it or lower cohort.min`,
  },
  {
    field: "spec.cohort.overCommit",
    value: ({ cohort }) => cohort.overCommit,
    when: ({ cohort }, { asynchronous }) => asynchronous === true && cohort.overCommit > 1,
    description: ({ strategy }) =>
      `invites spare devices against slow ones, and "${strategy.name}" waits for none and loses no update that comes later; ` +
      "leave it out and raise cohort.target, the number of devices at work at once",
  },
];

/** Parameters of other strategies would be silently without effect. */
function foreignParameters({ strategy }: Spec, { parameters }: StrategyFacts): Violation[] {
  return STRATEGY_PARAMETERS.filter((key) => strategy[key] !== undefined && parameters[key] === undefined).map(
    (key) => {
      const owners = Object.entries(STRATEGIES).flatMap(([name, facts]) => (key in facts.parameters ? [name] : []));
      const description = `does not belong to the strategy "${strategy.name}", but to ${owners.join(", ")}; leave it out`;
      return { field: `spec.strategy.${key}`, value: showValue(strategy[key]), description };
    },
  );
}

/** What strategy, codec, cohort and local training say that does not go together. */
export function checkCombination(spec: Spec): Violation[] {
  const facts = strategyFacts(spec.strategy.name) ?? STRATEGIES.fedavg;
  const clashes = CLASHES.filter((clash) => clash.when(spec, facts)).map((clash) => ({
    field: clash.field,
    value: showValue(clash.value(spec)),
    description: clash.description(spec, facts),
  }));
  return [...foreignParameters(spec, facts), ...clashes];
}
