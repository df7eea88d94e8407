/** Numbers and switches that some strategies have. */
export interface StrategyParameters {
  outerLearningRate: number;
  outerMomentum: number;
  beta1: number;
  beta2: number;
  tau: number;
  biasCorrection: boolean;
  trim: number;
  byzantine: number;
  selected: number;
  clipRadius: number;
  clipIterations: number;
  fragments: number;
  mixing: number;
  overlapSteps: number;
  population: number;
  bufferSize: number;
  maxStaleness: number;
}

/** What a submission must know of a strategy. */
export interface StrategyFacts {
  /** Its parameters, each with what it is if left out; others do not belong to it. */
  readonly parameters: Readonly<Partial<StrategyParameters>>;
  /**
   * Whether it withstands malicious updates: then all weigh the same, since the number of tokens is the device's own word,
   * and `least` updates are needed for one of them to be outvoted.
   */
  readonly robust?: { readonly least: number };
  /** Whether it looks at each coordinate, or each update, among its like, so that updates must be dense. */
  readonly dense?: boolean;
  /** Whether it takes the weighted mean of the updates and nothing else, so that a site's gateway may take a part of it. */
  readonly mean?: boolean;
  /** Whether devices keep weights of their own from round to round, and send a fragment of the model a round. */
  readonly streaming?: boolean;
  /** Whether devices keep control variates, whose changes travel with the updates. */
  readonly controlled?: boolean;
  /** Whether rounds fold what a buffer holds, updates that began in earlier rounds included, and devices train on meanwhile. */
  readonly asynchronous?: boolean;
}

const outer = { outerLearningRate: 1, outerMomentum: 0 };
const moments = { beta1: 0.9, tau: 1e-3 };

/** Every strategy that a job may name. The aggregator's own table has one file for each. */
export const STRATEGIES = {
  fedavg: { parameters: {}, mean: true },
  fedprox: { parameters: {}, mean: true },
  diloco: { parameters: { outerLearningRate: 0.7, outerMomentum: 0.9 }, mean: true },
  streamingDiloco: {
    parameters: { outerLearningRate: 0.7, outerMomentum: 0.9, fragments: 4, mixing: 0.5, overlapSteps: 0 },
    mean: true,
    streaming: true,
  },
  fedadam: { parameters: { outerLearningRate: 0.1, ...moments, beta2: 0.99, biasCorrection: false }, mean: true },
  fedyogi: { parameters: { outerLearningRate: 0.01, ...moments, beta2: 0.99, biasCorrection: false }, mean: true },
  fedadagrad: { parameters: { outerLearningRate: 0.1, ...moments }, mean: true },
  sparseLoco: { parameters: { outerLearningRate: 1 }, mean: true },
  median: { parameters: outer, robust: { least: 3 }, dense: true },
  trimmedMean: { parameters: { ...outer, trim: 0.2 }, robust: { least: 3 }, dense: true },
  krum: { parameters: { ...outer, byzantine: 0 }, robust: { least: 3 }, dense: true },
  multiKrum: { parameters: { ...outer, byzantine: 0, selected: 0 }, robust: { least: 3 }, dense: true },
  centeredClipping: {
    parameters: { outerLearningRate: 1, clipRadius: 0, clipIterations: 5 },
    robust: { least: 3 },
  },
  scaffold: { parameters: { outerLearningRate: 1, population: 0 }, controlled: true },
  fedbuff: { parameters: { outerLearningRate: 1, bufferSize: 10, maxStaleness: 10 }, asynchronous: true },
} as const satisfies Readonly<Record<string, StrategyFacts>>;

/** The facts of this strategy, if there is one of the name. */
export function strategyFacts(name: string): StrategyFacts | undefined {
  return Object.hasOwn(STRATEGIES, name) ? STRATEGIES[name as keyof typeof STRATEGIES] : undefined;
}

/** Names of all parameters, each of which belongs to some strategies. */
export const STRATEGY_PARAMETERS = [
  ...new Set(Object.values(STRATEGIES).flatMap((facts) => Object.keys(facts.parameters))),
] as readonly (keyof StrategyParameters)[];
