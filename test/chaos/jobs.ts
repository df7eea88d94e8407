import { addressesJob } from "../fleet/addresses.js";

const STEPS = 12;
const PRESSED_MS = 12_000;

/** Ways of combining updates that go through different folds; a run's jobs take turns. */
const VARIANTS = [
  { strategy: { name: "diloco" }, codec: { name: "int8", errorFeedback: true } },
  {
    strategy: { name: "streamingDiloco", fragments: 2, overlapSteps: 4 },
    codec: { name: "int4", errorFeedback: true },
  },
  { strategy: { name: "median" }, codec: { name: "int8", errorFeedback: false } },
  { strategy: { name: "sparseLoco" }, codec: { name: "topk", errorFeedback: true } },
  { strategy: { name: "multiKrum" }, codec: { name: "fp32" } },
  { strategy: { name: "fedadam" }, codec: { name: "bf16" } },
  { strategy: { name: "fedbuff" }, codec: { name: "int8", errorFeedback: true } },
] as const;

/** Rounds of two updates less than there are devices, so that updates wait for later rounds and some get too stale for them. */
function asynchronous(spec: object, { devices }: { devices: number }): object {
  const bufferSize = Math.max(1, devices - 2);
  const strategy = { name: "fedbuff", bufferSize, maxStaleness: 2 };
  return { ...spec, strategy, cohort: { min: Math.min(bufferSize, 2), target: devices } };
}

/** Manifest of a run's job of this number. */
export function chaosJob(name: string, number: number, options: { rounds: number; devices: number }): string {
  // Every other job goes on without its slowest device, so that deadlines and late updates come up too.
  const pressed = number % 2 === 0 ? { minCohort: options.devices - 1, deadlineMs: PRESSED_MS } : {};
  const manifest = JSON.parse(addressesJob(name, { ...options, ...pressed, steps: STEPS })) as { spec: object };
  const variant = VARIANTS[(number - 1) % VARIANTS.length] ?? VARIANTS[0];
  const spec = { ...manifest.spec, ...variant };
  return JSON.stringify({
    ...manifest,
    spec: variant.strategy.name === "fedbuff" ? asynchronous(spec, options) : spec,
  });
}
