import { readFileSync, statSync } from "node:fs";
import { join, resolve } from "node:path";
import { z } from "zod";
import { CliError, EXIT } from "./exit.js";

const addresses = z.array(z.string());

const schema = z.object({
  /** Form of this file. */
  version: z.literal(1),
  /** gRPC addresses (host:port) of each service, one a replica. */
  grpc: z.object({
    registry: addresses,
    scheduler: addresses,
    telemetry: addresses,
    /** Absent in files of versions whose aggregator answered no calls. */
    aggregator: addresses.default([]),
  }),
  /** Addresses (host:port) of the metrics and health pages of each service. */
  metrics: z.record(z.string(), addresses),
  natsUrl: z.string(),
  redisUrl: z.string(),
  /** Process ids by unit name, that of `shoal up` itself under "up". */
  pids: z.record(z.string(), z.number()),
});

/** Where a control plane is found. Written by `shoal up`, read by every other command. */
export type Context = z.infer<typeof schema>;

export const CONTEXT_FILE = "context.json";

export type ParsedContext = { ok: true; context: Context } | { ok: false; problem: string };

/** Reads the text of a context file. */
export function parseContext(text: string): ParsedContext {
  let json: unknown;
  try {
    json = JSON.parse(text);
  } catch {
    return { ok: false, problem: "is not JSON" };
  }
  const parsed = schema.safeParse(json);
  if (parsed.success) return { ok: true, context: parsed.data };
  const issue = parsed.error.issues[0];
  return { ok: false, problem: `${issue?.path.join(".") ?? ""}: ${issue?.message ?? "not a context"}` };
}

/** The context's place: the option, else SHOAL_CONTEXT, else ./.shoal. A directory stands for the file in it. */
export function contextPlace(option: string | undefined, variable: string | undefined): string {
  if (option !== undefined && option !== "") return option;
  if (variable !== undefined && variable !== "") return variable;
  return ".shoal";
}

/**
 * Loads a context.
 * @throws CliError with the remedy when there is none or it cannot be read
 */
export function loadContext(option: string | undefined, variable: string | undefined): Context {
  const place = resolve(contextPlace(option, variable));
  const isDirectory = statSync(place, { throwIfNoEntry: false })?.isDirectory() ?? false;
  const file = isDirectory ? join(place, CONTEXT_FILE) : place;
  let text: string;
  try {
    text = readFileSync(file, "utf8");
  } catch {
    throw new CliError(
      `no control plane is known: ${file} cannot be read. Start one with "shoal up", or name its directory with --context or SHOAL_CONTEXT.`,
      EXIT.unavailable,
    );
  }
  const parsed = parseContext(text);
  if (!parsed.ok) throw new CliError(`${file} is not a context: ${parsed.problem}`, EXIT.invalid);
  return parsed.context;
}
