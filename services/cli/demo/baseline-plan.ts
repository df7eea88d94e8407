import { z } from "zod";

/** What a baseline process is told, as JSON on its standard input. */
export const baselinePlanSchema = z.object({
  seed: z.number().int(),
  threads: z.number().int(),
  /** Folder of each device's texts, by device. */
  folders: z.record(z.string(), z.string()),
  /** Models to train, one after the other: on these devices' texts, for so many steps. */
  runs: z.array(z.object({ name: z.string(), devices: z.array(z.string()), steps: z.number().int() })),
  /** Checkpoint folders to evaluate, by name. */
  checkpoints: z.record(z.string(), z.string()),
  /** Also evaluate fresh weights, under the name "initial". */
  initial: z.boolean(),
});

export type BaselinePlan = z.infer<typeof baselinePlanSchema>;

/** A line of a baseline process's standard output. */
export const baselineLineSchema = z.discriminatedUnion("kind", [
  z.object({ kind: z.literal("step"), name: z.string(), step: z.number(), steps: z.number(), loss: z.number() }),
  z.object({ kind: z.literal("loss"), name: z.string(), loss: z.number() }),
]);

export type BaselineLine = z.infer<typeof baselineLineSchema>;
