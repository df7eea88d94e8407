import { parseArgs } from "node:util";
import type { AgentOptions, OptionProblem } from "./options.js";

export const USAGE = `usage: shoal-agent --state-dir FOLDER [options]

  --join TOKEN            join a fleet at the first start (or the variable SHOAL_JOIN_TOKEN)
  --name NAME             wished device name (default: the host's name)
  --dataset NAME=FOLDER   offer the .txt and .jsonl files of a folder; may be repeated
  --state-dir FOLDER      identity, cache and unsent updates
  --threads N             threads for training (default 1)
  --provider NAME         what computes: cpu, cuda, coreml, dml, webgpu or wasm (default cpu)
  --throttle SHARE        share of the full speed, e.g. 0.5 (default 1)
  --policy FILE           YAML with purposes, modelFamilies, maxRoundsPerDay, minCohort, hours
  --label KEY=VALUE       label of the device; may be repeated
  --via ADDRESS           connect to the NATS server of the site's gateway
  --cache-bytes N         most bytes of cached models (default 4294967296)
  --outbox-max-bytes N    most bytes of updates and of what jobs keep between rounds (default 8589934592)
  --least-free-bytes N    bytes of the disk that stay free (default 5 % of it, at most 268435456)
  --json-log              one JSON object a log line
`;

type Parsed = { ok: true; options: AgentOptions } | { ok: false; problems: OptionProblem[] };

function pairs(option: string, items: readonly string[], problems: OptionProblem[]): Record<string, string> {
  const result: Record<string, string> = {};
  for (const item of items) {
    const at = item.indexOf("=");
    const key = item.slice(0, Math.max(0, at));
    if (at < 1) problems.push(`${option} "${item}": write it with an "=" between name and value`);
    else if (Object.hasOwn(result, key)) problems.push(`${option} "${item}": ${key} is given twice; keep one`);
    else result[key] = item.slice(at + 1);
  }
  return result;
}

const number = (text: string | undefined): number | undefined => (text === undefined ? undefined : Number(text));

/** Options from a command line. `joinToken` is used if the line names none. */
export function parseArguments(argv: readonly string[], joinToken: string | undefined): Parsed {
  const text = { type: "string" } as const;
  const list = { type: "string", multiple: true } as const;
  try {
    const { values } = parseArgs({
      args: [...argv],
      options: {
        join: text,
        name: text,
        dataset: list,
        "state-dir": text,
        threads: text,
        provider: text,
        throttle: text,
        policy: text,
        label: list,
        "cache-bytes": text,
        "outbox-max-bytes": text,
        "least-free-bytes": text,
        via: text,
        "json-log": { type: "boolean" },
      },
    });
    const problems: OptionProblem[] = [];
    const options: AgentOptions = {
      joinToken: values.join ?? joinToken,
      name: values.name,
      dataset: pairs("--dataset", values.dataset ?? [], problems),
      stateDir: values["state-dir"] ?? "",
      threads: number(values.threads),
      provider: values.provider,
      throttle: number(values.throttle),
      policyFile: values.policy,
      labels: pairs("--label", values.label ?? [], problems),
      cacheBytes: number(values["cache-bytes"]),
      outboxMaxBytes: number(values["outbox-max-bytes"]),
      leastFreeBytes: number(values["least-free-bytes"]),
      jsonLog: values["json-log"],
      via: values.via,
    };
    return problems.length > 0 ? { ok: false, problems } : { ok: true, options };
  } catch (error) {
    return { ok: false, problems: [error instanceof Error ? error.message : String(error)] };
  }
}
