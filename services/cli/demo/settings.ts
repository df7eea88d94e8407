/** Sizes of the demo: chosen so that it takes about three minutes on two cores and shows what it is meant to show. */
export const DEMO = {
  job: "sotu",
  dataset: "addresses",
  /** A GPT-2 of 1.03 million parameters over bytes. */
  model: { vocabSize: 256, contextLength: 64, layers: 5, heads: 4, width: 128 },
  seqLen: 64,
  batchSize: 6,
  heldOutFraction: 0.1,
  rounds: 14,
  localSteps: 18,
  // Few rounds leave a heavy momentum no time: with 0.7 and 0.9 the loss is higher.
  outerLearningRate: 0.9,
  outerMomentum: 0.6,
  optimizer: {
    name: "adamw",
    learningRate: 4e-3,
    beta1: 0.9,
    beta2: 0.99,
    eps: 1e-8,
    weightDecay: 0.1,
    clipNorm: 1,
    keepState: true,
    schedule: { name: "cosine", warmupSteps: 20, minRatio: 0.1 },
  },
  /** Share of its full speed at which a device of each class works. */
  speeds: [
    { name: "fast", throttle: 1 },
    { name: "medium", throttle: 0.6 },
    { name: "slow", throttle: 0.35 },
  ],
} as const;

/** The speed class of the i-th device: they take turns. */
export function speedOf(i: number): { readonly name: string; readonly throttle: number } {
  return DEMO.speeds[i % DEMO.speeds.length] ?? DEMO.speeds[0];
}

/** The TrainingJob manifest as `shoal apply` would read it. JSON is YAML. */
export function demoManifest(devices: number, rounds: number, seed: number): string {
  return JSON.stringify({
    apiVersion: "shoal.dev/v1alpha1",
    kind: "TrainingJob",
    metadata: { name: DEMO.job, labels: { from: "demo" } },
    spec: {
      model: { family: "gpt2", config: huggingFaceConfig(), tokenizer: { kind: "bytes" } },
      data: {
        dataset: DEMO.dataset,
        purpose: "research",
        seqLen: DEMO.seqLen,
        heldOutFraction: DEMO.heldOutFraction,
      },
      rounds,
      cohort: { min: Math.ceil(devices / 2), target: devices },
      local: {
        steps: DEMO.localSteps,
        stepPolicy: "proportional",
        minSteps: 4,
        batchSize: DEMO.batchSize,
        optimizer: DEMO.optimizer,
      },
      strategy: {
        name: "diloco",
        outerLearningRate: DEMO.outerLearningRate,
        outerMomentum: DEMO.outerMomentum,
        weighting: "tokens",
      },
      codec: { name: "int8", errorFeedback: true },
      evaluation: { everyRounds: 1, finalRound: true },
      seed,
    },
  });
}

/** The model in the field names of Hugging Face's GPT-2. */
export function huggingFaceConfig(): Record<string, number> {
  const { vocabSize, contextLength, layers, heads, width } = DEMO.model;
  return { vocab_size: vocabSize, n_positions: contextLength, n_layer: layers, n_head: heads, n_embd: width };
}
