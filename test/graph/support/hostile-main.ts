import { argv, resourceUsage, stdout } from "node:process";
import { openTokenizer } from "#agent/data/tokenizers.js";
import { exportFolder, importFolder } from "#common/graph/folder.js";
import { parameterLayout } from "#common/graph/layout.js";
import { readSafetensors } from "#common/graph/safetensors.js";
import { TokenizerSpec } from "#proto/shoal/v1/job.js";
import { hostileFolder, hostileTokenizer } from "./hostile-files.js";

/** What a run over many damaged files came to; one line of JSON, for the process that started this one. */
export interface HostileRun {
  readonly folders: { readonly refused: number; readonly accepted: number };
  readonly tokenizers: { readonly refused: number; readonly accepted: number };
  /** Of files that crashed something or were let through wrongly, with their seeds. */
  readonly failures: readonly string[];
  readonly slowestMs: number;
  readonly grownBytes: number;
}

const MAX_REPORT = 64 * 1024;

function assert(holds: boolean, what: string): void {
  if (!holds) throw new Error(what);
}

/** Imports a folder; what is accepted must be whole, and come out as it went in. */
function tryFolder(seed: number): boolean {
  const files = hostileFolder(seed);
  for (const [name, bytes] of files) if (name.endsWith(".safetensors")) readSafetensors(bytes);
  const imported = importFolder(files);
  if (!imported.ok) {
    assert(imported.violations.length > 0, "refused without a reason");
    assert(JSON.stringify(imported.violations).length < MAX_REPORT, "a report of no end");
    return false;
  }
  const { config, weights, template } = imported;
  assert(weights.length === parameterLayout(config).total, "weights of another length");
  assert(weights.every(Number.isFinite), "weights that are not finite");
  for (const [name, bytes] of exportFolder(config, weights, template)) {
    assert(Buffer.compare(bytes, files.get(name) ?? Buffer.alloc(0)) === 0, `${name} does not come out as it went in`);
  }
  return true;
}

const spec = TokenizerSpec.fromPartial({ kind: "huggingface" });
const TEXT = `hello  world, ${"he's well ".repeat(200)}\n${"l".repeat(500)} \ud800`;

function tryTokenizer(seed: number): boolean {
  const opened = openTokenizer(spec, hostileTokenizer(seed));
  if (!opened.ok) {
    assert(opened.problem.length < 1000, "a report of no end");
    return false;
  }
  const { tokenizer } = opened;
  const ids = tokenizer.encode(TEXT);
  assert(tokenizer.vocabulary <= 1_000_001, `a vocabulary of ${tokenizer.vocabulary}`);
  assert(
    ids.every((id) => id >= 0 && id < tokenizer.vocabulary),
    "a token beyond the vocabulary",
  );
  assert(tokenizer.decode([...ids]).length < 100 * TEXT.length, "a text of no end");
  return true;
}

function main(folders: number, tokenizers: number): HostileRun {
  const failures: string[] = [];
  const before = resourceUsage().maxRSS;
  let slowestMs = 0;
  const run = (
    what: string,
    count: number,
    attempt: (seed: number) => boolean,
  ): { refused: number; accepted: number } => {
    let accepted = 0;
    for (let seed = 0; seed < count; seed++) {
      const startMs = performance.now();
      try {
        if (attempt(seed)) accepted++;
      } catch (error) {
        failures.push(`${what} ${seed}: ${error instanceof Error ? (error.stack ?? error.message) : String(error)}`);
      }
      slowestMs = Math.max(slowestMs, performance.now() - startMs);
    }
    return { refused: count - accepted, accepted };
  };
  const results = {
    folders: run("folder", folders, tryFolder),
    tokenizers: run("tokenizer", tokenizers, tryTokenizer),
  };
  const grownBytes = (resourceUsage().maxRSS - before) * 1024;
  return { ...results, failures: failures.slice(0, 5), slowestMs, grownBytes };
}

stdout.write(JSON.stringify(main(Number(argv[2]), Number(argv[3]))));
